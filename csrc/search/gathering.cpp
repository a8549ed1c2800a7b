#include "search/gathering.h"

#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "thread_pool.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace colbert_fast {
namespace {

inline std::size_t lowest_bit(std::uint64_t bits) {
#if defined(_MSC_VER)
  unsigned long index;
  _BitScanForward64(&index, bits);
  return index;
#else
  return static_cast<std::size_t>(__builtin_ctzll(bits));
#endif
}

void given_documents(const Collection &collection, const Selection &selection,
                     std::vector<Hit> &hits) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < selection.n_candidates; ++i) {
    const auto id = static_cast<std::size_t>(selection.candidates[i]);
    if (Tokens(collection.part_of(id), id).count > 0 && selection.holds(id))
      ids.push_back(static_cast<std::int32_t>(id));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (const std::int32_t id : ids) hits.push_back({0.0f, id});
}

} // namespace

void all_documents(const Collection &collection, const Selection &selection,
                   std::vector<Hit> &hits) {
  hits.clear();
  if (selection.candidates != nullptr) return given_documents(collection, selection, hits);
  for (const Part &part : collection.parts)
    for (std::size_t i = 0; i < part.n_docs(); ++i) {
      const std::size_t id = part.base + i;
      if (part.offsets[i + 1] > part.offsets[i] && selection.holds(id))
        hits.push_back({0.0f, static_cast<std::int32_t>(id)});
    }
}

// Mark the documents that one part's lists have for `cells`, which ascend, and keep the postings.
void Gathering::mark(const Collection &collection, std::size_t index,
                     const std::vector<std::int32_t> &cells) {
  const Part &part = collection.parts[index];
  for (const std::int32_t cell : cells) {
    const auto c = static_cast<std::size_t>(cell);
    if (c >= part.lists.n_lists) break;
    const std::size_t before = postings_.size();
    try {
      read_list(part.lists, c, part.n_docs(), postings_);
    } catch (const std::runtime_error &error) {
      throw std::runtime_error("`parts[" + std::to_string(index) + "].lists`: " + error.what());
    }
    posting_cells_.resize(postings_.size(), cell);
    for (std::size_t i = before; i < postings_.size(); ++i) {
      const std::size_t document = part.base + static_cast<std::size_t>(postings_[i]);
      postings_[i] = static_cast<std::int32_t>(document);
      seen_[document / 64] |= std::uint64_t{1} << (document % 64);
    }
  }
}

void Gathering::gather(const Collection &collection, std::vector<std::int32_t> &cells,
                       const Selection &selection, std::vector<Hit> &hits) {
  std::sort(cells.begin(), cells.end());
  cells.erase(std::unique(cells.begin(), cells.end()), cells.end());
  seen_.assign((collection.n_docs() + 63) / 64, 0);
  postings_.clear();
  posting_cells_.clear();
  for (std::size_t i = 0; i < collection.parts.size(); ++i) mark(collection, i, cells);
  hits.clear();
  for (std::size_t word = 0; word < seen_.size(); ++word)
    for (std::uint64_t bits = seen_[word]; bits != 0; bits &= bits - 1) {
      const std::size_t id = word * 64 + lowest_bit(bits);
      if (selection.holds(id)) hits.push_back({0.0f, static_cast<std::int32_t>(id)});
    }
}

void Gathering::screen(const ByteTable &table, const std::uint8_t *usual, std::size_t n_docs,
                       std::size_t n, std::vector<Hit> &hits) {
  const std::size_t n_hits = hits.size();
  places_.assign(n_docs, -1);
  for (std::size_t i = 0; i < n_hits; ++i)
    places_[static_cast<std::size_t>(hits[i].document)] = static_cast<std::int32_t>(i);
  const auto place_of = [&](std::size_t posting) {
    return places_[static_cast<std::size_t>(postings_[posting])];
  };
  // A counting sort by hit; ends[i] is where the cells of hit i begin until they are written.
  ends_.assign(n_hits + 1, 0);
  for (std::size_t i = 0; i < postings_.size(); ++i)
    if (place_of(i) >= 0) ++ends_[static_cast<std::size_t>(place_of(i)) + 1];
  for (std::size_t i = 0; i < n_hits; ++i) ends_[i + 1] += ends_[i];
  found_.resize(static_cast<std::size_t>(ends_[n_hits]));
  for (std::size_t i = 0; i < postings_.size(); ++i)
    if (place_of(i) >= 0) {
      std::int32_t &end = ends_[static_cast<std::size_t>(place_of(i))];
      found_[static_cast<std::size_t>(end++)] = posting_cells_[i];
    }
  parallel_for(n_hits, 1024, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      const std::int32_t begin = i == 0 ? 0 : ends_[i - 1];
      hits[i].score = kernels().approximate_i8(table, {found_.data() + begin, true},
                                               static_cast<std::size_t>(ends_[i] - begin), usual);
    }
  });
  keep_best(hits, n);
  std::sort(hits.begin(), hits.end(),
            [](const Hit &a, const Hit &b) { return a.document < b.document; });
}

std::size_t Gathering::bytes() const {
  return seen_.capacity() * sizeof(std::uint64_t) +
         sizeof(std::int32_t) * (postings_.capacity() + posting_cells_.capacity() +
                                 places_.capacity() + found_.capacity() + ends_.capacity());
}

} // namespace colbert_fast
