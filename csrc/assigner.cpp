#include "assigner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "aligned.h"
#include "cpu/dispatch.h"
#include "lowest_bit.h"

namespace colbert_fast {
namespace {

// A build assigns chunk after chunk to the same centroids, so each thread keeps its last groups
// until it ends; a lock would hang children forked while another thread holds it.
std::shared_ptr<const CentroidGroups> groups_of(const float *centroids, std::size_t n_centroids,
                                                std::size_t dim) {
  thread_local std::shared_ptr<const CentroidGroups> last;
  if (last == nullptr || !last->holds(centroids, n_centroids, dim))
    last = std::make_shared<const CentroidGroups>(centroids, n_centroids, dim);
  return last;
}

// The points that look into each group: points[first[g], first[g + 1]), ascending.
struct Visits {
  std::vector<std::size_t> first;
  std::vector<std::int32_t> points, groups, ends;

  void sort(const std::uint16_t *marks, std::size_t n, std::size_t n_groups) {
    const std::size_t n_panels = n_groups / kLanes;
    first.assign(n_groups + 1, 0);
    groups.clear(), ends.clear();
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t p = 0; p < n_panels; ++p)
        for (unsigned word = marks[i * n_panels + p]; word != 0; word &= word - 1) {
          const std::size_t g = p * kLanes + lowest_bit(word);
          groups.push_back(static_cast<std::int32_t>(g));
          ++first[g + 1];
        }
      ends.push_back(static_cast<std::int32_t>(groups.size()));
    }
    std::partial_sum(first.begin(), first.end(), first.begin());
    points.resize(groups.size());
    std::size_t visit = 0;
    for (std::size_t i = 0; i < n; ++i)
      for (; visit < static_cast<std::size_t>(ends[i]); ++visit)
        points[first[static_cast<std::size_t>(groups[visit])]++] = static_cast<std::int32_t>(i);
    for (std::size_t g = n_groups; g > 0; --g) first[g] = first[g - 1];
    first[0] = 0;
  }
};

// What a block needs, kept by each thread.
struct Workspace {
  AlignedVector<float> lane_best;
  AlignedVector<std::uint8_t> bytes;
  std::vector<float> lengths, estimates, products;
  std::vector<std::uint16_t> marks;
  std::vector<std::int32_t> lane_codes, left, right;
  Visits visits;

  // Into left (points) and right (centroids): the lanes within the doubt of the best estimates.
  void list_candidates(std::size_t n) {
    left.clear(), right.clear();
    for (std::size_t i = 0; i < n; ++i) {
      if (lengths[i] < 0.0f) continue;
      const float *found = lane_best.data() + i * kLanes;
      const float limit =
          *std::max_element(found, found + kLanes) - CentroidGroups::kDoubt * lengths[i];
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        if (found[lane] < limit) continue;
        left.push_back(static_cast<std::int32_t>(i));
        right.push_back(lane_codes[i * kLanes + lane]);
      }
    }
  }
};

float *scratch_of(std::size_t needed) {
  thread_local AlignedVector<float> scratch;
  if (scratch.size() < needed) scratch.resize(needed);
  return scratch.data();
}

} // namespace

Assigner::Assigner(const float *centroids, std::size_t n_centroids, std::size_t dim,
                   std::size_t n_points, Mode mode)
    : centroids_(centroids), n_centroids_(n_centroids), dim_(dim) {
  // Below these, quantising costs more than it saves.
  constexpr std::size_t kFewPoints = 1024, kFewCentroids = 512;
  const bool finite = std::all_of(centroids, centroids + n_centroids * dim,
                                  [](float x) { return std::isfinite(x); });
  if (mode == kTwoLevel && n_centroids >= CentroidGroups::kLeastCentroids && finite)
    groups_ = groups_of(centroids, n_centroids, dim);
  else if (kernels().screens && n_points >= kFewPoints && n_centroids >= kFewCentroids && finite)
    bytes_ = ByteCentroids(centroids, n_centroids, dim);
  screened_ = bytes_.size() > 0 && std::isfinite(bytes_.screen().largest_l1);
}

void Assigner::assign(const void *points, DType type, std::size_t n, std::int32_t *codes,
                      float *best) const {
  if (groups_ != nullptr) {
    if (type == DType::f32)
      return assign_grouped(static_cast<const float *>(points), n, codes, best);
    thread_local AlignedVector<float> rows;
    if (rows.size() < n * dim_) rows.resize(n * dim_);
    kernels().widen(points, type, n, dim_, rows.data());
    return assign_grouped(rows.data(), n, codes, best);
  }
  for (std::size_t i = 0; i < n; i += kPointBlock)
    assign_flat(static_cast<const char *>(points) + i * dim_ * size_of(type), type,
                std::min(kPointBlock, n - i), codes + i, best + i);
}

void Assigner::assign_flat(const void *points, DType type, std::size_t n, std::int32_t *codes,
                           float *best) const {
  if (screened_)
    kernels().assign_screened(points, type, n, dim_, centroids_, n_centroids_, bytes_.screen(),
                              scratch_of(screened_scratch(dim_)), codes, best);
  else
    kernels().assign(points, type, n, dim_, centroids_, n_centroids_,
                     scratch_of(assign_scratch(dim_)), codes, best);
}

void Assigner::assign_grouped(const float *points, std::size_t n, std::int32_t *codes,
                              float *best) const {
  thread_local Workspace own;
  Workspace &work = own; // once, not at every use
  const std::size_t n_groups = groups_->size();
  work.bytes.resize(kAssignBlock * dim_);
  work.lengths.resize(kAssignBlock);
  work.estimates.resize(kScreenTile * n_groups);
  work.marks.resize(kAssignBlock * n_groups / kLanes);
  kernels().quantise(points, n, dim_, work.bytes.data(), work.lengths.data());
  kernels().near_columns(work.bytes.data(), work.lengths.data(), n, groups_->heads(),
                         CentroidGroups::kReach, work.estimates.data(), work.marks.data());
  work.visits.sort(work.marks.data(), n, n_groups);

  work.lane_codes.assign(n * kLanes, 0);
  work.lane_best.assign(n * kLanes, -std::numeric_limits<float>::infinity());
  const std::vector<std::size_t> &first = work.visits.first;
  for (std::size_t g = 0; g < n_groups; ++g)
    if (first[g + 1] > first[g])
      kernels().best_columns(work.bytes.data(), work.visits.points.data() + first[g],
                             first[g + 1] - first[g], groups_->group(g), groups_->ids(g),
                             work.lane_best.data(), work.lane_codes.data());

  work.list_candidates(n);
  work.products.resize(work.left.size());
  kernels().products(points, work.left.data(), centroids_, work.right.data(), work.left.size(),
                     dim_, work.products.data());
  std::fill_n(best, n, -std::numeric_limits<float>::infinity());
  std::fill_n(codes, n, 0);
  for (std::size_t j = 0; j < work.left.size(); ++j) {
    const auto i = static_cast<std::size_t>(work.left[j]);
    if (work.products[j] < best[i]) continue;
    codes[i] = work.products[j] > best[i] ? work.right[j] : std::min(codes[i], work.right[j]);
    best[i] = work.products[j];
  }
}

} // namespace colbert_fast
