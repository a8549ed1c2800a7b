#include "search/searcher.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "search/probe.h"
#include "search/score_each.h"
#include "thread_pool.h"

namespace colbert_fast {
namespace {

// What a thread may keep for its next query.
constexpr std::size_t kKeptBytes = std::size_t{64} << 20;

// More candidates than so many times ndocs are screened down to so many.
constexpr std::size_t kScreenFrom = 9, kScreenTo = 6;
// A centroid's score costs a third of what an int8 score spares a token of its exact one.
constexpr std::size_t kCentroidsPerToken = 3;

} // namespace

struct Searcher::Arena {
  QueryPanels query;
  ByteScores bytes;
  AlignedVector<float> scores, init;
  std::vector<std::int32_t> cells;
  std::vector<std::uint8_t> keep;
  Gathering gathering;
  Refining refining;
  std::vector<Hit> hits;

  std::size_t size() const {
    return scores.capacity() * sizeof(float) + hits.capacity() * sizeof(Hit) + bytes.bytes() +
           gathering.bytes() + refining.bytes();
  }
};

Searcher::Searcher(Collection collection)
    : collection_(std::move(collection)),
      bytes_(collection_.centroids, collection_.n_centroids, collection_.dim) {
  if (collection_.codec != nullptr) spread_ = Spread(collection_);
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

void Searcher::approximate(Arena &arena, const std::uint8_t *keep) const {
  const Kernels &cpu = kernels();
  const std::size_t lanes = arena.query.lanes();
  arena.init.assign(lanes, 0.0f);
  std::fill_n(arena.init.begin(), arena.query.count(), kNothingMatched);
  score_each(collection_, arena.hits, 0, arena.hits.size(), 256,
             [&](const Tokens &tokens, std::size_t) {
               return cpu.approximate(arena.scores.data(), lanes, tokens.codes(), tokens.count,
                                      keep, arena.init.data());
             });
}

void Searcher::approximate_i8(Arena &arena) const {
  const Kernels &cpu = kernels();
  const ByteTable table = arena.bytes.table();
  score_each(collection_, arena.hits, 0, arena.hits.size(), 256,
             [&](const Tokens &tokens, std::size_t) {
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

void Searcher::score_exact(Arena &arena) const {
  const Kernels &cpu = kernels();
  const Panels query = arena.query.f32();
  if (collection_.codec == nullptr) {
    score_each(collection_, arena.hits, 0, arena.hits.size(), 16,
               [&](const Tokens &tokens, std::size_t) {
                 return cpu.maxsim(query, tokens.part.embeddings + tokens.first * collection_.dim,
                                   DType::f16, tokens.count, nullptr);
               });
    return;
  }
  const Decoder decoder = collection_.codec->decoder();
  score_each(collection_, arena.hits, 0, arena.hits.size(), 8,
             [&](const Tokens &tokens, std::size_t) {
               return cpu.residual_maxsim(query, decoder, tokens.residuals(decoder), tokens.count);
             });
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
  // Ranking candidates first would be faster, but few documents lie in few cells: it might not find
  // k.
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
  drop_empty(collection_, arena.hits);
  if (collection_.codec == nullptr) return score_exact(arena);
  arena.refining.prepare(collection_, spread_, bytes_, arena.query, arena.bytes);
  arena.refining.score_likely(arena.hits, params.k);
  arena.refining.score_exactly(arena.hits, params.k);
}

// Int8 scores of all documents choose those that get an exact one, where that is worth the scores
// of all centroids.
void Searcher::scan(Arena &arena, std::size_t k, const Selection &selection) const {
  const std::size_t tokens = all_documents(collection_, selection, arena.hits);
  if (collection_.codec == nullptr || kCentroidsPerToken * tokens <= collection_.n_centroids)
    return score_exact(arena);
  arena.bytes.compute(bytes_, arena.query, 0, arena.cells);
  arena.refining.prepare(collection_, spread_, bytes_, arena.query, arena.bytes);
  arena.refining.score_all(arena.hits);
  arena.refining.score_exactly(arena.hits, k);
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
