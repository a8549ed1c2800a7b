// Scores of the documents in lists: approximate ones from the codes, exact ones from the vectors.
// Both are the bits of the CPU's.
#include "cuda/bytes.cuh"
#include "cuda/documents.cuh"
#include "cuda/stages.h"
#include "cuda/tile.cuh"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = kTileThreads, kWarps = kThreads / kWarp;
static_assert(kTileColumns <= kThreads, "a thread for each token");

// ---- approximate --------------------------------------------------------------------------------

// A warp scores a document: eight lanes read the row of a token, four query tokens each, so that it
// takes four tokens at a time.
__global__ void __launch_bounds__(kThreads)
    approximate_kernel(const std::uint8_t *table, const float *step, unsigned tiles,
                       SafeCodes codes, Documents documents, DocumentLists lists, float *scores) {
  const unsigned lane = threadIdx.x % kWarp, count = count_of(lists, blockIdx.y);
  const std::size_t stride = std::size_t{gridDim.y} * tiles * kQueryTile;
  for (unsigned at = blockIdx.x * kWarps + threadIdx.x / kWarp; at < count;
       at += gridDim.x * kWarps) {
    const Span span = span_of(documents, document_of(lists, blockIdx.y, at));
    float total = 0.0f; // of the lanes that are equal modulo 16, as on the CPU
    for (unsigned tile = 0; tile < tiles; ++tile) {
      const std::size_t column = (std::size_t{blockIdx.y} * tiles + tile) * kQueryTile;
      const std::uint8_t *bytes = table + column + lane % 8 * 4;
      std::uint32_t best = 0;
#pragma unroll 4
      for (unsigned t = lane / 8; t < span.count; t += 4)
        best = __vmaxu4(
            best, *reinterpret_cast<const std::uint32_t *>(bytes + codes[span.first + t] * stride));
      for (int half = 8; half < 32; half *= 2)
        best = __vmaxu4(best, __shfl_xor_sync(kAllLanes, best, half));
      for (unsigned q = lane % kLanes; q < kQueryTile; q += kLanes) {
        const std::uint32_t word = __shfl_sync(kAllLanes, best, static_cast<int>(q / 4));
        const float byte = static_cast<float>(word >> q % 4 * 8 & 255u);
        total = fmaf(byte - static_cast<float>(kTableZero), step[column + q], total);
      }
    }
    total = add_16_lanes(total);
    if (lane == 0) scores[blockIdx.y * lists.stride + at] = total;
  }
}

// ---- exact --------------------------------------------------------------------------------------

struct ExactShared {
  Tile tile;
  float best[kTileRows];
  float values[256];
  // Of the tokens that are multiplied at once:
  float scale[kTileColumns], inverse[kTileColumns];
  std::uint32_t code[kTileColumns];
  uint4 rows[1]; // Rows::staged_bytes
};

// The vectors of a tile of tokens, decoded when they are asked for.
template <int B> struct PackedRows {
  Tables tables;
  const float *centroids;
  SafeCodes codes;
  StoredTokens tokens;

  static std::size_t staged_bytes(std::size_t) { return 0; }
  __device__ unsigned at_once(unsigned) const { return kTileColumns; }
  __device__ void open(ExactShared &shared) const {
    for (unsigned i = threadIdx.x; i < 256; i += kThreads) shared.values[i] = tables.values[i];
  }
  __device__ float decoded(const ExactShared &shared, std::size_t token, unsigned c, unsigned d,
                           unsigned dim) const {
    const std::uint8_t *row = tokens.packed + token * (dim * B / 8);
    return fmaf(shared.values[window_of<B>(row, d, dim)], shared.scale[c],
                centroids[std::size_t{shared.code[c]} * dim + d]);
  }
  // What `value` needs of tokens first to first + n - 1; half a warp sums a token's squares, as
  // decompress does.
  __device__ void prepare(ExactShared &shared, std::size_t first, unsigned n, unsigned dim) const {
    constexpr auto kHalf = static_cast<unsigned>(kLanes); // a warp
    const unsigned own = threadIdx.x, half = own / kHalf, lane = own % kHalf;
    __syncthreads();
    if (own < n) {
      shared.code[own] = static_cast<std::uint32_t>(codes[first + own]);
      shared.scale[own] =
          tokens.scales == nullptr ? 1.0f : tables.scales[tokens.scales[first + own]];
    }
    __syncthreads();
    for (unsigned begin = 0; begin < n; begin += kThreads / kLanes) {
      const unsigned c = min_of(begin + half, n - 1); // all lanes meet in add_16_lanes
      float squares = 0.0f;
      for (unsigned d = lane; d < dim; d += kLanes) {
        const float x = decoded(shared, first + c, c, d, dim);
        squares = fmaf(x, x, squares);
      }
      squares = add_16_lanes(squares);
      if (lane == 0) shared.inverse[c] = squares;
    }
    __syncthreads();
    if (own < n) {
      const float norm = sqrtf(shared.inverse[own]);
      shared.inverse[own] = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
    }
    __syncthreads();
  }
  __device__ float value(const ExactShared &shared, std::size_t first, unsigned c, unsigned d,
                         unsigned dim) const {
    return decoded(shared, first + c, c, d, dim) * shared.inverse[c];
  }
};

// Vectors as they are. They may lie on the host: whole rows come over the bus, 16 bytes to a
// thread.
struct HalfRows {
  static constexpr unsigned kStaged = 256 * kTileColumns; // values
  const std::uint16_t *rows;

  static std::size_t staged_bytes(std::size_t dim) {
    return min_of<std::size_t>(kStaged, kTileColumns * dim) * sizeof rows[0];
  }
  __device__ unsigned at_once(unsigned dim) const { return min_of(kTileColumns, kStaged / dim); }
  __device__ void open(ExactShared &) const {}
  __device__ void prepare(ExactShared &shared, std::size_t first, unsigned n, unsigned dim) const {
    __syncthreads(); // those before have been read
    const std::uint16_t *from = rows + first * dim;
    for (unsigned i = threadIdx.x; i < n * dim / 8; i += kThreads)
      copy_16(&shared.rows[i], from + 8 * i, false);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
  }
  __device__ float value(const ExactShared &shared, std::size_t, unsigned c, unsigned d,
                         unsigned dim) const {
    return half_to_float(reinterpret_cast<const std::uint16_t *>(shared.rows)[c * dim + d]);
  }
};

// The best products of 32 query tokens, those from `query` on, into shared.best. They wait there
// while tokens are prepared, not in registers: those would be spilled around the square root.
template <class Rows>
__device__ void best_of_tile(ExactShared &shared, const Rows &rows, const float *query,
                             unsigned dim, Span span) {
  const bool writes = threadIdx.x % 16 == 0;
  for (unsigned i = 0; writes && i < 4; ++i) shared.best[tile_row() + i] = kMinusInf;
  const unsigned at_once = rows.at_once(dim);
  for (unsigned t = 0; t < span.count; t += at_once) {
    const std::size_t first = span.first + t;
    const unsigned n = min_of(at_once, span.count - t);
    rows.prepare(shared, first, n, dim);
    float products[4][4];
    dot_tile(
        shared.tile,
        [&](unsigned r, unsigned d) { return query[static_cast<std::size_t>(r) * dim + d]; },
        [&](unsigned c, unsigned d) { return c < n ? rows.value(shared, first, c, d, dim) : 0.0f; },
        dim, products);
    for (unsigned i = 0; i < 4; ++i) {
      float best = kMinusInf; // NaN is never better
      for (unsigned j = 0; j < 4; ++j)
        if (tile_column() + j < n) best = products[i][j] > best ? products[i][j] : best;
      for (int half = 8; half > 0; half /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, best, half);
        best = other > best ? other : best;
      }
      float &most = shared.best[tile_row() + i];
      if (writes) most = best > most ? best : most;
    }
  }
}

// A block scores a document. With five blocks to a multiprocessor asked for, ptxas takes the
// registers that it needs; left to itself it takes 64 and spills.
template <class Rows>
__global__ void __launch_bounds__(kThreads, 5)
    exact_kernel(const float *queries, unsigned nq, unsigned dim, Rows rows, Documents documents,
                 DocumentLists lists, float *scores) {
  auto &shared = shared_memory<ExactShared>();
  const unsigned count = count_of(lists, blockIdx.y);
  const float *query = queries + std::size_t{blockIdx.y} * nq * dim;
  rows.open(shared);
  for (unsigned at = blockIdx.x; at < count; at += gridDim.x) {
    const Span span = span_of(documents, document_of(lists, blockIdx.y, at));
    float total = 0.0f; // of the lanes that are equal modulo 16, as on the CPU
    for (unsigned q = 0; q < nq; q += kTileRows) {
      best_of_tile(shared, rows, query + static_cast<std::size_t>(q) * dim, dim, span);
      __syncthreads();
      if (threadIdx.x < kLanes)
        for (unsigned r = threadIdx.x; r < kTileRows; r += kLanes) total += shared.best[r];
      __syncthreads();
    }
    if (threadIdx.x < kWarp) {
      total = add_16_lanes(total);
      if (threadIdx.x == 0) scores[blockIdx.y * lists.stride + at] = total;
    }
  }
}

template <class Rows>
void launch_exact(const SearchIndex &index, const Rows &rows, const float *queries,
                  std::size_t n_queries, std::size_t nq, const Hits &hits, Stream stream) {
  launch(exact_kernel<Rows>, blocks_of(hits.stride, 1, n_queries), n_queries, kThreads,
         sizeof(ExactShared) + Rows::staged_bytes(index.dim), stream, queries,
         static_cast<unsigned>(nq), static_cast<unsigned>(index.dim), rows, index.documents,
         hits.lists(), hits.scores);
}

} // namespace

void approximate(const SearchIndex &index, const std::uint8_t *table, const float *step,
                 std::size_t n_queries, std::size_t nq, const Hits &hits, Stream stream) {
  launch(approximate_kernel, blocks_of(hits.stride, kWarps, n_queries), n_queries, kThreads, 0,
         stream, table, step, static_cast<unsigned>(nq / kQueryTile),
         SafeCodes(index.tokens, index.n_centroids), index.documents, hits.lists(), hits.scores);
}

void score_exact(const SearchIndex &index, const float *queries, std::size_t n_queries,
                 std::size_t nq, const Hits &hits, Stream stream) {
  if (index.embeddings != nullptr)
    return launch_exact(index, HalfRows{index.embeddings}, queries, n_queries, nq, hits, stream);
  with_bits(index.decoder.nbits, [&](auto b) {
    const PackedRows<decltype(b)::value> rows{tables_of(index.decoder), index.decoder.centroids,
                                              SafeCodes(index.tokens, index.n_centroids),
                                              index.tokens};
    launch_exact(index, rows, queries, n_queries, nq, hits, stream);
  });
}

} // namespace colbert_fast::cuda
