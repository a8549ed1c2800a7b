#include "search/codec_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

// Positive floats are ordered as their bits are.
ByteEdges edges_of(std::uint8_t (*encode)(float)) {
  const auto value = [](std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  };
  ByteEdges edges{};
  std::uint32_t low = 0; // encodes to less than b
  for (unsigned b = 1; b < edges.size(); ++b) {
    std::uint32_t high = 0x7f7fffff; // the largest float, which encodes to 255
    while (high - low > 1) {
      const std::uint32_t middle = low + (high - low) / 2;
      (encode(value(middle)) < b ? low : high) = middle;
    }
    edges[b] = value(high);
  }
  return edges;
}

} // namespace

const ByteEdges &inverse_norm_edges() {
  static const ByteEdges edges = edges_of(encode_inverse_norm);
  return edges;
}

const ByteEdges &scale_edges() {
  static const ByteEdges edges = edges_of(encode_scale);
  return edges;
}

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
  // With 0 between them a zero point is a level, whatever the weights.
  low_ = std::min(*low, 0.0f);
  step_ = (std::max(*high, 0.0f) - low_) / static_cast<float>(kMaxLevel);
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
}

Decoder CodecTables::decoder() const {
  const std::size_t packed_dim = dim_ * static_cast<std::size_t>(nbits_) / 8;
  return {centroids_,     values_.data(), levels_.data(), norms_.data(),
          scales_.data(), nbits_,         dim_,           packed_dim};
}

} // namespace colbert_fast
