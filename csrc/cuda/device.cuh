// What the kernels are written in: CUDA's names, and the few instructions that have none. nvcc
// compiles them for the GPU; any other compiler takes the same names from tests/cpp/cuda_on_host.h,
// which runs kernels as plain C++.
//
// Products and sums are never fused behind our back (-fmad=false): where the CPU's kernels have a
// fused multiply-add there is fmaf here, so that float32 results are the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"
#include "cuda/launchers.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#else
#include "cuda_on_host.h"
#endif

namespace colbert_fast::cuda {

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu;
constexpr float kMinusInf = -HUGE_VALF;

#ifdef __CUDACC__

inline void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// Blocks that fill any GPU: more work goes through them in strides.
constexpr std::size_t kFullGrid = 2048;

template <class T> struct Same {
  using type = T;
};

// Blocks (x, y) of `threads`, a multiple of 32, with so many bytes of `shared_memory`. An empty
// grid is no error.
template <class... P>
void launch(void (*kernel)(P...), std::size_t x, std::size_t y, unsigned threads,
            std::size_t shared, Stream stream, typename Same<P>::type... arguments) {
  if (x == 0 || y == 0) return;
  if (x > 0x7fffffff || y > 0xffff)
    throw std::runtime_error("CUDA: more work than a grid can hold; split the call");
  if (shared > 48 << 10) // more than that has to be asked for
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)));
  const dim3 grid(static_cast<unsigned>(x), static_cast<unsigned>(y));
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}

template <class T> __device__ T &shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return *reinterpret_cast<T *>(bytes);
}

__device__ inline float half_to_float(std::uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ inline std::uint16_t float_to_half(float x) {
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

__device__ inline std::uint16_t float_to_bfloat16(float x) {
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// Byte i is that of y:x which nibble i of the selector names, or its sign where bit 3 is set.
__device__ inline std::uint32_t permute(std::uint32_t x, std::uint32_t y, std::uint32_t selector) {
  std::uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(x), "r"(y), "r"(selector));
  return bytes;
}

// d += a * b by a whole warp that a barrier has brought together. Volatile, so that the compiler
// moves it into no branch. a is 16 x 16, b 16 x 8, d 16 x 8. With g = lane / 4, t = lane % 4,
// and two 16-bit values to a register, a lane holds
//   a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)    and the column after each
//   b: (2t, g), (2t + 8, g)                                  and the row after each
//   d: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <DType kType>
__device__ inline void mma(float (&d)[4], const std::uint32_t (&a)[4],
                           const std::uint32_t (&b)[2]) {
  if constexpr (kType == DType::f16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with int8: a is 16 x 32, b 32 x 8, four values to a register, so that columns 2t and
// 2t + 8 of a (rows of b) above are 4t and 4t + 16 here.
__device__ inline void mma_i8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                              const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Sixteen bytes from global to shared memory, or zeros, behind the thread's back: they are there
// after copy_wait<n>, which leaves the n groups last committed on their way, and a __syncthreads.
__device__ inline void copy_16(void *shared, const void *global, bool zero) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(zero ? 0 : 16)
               : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft> __device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#endif

struct Half {
  static constexpr DType kType = DType::f16;
  std::uint16_t bits;
};
struct Bfloat16 {
  static constexpr DType kType = DType::bf16;
  std::uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return half_to_float(x.bits); }
__device__ inline float to_float(Bfloat16 x) {
  return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16);
}
__device__ inline void from_float(float x, float &to) { to = x; }
__device__ inline void from_float(float x, Half &to) { to.bits = float_to_half(x); }
__device__ inline void from_float(float x, Bfloat16 &to) { to.bits = float_to_bfloat16(x); }

// f(T{}) for the element type.
template <class F> void with_type(DType type, F f) {
  if (type == DType::f32)
    f(float{});
  else if (type == DType::f16)
    f(Half{});
  else
    f(Bfloat16{});
}

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }
template <class T> __host__ __device__ constexpr T min_of(T a, T b) { return a < b ? a : b; }
template <class T> __host__ __device__ constexpr T max_of(T a, T b) { return a > b ? a : b; }

// The CPU's reduce_add, over the sixteen lanes of each half of a warp.
__device__ inline float add_16_lanes(float x) {
  for (int half = 8; half > 0; half /= 2) x += __shfl_xor_sync(kAllLanes, x, half);
  return x;
}

// The sum of a warp's x up to this lane, its own included.
template <class T> __device__ T sum_up_to_lane(T x) {
  for (unsigned by = 1; by < kWarp; by *= 2) {
    const T other = __shfl_up_sync(kAllLanes, x, by);
    if (threadIdx.x % kWarp >= by) x += other;
  }
  return x;
}

} // namespace colbert_fast::cuda
