// Packed centroid ids. Eight take `bits` whole bytes and sixteen twice as many, so the sixteen from
// any first one on lie alike: a step is a load, two permutations of words and two shifts by lane.
#pragma once

namespace {

using namespace colbert_fast;

void unpack_codes(const std::uint8_t *packed, std::size_t first, std::size_t n, int bits,
                  std::int32_t largest, std::int32_t *out) {
  const std::size_t bit = first * static_cast<std::size_t>(bits);
  const Fields fields(bits, static_cast<int>(bit % 8));
  const std::uint8_t *at = packed + bit / 8;
  const I32x16 last = set1(largest);
  for (std::size_t i = 0; i < n; i += kLanes, at += 2 * bits)
    store(out + i, min(fields.read(at), last));
}

} // namespace
