// The query pipeline over one index: probe, gather, approximate, score, select. All arrays belong
// to the caller and are only read; a Searcher can serve any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "search/codec_tables.h"
#include "search/lists.h"
#include "search/query_panels.h"

namespace colbert_fast {

struct SearchParams {
  std::size_t k, nprobe, ndocs;
  // PLAID: stage 2 prunes centroids below the threshold, stage 3 keeps max(ndocs / 4, k).
  bool plaid;
  float threshold;
  // Score every document; nprobe, ndocs, plaid and threshold do not matter then.
  bool exhaustive;
};

struct Hit {
  float score;
  std::int32_t document;
};

struct Collection {
  const float *centroids;
  std::size_t n_centroids, dim;
  Codes codes;
  std::vector<std::int64_t> offsets; // of each document's first token, and one past the last
  Lists lists;
  // Either residuals with their codec, or whole vectors.
  const std::uint8_t *residuals, *inverse_norms;
  const CodecTables *codec;
  const std::uint16_t *embeddings; // float16

  std::size_t n_docs() const { return offsets.size() - 1; }
};

class Searcher {
public:
  explicit Searcher(Collection collection) : collection_(std::move(collection)) {}

  // `hits` receives at most k hits in descending score, ties by document. `allowed` (null, or a
  // byte per document) restricts the search. Memory is kept per thread from query to query.
  void search(const float *query, std::size_t count, const SearchParams &params,
              const std::uint8_t *allowed, std::vector<Hit> &hits) const;

  std::size_t n_docs() const { return collection_.n_docs(); }
  std::size_t dim() const { return collection_.dim; }

private:
  struct Arena;
  void score_centroids(Arena &arena, std::size_t nprobe) const;
  void gather(Arena &arena, std::size_t nprobe, const std::uint8_t *allowed) const;
  void all_documents(Arena &arena, const std::uint8_t *allowed) const;
  void approximate(Arena &arena, const std::uint8_t *keep) const;
  void score_int8(Arena &arena) const;
  void score_exact(Arena &arena) const;
  template <class Score> void score_each(Arena &arena, std::size_t grain, Score score) const;

  Collection collection_;
};

} // namespace colbert_fast
