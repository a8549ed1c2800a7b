// Centroids as bytes, for the screening kernels and for a search's first stages.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.h"
#include "cpu/kernels.h"

namespace colbert_fast {

// centroid ~ scale * (byte - kScreenZero), off by at most scale / 2 in each dimension, those that
// vanish and have the scale 0 by kVanishing. Bytes are below 128.
class ByteCentroids {
public:
  ByteCentroids() = default;
  // `centroids` (n, dim), finite.
  ByteCentroids(const float *centroids, std::size_t n, std::size_t dim);

  std::size_t size() const { return scale_.size(); }
  std::size_t dim() const { return dim_; }
  const std::uint8_t *rows() const { return rows_.data(); }
  const float *scale() const { return scale_.data(); }
  float largest_scale() const { return largest_scale_; }
  float largest_norm() const { return largest_norm_; }
  Screen screen() const {
    return {rows_.data(), scale_.data(), largest_scale_, largest_l1_, largest_value_};
  }

private:
  AlignedVector<std::uint8_t> rows_;
  std::vector<float> scale_;
  std::size_t dim_ = 0;
  float largest_scale_ = 2 * kVanishing; // which bounds the error of those too
  float largest_norm_ = 0.0f, largest_l1_ = 0.0f, largest_value_ = 0.0f;
};

} // namespace colbert_fast
