// AVX2 + FMA + F16C. Sixteen lanes are two registers; tile: 4 rows x 1 panel = 8 accumulators,
// which with 2 panel registers and a broadcast fit the sixteen there are. u8 x s8 products go
// through maddubs: its 16-bit pair sums cannot saturate while one side stays below 128 (kMaxLevel).
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

namespace {

constexpr std::size_t kTileRows = 4, kTilePanels = 1, kBytes = 32;
constexpr bool kScreens = false;

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct Mask {
  __m256 lo, hi;
};
using Bytes = __m256i;

inline __m256i loadi(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m128i loadi128(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }

inline F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float *p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline __m256 widen_bf16(const std::uint16_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(loadi128(p)), 16));
}
inline F32x16 load_bf16(const std::uint16_t *p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
inline F32x16 load_f16(const std::uint16_t *p) {
  return {_mm256_cvtph_ps(loadi128(p)), _mm256_cvtph_ps(loadi128(p + 8))};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline Mask gt(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)};
}
inline unsigned bits(Mask m) {
  return static_cast<unsigned>(_mm256_movemask_ps(m.lo)) |
         static_cast<unsigned>(_mm256_movemask_ps(m.hi)) << 8;
}
inline float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(F32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline I32x16 set1(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I32x16 load(const std::int32_t *p) { return {loadi(p), loadi(p + 8)}; }
inline I32x16 load_u8(const std::uint8_t *p) {
  const __m128i bytes = loadi128(p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
}
inline void store(std::int32_t *p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p + 8), a.hi);
}
inline I32x16 select(Mask m, I32x16 a, I32x16 b) {
  return {_mm256_blendv_epi8(b.lo, a.lo, _mm256_castps_si256(m.lo)),
          _mm256_blendv_epi8(b.hi, a.hi, _mm256_castps_si256(m.hi))};
}
inline I32x16 min(I32x16 a, I32x16 b) {
  return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
}
inline I32x16 count(I32x16 a, Mask m) {
  return {_mm256_sub_epi32(a.lo, _mm256_castps_si256(m.lo)),
          _mm256_sub_epi32(a.hi, _mm256_castps_si256(m.hi))};
}
inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// Entries of a table of sixteen: of either half, chosen by bit 3 of the index.
inline __m256 lookup(F32x16 table, __m256i index) {
  const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.lo, index),
                          _mm256_permutevar8x32_ps(table.hi, index), upper);
}
inline F32x16 lookup(F32x16 table, I32x16 index) {
  return {lookup(table, index.lo), lookup(table, index.hi)};
}
// Rounded to nearest, ties to even, and clamped.
inline void store_u8(std::uint8_t *p, F32x16 a) {
  // The packs work within 128-bit halves: words 0-3 of lo, of hi, 4-7 of lo, of hi.
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i *>(p),
      _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
inline __m256i dot4(__m256i acc, __m256i u, __m256i s) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
inline I32x16 dot4(I32x16 acc, const std::uint8_t *u, const std::int8_t *s) {
  std::int32_t four;
  memcpy(&four, u, 4);
  const __m256i all = _mm256_set1_epi32(four);
  return {dot4(acc.lo, all, loadi(s)), dot4(acc.hi, all, loadi(s + 32))};
}

// Sixteen fields of a bit stream that begin at bit `first` < 8, as 32-bit words: each lies in two
// words of the 32 bytes that hold eight. Shifts by 32 give zero.
struct Fields {
  __m256i word, shift, back, mask;
  std::ptrdiff_t bytes; // of eight fields
  Fields(int bits, int first)
      : mask(_mm256_set1_epi32(static_cast<int>((1u << bits) - 1u))), bytes(bits) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i at = _mm256_add_epi32(_mm256_mullo_epi32(lane, _mm256_set1_epi32(bits)),
                                        _mm256_set1_epi32(first));
    word = _mm256_srli_epi32(at, 5);
    shift = _mm256_and_si256(at, _mm256_set1_epi32(31));
    back = _mm256_sub_epi32(_mm256_set1_epi32(32), shift);
  }
  __m256i eight(const std::uint8_t *p) const {
    const __m256i all = loadi(p), next = _mm256_add_epi32(word, _mm256_set1_epi32(1));
    const __m256i low = _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(all, word), shift);
    const __m256i high = _mm256_sllv_epi32(_mm256_permutevar8x32_epi32(all, next), back);
    return _mm256_and_si256(_mm256_or_si256(low, high), mask);
  }
  I32x16 read(const std::uint8_t *p) const { return {eight(p), eight(p + bytes)}; }
};

inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }

inline Bytes load_bytes(const std::uint8_t *p) { return loadi(p); }
inline Bytes load_16_bytes(const std::uint8_t *p) { return _mm256_zextsi128_si256(loadi128(p)); }
inline Bytes load_8_bytes(const std::uint8_t *p) {
  return _mm256_zextsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
}
inline Bytes load_table(const std::uint8_t *p) { return _mm256_broadcastsi128_si256(loadi128(p)); }
inline void store_bytes(std::uint8_t *p, Bytes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), a);
}
inline Bytes field(Bytes a, int shift, std::uint8_t mask) {
  return _mm256_and_si256(_mm256_srli_epi16(a, shift), _mm256_set1_epi8(static_cast<char>(mask)));
}
inline Bytes field_left(Bytes a, int shift, std::uint8_t mask) {
  return _mm256_and_si256(_mm256_slli_epi16(a, shift), _mm256_set1_epi8(static_cast<char>(mask)));
}
// Every byte moves up by one; a zero enters.
inline Bytes shift_in(Bytes a) {
  return _mm256_alignr_epi8(a, _mm256_permute2x128_si256(a, a, 0x08), 15);
}
inline Bytes max_bytes(Bytes a, Bytes b) { return _mm256_max_epu8(a, b); }
inline Bytes sub_bytes(Bytes a, Bytes b) { return _mm256_subs_epu8(a, b); }
inline bool any_above(Bytes a, Bytes b) {
  const __m256i above = _mm256_subs_epu8(a, b);
  return _mm256_testz_si256(above, above) == 0;
}
inline Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
inline Bytes lookup(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }
// Bytes from the seventeenth on doubled.
inline Bytes double_upper(Bytes a) {
  return _mm256_add_epi8(a, _mm256_blend_epi32(_mm256_setzero_si256(), a, 0xf0));
}
// Sixteen bytes of a and of b by turns.
inline void interleave(const std::uint8_t *a, const std::uint8_t *b, std::uint8_t *out) {
  const __m128i left = _mm_loadu_si128(reinterpret_cast<const __m128i *>(a));
  const __m128i right = _mm_loadu_si128(reinterpret_cast<const __m128i *>(b));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(out), _mm_unpacklo_epi8(left, right));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 16), _mm_unpackhi_epi8(left, right));
}

} // namespace

#define COLBERT_FAST_TABLE kernels_avx2
#define COLBERT_FAST_ISA_NAME "avx2"
#include "table-inl.h"
