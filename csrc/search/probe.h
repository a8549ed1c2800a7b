// The best centroids of each query token, for any nprobe.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace colbert_fast {

// So many are kept in order by insertion, in the kernels.
constexpr std::size_t kMostProbes = 64;

// ids[count][nprobe], in descending score, ties by the lower id, NaN as -inf. `scores` is (n,
// lanes), lanes a multiple of kLanes and at least `count`; 1 <= nprobe <= n.
void probe(const float *scores, std::size_t n, std::size_t lanes, std::size_t count,
           std::size_t nprobe, std::vector<std::int32_t> &ids);

} // namespace colbert_fast
