// The SIMD vocabulary as plain loops: the table every machine has, and the yardstick for the
// others. Without a hardware fma (x86-64 baseline) fmaf is a library call: right, and slow.
#include <math.h>
#include <string.h>

#include "kernels.h"

namespace {

constexpr std::size_t kTileRows = 1, kTilePanels = 1, kBytes = 16;
constexpr bool kScreens = true;

struct F32x16 {
  float v[16];
};
struct I32x16 {
  std::int32_t v[16];
};
struct Mask {
  bool v[16];
};
struct Bytes {
  std::uint8_t v[16];
};

template <class T, class F> inline T each(F f) {
  T r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}

inline F32x16 set1(float x) {
  return each<F32x16>([&](int) { return x; });
}
inline F32x16 load(const float *p) {
  return each<F32x16>([&](int i) { return p[i]; });
}
inline void store(float *p, F32x16 a) { memcpy(p, a.v, sizeof a.v); }
inline F32x16 load_bf16(const std::uint16_t *p) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(p[i]) << 16;
    memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
inline float half(std::uint16_t h) {
  // Shift exponent and mantissa into place and rescale by 2^112: exact for subnormals too.
  const std::uint32_t magnitude = (h & 0x7fffu) << 13, scale = 239u << 23, inf = 255u << 23;
  float x, s;
  memcpy(&x, &magnitude, 4);
  memcpy(&s, &scale, 4);
  x *= s;
  std::uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((h & 0x7c00u) == 0x7c00u) bits = inf | magnitude;
  bits |= (h & 0x8000u) << 16;
  memcpy(&x, &bits, 4);
  return x;
}
inline F32x16 load_f16(const std::uint16_t *p) {
  return each<F32x16>([&](int i) { return half(p[i]); });
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each<F32x16>([&](int i) { return fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.v[i] + b.v[i]; });
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.v[i] - b.v[i]; });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.v[i] * b.v[i]; });
}
inline Mask gt(F32x16 a, F32x16 b) {
  return each<Mask>([&](int i) { return a.v[i] > b.v[i]; });
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline float reduce_add(F32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float reduce_max(F32x16 a) {
  for (int i = 1; i < 16; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}
inline unsigned bits(Mask m) {
  unsigned r = 0;
  for (int i = 0; i < 16; ++i) r |= static_cast<unsigned>(m.v[i]) << i;
  return r;
}

inline I32x16 set1(std::int32_t x) {
  return each<I32x16>([&](int) { return x; });
}
inline I32x16 load(const std::int32_t *p) {
  return each<I32x16>([&](int i) { return p[i]; });
}
inline I32x16 load_u8(const std::uint8_t *p) {
  return each<I32x16>([&](int i) { return p[i]; });
}
inline void store(std::int32_t *p, I32x16 a) { memcpy(p, a.v, sizeof a.v); }
inline I32x16 select(Mask m, I32x16 a, I32x16 b) {
  return each<I32x16>([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
}
inline I32x16 min(I32x16 a, I32x16 b) {
  return each<I32x16>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline I32x16 count(I32x16 a, Mask m) {
  return each<I32x16>([&](int i) { return a.v[i] + m.v[i]; });
}
inline F32x16 to_float(I32x16 a) {
  return each<F32x16>([&](int i) { return static_cast<float>(a.v[i]); });
}
// Entries of a table of sixteen.
inline F32x16 lookup(F32x16 table, I32x16 index) {
  return each<F32x16>([&](int i) { return table.v[index.v[i]]; });
}
// Rounded to nearest, ties to even, and clamped.
inline void store_u8(std::uint8_t *p, F32x16 a) {
  for (int i = 0; i < 16; ++i) {
    const float rounded = nearbyintf(a.v[i]);
    p[i] = static_cast<std::uint8_t>(rounded < 0.0f ? 0.0f : rounded > 255.0f ? 255.0f : rounded);
  }
}
// acc[lane] += sum of u[j] * s[lane][j] over four dimensions; u < 128.
inline I32x16 dot4(I32x16 acc, const std::uint8_t *u, const std::int8_t *s) {
  return each<I32x16>([&](int i) {
    return acc.v[i] + u[0] * s[4 * i] + u[1] * s[4 * i + 1] + u[2] * s[4 * i + 2] +
           u[3] * s[4 * i + 3];
  });
}

// Sixteen fields of a bit stream that begin at bit `first` < 8, each in two of its 32-bit words.
struct Fields {
  int bits, first;
  Fields(int n, int at) : bits(n), first(at) {}
  I32x16 read(const std::uint8_t *p) const {
    return each<I32x16>([&](int i) {
      const int at = first + i * bits;
      std::uint64_t words;
      memcpy(&words, p + at / 32 * 4, 8);
      return static_cast<std::int32_t>(words >> at % 32 & ((std::uint64_t{1} << bits) - 1));
    });
  }
};

inline void prefetch(const void *p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

inline Bytes load_bytes(const std::uint8_t *p) {
  return each<Bytes>([&](int i) { return p[i]; });
}
inline Bytes load_16_bytes(const std::uint8_t *p) { return load_bytes(p); }
inline Bytes load_8_bytes(const std::uint8_t *p) {
  return each<Bytes>([&](int i) { return i < 8 ? p[i] : std::uint8_t{0}; });
}
inline Bytes load_table(const std::uint8_t *p) { return load_bytes(p); }
inline void store_bytes(std::uint8_t *p, Bytes a) { memcpy(p, a.v, sizeof a.v); }
inline Bytes field(Bytes a, int shift, std::uint8_t mask) {
  return each<Bytes>([&](int i) { return static_cast<std::uint8_t>((a.v[i] >> shift) & mask); });
}
inline Bytes field_left(Bytes a, int shift, std::uint8_t mask) {
  return each<Bytes>([&](int i) { return static_cast<std::uint8_t>((a.v[i] << shift) & mask); });
}
// Every byte moves up by one; a zero enters.
inline Bytes shift_in(Bytes a) {
  return each<Bytes>([&](int i) { return i == 0 ? std::uint8_t{0} : a.v[i - 1]; });
}
inline Bytes max_bytes(Bytes a, Bytes b) {
  return each<Bytes>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Bytes sub_bytes(Bytes a, Bytes b) {
  return each<Bytes>(
      [&](int i) { return static_cast<std::uint8_t>(a.v[i] > b.v[i] ? a.v[i] - b.v[i] : 0); });
}
inline bool any_above(Bytes a, Bytes b) {
  bool any = false;
  for (std::size_t i = 0; i < kBytes; ++i) any |= a.v[i] > b.v[i];
  return any;
}
inline Bytes add_bytes(Bytes a, Bytes b) {
  return each<Bytes>([&](int i) { return static_cast<std::uint8_t>(a.v[i] + b.v[i]); });
}
inline Bytes lookup(Bytes table, Bytes index) {
  return each<Bytes>([&](int i) { return table.v[index.v[i]]; });
}
// Bytes from the seventeenth on doubled: a register has no more than sixteen here.
inline Bytes double_upper(Bytes a) { return a; }
// Sixteen bytes of a and of b by turns.
inline void interleave(const std::uint8_t *a, const std::uint8_t *b, std::uint8_t *out) {
  for (int i = 0; i < 16; ++i) out[2 * i] = a[i], out[2 * i + 1] = b[i];
}

} // namespace

#define COLBERT_FAST_TABLE kernels_scalar
#define COLBERT_FAST_ISA_NAME "scalar"
#include "table-inl.h"
