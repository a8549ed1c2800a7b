// The query pipeline over one index: probe, gather, approximate, score, select. An index is some
// centroids and parts, each a run of documents with lists of its own. All arrays belong to the
// caller and are only read; a Searcher can serve any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "search/byte_scores.h"
#include "search/collection.h"
#include "search/gathering.h"
#include "search/query_panels.h"
#include "search/refining.h"

namespace colbert_fast {

struct SearchParams {
  std::size_t k, nprobe, ndocs;
  // PLAID: stage 2 prunes centroids below the threshold, stage 3 keeps max(ndocs / 4, k).
  bool plaid;
  float threshold;
  // Score every document; nprobe, ndocs, plaid and threshold do not matter then.
  bool exhaustive;
};

class Searcher {
public:
  explicit Searcher(Collection collection);

  // `hits` receives at most k hits in descending score, ties by document. Memory is kept per thread
  // from query to query.
  void search(const float *query, std::size_t count, const SearchParams &params,
              const Selection &selection, std::vector<Hit> &hits) const;

  std::size_t n_docs() const { return collection_.n_docs(); }
  std::size_t dim() const { return collection_.dim; }

private:
  struct Arena;
  void search_plaid(Arena &arena, const SearchParams &params, const Selection &selection) const;
  void search_default(Arena &arena, const SearchParams &params, const Selection &selection) const;
  void scan(Arena &arena, std::size_t k, const Selection &selection) const;
  void score_centroids(Arena &arena, std::size_t nprobe) const;
  void approximate(Arena &arena, const std::uint8_t *keep) const;
  void screen(Arena &arena, const SearchParams &params) const;
  void approximate_i8(Arena &arena) const;
  void score_exact(Arena &arena) const;

  Collection collection_;
  ByteCentroids bytes_;
  Spread spread_;
};

} // namespace colbert_fast
