// The tables that decoding needs, made once from a codec's weights.
#pragma once

#include <array>
#include <vector>

#include "cpu/kernels.h"

namespace colbert_fast {

// nbits of a codec with 2^nbits weights, or 0 if it has none that we store.
int nbits_of(std::size_t n_weights);

// Inverse norms as a byte: b stands for 2^((b - 127.5) / 127.5), so [0.5, 2] at 0.3 % or better.
std::uint8_t encode_inverse_norm(float inverse);

class CodecTables {
public:
  // Keeps `centroids` (K, dim) by reference; `weights` has 2^nbits values.
  CodecTables(const float *centroids, const float *weights, int nbits, std::size_t dim);

  Decoder decoder() const;
  // w = low + step * level
  float low() const { return low_; }
  float step() const { return step_; }

private:
  const float *centroids_;
  int nbits_;
  std::size_t dim_;
  float low_, step_;
  std::vector<float> by_byte_;
  std::array<std::uint8_t, 256> levels_{};
  std::array<float, 256> norms_{};
};

} // namespace colbert_fast
