// A search, stage after stage; see search.h.
#include "cuda/stages.h"

#include "cuda/bytes.cuh"

namespace colbert_fast::cuda {
namespace {

// Takes arrays from a block one after the other, or, without a block, only measures them.
class Carver {
public:
  explicit Carver(void *block) : block_(static_cast<std::uint8_t *>(block)) {}
  template <class T> T *take(std::size_t count) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t at = used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return block_ == nullptr ? nullptr : reinterpret_cast<T *>(block_ + at);
  }
  std::size_t used() const { return used_; }

private:
  std::uint8_t *block_;
  std::size_t used_ = 0;
};

// What the stages of a search leave to one another.
struct Workspace {
  // Both forms of the query as bytes, and the scores of all centroids.
  QueryBytes for_centroids, for_levels;
  std::uint8_t *table;
  float *step;
  std::uint32_t *byte_counts;
  Cut *cuts;
  std::int32_t *cells;
  std::uint32_t *probed, *seen, *hit_counts;
  Hits found, kept, finalists;

  Workspace(const SearchIndex &index, const SearchShape &shape, Carver &carver) {
    const std::size_t n_tokens = shape.n_queries * shape.nq, n_docs = index.documents.count;
    if (shape.kind != SearchShape::exhaustive) {
      for_centroids = packed(carver, n_tokens, index.dim);
      for_levels = packed(carver, n_tokens, index.dim);
      table = carver.take<std::uint8_t>(index.n_centroids * n_tokens);
      step = carver.take<float>(n_tokens);
      finalists = hits(carver, shape.n_queries, min_of(shape.rescored(), n_docs));
    }
    if (shape.kind == SearchShape::filter) {
      byte_counts = carver.take<std::uint32_t>(probe_counts(index.n_centroids, n_tokens));
      cuts = carver.take<Cut>(n_tokens);
      cells = carver.take<std::int32_t>(n_tokens * shape.nprobe);
      probed = carver.take<std::uint32_t>(shape.n_queries * words_of(index.n_centroids));
      kept = hits(carver, shape.n_queries, min_of(shape.ndocs, n_docs));
    }
    seen = carver.take<std::uint32_t>(shape.n_queries * words_of(n_docs));
    hit_counts = carver.take<std::uint32_t>(shape.n_queries * hit_chunks(n_docs));
    found = hits(carver, shape.n_queries, n_docs);
  }

private:
  static QueryBytes packed(Carver &carver, std::size_t n_tokens, std::size_t dim) {
    auto *levels = carver.take<std::uint32_t>(query_words(n_tokens, dim));
    auto *start = carver.take<std::int32_t>(n_tokens);
    auto *norms = carver.take<float>(n_tokens);
    return {levels, start, norms, carver.take<float>(n_tokens)};
  }
  static Hits hits(Carver &carver, std::size_t n_queries, std::size_t stride) {
    auto *documents = carver.take<std::int32_t>(n_queries * stride);
    auto *scores = carver.take<float>(n_queries * stride);
    return {documents, scores, carver.take<std::int32_t>(n_queries), stride};
  }
};

// One search: its arguments, and a method for each step.
struct Search {
  const SearchIndex &index;
  const SearchShape &shape;
  const float *queries;
  const SearchSelection &selection;
  const Workspace &work;
  Stream stream;

  std::size_t n_tokens() const { return shape.n_queries * shape.nq; }

  // The query as bytes and its scores with all centroids.
  void score_centroids() const {
    pack_query(queries, n_tokens(), index.dim, 8, static_cast<float>(kScreenZero),
               work.for_centroids, stream);
    byte_scores(work.for_centroids, n_tokens(), index.dim, index.rows, index.scale, index.longest,
                index.n_centroids, work.table, work.step, stream);
  }

  // The documents to score, into work.found.
  void gather(std::int32_t *damaged) const {
    const std::size_t n_docs = index.documents.count, n_words = shape.n_queries * words_of(n_docs);
    const bool all = shape.kind != SearchShape::filter && selection.given == nullptr;
    fill_bitmaps(work.seen, n_words, all, stream);
    if (selection.given != nullptr) {
      mark_given(selection, n_docs, shape.n_queries, work.seen, stream);
    } else if (!all) {
      probe(work.table, work.step, index.n_centroids, n_tokens(), shape.nprobe, work.byte_counts,
            work.cuts, work.cells, stream);
      fill_bitmaps(work.probed, shape.n_queries * words_of(index.n_centroids), false, stream);
      mark_lists(index.lists, n_docs, work.cells, shape.n_queries, shape.nq * shape.nprobe,
                 work.probed, work.seen, damaged, stream);
    }
    collect_hits(work.seen, index.documents, selection.allowed, shape.n_queries, work.hit_counts,
                 work.found, stream);
  }

  // Those worth an exact score.
  Hits screen() const {
    if (shape.kind == SearchShape::exhaustive) return work.found;
    Hits hits = work.found;
    if (shape.kind == SearchShape::filter) {
      approximate(index, work.table, work.step, shape.n_queries, shape.nq, hits, stream);
      keep_best(hits, shape.n_queries, work.kept, stream);
      hits = work.kept;
    }
    if (!index.has_int8()) return hits;
    const float zero = index.level_step > 0.0f ? -index.low / index.level_step : 0.0f;
    pack_query(queries, n_tokens(), index.dim, index.decoder.nbits, zero, work.for_levels, stream);
    residual_maxsim_i8(work.for_levels, shape.n_queries, shape.nq, work.table, work.step,
                       index.decoder, index.level_step, index.n_centroids, index.tokens,
                       index.documents, hits.lists(), hits.scores, stream);
    keep_best(hits, shape.n_queries, work.finalists, stream);
    return work.finalists;
  }
};

} // namespace

std::size_t search_workspace(const SearchIndex &index, const SearchShape &shape) {
  Carver carver(nullptr);
  const Workspace workspace(index, shape, carver);
  return carver.used();
}

void search(const SearchIndex &index, const SearchShape &shape, const float *queries,
            const SearchSelection &selection, void *workspace, std::int64_t *ids, float *scores,
            std::int32_t *damaged, Stream stream) {
  Carver carver(workspace);
  const Workspace work(index, shape, carver);
  const Search run{index, shape, queries, selection, work, stream};
  if (shape.kind != SearchShape::exhaustive) run.score_centroids();
  run.gather(damaged);
  const Hits last = run.screen();
  score_exact(index, queries, shape.n_queries, shape.nq, last, stream);
  top_hits(last, shape.n_queries, shape.k, ids, scores, stream);
}

} // namespace colbert_fast::cuda
