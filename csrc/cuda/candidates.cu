// Candidate generation: scores of all centroids, and the best of a column of scores.
#include "cuda/tile.cuh"

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

constexpr unsigned kThreads = 1024, kWarps = kThreads / kWarp, kDigits = 256;

// Scores in the order of their bits, the largest least; NaN counts as -inf.
__device__ std::uint32_t key_of(float score) {
  if (!(score == score)) score = kMinusInf;
  if (score == 0.0f) score = 0.0f; // -0 equals 0
  const std::uint32_t bits = __float_as_uint(score);
  return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
}

// A key above and its position below: entries ascend from the best.
using Entry = unsigned long long;
constexpr Entry kNone = ~Entry{0};

struct TopShared {
  unsigned counts[kDigits];
  unsigned starts[kWarps]; // of each warp's entries among those written
  unsigned digit, before, written;
  Entry entries[1]; // k, up to a power of two
};

// The key of the k-th best of n, by the radix of one digit after the other; `before` becomes the
// number of keys below it.
template <class Key>
__device__ std::uint32_t select(TopShared &shared, std::size_t n, unsigned k, Key key) {
  std::uint32_t prefix = 0, mask = 0;
  unsigned before = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < kDigits) shared.counts[threadIdx.x] = 0;
    __syncthreads();
    for (std::size_t i = threadIdx.x; i < n; i += kThreads)
      if (const std::uint32_t at = key(i); (at & mask) == prefix)
        atomicAdd(&shared.counts[at >> shift & 255u], 1u);
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned digit = 0;
      for (; digit < kDigits - 1 && before + shared.counts[digit] < k; ++digit)
        before += shared.counts[digit];
      shared.digit = digit, shared.before = before;
    }
    __syncthreads();
    before = shared.before;
    prefix |= shared.digit << shift;
    mask |= 255u << shift;
  }
  return prefix;
}

// Ascending, by a bitonic network; `size` is a power of two.
__device__ void sort(Entry *entries, unsigned size) {
  for (unsigned run = 2; run <= size; run *= 2)
    for (unsigned step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (unsigned i = threadIdx.x; i < size; i += kThreads) {
        const unsigned other = i ^ step;
        const bool up = (i & run) == 0;
        if (other > i && (entries[i] > entries[other]) == up) {
          const Entry swap = entries[i];
          entries[i] = entries[other], entries[other] = swap;
        }
      }
    }
  __syncthreads();
}

// A block finds the k best of column blockIdx.x of (n, stride) scores, best first, of equal ones
// the lowest. All that beat the k-th go in; of those that equal it the first ones, in order.
__global__ void __launch_bounds__(kThreads)
    top_kernel(const float *scores, std::size_t n, unsigned stride, unsigned k, unsigned size,
               float *values, std::int32_t *ids, std::int64_t *indices) {
  auto &shared = shared_memory<TopShared>();
  const auto key = [&](std::size_t i) { return key_of(scores[i * stride + blockIdx.x]); };
  for (unsigned i = threadIdx.x; i < size; i += kThreads) shared.entries[i] = kNone;
  const std::uint32_t last = select(shared, n, k, key);
  if (threadIdx.x == 0) shared.written = 0;
  const unsigned equal = k - shared.before; // how many of the equal ones are wanted
  unsigned seen = 0;                        // equal ones in front of this round
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (std::size_t first = 0; first < n; first += kThreads) {
    const std::size_t i = first + threadIdx.x;
    const std::uint32_t mine = i < n ? key(i) : ~0u;
    const bool ties = i < n && mine == last;
    const unsigned tied = __ballot_sync(kAllLanes, ties);
    if (lane == 0) shared.starts[warp] = static_cast<unsigned>(__popc(tied));
    __syncthreads();
    unsigned rank = seen + static_cast<unsigned>(__popc(tied & ((1u << lane) - 1)));
    for (unsigned w = 0; w < kWarps; ++w) {
      if (w < warp) rank += shared.starts[w];
      seen += shared.starts[w];
    }
    if (i < n && (mine < last || (ties && rank < equal)))
      shared.entries[atomicAdd(&shared.written, 1u)] = Entry{mine} << 32 | i;
    __syncthreads();
  }
  sort(shared.entries, size);
  for (unsigned i = threadIdx.x; i < k; i += kThreads) {
    const std::size_t at = shared.entries[i] & 0xffffffffu, to = std::size_t{blockIdx.x} * k + i;
    if (values != nullptr) values[to] = scores[at * stride + blockIdx.x];
    if (ids != nullptr) ids[to] = static_cast<std::int32_t>(at);
    if (indices != nullptr) indices[to] = static_cast<std::int64_t>(at);
  }
}

void launch_top(const float *scores, std::size_t n, std::size_t columns, std::size_t k,
                float *values, std::int32_t *ids, std::int64_t *indices, Stream stream) {
  if (k == 0) return;
  std::size_t size = 2;
  while (size < k) size *= 2;
  launch(top_kernel, columns, 1, kThreads, sizeof(TopShared) + size * sizeof(Entry), stream, scores,
         n, static_cast<unsigned>(columns), static_cast<unsigned>(k), static_cast<unsigned>(size),
         values, ids, indices);
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
