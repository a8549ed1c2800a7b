#include "screen_rows.h"

#include <algorithm>
#include <cmath>

namespace colbert_fast {

bool ScreenRows::quantise(const float *centroids, std::size_t n, std::size_t dim) {
  constexpr float kSteps = 63.0f; // either side of kScreenZero, so that rows stay below 128
  rows_.resize(n * dim);
  scale_.resize(n);
  for (std::size_t c = 0; c < n; ++c) {
    const float *row = centroids + c * dim;
    float largest = 0.0f, l1 = 0.0f;
    for (std::size_t d = 0; d < dim; ++d) {
      largest = std::max(largest, std::fabs(row[d]));
      l1 += std::fabs(row[d]);
    }
    if (!std::isfinite(l1)) return false;
    scale_[c] = largest > 0.0f ? largest / kSteps : 1.0f;
    for (std::size_t d = 0; d < dim; ++d)
      rows_[c * dim + d] = static_cast<std::uint8_t>(
          kScreenZero + static_cast<int>(std::nearbyintf(row[d] / scale_[c])));
    largest_scale_ = std::max(largest_scale_, scale_[c]);
    largest_l1_ = std::max(largest_l1_, l1);
    largest_value_ = std::max(largest_value_, largest);
  }
  return true;
}

} // namespace colbert_fast
