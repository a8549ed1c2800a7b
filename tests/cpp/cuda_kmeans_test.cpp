// Assignment on the emulated GPU, bit by bit against the CPU's scalar table.
#include "cuda/kmeans.cu"

#include "cuda_cases.h"

using namespace colbert_fast;
using namespace testing;

int main() {
  Tally tally;
  Random random;
  for (const std::size_t n : {1, 31, 32, 33, 65})
    for (const std::size_t k : {1, 63, 64, 65, 130})
      for (const DType type : kTypes) {
        const std::size_t dim = pick(random, kDims);
        const bool whole = random.below(2) == 0;
        const Case c{n, dim, 1, k, type, 2, whole, true};
        Rows points = random.rows(type, n * dim, whole);
        if (random.below(3) == 0) points.set(0, std::nanf(""));
        const Buffer<float> centroids = random.floats(k * dim, whole);
        Buffer<float> want_best(n), scratch(assign_scratch(dim));
        Buffer<std::int32_t> want(n);
        scalar().assign(points.data(), type, n, dim, centroids.data(), k, scratch.data(),
                        want.data(), want_best.data());
        both_orders([&] {
          Buffer<float> best(n);
          Buffer<std::int32_t> codes(n);
          cuda::assign(points.data(), type, n, dim, centroids.data(), k, codes.poison(0xff).data(),
                       best.poison(0xff).data(), nullptr);
          tally.same(codes, want, c.describe("cuda assign"));
          tally.same(best, want_best, c.describe("cuda assign, products"));
        });
      }
  return tally.finish();
}
