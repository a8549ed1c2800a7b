#include "search/lists.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace colbert_fast {
namespace {

// Calls f(code, document) for each first occurrence of a code in a document, documents ascending.
template <class F>
void each_posting(Codes codes, const std::int32_t *doclens, std::size_t n_docs, std::size_t n_lists,
                  F f) {
  std::vector<std::int32_t> last(n_lists, -1);
  std::size_t token = 0;
  for (std::size_t doc = 0; doc < n_docs; ++doc)
    for (std::int32_t i = 0; i < doclens[doc]; ++i, ++token) {
      const std::size_t code = code_at(codes, token);
      if (last[code] == static_cast<std::int32_t>(doc)) continue;
      last[code] = static_cast<std::int32_t>(doc);
      f(code, static_cast<std::int32_t>(doc));
    }
}

unsigned bit_length(std::uint32_t value) {
  unsigned n = 0;
  for (; value != 0; value >>= 1) ++n;
  return n;
}

} // namespace

void invert(Codes codes, const std::int32_t *doclens, std::size_t n_docs, std::size_t n_lists,
            std::vector<std::int32_t> &counts, std::vector<std::int32_t> &ids) {
  counts.assign(n_lists, 0);
  each_posting(codes, doclens, n_docs, n_lists,
               [&](std::size_t code, std::int32_t) { ++counts[code]; });
  std::vector<std::size_t> next(n_lists + 1, 0);
  for (std::size_t c = 0; c < n_lists; ++c)
    next[c + 1] = next[c] + static_cast<std::size_t>(counts[c]);
  ids.resize(next[n_lists]);
  each_posting(codes, doclens, n_docs, n_lists,
               [&](std::size_t code, std::int32_t doc) { ids[next[code]++] = doc; });
}

void encode_lists(const std::vector<std::int32_t> &counts, const std::vector<std::int32_t> &ids,
                  std::vector<std::int64_t> &offsets, std::vector<std::uint8_t> &data) {
  offsets.assign(1, 0);
  data.clear();
  const std::int32_t *list = ids.data();
  for (const std::int32_t count : counts) {
    std::uint32_t largest = 0;
    std::int32_t previous = -1;
    for (std::int32_t i = 0; i < count; previous = list[i++])
      largest = std::max(largest, static_cast<std::uint32_t>(list[i] - previous - 1));
    const unsigned width = bit_length(largest);
    if (count > 0) data.push_back(static_cast<std::uint8_t>(width));
    std::uint64_t buffer = 0;
    unsigned filled = 0;
    previous = -1;
    for (std::int32_t i = 0; i < count; previous = list[i++]) {
      buffer |= static_cast<std::uint64_t>(list[i] - previous - 1) << filled;
      for (filled += width; filled >= 8; filled -= 8, buffer >>= 8)
        data.push_back(static_cast<std::uint8_t>(buffer));
    }
    if (filled > 0) data.push_back(static_cast<std::uint8_t>(buffer));
    offsets.push_back(static_cast<std::int64_t>(data.size()));
    list += count;
  }
}

void read_list(const Lists &lists, std::size_t c, std::size_t n_docs,
               std::vector<std::int32_t> &out) {
  const auto corrupt = [&] {
    return std::runtime_error("`lists`: list " + std::to_string(c) +
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
