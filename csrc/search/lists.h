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

namespace colbert_fast {

struct Lists {
  const std::int32_t *counts;
  const std::int64_t *offsets;
  const std::uint8_t *data;
  std::size_t n_lists;
};

struct BuiltLists {
  std::vector<std::int32_t> counts;
  std::vector<std::int64_t> offsets;
  std::vector<std::uint8_t> data;
};

// Postings that `invert` holds as plain ids at once, of 4 bytes.
constexpr std::int64_t kMaxPostings = std::int64_t{1} << 26;

// The lists of documents whose tokens have `codes`; document d's begin at starts[d], and starts
// ends with the number of tokens. The same bytes for any number of threads. Beside the result it
// takes the plain ids of as many lists as hold max_postings (or of one), and three bytes per token
// at most.
BuiltLists invert(Codes codes, const std::vector<std::int64_t> &starts, std::size_t n_lists,
                  std::int64_t max_postings);

// Append list c to `out`. Throws std::runtime_error if its bytes do not fit what they claim, or
// hold an id not below n_docs: the file is corrupt, and memory is never read or written out of
// bounds.
void read_list(const Lists &lists, std::size_t c, std::size_t n_docs,
               std::vector<std::int32_t> &out);

} // namespace colbert_fast
