// Exact MaxSim over documents of any lengths, without padding, and its gradients.
#include "cuda/documents.cuh"
#include "cuda/tile.cuh"

namespace colbert_fast::cuda {
namespace {

struct MaxSimShared {
  Tile tile;
  float best[kTileRows];
};

// A block scores one document with one query; blocks of a document are neighbours, so that its
// tokens come from L2 but for the first.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    maxsim_kernel(const float *queries, unsigned nq, unsigned dim, const T *rows,
                  Documents documents, Pairs pairs, float *scores, std::int32_t *argmax) {
  auto &shared = shared_memory<MaxSimShared>();
  const std::size_t per_document = pairs.queries_per_document();
  const std::size_t document = blockIdx.x / per_document;
  const std::size_t b = pairs.first_query(document) + blockIdx.x % per_document;
  const std::size_t cell = pairs.at(b, document);
  const float *query = queries + b * nq * dim;
  const Span span = span_of(documents, document);
  const T *tokens = rows + span.first * dim;

  // Of the lanes that are equal modulo 16, as on the CPU; a query may have no tokens.
  float total = span.count == 0 ? kMinusInf : 0.0f;
  for (unsigned q = 0; q < nq; q += kTileRows) {
    Best best[4];
    for (Best &one : best) one = {kMinusInf, -1};
    for (unsigned t = 0; t < span.count; t += kTileColumns) {
      const auto token = [&](unsigned c) { return min_of(t + c, span.count - 1); };
      float products[4][4];
      dot_tile(
          shared.tile,
          [&](unsigned r, unsigned d) {
            return q + r < nq ? query[static_cast<std::size_t>(q + r) * dim + d] : 0.0f;
          },
          [&](unsigned c, unsigned d) {
            return to_float(tokens[static_cast<std::size_t>(token(c)) * dim + d]);
          },
          dim, products);
      for (unsigned i = 0; i < 4; ++i)
        for (unsigned j = 0; j < 4; ++j)
          best[i].offer(products[i][j], static_cast<std::int32_t>(token(tile_column() + j)));
    }
    for (unsigned i = 0; i < 4; ++i) {
      best[i].reduce(16);
      const unsigned r = tile_row() + i;
      if (threadIdx.x % 16 != 0) continue;
      shared.best[r] = best[i].value;
      if (argmax != nullptr && q + r < nq) argmax[cell * nq + q + r] = best[i].index;
    }
    __syncthreads();
    if (threadIdx.x < kLanes)
      for (unsigned lane = threadIdx.x; lane < min_of(kTileRows, nq - q); lane += kLanes)
        total += shared.best[lane];
    __syncthreads();
  }
  if (threadIdx.x < kWarp) {
    total = add_16_lanes(total);
    if (threadIdx.x == 0) scores[cell] = total;
  }
}

constexpr unsigned kGradThreads = 128;

// A thread sums four dimensions of one query token, over documents in order.
template <class T>
__global__ void __launch_bounds__(kGradThreads)
    grad_query_kernel(const float *grad, const std::int32_t *argmax, unsigned nq, unsigned dim,
                      const T *rows, Documents documents, Pairs pairs, float *out) {
  const unsigned width = dim / 4;
  const std::size_t at = static_cast<std::size_t>(blockIdx.x) * kGradThreads + threadIdx.x;
  const std::size_t row = at / width, b = row / nq;
  if (row >= pairs.n_queries * nq) return;
  const std::size_t q = row % nq, d = at % width * 4;
  const std::size_t first = pairs.first_document(b);
  float sum[4] = {};
#pragma unroll 4
  for (std::size_t c = 0; c < pairs.columns; ++c) {
    const std::size_t cell = b * pairs.columns + c;
    const std::int32_t met = argmax[cell * nq + q];
    const Span span = span_of(documents, first + c);
    if (met < 0 || static_cast<unsigned>(met) >= span.count) continue;
    const T *token = rows + (span.first + static_cast<std::size_t>(met)) * dim + d;
    for (unsigned k = 0; k < 4; ++k) sum[k] = fmaf(grad[cell], to_float(token[k]), sum[k]);
  }
  for (unsigned k = 0; k < 4; ++k) out[row * dim + d + k] = sum[k];
}

constexpr unsigned kGradTokens = 16, kGradWarps = kGradThreads / kWarp;
constexpr std::size_t kGradBlocks = 16; // of a document

// A block makes 16 rows of a document at a time, a warp every fourth of them: it looks at all that
// queries met in the document, 32 at once, and adds up in order what met its rows. No atomics, the
// same bits each time; and a lane keeps to its dimensions, so nothing waits for another.
__global__ void __launch_bounds__(kGradThreads)
    grad_documents_kernel(const float *queries, const float *grad, const std::int32_t *argmax,
                          unsigned nq, unsigned dim, Documents documents, Pairs pairs, float *out) {
  float4 *sums = &shared_memory<float4>(); // kGradTokens * dim / 4
  const std::size_t document = blockIdx.x, b = pairs.first_query(document);
  const Span span = span_of(documents, document);
  const auto n = static_cast<unsigned>(pairs.queries_per_document() * nq);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = dim / 4;
  const auto *tokens = reinterpret_cast<const float4 *>(queries) + b * nq * width;
  for (unsigned t = blockIdx.y * kGradTokens; t < span.count; t += gridDim.y * kGradTokens) {
    const unsigned count = min_of(kGradTokens, span.count - t);
    for (unsigned row = warp; row < count; row += kGradWarps)
      for (unsigned d = lane; d < width; d += kWarp) sums[row * width + d] = {};
    for (unsigned first = 0; first < n; first += kWarp) {
      const unsigned i = min_of(first + lane, n - 1);
      const std::size_t cell = pairs.at(b + i / nq, document);
      const unsigned met = static_cast<unsigned>(argmax[cell * nq + i % nq]) - t;
      const float weight = grad[cell];
      unsigned mine =
          __ballot_sync(kAllLanes, first + lane < n && met < count && met % kGradWarps == warp);
      for (; mine != 0; mine &= mine - 1) {
        const int from = __ffs(mine) - 1;
        const float by = __shfl_sync(kAllLanes, weight, from);
        float4 *sum = sums + __shfl_sync(kAllLanes, met, from) * width;
        const float4 *token = tokens + std::size_t{first + static_cast<unsigned>(from)} * width;
        for (unsigned d = lane; d < width; d += kWarp) {
          const float4 x = token[d], to = sum[d];
          sum[d] = {fmaf(by, x.x, to.x), fmaf(by, x.y, to.y), fmaf(by, x.z, to.z),
                    fmaf(by, x.w, to.w)};
        }
      }
    }
    auto *rows = reinterpret_cast<float4 *>(out) + (span.first + t) * width;
    for (unsigned row = warp; row < count; row += kGradWarps)
      for (unsigned d = lane; d < width; d += kWarp) rows[row * width + d] = sums[row * width + d];
  }
}

} // namespace

void maxsim(const float *queries, std::size_t nq, std::size_t dim, const void *rows, DType type,
            const Documents &documents, const Pairs &pairs, float *scores, std::int32_t *argmax,
            Stream stream) {
  with_type(type, [&](auto element) {
    using T = decltype(element);
    launch(maxsim_kernel<T>, documents.count * pairs.queries_per_document(), 1, kTileThreads,
           sizeof(MaxSimShared), stream, queries, static_cast<unsigned>(nq),
           static_cast<unsigned>(dim), static_cast<const T *>(rows), documents, pairs, scores,
           argmax);
  });
}

void maxsim_grad_query(const float *grad, const std::int32_t *argmax, std::size_t nq,
                       std::size_t dim, const void *rows, DType type, const Documents &documents,
                       const Pairs &pairs, float *out, Stream stream) {
  with_type(type, [&](auto element) {
    using T = decltype(element);
    launch(grad_query_kernel<T>, ceil_div(pairs.n_queries * nq * (dim / 4), kGradThreads), 1,
           kGradThreads, 0, stream, grad, argmax, static_cast<unsigned>(nq),
           static_cast<unsigned>(dim), static_cast<const T *>(rows), documents, pairs, out);
  });
}

void maxsim_grad_documents(const float *queries, const float *grad, const std::int32_t *argmax,
                           std::size_t nq, std::size_t dim, const Documents &documents,
                           const Pairs &pairs, float *out, Stream stream) {
  launch(grad_documents_kernel, documents.count, kGradBlocks, kGradThreads,
         kGradTokens * dim * sizeof(float), stream, queries, grad, argmax,
         static_cast<unsigned>(nq), static_cast<unsigned>(dim), documents, pairs, out);
}

} // namespace colbert_fast::cuda
