// AVX-512 F/DQ/BW/VL + VNNI. Tile: 8 rows x 2 panels = 16 accumulators; per dimension 2 panel loads
// and 8 broadcasts feed 16 fmas, so the two fma ports stay the bound (floor: 4 ns per 32 x 128
// token at 32 lanes x 4 GHz, 64 vpdpbusd = 32 cycles per token for int8).
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

namespace {

constexpr std::size_t kTileRows = 8, kTilePanels = 2, kBytes = 32;
constexpr bool kScreens = true;

using F32x16 = __m512;
using I32x16 = __m512i;
using Mask = __mmask16;
using Bytes = __m256i;

inline F32x16 set1(float x) { return _mm512_set1_ps(x); }
inline F32x16 load(const float *p) { return _mm512_loadu_ps(p); }
inline void store(float *p, F32x16 a) { _mm512_storeu_ps(p, a); }
inline F32x16 load_bf16(const std::uint16_t *p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline F32x16 load_f16(const std::uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32x16 add(F32x16 a, F32x16 b) { return _mm512_add_ps(a, b); }
inline F32x16 sub(F32x16 a, F32x16 b) { return _mm512_sub_ps(a, b); }
inline F32x16 mul(F32x16 a, F32x16 b) { return _mm512_mul_ps(a, b); }
inline F32x16 max(F32x16 a, F32x16 b) { return _mm512_max_ps(a, b); }
inline Mask gt(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline unsigned bits(Mask m) { return m; }
inline float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a); }

inline I32x16 set1(std::int32_t x) { return _mm512_set1_epi32(x); }
inline I32x16 load(const std::int32_t *p) { return _mm512_loadu_si512(p); }
inline I32x16 load_u8(const std::uint8_t *p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
inline void store(std::int32_t *p, I32x16 a) { _mm512_storeu_si512(p, a); }
inline I32x16 select(Mask m, I32x16 a, I32x16 b) { return _mm512_mask_blend_epi32(m, b, a); }
inline I32x16 min(I32x16 a, I32x16 b) { return _mm512_min_epi32(a, b); }
inline I32x16 count(I32x16 a, Mask m) {
  return _mm512_mask_add_epi32(a, m, a, _mm512_set1_epi32(1));
}
inline F32x16 to_float(I32x16 a) { return _mm512_cvtepi32_ps(a); }
// Entries of a table of sixteen.
inline F32x16 lookup(F32x16 table, I32x16 index) { return _mm512_permutexvar_ps(index, table); }
// Rounded to nearest, ties to even, and clamped.
inline void store_u8(std::uint8_t *p, F32x16 a) {
  const __m512i rounded = _mm512_max_epi32(_mm512_cvtps_epi32(a), _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtusepi32_epi8(rounded));
}
inline I32x16 dot4(I32x16 acc, const std::uint8_t *u, const std::int8_t *s) {
  std::int32_t four;
  memcpy(&four, u, 4);
  return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(four), _mm512_loadu_si512(s));
}

// Sixteen fields of a bit stream that begin at bit `first` < 8, as 32-bit words: each lies in two
// words of the 64 bytes that hold all. Shifts by 32 give zero.
struct Fields {
  __m512i word, shift, back, mask;
  Fields(int bits, int first) : mask(_mm512_set1_epi32(static_cast<int>((1u << bits) - 1u))) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(bits)),
                                        _mm512_set1_epi32(first));
    word = _mm512_srli_epi32(at, 5);
    shift = _mm512_and_si512(at, _mm512_set1_epi32(31));
    back = _mm512_sub_epi32(_mm512_set1_epi32(32), shift);
  }
  I32x16 read(const std::uint8_t *p) const {
    const __m512i all = _mm512_loadu_si512(p), next = _mm512_add_epi32(word, _mm512_set1_epi32(1));
    const __m512i low = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, all), shift);
    const __m512i high = _mm512_sllv_epi32(_mm512_permutexvar_epi32(next, all), back);
    return _mm512_and_si512(_mm512_or_si512(low, high), mask);
  }
};

inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }

inline Bytes load_bytes(const std::uint8_t *p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
}
inline Bytes load_16_bytes(const std::uint8_t *p) {
  return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
inline Bytes load_8_bytes(const std::uint8_t *p) {
  return _mm256_zextsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
}
inline Bytes load_table(const std::uint8_t *p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
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
inline bool any_above(Bytes a, Bytes b) { return _mm256_cmpgt_epu8_mask(a, b) != 0; }
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

#define COLBERT_FAST_TABLE kernels_avx512
#define COLBERT_FAST_ISA_NAME "avx512"
#include "table-inl.h"
