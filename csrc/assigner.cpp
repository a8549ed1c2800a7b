#include "assigner.h"

#include <algorithm>
#include <cmath>

#include "aligned.h"
#include "cpu/dispatch.h"

namespace colbert_fast {

Assigner::Assigner(const float *centroids, std::size_t n_centroids, std::size_t dim,
                   std::size_t n_points)
    : centroids_(centroids), n_centroids_(n_centroids), dim_(dim) {
  // Below these, quantising costs more than it saves.
  constexpr std::size_t kFewPoints = 1024, kFewCentroids = 512;
  screened_ =
      kernels().screens && n_points >= kFewPoints && n_centroids >= kFewCentroids && quantise();
}

// False if a centroid is not finite.
bool Assigner::quantise() {
  constexpr float kSteps = 63.0f; // either side of kScreenZero, so that rows stay below 128
  rows_.resize(n_centroids_ * dim_);
  scale_.resize(n_centroids_);
  for (std::size_t c = 0; c < n_centroids_; ++c) {
    const float *row = centroids_ + c * dim_;
    float largest = 0.0f, l1 = 0.0f;
    for (std::size_t d = 0; d < dim_; ++d) {
      largest = std::max(largest, std::fabs(row[d]));
      l1 += std::fabs(row[d]);
    }
    if (!std::isfinite(l1)) return false;
    scale_[c] = largest > 0.0f ? largest / kSteps : 1.0f;
    for (std::size_t d = 0; d < dim_; ++d)
      rows_[c * dim_ + d] = static_cast<std::uint8_t>(
          kScreenZero + static_cast<int>(std::nearbyintf(row[d] / scale_[c])));
    largest_scale_ = std::max(largest_scale_, scale_[c]);
    largest_l1_ = std::max(largest_l1_, l1);
    largest_value_ = std::max(largest_value_, largest);
  }
  return true;
}

void Assigner::assign(const void *points, DType type, std::size_t n, std::int32_t *codes,
                      float *best) const {
  thread_local AlignedVector<float> scratch;
  const std::size_t needed = screened_ ? screened_scratch(dim_) : assign_scratch(dim_);
  if (scratch.size() < needed) scratch.resize(needed);
  if (!screened_) {
    kernels().assign(points, type, n, dim_, centroids_, n_centroids_, scratch.data(), codes, best);
    return;
  }
  const Screen screen{rows_.data(), scale_.data(), largest_scale_, largest_l1_, largest_value_};
  kernels().assign_screened(points, type, n, dim_, centroids_, n_centroids_, screen, scratch.data(),
                            codes, best);
}

} // namespace colbert_fast
