// Candidate generation on the emulated GPU: scores bit by bit against the CPU's scalar table, the
// best of them against sorting.
#include "cuda/candidates.cu"

#include <numeric>

#include "cuda_cases.h"

using namespace colbert_fast;
using namespace testing;

namespace {

void scores(Random &random, Tally &tally, std::size_t n, std::size_t nq) {
  const std::size_t dim = pick(random, kDims);
  const Case c{n, dim, nq, n, DType::f32, 2, false, true};
  const Buffer<float> query = random.floats(nq * dim), centroids = random.floats(n * dim);
  const Query panels(query, nq, dim);
  Buffer<float> padded(n * panels.lanes()), want(n * nq);
  scalar().scores(panels.view(), centroids.data(), n, padded.data());
  for (std::size_t i = 0; i < n * nq; ++i) want[i] = padded[i / nq * panels.lanes() + i % nq];
  both_orders([&] {
    Buffer<float> got(n * nq);
    cuda::centroid_scores(query.data(), nq, dim, centroids.data(), n, got.poison(0xff).data(),
                          nullptr);
    tally.same(got, want, c.describe("cuda centroid_scores"));
  });
}

// Few different values, of either sign, and some that are not finite.
Buffer<float> awkward(Random &random, std::size_t n) {
  const float special[] = {std::nanf(""), HUGE_VALF, -HUGE_VALF, 0.0f, -0.0f};
  const bool ties = random.below(2) == 0;
  Buffer<float> out(n);
  for (std::size_t i = 0; i < n; ++i)
    out[i] = random.below(8) == 0 ? pick(random, special) : random.value(ties);
  return out;
}

std::vector<std::size_t> sorted(const Buffer<float> &scores, std::size_t columns,
                                std::size_t column) {
  const auto value = [&](std::size_t i) {
    const float x = scores[i * columns + column];
    return x == x ? x : -HUGE_VALF;
  };
  std::vector<std::size_t> order(scores.size() / columns);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return value(a) > value(b); });
  return order;
}

void best(Random &random, Tally &tally, std::size_t n, std::size_t columns, std::size_t k) {
  const std::string what =
      std::to_string(k) + " of " + std::to_string(n) + ", " + std::to_string(columns) + " columns";
  const Buffer<float> scores = awkward(random, n * columns);
  Buffer<std::int32_t> want(columns * k);
  for (std::size_t c = 0; c < columns; ++c) {
    const std::vector<std::size_t> order = sorted(scores, columns, c);
    for (std::size_t i = 0; i < k; ++i) want[c * k + i] = static_cast<std::int32_t>(order[i]);
  }
  both_orders([&] {
    Buffer<std::int32_t> cells(columns * k);
    cuda::top_centroids(scores.data(), n, columns, k, cells.poison(0xff).data(), nullptr);
    tally.same(cells, want, "cuda top_centroids, " + what);
    if (columns > 1) return;
    Buffer<float> values(k), want_values(k);
    Buffer<std::int64_t> indices(k), want_indices(k);
    for (std::size_t i = 0; i < k; ++i) {
      want_indices[i] = want[i];
      want_values[i] = scores[static_cast<std::size_t>(want[i])];
    }
    cuda::top_k(scores.data(), n, k, values.poison(0xff).data(), indices.poison(0xff).data(),
                nullptr);
    tally.same(indices, want_indices, "cuda top_k, " + what);
    tally.same(values, want_values, "cuda top_k values, " + what);
  });
}

} // namespace

int main() {
  Tally tally;
  Random random;
  for (const std::size_t n : {1, 63, 64, 65, 130})
    for (const std::size_t nq : {1, 31, 33}) scores(random, tally, n, nq);
  for (const std::size_t n : {1, 2, 33, 1023, 1024, 1500})
    for (const std::size_t k : {1, 2, 7, 33, 1024})
      if (k <= n) best(random, tally, n, 1 + 2 * random.below(2), k);
  return tally.finish();
}
