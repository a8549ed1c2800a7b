#include "search/codec_tables.h"

#include <algorithm>
#include <cmath>

namespace colbert_fast {
namespace {

// Byte 0 of the scales stands for 0; the others for 2^((b - kScaleOne) / kScaleSteps).
constexpr float kScaleSteps = 32.0f, kScaleOne = 192.0f;

std::size_t reversed(std::size_t value, int n) {
  std::size_t r = 0;
  for (int k = 0; k < n; ++k) r |= (value >> k & 1u) << (n - 1 - k);
  return r;
}

// The bucket that a window of a packed byte stands for: its own bits.
std::size_t bucket_of(std::size_t window, int nbits) {
  const int own = low_bits(nbits);
  const std::size_t low = reversed(window & ((std::size_t{1} << own) - 1), own);
  return nbits == 3 ? low | window >> 3 << 2 : low;
}

std::uint8_t round_to_byte(float value) {
  return static_cast<std::uint8_t>(std::min(255.0f, std::max(0.0f, std::nearbyintf(value))));
}

} // namespace

std::uint8_t encode_inverse_norm(float inverse) {
  return round_to_byte((std::log2(inverse) + 1.0f) * 127.5f);
}

std::uint8_t encode_scale(float scale) {
  return scale > 0.0f ? round_to_byte(std::log2(scale) * kScaleSteps + kScaleOne) : std::uint8_t{0};
}

CodecTables::CodecTables(const float *centroids, const float *weights, std::size_t n_weights,
                         int nbits, std::size_t dim)
    : centroids_(centroids), nbits_(nbits), dim_(dim), values_(windows_of(nbits)) {
  const bool by_bucket = n_weights == std::size_t{1} << nbits;
  for (std::size_t window = 0; window < values_.size(); ++window)
    values_[window] = weights[by_bucket ? bucket_of(window, nbits) : window];
  const auto [low, high] = std::minmax_element(values_.begin(), values_.end());
  low_ = *low;
  step_ = (*high - *low) / static_cast<float>(kMaxLevel);
  for (std::size_t window = 0; window < values_.size(); ++window) {
    const float offset = values_[window] - low_;
    levels_[window] = step_ > 0.0f ? round_to_byte(offset / step_) : std::uint8_t{0};
    level_error_ =
        std::max(level_error_, std::fabs(offset - step_ * static_cast<float>(levels_[window])));
  }
  for (std::size_t b = 0; b < 256; ++b) {
    norms_[b] = std::exp2((static_cast<float>(b) - 127.5f) / 127.5f);
    scales_[b] = b == 0 ? 0.0f : std::exp2((static_cast<float>(b) - kScaleOne) / kScaleSteps);
  }
  fill_by_byte();
}

void CodecTables::fill_by_byte() {
  const int own = low_bits(nbits_), width = own + context_bits(nbits_);
  const int above = nbits_ == 3 ? 12 : 8; // where the index has the bits of the byte before
  const std::size_t planes = planes_of(nbits_), mask = (std::size_t{1} << width) - 1;
  for (std::size_t index = 0; index < std::size_t{1} << (above + context_bits(nbits_)); ++index) {
    const std::size_t stream = index >> above << 8 | (index & 255);
    for (std::size_t j = 0; j < planes; ++j) {
      std::size_t window = stream >> (8 - static_cast<std::size_t>(own) * (j + 1)) & mask;
      if (nbits_ == 3) window |= (index >> (11 - j) & 1) << 3;
      by_byte_.push_back(values_[window]);
    }
  }
}

Decoder CodecTables::decoder() const {
  const std::size_t packed_dim = dim_ * static_cast<std::size_t>(nbits_) / 8;
  return {centroids_,     values_.data(), by_byte_.data(),
          levels_.data(), norms_.data(),  scales_.data(),
          nbits_,         dim_,           packed_dim};
}

} // namespace colbert_fast
