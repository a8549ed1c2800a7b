// Inverted lists: for each centroid the ascending ids of the documents that have a token there.
//
// List c has counts[c] ids in data[offsets[c], offsets[c + 1]): a byte `width`, then the gaps
// id - previous - 1 (the first previous is -1), `width` bits each, least significant bit first.
// Gaps of a list of n among N documents average N / n, so a posting costs about log2(N / n) + 2
// bits.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "packed_codes.h"

namespace colbert_fast {

struct Lists {
  const std::int32_t *counts;
  const std::int64_t *offsets;
  const std::uint8_t *data;
  std::size_t n_lists;
};

// Makes the lists of the documents whose tokens have `codes`; document d's begin at starts[d], and
// starts ends with the number of tokens. The codes are read once to count, and once more for each
// call of `fill`; what is kept meanwhile grows with documents and lists, never with tokens. The
// same bytes for any number of threads. Throws std::invalid_argument at a code not below n_lists.
class ListBuilder {
public:
  ListBuilder(PackedCodes codes, std::vector<std::int64_t> starts, std::size_t n_lists);

  const std::vector<std::int32_t> &counts() const { return counts_; }
  const std::vector<std::int64_t> &offsets() const { return offsets_; }

  // Write lists `begin` to end - 1: offsets[end] - offsets[begin] bytes, and nowhere else whatever
  // has happened to the codes since they were counted.
  void fill(std::size_t begin, std::size_t end, std::uint8_t *out) const;

private:
  template <class F> void each_range(std::size_t begin, std::size_t end, F f) const;
  template <class F> void each_token(std::size_t begin, std::size_t end, F f) const;
  void fill_range(std::size_t begin, std::size_t end, std::uint8_t *out) const;

  PackedCodes codes_;
  std::vector<std::int64_t> starts_;
  std::vector<std::int32_t> counts_;
  std::vector<std::int64_t> offsets_;
  std::vector<std::uint8_t> widths_;
};

// Append list c to `out`. Throws std::runtime_error if its bytes do not fit what they claim, or
// hold an id not below n_docs: the file is corrupt, and memory is never read or written out of
// bounds.
void read_list(const Lists &lists, std::size_t c, std::size_t n_docs,
               std::vector<std::int32_t> &out);

} // namespace colbert_fast
