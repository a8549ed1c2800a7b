#include "search/searcher.h"

#include <algorithm>
#include <limits>

#include "cpu/dispatch.h"
#include "search/probe.h"
#include "thread_pool.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace colbert_fast {
namespace {

// What a thread may keep for its next query.
constexpr std::size_t kKeptBytes = std::size_t{64} << 20;

// The int8 stage orders documents to within some 0.02 of their score; that many more than k go on
// to exact scoring.
constexpr std::size_t rescored(std::size_t k) { return 2 * k + 32; }

inline std::size_t lowest_bit(std::uint64_t bits) {
#if defined(_MSC_VER)
  unsigned long index;
  _BitScanForward64(&index, bits);
  return index;
#else
  return static_cast<std::size_t>(__builtin_ctzll(bits));
#endif
}

bool better(const Hit &a, const Hit &b) {
  return a.score != b.score ? a.score > b.score : a.document < b.document;
}

// The best n hits, in no particular order.
void keep_best(std::vector<Hit> &hits, std::size_t n) {
  if (hits.size() <= n) return;
  std::nth_element(hits.begin(), hits.begin() + static_cast<std::ptrdiff_t>(n), hits.end(), better);
  hits.resize(n);
}

} // namespace

struct Searcher::Arena {
  QueryPanels query;
  AlignedVector<float> scores, init;
  std::vector<std::int32_t> cells, ids;
  std::vector<std::uint8_t> keep;
  std::vector<std::uint64_t> seen;
  std::vector<Hit> hits;

  std::size_t bytes() const {
    return scores.capacity() * sizeof(float) + hits.capacity() * sizeof(Hit) +
           seen.capacity() * sizeof(std::uint64_t);
  }
};

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

void Searcher::gather(Arena &arena, std::size_t nprobe, const std::uint8_t *allowed) const {
  score_centroids(arena, nprobe);
  std::vector<std::int32_t> &cells = arena.cells;
  std::sort(cells.begin(), cells.end());
  cells.erase(std::unique(cells.begin(), cells.end()), cells.end());
  arena.seen.assign((n_docs() + 63) / 64, 0);
  for (const std::int32_t cell : cells) {
    arena.ids.clear();
    read_list(collection_.lists, static_cast<std::size_t>(cell), n_docs(), arena.ids);
    for (const std::int32_t id : arena.ids)
      arena.seen[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (id % 64);
  }
  arena.hits.clear();
  for (std::size_t word = 0; word < arena.seen.size(); ++word)
    for (std::uint64_t bits = arena.seen[word]; bits != 0; bits &= bits - 1) {
      const std::size_t id = word * 64 + lowest_bit(bits);
      if (allowed == nullptr || allowed[id] != 0)
        arena.hits.push_back({0.0f, static_cast<std::int32_t>(id)});
    }
}

void Searcher::all_documents(Arena &arena, const std::uint8_t *allowed) const {
  arena.hits.clear();
  for (std::size_t id = 0; id < n_docs(); ++id)
    if (collection_.offsets[id + 1] > collection_.offsets[id] &&
        (allowed == nullptr || allowed[id] != 0))
      arena.hits.push_back({0.0f, static_cast<std::int32_t>(id)});
}

template <class Score>
void Searcher::score_each(Arena &arena, std::size_t grain, Score score) const {
  parallel_for(arena.hits.size(), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      Hit &hit = arena.hits[i];
      const auto first =
          static_cast<std::size_t>(collection_.offsets[static_cast<std::size_t>(hit.document)]);
      const auto last =
          static_cast<std::size_t>(collection_.offsets[static_cast<std::size_t>(hit.document) + 1]);
      const float value = score(first, last - first);
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
  score_each(arena, 256, [&](std::size_t first, std::size_t n) {
    return cpu.approximate(arena.scores.data(), lanes, codes_from(collection_.codes, first), n,
                           keep, arena.init.data());
  });
}

void Searcher::score_int8(Arena &arena) const {
  const Kernels &cpu = kernels();
  const Decoder decoder = collection_.codec->decoder();
  arena.query.pack_i8(decoder.nbits, collection_.codec->low(), collection_.codec->step());
  score_each(arena, 32, [&](std::size_t first, std::size_t n) {
    return cpu.residual_maxsim_i8(
        arena.query.i8(), decoder, arena.scores.data(), codes_from(collection_.codes, first),
        collection_.residuals + first * decoder.packed_dim, collection_.inverse_norms + first, n);
  });
}

void Searcher::score_exact(Arena &arena) const {
  const Kernels &cpu = kernels();
  const Panels query = arena.query.f32();
  if (collection_.codec == nullptr) {
    score_each(arena, 16, [&](std::size_t first, std::size_t n) {
      return cpu.maxsim(query, collection_.embeddings + first * collection_.dim, DType::f16, n,
                        nullptr);
    });
    return;
  }
  const Decoder decoder = collection_.codec->decoder();
  score_each(arena, 16, [&](std::size_t first, std::size_t n) {
    return cpu.residual_maxsim(query, decoder, codes_from(collection_.codes, first),
                               collection_.residuals + first * decoder.packed_dim, n);
  });
}

void Searcher::search(const float *query, std::size_t count, const SearchParams &params,
                      const std::uint8_t *allowed, std::vector<Hit> &hits) const {
  thread_local Arena arena;
  arena.query.pack(query, count, collection_.dim);
  if (params.exhaustive) {
    all_documents(arena, allowed);
  } else {
    gather(arena, std::min(params.nprobe, collection_.n_centroids), allowed);
    if (params.plaid) {
      const std::size_t lanes = arena.query.lanes();
      arena.keep.resize(collection_.n_centroids);
      for (std::size_t c = 0; c < collection_.n_centroids; ++c) {
        const float *row = arena.scores.data() + c * lanes;
        arena.keep[c] = *std::max_element(row, row + count) >= params.threshold;
      }
      approximate(arena, arena.keep.data());
      keep_best(arena.hits, params.ndocs);
      approximate(arena, nullptr);
      keep_best(arena.hits, std::max(params.ndocs / 4, params.k));
    } else {
      if (arena.hits.size() > params.ndocs) {
        approximate(arena, nullptr);
        keep_best(arena.hits, params.ndocs);
      }
      if (collection_.codec != nullptr && arena.hits.size() > rescored(params.k)) {
        score_int8(arena);
        keep_best(arena.hits, rescored(params.k));
      }
    }
  }
  score_exact(arena);
  keep_best(arena.hits, params.k);
  std::sort(arena.hits.begin(), arena.hits.end(), better);
  hits = arena.hits;
  if (arena.bytes() > kKeptBytes) arena = Arena();
}

} // namespace colbert_fast
