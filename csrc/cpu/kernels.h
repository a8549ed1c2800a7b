// The CPU kernels: one table of function pointers per instruction set, and what each entry
// promises.
//
// Kernels are pure: pointers in, pointer out; they never throw, allocate, lock or start threads.
//
// One contract holds for all of them: every float dot product is a single chain of fused
// multiply-adds in ascending dimension (the SIMD lanes are different dot products, never different
// dimensions), and every other sum follows a fixed tree. Integer work is exact. So all tables
// return the same bits, and neither the instruction set nor the number of threads can change an
// index.
#pragma once

#include <cstddef>
#include <cstdint>

// For what runs inside a tile, where a call would save and restore all of its sums, and for what is
// rarely called there.
#if defined(_MSC_VER)
#define COLBERT_FAST_INLINE __forceinline
#define COLBERT_FAST_NOINLINE __declspec(noinline)
#else
#define COLBERT_FAST_INLINE inline __attribute__((always_inline))
#define COLBERT_FAST_NOINLINE __attribute__((noinline))
#endif

namespace colbert_fast {

enum class DType { u8, u16, i32, i64, f16, bf16, f32, boolean };
// Bytes of a vector's element: f32, f16 or bf16.
constexpr std::size_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

// Lanes of a panel: 16 query tokens (or points) side by side, whatever the register width is.
constexpr std::size_t kLanes = 16;
constexpr std::size_t kMaxDim = 1024;
// Points that the assignment kernels take at once; bounds their scratch.
constexpr std::size_t kPointBlock = 256;
// The int8 kernel's levels stay below 128, so that AVX2's u8 x s8 pair sums fit 16 bits
// (2 * 127 * 127 = 32258) and NEON may read them as signed bytes.
constexpr int kMaxLevel = 127;
// 1.5 * 2^23: a float below 2^22 that is added to it is rounded to a whole number, ties to even,
// which the low bits hold.
constexpr float kRound = 12582912.0f;
// Rows whose largest magnitude is below it count as zero: quotients of subnormal numbers are
// anything.
constexpr float kVanishing = 1e-30f;
// PLAID's score of a query token that no token of a document matched.
constexpr float kNothingMatched = -9999.0f;

// `count` rows transposed for the SIMD lanes: data[panel][dim][kLanes]; missing rows are zero.
struct Panels {
  const float *data;
  std::size_t count, n_panels, dim;
};

// The same for int8: data[panel][dim / 4][kLanes][4]. The other operand's bytes stand for values
// from a zero point on, so products start at start[lane] = -zero * (sum of the lane's bytes).
struct PanelsI8 {
  const std::int8_t *data;
  const std::int32_t *start;
  std::size_t count, n_panels, dim;
};

// Centroid scores as bytes: row c, at rows + c * stride, scores step[lane] * (byte - kTableZero).
// `stride` is a multiple of kTableLanes.
struct ByteTable {
  const std::uint8_t *rows;
  std::size_t stride;
  const float *step;
};
constexpr std::size_t kTableLanes = 32;
constexpr int kTableZero = 127;

// Centroid ids, 2 or 4 bytes each.
struct Codes {
  const void *data;
  bool wide;
};

// A segment's ids, packed: id i takes bits i * bits to (i + 1) * bits - 1 of a stream that fills
// bytes from the lowest bit, and kCodePadding bytes follow, which kernels may read.
constexpr int kMaxCodeBits = 31;
constexpr std::size_t kCodePadding = 64;

// Unnamed, so that no translation unit can end up with another's copy compiled for a newer CPU.
namespace {
inline std::size_t code_at(Codes codes, std::size_t i) {
  return codes.wide ? static_cast<std::size_t>(static_cast<const std::int32_t *>(codes.data)[i])
                    : static_cast<std::size_t>(static_cast<const std::uint16_t *>(codes.data)[i]);
}
// A packed byte holds 8 / low_bits fields: the planes that dimensions are split into. With 3 bits
// each dimension's third bit lies apart.
constexpr int low_bits(int nbits) { return nbits == 3 ? 2 : nbits; }
constexpr std::size_t planes_of(int nbits) { return static_cast<std::size_t>(8 / low_bits(nbits)); }
// A level is looked up by a window of the bit stream: a dimension's own bits and, with 1 to 3 bits,
// so many of the bits before them that the window has 4.
constexpr int context_bits(int nbits) { return nbits < 4 ? 4 - nbits : 0; }
constexpr std::size_t windows_of(int nbits) { return nbits == 8 ? 256 : 16; }
inline Codes codes_from(Codes codes, std::size_t i) {
  return {static_cast<const char *>(codes.data) + i * (codes.wide ? 4 : 2), codes.wide};
}
} // namespace

// A token of one of several documents.
struct Chosen {
  std::int32_t document, token;
};

// Everything that decoding a residual needs. `values[window]` is what a dimension decodes to, the
// window (windows_of them) as it lies in the bytes, with 3 bits the third bit on top; `levels` are
// the same in 7 bits, value ~ low + step * level. `norms[256]` and `scales[256]` decode those
// bytes.
struct Decoder {
  const float *centroids, *values;
  const std::uint8_t *levels;
  const float *norms, *scales;
  int nbits;
  std::size_t dim, packed_dim;
};

// Compressed tokens. The vector of one is unit(centroid + scale * values).
struct Residuals {
  Codes codes;
  const std::uint8_t *packed;
  const std::uint8_t *scales;        // null: all 1
  const std::uint8_t *inverse_norms; // only for int8 products; null: all 1
};

namespace {
inline Residuals residuals_from(const Residuals &tokens, const Decoder &decoder, std::size_t i) {
  return {codes_from(tokens.codes, i), tokens.packed + i * decoder.packed_dim,
          tokens.scales == nullptr ? nullptr : tokens.scales + i,
          tokens.inverse_norms == nullptr ? nullptr : tokens.inverse_norms + i};
}
} // namespace

// Centroids as bytes, to screen which of them can be nearest before computing exactly:
// centroid ~ scale * (row - kScreenZero), off by at most largest_scale / 2 in each dimension.
struct Screen {
  const std::uint8_t *rows;                       // K x dim, below 128
  const float *scale;                             // K
  float largest_scale, largest_l1, largest_value; // over all centroids
};
// The same the other way round, for points as bytes: centroids as int8 panels
// data[panel][dim / 4][kLanes][4] that estimate products with a row of bytes, in units of the
// point's scale, by scale[lane] * (row . column - zero[lane]) where zero = kScreenZero * sum.
struct ScreenPanels {
  const std::int8_t *data;
  const float *scale, *zero;
  std::size_t n_panels, dim;
};
constexpr int kScreenZero = 64;
constexpr std::size_t kScreenTile = 8; // at least kTileRows
constexpr std::size_t kScreenRows = 8192, kScreenLanes = 32;

// Tokens that `compress_trellis` takes at once, and floats of scratch it needs for them: residuals,
// and the way back for each of at most 8 states.
constexpr std::size_t kTrellisBlock = kLanes;
constexpr std::size_t trellis_scratch(std::size_t dim) { return (1 + 8) * kTrellisBlock * dim; }

// Floats of scratch that `assign` and `assign_screened` take.
constexpr std::size_t assign_scratch(std::size_t dim) { return kPointBlock * dim; }
constexpr std::size_t screened_scratch(std::size_t dim) {
  return kPointBlock * (dim + dim / 4) + kScreenRows * (kScreenLanes + 1);
}

// Floats of scratch that `ward` takes for points in so many panels.
constexpr std::size_t ward_scratch(std::size_t n_panels) {
  return n_panels * kLanes * (n_panels * kLanes + 5);
}

// Floats of scratch that `residual_maxsim_marked` takes: rows, a cache line apart.
constexpr std::size_t row_stride(std::size_t dim) {
  return ((dim + kLanes - 1) / kLanes + 1) * kLanes;
}
constexpr std::size_t marked_scratch(std::size_t n, std::size_t dim) { return n * row_stride(dim); }

struct Kernels {
  const char *name;
  // Whether int8 products are so much faster than float32 ones that assign_screened pays.
  bool screens;

  // -- maxsim ------------------------------------------------------------------------------------
  // Sum over query tokens of the best dot product with `n` rows of `type` (f32, f16, bf16),
  // row-major. n == 0 gives -inf. `argmax` (null, or one entry per lane) receives the first best
  // row, or -1.
  float (*maxsim)(const Panels &query, const void *rows, DType type, std::size_t n,
                  std::int32_t *argmax);
  // Gradient of `count` tokens of one query: adds grad[i] * the row that token q met in document i,
  // offsets[i] + argmax[i * nq + q], to row q of `out`, in ascending documents. -1: nothing met.
  void (*maxsim_grad_query)(const float *grad, const std::int32_t *argmax, std::size_t nq,
                            const void *documents, DType type, const std::int64_t *offsets,
                            std::size_t n_docs, std::size_t count, std::size_t dim, float *out);
  // Gradient of one document of n tokens: row argmax[b * stride * nq + q] of `out` becomes the sum
  // of grad[b * stride] * token q of query b, in ascending b and q; zero where nothing met it.
  void (*maxsim_grad_documents)(const float *query, std::size_t n_queries, std::size_t nq,
                                std::size_t dim, const float *grad, const std::int32_t *argmax,
                                std::size_t stride, std::size_t n, float *out);

  // -- kmeans ------------------------------------------------------------------------------------
  // Nearest centroid by dot product (ties: the lowest) of n <= kPointBlock points.
  // `scratch`: assign_scratch(dim) floats.
  void (*assign)(const void *points, DType type, std::size_t n, std::size_t dim,
                 const float *centroids, std::size_t n_centroids, float *scratch,
                 std::int32_t *codes, float *best);
  // The same bits, from exact products with only those centroids that an int8 pass cannot exclude.
  // `scratch`: screened_scratch(dim) floats, best on a cache line.
  void (*assign_screened)(const void *points, DType type, std::size_t n, std::size_t dim,
                          const float *centroids, std::size_t n_centroids, const Screen &screen,
                          float *scratch, std::int32_t *codes, float *best);
  // out[dim] = sum of the points named by which[n], in that order.
  void (*sum_rows)(const void *points, DType type, std::size_t dim, const std::int64_t *which,
                   std::size_t n, float *out);
  // out[n][dim] = the rows as float32.
  void (*widen)(const void *rows, DType type, std::size_t n, std::size_t dim, float *out);
  // Points as bytes: rows[n][dim] = kScreenZero + round(x / scale) with |x| <= 63 * scale.
  // lengths[n] = |x| / scale, or -1 (and rows of kScreenZero) where a point is not finite.
  void (*quantise)(const float *points, std::size_t n, std::size_t dim, std::uint8_t *rows,
                   float *lengths);
  // Which columns come near each point: bit `lane` of marks[n][n_panels] is set where an estimate
  // is at most reach * length below the point's largest; never for a negative length.
  // `scratch`: kScreenTile * n_panels * kLanes floats.
  void (*near_columns)(const std::uint8_t *rows, const float *lengths, std::size_t n,
                       const ScreenPanels &columns, float reach, float *scratch,
                       std::uint16_t *marks);
  // The points named by which[n] with a group of columns: best and codes, points x kLanes, keep
  // each lane's largest estimate so far and its id (of `ids`, one per lane; ties: the lowest).
  void (*best_columns)(const std::uint8_t *rows, const std::int32_t *which, std::size_t n,
                       const ScreenPanels &columns, const std::int32_t *ids, float *best,
                       std::int32_t *codes);
  // out[i] = dot(points[left[i]], centroids[right[i]]).
  void (*products)(const float *points, const std::int32_t *left, const float *centroids,
                   const std::int32_t *right, std::size_t n, std::size_t dim, float *out);

  // -- pooling -----------------------------------------------------------------------------------
  // Ward's clustering of n points on the distances max(1 - dot, 0), until at most `clusters` >= 1
  // are left; merges as near as the last one are made too. first[n] receives the lowest point of
  // each point's cluster. The points come as panels and as rows. False, with nothing merged, if a
  // distance is NaN or beyond 1e12. `scratch`: ward_scratch(n_panels) floats.
  bool (*ward)(const Panels &points, const float *rows, std::size_t clusters, float *scratch,
               std::int32_t *first);

  // -- candidates --------------------------------------------------------------------------------
  // out[row][lane] = dot(row, query lane); out is n x (n_panels * kLanes).
  void (*scores)(const Panels &query, const float *rows, std::size_t n, float *out);
  // Best `nprobe` rows of each lane, in descending order (ties: the lowest row): values and ids are
  // lanes x nprobe, prefilled by the caller with earlier winners (or -inf and -1); row ids start at
  // `first`, so that a score matrix can be fed in ascending blocks.
  void (*probe)(const float *scores, std::size_t first, std::size_t n, std::size_t lanes,
                std::size_t nprobe, float *values, std::int32_t *ids);
  // Sum over lanes of the best scores[code] among n codes; lanes start at init[lane]. With `keep`
  // (null, or one byte per centroid), codes whose byte is 0 do not count.
  float (*approximate)(const float *scores, std::size_t lanes, Codes codes, std::size_t n,
                       const std::uint8_t *keep, const float *init);
  // Rows of a byte table from int8 products: byte = kTableZero + row_scale * ratio[lane] * product,
  // rounded and clamped; `ratio` is the query's unit by the table's step. The best `nprobe` (or
  // none, if 0) as in `probe`, by the values before rounding.
  void (*scores_i8)(const PanelsI8 &query, const float *ratio, const std::uint8_t *rows,
                    const float *row_scale, std::size_t n, std::uint8_t *out, std::size_t stride,
                    std::size_t first, std::size_t nprobe, float *values, std::int32_t *ids);
  // approximate() on a byte table, over all codes.
  float (*approximate_i8)(const ByteTable &table, Codes codes, std::size_t n);
  // scores[n] = approximate_i8() of the first n rows, each by itself.
  void (*row_scores_i8)(const ByteTable &table, std::size_t n, float *scores);
  // The tokens whose centroid's byte is, in some lane, not 0 and less than reach[lane] below the
  // best of all n: which[n] receives them in order, as tokens of `document`. Returns how many,
  // maybe none. `bounds`: `stride` bytes of scratch.
  std::size_t (*likely_tokens)(const ByteTable &table, const std::uint8_t *reach, Codes codes,
                               std::size_t n, std::int32_t document, std::uint8_t *bounds,
                               Chosen *which);
  // Rows which[n] of a byte table become at least `row`, lane by lane.
  void (*raise_rows)(std::uint8_t *rows, std::size_t stride, const std::int32_t *which,
                     std::size_t n, const std::uint8_t *row);

  // Packed ids `first` to first + n - 1, of 1 to kMaxCodeBits bits; what is above `largest` becomes
  // `largest`. `out` takes a multiple of kLanes, of which what is past n is arbitrary.
  void (*unpack_codes)(const std::uint8_t *packed, std::size_t first, std::size_t n, int bits,
                       std::int32_t largest, std::int32_t *out);

  // -- residual ----------------------------------------------------------------------------------
  // Buckets (one byte per dimension) to packed rows and back; the bit order is told in bits-inl.h.
  void (*pack)(const std::uint8_t *buckets, std::size_t n, std::size_t dim, int nbits,
               std::uint8_t *packed);
  void (*unpack)(const std::uint8_t *packed, std::size_t n, std::size_t dim, int nbits,
                 std::uint8_t *buckets);
  // Quantise and pack point - centroid[code]: a value's bucket is the number of cutoffs below it.
  void (*compress)(const void *points, DType type, std::size_t n, std::size_t dim,
                   const float *centroids, const std::int32_t *codes, const float *cutoffs,
                   int nbits, std::uint8_t *residuals);
  // The same for n <= kTrellisBlock points and a trellis: of all bit streams the one whose decoded
  // values, times the best scale of their own, come nearest to point - centroid[code]. The scales
  // are what they decode best with. `scratch`: trellis_scratch(dim) floats.
  void (*compress_trellis)(const void *points, DType type, std::size_t n, const std::int32_t *codes,
                           const Decoder &decoder, float *scratch, std::uint8_t *residuals,
                           float *scales);
  // out[n][dim] = unit(centroid + scale * values); inverse_norms (or null) receives 1 / |...|.
  void (*decompress)(const Decoder &decoder, const Residuals &tokens, std::size_t n, float *out,
                     float *inverse_norms);
  // maxsim(query, decompress(...)) without writing the vectors: the same bits.
  float (*residual_maxsim)(const Panels &query, const Decoder &decoder, const Residuals &tokens,
                           std::size_t n);
  // Approximate MaxSim of documents over n chosen tokens, one at least of each, those of a document
  // together; null: over the first n >= 1 of a single one. A token scores (centroid score + scale *
  // int8 query . 7-bit levels) * inverse norm. `ratio[lane]`: the unit of query times levels by the
  // table's step. The query's dimensions lie in the order that `expand` yields. `scratch`:
  // n_documents * kLanes floats.
  void (*residual_maxsim_i8)(const PanelsI8 &query, const float *ratio, const ByteTable &table,
                             const Decoder &decoder, const Residuals *documents,
                             const Chosen *chosen, std::size_t n, std::size_t n_documents,
                             float *scratch, float *scores);
  // residual_maxsim_i8 of one document, n >= 1, and which tokens come near a lane's best product:
  // marks[n][n_panels] is 1 where a lane of the panel is within slack of it, else 0. slack^2 =
  // squares[lane] + (relative * best)^2, in steps of the table; if that covers the error, exact
  // maxima are among them. `cells`: n x (n_panels * kLanes) floats of scratch.
  float (*contenders)(const PanelsI8 &query, const float *ratio, const ByteTable &table,
                      const Decoder &decoder, const Residuals &tokens, std::size_t n,
                      const float *squares, float relative, float *cells, std::uint8_t *marks);
  // residual_maxsim where each panel's maxima are over the tokens it has marked, one at least.
  // `scratch`: marked_scratch(n, dim) floats; `which`: n ids.
  float (*residual_maxsim_marked)(const Panels &query, const Decoder &decoder,
                                  const Residuals &tokens, std::size_t n, const std::uint8_t *marks,
                                  float *scratch, std::int32_t *which);
};

} // namespace colbert_fast
