#include "search/searcher.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "cpu/dispatch.h"
#include "search/probe.h"
#include "thread_pool.h"

namespace colbert_fast {
namespace {

// What a thread may keep for its next query.
constexpr std::size_t kKeptBytes = std::size_t{64} << 20;

// More candidates than so many times ndocs are screened down to so many.
constexpr std::size_t kScreenFrom = 9, kScreenTo = 6;
// Documents that the int8 stage takes at once; then it looks whether the next can still win.
constexpr std::size_t kStep = 128;
// How many standard deviations above what its approximate score makes one expect a document may
// score in int8, and above its int8 score exactly.
constexpr float kApproximateSlack = 4.0f, kInt8Slack = 6.0f;
// Hits whose codes are fetched ahead, and offsets twice as far: of many documents the next one
// gathered lies pages away.
constexpr std::size_t kAhead = 8;
// A centroid's score costs a third of what an int8 score spares a token of its exact one.
constexpr std::size_t kCentroidsPerToken = 3;
// Of each part, about so many runs of so many tokens tell how far lengths are from 1.
constexpr std::size_t kSampledPlaces = 16, kSampledRun = 64;

// The root mean square of what decoded tokens' lengths differ from 1 before they are normalised.
float norm_error_of(const Collection &c) {
  const Decoder decoder = c.codec->decoder();
  AlignedVector<float> rows(kSampledRun * c.dim), inverse(kSampledRun);
  double squares = 0.0;
  std::size_t sampled = 0;
  for (const Part &part : c.parts) {
    const auto n = static_cast<std::size_t>(part.offsets.back());
    const std::size_t every = std::max(kSampledRun, n / kSampledPlaces);
    for (std::size_t first = 0; first < n; first += every) {
      const std::size_t count = std::min(kSampledRun, n - first);
      kernels().decompress(decoder, Tokens(part, first, count).residuals(decoder), count,
                           rows.data(), inverse.data());
      for (std::size_t i = 0; i < count; ++i) {
        const double off = 1.0 / inverse[i] - 1.0;
        squares += off * off;
      }
      sampled += count;
    }
  }
  return sampled == 0 ? 0.0f
                      : static_cast<float>(std::sqrt(squares / static_cast<double>(sampled)));
}

} // namespace

struct Searcher::Arena {
  QueryPanels query;
  QueryI8 levels;
  ByteScores bytes;
  AlignedVector<float> scores, init;
  std::vector<float> rough, sorted;
  // What the errors of int8 products let a token stay below the best, as in `contenders`.
  AlignedVector<float> squares;
  float relative;
  std::vector<std::int32_t> cells;
  std::vector<std::uint8_t> keep;
  Gathering gathering;
  std::vector<Hit> hits;

  std::size_t size() const {
    return scores.capacity() * sizeof(float) + hits.capacity() * sizeof(Hit) + bytes.bytes() +
           gathering.bytes();
  }
  // The k-th best score of the first n hits; -inf if they are fewer.
  float kth(std::size_t n, std::size_t k) {
    if (n < k) return -std::numeric_limits<float>::infinity();
    sorted.resize(n);
    for (std::size_t i = 0; i < n; ++i) sorted[i] = hits[i].score;
    const auto at = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(sorted.begin(), at, sorted.end(), std::greater<float>());
    return *at;
  }
};

Searcher::Searcher(Collection collection)
    : collection_(std::move(collection)),
      bytes_(collection_.centroids, collection_.n_centroids, collection_.dim) {
  const bool stored = std::all_of(collection_.parts.begin(), collection_.parts.end(),
                                  [](const Part &part) { return part.inverse_norms != nullptr; });
  if (collection_.codec != nullptr && !stored)
    norm_error_ = std::max(norm_error_, norm_error_of(collection_));
}

// Float scores of all centroids, and the best of each query token.
void Searcher::score_centroids(Arena &arena, std::size_t nprobe) const {
  const Collection &c = collection_;
  const Kernels &cpu = kernels();
  const std::size_t lanes = arena.query.lanes();
  arena.scores.resize(c.n_centroids * lanes);
  parallel_for(c.n_centroids, 256, [&](std::size_t begin, std::size_t end) {
    cpu.scores(arena.query.f32(), c.centroids + begin * c.dim, end - begin,
               arena.scores.data() + begin * lanes);
  });
  probe(arena.scores.data(), c.n_centroids, lanes, arena.query.count(), nprobe, arena.cells);
}

// hits[begin, end) get score(tokens) each.
template <class Score>
void Searcher::score_each(Arena &arena, std::size_t begin, std::size_t end, std::size_t grain,
                          Score score) const {
  parallel_for(end - begin, grain, [&](std::size_t first, std::size_t last) {
    const Part *part = collection_.parts.data(); // where hits are many they ascend
    for (std::size_t i = begin + first; i < begin + last; ++i) {
      Hit &hit = arena.hits[i];
      const auto document = static_cast<std::size_t>(hit.document);
      if (!part->holds(document)) part = &collection_.part_of(document);
#if !defined(_MSC_VER)
      // Written out: gcc takes a function that only prefetches for one without effect.
      const auto later =
          static_cast<std::size_t>(arena.hits[std::min(i + 2 * kAhead, end - 1)].document);
      if (part->holds(later)) __builtin_prefetch(part->offsets.data() + (later - part->base));
      const auto soon =
          static_cast<std::size_t>(arena.hits[std::min(i + kAhead, end - 1)].document);
      if (part->holds(soon)) {
        const Tokens tokens(*part, soon);
        const auto bits = static_cast<std::size_t>(part->codes.bits);
        const std::size_t end_byte = (tokens.first + tokens.count) * bits / 8;
        for (std::size_t at = tokens.first * bits / 8; at < end_byte; at += 64)
          __builtin_prefetch(part->codes.data + at);
      }
#endif
      const float value = score(Tokens(*part, document));
      // NaN, from a damaged file, would break the order that selection needs.
      hit.score = value == value ? value : -std::numeric_limits<float>::infinity();
    }
  });
}

void Searcher::approximate(Arena &arena, const std::uint8_t *keep) const {
  const Kernels &cpu = kernels();
  const std::size_t lanes = arena.query.lanes();
  arena.init.assign(lanes, 0.0f);
  std::fill_n(arena.init.begin(), arena.query.count(), kNothingMatched);
  score_each(arena, 0, arena.hits.size(), 256, [&](const Tokens &tokens) {
    return cpu.approximate(arena.scores.data(), lanes, tokens.codes(), tokens.count, keep,
                           arena.init.data());
  });
}

void Searcher::approximate_i8(Arena &arena) const {
  const Kernels &cpu = kernels();
  const ByteTable table = arena.bytes.table();
  score_each(arena, 0, arena.hits.size(), 256, [&](const Tokens &tokens) {
    return cpu.approximate_i8(table, tokens.codes(), tokens.count);
  });
}

// Keep the hits that are best by nothing but the lists they were found in. A query token none of
// whose lists has the document is taken to score at least what the best of as many random centroids
// does as a document has tokens on average, but not above, roughly, the worst centroid it probes.
void Searcher::screen(Arena &arena, const SearchParams &params) const {
  const Collection &c = collection_;
  const std::size_t rank = c.n_centroids * c.n_docs() / (c.n_tokens() + c.n_docs());
  const std::uint8_t *usual = arena.bytes.quantile(std::max(rank, params.nprobe));
  arena.gathering.screen(arena.bytes.table(), usual, kScreenTo * params.ndocs, arena.hits);
}

// Int8 scores, of `all` hits or, where they lie in descending approximate order, of as many as can
// still be among the k best: what residuals add to an approximate score varies little from document
// to document, so far below the k-th best score nothing is left to be found. Hits that were not
// scored are dropped.
void Searcher::score_int8(Arena &arena, std::size_t k, bool all) const {
  const Kernels &cpu = kernels();
  const CodecTables &codec = *collection_.codec;
  const Decoder decoder = codec.decoder();
  const ByteTable table = arena.bytes.table();
  arena.levels.pack(arena.query, codec);
  const float *ratio = arena.bytes.ratio(arena.query, codec.step());
  const auto score = [&](const Tokens &tokens) {
    return cpu.residual_maxsim_i8(arena.levels.view(), ratio, table, decoder,
                                  tokens.residuals(decoder), tokens.count);
  };
  if (all) return score_each(arena, 0, arena.hits.size(), 32, score);
  arena.rough.resize(arena.hits.size());
  for (std::size_t i = 0; i < arena.hits.size(); ++i) arena.rough[i] = arena.hits[i].score;
  for (std::size_t begin = 0; begin < arena.hits.size(); begin += kStep) {
    const std::size_t end = std::min(begin + kStep, arena.hits.size());
    score_each(arena, begin, end, 16, score);
    float sum = 0.0f, squares = 0.0f;
    for (std::size_t i = begin; i < end; ++i) {
      const float added = arena.hits[i].score - arena.rough[i];
      sum += added, squares += added * added;
    }
    const float n = static_cast<float>(end - begin), mean = sum / n;
    const float deviation = std::sqrt(std::max(0.0f, squares / n - mean * mean));
    if (end < arena.hits.size() &&
        arena.rough[end] + mean + kApproximateSlack * deviation < arena.kth(end, k)) {
      arena.hits.resize(end);
      return;
    }
  }
}

// The standard deviation of int8 products of one query token around the exact ones: every rounded
// quantity is off by a uniform error, independent from token to token. To it comes norm_error_.
float Searcher::int8_error(const Arena &arena, std::size_t lane) const {
  const float norm = arena.query.norms()[lane], table = arena.bytes.table().step[lane];
  const float centroid = norm * bytes_.largest_scale(), unit = arena.query.units()[lane];
  const float level = norm * 2 * collection_.codec->level_error();
  return std::sqrt((unit * unit + table * table + centroid * centroid + level * level) / 12);
}

void Searcher::score_exact(Arena &arena) const {
  const Kernels &cpu = kernels();
  const Panels query = arena.query.f32();
  if (collection_.codec == nullptr) {
    score_each(arena, 0, arena.hits.size(), 16, [&](const Tokens &tokens) {
      return cpu.maxsim(query, tokens.part.embeddings + tokens.first * collection_.dim, DType::f16,
                        tokens.count, nullptr);
    });
    return;
  }
  const Decoder decoder = collection_.codec->decoder();
  score_each(arena, 0, arena.hits.size(), 8, [&](const Tokens &tokens) {
    return cpu.residual_maxsim(query, decoder, tokens.residuals(decoder), tokens.count);
  });
}

// An exact score, but for odds of one in a thousand million: only the tokens are decoded that int8
// products leave a chance, a third or so.
float Searcher::score_contenders(const Arena &arena, const Decoder &decoder, const float *ratio,
                                 const Tokens &tokens) const {
  thread_local AlignedVector<float> cells, rows;
  thread_local std::vector<std::uint8_t> marks;
  thread_local std::vector<std::int32_t> which;
  const Panels query = arena.query.f32();
  const Residuals residuals = tokens.residuals(decoder);
  cells.resize(tokens.count * arena.query.lanes());
  marks.resize(tokens.count * query.n_panels);
  rows.resize(marked_scratch(tokens.count, query.dim));
  which.resize(tokens.count);
  kernels().contenders(arena.levels.view(), ratio, arena.bytes.table(), decoder, residuals,
                       tokens.count, arena.squares.data(), arena.relative, cells.data(),
                       marks.data());
  return kernels().residual_maxsim_marked(query, decoder, residuals, tokens.count, marks.data(),
                                          rows.data(), which.data());
}

// Exact scores in descending int8 order, until what is left can hardly reach the k-th best: its
// int8 score is kInt8Slack standard deviations below.
void Searcher::score_exact_while(Arena &arena, std::size_t k) const {
  std::vector<Hit> &hits = arena.hits;
  const Decoder decoder = collection_.codec->decoder();
  const float *ratio = arena.bytes.ratio(arena.query, collection_.codec->step());
  arena.squares.assign(arena.query.lanes(), 0.0f);
  // Of the difference of two products, the best and the exact best one, either of which is off.
  const float difference = kInt8Slack * std::sqrt(2.0f), relative = norm_error_;
  arena.relative = difference * relative;
  float variance = 0.0f;
  for (std::size_t i = 0; i < arena.query.count(); ++i) {
    const float error = int8_error(arena, i), step = arena.bytes.table().step[i];
    // No product is larger than its query token.
    const float norm = relative * arena.query.norms()[i];
    variance += error * error + norm * norm;
    if (step > 0.0f) arena.squares[i] = std::pow(difference * error / step, 2.0f);
  }
  const float slack = kInt8Slack * std::sqrt(variance);
  std::sort(hits.begin(), hits.end(), better);
  std::size_t begin = 0, end = std::min(k, hits.size());
  while (begin < end) {
    score_each(arena, begin, end, 8, [&](const Tokens &tokens) {
      return score_contenders(arena, decoder, ratio, tokens);
    });
    const float kth = arena.kth(end, k);
    begin = end;
    while (end < hits.size() && end < begin + kStep && hits[end].score + slack >= kth) ++end;
  }
  hits.resize(end);
}

void Searcher::search_plaid(Arena &arena, const SearchParams &params,
                            const Selection &selection) const {
  score_centroids(arena, std::min(params.nprobe, collection_.n_centroids));
  arena.gathering.gather(collection_, arena.cells, selection, arena.hits);
  const std::size_t lanes = arena.query.lanes();
  arena.keep.resize(collection_.n_centroids);
  for (std::size_t c = 0; c < collection_.n_centroids; ++c) {
    const float *row = arena.scores.data() + c * lanes;
    arena.keep[c] = *std::max_element(row, row + arena.query.count()) >= params.threshold;
  }
  approximate(arena, arena.keep.data());
  keep_best(arena.hits, params.ndocs);
  approximate(arena, nullptr);
  keep_best(arena.hits, std::max(params.ndocs / 4, params.k));
  score_exact(arena);
}

void Searcher::search_default(Arena &arena, const SearchParams &params,
                              const Selection &selection) const {
  // Finding the ndocs best costs about as much as scoring half as many.
  if (selection.candidates != nullptr || selection.n_allowed <= params.ndocs + params.ndocs / 2)
    return scan(arena, params.k, selection);
  const std::size_t nprobe = std::min(params.nprobe, collection_.n_centroids);
  const bool few = nprobe <= kMostProbes;
  arena.bytes.compute(bytes_, arena.query, few ? nprobe : 0, arena.cells);
  if (!few) score_centroids(arena, nprobe);
  arena.gathering.gather(collection_, arena.cells, selection, arena.hits);
  if (arena.hits.size() > kScreenFrom * params.ndocs) screen(arena, params);
  approximate_i8(arena);
  keep_best(arena.hits, params.ndocs);
  std::sort(arena.hits.begin(), arena.hits.end(), better);
  if (collection_.codec == nullptr) return score_exact(arena);
  score_int8(arena, params.k, false);
  score_exact_while(arena, params.k);
}

// Int8 scores of all documents choose those that get an exact one, where that is worth the scores
// of all centroids.
void Searcher::scan(Arena &arena, std::size_t k, const Selection &selection) const {
  const std::size_t tokens = all_documents(collection_, selection, arena.hits);
  if (collection_.codec == nullptr || kCentroidsPerToken * tokens <= collection_.n_centroids)
    return score_exact(arena);
  arena.bytes.compute(bytes_, arena.query, 0, arena.cells);
  score_int8(arena, k, true);
  score_exact_while(arena, k);
}

void Searcher::search(const float *query, std::size_t count, const SearchParams &params,
                      const Selection &selection, std::vector<Hit> &hits) const {
  hits.clear();
  if (selection.n_allowed == 0) return;
  thread_local Arena arena;
  arena.query.pack(query, count, collection_.dim);
  if (params.exhaustive) {
    all_documents(collection_, selection, arena.hits);
    score_exact(arena);
  } else if (params.plaid) {
    search_plaid(arena, params, selection);
  } else {
    search_default(arena, params, selection);
  }
  keep_best(arena.hits, params.k);
  std::sort(arena.hits.begin(), arena.hits.end(), better);
  hits = arena.hits;
  if (arena.size() > kKeptBytes) arena = Arena();
}

} // namespace colbert_fast
