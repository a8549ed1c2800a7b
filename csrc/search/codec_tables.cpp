#include "search/codec_tables.h"

#include <algorithm>
#include <cmath>

namespace colbert_fast {
namespace {

std::size_t reversed(std::size_t value, int n) {
  std::size_t r = 0;
  for (int k = 0; k < n; ++k) r |= (value >> k & 1u) << (n - 1 - k);
  return r;
}

// The bucket that a field of a packed byte stands for.
std::size_t bucket_of(std::size_t field, int nbits) {
  return nbits == 3 ? reversed(field & 3, 2) | (field & 4) : reversed(field, nbits);
}

} // namespace

int nbits_of(std::size_t n_weights) {
  for (const int nbits : {1, 2, 3, 4, 8})
    if (n_weights == std::size_t{1} << nbits) return nbits;
  return 0;
}

std::uint8_t encode_inverse_norm(float inverse) {
  const float byte = std::nearbyintf((std::log2(inverse) + 1.0f) * 127.5f);
  return static_cast<std::uint8_t>(std::min(255.0f, std::max(0.0f, byte)));
}

CodecTables::CodecTables(const float *centroids, const float *weights, int nbits, std::size_t dim)
    : centroids_(centroids), nbits_(nbits), dim_(dim) {
  const std::size_t n = std::size_t{1} << nbits;
  const auto [low, high] = std::minmax_element(weights, weights + n);
  low_ = *low;
  step_ = (*high - *low) / static_cast<float>(kMaxLevel);
  for (std::size_t field = 0; field < n; ++field) {
    const float offset = weights[bucket_of(field, nbits)] - low_;
    levels_[field] =
        step_ > 0.0f ? static_cast<std::uint8_t>(std::nearbyintf(offset / step_)) : std::uint8_t{0};
  }
  for (std::size_t b = 0; b < 256; ++b)
    norms_[b] = std::exp2((static_cast<float>(b) - 127.5f) / 127.5f);
  // The fields of a packed byte, first dimension on top; for 3 bits its low parts, and above it the
  // nibble of high bits.
  const int low_bits = nbits == 3 ? 2 : nbits;
  const std::size_t planes = planes_of(nbits), mask = (std::size_t{1} << low_bits) - 1;
  for (std::size_t index = 0; index < (nbits == 3 ? 4096u : 256u); ++index)
    for (std::size_t j = 0; j < planes; ++j) {
      std::size_t field = index >> (8 - static_cast<std::size_t>(low_bits) * (j + 1)) & mask;
      if (nbits == 3) field |= (index >> (11 - j) & 1) << 2;
      by_byte_.push_back(weights[bucket_of(field, nbits)]);
    }
}

Decoder CodecTables::decoder() const {
  const std::size_t packed_dim = dim_ * static_cast<std::size_t>(nbits_) / 8;
  return {centroids_, by_byte_.data(), levels_.data(), norms_.data(), nbits_, dim_, packed_dim};
}

} // namespace colbert_fast
