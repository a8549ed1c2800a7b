// Nearest centroids by tensor cores: float16 estimates of a known error, then exact products with
// the few centroids that it leaves.
//
// With x and c rounded to float16, which leaves errors dx and dc,
//   |x.c - x16.c16| <= |x| dc + (|c| + dc) dx,   dx <= 2^-11 |x| + 2^-25 sqrt(dim);
// the largest dc is measured: 0 where a codec's centroids are float16 anyway. The two float32 sums,
// here and of the exact product, are off by less than 2^-15 |x| |c| together if tensor cores
// truncate each product; how they add is not documented, so 2^-14 is allowed. A centroid whose
// estimate lies more than twice that whole error below the best cannot be the nearest. Of each of
// its points a lane keeps in registers the two best of the centroids that it sees, a quarter of
// all, and the third's estimate: a point to which a lane's third is as near is crowded, and so is
// one that float16 cannot hold. Another kernel compares those with all centroids.
#include <type_traits>

#include "cuda/tile.cuh"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = 128, kPoints = 32; // of a block and of a warp
constexpr unsigned kCentroids = 64, kDim = kMaxMmaDim, kBlocks = kDim / 16;
// Rows are padded so that eight lanes, which read sixteen bytes each of two rows, meet all banks.
constexpr unsigned kStride = kDim + 32;
constexpr float kLongest = 60000.0f; // no value of such a vector is beyond float16
constexpr float kRelative = 0x1p-11f, kAbsolute = 0x1p-25f * 11.5f, kSums = 0x1p-14f;
constexpr float kUnderflow = 0x1p-60f; // above all that is lost of a length by squaring
constexpr std::int32_t kCrowded = -2;  // in place of a code, between the kernels

struct Shared {
  uint4 centroids[2][kCentroids][kStride / 8]; // eight float16 each
};

struct BestThree {
  float first = kMinusInf, second = kMinusInf, third = kMinusInf;
  std::int32_t first_at = 0, second_at = 0;
  __device__ void offer(float x, std::int32_t at) { // above the third
    if (x > first) {
      third = second, second = first, second_at = first_at;
      first = x, first_at = at;
    } else if (x > second) {
      third = second, second = x, second_at = at;
    } else {
      third = x;
    }
  }
};

// The next centroids on their way into shared memory; past the end the last one again, past `dim`
// zeros.
__device__ void fetch(Shared &shared, unsigned half, const std::uint16_t *rows, unsigned first,
                      unsigned n, unsigned dim) {
  for (unsigned i = threadIdx.x; i < kCentroids * kDim / 8; i += kThreads) {
    const unsigned row = i / (kDim / 8), d = i % (kDim / 8) * 8;
    const std::size_t from = min_of(first + row, n - 1);
    copy_16(&shared.centroids[half][row][d / 8], rows + from * dim + (d < dim ? d : 0), d >= dim);
  }
}

// The chain of `assign`.
template <class T>
__device__ float exact_product(const T *point, const float *centroid, unsigned dim) {
  float sum = 0.0f;
#pragma unroll 4
  for (unsigned d = 0; d < dim; d += 4) {
    const float4 c = *reinterpret_cast<const float4 *>(centroid + d);
    sum = fmaf(c.x, to_float(point[d]), sum);
    sum = fmaf(c.y, to_float(point[d + 1]), sum);
    sum = fmaf(c.z, to_float(point[d + 2]), sum);
    sum = fmaf(c.w, to_float(point[d + 3]), sum);
  }
  return sum;
}

// How far below the best estimate the nearest centroid's can lie; infinite for what float16 cannot
// hold.
template <class T> __device__ float window_of(float length, Extremes centroids) {
  const float longest = centroids.length, of_centroid = centroids.rounding + kUnderflow;
  if (!(length < kLongest && longest < kLongest)) return HUGE_VALF;
  const float of_point = std::is_same_v<T, Half> ? 0.0f : kRelative * length + kAbsolute;
  const float error =
      length * of_centroid + (longest + of_centroid) * of_point + kSums * length * longest;
  return 2.01f * error; // the hundredth covers the rounding of lengths and of this
}

// Two neighbouring values of a point as float16; zeros past the end.
template <class T>
__device__ std::uint32_t pair_of(const T *point, unsigned d, unsigned dim, float &squares) {
  if (d >= dim) return 0;
  const float low = to_float(point[d]), high = to_float(point[d + 1]);
  squares = fmaf(low, low, fmaf(high, high, squares));
  return float_to_half(low) | static_cast<std::uint32_t>(float_to_half(high)) << 16;
}

// A warp's 32 points as the left side of products. A lane's eight dimensions of 32 follow one
// another, here and in the centroids' rows: any order will do that both have.
struct Points {
  std::uint32_t halves[2][kBlocks][4];
  float window[4]; // of points 0, 8, 16, 24 + lane / 4

  template <class T>
  __device__ std::size_t load(const T *points, std::size_t n, unsigned dim, Extremes centroids) {
    const unsigned lane = threadIdx.x % kWarp, t = lane % 4;
    const std::size_t first =
        static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x / kWarp * kPoints + lane / 4;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      const T *point = points + min_of(first + 8 * i, n - 1) * dim;
      float squares = 0.0f;
#pragma unroll
      for (unsigned k = 0; k < kBlocks; ++k) {
        const unsigned d = k / 2 * 32 + 8 * t + k % 2 * 4;
        halves[i / 2][k][i % 2] = pair_of(point, d, dim, squares);
        halves[i / 2][k][i % 2 + 2] = pair_of(point, d + 2, dim, squares);
      }
      squares += __shfl_xor_sync(kAllLanes, squares, 1);
      squares += __shfl_xor_sync(kAllLanes, squares, 2);
      window[i] = window_of<T>(sqrtf(squares), centroids);
    }
    return first;
  }
};

// Estimates for 64 centroids, of which those past the end do not count.
__device__ void offer_tile(const Shared &shared, unsigned half, const Points &points,
                           unsigned first, unsigned n_centroids, BestThree (&best)[4]) {
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  for (unsigned n = 0; n < kCentroids; n += 8) {
    float d[2][4] = {};
    __syncwarp(); // the offers before may have parted the lanes
#pragma unroll
    for (unsigned k = 0; k < kBlocks; k += 2) {
      const uint4 row = shared.centroids[half][n + g][2 * k + t];
#pragma unroll
      for (unsigned m = 0; m < 2; ++m) {
        mma<DType::f16>(d[m], points.halves[m][k], {row.x, row.y});
        mma<DType::f16>(d[m], points.halves[m][k + 1], {row.z, row.w});
      }
    }
    bool above = false; // soon rare: one branch then, not eight
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
#pragma unroll
      for (unsigned c = 0; c < 2; ++c) above |= d[i / 2][i % 2 * 2 + c] > best[i].third;
    if (!above) continue;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
#pragma unroll
      for (unsigned c = 0; c < 2; ++c) {
        const float x = d[i / 2][i % 2 * 2 + c];
        const unsigned at = first + n + 2 * t + c;
        if (x > best[i].third && at < n_centroids) best[i].offer(x, static_cast<std::int32_t>(at));
      }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    assign_mma_kernel(const T *points, std::size_t n, unsigned dim, const float *centroids,
                      unsigned n_centroids, const std::uint16_t *rows, const Extremes *extremes,
                      std::int32_t *codes, float *products) {
  auto &shared = shared_memory<Shared>();
  const unsigned lane = threadIdx.x % kWarp;
  Points tile;
  const std::size_t mine = tile.load(points, n, dim, *extremes);
  BestThree best[4];
  fetch(shared, 0, rows, 0, n_centroids, dim);
  copy_commit();
  for (unsigned first = 0; first < n_centroids; first += kCentroids) {
    const unsigned half = first / kCentroids % 2;
    if (first + kCentroids < n_centroids)
      fetch(shared, 1 - half, rows, first + kCentroids, n_centroids, dim);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    offer_tile(shared, half, tile, first, n_centroids, best);
    __syncthreads();
  }
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    const std::size_t point = mine + 8 * i;
    const T *x = points + min_of(point, n - 1) * dim;
    float top = best[i].first;
    for (int other = 1; other < 4; other *= 2) {
      const float theirs = __shfl_xor_sync(kAllLanes, top, other);
      if (theirs > top) top = theirs;
    }
    const float limit = top - tile.window[i];
    const bool crowded = !(tile.window[i] < HUGE_VALF) || best[i].third >= limit;
    const unsigned of_warp = __ballot_sync(kAllLanes, crowded);
    const bool screened = (of_warp >> lane / 4 * 4 & 15u) == 0;
    const auto product = [&](std::int32_t c) {
      return exact_product(x, centroids + static_cast<std::size_t>(c) * dim, dim);
    };
    Best nearest{kMinusInf, 0};
    if (screened && best[i].first >= limit)
      nearest.offer(product(best[i].first_at), best[i].first_at);
    if (screened && best[i].second >= limit)
      nearest.merge({product(best[i].second_at), best[i].second_at});
    nearest.reduce(4);
    if (lane % 4 == 0 && point < n)
      codes[point] = screened ? nearest.index : kCrowded, products[point] = nearest.value;
  }
}

constexpr unsigned kCrowdThreads = 512;

struct CrowdShared {
  unsigned count, points[kCrowdThreads];
  Best best[kCrowdThreads / kWarp];
};

// A block finds which of its points are crowded, a thread looking at each, and compares one after
// the other with all centroids.
template <class T>
__global__ void __launch_bounds__(kCrowdThreads)
    compare_crowded_kernel(const T *points, std::size_t n, unsigned dim, const float *centroids,
                           unsigned n_centroids, std::int32_t *codes, float *products) {
  auto &shared = shared_memory<CrowdShared>();
  const std::size_t first = std::size_t{blockIdx.x} * kCrowdThreads;
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  if (first + threadIdx.x < n && codes[first + threadIdx.x] == kCrowded)
    shared.points[atomicAdd(&shared.count, 1u)] = threadIdx.x;
  __syncthreads();
  for (unsigned i = 0; i < shared.count; ++i) {
    const std::size_t point = first + shared.points[i];
    Best nearest{kMinusInf, 0};
    for (unsigned c = threadIdx.x; c < n_centroids; c += kCrowdThreads)
      nearest.offer(exact_product(points + point * dim, centroids + std::size_t{c} * dim, dim),
                    static_cast<std::int32_t>(c));
    nearest.reduce(kWarp);
    if (threadIdx.x % kWarp == 0) shared.best[threadIdx.x / kWarp] = nearest;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (const Best &one : shared.best) nearest.merge(one);
      codes[point] = nearest.index, products[point] = nearest.value;
    }
    __syncthreads();
  }
}

__device__ void keep_longest(float *most, float squares) {
  for (int half = 16; half > 0; half /= 2) squares += __shfl_xor_sync(kAllLanes, squares, half);
  const float length = sqrtf(squares);
  // Of numbers that are not negative, bits are in the numbers' order.
  if (threadIdx.x % kWarp == 0)
    atomicMax(reinterpret_cast<unsigned *>(most),
              __float_as_uint(length < kLongest ? length : HUGE_VALF));
}

// A warp to a centroid.
__global__ void __launch_bounds__(kThreads)
    narrow_kernel(const float *centroids, std::size_t n, unsigned dim, std::uint16_t *rows,
                  Extremes *extremes) {
  const std::size_t c =
      (static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp * dim;
  if (c >= n * dim) return;
  float squares = 0.0f, lost = 0.0f;
  for (unsigned d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    const float value = centroids[c + d];
    rows[c + d] = float_to_half(value);
    const float rounding = value - half_to_float(rows[c + d]);
    squares = fmaf(value, value, squares), lost = fmaf(rounding, rounding, lost);
  }
  keep_longest(&extremes->length, squares);
  keep_longest(&extremes->rounding, lost);
}

} // namespace

void narrow_centroids(const float *centroids, std::size_t n, std::size_t dim, std::uint16_t *rows,
                      Extremes *extremes, Stream stream) {
  launch(narrow_kernel, ceil_div(n * kWarp, kThreads), 1, kThreads, 0, stream, centroids, n,
         static_cast<unsigned>(dim), rows, extremes);
}

void assign_mma(const void *points, DType type, std::size_t n, std::size_t dim,
                const float *centroids, std::size_t n_centroids, const std::uint16_t *rows,
                const Extremes *extremes, std::int32_t *codes, float *best, Stream stream) {
  with_type(type, [&](auto element) {
    using T = decltype(element);
    launch(assign_mma_kernel<T>, ceil_div(n, kThreads), 1, kThreads, sizeof(Shared), stream,
           static_cast<const T *>(points), n, static_cast<unsigned>(dim), centroids,
           static_cast<unsigned>(n_centroids), rows, extremes, codes, best);
    launch(compare_crowded_kernel<T>, ceil_div(n, kCrowdThreads), 1, kCrowdThreads,
           sizeof(CrowdShared), stream, static_cast<const T *>(points), n,
           static_cast<unsigned>(dim), centroids, static_cast<unsigned>(n_centroids), codes, best);
  });
}

} // namespace colbert_fast::cuda
