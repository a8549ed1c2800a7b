#include "search/probe.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "cpu/dispatch.h"

namespace colbert_fast {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

} // namespace

void probe(const float *scores, std::size_t n, std::size_t lanes, std::size_t count,
           std::size_t nprobe, std::vector<std::int32_t> &ids) {
  ids.assign(lanes * nprobe, -1);
  if (nprobe <= kMostProbes) {
    std::vector<float> values(lanes * nprobe, kMinusInf);
    kernels().probe(scores, 0, n, lanes, nprobe, values.data(), ids.data());
  }
  ids.resize(count * nprobe); // lanes past the query are padding
  std::vector<std::int32_t> order;
  for (std::size_t lane = 0; lane < count; ++lane) {
    std::int32_t *out = ids.data() + lane * nprobe;
    if (out[nprobe - 1] >= 0) continue;
    // More than the kernel takes, or -inf and NaN among them, which it leaves out.
    const auto value = [&](std::int32_t id) {
      const float score = scores[static_cast<std::size_t>(id) * lanes + lane];
      return score == score ? score : kMinusInf;
    };
    order.resize(n);
    std::iota(order.begin(), order.end(), 0);
    const auto end = order.begin() + static_cast<std::ptrdiff_t>(nprobe);
    std::partial_sort(order.begin(), end, order.end(), [&](std::int32_t a, std::int32_t b) {
      const float x = value(a), y = value(b);
      return x != y ? x > y : a < b;
    });
    std::copy(order.begin(), end, out);
  }
}

} // namespace colbert_fast
