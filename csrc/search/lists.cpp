#include "search/lists.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "thread_pool.h"

namespace colbert_fast {
namespace {

// A counting sort of (centroid, document) pairs, in which each block of documents has its own
// counters, so that blocks are independent and their order is the order of the documents.
class Inverter {
public:
  Inverter(Codes codes, const std::vector<std::int64_t> &starts, std::size_t n_lists)
      : codes_(codes), starts_(starts), n_lists_(n_lists) {
    // Few enough blocks that their counters take less than the codes.
    const auto n_tokens = static_cast<std::size_t>(starts.back());
    const std::size_t n_blocks =
        std::max<std::size_t>(1, std::min(num_threads(), n_tokens / (4 * n_lists)));
    for (std::size_t b = 0; b <= n_blocks; ++b) {
      const std::int64_t token =
          starts.back() / static_cast<std::int64_t>(n_blocks) * static_cast<std::int64_t>(b);
      const auto at = std::lower_bound(starts.begin(), starts.end() - 1, token);
      bounds_.push_back(b == n_blocks ? starts.size() - 1
                                      : static_cast<std::size_t>(at - starts.begin()));
    }
    next_.assign(n_blocks * n_lists, 0);
  }

  // Postings of each list; next_ then has those of each block.
  std::vector<std::int32_t> count() {
    each_block([&](std::size_t b) {
      std::int64_t *counts = next_.data() + b * n_lists_;
      each_posting(b, 0, n_lists_, [&](std::size_t code, std::int32_t) { ++counts[code]; });
    });
    std::vector<std::int32_t> counts(n_lists_, 0);
    for (std::size_t i = 0; i < next_.size(); ++i)
      counts[i % n_lists_] += static_cast<std::int32_t>(next_[i]);
    return counts;
  }

  // The ids of lists `begin` to `end`, list after list. Once for each list.
  void fill(std::size_t begin, std::size_t end, std::int32_t *ids) {
    std::int64_t at = 0;
    for (std::size_t c = begin; c < end; ++c)
      for (std::size_t b = 0; b + 1 < bounds_.size(); ++b)
        at += std::exchange(next_[b * n_lists_ + c], at);
    each_block([&](std::size_t b) {
      std::int64_t *next = next_.data() + b * n_lists_;
      each_posting(b, begin, end,
                   [&](std::size_t code, std::int32_t doc) { ids[next[code]++] = doc; });
    });
  }

private:
  template <class F> void each_block(F f) {
    parallel_for(bounds_.size() - 1, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t b = begin; b < end; ++b) f(b);
    });
  }

  // f(code, document) for each first occurrence of a code in a document, documents ascending.
  template <class F> void each_posting(std::size_t b, std::size_t begin, std::size_t end, F f) {
    std::vector<std::int32_t> last(end - begin, -1);
    for (std::size_t doc = bounds_[b]; doc < bounds_[b + 1]; ++doc)
      for (std::int64_t i = starts_[doc]; i < starts_[doc + 1]; ++i) {
        const std::size_t code = code_at(codes_, static_cast<std::size_t>(i));
        if (code < begin || code >= end) continue;
        if (last[code - begin] == static_cast<std::int32_t>(doc)) continue;
        last[code - begin] = static_cast<std::int32_t>(doc);
        f(code, static_cast<std::int32_t>(doc));
      }
  }

  Codes codes_;
  const std::vector<std::int64_t> &starts_;
  std::size_t n_lists_;
  std::vector<std::size_t> bounds_; // documents before each block
  std::vector<std::int64_t> next_;  // [block][list]
};

unsigned bit_length(std::uint32_t value) {
  unsigned n = 0;
  for (; value != 0; value >>= 1) ++n;
  return n;
}

unsigned width_of(const std::int32_t *list, std::int32_t count) {
  std::uint32_t largest = 0;
  std::int32_t previous = -1;
  for (std::int32_t i = 0; i < count; previous = list[i++])
    largest = std::max(largest, static_cast<std::uint32_t>(list[i] - previous - 1));
  return bit_length(largest);
}

void pack(const std::int32_t *list, std::int32_t count, unsigned width, std::uint8_t *out) {
  *out++ = static_cast<std::uint8_t>(width);
  std::uint64_t buffer = 0;
  unsigned filled = 0;
  std::int32_t previous = -1;
  for (std::int32_t i = 0; i < count; previous = list[i++]) {
    buffer |= static_cast<std::uint64_t>(list[i] - previous - 1) << filled;
    for (filled += width; filled >= 8; filled -= 8, buffer >>= 8)
      *out++ = static_cast<std::uint8_t>(buffer);
  }
  if (filled > 0) *out = static_cast<std::uint8_t>(buffer);
}

// Append lists `begin` to `end`, whose plain ids are given, to the offsets and the data.
void encode(const std::vector<std::int32_t> &ids, std::size_t begin, std::size_t end,
            BuiltLists &lists) {
  constexpr std::size_t kGrain = 64;
  std::vector<std::size_t> first(end - begin + 1, 0);
  for (std::size_t c = begin; c < end; ++c)
    first[c - begin + 1] = first[c - begin] + static_cast<std::size_t>(lists.counts[c]);
  std::vector<unsigned> widths(end - begin);
  const auto each_list = [&](auto f) {
    parallel_for(end - begin, kGrain, [&](std::size_t from, std::size_t to) {
      for (std::size_t i = from; i < to; ++i)
        if (lists.counts[begin + i] > 0) f(i, ids.data() + first[i], lists.counts[begin + i]);
    });
  };
  each_list([&](std::size_t i, const std::int32_t *list, std::int32_t count) {
    widths[i] = width_of(list, count);
  });
  for (std::size_t i = 0; i < end - begin; ++i) {
    const std::int64_t count = lists.counts[begin + i];
    lists.offsets.push_back(lists.offsets.back() +
                            (count == 0 ? 0 : 1 + (count * widths[i] + 7) / 8));
  }
  lists.data.resize(static_cast<std::size_t>(lists.offsets.back()));
  each_list([&](std::size_t i, const std::int32_t *list, std::int32_t count) {
    pack(list, count, widths[i], lists.data.data() + lists.offsets[begin + i]);
  });
}

} // namespace

BuiltLists invert(Codes codes, const std::vector<std::int64_t> &starts, std::size_t n_lists,
                  std::int64_t max_postings) {
  Inverter inverter(codes, starts, n_lists);
  BuiltLists lists{inverter.count(), {0}, {}};
  std::vector<std::int32_t> ids;
  for (std::size_t begin = 0, end = 0; begin < n_lists; begin = end) {
    std::int64_t postings = lists.counts[end++];
    while (end < n_lists && postings + lists.counts[end] <= max_postings)
      postings += lists.counts[end++];
    ids.resize(static_cast<std::size_t>(postings));
    inverter.fill(begin, end, ids.data());
    encode(ids, begin, end, lists);
  }
  return lists;
}

void read_list(const Lists &lists, std::size_t c, std::size_t n_docs,
               std::vector<std::int32_t> &out) {
  const auto corrupt = [&] {
    return std::runtime_error("list " + std::to_string(c) +
                              " is corrupt, or holds a document not below " +
                              std::to_string(n_docs));
  };
  if (lists.counts[c] < 0 || lists.offsets[c] < 0) throw corrupt();
  const auto count = static_cast<std::size_t>(lists.counts[c]);
  if (count == 0) return;
  const std::uint8_t *data = lists.data + lists.offsets[c];
  const std::int64_t n_bytes = lists.offsets[c + 1] - lists.offsets[c];
  if (n_bytes < 1 || data[0] > 32) throw corrupt();
  const std::size_t width = data[0], have = static_cast<std::size_t>(n_bytes) - 1;
  if (have != (count * width + 7) / 8) throw corrupt();
  ++data;
  const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
  std::uint64_t id = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t bit = i * width, at = bit / 8;
    std::uint64_t word = 0; // eight bytes hold any field: 7 bits of shift + 32 of value
    std::memcpy(&word, data + at, std::min<std::size_t>(8, have - std::min(have, at)));
    id += (word >> (bit % 8)) & mask;
    if (id >= n_docs) throw corrupt();
    out.push_back(static_cast<std::int32_t>(id++));
  }
}

} // namespace colbert_fast
