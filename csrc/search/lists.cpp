#include "search/lists.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "thread_pool.h"

namespace colbert_fast {
namespace {

constexpr std::size_t kBlock = 4096; // codes unpacked at once

std::uint8_t bit_length(std::uint32_t value) {
  std::uint8_t n = 0;
  for (; value != 0; value >>= 1) ++n;
  return n;
}

// The low `width` bits of `value` into zeros at bit `at`. Byte by byte: the next list may be
// another thread's.
void put(std::uint8_t *out, std::int64_t at, std::uint32_t value, int width) {
  const int shift = static_cast<int>(at % 8);
  out += at / 8;
  std::uint64_t bits = std::uint64_t{value} << shift;
  for (int left = shift + width; left > 0; left -= 8, bits >>= 8)
    *out++ |= static_cast<std::uint8_t>(bits);
}

} // namespace

// f(begin, end) for a range of lists for each thread. Every range reads all codes, which is cheaper
// than to share lists: that would take counters for each thread and list.
template <class F> void ListBuilder::each_range(std::size_t begin, std::size_t end, F f) const {
  const std::size_t n = std::min(num_threads(), end - begin);
  parallel_for(n, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i)
      f(begin + (end - begin) * i / n, begin + (end - begin) * (i + 1) / n);
  });
}

// f(code - begin, document) for the tokens whose codes are in [begin, end), documents ascending.
template <class F> void ListBuilder::each_token(std::size_t begin, std::size_t end, F f) const {
  AlignedVector<std::int32_t> buffer(kBlock);
  const auto from = static_cast<std::uint32_t>(begin),
             span = static_cast<std::uint32_t>(end) - from;
  for (std::size_t doc = 0; doc + 1 < starts_.size(); ++doc) {
    const auto stop = static_cast<std::size_t>(starts_[doc + 1]);
    for (auto at = static_cast<std::size_t>(starts_[doc]); at < stop; at += kBlock) {
      const std::size_t n = std::min(kBlock, stop - at);
      codes_.unpack(at, n, buffer);
      // Most are another range's, at random: sorted out without a branch.
      std::size_t own = 0;
      std::int32_t largest = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const std::int32_t code = buffer[i];
        largest = std::max(largest, code);
        const std::uint32_t list = static_cast<std::uint32_t>(code) - from;
        buffer[own] = static_cast<std::int32_t>(list);
        own += list < span;
      }
      if (static_cast<std::size_t>(largest) >= counts_.size())
        throw std::invalid_argument("`codes` must be from 0 to " +
                                    std::to_string(counts_.size() - 1) + ", got " +
                                    std::to_string(largest));
      for (std::size_t i = 0; i < own; ++i)
        f(static_cast<std::size_t>(buffer[i]), static_cast<std::int32_t>(doc));
    }
  }
}

ListBuilder::ListBuilder(PackedCodes codes, std::vector<std::int64_t> starts, std::size_t n_lists)
    : codes_(codes), starts_(std::move(starts)), counts_(n_lists, 0), widths_(n_lists, 0) {
  each_range(0, n_lists, [&](std::size_t begin, std::size_t end) {
    struct State {
      std::int32_t last = -1;
      std::uint32_t gaps = 0; // all of them or-ed: as long as the largest
    };
    std::vector<State> states(end - begin);
    each_token(begin, end, [&](std::size_t i, std::int32_t doc) {
      State &list = states[i];
      if (list.last == doc) return;
      list.gaps |= static_cast<std::uint32_t>(doc - list.last - 1);
      list.last = doc;
      ++counts_[begin + i];
    });
    for (std::size_t c = begin; c < end; ++c) widths_[c] = bit_length(states[c - begin].gaps);
  });
  offsets_.push_back(0);
  for (std::size_t c = 0; c < n_lists; ++c)
    offsets_.push_back(offsets_.back() +
                       (counts_[c] == 0 ? 0 : 1 + (std::int64_t{counts_[c]} * widths_[c] + 7) / 8));
}

void ListBuilder::fill(std::size_t begin, std::size_t end, std::uint8_t *out) const {
  each_range(begin, end, [&](std::size_t first, std::size_t last) {
    fill_range(first, last, out + (offsets_[first] - offsets_[begin]));
  });
}

void ListBuilder::fill_range(std::size_t begin, std::size_t end, std::uint8_t *out) const {
  std::fill_n(out, offsets_[end] - offsets_[begin], std::uint8_t{0});
  struct State {
    std::int64_t bit;
    std::int32_t last, left, width;
  };
  std::vector<State> states;
  for (std::size_t c = begin; c < end; ++c) {
    const std::int64_t at = offsets_[c] - offsets_[begin];
    if (counts_[c] > 0) out[at] = widths_[c];
    states.push_back({8 * at + 8, -1, counts_[c], widths_[c]});
  }
  each_token(begin, end, [&](std::size_t i, std::int32_t doc) {
    State &list = states[i];
    if (list.last == doc) return;
    if (list.left-- == 0) throw std::invalid_argument("`codes` have changed since they were read");
    put(out, list.bit, static_cast<std::uint32_t>(doc - list.last - 1), list.width);
    list.bit += list.width;
    list.last = doc;
  });
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
