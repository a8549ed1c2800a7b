// Nearest centroids for many points: centroids quantised once where screening by int8 pays.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace colbert_fast {

class Assigner {
public:
  // Keeps `centroids` (n_centroids, dim) by reference; `n_points` is how many will be assigned.
  Assigner(const float *centroids, std::size_t n_centroids, std::size_t dim, std::size_t n_points);

  // n <= kAssignBlock points; from any thread.
  void assign(const void *points, DType type, std::size_t n, std::int32_t *codes,
              float *best) const;

private:
  bool quantise();

  const float *centroids_;
  std::size_t n_centroids_, dim_;
  bool screened_;
  std::vector<std::uint8_t> rows_;
  std::vector<float> scale_;
  float largest_scale_ = 0.0f, largest_l1_ = 0.0f, largest_value_ = 0.0f;
};

} // namespace colbert_fast
