#include "search/refining.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "cpu/dispatch.h"
#include "search/score_each.h"
#include "thread_pool.h"

namespace colbert_fast {
namespace {

// A token is likely to be a query token's best if its centroid scores less than so many standard
// deviations of what residuals add below the best centroid of the document.
constexpr float kReach = 1.25f;
// Documents whose likely tokens are scored together: their tiles have no gaps, and what they need
// of memory is on its way while those of the next are chosen.
constexpr std::size_t kGroup = 8;
// Documents, after the first k, that get scores at once (an eighth of k, if that is more); then it
// is seen whether the next can still win.
constexpr std::size_t kLikelyStep = 128, kMarkedStep = 32;
// Likely tokens take half the time of all. So where there are no more documents than so many times
// those that get int8 scores over all anyway, it is as well to begin with these.
constexpr std::size_t kWorthRanking = 2;
// How many standard deviations above what its rough score makes one expect a document may score,
// and above its int8 score exactly.
constexpr float kRoughSlack = 4.0f, kInt8Slack = 6.0f;
// Marks that are kept, in bytes, and the place of those that are not.
constexpr std::size_t kMostMarks = std::size_t{16} << 20, kNowhere = ~std::size_t{0};
// So many runs of so many tokens are sampled.
constexpr std::size_t kSampledPlaces = 16, kSampledRun = 64;
// Of inverse norms as bytes: half a percent lies between two.
constexpr float kByteNormError = 0.0016f;

} // namespace

Spread::Spread(const Collection &c) {
  const Decoder decoder = c.codec->decoder();
  AlignedVector<float> rows(kSampledRun * c.dim), inverse(kSampledRun);
  double norms = 0.0, residuals = 0.0;
  const std::size_t every = std::max(kSampledRun, c.n_tokens() / kSampledPlaces);
  std::size_t sampled = 0, before = 0, next = 0; // tokens, of the collection
  bool stored = true;
  norm_error = kByteNormError;
  for (const Part &part : c.parts) {
    const auto n = static_cast<std::size_t>(part.offsets.back());
    for (; next < before + n; next += every) {
      const std::size_t first = next - before, count = std::min(kSampledRun, n - first);
      const Residuals tokens = Tokens(part, first, count).residuals(decoder);
      kernels().decompress(decoder, tokens, count, rows.data(), inverse.data());
      for (std::size_t i = 0; i < count; ++i) {
        const double length = 1.0 / inverse[i]; // before decoding made it 1
        norms += (length - 1.0) * (length - 1.0);
        const float *row = rows.data() + i * c.dim;
        const float *centroid = c.centroids + code_at(tokens.codes, i) * c.dim;
        for (std::size_t d = 0; d < c.dim; ++d) {
          const double added = length * row[d] - centroid[d];
          residuals += added * added;
        }
      }
      sampled += count;
    }
    before += n;
    stored = stored && part.inverse_norms != nullptr;
  }
  const double n = static_cast<double>(std::max<std::size_t>(sampled, 1));
  // Codecs that go without inverse norms take them for 1.
  if (!stored) norm_error = std::max(norm_error, static_cast<float>(std::sqrt(norms / n)));
  residual = static_cast<float>(std::sqrt(residuals / n));
}

// The standard deviation of int8 products of one query token around the exact ones: every rounded
// quantity is off by a uniform error, independent from token to token. To it comes that of norms.
float Refining::int8_error(const ByteCentroids &centroids, std::size_t lane) const {
  const float norm = query_->norms()[lane], table = table_.step[lane];
  const float centroid = norm * centroids.largest_scale(), unit = query_->units()[lane];
  const float level = norm * 2 * collection_->codec->level_error();
  const auto square = [](double x) { return x * x; }; // of 1e-30 as well
  const double squares = square(unit) + square(table) + square(centroid) + square(level);
  return static_cast<float>(std::sqrt(squares / 12));
}

void Refining::prepare(const Collection &collection, const Spread &spread,
                       const ByteCentroids &centroids, const QueryPanels &query,
                       ByteScores &bytes) {
  collection_ = &collection;
  query_ = &query;
  decoder_ = collection.codec->decoder();
  table_ = bytes.table();
  levels_.pack(query, *collection.codec);
  ratio_ = bytes.ratio(query, collection.codec->step());
  squares_.assign(query.lanes(), 0.0f);
  reach_.assign(table_.stride, 0);
  // Of the difference of two products, the best and the exact best one, either of which is off.
  const float difference = kInt8Slack * std::sqrt(2.0f);
  relative_ = difference * spread.norm_error;
  // A residual of this length in any direction.
  const float added = spread.residual / std::sqrt(static_cast<float>(collection.dim));
  double variance = 0.0, rough_variance = 0.0;
  for (std::size_t i = 0; i < query.count(); ++i) {
    const double error = int8_error(centroids, i), length = query.norms()[i];
    // No product is larger than its query token.
    const double norm = spread.norm_error * length;
    variance += error * error + norm * norm;
    rough_variance += added * length * added * length;
    if (!(table_.step[i] > 0.0f)) continue;
    squares_[i] = static_cast<float>(std::pow(difference * error / table_.step[i], 2.0));
    const double steps = 1.5 + kReach * added * length / table_.step[i]; // one, and rounded
    reach_[i] = static_cast<std::uint8_t>(std::min(255.0, steps));
  }
  slack_ = kInt8Slack * static_cast<float>(std::sqrt(variance));
  floor_ = kRoughSlack * static_cast<float>(std::sqrt(rough_variance));
}

void Refining::score_all(std::vector<Hit> &hits) {
  floor_ = std::sqrt(2.0f) * slack_;
  score_each(*collection_, hits, 0, hits.size(), 32, [&](const Tokens &tokens, std::size_t) {
    const Residuals document = tokens.residuals(decoder_);
    float scratch[kLanes], score;
    kernels().residual_maxsim_i8(levels_.view(), ratio_, table_, decoder_, &document, nullptr,
                                 tokens.count, 1, scratch, &score);
    return score;
  });
}

// Of n <= kGroup hits.
void Refining::score_group(Hit *hits, std::size_t n) const {
  const Kernels &cpu = kernels();
  thread_local AlignedVector<std::int32_t> codes[kGroup];
  thread_local std::vector<std::uint8_t> bounds;
  thread_local std::vector<Chosen> likely;
  bounds.resize(table_.stride);
  Residuals documents[kGroup];
  std::size_t count = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Tokens tokens = collection_->tokens_of(static_cast<std::size_t>(hits[i].document));
    const Residuals document = tokens.residuals(decoder_, tokens.codes(codes[i]));
    documents[i] = document;
    if (likely.size() < count + tokens.count) likely.resize(count + tokens.count);
    Chosen *const first = likely.data() + count;
    std::size_t found = cpu.likely_tokens(table_, reach_.data(), document.codes, tokens.count,
                                          static_cast<std::int32_t>(i), bounds.data(), first);
    if (found == 0) { // a query of zeros, or a document as far from it as can be
      *first = {static_cast<std::int32_t>(i), 0};
      found = 1;
    }
    count += found;
#if !defined(_MSC_VER)
    // Into L2: there are more lines than L1 can wait for at once.
    for (std::size_t j = 0; j < found; ++j) {
      const auto token = static_cast<std::size_t>(first[j].token);
      const std::uint8_t *row = document.packed + token * decoder_.packed_dim;
      __builtin_prefetch(row, 0, 2);
      __builtin_prefetch(row + decoder_.packed_dim - 1, 0, 2);
    }
    for (std::size_t j = 0; j < tokens.count + 64; j += 64) {
      const std::size_t at = std::min(j, tokens.count - 1);
      if (document.scales != nullptr) __builtin_prefetch(document.scales + at, 0, 2);
      if (document.inverse_norms != nullptr) __builtin_prefetch(document.inverse_norms + at, 0, 2);
    }
#endif
  }
  float scratch[kGroup * kLanes], scores[kGroup];
  cpu.residual_maxsim_i8(levels_.view(), ratio_, table_, decoder_, documents, likely.data(), count,
                         n, scratch, scores);
  for (std::size_t i = 0; i < n; ++i) hits[i].score = ordered(scores[i]);
}

void Refining::score_likely(std::vector<Hit> &hits, std::size_t k) {
  if (hits.size() <= kWorthRanking * (k + kMarkedStep)) return;
  descend(hits, k, kLikelyStep, [&](std::size_t begin, std::size_t end) {
    parallel_for(end - begin, kGroup, [&](std::size_t first, std::size_t last) {
      score_group(hits.data() + begin + first, last - first);
    });
  });
  floor_ = std::sqrt(2.0f) * slack_;
}

// The k-th best score of the first n hits; -inf if they are fewer.
float Refining::kth(const std::vector<Hit> &hits, std::size_t n, std::size_t k) {
  if (n < k) return -std::numeric_limits<float>::infinity();
  sorted_.resize(n);
  for (std::size_t i = 0; i < n; ++i) sorted_[i] = hits[i].score;
  const auto at = sorted_.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(sorted_.begin(), at, sorted_.end(), std::greater<float>());
  return *at;
}

// Hits get new scores, score(begin, end) a step at a time, from the best on by those they have, as
// long as the next can still be among the k best: what new scores add varies little from document
// to document. It may be `floor_` more than expected whatever the others say: they may be alike.
template <class Score>
void Refining::descend(std::vector<Hit> &hits, std::size_t k, std::size_t step, Score score) {
  std::sort(hits.begin(), hits.end(), better);
  rough_.resize(hits.size());
  for (std::size_t i = 0; i < hits.size(); ++i) rough_[i] = hits[i].score;
  step = std::max(step, k / 8); // kth() looks at all
  std::size_t end = std::min(k, hits.size());
  for (std::size_t begin = 0; begin < hits.size(); begin = end) {
    end = std::min(end + step, hits.size());
    score(begin, end);
    if (end == hits.size()) return;
    double sum = 0.0, squares = 0.0;
    for (std::size_t i = begin; i < end; ++i) {
      const double added = double{hits[i].score} - double{rough_[i]};
      sum += added, squares += added * added;
    }
    const double n = static_cast<double>(end - begin), mean = sum / n;
    const double deviation = std::sqrt(std::max(0.0, squares / n - mean * mean));
    const double margin = std::max(kRoughSlack * deviation, double{floor_});
    if (rough_[end] + mean + margin < kth(hits, end, k)) hits.resize(end);
  }
}

// The int8 score of a document, and which tokens may hold its exact maxima.
float Refining::contend(const Tokens &tokens, std::uint8_t *marks) const {
  thread_local AlignedVector<float> cells;
  cells.resize(tokens.count * query_->lanes());
  return kernels().contenders(levels_.view(), ratio_, table_, decoder_, tokens.residuals(decoder_),
                              tokens.count, squares_.data(), relative_, cells.data(), marks);
}

// Scores and marks of hits [begin, end).
void Refining::mark(std::vector<Hit> &hits, std::size_t begin, std::size_t end) {
  const std::size_t n_panels = query_->f32().n_panels;
  places_.resize(end);
  std::size_t kept = begin == 0 ? 0 : marks_.size();
  for (std::size_t i = begin; i < end; ++i) {
    const auto document = static_cast<std::size_t>(hits[i].document);
    const std::size_t bytes = n_panels * collection_->tokens_of(document).count;
    places_[i] = kept + bytes <= kMostMarks ? kept : kNowhere;
    if (places_[i] != kNowhere) kept += bytes;
  }
  marks_.resize(kept);
  score_each(*collection_, hits, begin, end, 4, [&](const Tokens &tokens, std::size_t i) {
    thread_local std::vector<std::uint8_t> passing;
    if (places_[i] != kNowhere) return contend(tokens, marks_.data() + places_[i]);
    passing.resize(n_panels * tokens.count);
    return contend(tokens, passing.data());
  });
}

// Descending hits, and their places.
void Refining::sort_marked(std::vector<Hit> &hits) {
  marked_.resize(hits.size());
  for (std::size_t i = 0; i < hits.size(); ++i) marked_[i] = {hits[i], places_[i]};
  std::sort(marked_.begin(), marked_.end(),
            [](const Marked &a, const Marked &b) { return better(a.hit, b.hit); });
  for (std::size_t i = 0; i < hits.size(); ++i) {
    hits[i] = marked_[i].hit;
    places_[i] = marked_[i].place;
  }
}

void Refining::score_marked(std::vector<Hit> &hits, std::size_t begin, std::size_t end) const {
  const Panels query = query_->f32();
  score_each(*collection_, hits, begin, end, 8, [&](const Tokens &tokens, std::size_t i) {
    thread_local std::vector<std::uint8_t> again;
    thread_local AlignedVector<float> rows;
    thread_local std::vector<std::int32_t> which;
    const std::uint8_t *marks;
    if (places_[i] != kNowhere) {
      marks = marks_.data() + places_[i];
    } else {
      again.resize(query.n_panels * tokens.count);
      contend(tokens, again.data());
      marks = again.data();
    }
    rows.resize(marked_scratch(tokens.count, query.dim));
    which.resize(tokens.count);
    return kernels().residual_maxsim_marked(query, decoder_, tokens.residuals(decoder_),
                                            tokens.count, marks, rows.data(), which.data());
  });
}

void Refining::score_exactly(std::vector<Hit> &hits, std::size_t k) {
  descend(hits, k, kMarkedStep,
          [&](std::size_t begin, std::size_t end) { mark(hits, begin, end); });
  sort_marked(hits);
  // In descending int8 order, until the next can hardly reach the k-th best.
  std::size_t begin = 0, end = std::min(k, hits.size());
  while (begin < end) {
    score_marked(hits, begin, end);
    const float kth_best = kth(hits, end, k);
    begin = end;
    while (end < hits.size() && end < begin + kMarkedStep && hits[end].score + slack_ >= kth_best)
      ++end;
  }
  hits.resize(end);
}

} // namespace colbert_fast
