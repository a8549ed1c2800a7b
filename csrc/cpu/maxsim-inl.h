// Exact MaxSim, and the tile that k-means and centroid scores share with it.
//
// A tile multiplies kTileRows rows with kTilePanels panels of 16 query tokens: per dimension it
// loads the panels once and broadcasts each row's value into a fused multiply-add. Nothing is
// summed across lanes until the end, so the maximum over rows costs one instruction per row and
// panel. A last, partial tile repeats its last row: a maximum does not mind.
#pragma once

namespace {

using namespace colbert_fast;

constexpr float kMinusInf = -HUGE_VALF;

inline std::size_t min_of(std::size_t a, std::size_t b) { return a < b ? a : b; }

inline std::size_t n_panels_of(std::size_t count) { return (count + kLanes - 1) / kLanes; }

inline F32x16 load_row(const float *row, std::size_t d, std::size_t dim) {
  if (d + kLanes <= dim) return load(row + d);
  float tail[kLanes] = {};
  memcpy(tail, row + d, (dim - d) * sizeof(float));
  return load(tail);
}

// Sixteen values of a row from dimension d, zero past its end.
inline F32x16 load_row(const void *rows, DType type, std::size_t row, std::size_t d,
                       std::size_t dim) {
  if (type == DType::f32) return load_row(static_cast<const float *>(rows) + row * dim, d, dim);
  const std::uint16_t *at = static_cast<const std::uint16_t *>(rows) + row * dim + d;
  std::uint16_t tail[kLanes] = {};
  if (d + kLanes > dim) {
    memcpy(tail, at, (dim - d) * sizeof tail[0]);
    at = tail;
  }
  return type == DType::f16 ? load_f16(at) : load_bf16(at);
}

// An address to prefetch, which may lie past the end: not a pointer to be formed by arithmetic.
inline const void *address_at(const void *base, std::size_t bytes) {
  return reinterpret_cast<const void *>(reinterpret_cast<std::uintptr_t>(base) + bytes);
}

using Rows = const float *[kTileRows];

// A source of row tiles; tile(i, n, rows) points rows[] at rows i, i + 1, ..., repeating n - 1, and
// after(i) is where the tile behind that one lies in memory, in the next document maybe.
struct FloatRows {
  const float *data;
  std::size_t dim;
  const void *after(std::size_t i) const {
    return address_at(data, (i + kTileRows) * dim * sizeof(float));
  }
  void tile(std::size_t i, std::size_t n, Rows &rows) const {
    for (std::size_t t = 0; t < kTileRows; ++t) rows[t] = data + min_of(i + t, n - 1) * dim;
  }
};

// Rows that are made on the fly. They lie a cache line more than a row apart: at 4 KiB from each
// other they would compete for the same few lines of L1.
template <std::size_t N> struct ScratchRows {
  alignas(64) float values[N * (kMaxDim + kLanes)];
  float *row(std::size_t t, std::size_t dim) { return values + t * row_stride(dim); }
};

struct WidenedRows {
  const void *data;
  DType type;
  std::size_t dim;
  ScratchRows<kTileRows> scratch;
  const void *after(std::size_t i) const { return address_at(data, (i + kTileRows) * dim * 2); }
  void tile(std::size_t i, std::size_t n, Rows &rows) {
    for (std::size_t t = 0; t < kTileRows; ++t) {
      float *row = scratch.row(t, dim);
      for (std::size_t d = 0; d < dim; d += kLanes)
        store(row + d, load_row(data, type, min_of(i + t, n - 1), d, dim));
      rows[t] = row;
    }
  }
};

// f(0), f(1), ..., f(N - 1), each a constant. Where other work stands between the products, g++ 12
// keeps the sums of a tile in registers only if it sees their subscripts before it unrolls loops.
template <std::size_t I> struct Index {
  static constexpr std::size_t value = I;
  constexpr operator std::size_t() const { return I; }
};
template <std::size_t N, std::size_t I = 0, class F> COLBERT_FAST_INLINE void unrolled(const F &f) {
  if constexpr (I < N) {
    f(Index<I>{});
    unrolled<N, I + 1>(f);
  }
}

// Rows that come from memory come a cache line for every kStep dimensions; `after`, the next tile,
// is fetched at that pace. Without it eight short streams at once outrun the hardware's prefetcher.
template <std::size_t P>
inline void dot_tile(const Rows &rows, const void *after, const float *panel, std::size_t dim,
                     F32x16 (&acc)[kTileRows][P]) {
  constexpr std::size_t kStep = kTileRows > 1 ? kLanes / kTileRows : 8;
  for (std::size_t t = 0; t < kTileRows; ++t)
    for (std::size_t p = 0; p < P; ++p) acc[t][p] = set1(0.0f);
  for (std::size_t first = 0; first < dim; first += kStep) {
    prefetch(address_at(after, first * kTileRows * sizeof(float)));
    for (std::size_t d = first; d < first + kStep; ++d) {
      F32x16 q[P];
      for (std::size_t p = 0; p < P; ++p) q[p] = load(panel + (p * dim + d) * kLanes);
      for (std::size_t t = 0; t < kTileRows; ++t) {
        const F32x16 x = set1(rows[t][d]);
        for (std::size_t p = 0; p < P; ++p) acc[t][p] = fma(x, q[p], acc[t][p]);
      }
    }
  }
}

// The same for bytes: rows[t] below 128, int8 panels of four dimensions a lane, sums that begin at
// start[p * kLanes + lane]. meanwhile(t) is called for each t < kTileRows, spread over the
// products: a place for the work on the next tile, which then runs in their shadow.
template <std::size_t P, class ByteRows, class F>
COLBERT_FAST_INLINE void dot_tile_i8(const ByteRows &rows, const std::int8_t *panel,
                                     const std::int32_t *start, std::size_t dim,
                                     I32x16 (&acc)[kTileRows][P], F meanwhile) {
  I32x16 sum[kTileRows * P];
  unrolled<kTileRows * P>([&](auto i) { sum[i] = load(start + i % P * kLanes); });
  for (std::size_t part = 0; part < kTileRows; ++part) {
    meanwhile(part);
    const std::size_t end = dim / 4 * (part + 1) / kTileRows * 4;
    for (std::size_t d = dim / 4 * part / kTileRows * 4; d < end; d += 4)
      unrolled<kTileRows * P>([&](auto i) {
        sum[i] = dot4(sum[i], rows[i / P] + d, panel + (i % P * dim + d) * kLanes);
      });
  }
  unrolled<kTileRows * P>([&](auto i) { acc[i / P][i % P] = sum[i]; });
}

// With nothing to do meanwhile, and sums from zero. Dimensions come in eights: two steps at a time
// halve the copies that compilers make of the sums.
template <std::size_t P, class ByteRows>
COLBERT_FAST_INLINE void dot_tile_i8(const ByteRows &rows, const std::int8_t *panel,
                                     std::size_t dim, I32x16 (&acc)[kTileRows][P]) {
  I32x16 sum[kTileRows * P];
  unrolled<kTileRows * P>([&](auto i) { sum[i] = set1(std::int32_t{0}); });
  for (std::size_t first = 0; first < dim; first += 8)
    for (std::size_t d = first; d < first + 8; d += 4)
      unrolled<kTileRows * P>([&](auto i) {
        sum[i] = dot4(sum[i], rows[i / P] + d, panel + (i % P * dim + d) * kLanes);
      });
  unrolled<kTileRows * P>([&](auto i) { acc[i / P][i % P] = sum[i]; });
}

// best[lane] = max over rows; arg[lane] = first + the row that reached it first.
template <bool kArg, std::size_t P, class Source>
inline void max_dot(Source &source, std::size_t n, const float *panel, std::size_t dim,
                    std::size_t first, F32x16 (&best)[P], I32x16 (&arg)[P]) {
  for (std::size_t i = 0; i < n; i += kTileRows) {
    Rows rows;
    source.tile(i, n, rows);
    F32x16 acc[kTileRows][P];
    dot_tile<P>(rows, source.after(i), panel, dim, acc);
    for (std::size_t t = 0; t < kTileRows; ++t)
      for (std::size_t p = 0; p < P; ++p) {
        if constexpr (kArg) {
          const I32x16 row = set1(static_cast<std::int32_t>(first + min_of(i + t, n - 1)));
          arg[p] = select(gt(acc[t][p], best[p]), row, arg[p]);
        }
        best[p] = max(acc[t][p], best[p]);
      }
  }
}

// f(panel index, P as a tag): kTilePanels at a time, then the rest singly.
template <class F> inline void for_panels(std::size_t n_panels, F f) {
  std::size_t p = 0;
  for (; p + kTilePanels <= n_panels; p += kTilePanels) f(p, Index<kTilePanels>{});
  for (; p < n_panels; ++p) f(p, Index<1>{});
}

// What the best of a panel's lanes begin at. Past the query's end are zeros, whose products with
// infinite values are NaN, which never is the best: there it is 0 from the start.
inline F32x16 least_of(const Panels &query, std::size_t panel) {
  float least[kLanes] = {};
  for (std::size_t lane = 0; lane < min_of(kLanes, query.count - panel * kLanes); ++lane)
    least[lane] = kMinusInf;
  return load(least);
}

template <bool kArg, class Source>
inline float sum_of_max(const Panels &query, Source &source, std::size_t n, std::int32_t *argmax) {
  F32x16 total = set1(0.0f);
  for_panels(query.n_panels, [&](std::size_t p, auto width) {
    constexpr std::size_t P = decltype(width)::value;
    F32x16 best[P];
    I32x16 arg[P];
    for (std::size_t j = 0; j < P; ++j)
      best[j] = least_of(query, p + j), arg[j] = set1(std::int32_t{-1});
    max_dot<kArg, P>(source, n, query.data + p * query.dim * kLanes, query.dim, 0, best, arg);
    for (std::size_t j = 0; j < P; ++j) {
      total = add(total, best[j]);
      if constexpr (kArg) store(argmax + (p + j) * kLanes, arg[j]);
    }
  });
  return n == 0 ? kMinusInf : reduce_add(total); // a query without tokens has no panels
}

template <class Source>
inline float sum_of_max(const Panels &query, Source &&source, std::size_t n, std::int32_t *argmax) {
  return argmax == nullptr ? sum_of_max<false>(query, source, n, argmax)
                           : sum_of_max<true>(query, source, n, argmax);
}

float maxsim(const Panels &query, const void *rows, DType type, std::size_t n,
             std::int32_t *argmax) {
  if (type == DType::f32)
    return sum_of_max(query, FloatRows{static_cast<const float *>(rows), query.dim}, n, argmax);
  WidenedRows source;
  source.data = rows, source.type = type, source.dim = query.dim;
  return sum_of_max(query, source, n, argmax);
}

// out += weight * row, an fma per dimension.
inline void add_scaled(float weight, const void *rows, DType type, std::size_t row, std::size_t dim,
                       float *out) {
  const F32x16 w = set1(weight);
  std::size_t d = 0;
  for (; d + kLanes <= dim; d += kLanes)
    store(out + d, fma(w, load_row(rows, type, row, d, dim), load(out + d)));
  if (d == dim) return;
  float tail[kLanes];
  store(tail, fma(w, load_row(rows, type, row, d, dim), load_row(out, d, dim)));
  memcpy(out + d, tail, (dim - d) * sizeof(float));
}

void maxsim_grad_query(const float *grad, const std::int32_t *argmax, std::size_t nq,
                       const void *documents, DType type, const std::int64_t *offsets,
                       std::size_t n_docs, std::size_t count, std::size_t dim, float *out) {
  for (std::size_t i = 0; i < n_docs; ++i)
    for (std::size_t q = 0; q < count; ++q) {
      const std::int32_t met = argmax[i * nq + q];
      if (met >= 0)
        add_scaled(grad[i], documents, type, static_cast<std::size_t>(offsets[i] + met), dim,
                   out + q * dim);
    }
}

void maxsim_grad_documents(const float *query, std::size_t n_queries, std::size_t nq,
                           std::size_t dim, const float *grad, const std::int32_t *argmax,
                           std::size_t stride, std::size_t n, float *out) {
  if (n > 0) memset(out, 0, n * dim * sizeof(float));
  for (std::size_t b = 0; b < n_queries; ++b)
    for (std::size_t q = 0; q < nq; ++q) {
      const std::int32_t met = argmax[b * stride * nq + q];
      if (met >= 0)
        add_scaled(grad[b * stride], query, DType::f32, b * nq + q, dim,
                   out + static_cast<std::size_t>(met) * dim);
    }
}

} // namespace
