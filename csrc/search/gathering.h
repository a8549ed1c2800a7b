// Which documents a search scores at all: those in the lists of the best cells, those that are
// given, or all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "search/collection.h"

namespace colbert_fast {

struct Hit {
  float score;
  std::int32_t document;
};

// Which documents a search may find.
struct Selection {
  const std::uint8_t *allowed; // null, or a byte per document
  std::size_t n_allowed;
  // Null, or the only ones to score, in any order. Nothing is probed then.
  const std::int64_t *candidates;
  std::size_t n_candidates;

  bool holds(std::size_t document) const { return allowed == nullptr || allowed[document] != 0; }
};

inline bool better(const Hit &a, const Hit &b) {
  return a.score != b.score ? a.score > b.score : a.document < b.document;
}

// The best n hits, in no particular order.
inline void keep_best(std::vector<Hit> &hits, std::size_t n) {
  if (hits.size() <= n) return;
  std::nth_element(hits.begin(), hits.begin() + static_cast<std::ptrdiff_t>(n), hits.end(), better);
  hits.resize(n);
}

// The documents with tokens that may be found, or the candidates among them, ascending. Returns how
// many tokens they have.
std::size_t all_documents(const Collection &collection, const Selection &selection,
                          std::vector<Hit> &hits);

// A damaged list may name documents without tokens.
void drop_empty(const Collection &collection, std::vector<Hit> &hits);

// Keeps its memory from query to query.
class Gathering {
public:
  // The documents that the lists of `cells` hold, ascending; sorts the cells.
  void gather(const Collection &collection, std::vector<std::int32_t> &cells,
              const Selection &selection, std::vector<Hit> &hits);

  // Of the hits that were gathered last, all of them in their order, keep the n best by the cells
  // alone in whose lists they were found: the approximate score of a document whose other tokens
  // score what `usual` has for each lane. It needs no codes, which of so many documents would come
  // from memory.
  void screen(const ByteTable &table, const std::uint8_t *usual, std::size_t n,
              std::vector<Hit> &hits);

  std::size_t bytes() const;

private:
  struct List {
    std::size_t cell;
    std::size_t begin, end; // in postings_
  };

  void mark(const Collection &collection, std::size_t index, const std::vector<std::int32_t> &cells,
            const Selection &selection);
  void keep_best_in_order(std::vector<Hit> &hits, std::size_t n);
  void score(const ByteTable &table, const std::uint8_t *usual, Hit *hits, std::size_t place,
             std::size_t n) const;

  std::vector<std::uint64_t> seen_;
  // Documents list after list, ascending in each.
  std::vector<std::int32_t> postings_;
  std::vector<List> lists_;
  std::vector<float> scores_;
  std::vector<std::int32_t> places_; // of a document among the hits; stale for others
};

} // namespace colbert_fast
