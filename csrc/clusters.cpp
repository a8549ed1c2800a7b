#include "clusters.h"

#include <numeric>

#include "cpu/dispatch.h"
#include "thread_pool.h"

namespace colbert_fast {

Clusters::Clusters(const std::int32_t *codes, std::size_t n, std::size_t k)
    : first(k + 1, 0), order(n) {
  for (std::size_t i = 0; i < n; ++i) ++first[static_cast<std::size_t>(codes[i]) + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  std::vector<std::size_t> next = first;
  for (std::size_t i = 0; i < n; ++i)
    order[next[static_cast<std::size_t>(codes[i])]++] = static_cast<std::int64_t>(i);
}

void Clusters::sum(const void *points, DType type, std::size_t dim, float *out) const {
  parallel_for(first.size() - 1, 64, [&](std::size_t begin, std::size_t end) {
    for (std::size_t c = begin; c < end; ++c)
      kernels().sum_rows(points, type, dim, order.data() + first[c], size(c), out + c * dim);
  });
}

} // namespace colbert_fast
