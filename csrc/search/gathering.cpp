#include "search/gathering.h"

#include <functional>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "lowest_bit.h"
#include "thread_pool.h"

namespace colbert_fast {
namespace {

// Bytes of the rows that a thread raises at once: they are to stay in its cache.
constexpr std::size_t kScreenedBytes = std::size_t{64} << 10;

std::size_t given_documents(const Collection &collection, const Selection &selection,
                            std::vector<Hit> &hits) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < selection.n_candidates; ++i)
    ids.push_back(static_cast<std::int32_t>(selection.candidates[i]));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  std::size_t tokens = 0;
  for (const std::int32_t id : ids) {
    const auto document = static_cast<std::size_t>(id);
    const std::size_t count = collection.tokens_of(document).count;
    if (count == 0 || !selection.holds(document)) continue;
    hits.push_back({0.0f, id});
    tokens += count;
  }
  return tokens;
}

} // namespace

std::size_t all_documents(const Collection &collection, const Selection &selection,
                          std::vector<Hit> &hits) {
  hits.clear();
  if (selection.candidates != nullptr) return given_documents(collection, selection, hits);
  std::size_t tokens = 0;
  for (const Part &part : collection.parts)
    for (std::size_t i = 0; i < part.n_docs(); ++i) {
      const std::size_t id = part.base + i;
      const auto count = static_cast<std::size_t>(part.offsets[i + 1] - part.offsets[i]);
      if (count == 0 || !selection.holds(id)) continue;
      hits.push_back({0.0f, static_cast<std::int32_t>(id)});
      tokens += count;
    }
  return tokens;
}

void drop_empty(const Collection &collection, std::vector<Hit> &hits) {
  const auto empty = [&](const Hit &hit) {
    const auto document = static_cast<std::size_t>(hit.document);
    return collection.tokens_of(document).count == 0;
  };
  hits.erase(std::remove_if(hits.begin(), hits.end(), empty), hits.end());
}

// Of one part's lists for `cells`, which ascend, keep the postings whose documents may be found,
// and mark these.
void Gathering::mark(const Collection &collection, std::size_t index,
                     const std::vector<std::int32_t> &cells, const Selection &selection) {
  const Part &part = collection.parts[index];
  for (const std::int32_t cell : cells) {
    const auto c = static_cast<std::size_t>(cell);
    if (c >= part.lists.n_lists) break;
    const std::size_t begin = postings_.size();
    try {
      read_list(part.lists, c, part.n_docs(), postings_);
    } catch (const std::runtime_error &error) {
      throw std::runtime_error("`parts[" + std::to_string(index) + "].lists`: " + error.what());
    }
    std::size_t end = begin;
    for (std::size_t i = begin; i < postings_.size(); ++i) {
      const std::size_t document = part.base + static_cast<std::size_t>(postings_[i]);
      if (!selection.holds(document)) continue;
      postings_[end++] = static_cast<std::int32_t>(document);
      seen_[document / 64] |= std::uint64_t{1} << (document % 64);
    }
    postings_.resize(end);
    if (end > begin) lists_.push_back({c, begin, end});
  }
}

void Gathering::gather(const Collection &collection, std::vector<std::int32_t> &cells,
                       const Selection &selection, std::vector<Hit> &hits) {
  std::sort(cells.begin(), cells.end());
  cells.erase(std::unique(cells.begin(), cells.end()), cells.end());
  seen_.assign((collection.n_docs() + 63) / 64, 0);
  postings_.clear();
  lists_.clear();
  for (std::size_t i = 0; i < collection.parts.size(); ++i) mark(collection, i, cells, selection);
  hits.clear();
  for (std::size_t word = 0; word < seen_.size(); ++word)
    for (std::uint64_t bits = seen_[word]; bits != 0; bits &= bits - 1)
      hits.push_back({0.0f, static_cast<std::int32_t>(word * 64 + lowest_bit(bits))});
}

// The best n hits, in the order they are in.
void Gathering::keep_best_in_order(std::vector<Hit> &hits, std::size_t n) {
  if (hits.size() <= n) return;
  scores_.resize(hits.size());
  for (std::size_t i = 0; i < hits.size(); ++i) scores_[i] = hits[i].score;
  const auto last = scores_.begin() + static_cast<std::ptrdiff_t>(n - 1);
  std::nth_element(scores_.begin(), last, scores_.end(), std::greater<float>());
  const float bar = *last;
  // Of those at the bar the first ones.
  std::size_t level = 1 + static_cast<std::size_t>(std::count(scores_.begin(), last, bar));
  std::size_t kept = 0;
  for (const Hit &hit : hits) {
    if (hit.score < bar || (hit.score == bar && level == 0)) continue;
    level -= hit.score == bar;
    hits[kept++] = hit;
  }
  hits.resize(n);
}

void Gathering::screen(const ByteTable &table, const std::uint8_t *usual, std::size_t n,
                       std::vector<Hit> &hits) {
  places_.resize(64 * seen_.size()); // bits of a word
  for (std::size_t i = 0; i < hits.size(); ++i)
    places_[static_cast<std::size_t>(hits[i].document)] = static_cast<std::int32_t>(i);
  parallel_for(hits.size(), std::max<std::size_t>(kScreenedBytes / table.stride, 256),
               [&](std::size_t begin, std::size_t end) {
                 score(table, usual, hits.data() + begin, begin, end - begin);
               });
  keep_best_in_order(hits, n);
}

// The scores of n neighbouring hits, from the one at `place` on.
void Gathering::score(const ByteTable &table, const std::uint8_t *usual, Hit *hits,
                      std::size_t place, std::size_t n) const {
  const Kernels &cpu = kernels();
  thread_local AlignedVector<std::uint8_t> rows;
  thread_local std::vector<std::int32_t> raised;
  thread_local std::vector<float> scores;
  rows.resize(n * table.stride);
  std::copy_n(usual, table.stride, rows.data());
  for (std::size_t i = 1; i < n; i *= 2) // a call for each row would cost more than the copy
    std::copy_n(rows.data(), std::min(i, n - i) * table.stride, rows.data() + i * table.stride);
  for (const List &list : lists_) {
    const std::int32_t *end = postings_.data() + list.end;
    const std::int32_t *at = std::lower_bound(postings_.data() + list.begin, end, hits[0].document);
    raised.clear();
    for (; at != end && *at <= hits[n - 1].document; ++at)
      raised.push_back(places_[static_cast<std::size_t>(*at)] - static_cast<std::int32_t>(place));
    cpu.raise_rows(rows.data(), table.stride, raised.data(), raised.size(),
                   table.rows + list.cell * table.stride);
  }
  scores.resize(n);
  cpu.row_scores_i8({rows.data(), table.stride, table.step}, n, scores.data());
  for (std::size_t i = 0; i < n; ++i) hits[i].score = scores[i];
}

std::size_t Gathering::bytes() const {
  return seen_.capacity() * sizeof(std::uint64_t) + lists_.capacity() * sizeof(List) +
         sizeof(std::int32_t) * (postings_.capacity() + places_.capacity()) +
         sizeof(float) * scores_.capacity();
}

} // namespace colbert_fast
