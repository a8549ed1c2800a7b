// A whole search on a stream, for a batch of queries over one index. Nothing is allocated, nothing
// waits, and grids depend on shapes alone: a search can be captured as a CUDA graph.
//
// It is the CPU's default mode (search/searcher.cpp) with these differences. Centroids are probed
// by their bytes, of equal ones the lowest. Every candidate gets its approximate score, every one
// of the best ndocs its int8 score over all tokens, and `rescored` of those are scored exactly:
// fixed numbers, where the CPU scores likely tokens first and stops when what is left can hardly be
// among the k best.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launchers.h"
#include "search/lists.h"

namespace colbert_fast::cuda {

// The arrays of an index on the device, or residuals and embeddings in pinned memory of the host;
// `decoder` has its centroids on the device and its tables on the host.
struct SearchIndex {
  std::size_t n_centroids, dim;
  // Centroids as bytes, of quantise_centroids; not read in exhaustive searches.
  const std::uint8_t *rows;
  const float *scale, *longest;
  Documents documents; // all of them, from 0 on
  Lists lists;         // offsets rise within the data, which kListPadding bytes follow
  // Residuals, or whole vectors as float16 with codes.
  StoredTokens tokens;
  Decoder decoder;
  float low, level_step; // CodecTables
  const std::uint16_t *embeddings;

  bool has_int8() const { return embeddings == nullptr && decoder.nbits != 8; }
};
constexpr std::size_t kListPadding = 8;

// The same for all queries of a batch.
struct SearchShape {
  std::size_t n_queries;
  std::size_t nq; // tokens of each, a multiple of 32: shorter queries end in zeros
  std::size_t k, nprobe, ndocs;
  enum Kind {
    filter,    // candidates from the lists, the best ndocs of them by their approximate scores
    scan,      // int8 scores of all documents that may be found; for indexes that has_int8
    exhaustive // their exact scores
  } kind;

  // Documents that get an exact score after an int8 one.
  std::size_t rescored() const {
    const std::size_t n = 4 * k < 128 ? 128 : 4 * k;
    return kind == filter && n > ndocs ? ndocs : n;
  }
};

// Which documents may be found.
struct SearchSelection {
  const std::uint8_t *allowed; // null, or a byte per document
  // Null, or the only ones for each query, which scans them: those of query b are given_starts[b]
  // to given_starts[b + 1] - 1.
  const std::int64_t *given, *given_starts;
};

// Bytes of device memory that such a search works in.
std::size_t search_workspace(const SearchIndex &index, const SearchShape &shape);

// ids and scores (n_queries, k), best first, filled up with -1 and -inf; 1 <= k <= kMaxTop, 1 <=
// nprobe <= n_centroids. `damaged`, one number that the caller has set to 0, becomes 1 + a list
// that was met and is corrupt. `workspace` starts at a multiple of 16.
void search(const SearchIndex &index, const SearchShape &shape, const float *queries,
            const SearchSelection &selection, void *workspace, std::int64_t *ids, float *scores,
            std::int32_t *damaged, Stream stream);

} // namespace colbert_fast::cuda
