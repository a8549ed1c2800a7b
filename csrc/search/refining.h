// From candidates to the k best with exact scores, for codecs with residuals: int8 products choose
// which documents, and which of their tokens, are worth decoding.
#pragma once

#include <cstdint>
#include <vector>

#include "search/byte_scores.h"
#include "search/gathering.h"
#include "search/query_panels.h"

namespace colbert_fast {

// What int8 scores have to know of an index's tokens.
struct Spread {
  // Of inverse norms, relative to the product, a standard deviation.
  float norm_error = 0.0f;
  // The root mean square of the lengths of residuals.
  float residual = 0.0f;

  Spread() = default;
  explicit Spread(const Collection &collection); // looks at a sample
};

// One query's. Keeps its memory from query to query.
class Refining {
public:
  // All that int8 scores need besides the table `bytes`. Keeps references until the next call.
  void prepare(const Collection &collection, const Spread &spread, const ByteCentroids &centroids,
               const QueryPanels &query, ByteScores &bytes);

  // Int8 scores.
  void score_all(std::vector<Hit> &hits);
  // Int8 scores over the tokens that are likely to be a query token's best, in descending order of
  // the scores that hits have (which are approximate ones), as long as the next may be among the k
  // best. Drops the others. Where hits are few it leaves them as they are.
  void score_likely(std::vector<Hit> &hits, std::size_t k);
  // The hits that may be among the k best by those scores get exact ones. Drops the others. A score
  // is exact but for odds of one in a thousand million: only the tokens are decoded that int8
  // products leave a chance, a third or so.
  void score_exactly(std::vector<Hit> &hits, std::size_t k);

  std::size_t bytes() const {
    return marks_.capacity() + places_.capacity() * sizeof(std::size_t) +
           (rough_.capacity() + sorted_.capacity()) * sizeof(float) +
           marked_.capacity() * sizeof(Marked);
  }

private:
  struct Marked {
    Hit hit;
    std::size_t place;
  };

  float int8_error(const ByteCentroids &centroids, std::size_t lane) const;
  void score_group(Hit *hits, std::size_t n) const;
  template <class Score>
  void descend(std::vector<Hit> &hits, std::size_t k, std::size_t step, Score score);
  float contend(const Tokens &tokens, std::uint8_t *marks) const;
  void mark(std::vector<Hit> &hits, std::size_t begin, std::size_t end);
  void sort_marked(std::vector<Hit> &hits);
  void score_marked(std::vector<Hit> &hits, std::size_t begin, std::size_t end) const;
  float kth(const std::vector<Hit> &hits, std::size_t n, std::size_t k);

  const Collection *collection_;
  const QueryPanels *query_;
  Decoder decoder_;
  ByteTable table_;
  QueryI8 levels_;
  const float *ratio_; // of the levels
  // What the errors of int8 products let a token stay below the best, as in `contenders`, and a
  // document's score.
  AlignedVector<float> squares_;
  float relative_, slack_;
  // What a document's score may gain at least: by residuals, or by the errors of two int8 scores.
  float floor_;
  AlignedVector<std::uint8_t> reach_; // as in `likely_tokens`
  // Tokens that may hold exact maxima, as in `contenders`, and where those of each hit begin; of
  // the last of very many hits they are not kept.
  std::vector<std::uint8_t> marks_;
  std::vector<std::size_t> places_;
  std::vector<Marked> marked_;
  std::vector<float> rough_, sorted_;
};

} // namespace colbert_fast
