// The place of a word's lowest bit that is set.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace colbert_fast {

// bits != 0.
inline std::size_t lowest_bit(std::uint64_t bits) {
#if defined(_MSC_VER)
  unsigned long index;
  _BitScanForward64(&index, bits);
  return index;
#else
  return static_cast<std::size_t>(__builtin_ctzll(bits));
#endif
}

} // namespace colbert_fast
