// The GPU kernels, as functions that put them on a stream, and what each promises. Names, layouts
// and results are those of cpu/kernels.h unless it is said here.
//
// Arrays lie on the device and start at multiples of 16 bytes. Launchers allocate nothing and do
// not wait; they throw std::runtime_error where CUDA refuses a launch. Kernels cannot be asked to
// check values without waiting for the answer, so they stay inside their arrays whatever these
// hold: a code too large is read as the last, of a document what lies outside the rows is left out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"
#include "pairs.h"

namespace colbert_fast::cuda {

using Stream = void *; // a cudaStream_t

// Document i is rows first[i] to first[i] + lengths[i] - 1 of n_rows: all of a collection, or any
// choice from it.
struct Documents {
  const std::int64_t *first;
  const std::int32_t *lengths;
  std::size_t count, n_rows;
};

// Documents of a collection for each query: counts[b] ids from ids + b * stride on, or, where ids
// is null, the first `stride` documents. Results lie where the ids do.
struct DocumentLists {
  const std::int32_t *ids, *counts;
  std::size_t stride;
};

// first[i]: the sum of the lengths in front of document i.
void starts(const std::int32_t *lengths, std::size_t n, std::int64_t *first, Stream stream);

// -- maxsim --------------------------------------------------------------------------------------
// Queries of nq tokens each; float32 arithmetic for any type of rows, the same bits as the CPU's.
// `argmax` (n_queries, columns, nq) may be null.
void maxsim(const float *queries, std::size_t nq, std::size_t dim, const void *rows, DType type,
            const Documents &documents, const Pairs &pairs, float *scores, std::int32_t *argmax,
            Stream stream);
// The same by tensor cores: queries of the rows' type, which has 16 bits, and dim <= kMaxMmaDim.
// Products are exact, their sums rounded as the hardware does it.
constexpr std::size_t kMaxMmaDim = 128;
void maxsim_mma(const void *queries, std::size_t nq, std::size_t dim, const void *rows, DType type,
                const Documents &documents, const Pairs &pairs, float *scores, std::int32_t *argmax,
                Stream stream);
// out (n_queries, nq, dim). What an argmax names outside its document counts as -1.
void maxsim_grad_query(const float *grad, const std::int32_t *argmax, std::size_t nq,
                       std::size_t dim, const void *rows, DType type, const Documents &documents,
                       const Pairs &pairs, float *out, Stream stream);
// out (n_rows, dim); rows of no document are left as they are.
void maxsim_grad_documents(const float *queries, const float *grad, const std::int32_t *argmax,
                           std::size_t nq, std::size_t dim, const Documents &documents,
                           const Pairs &pairs, float *out, Stream stream);

// -- kmeans --------------------------------------------------------------------------------------
// The CPU's exact assignment, bit by bit.
void assign(const void *points, DType type, std::size_t n, std::size_t dim, const float *centroids,
            std::size_t n_centroids, std::int32_t *codes, float *best, Stream stream);
struct Extremes { // of centroids and their float16 rows; infinite if float16 cannot hold all
  float length;   // the greatest of a centroid
  float rounding; // the greatest distance of a centroid from its row
};
// The same by tensor cores, for dim <= kMaxMmaDim, from what narrow_centroids has made: `rows` as
// float16 and `extremes`, which the caller has set to 0.
void narrow_centroids(const float *centroids, std::size_t n, std::size_t dim, std::uint16_t *rows,
                      Extremes *extremes, Stream stream);
void assign_mma(const void *points, DType type, std::size_t n, std::size_t dim,
                const float *centroids, std::size_t n_centroids, const std::uint16_t *rows,
                const Extremes *extremes, std::int32_t *codes, float *best, Stream stream);
// sums (n_clusters, dim), of the points named by order[first[c]] to order[first[c + 1] - 1]: the
// CPU's sum_rows.
void accumulate(const void *points, DType type, std::size_t n, std::size_t dim,
                const std::int64_t *order, const std::int64_t *first, std::size_t n_clusters,
                float *sums, Stream stream);

// -- candidates ----------------------------------------------------------------------------------
// scores (n_centroids, nq), the same bits as the CPU's.
void centroid_scores(const float *query, std::size_t nq, std::size_t dim, const float *centroids,
                     std::size_t n_centroids, float *scores, Stream stream);
// Best first, of equal ones the lowest; NaN counts as -inf. A block for a column of scores, whose
// best are sorted in shared memory: at most kMaxTop of them, of less than 2^32.
constexpr std::size_t kMaxTop = 4096;
void top_centroids(const float *scores, std::size_t n_centroids, std::size_t nq, std::size_t nprobe,
                   std::int32_t *cells, Stream stream);
void top_k(const float *scores, std::size_t n, std::size_t k, float *values, std::int64_t *indices,
           Stream stream);

// -- residual ------------------------------------------------------------------------------------
void pack(const std::uint8_t *buckets, std::size_t n, std::size_t dim, int nbits,
          std::uint8_t *packed, Stream stream);
void unpack(const std::uint8_t *packed, std::size_t n, std::size_t dim, int nbits,
            std::uint8_t *buckets, Stream stream);
// The decoder's centroids lie on the device, its tables on the host. The same bits as the CPU's.
void decompress(const Decoder &decoder, std::size_t n_centroids, const Residuals &tokens,
                std::size_t n, float *out, Stream stream);

// The same tokens' inverse norms as bytes: what encode_inverse_norm gives, by its `edges`, which
// lie on the host.
void inverse_norms(const Decoder &decoder, std::size_t n_centroids, const Residuals &tokens,
                   std::size_t n, const float *edges, std::uint8_t *norms, Stream stream);

// -- compress ------------------------------------------------------------------------------------
// The same bits as the CPU's. Points and centroids lie on the device, cutoffs, the decoder's tables
// and the edges of encode_scale on the host.
void compress(const void *points, DType type, std::size_t n, std::size_t dim,
              const float *centroids, std::size_t n_centroids, const std::int32_t *codes,
              const float *cutoffs, int nbits, std::uint8_t *residuals, Stream stream);
void compress_trellis(const void *points, DType type, std::size_t n, const std::int32_t *codes,
                      const Decoder &decoder, std::size_t n_centroids, const float *scale_edges,
                      std::uint8_t *residuals, std::uint8_t *scales, Stream stream);

// -- search --------------------------------------------------------------------------------------
// Tokens whose codes have 16 or 32 bits each, or are packed (cpu/kernels.h; the padding is read).
struct StoredTokens {
  const void *codes;
  int code_bits;
  const std::uint8_t *packed, *scales, *inverse_norms;
};
inline StoredTokens stored(const Residuals &tokens) {
  return {tokens.codes.data, tokens.codes.wide ? 32 : 16, tokens.packed, tokens.scales,
          tokens.inverse_norms};
}

// A query as int8, in the order of dimensions that rows of `nbits` decode in (8: as they lie), with
// what PanelsI8 and QueryPanels say of each token. For tokens from nq up to a multiple of 32:
// zeros.
struct QueryBytes {
  std::uint32_t *levels; // query_words
  std::int32_t *start;
  float *norms, *units;
};
std::size_t query_words(std::size_t nq, std::size_t dim);
void pack_query(const float *query, std::size_t nq, std::size_t dim, int nbits, float zero,
                const QueryBytes &out, Stream stream);
// ByteCentroids: centroid ~ scale * (byte - kScreenZero). `longest`, one float that the caller has
// set to 0, becomes the length of the longest.
void quantise_centroids(const float *centroids, std::size_t n, std::size_t dim, std::uint8_t *rows,
                        float *scale, float *longest, Stream stream);
// A ByteTable whose stride is nq up to a multiple of 32, from a query packed for 8 bits and
// kScreenZero. `step` has as many floats.
void byte_scores(const QueryBytes &query, std::size_t nq, std::size_t dim, const std::uint8_t *rows,
                 const float *scale, const float *longest, std::size_t n, std::uint8_t *table,
                 float *step, Stream stream);
// Queries of nq tokens each (of several: a multiple of 32), packed and scored as one query. They
// are packed for the decoder's bits, which are not 8, and the zero point of its levels, which are
// level_step apart. -inf for a document without tokens.
void residual_maxsim_i8(const QueryBytes &queries, std::size_t n_queries, std::size_t nq,
                        const std::uint8_t *table, const float *step, const Decoder &decoder,
                        float level_step, std::size_t n_centroids, const StoredTokens &tokens,
                        const Documents &documents, const DocumentLists &lists, float *scores,
                        Stream stream);

} // namespace colbert_fast::cuda
