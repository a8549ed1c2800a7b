// The upper level of two-level assignment: centroids in groups of neighbours, by k-means of the
// centroids themselves. A group's head is the unit mean of its centroids.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.h"
#include "cpu/kernels.h"

namespace colbert_fast {

class CentroidGroups {
public:
  // From this many centroids on, two levels are faster than looking at all.
  static constexpr std::size_t kLeastCentroids = 1024;
  // A point looks into every group whose head is at most this much below its best head's cosine.
  static constexpr float kReach = 0.28f;
  // Estimates this close, of the length of the point, are settled by exact products: some five
  // standard deviations of the difference of two estimates.
  static constexpr float kDoubt = 0.01f;

  // Groups of finite centroids (n_centroids, dim), which are copied.
  CentroidGroups(const float *centroids, std::size_t n_centroids, std::size_t dim);

  bool holds(const float *centroids, std::size_t n_centroids, std::size_t dim) const;
  std::size_t size() const { return first_.size() - 1; }
  ScreenPanels heads() const { return heads_.view(0, heads_.n_panels()); }
  ScreenPanels group(std::size_t g) const { return panels_.view(first_[g], first_[g + 1]); }
  // Centroid ids of a group's lanes, ascending; the last is repeated.
  const std::int32_t *ids(std::size_t g) const { return ids_.data() + first_[g] * kLanes; }

private:
  class Columns {
  public:
    void resize(std::size_t n_panels, std::size_t dim);
    void quantise(std::size_t lane, const float *row);
    std::size_t n_panels() const { return scale_.size() / kLanes; }
    ScreenPanels view(std::size_t begin, std::size_t end) const;

  private:
    std::size_t dim_ = 0;
    AlignedVector<std::int8_t> data_;
    AlignedVector<float> scale_, zero_;
  };

  std::size_t dim_;
  std::vector<float> centroids_;
  std::vector<std::size_t> first_; // panels before each group
  std::vector<std::int32_t> ids_;
  Columns heads_, panels_;
};

} // namespace colbert_fast
