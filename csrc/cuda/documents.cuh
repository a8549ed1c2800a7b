// Where a document's rows are, and which queries it is scored with.
#pragma once

#include "cuda/device.cuh"

namespace colbert_fast::cuda {

// The rows of a document that there are.
struct Span {
  std::size_t first;
  unsigned count;
};
__device__ inline Span span_of(const Documents &documents, std::size_t i) {
  const auto n = static_cast<std::int64_t>(documents.n_rows);
  const std::int64_t first = max_of<std::int64_t>(min_of(documents.first[i], n), 0);
  const std::int64_t count = min_of<std::int64_t>(documents.lengths[i], n - first);
  return {static_cast<std::size_t>(first), static_cast<unsigned>(max_of<std::int64_t>(count, 0))};
}

// How many documents the list of query b has, and its i-th one.
__device__ inline unsigned count_of(const DocumentLists &lists, unsigned b) {
  return static_cast<unsigned>(lists.ids == nullptr ? lists.stride
                                                    : static_cast<std::size_t>(lists.counts[b]));
}
__device__ inline std::size_t document_of(const DocumentLists &lists, unsigned b, unsigned i) {
  return lists.ids == nullptr ? i : static_cast<std::size_t>(lists.ids[b * lists.stride + i]);
}

// Blocks for each of n_queries lists of up to `stride` documents, so many to a block.
inline std::size_t blocks_of(std::size_t stride, std::size_t per_block, std::size_t n_queries) {
  return min_of(ceil_div(stride, per_block), ceil_div(kFullGrid, n_queries));
}

} // namespace colbert_fast::cuda
