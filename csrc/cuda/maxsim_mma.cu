// Exact MaxSim of 16-bit queries with documents of the same type, by tensor cores: products are
// exact, sums float32 in an order of the hardware's.
#include "cuda/documents.cuh"
#include "cuda/tile.cuh"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = 128, kWarps = kThreads / kWarp;
constexpr unsigned kRows = 32, kTokens = 64, kDim = kMaxMmaDim, kBlocks = kDim / 16;
// Eight values more than a row: lanes that read different rows meet different banks.
constexpr unsigned kStride = kDim + 8;

struct Shared {
  std::uint16_t tokens[2][kTokens][kStride];
  Best best[kWarps][kRows];
};

// The next tokens on their way into shared memory; past the end the last one again, past `dim`
// zeros.
__device__ void fetch(Shared &shared, unsigned half, const std::uint16_t *tokens, unsigned first,
                      unsigned count, unsigned dim) {
  for (unsigned i = threadIdx.x; i < kTokens * kDim / 8; i += kThreads) {
    const unsigned token = i / (kDim / 8), d = i % (kDim / 8) * 8;
    const std::size_t row = min_of(first + token, count - 1);
    copy_16(&shared.tokens[half][token][d], tokens + row * dim + (d < dim ? d : 0), d >= dim);
  }
}

// Two values of a query token, zeros where there are none.
__device__ std::uint32_t pair_of(const std::uint16_t *query, unsigned q, unsigned nq, unsigned d,
                                 unsigned dim) {
  if (q >= nq || d >= dim) return 0;
  return *reinterpret_cast<const std::uint32_t *>(query + static_cast<std::size_t>(q) * dim + d);
}

// A block scores one document with one query: a warp 32 query tokens, in registers, with 16 of the
// 64 tokens that lie in shared memory while the next ones come.
template <DType kType>
__global__ void __launch_bounds__(kThreads)
    maxsim_mma_kernel(const std::uint16_t *queries, unsigned nq, unsigned dim,
                      const std::uint16_t *rows, Documents documents, Pairs pairs, float *scores,
                      std::int32_t *argmax) {
  auto &shared = shared_memory<Shared>();
  const std::size_t per_document = pairs.queries_per_document();
  const std::size_t document = blockIdx.x / per_document;
  const std::size_t b = pairs.first_query(document) + blockIdx.x % per_document;
  const std::size_t cell = pairs.at(b, document);
  const std::uint16_t *query = queries + b * nq * dim;
  const Span span = span_of(documents, document);
  const std::uint16_t *tokens = rows + span.first * dim;
  const unsigned warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;

  // Of the lanes that are equal modulo 16, as on the CPU; a query may have no tokens.
  float total = span.count == 0 ? kMinusInf : 0.0f;
  for (unsigned q = 0; q < nq; q += kRows) {
    std::uint32_t a[2][kBlocks][4];
#pragma unroll
    for (unsigned m = 0; m < 2; ++m)
#pragma unroll
      for (unsigned k = 0; k < kBlocks; ++k)
#pragma unroll
        for (unsigned i = 0; i < 4; ++i)
          a[m][k][i] =
              pair_of(query, q + 16 * m + g + i % 2 * 8, nq, 16 * k + 2 * t + i / 2 * 8, dim);
    Best best[4];
    for (Best &one : best) one = {kMinusInf, -1};
    if (span.count > 0) fetch(shared, 0, tokens, 0, span.count, dim);
    copy_commit();
    for (unsigned first = 0; first < span.count; first += kTokens) {
      const unsigned half = first / kTokens % 2;
      if (first + kTokens < span.count)
        fetch(shared, 1 - half, tokens, first + kTokens, span.count, dim);
      copy_commit();
      copy_wait<1>();
      __syncthreads();
      float d[2][2][4] = {};
#pragma unroll
      for (unsigned k = 0; k < kBlocks; ++k)
#pragma unroll
        for (unsigned n = 0; n < 2; ++n) {
          const std::uint16_t *token = &shared.tokens[half][warp * 16 + n * 8 + g][16 * k + 2 * t];
          const std::uint32_t pairs_of_token[2] = {
              *reinterpret_cast<const std::uint32_t *>(token),
              *reinterpret_cast<const std::uint32_t *>(token + 8)};
#pragma unroll
          for (unsigned m = 0; m < 2; ++m) mma<kType>(d[m][n], a[m][k], pairs_of_token);
        }
#pragma unroll
      for (unsigned i = 0; i < 16; ++i) { // rows' columns in ascending order
        const unsigned m = i / 8, h = i / 4 % 2, n = i / 2 % 2, c = i % 2;
        const unsigned at = min_of(first + warp * 16 + n * 8 + 2 * t + c, span.count - 1);
        best[2 * m + h].offer(d[m][n][2 * h + c], static_cast<std::int32_t>(at));
      }
      __syncthreads();
    }
    for (unsigned i = 0; i < 4; ++i) {
      best[i].reduce(4);
      if (t == 0) shared.best[warp][i / 2 * 16 + i % 2 * 8 + g] = best[i];
    }
    __syncthreads();
    if (warp == 0) {
      const unsigned lane = threadIdx.x;
      Best one = shared.best[0][lane];
      for (unsigned w = 1; w < kWarps; ++w) one.merge(shared.best[w][lane]);
      if (argmax != nullptr && q + lane < nq) argmax[cell * nq + q + lane] = one.index;
      const float upper = __shfl_xor_sync(kAllLanes, one.value, 16);
      if (q + lane < nq) total += one.value;
      if (q + 16 + lane < nq) total += upper; // in the lower half, which is what counts
    }
    __syncthreads();
  }
  if (warp == 0) {
    total = add_16_lanes(total);
    if (threadIdx.x == 0) scores[cell] = total;
  }
}

} // namespace

void maxsim_mma(const void *queries, std::size_t nq, std::size_t dim, const void *rows, DType type,
                const Documents &documents, const Pairs &pairs, float *scores, std::int32_t *argmax,
                Stream stream) {
  launch(type == DType::f16 ? maxsim_mma_kernel<DType::f16> : maxsim_mma_kernel<DType::bf16>,
         documents.count * pairs.queries_per_document(), 1, kThreads, sizeof(Shared), stream,
         static_cast<const std::uint16_t *>(queries), static_cast<unsigned>(nq),
         static_cast<unsigned>(dim), static_cast<const std::uint16_t *>(rows), documents, pairs,
         scores, argmax);
}

} // namespace colbert_fast::cuda
