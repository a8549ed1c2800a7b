// The stages of a search, as launchers. Byte tables are those of byte_scores for a batch that is
// packed as one query: n_tokens = n_queries * nq columns.
#pragma once

#include "cuda/device.cuh"
#include "cuda/search.h"

namespace colbert_fast::cuda {

// A list of documents for each query, ascending, with their scores: those of query b from
// b * stride on, counts[b] of them.
struct Hits {
  std::int32_t *documents;
  float *scores;
  std::int32_t *counts;
  std::size_t stride;

  DocumentLists lists() const { return {documents, counts, stride}; }
};

// Where a token's bytes are cut: all above, and so many of those that equal it.
struct Cut {
  std::uint32_t byte, equal, found;
};

// cells (n_tokens, nprobe) = each token's centroids with the largest bytes, of equal ones the
// lowest, in any order; -1 for tokens whose step is 0. `counts`: probe_counts, `cuts`: n_tokens.
std::size_t probe_counts(std::size_t n_centroids, std::size_t n_tokens);
void probe(const std::uint8_t *table, const float *step, std::size_t n_centroids,
           std::size_t n_tokens, std::size_t nprobe, std::uint32_t *counts, Cut *cuts,
           std::int32_t *cells, Stream stream);

// Bitmaps of n documents or lists: words_of(n) to a query.
__host__ __device__ constexpr std::size_t words_of(std::size_t n) { return (n + 31) / 32; }
// All bits 0, or all 1.
void fill_bitmaps(std::uint32_t *bits, std::size_t n_words, bool value, Stream stream);
// Set the documents that the lists of each query's cells hold, in `seen`, and those lists in
// `probed`, which the caller has cleared: of equal cells one is read. A list that is not what it
// claims to be, as read_list tells, ends where that shows.
void mark_lists(const Lists &lists, std::size_t n_docs, const std::int32_t *cells,
                std::size_t n_queries, std::size_t cells_per_query, std::uint32_t *probed,
                std::uint32_t *seen, std::int32_t *damaged, Stream stream);
void mark_given(const SearchSelection &selection, std::size_t n_docs, std::size_t n_queries,
                std::uint32_t *seen, Stream stream);
// The documents that are set, allowed and have tokens; others are no longer set. hits.stride is
// their number, `counts` has hit_chunks(n_docs) for each query.
std::size_t hit_chunks(std::size_t n_docs);
void collect_hits(std::uint32_t *seen, const Documents &documents, const std::uint8_t *allowed,
                  std::size_t n_queries, std::uint32_t *counts, const Hits &hits, Stream stream);

// The scores of approximate_i8, from the codes alone; the same bits.
void approximate(const SearchIndex &index, const std::uint8_t *table, const float *step,
                 std::size_t n_queries, std::size_t nq, const Hits &hits, Stream stream);
// Exact scores, of the CPU's residual_maxsim or, with embeddings, maxsim; the same bits.
void score_exact(const SearchIndex &index, const float *queries, std::size_t n_queries,
                 std::size_t nq, const Hits &hits, Stream stream);

// The best kept.stride of the hits, without scores.
void keep_best(const Hits &hits, std::size_t n_queries, const Hits &kept, Stream stream);
// The best k, best first, filled up with -1 and -inf; NaN counts, and comes out, as -inf.
void top_hits(const Hits &hits, std::size_t n_queries, std::size_t k, std::int64_t *ids,
              float *scores, Stream stream);

} // namespace colbert_fast::cuda
