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

// Unique (centroid, document) pairs of the tokens, as plain lists: counts[K] and ids, list after
// list.
void invert(Codes codes, const std::int32_t *doclens, std::size_t n_docs, std::size_t n_lists,
            std::vector<std::int32_t> &counts, std::vector<std::int32_t> &ids);

// Encode plain lists; offsets has n_lists + 1 entries.
void encode_lists(const std::vector<std::int32_t> &counts, const std::vector<std::int32_t> &ids,
                  std::vector<std::int64_t> &offsets, std::vector<std::uint8_t> &data);

// Append list c to `out`. Throws std::runtime_error if its bytes do not fit what they claim, or
// hold an id not below n_docs: the file is corrupt, and memory is never read or written out of
// bounds.
void read_list(const Lists &lists, std::size_t c, std::size_t n_docs,
               std::vector<std::int32_t> &out);

} // namespace colbert_fast
