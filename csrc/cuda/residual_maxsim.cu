// Approximate MaxSim straight from packed residuals: the query as int8, centroid scores as a table
// of bytes, residuals decoded in registers and multiplied by tensor cores. Same bits as the CPU's.
#include "cuda/bytes.cuh"
#include "cuda/documents.cuh"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = 128, kWarps = kThreads / kWarp, kRows = 8;

// ---- the query ----------------------------------------------------------------------------------

constexpr unsigned kPackThreads = 512;

struct PackShared {
  float values[kQueryTile][kSlab + 1]; // an odd number: rows meet all banks
  float unit[kQueryTile];
  std::int32_t sum[kQueryTile];
};

// A slab of a block's tile into shared memory, zeros where there are no values.
__device__ void stage_slab(PackShared &shared, const float *query, unsigned nq, unsigned dim,
                           unsigned slab) {
  __syncthreads(); // the slab before has been read
  for (unsigned i = threadIdx.x; i < kQueryTile * kSlab; i += kPackThreads) {
    const unsigned r = i / kSlab, q = blockIdx.x * kQueryTile + r, d = slab * kSlab + i % kSlab;
    shared.values[r][i % kSlab] = q < nq && d < dim ? query[std::size_t{q} * dim + d] : 0.0f;
  }
  __syncthreads();
}

// A block packs a tile of query tokens. Lengths are chains of sums, a thread each, as on the CPU.
template <int B>
__global__ void __launch_bounds__(kPackThreads)
    pack_query_kernel(const float *query, unsigned nq, unsigned dim, float zero, QueryBytes out) {
  auto &shared = shared_memory<PackShared>();
  const unsigned own = threadIdx.x, slabs = static_cast<unsigned>(slabs_of(dim));
  const std::size_t tile = blockIdx.x;
  float largest = 0.0f, squares = 0.0f;
  for (unsigned slab = 0; slab < slabs; ++slab) {
    stage_slab(shared, query, nq, dim, slab);
    if (own >= kQueryTile) continue;
#pragma unroll 8
    for (unsigned d = 0; d < kSlab; ++d) {
      const float value = shared.values[own][d];
      largest = largest < fabsf(value) ? fabsf(value) : largest;
      squares = squares + value * value;
    }
  }
  if (own < kQueryTile) {
    const bool usable = squares < HUGE_VALF && largest > kVanishing;
    const std::size_t q = tile * kQueryTile + own;
    shared.unit[own] = out.units[q] = usable ? largest / 127.0f : 0.0f;
    out.norms[q] = usable ? sqrtf(squares) : 0.0f;
    shared.sum[own] = 0;
  }
  __syncthreads();
  for (unsigned slab = slabs; slab-- > 0;) {
    if (slab + 1 < slabs) stage_slab(shared, query, nq, dim, slab); // the last one lies there
    std::uint32_t *words = out.levels + (tile * slabs + slab) * kSlabWords;
    for (unsigned i = own; i < kSlabWords; i += kPackThreads) {
      // half of the tile, block of 32 dimensions, lane, register: as add_products reads them
      const unsigned reg = i % 4, lane = i / 4 % 32, block = i / 128 % 4, m = i / 512;
      const unsigned r = lane / 4 * 4 + 2 * m + reg % 2;
      const float unit = shared.unit[r];
      std::uint32_t word = 0;
      std::int32_t sum = 0;
      for (unsigned j = 0; j < 4; ++j) {
        const float value = shared.values[r][slab_dim<B>(lane % 4, 2 * block + reg / 2, j)];
        const auto level = static_cast<std::int32_t>(unit > 0.0f ? rintf(value / unit) : 0.0f);
        word |= (static_cast<std::uint32_t>(level) & 255u) << 8 * j;
        sum += level;
      }
      words[i] = word;
      atomicAdd(&shared.sum[r], sum);
    }
  }
  __syncthreads();
  if (own < kQueryTile)
    out.start[tile * kQueryTile + own] =
        static_cast<std::int32_t>(rintf(-zero * static_cast<float>(shared.sum[own])));
}

// ---- centroids ----------------------------------------------------------------------------------

// A thread quantises a centroid: once for an index.
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(const float *centroids, std::size_t n, unsigned dim, std::uint8_t *rows,
                    float *scale, float *longest) {
  const std::size_t c = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= n) return;
  const float *row = centroids + c * dim;
  float largest = 0.0f, squares = 0.0f;
  for (unsigned d = 0; d < dim; ++d) {
    largest = largest < fabsf(row[d]) ? fabsf(row[d]) : largest;
    squares = squares + row[d] * row[d];
  }
  const bool usable = largest > kVanishing;
  const float unit = usable ? largest / 63.0f : 0.0f;
  for (unsigned d = 0; d < dim; ++d)
    rows[c * dim + d] = static_cast<std::uint8_t>(
        kScreenZero + (usable ? static_cast<int>(rintf(row[d] / unit)) : 0));
  scale[c] = unit;
  // Of numbers that are not negative, bits are in the numbers' order.
  atomicMax(reinterpret_cast<unsigned *>(longest), __float_as_uint(sqrtf(squares)));
}

// What a byte of the table stands for, of a query token.
__device__ float step_of(float norm, float longest) {
  return norm * (longest > 0.0f ? longest : 1.0f) / (static_cast<float>(kTableZero) - 2.0f);
}
__device__ float ratio_of(float unit, float unit_of_bytes, float step) {
  return step > 0.0f ? unit * unit_of_bytes / step : 0.0f;
}

__device__ std::uint32_t to_byte(float x) {
  const float rounded = rintf(x);
  return static_cast<std::uint32_t>(rounded < 0.0f ? 0.0f : rounded > 255.0f ? 255.0f : rounded);
}

// A warp scores eight centroids with all query tokens.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    byte_scores_kernel(QueryBytes query, unsigned tiles, unsigned dim, const std::uint8_t *rows,
                       const float *scale, const float *longest, std::size_t n, std::uint8_t *out,
                       float *step) {
  auto *shared = &shared_memory<uint4>();
  const unsigned slabs = static_cast<unsigned>(slabs_of(dim)), lane = threadIdx.x % kWarp;
  const std::size_t first =
      (static_cast<std::size_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kRows;
  const std::uint8_t *row = rows + min_of(first + lane / 4, n - 1) * dim;
  for (unsigned tile = 0; tile < tiles; ++tile) {
    __syncthreads();
    stage_query(query, tile, slabs, shared);
    __syncthreads();
    const unsigned q = tile * kQueryTile + lane / 4 * 4;
    std::int32_t sums[4][2];
    float ratio[4];
    for (unsigned i = 0; i < 4; ++i) {
      const float unit = step_of(query.norms[q + i], *longest);
      if (blockIdx.x == 0 && threadIdx.x < kWarp && lane % 4 == 0) step[q + i] = unit;
      ratio[i] = ratio_of(query.units[q + i], 1.0f, unit);
      sums[i][0] = sums[i][1] = query.start[q + i];
    }
    for (unsigned slab = 0; slab < slabs; ++slab) {
      std::uint32_t bytes[8];
      load_slab<8, kAligned>(row, dim, slab, {}, bytes);
      add_products(shared + slab * (kSlabWords / 4), bytes, sums);
    }
    for (unsigned c = 0; c < 2; ++c) {
      const std::size_t centroid = first + lane % 4 * 2 + c;
      if (centroid >= n) continue;
      std::uint32_t word = 0;
      for (unsigned i = 0; i < 4; ++i)
        word |= to_byte(fmaf(static_cast<float>(sums[i][c]) * scale[centroid], ratio[i],
                             static_cast<float>(kTableZero)))
                << 8 * i;
      *reinterpret_cast<std::uint32_t *>(out + centroid * tiles * kQueryTile + q) = word;
    }
  }
}

// ---- documents ----------------------------------------------------------------------------------

struct ScoreTables {
  float scales[256], norms[256];
  Levels levels;
  float step;
};

struct ScoreShared {
  float scales[256], norms[256];
  float best[kWarps][kQueryTile];
  uint4 query[1]; // slabs * kSlabWords / 4
};

// A query of the batch: its tiles of tokens among all, whose rows of the table are `stride` long.
struct QueryTiles {
  QueryBytes query;
  const std::uint8_t *table;
  const float *step;
  unsigned first, stride;
};

// The best cells of a lane's four query tokens in a tile, over its share of a document's tokens. A
// warp takes eight tokens at a time.
template <int B, bool kAligned>
__device__ void best_cells(const ScoreShared &shared, const QueryTiles &queries, unsigned tile,
                           const ScoreTables &tables, const SafeCodes &codes,
                           const StoredTokens &tokens, unsigned dim, Span span, float (&best)[4]) {
  const unsigned slabs = static_cast<unsigned>(slabs_of(dim)), packed_dim = dim * B / 8;
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned q = (queries.first + tile) * kQueryTile + lane / 4 * 4;
  float ratio[4];
  std::int32_t start[4];
  for (unsigned i = 0; i < 4; ++i) {
    ratio[i] = ratio_of(queries.query.units[q + i], tables.step, queries.step[q + i]);
    start[i] = queries.query.start[q + i];
    best[i] = kMinusInf;
  }
  for (unsigned first = 0; first < span.count; first += kRows) {
    const auto token = [&](unsigned i) { return span.first + min_of(first + i, span.count - 1); };
    const std::uint8_t *row = tokens.packed + token(lane / 4) * packed_dim;
    std::uint32_t cells[2];
    unsigned scales[2], norms[2];
#pragma unroll
    for (unsigned c = 0; c < 2; ++c) { // on their way while residuals are decoded
      const std::size_t at = token(lane % 4 * 2 + c);
      cells[c] =
          *reinterpret_cast<const std::uint32_t *>(queries.table + codes[at] * queries.stride + q);
      scales[c] = tokens.scales == nullptr ? 0 : tokens.scales[at];
      norms[c] = tokens.inverse_norms == nullptr ? 0 : tokens.inverse_norms[at];
    }
    std::int32_t sums[4][2];
    for (unsigned i = 0; i < 4; ++i) sums[i][0] = sums[i][1] = start[i];
    for (unsigned slab = 0; slab < slabs; ++slab) {
      std::uint32_t bytes[8];
      load_slab<B, kAligned>(row, dim, slab, tables.levels, bytes);
      add_products(shared.query + slab * (kSlabWords / 4), bytes, sums);
    }
#pragma unroll
    for (unsigned c = 0; c < 2; ++c) {
      const float norm = tokens.inverse_norms == nullptr ? 1.0f : shared.norms[norms[c]];
      const float scale = tokens.scales == nullptr ? 1.0f : shared.scales[scales[c]];
      const float zero = norm * static_cast<float>(-kTableZero), scaled = norm * scale;
      for (unsigned i = 0; i < 4; ++i) {
        const float centroid = fmaf(static_cast<float>(cells[c] >> 8 * i & 255u), norm, zero);
        const float cell = fmaf(static_cast<float>(sums[i][c]) * ratio[i], scaled, centroid);
        best[i] = cell > best[i] ? cell : best[i];
      }
    }
  }
}

// Blocks to a multiprocessor: 64 registers, or what is needed not to spill.
template <int B, bool kAligned> constexpr int kResident = B == 3 && !kAligned ? 6 : 8;

// A warp scores a document; blocks (x, query) go through the query's list in strides.
template <int B, bool kAligned>
__global__ void __launch_bounds__(kThreads, kResident<B, kAligned>)
    residual_maxsim_kernel(QueryTiles queries, unsigned nq, ScoreTables tables, SafeCodes codes,
                           StoredTokens tokens, unsigned dim, Documents documents,
                           DocumentLists lists, float *scores) {
  auto &shared = shared_memory<ScoreShared>();
  const unsigned slabs = static_cast<unsigned>(slabs_of(dim)), count = count_of(lists, blockIdx.y);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned tiles = (nq + kQueryTile - 1) / kQueryTile, begin = blockIdx.x * kWarps;
  queries.first = blockIdx.y * tiles, queries.stride = gridDim.y * tiles * kQueryTile;
  for (unsigned i = threadIdx.x; i < 256; i += kThreads)
    shared.scales[i] = tables.scales[i], shared.norms[i] = tables.norms[i];
  for (unsigned first = begin; first < count; first += gridDim.x * kWarps) {
    const unsigned at = first + warp;
    const Span span = at < count ? span_of(documents, document_of(lists, blockIdx.y, at)) : Span{};
    float total = 0.0f; // of the lanes that are equal modulo 16, as on the CPU
    for (unsigned tile = 0; tile < tiles; ++tile) {
      if (tiles > 1 || first == begin) {
        __syncthreads();
        stage_query(queries.query, queries.first + tile, slabs, shared.query);
        __syncthreads();
      }
      float best[4];
      best_cells<B, kAligned>(shared, queries, tile, tables, codes, tokens, dim, span, best);
      for (unsigned i = 0; i < 4; ++i) {
        for (int half = 1; half < 4; half *= 2) {
          const float other = __shfl_xor_sync(kAllLanes, best[i], half);
          best[i] = other > best[i] ? other : best[i];
        }
        if (lane % 4 == 0) shared.best[warp][lane + i] = best[i];
      }
      __syncwarp();
      const float *step = queries.step + (queries.first + tile) * kQueryTile;
      for (unsigned l = lane % kLanes; l < kQueryTile && tile * kQueryTile + l / 16 * 16 < nq;
           l += kLanes)
        total = fmaf(shared.best[warp][l], step[l], total);
      __syncwarp(); // before the next tile or document writes to `best`
    }
    total = add_16_lanes(total);
    if (lane == 0 && at < count)
      scores[blockIdx.y * lists.stride + at] = span.count == 0 ? kMinusInf : total;
  }
}

std::size_t query_bytes(std::size_t dim) { return slabs_of(dim) * kSlabWords * 4; }

} // namespace

std::size_t query_words(std::size_t nq, std::size_t dim) {
  return ceil_div(nq, kQueryTile) * slabs_of(dim) * kSlabWords;
}

void pack_query(const float *query, std::size_t nq, std::size_t dim, int nbits, float zero,
                const QueryBytes &out, Stream stream) {
  with_bits(nbits, [&](auto b) {
    launch(pack_query_kernel<decltype(b)::value>, ceil_div(nq, kQueryTile), 1, kPackThreads,
           sizeof(PackShared), stream, query, static_cast<unsigned>(nq), static_cast<unsigned>(dim),
           zero, out);
  });
}

void quantise_centroids(const float *centroids, std::size_t n, std::size_t dim, std::uint8_t *rows,
                        float *scale, float *longest, Stream stream) {
  launch(quantise_kernel, ceil_div(n, kThreads), 1, kThreads, 0, stream, centroids, n,
         static_cast<unsigned>(dim), rows, scale, longest);
}

void byte_scores(const QueryBytes &query, std::size_t nq, std::size_t dim, const std::uint8_t *rows,
                 const float *scale, const float *longest, std::size_t n, std::uint8_t *table,
                 float *step, Stream stream) {
  launch(dim % 32 == 0 ? byte_scores_kernel<true> : byte_scores_kernel<false>,
         ceil_div(n, kWarps * kRows), 1, kThreads, query_bytes(dim), stream, query,
         static_cast<unsigned>(ceil_div(nq, kQueryTile)), static_cast<unsigned>(dim), rows, scale,
         longest, n, table, step);
}

void residual_maxsim_i8(const QueryBytes &queries, std::size_t n_queries, std::size_t nq,
                        const std::uint8_t *table, const float *step, const Decoder &decoder,
                        float level_step, std::size_t n_centroids, const StoredTokens &tokens,
                        const Documents &documents, const DocumentLists &lists, float *scores,
                        Stream stream) {
  ScoreTables tables{};
  for (std::size_t i = 0; i < 256; ++i)
    tables.scales[i] = decoder.scales[i], tables.norms[i] = decoder.norms[i];
  for (std::size_t i = 0; i < 16; ++i)
    tables.levels.words[i / 4] |= std::uint32_t{decoder.levels[i]} << 8 * (i % 4);
  tables.step = level_step;
  with_bits(decoder.nbits, [&](auto b) {
    constexpr int B = decltype(b)::value;
    if constexpr (B != 8)
      launch(decoder.dim % 32 == 0 ? residual_maxsim_kernel<B, true>
                                   : residual_maxsim_kernel<B, false>,
             blocks_of(lists.stride, kWarps, n_queries), n_queries, kThreads,
             sizeof(ScoreShared) + query_bytes(decoder.dim), stream,
             QueryTiles{queries, table, step, 0, 0}, static_cast<unsigned>(nq), tables,
             SafeCodes(tokens, n_centroids), tokens, static_cast<unsigned>(decoder.dim), documents,
             lists, scores);
  });
}

} // namespace colbert_fast::cuda
