// k-means on the emulated GPU, bit by bit against the CPU's scalar table.
#include "cuda/assign_mma.cu"
#include "cuda/kmeans.cu"

#include "cuda_cases.h"

using namespace colbert_fast;
using namespace testing;

namespace {

struct Assigned {
  Assigned(std::size_t n) : codes(n), best(n) { codes.poison(0xff), best.poison(0xff); }
  Buffer<std::int32_t> codes;
  Buffer<float> best;
};

using Check = void (*)(Tally &, const Case &, const Rows &, const Buffer<float> &,
                       const Assigned &);

void same(Tally &tally, const Case &c, const char *kernel, const Assigned &got,
          const Assigned &want) {
  tally.same(got.codes, want.codes, c.describe(kernel));
  tally.same(got.best, want.best, c.describe(kernel) + ", products");
}

void plain(Tally &tally, const Case &c, const Rows &points, const Buffer<float> &centroids,
           const Assigned &want) {
  Assigned got(c.n);
  cuda::assign(points.data(), c.type, c.n, c.dim, centroids.data(), c.centroids, got.codes.data(),
               got.best.data(), nullptr);
  same(tally, c, "cuda assign", got, want);
}

void screened(Tally &tally, const Case &c, const Rows &points, const Buffer<float> &centroids,
              const Assigned &want) {
  Assigned got(c.n);
  const DeviceBuffer<float> there(centroids);
  DeviceBuffer<std::uint16_t> rows(c.centroids * c.dim);
  cuda::Extremes extremes{};
  cuda::narrow_centroids(there.data(), c.centroids, c.dim, rows.poison(0xff).data(), &extremes,
                         nullptr);
  cuda::assign_mma(points.data(), c.type, c.n, c.dim, there.data(), c.centroids, rows.data(),
                   &extremes, got.codes.data(), got.best.data(), nullptr);
  same(tally, c, "cuda assign_mma", got, want);
}

void check(Tally &tally, const Case &c, const Rows &points, const Buffer<float> &centroids,
           Check kernel) {
  Buffer<float> scratch(assign_scratch(c.dim));
  Assigned want(c.n);
  const std::size_t width = c.dim * size_of(c.type);
  for (std::size_t first = 0; first < c.n; first += kPointBlock)
    scalar().assign(static_cast<const char *>(points.data()) + first * width, c.type,
                    std::min(kPointBlock, c.n - first), c.dim, centroids.data(), c.centroids,
                    scratch.data(), want.codes.data() + first, want.best.data() + first);
  both_orders([&] { kernel(tally, c, points, centroids, want); });
}

void assign(Random &random, Tally &tally, const Case &c, Check kernel) {
  Rows points = random.rows(c.type, c.n * c.dim, c.whole);
  Buffer<float> centroids = random.floats(c.centroids * c.dim, c.whole);
  if (random.below(3) == 0) points.set(0, std::nanf(""));
  if (random.below(4) == 0) points.set(c.n * c.dim - 1, 1e30f); // infinite in float16
  if (random.below(4) == 0) // more that are equally near than a lane keeps
    for (std::size_t i = c.dim; i < centroids.size(); ++i) centroids[i] = centroids[i % c.dim];
  if (random.below(8) == 0) centroids[0] = 1e5f;
  check(tally, c, points, centroids, kernel);
}

// Centroids so near to one another that estimates cannot tell which is the nearest; `narrow`: all
// are float16, which leaves the estimates least error.
void near_ties(Random &random, Tally &tally, DType type, bool narrow) {
  const Case c{40, 64, 1, 130, type, 2, false, true};
  const Rows points = random.rows(type, c.n * c.dim, false);
  Buffer<float> centroids = random.floats(c.centroids * c.dim);
  for (std::size_t i = c.dim; i < centroids.size(); ++i)
    if (i / c.dim % 3 > 0)
      centroids[i] = centroids[i % c.dim] + (narrow ? 5e-4f : 1e-5f) * centroids[i];
  for (std::size_t i = 0; narrow && i < centroids.size(); ++i)
    centroids[i] = cuda::half_to_float(cuda::float_to_half(centroids[i]));
  check(tally, c, points, centroids, screened);
}

// Points that all are near to more centroids than lanes keep, for more than one block.
void crowds(Random &random, Tally &tally) {
  const Case c{520, 8, 1, 33, DType::f32, 2, false, true};
  const Rows points = random.rows(c.type, c.n * c.dim, false);
  Buffer<float> centroids = random.floats(c.centroids * c.dim);
  for (std::size_t i = c.dim; i < centroids.size(); ++i) centroids[i] = centroids[i % c.dim];
  centroids[centroids.size() - 1] *= 1.0001f; // the nearest, or the farthest
  check(tally, c, points, centroids, screened);
}

void accumulate(Random &random, Tally &tally, const Case &c) {
  const std::size_t n = c.n, k = c.centroids;
  const DType type = c.type;
  const Rows points = random.rows(type, n * c.dim, false);
  const auto codes = random.integers<std::int32_t>(n, k);
  Buffer<std::int64_t> order(n), first(k + 1);
  std::size_t filled = 0;
  for (std::size_t i = 0; i <= k; ++i) {
    first[i] = static_cast<std::int64_t>(filled);
    for (std::size_t j = 0; j < n; ++j)
      if (static_cast<std::size_t>(codes[j]) == i) order[filled++] = static_cast<std::int64_t>(j);
  }
  Buffer<float> want(k * c.dim), got(k * c.dim);
  for (std::size_t i = 0; i < k; ++i)
    scalar().sum_rows(points.data(), type, c.dim, order.data() + first[i],
                      static_cast<std::size_t>(first[i + 1] - first[i]), want.data() + i * c.dim);
  both_orders([&] {
    cuda::accumulate(points.data(), type, n, c.dim, order.data(), first.data(), k,
                     got.poison(0xff).data(), nullptr);
    tally.same(got, want, c.describe("cuda accumulate"));
  });
}

} // namespace

int main() {
  Tally tally;
  Random random;
  for (const std::size_t n : {1, 31, 32, 33, 65})
    for (const std::size_t k : {1, 63, 64, 65, 130})
      for (const DType type : kTypes) {
        const std::size_t dim = pick(random, kDims);
        const bool whole = random.below(2) == 0;
        assign(random, tally, {n, dim, 1, k, type, 2, whole, true}, plain);
        accumulate(random, tally, {n, dim, 1, k, type, 2, whole, true});
      }
  for (const std::size_t n : {1, 33, 130}) // a product on the emulator takes its time
    for (const std::size_t k : {1, 65, 130})
      assign(random, tally,
             {n, 8 * (1 + random.below(16)), 1, k, pick(random, kTypes), 2, false, true}, screened);
  for (const DType type : kTypes)
    for (const bool narrow : {false, true}) near_ties(random, tally, type, narrow);
  crowds(random, tally);
  return tally.finish();
}
