// Points by cluster, so that each cluster is summed by one thread in point order: the same bits for
// any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace colbert_fast {

struct Clusters {
  std::vector<std::size_t> first;  // k + 1
  std::vector<std::int64_t> order; // points, cluster after cluster, ascending in each

  Clusters(const std::int32_t *codes, std::size_t n, std::size_t k);

  std::size_t size(std::size_t c) const { return first[c + 1] - first[c]; }
  // out[k][dim] = the sum of each cluster's points.
  void sum(const void *points, DType type, std::size_t dim, float *out) const;
};

} // namespace colbert_fast
