// CUDA's names as plain C++, so that kernels run without a GPU and under the sanitizers.
//
// A grid runs block after block. Each thread of a block is a fiber that runs until a barrier
// (__syncthreads, or anything that a whole warp does together) and goes on when all that the
// barrier is for have come to the same line; where they cannot, the program aborts and says so. A
// warp runs as far as it comes before the next one does, and a copy_16 happens no sooner than its
// copy_wait. With `reverse` warps and lanes run in descending order and copies happen at once: what
// differs between the two lacked a barrier. Shared memory starts as 0xff and is exactly as long as
// the launch said.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __host__
#define __device__
#define __launch_bounds__(...)
#define threadIdx (::cuda_on_host::self().index)
#define blockIdx (::cuda_on_host::block().index)
#define blockDim (::cuda_on_host::block().dim)
#define gridDim (::cuda_on_host::block().grid)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace cuda_on_host {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
struct Copy {
  void *to;
  const void *from; // null: zeros
  void run() const {
    if (from == nullptr)
      std::memset(to, 0, 16);
    else
      std::memcpy(to, from, 16);
  }
};

enum class Wait { none, warp, block, done };

struct Fiber {
  Index index;
  Wait wait = Wait::none;
  int line = 0;
  unsigned turn = 0; // exchanges so far
  std::vector<std::vector<Copy>> copies{1};
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void *fake_stack = nullptr;
};

struct Exchange {
  alignas(16) unsigned char bytes[2][32][32];
};

struct Block {
  Index index, dim, grid;
  std::unique_ptr<unsigned char[]> shared;
  std::vector<Fiber> fibers;
  std::vector<Exchange> warps;
  ucontext_t scheduler;
  Fiber *running = nullptr;
  void (*body)(void *) = nullptr;
  void *arguments = nullptr;
#ifdef __SANITIZE_ADDRESS__
  const void *main_stack = nullptr;
  std::size_t main_size = 0;
#endif
};

inline bool reverse = false;

inline Block &block() {
  static Block one;
  return one;
}
inline Fiber &self() { return *block().running; }

[[noreturn]] inline void fail(const char *what, const Fiber &fiber) {
  std::printf("FAILED on the emulated GPU: %s (block %u, %u, thread %u, line %d)\n", what,
              block().index.x, block().index.y, fiber.index.x, fiber.line);
  std::fflush(stdout);
  std::abort();
}

constexpr std::size_t kStack = 256 << 10;

// AddressSanitizer has to be told that the stack changes.
inline void enter(Fiber &fiber) {
  Block &b = block();
  b.running = &fiber;
#ifdef __SANITIZE_ADDRESS__
  void *fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
  swapcontext(&b.scheduler, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void leave(Fiber &fiber, Wait wait, int line) {
  Block &b = block();
  fiber.wait = wait, fiber.line = line;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(wait == Wait::done ? nullptr : &fiber.fake_stack, b.main_stack,
                                 b.main_size);
#endif
  swapcontext(&fiber.context, &b.scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &b.main_stack, &b.main_size);
#endif
}

inline void trampoline() {
  Block &b = block();
  Fiber &fiber = *b.running;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &b.main_stack, &b.main_size);
#endif
  b.body(b.arguments);
  leave(fiber, Wait::done, 0);
}

// Whether these fibers all wait for `wait` at one line; then they go on.
inline bool release(Fiber *first, std::size_t n, Wait wait) {
  for (std::size_t i = 0; i < n; ++i)
    if (first[i].wait != wait || first[i].line != first[0].line) return false;
  for (std::size_t i = 0; i < n; ++i) first[i].wait = Wait::none;
  return true;
}

// As far as a warp comes without the others.
inline void run_warp(Fiber *lanes) {
  do
    for (unsigned i = 0; i < 32; ++i)
      if (Fiber &fiber = lanes[reverse ? 31 - i : i]; fiber.wait == Wait::none) enter(fiber);
  while (release(lanes, 32, Wait::warp));
}

inline void run_block(unsigned threads, std::size_t shared) {
  Block &b = block();
  if (threads == 0 || threads % 32 != 0 || threads > 1024) fail("a bad number of threads", Fiber());
  b.dim = {threads, 1, 1};
  b.shared.reset(new unsigned char[shared]);
  std::memset(b.shared.get(), 0xff, shared);
  if (b.fibers.size() != threads) b.fibers.clear(), b.fibers.resize(threads);
  b.warps.resize(threads / 32);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber &fiber = b.fibers[i];
    fiber.index = {i, 0, 0}, fiber.wait = Wait::none, fiber.turn = 0, fiber.fake_stack = nullptr;
    fiber.copies.assign(1, {});
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, trampoline, 0);
  }
  do
    for (unsigned w = 0; w < threads; w += 32) run_warp(&b.fibers[reverse ? threads - 32 - w : w]);
  while (release(b.fibers.data(), threads, Wait::block));
  for (const Fiber &fiber : b.fibers)
    if (fiber.wait != Wait::done) fail("a barrier that not all threads reach", fiber);
}

template <class T> void put(const T &value, std::size_t at = 0) {
  static_assert(sizeof(T) <= 32, "a slot is 32 bytes");
  Fiber &fiber = self();
  std::memcpy(block().warps[fiber.index.x / 32].bytes[fiber.turn % 2][fiber.index.x % 32] + at,
              &value, sizeof value);
}
// Slots alternate, so that a lane which is ahead does not overwrite what others have yet to read.
inline void meet(int line) {
  ++self().turn;
  leave(self(), Wait::warp, line);
}
template <class T> T get(unsigned lane, std::size_t at = 0) {
  const Fiber &fiber = self();
  T value;
  std::memcpy(&value, block().warps[fiber.index.x / 32].bytes[(fiber.turn + 1) % 2][lane] + at,
              sizeof value);
  return value;
}
inline void check_mask(unsigned mask) {
  if (mask != 0xffffffffu) fail("a mask that is not the whole warp", self());
}

} // namespace cuda_on_host

inline void __syncthreads(int line = __builtin_LINE()) {
  cuda_on_host::leave(cuda_on_host::self(), cuda_on_host::Wait::block, line);
}
inline void __syncwarp(int line = __builtin_LINE()) { cuda_on_host::meet(line); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane, int line = __builtin_LINE()) {
  cuda_on_host::check_mask(mask);
  cuda_on_host::put(value);
  cuda_on_host::meet(line);
  return cuda_on_host::get<T>(static_cast<unsigned>(lane) % 32);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int line = __builtin_LINE()) {
  const int lane = static_cast<int>(cuda_on_host::self().index.x % 32);
  return __shfl_sync(mask, value, lane ^ bits, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int line = __builtin_LINE()) {
  const unsigned lane = cuda_on_host::self().index.x % 32;
  return __shfl_sync(mask, value, static_cast<int>(lane < by ? lane : lane - by), line);
}

inline unsigned __ballot_sync(unsigned mask, bool value, int line = __builtin_LINE()) {
  cuda_on_host::check_mask(mask);
  cuda_on_host::put(value);
  cuda_on_host::meet(line);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    bits |= unsigned{cuda_on_host::get<bool>(lane)} << lane;
  return bits;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
  cuda_on_host::check_mask(mask);
  cuda_on_host::put(value);
  cuda_on_host::meet(line);
  unsigned sum = 0;
  for (unsigned lane = 0; lane < 32; ++lane) sum += cuda_on_host::get<unsigned>(lane);
  return sum;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline unsigned __vmaxu4(unsigned x, unsigned y) {
  unsigned most = 0;
  for (unsigned byte = 0xff; byte != 0; byte <<= 8)
    most |= (x & byte) > (y & byte) ? x & byte : y & byte;
  return most;
}

template <class T> T atomicAdd(T *at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
template <class T> T atomicMax(T *at, T value) {
  const T before = *at;
  *at = before < value ? value : before;
  return before;
}
template <class T> T atomicOr(T *at, T value) {
  const T before = *at;
  *at |= value;
  return before;
}

template <class To, class From> To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(std::uint32_t x) { return same_bits<float>(x); }
inline std::uint32_t __float_as_uint(float x) { return same_bits<std::uint32_t>(x); }
inline std::uint32_t __funnelshift_r(std::uint32_t low, std::uint32_t high, std::uint32_t shift) {
  return static_cast<std::uint32_t>(((std::uint64_t{high} << 32) | low) >> (shift & 31));
}
namespace colbert_fast::cuda {

constexpr std::size_t kFullGrid = 6; // so few that strides are needed

template <class T> struct Same {
  using type = T;
};

template <class... P>
void launch(void (*kernel)(P...), std::size_t x, std::size_t y, unsigned threads,
            std::size_t shared, Stream, typename Same<P>::type... arguments) {
  auto call = [&] { kernel(arguments...); };
  cuda_on_host::Block &block = cuda_on_host::block();
  block.arguments = &call;
  block.body = [](void *f) { (*static_cast<decltype(call) *>(f))(); };
  block.grid = {static_cast<unsigned>(x), static_cast<unsigned>(y), 1};
  for (unsigned j = 0; j < y; ++j)
    for (unsigned i = 0; i < x; ++i) {
      block.index = {i, j, 0};
      cuda_on_host::run_block(threads, shared);
    }
}

template <class T> T &shared_memory() {
  return *reinterpret_cast<T *>(cuda_on_host::block().shared.get());
}

inline std::uint32_t permute(std::uint32_t x, std::uint32_t y, std::uint32_t selector) {
  const std::uint64_t bytes = (std::uint64_t{y} << 32) | x;
  std::uint32_t out = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const std::uint32_t nibble = selector >> (4 * i);
    std::uint32_t byte = (bytes >> (8 * (nibble & 7))) & 0xff;
    if ((nibble & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}

inline float half_to_float(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float x = HUGE_VALF;
  if (exponent == 31 && mantissa != 0) x = NAN;
  if (exponent < 31)
    x = std::ldexp(static_cast<float>(exponent > 0 ? mantissa + 1024 : mantissa),
                   (exponent > 0 ? exponent : 1) - 25);
  return (bits & 0x8000) != 0 ? -x : x;
}

// To the nearest, ties to even; by a search through the halves, which lie in order.
inline std::uint16_t float_to_half(float x) {
  const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (!(size < 65520.0f))
    return static_cast<std::uint16_t>(sign | (size == size ? 0x7c00 : 0x7e00));
  std::uint16_t low = 0, high = 0x7c00;
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (half_to_float(middle) <= size ? low : high) = middle;
  }
  const float above = high == 0x7c00 ? 65536.0f : half_to_float(high);
  const float to_low = size - half_to_float(low), to_high = above - size;
  const bool up = to_high < to_low || (to_high == to_low && (low & 1) != 0);
  return static_cast<std::uint16_t>(sign | (up ? high : low));
}

inline std::uint16_t float_to_bfloat16(float x) {
  if (x != x) return 0x7fff;
  const std::uint32_t bits = __float_as_uint(x);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Element (row, k) of a 16-row matrix, (k, column) of an 8-column one, in registers that hold
// 4 / kBytes values of kBytes.
template <int kBytes, class T> T left_of(unsigned row, unsigned k) {
  constexpr unsigned kRun = 4 / kBytes; // values to a register
  const unsigned lane = row % 8 * 4 + k % (4 * kRun) / kRun;
  return cuda_on_host::get<T>(lane, (row / 8 + 2 * (k / (4 * kRun))) * 4 + k % kRun * kBytes);
}
template <int kBytes, class T> T right_of(unsigned k, unsigned column) {
  constexpr unsigned kRun = 4 / kBytes;
  const unsigned lane = column * 4 + k % (4 * kRun) / kRun;
  return cuda_on_host::get<T>(lane, 16 + k / (4 * kRun) * 4 + k % kRun * kBytes);
}

template <int kBytes, class T, class D, class F>
void mma_of(D (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], F value,
            int line) {
  cuda_on_host::put(a), cuda_on_host::put(b, 16);
  cuda_on_host::meet(line);
  const unsigned lane = cuda_on_host::self().index.x % 32;
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 32 / kBytes; ++k)
      d[i] += value(left_of<kBytes, T>(lane / 4 + i / 2 * 8, k)) *
              value(right_of<kBytes, T>(k, lane % 4 * 2 + i % 2));
}

template <DType kType>
void mma(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
         int line = __builtin_LINE()) {
  mma_of<2, std::uint16_t>(
      d, a, b,
      [](std::uint16_t x) {
        return kType == DType::f16 ? half_to_float(x) : __uint_as_float(std::uint32_t{x} << 16);
      },
      line);
}
inline void mma_i8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                   int line = __builtin_LINE()) {
  mma_of<1, std::int8_t>(d, a, b, [](std::int8_t x) { return std::int32_t{x}; }, line);
}

inline void copy_16(void *shared, const void *global, bool zero) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(global) % 16 != 0)
    cuda_on_host::fail("a copy of 16 bytes that is not aligned", cuda_on_host::self());
  const cuda_on_host::Copy copy{shared, zero ? nullptr : global};
  if (cuda_on_host::reverse)
    copy.run();
  else
    cuda_on_host::self().copies.back().push_back(copy);
}
inline void copy_commit() { cuda_on_host::self().copies.emplace_back(); }
template <int kLeft> void copy_wait() {
  auto &groups = cuda_on_host::self().copies;
  while (groups.size() > kLeft + 1) {
    for (const cuda_on_host::Copy &copy : groups.front()) copy.run();
    groups.erase(groups.begin());
  }
}

} // namespace colbert_fast::cuda
