// Token pooling: Ward clustering of a document's rows on cosine distances, and the clusters' means.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.h"
#include "cpu/kernels.h"

namespace colbert_fast {

// How a document of `n` rows is pooled: its first rows stay, the others come down to `clusters`.
struct PoolPlan {
  std::size_t kept, n, clusters;
  PoolPlan(std::size_t n_rows, std::size_t factor, std::size_t protected_rows);
};

// Holds the memory that one document after another needs.
class Pooler {
public:
  // Writes the kept rows and then the means of at most `clusters` clusters, in the order of their
  // first rows. Returns how many rows that makes: fewer than planned where merges at the cut are
  // equally far apart, for these are made together. -1 if the rows are not finite, or so long that
  // squares might overflow. `clusters`, unless null, gets the row of `out` that each row went into.
  std::int32_t pool(const void *rows, DType type, std::size_t dim, const PoolPlan &plan, float *out,
                    std::int32_t *clusters);

private:
  bool cluster(const void *rows, DType type, std::size_t n, std::size_t dim, std::size_t clusters);

  AlignedVector<float> rows_, panels_, scratch_;
  std::vector<std::int32_t> first_; // the lowest row of each row's cluster
  std::vector<std::int64_t> members_;
};

} // namespace colbert_fast
