// Nearest centroids: MaxSim's tile with points as rows and centroids as columns, so the points x
// centroids matrix never exists.
#include "cuda/tile.cuh"

namespace colbert_fast::cuda {
namespace {

// A block assigns 32 points. Code 0 where every product is NaN, as on the CPU.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    assign_kernel(const T *points, std::size_t n, unsigned dim, const float *centroids,
                  unsigned n_centroids, std::int32_t *codes, float *best) {
  auto &tile = shared_memory<Tile>();
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kTileRows;
  Best nearest[4];
  for (Best &one : nearest) one = {kMinusInf, 0};
  for (unsigned c = 0; c < n_centroids; c += kTileColumns) {
    const auto centroid = [&](unsigned j) { return min_of(c + j, n_centroids - 1); };
    float products[4][4];
    dot_tile(
        tile,
        [&](unsigned r, unsigned d) {
          return to_float(points[min_of(first + r, n - 1) * dim + d]);
        },
        [&](unsigned j, unsigned d) {
          return centroids[static_cast<std::size_t>(centroid(j)) * dim + d];
        },
        dim, products);
    for (unsigned i = 0; i < 4; ++i)
      for (unsigned j = 0; j < 4; ++j)
        nearest[i].offer(products[i][j], static_cast<std::int32_t>(centroid(tile_column() + j)));
  }
  for (unsigned i = 0; i < 4; ++i) {
    nearest[i].reduce(16);
    const std::size_t point = first + tile_row() + i;
    if (threadIdx.x % 16 != 0 || point >= n) continue;
    codes[point] = nearest[i].index;
    best[point] = nearest[i].value;
  }
}

constexpr unsigned kSumThreads = 128;

// A block sums one cluster, a thread a dimension, in the order given: the same bits each time.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const T *points, std::size_t n, unsigned dim, const std::int64_t *order,
               const std::int64_t *first, float *sums) {
  const auto size = static_cast<std::int64_t>(n);
  const std::size_t c = blockIdx.x;
  const std::int64_t begin = max_of<std::int64_t>(first[c], 0), end = min_of(first[c + 1], size);
  for (unsigned d = threadIdx.x; d < dim; d += kSumThreads) {
    float total = 0.0f;
#pragma unroll 4
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = max_of<std::int64_t>(min_of(order[i], size - 1), 0);
      total = total + to_float(points[static_cast<std::size_t>(row) * dim + d]);
    }
    sums[c * dim + d] = total;
  }
}

} // namespace

void accumulate(const void *points, DType type, std::size_t n, std::size_t dim,
                const std::int64_t *order, const std::int64_t *first, std::size_t n_clusters,
                float *sums, Stream stream) {
  with_type(type, [&](auto element) {
    using T = decltype(element);
    launch(sum_kernel<T>, n_clusters, 1, kSumThreads, 0, stream, static_cast<const T *>(points), n,
           static_cast<unsigned>(dim), order, first, sums);
  });
}

void assign(const void *points, DType type, std::size_t n, std::size_t dim, const float *centroids,
            std::size_t n_centroids, std::int32_t *codes, float *best, Stream stream) {
  with_type(type, [&](auto element) {
    using T = decltype(element);
    launch(assign_kernel<T>, ceil_div(n, kTileRows), 1, kTileThreads, sizeof(Tile), stream,
           static_cast<const T *>(points), n, static_cast<unsigned>(dim), centroids,
           static_cast<unsigned>(n_centroids), codes, best);
  });
}

} // namespace colbert_fast::cuda
