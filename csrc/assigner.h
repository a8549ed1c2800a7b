// Nearest centroids for many points.
//
// Few centroids are all looked at, by a float32 tile or, where int8 products are much faster,
// behind an exact screen. From CentroidGroups::kLeastCentroids on a point looks only into the
// groups whose heads are near it, unless told to be exact. Codes and products do not depend on the
// number of points given at once, of threads, or on the instruction set.
#pragma once

#include <cstdint>
#include <memory>

#include "byte_centroids.h"
#include "centroid_groups.h"
#include "cpu/kernels.h"

namespace colbert_fast {

// Points that Assigner::assign takes at once: enough of them that each group has several.
constexpr std::size_t kAssignBlock = 2048;

class Assigner {
public:
  enum Mode { kTwoLevel, kExact };

  // Keeps `centroids` (n_centroids, dim) by reference; `n_points` is how many will be assigned.
  Assigner(const float *centroids, std::size_t n_centroids, std::size_t dim, std::size_t n_points,
           Mode mode = kTwoLevel);

  // n <= kAssignBlock points; from any thread. `best` are float32 products with the chosen
  // centroids.
  void assign(const void *points, DType type, std::size_t n, std::int32_t *codes,
              float *best) const;

private:
  void assign_flat(const void *points, DType type, std::size_t n, std::int32_t *codes,
                   float *best) const;
  void assign_grouped(const float *points, std::size_t n, std::int32_t *codes, float *best) const;

  const float *centroids_;
  std::size_t n_centroids_, dim_;
  std::shared_ptr<const CentroidGroups> groups_; // null: look at all centroids
  bool screened_ = false;
  ByteCentroids bytes_;
};

} // namespace colbert_fast
