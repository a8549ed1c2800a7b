// Where documents start, from their lengths.
#include "cuda/device.cuh"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kStartThreads = 1024, kStartWarps = kStartThreads / kWarp,
                   kRun = 8; // lengths to a thread
static_assert(kStartWarps == kWarp, "a lane for each warp");

struct StartsShared {
  std::int64_t sums[kStartWarps];
};

// One block: of a few thousand documents, as calls have them, this is one round.
__global__ void __launch_bounds__(kStartThreads)
    starts_kernel(const std::int32_t *lengths, std::size_t n, std::int64_t *first) {
  auto &shared = shared_memory<StartsShared>();
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  std::int64_t before = 0; // this round
  for (std::size_t begin = 0; begin < n; begin += kStartThreads * kRun) {
    const std::size_t i = begin + threadIdx.x * kRun;
    std::int32_t run[kRun];
    std::int64_t own = 0;
#pragma unroll
    for (unsigned j = 0; j < kRun; ++j) {
      run[j] = i + j < n ? lengths[i + j] : 0;
      own += run[j];
    }
    const std::int64_t upto = sum_up_to_lane(own);
    if (lane == kWarp - 1) shared.sums[warp] = upto;
    __syncthreads();
    const std::int64_t of_warp = shared.sums[lane], up_to_warp = sum_up_to_lane(of_warp);
    std::int64_t at =
        before + upto - own + __shfl_sync(kAllLanes, up_to_warp - of_warp, static_cast<int>(warp));
    before += __shfl_sync(kAllLanes, up_to_warp, kWarp - 1);
#pragma unroll
    for (unsigned j = 0; j < kRun; ++j) {
      if (i + j < n) first[i + j] = at;
      at += run[j];
    }
    __syncthreads();
  }
}

} // namespace

void starts(const std::int32_t *lengths, std::size_t n, std::int64_t *first, Stream stream) {
  launch(starts_kernel, n == 0 ? 0 : 1, 1, kStartThreads, sizeof(StartsShared), stream, lengths, n,
         first);
}

} // namespace colbert_fast::cuda
