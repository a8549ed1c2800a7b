// Candidate generation: scores of all centroids, and the best of a column of scores.
#include "cuda/tile.cuh"
#include "cuda/top.cuh"

namespace colbert_fast::cuda {
namespace {

// A block scores 64 centroids with 32 query tokens.
__global__ void __launch_bounds__(kTileThreads)
    centroid_scores_kernel(const float *query, unsigned nq, unsigned dim, const float *centroids,
                           std::size_t n_centroids, float *scores) {
  auto &tile = shared_memory<Tile>();
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kTileColumns;
  const unsigned q = blockIdx.y * kTileRows;
  float products[4][4];
  dot_tile(
      tile,
      [&](unsigned r, unsigned d) {
        return query[static_cast<std::size_t>(min_of(q + r, nq - 1)) * dim + d];
      },
      [&](unsigned c, unsigned d) {
        return centroids[min_of(first + c, n_centroids - 1) * dim + d];
      },
      dim, products);
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned j = 0; j < 4; ++j) {
      const unsigned r = q + tile_row() + i;
      const std::size_t c = first + tile_column() + j;
      if (r < nq && c < n_centroids) scores[c * nq + r] = products[i][j];
    }
}

// A block finds the k best of column blockIdx.x of (n, stride) scores, best first, of equal ones
// the lowest.
__global__ void __launch_bounds__(kTopThreads, 1)
    top_kernel(const float *scores, std::size_t n, unsigned stride, unsigned k, unsigned size,
               float *values, std::int32_t *ids, std::int64_t *indices) {
  auto &shared = shared_memory<TopShared>();
  sort_best(shared, n, k, size,
            [&](std::size_t i) { return key_of(scores[i * stride + blockIdx.x]); });
  for (unsigned i = threadIdx.x; i < k; i += kTopThreads) {
    const std::size_t at = shared.entries[i] & 0xffffffffu, to = std::size_t{blockIdx.x} * k + i;
    if (values != nullptr) values[to] = scores[at * stride + blockIdx.x];
    if (ids != nullptr) ids[to] = static_cast<std::int32_t>(at);
    if (indices != nullptr) indices[to] = static_cast<std::int64_t>(at);
  }
}

void launch_top(const float *scores, std::size_t n, std::size_t columns, std::size_t k,
                float *values, std::int32_t *ids, std::int64_t *indices, Stream stream) {
  if (k == 0) return;
  const unsigned size = size_for_top(k);
  launch(top_kernel, columns, 1, kTopThreads, bytes_for_top(size), stream, scores, n,
         static_cast<unsigned>(columns), static_cast<unsigned>(k), size, values, ids, indices);
}

} // namespace

void centroid_scores(const float *query, std::size_t nq, std::size_t dim, const float *centroids,
                     std::size_t n_centroids, float *scores, Stream stream) {
  launch(centroid_scores_kernel, ceil_div(n_centroids, kTileColumns), ceil_div(nq, kTileRows),
         kTileThreads, sizeof(Tile), stream, query, static_cast<unsigned>(nq),
         static_cast<unsigned>(dim), centroids, n_centroids, scores);
}

void top_centroids(const float *scores, std::size_t n_centroids, std::size_t nq, std::size_t nprobe,
                   std::int32_t *cells, Stream stream) {
  launch_top(scores, n_centroids, nq, nprobe, nullptr, cells, nullptr, stream);
}

void top_k(const float *scores, std::size_t n, std::size_t k, float *values, std::int64_t *indices,
           Stream stream) {
  launch_top(scores, n, 1, k, values, nullptr, indices, stream);
}

} // namespace colbert_fast::cuda
