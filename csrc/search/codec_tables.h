// The tables that decoding needs, made once from a codec's weights.
#pragma once

#include <array>
#include <vector>

#include "cpu/kernels.h"

namespace colbert_fast {

// Inverse norms as a byte: b stands for 2^((b - 127.5) / 127.5), so [0.5, 2] at 0.3 % or better.
// What lies outside is clamped, and then int8 scores mislead; codecs fitted to unit vectors stay
// within [0.8, 1.2] even at one bit.
std::uint8_t encode_inverse_norm(float inverse);
// Scales as a byte: 0, and 2^((b - 192) / 32), so [1/64, 3.9] at 1.1 % or better.
std::uint8_t encode_scale(float scale);
// The least values that they encode to 1, 2, ..., 255 (and something at 0): a kernel that has no
// logarithm, or another one, finds the same byte among them.
using ByteEdges = std::array<float, 256>;
const ByteEdges &inverse_norm_edges();
const ByteEdges &scale_edges();

class CodecTables {
public:
  // Keeps `centroids` (K, dim) by reference. The weights are 2^nbits, by bucket, or (if that is
  // another number) windows_of(nbits), by window.
  CodecTables(const float *centroids, const float *weights, std::size_t n_weights, int nbits,
              std::size_t dim);

  Decoder decoder() const;
  // value = low + step * level
  float low() const { return low_; }
  float step() const { return step_; }
  // How far the levels are from the values they stand for, at most.
  float level_error() const { return level_error_; }

private:
  const float *centroids_;
  int nbits_;
  std::size_t dim_;
  float low_, step_, level_error_ = 0.0f;
  std::vector<float> values_;
  std::array<std::uint8_t, 256> levels_{};
  std::array<float, 256> norms_{}, scales_{};
};

} // namespace colbert_fast
