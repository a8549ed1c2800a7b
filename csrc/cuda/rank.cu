// The best of each query's hits, by one block for a query.
#include "cuda/stages.h"
#include "cuda/top.cuh"

namespace colbert_fast::cuda {
namespace {

__global__ void __launch_bounds__(kTopThreads) keep_best_kernel(Hits hits, Hits kept) {
  auto &shared = shared_memory<TopShared>();
  const std::size_t n = static_cast<std::size_t>(hits.counts[blockIdx.x]);
  const auto k = static_cast<unsigned>(min_of(kept.stride, n));
  const std::int32_t *documents = hits.documents + blockIdx.x * hits.stride;
  const float *scores = hits.scores + blockIdx.x * hits.stride;
  std::int32_t *out = kept.documents + blockIdx.x * kept.stride;
  if (k == n)
    for (std::size_t i = threadIdx.x; i < n; i += kTopThreads) out[i] = documents[i];
  else
    take_best(
        shared, n, k, [&](std::size_t i) { return key_of(scores[i]); },
        [&](unsigned place, std::size_t i) { out[place] = documents[i]; });
  if (threadIdx.x == 0) kept.counts[blockIdx.x] = static_cast<std::int32_t>(k);
}

__global__ void __launch_bounds__(kTopThreads)
    top_hits_kernel(Hits hits, unsigned k, unsigned size, std::int64_t *ids, float *scores) {
  auto &shared = shared_memory<TopShared>();
  const std::size_t n = static_cast<std::size_t>(hits.counts[blockIdx.x]);
  const std::size_t first = blockIdx.x * hits.stride;
  const auto found = static_cast<unsigned>(min_of<std::size_t>(k, n));
  sort_best(shared, n, found, size, [&](std::size_t i) { return key_of(hits.scores[first + i]); });
  for (unsigned i = threadIdx.x; i < k; i += kTopThreads) {
    const std::size_t to = std::size_t{blockIdx.x} * k + i;
    const std::size_t at = first + (i < found ? shared.entries[i] & 0xffffffffu : 0);
    ids[to] = i < found ? hits.documents[at] : -1;
    const float score = i < found ? hits.scores[at] : kMinusInf;
    scores[to] = score == score ? score : kMinusInf;
  }
}

} // namespace

void keep_best(const Hits &hits, std::size_t n_queries, const Hits &kept, Stream stream) {
  launch(keep_best_kernel, n_queries, 1, kTopThreads, sizeof(TopShared), stream, hits, kept);
}

void top_hits(const Hits &hits, std::size_t n_queries, std::size_t k, std::int64_t *ids,
              float *scores, Stream stream) {
  const unsigned size = size_for_top(k);
  launch(top_hits_kernel, n_queries, 1, kTopThreads, bytes_for_top(size), stream, hits,
         static_cast<unsigned>(k), size, ids, scores);
}

} // namespace colbert_fast::cuda
