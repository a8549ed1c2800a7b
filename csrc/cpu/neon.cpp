// NEON as every AArch64 has it. Sixteen lanes are four registers; tile: 4 rows x 1 panel = 16 of
// the 32 registers. Levels below 128 read the same as signed bytes, so u8 x s8 is vmull_s8, and two
// widening pair sums bring four products into each 32-bit lane, exactly.
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

namespace {

constexpr std::size_t kTileRows = 4, kTilePanels = 1, kBytes = 16;
constexpr bool kScreens = false;

struct F32x16 {
  float32x4_t v[4];
};
struct I32x16 {
  int32x4_t v[4];
};
struct Mask {
  uint32x4_t v[4];
};
using Bytes = uint8x16_t;

template <class T, class F> inline T each(F f) { return T{{f(0), f(1), f(2), f(3)}}; }

inline F32x16 set1(float x) {
  return each<F32x16>([&](int) { return vdupq_n_f32(x); });
}
inline F32x16 load(const float *p) {
  return each<F32x16>([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float *p, F32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline F32x16 load_bf16(const std::uint16_t *p) {
  return each<F32x16>(
      [&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline F32x16 load_f16(const std::uint16_t *p) {
  return each<F32x16>(
      [&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each<F32x16>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Mask gt(F32x16 a, F32x16 b) {
  return each<Mask>([&](int i) { return vcgtq_f32(a.v[i], b.v[i]); });
}
// a > b ? a : b, as x86 has it; vmaxq would differ in the sign of zero.
inline F32x16 max(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline unsigned bits(Mask m) {
  const uint32x4_t weights = {1, 2, 4, 8};
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) r |= vaddvq_u32(vandq_u32(m.v[i], weights)) << (4 * i);
  return r;
}
inline float reduce_add(F32x16 a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float reduce_max(F32x16 a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}

inline I32x16 set1(std::int32_t x) {
  return each<I32x16>([&](int) { return vdupq_n_s32(x); });
}
inline I32x16 load(const std::int32_t *p) {
  return each<I32x16>([&](int i) { return vld1q_s32(p + 4 * i); });
}
inline I32x16 load_u8(const std::uint8_t *p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
           vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
           vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
           vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
}
inline void store(std::int32_t *p, I32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.v[i]);
}
inline I32x16 select(Mask m, I32x16 a, I32x16 b) {
  return each<I32x16>([&](int i) { return vbslq_s32(m.v[i], a.v[i], b.v[i]); });
}
inline I32x16 min(I32x16 a, I32x16 b) {
  return each<I32x16>([&](int i) { return vminq_s32(a.v[i], b.v[i]); });
}
inline I32x16 count(I32x16 a, Mask m) {
  return each<I32x16>([&](int i) { return vsubq_s32(a.v[i], vreinterpretq_s32_u32(m.v[i])); });
}
inline F32x16 to_float(I32x16 a) {
  return each<F32x16>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
// Entries of a table of sixteen: its 64 bytes, four at a time.
inline F32x16 lookup(F32x16 table, I32x16 index) {
  uint8x16x4_t bytes;
  for (int i = 0; i < 4; ++i) bytes.val[i] = vreinterpretq_u8_f32(table.v[i]);
  return each<F32x16>([&](int i) {
    const uint32x4_t at = vmulq_n_u32(vreinterpretq_u32_s32(index.v[i]), 0x04040404u);
    const uint8x16_t which = vreinterpretq_u8_u32(vaddq_u32(at, vdupq_n_u32(0x03020100u)));
    return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, which));
  });
}
// Rounded to nearest, ties to even, and clamped.
inline void store_u8(std::uint8_t *p, F32x16 a) {
  uint16x4_t part[4];
  for (int i = 0; i < 4; ++i) part[i] = vqmovun_s32(vcvtnq_s32_f32(a.v[i]));
  vst1q_u8(p, vcombine_u8(vqmovn_u16(vcombine_u16(part[0], part[1])),
                          vqmovn_u16(vcombine_u16(part[2], part[3]))));
}
inline I32x16 dot4(I32x16 acc, const std::uint8_t *u, const std::int8_t *s) {
  std::int32_t four;
  memcpy(&four, u, 4);
  const int8x8_t all = vreinterpret_s8_s32(vdup_n_s32(four));
  return each<I32x16>([&](int i) {
    const int8x16_t q = vld1q_s8(s + 16 * i);
    const int32x4_t low = vpaddlq_s16(vmull_s8(all, vget_low_s8(q)));
    const int32x4_t high = vpaddlq_s16(vmull_s8(all, vget_high_s8(q)));
    return vaddq_s32(acc.v[i], vpaddq_s32(low, high));
  });
}

// Sixteen fields of a bit stream that begin at bit `first` < 8, as 32-bit words: each lies in five
// of the 32 bytes that hold eight, at a shift below 8. Look-ups past those bytes give zero.
struct Fields {
  uint8x16_t low[2], high[2];
  int32x4_t shift[2];
  uint32x4_t mask;
  std::ptrdiff_t bytes; // of eight fields
  Fields(int bits, int first) : mask(vdupq_n_u32((1u << bits) - 1u)), bytes(bits) {
    std::uint8_t at[32];
    std::int32_t right[8];
    for (int lane = 0; lane < 8; ++lane) {
      const int bit = first + lane * bits;
      right[lane] = -(bit % 8);
      for (int k = 0; k < 4; ++k) at[4 * lane + k] = static_cast<std::uint8_t>(bit / 8 + k);
    }
    for (int i = 0; i < 2; ++i) {
      low[i] = vld1q_u8(at + 16 * i);
      high[i] = vaddq_u8(low[i], vdupq_n_u8(4));
      shift[i] = vld1q_s32(right + 4 * i);
    }
  }
  int32x4_t four(uint8x16x2_t all, int i) const {
    const uint32x4_t a = vreinterpretq_u32_u8(vqtbl2q_u8(all, low[i]));
    const uint32x4_t b = vreinterpretq_u32_u8(vqtbl2q_u8(all, high[i]));
    const uint32x4_t both =
        vorrq_u32(vshlq_u32(a, shift[i]), vshlq_u32(b, vaddq_s32(shift[i], vdupq_n_s32(32))));
    return vreinterpretq_s32_u32(vandq_u32(both, mask));
  }
  I32x16 read(const std::uint8_t *p) const {
    const uint8x16x2_t a = {{vld1q_u8(p), vld1q_u8(p + 16)}};
    const uint8x16x2_t b = {{vld1q_u8(p + bytes), vld1q_u8(p + bytes + 16)}};
    return {{four(a, 0), four(a, 1), four(b, 0), four(b, 1)}};
  }
};

inline void prefetch(const void *p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

inline Bytes load_bytes(const std::uint8_t *p) { return vld1q_u8(p); }
inline Bytes load_16_bytes(const std::uint8_t *p) { return load_bytes(p); }
inline Bytes load_8_bytes(const std::uint8_t *p) { return vcombine_u8(vld1_u8(p), vdup_n_u8(0)); }
inline Bytes load_table(const std::uint8_t *p) { return vld1q_u8(p); }
inline void store_bytes(std::uint8_t *p, Bytes a) { vst1q_u8(p, a); }
inline Bytes field(Bytes a, int shift, std::uint8_t mask) {
  return vandq_u8(vshlq_u8(a, vdupq_n_s8(static_cast<std::int8_t>(-shift))), vdupq_n_u8(mask));
}
inline Bytes field_left(Bytes a, int shift, std::uint8_t mask) {
  return vandq_u8(vshlq_u8(a, vdupq_n_s8(static_cast<std::int8_t>(shift))), vdupq_n_u8(mask));
}
// Every byte moves up by one; a zero enters.
inline Bytes shift_in(Bytes a) { return vextq_u8(vdupq_n_u8(0), a, 15); }
inline Bytes max_bytes(Bytes a, Bytes b) { return vmaxq_u8(a, b); }
inline Bytes sub_bytes(Bytes a, Bytes b) { return vqsubq_u8(a, b); }
inline bool any_above(Bytes a, Bytes b) { return vmaxvq_u8(vcgtq_u8(a, b)) != 0; }
inline Bytes add_bytes(Bytes a, Bytes b) { return vaddq_u8(a, b); }
inline Bytes lookup(Bytes table, Bytes index) { return vqtbl1q_u8(table, index); }
// Bytes from the seventeenth on doubled: a register has no more than sixteen here.
inline Bytes double_upper(Bytes a) { return a; }
// Sixteen bytes of a and of b by turns.
inline void interleave(const std::uint8_t *a, const std::uint8_t *b, std::uint8_t *out) {
  const uint8x16x2_t both = {{vld1q_u8(a), vld1q_u8(b)}};
  vst2q_u8(out, both);
}

} // namespace

#define COLBERT_FAST_TABLE kernels_neon
#define COLBERT_FAST_ISA_NAME "neon"
#include "table-inl.h"
