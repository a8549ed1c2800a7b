// Centroids as bytes, for the screening kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace colbert_fast {

// A row whose largest magnitude is `largest` as bytes below 128, row ~ scale * (byte -
// kScreenZero); returns the scale.
float quantise_row(const float *row, std::size_t dim, float largest, std::uint8_t *bytes);

class ScreenRows {
public:
  // Quantise (n, dim) centroids; false if one is not finite.
  bool quantise(const float *centroids, std::size_t n, std::size_t dim);
  Screen view() const {
    return {rows_.data(), scale_.data(), largest_scale_, largest_l1_, largest_value_};
  }

private:
  std::vector<std::uint8_t> rows_;
  std::vector<float> scale_;
  float largest_scale_ = 0.0f, largest_l1_ = 0.0f, largest_value_ = 0.0f;
};

} // namespace colbert_fast
