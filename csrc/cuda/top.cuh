// The k best of many scores, by a whole block: the k-th best by radix, then all that are no worse.
#pragma once

#include "cuda/device.cuh"

namespace colbert_fast::cuda {

constexpr unsigned kTopThreads = 1024, kTopWarps = kTopThreads / kWarp, kDigits = 256;
static_assert(kTopWarps == kWarp, "a lane for each warp");

// Scores in the order of their bits, the largest least; NaN counts as -inf.
__device__ inline std::uint32_t key_of(float score) {
  if (!(score == score)) score = kMinusInf;
  if (score == 0.0f) score = 0.0f; // -0 equals 0
  const std::uint32_t bits = __float_as_uint(score);
  return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
}

// A key above and its position below: entries ascend from the best.
using Entry = unsigned long long;
constexpr Entry kNone = ~Entry{0};

struct TopShared {
  unsigned counts[kDigits];
  unsigned better[kTopWarps], equal[kTopWarps]; // of a round, in each warp
  unsigned digit, before;
  Entry entries[1]; // k, up to a power of two, where they are sorted
};

// A warp finds the digit whose keys reach k, after `before` others; a lane looks at eight.
__device__ inline void find_digit(TopShared &shared, unsigned k, unsigned before) {
  constexpr unsigned kRun = kDigits / kWarp;
  unsigned digit = threadIdx.x * kRun, own = 0;
  for (unsigned j = 0; j < kRun; ++j) own += shared.counts[digit + j];
  unsigned front = before + sum_up_to_lane(own) - own;
  if (front >= k || front + own < k) return;
  while (front + shared.counts[digit] < k) front += shared.counts[digit++];
  shared.digit = digit, shared.before = front;
}

// The key of the k-th best of n, 1 <= k <= n, by the radix of one digit after the other;
// shared.before becomes the number of keys below it.
template <class Key>
__device__ std::uint32_t select(TopShared &shared, std::size_t n, unsigned k, Key key) {
  std::uint32_t prefix = 0, mask = 0;
  unsigned before = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < kDigits) shared.counts[threadIdx.x] = 0;
    __syncthreads();
    for (std::size_t i = threadIdx.x; i < n; i += kTopThreads)
      if (const std::uint32_t at = key(i); (at & mask) == prefix)
        atomicAdd(&shared.counts[at >> shift & 255u], 1u);
    __syncthreads();
    if (threadIdx.x < kWarp) find_digit(shared, k, before);
    __syncthreads();
    before = shared.before;
    prefix |= shared.digit << shift;
    mask |= 255u << shift;
  }
  return prefix;
}

// take(place, i) for the k best of n, places in ascending i: all that beat the k-th, and of those
// that equal it the first ones.
template <class Key, class Take>
__device__ void take_best(TopShared &shared, std::size_t n, unsigned k, Key key, Take take) {
  const std::uint32_t last = select(shared, n, k, key);
  const unsigned wanted = k - shared.before; // of the equal ones
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, below = (1u << lane) - 1;
  unsigned better = 0, equal = 0; // in front of this round
  for (std::size_t first = 0; first < n; first += kTopThreads) {
    const std::size_t i = first + threadIdx.x;
    const std::uint32_t mine = i < n ? key(i) : ~0u;
    const bool beats = i < n && mine < last, ties = i < n && mine == last;
    const unsigned beating = __ballot_sync(kAllLanes, beats);
    const unsigned tied = __ballot_sync(kAllLanes, ties);
    if (lane == 0) {
      shared.better[warp] = static_cast<unsigned>(__popc(beating));
      shared.equal[warp] = static_cast<unsigned>(__popc(tied));
    }
    __syncthreads();
    unsigned better_here = better + static_cast<unsigned>(__popc(beating & below));
    unsigned equal_here = equal + static_cast<unsigned>(__popc(tied & below));
    const unsigned better_there = shared.better[lane], equal_there = shared.equal[lane];
    better_here += __reduce_add_sync(kAllLanes, lane < warp ? better_there : 0);
    equal_here += __reduce_add_sync(kAllLanes, lane < warp ? equal_there : 0);
    better += __reduce_add_sync(kAllLanes, better_there);
    equal += __reduce_add_sync(kAllLanes, equal_there);
    if (beats || (ties && equal_here < wanted)) take(better_here + min_of(equal_here, wanted), i);
    __syncthreads();
  }
}

// Ascending, by a bitonic network; `size` is a power of two.
__device__ inline void sort(Entry *entries, unsigned size) {
  for (unsigned run = 2; run <= size; run *= 2)
    for (unsigned step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (unsigned i = threadIdx.x; i < size; i += kTopThreads) {
        const unsigned other = i ^ step;
        const bool up = (i & run) == 0;
        if (other > i && (entries[i] > entries[other]) == up) {
          const Entry swap = entries[i];
          entries[i] = entries[other], entries[other] = swap;
        }
      }
    }
  __syncthreads();
}

// shared.entries[0, k) = the k best of n in order, of equal ones the first first; kNone up to
// `size`, a power of two.
template <class Key>
__device__ void sort_best(TopShared &shared, std::size_t n, unsigned k, unsigned size, Key key) {
  for (unsigned i = threadIdx.x; i < size; i += kTopThreads) shared.entries[i] = kNone;
  if (k > 0)
    take_best(shared, n, k, key, [&](unsigned place, std::size_t i) {
      shared.entries[place] = Entry{key(i)} << 32 | i;
    });
  sort(shared.entries, size);
}

// What `sort_best` wants: the size, and bytes of shared memory.
inline unsigned size_for_top(std::size_t k) {
  unsigned size = 2;
  while (size < k) size *= 2;
  return size;
}
inline std::size_t bytes_for_top(unsigned size) { return sizeof(TopShared) + size * sizeof(Entry); }

} // namespace colbert_fast::cuda
