#include "centroid_groups.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "assigner.h"
#include "clusters.h"
#include "thread_pool.h"

namespace colbert_fast {
namespace {

// Heads are cheap to look at (int8), centroids are not, so groups are many and small.
std::size_t n_groups_of(std::size_t n_centroids) {
  const auto wanted = static_cast<std::size_t>(6.0 * std::sqrt(static_cast<double>(n_centroids)));
  return std::min(wanted, n_centroids) / kLanes * kLanes;
}

// The direction of each group's sum; a group without one keeps its head.
void move_heads(const Clusters &groups, const std::vector<float> &sums, std::size_t dim,
                std::vector<float> &heads) {
  constexpr double kSmallestNorm = 1e-6;
  for (std::size_t g = 0; g + 1 < groups.first.size(); ++g) {
    const float *sum = sums.data() + g * dim;
    double squares = 0.0;
    for (std::size_t d = 0; d < dim; ++d) squares += double{sum[d]} * double{sum[d]};
    const double norm = std::sqrt(squares);
    if (!(norm > kSmallestNorm)) continue;
    for (std::size_t d = 0; d < dim; ++d)
      heads[g * dim + d] = static_cast<float>(double{sum[d]} / norm);
  }
}

Clusters nearest_heads(const float *centroids, std::size_t n, std::size_t dim,
                       const std::vector<float> &heads) {
  std::vector<std::int32_t> codes(n);
  const Assigner assigner(heads.data(), heads.size() / dim, dim, n, Assigner::kExact);
  parallel_for(n, kPointBlock, [&](std::size_t begin, std::size_t end) {
    float best[kPointBlock];
    assigner.assign(centroids + begin * dim, DType::f32, end - begin, codes.data() + begin, best);
  });
  return Clusters(codes.data(), n, heads.size() / dim);
}

} // namespace

CentroidGroups::CentroidGroups(const float *centroids, std::size_t n_centroids, std::size_t dim)
    : dim_(dim), centroids_(centroids, centroids + n_centroids * dim) {
  constexpr int kSteps = 8;
  const std::size_t n_groups = n_groups_of(n_centroids);
  std::vector<float> heads(n_groups * dim), sums(n_groups * dim);
  for (std::size_t g = 0; g < n_groups; ++g) // evenly spread, as good as random and needs no seed
    std::copy_n(centroids + g * n_centroids / n_groups * dim, dim, heads.data() + g * dim);
  Clusters groups = nearest_heads(centroids, n_centroids, dim, heads);
  for (int step = 0; step < kSteps; ++step) {
    groups.sum(centroids, DType::f32, dim, sums.data());
    move_heads(groups, sums, dim, heads);
    groups = nearest_heads(centroids, n_centroids, dim, heads);
  }

  heads_.resize(n_groups / kLanes, dim);
  first_.assign(1, 0);
  for (std::size_t g = 0; g < n_groups; ++g) {
    heads_.quantise(g, heads.data() + g * dim);
    first_.push_back(first_.back() + (groups.size(g) + kLanes - 1) / kLanes);
  }
  panels_.resize(first_.back(), dim);
  ids_.resize(first_.back() * kLanes);
  for (std::size_t g = 0; g < n_groups; ++g)
    for (std::size_t lane = first_[g] * kLanes; lane < first_[g + 1] * kLanes; ++lane) {
      const std::size_t member = std::min(lane - first_[g] * kLanes, groups.size(g) - 1);
      const std::int64_t id = groups.order[groups.first[g] + member];
      ids_[lane] = static_cast<std::int32_t>(id);
      panels_.quantise(lane, centroids + static_cast<std::size_t>(id) * dim);
    }
}

bool CentroidGroups::holds(const float *centroids, std::size_t n_centroids, std::size_t dim) const {
  return dim == dim_ && n_centroids * dim == centroids_.size() &&
         std::memcmp(centroids, centroids_.data(), centroids_.size() * sizeof(float)) == 0;
}

void CentroidGroups::Columns::resize(std::size_t n_panels, std::size_t dim) {
  dim_ = dim;
  data_.resize(n_panels * kLanes * dim);
  scale_.resize(n_panels * kLanes);
  zero_.resize(n_panels * kLanes);
}

void CentroidGroups::Columns::quantise(std::size_t lane, const float *row) {
  float largest = 0.0f;
  for (std::size_t d = 0; d < dim_; ++d) largest = std::max(largest, std::fabs(row[d]));
  scale_[lane] = largest > kVanishing ? largest / 127.0f : 1.0f;
  std::int8_t *to = data_.data() + lane / kLanes * dim_ * kLanes + lane % kLanes * 4;
  int sum = 0;
  for (std::size_t d = 0; d < dim_; ++d) {
    const auto value = static_cast<std::int8_t>(std::nearbyintf(row[d] / scale_[lane]));
    to[d / 4 * kLanes * 4 + d % 4] = value;
    sum += value;
  }
  zero_[lane] = static_cast<float>(kScreenZero * sum);
}

ScreenPanels CentroidGroups::Columns::view(std::size_t begin, std::size_t end) const {
  return {data_.data() + begin * dim_ * kLanes, scale_.data() + begin * kLanes,
          zero_.data() + begin * kLanes, end - begin, dim_};
}

} // namespace colbert_fast
