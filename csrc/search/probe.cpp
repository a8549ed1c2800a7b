#include "search/probe.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "cpu/dispatch.h"

namespace colbert_fast {

void probe(const float *scores, std::size_t n, std::size_t lanes, std::size_t count,
           std::size_t nprobe, std::vector<std::int32_t> &ids) {
  // The kernel keeps its winners in order by insertion, which is for few of them.
  constexpr std::size_t kFew = 64;
  if (nprobe <= kFew) {
    std::vector<float> values(lanes * nprobe, -std::numeric_limits<float>::infinity());
    ids.assign(lanes * nprobe, -1);
    kernels().probe(scores, 0, n, lanes, nprobe, values.data(), ids.data());
    ids.resize(count * nprobe); // lanes past the query are padding
    return;
  }
  ids.resize(count * nprobe);
  std::vector<std::int32_t> order(n);
  for (std::size_t lane = 0; lane < count; ++lane) {
    const auto better = [&](std::int32_t a, std::int32_t b) {
      const float x = scores[static_cast<std::size_t>(a) * lanes + lane];
      const float y = scores[static_cast<std::size_t>(b) * lanes + lane];
      return x != y ? x > y : a < b;
    };
    std::iota(order.begin(), order.end(), 0);
    const auto end = order.begin() + static_cast<std::ptrdiff_t>(nprobe);
    std::partial_sort(order.begin(), end, order.end(), better);
    std::copy(order.begin(), end, ids.begin() + static_cast<std::ptrdiff_t>(lane * nprobe));
  }
}

} // namespace colbert_fast
