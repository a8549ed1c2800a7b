// Centroid ids in no more bits than they need; the kernel `unpack_codes` reads them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "aligned.h"
#include "cpu/dispatch.h"

namespace colbert_fast {

// The bits that ids below n take: at least one.
constexpr int code_bits(std::size_t n) {
  int bits = 1;
  while ((std::size_t{1} << bits) < n) ++bits;
  return bits;
}

// n ids, without the padding.
constexpr std::size_t packed_bytes(std::size_t n, int bits) {
  return (n * static_cast<std::size_t>(bits) + 7) / 8;
}

// Ids below 2^bits, and the padding, into packed_bytes(n, bits) + kCodePadding bytes.
inline void write_codes(Codes codes, std::size_t n, int bits, std::uint8_t *out) {
  std::uint64_t buffer = 0;
  int filled = 0;
  for (std::size_t i = 0; i < n; ++i) {
    buffer |= static_cast<std::uint64_t>(code_at(codes, i)) << filled;
    for (filled += bits; filled >= 8; filled -= 8, buffer >>= 8)
      *out++ = static_cast<std::uint8_t>(buffer);
  }
  if (filled > 0) *out++ = static_cast<std::uint8_t>(buffer);
  std::fill_n(out, kCodePadding, std::uint8_t{0});
}

// Packed ids, padding included. What is above `largest` is read as that.
struct PackedCodes {
  const std::uint8_t *data;
  int bits;
  std::int32_t largest;

  // Ids `first` to first + n - 1, in memory that `buffer` keeps.
  Codes unpack(std::size_t first, std::size_t n, AlignedVector<std::int32_t> &buffer) const {
    const std::size_t size = (n + kLanes - 1) / kLanes * kLanes;
    if (buffer.size() < size) buffer.resize(size);
    kernels().unpack_codes(data, first, n, bits, largest, buffer.data());
    return {buffer.data(), true};
  }
};

} // namespace colbert_fast
