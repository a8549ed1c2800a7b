// k-means: assignment is MaxSim's tile with points in the lanes and centroids as rows, so the
// points x centroids matrix never exists; a block of centroids stays in L2 while the panels pass.
// Where int8 products are several times as fast (VNNI), they screen the centroids first.
#pragma once

namespace {

using namespace colbert_fast;

// The points as float panels; what a last panel lacks is zero.
inline void pack_points(const void *points, DType type, std::size_t n, std::size_t dim,
                        float *panels) {
  memset(panels, 0, n_panels_of(n) * kLanes * dim * sizeof(float));
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t d = 0; d < dim; d += kLanes) {
      float values[kLanes];
      store(values, load_row(points, type, i, d, dim));
      float *to = panels + (i / kLanes * dim + d) * kLanes + i % kLanes;
      for (std::size_t j = 0; j < min_of(kLanes, dim - d); ++j) to[j * kLanes] = values[j];
    }
}

// The best centroid of each lane so far.
struct Nearest {
  alignas(64) float best[kPointBlock];
  alignas(64) std::int32_t code[kPointBlock];
  explicit Nearest(std::size_t n_panels) {
    // Code 0, lest a NaN point index below the table.
    for (std::size_t i = 0; i < n_panels * kLanes; ++i) best[i] = kMinusInf, code[i] = 0;
  }
  template <std::size_t P> void load_at(std::size_t p, F32x16 (&top)[P], I32x16 (&arg)[P]) const {
    for (std::size_t j = 0; j < P; ++j) {
      top[j] = load(best + (p + j) * kLanes);
      arg[j] = load(code + (p + j) * kLanes);
    }
  }
  template <std::size_t P> void store_at(std::size_t p, F32x16 (&top)[P], I32x16 (&arg)[P]) {
    for (std::size_t j = 0; j < P; ++j) {
      store(best + (p + j) * kLanes, top[j]);
      store(code + (p + j) * kLanes, arg[j]);
    }
  }
};

void assign(const void *points, DType type, std::size_t n, std::size_t dim, const float *centroids,
            std::size_t n_centroids, float *scratch, std::int32_t *codes, float *best) {
  constexpr std::size_t kCentroidBlock = 256;
  const std::size_t n_panels = n_panels_of(n);
  pack_points(points, type, n, dim, scratch);
  Nearest nearest(n_panels);
  for (std::size_t c = 0; c < n_centroids; c += kCentroidBlock) {
    FloatRows rows{centroids + c * dim, dim};
    for_panels(n_panels, [&](std::size_t p, auto width) {
      constexpr std::size_t P = decltype(width)::value;
      F32x16 top[P];
      I32x16 arg[P];
      nearest.load_at(p, top, arg);
      max_dot<true, P>(rows, min_of(kCentroidBlock, n_centroids - c), scratch + p * dim * kLanes,
                       dim, c, top, arg);
      nearest.store_at(p, top, arg);
    });
  }
  memcpy(best, nearest.best, n * sizeof *best);
  memcpy(codes, nearest.code, n * sizeof *codes);
}

// Screening. With x ~ s * x8 and c ~ t * c8, both rounded to nearest,
//   |x.c - s t x8.c8| <= s / 2 |c|_1 + t / 2 |s x8|_1,
// and the float chain itself is off by at most dim * 2^-23 * |x|_1 * max|c|. A centroid whose
// estimate lies more than twice that bound below the best estimate cannot be the nearest.

// A panel of points as int8, dimensions in order: x ~ scale * x8, and what follows from it per
// lane.
struct Quantised {
  float scale[kLanes], l1[kLanes];
  float zero[kLanes]; // kScreenZero * sum(x8)
};

inline void quantise_panel(const float *panel, std::size_t dim, std::int8_t *out, Quantised &q) {
  F32x16 largest = set1(0.0f), l1 = set1(0.0f), sum = set1(0.0f);
  for (std::size_t d = 0; d < dim; ++d) {
    const F32x16 x = load(panel + d * kLanes), size = max(x, sub(set1(0.0f), x));
    largest = max(size, largest);
    l1 = add(l1, size);
  }
  store(q.scale, largest), store(q.l1, l1);
  float inverse[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) {
    const bool tiny = !(q.scale[i] > kVanishing); // also keeps the inverse finite
    q.scale[i] = tiny ? 1.0f : q.scale[i] / 127.0f;
    inverse[i] = 1.0f / q.scale[i];
  }
  const F32x16 steps = load(inverse), magic = set1(kRound);
  for (std::size_t d = 0; d < dim; d += 4) {
    std::uint32_t value[4][kLanes], word[kLanes];
    for (std::size_t j = 0; j < 4; ++j) {
      const F32x16 rounded = add(mul(load(panel + (d + j) * kLanes), steps), magic);
      sum = add(sum, sub(rounded, magic));
      float stored[kLanes];
      store(stored, rounded);
      memcpy(value[j], stored, sizeof stored);
    }
    for (std::size_t i = 0; i < kLanes; ++i)
      word[i] = (value[0][i] & 255u) | (value[1][i] & 255u) << 8 | (value[2][i] & 255u) << 16 |
                value[3][i] << 24;
    memcpy(out + d * kLanes, word, sizeof word);
  }
  store(q.zero, mul(sum, set1(static_cast<float>(kScreenZero))));
}

// Points as int8 panels; `window` is twice the bound, in units of s. False if a point is not
// finite.
inline bool quantise_points(const float *panels, std::size_t n_panels, std::size_t dim,
                            const Screen &screen, std::int8_t *out, float *zero, float *window) {
  const float size = static_cast<float>(dim);
  for (std::size_t p = 0; p < n_panels; ++p) {
    Quantised q;
    quantise_panel(panels + p * dim * kLanes, dim, out + p * dim * kLanes, q);
    for (std::size_t i = 0; i < kLanes; ++i) {
      if (!(q.l1[i] < HUGE_VALF)) return false;
      const float rounded_l1 = q.l1[i] / q.scale[i] + size;
      const float bound = 0.5f * screen.largest_l1 + 0.5f * screen.largest_scale * rounded_l1 +
                          size * 1.2e-7f * screen.largest_value * rounded_l1;
      zero[p * kLanes + i] = q.zero[i];
      window[p * kLanes + i] = 2.02f * bound; // the hundredth covers the rounding of the estimates
    }
  }
  return true;
}

// Estimates of `n` centroids, in units of s, into out[n][P * kLanes]; their maximum into `top`.
template <std::size_t P>
inline void estimate(const std::int8_t *panel, std::size_t dim, const float *zero,
                     const std::uint8_t *rows, const float *scale, std::size_t n, float *out,
                     F32x16 (&top)[P]) {
  for (std::size_t i = 0; i < n; i += kTileRows) {
    const std::uint8_t *row[kTileRows];
    for (std::size_t t = 0; t < kTileRows; ++t) row[t] = rows + min_of(i + t, n - 1) * dim;
    I32x16 acc[kTileRows][P];
    dot_tile_i8<P>(row, panel, dim, acc);
    for (std::size_t t = 0; t < kTileRows; ++t) {
      const std::size_t r = min_of(i + t, n - 1);
      for (std::size_t p = 0; p < P; ++p) {
        const F32x16 dot = sub(to_float(acc[t][p]), load(zero + p * kLanes));
        const F32x16 x = mul(dot, set1(scale[r]));
        store(out + (r * P + p) * kLanes, x);
        top[p] = max(x, top[p]);
      }
    }
  }
}

// The rows whose estimate reaches the limit in some lane, ascending; returns how many.
template <std::size_t P>
inline std::size_t list_rows(const float *estimates, std::size_t n, const F32x16 (&limit)[P],
                             std::int32_t *list) {
  std::size_t listed = 0;
  for (std::size_t r = 0; r < n; ++r) {
    unsigned any = 0;
    for (std::size_t p = 0; p < P; ++p)
      any |= bits(gt(load(estimates + (r * P + p) * kLanes), limit[p]));
    list[listed] = static_cast<std::int32_t>(r);
    listed += any != 0;
  }
  return listed;
}

struct ListedRows {
  const float *data;
  const std::int32_t *list;
  std::size_t dim;
  const void *after(std::size_t) const { return data; } // `tile` knows better
  void tile(std::size_t i, std::size_t n, Rows &rows) const {
    for (std::size_t t = 0; t < kTileRows; ++t) {
      rows[t] = row(min_of(i + t, n - 1));
      const float *next = row(min_of(i + kTileRows + t, n - 1));
      for (std::size_t d = 0; d < dim; d += kLanes) prefetch(next + d);
    }
  }
  const float *row(std::size_t i) const { return data + static_cast<std::size_t>(list[i]) * dim; }
};

void assign_screened(const void *points, DType type, std::size_t n, std::size_t dim,
                     const float *centroids, std::size_t n_centroids, const Screen &screen,
                     float *scratch, std::int32_t *codes, float *best) {
  static_assert(kTilePanels * kLanes <= kScreenLanes, "estimates of a tile's panels must fit");
  float *estimates = scratch, *panels = estimates + kScreenRows * kScreenLanes;
  auto *panels_i8 = reinterpret_cast<std::int8_t *>(panels + kPointBlock * dim);
  auto *list = reinterpret_cast<std::int32_t *>(panels + kPointBlock * (dim + dim / 4));
  alignas(64) float zero[kPointBlock], window[kPointBlock], highest[kPointBlock];
  const std::size_t n_panels = n_panels_of(n);
  pack_points(points, type, n, dim, panels);
  if (!quantise_points(panels, n_panels, dim, screen, panels_i8, zero, window))
    return assign(points, type, n, dim, centroids, n_centroids, panels, codes, best);
  for (std::size_t i = 0; i < n_panels * kLanes; ++i) highest[i] = kMinusInf;

  Nearest nearest(n_panels);
  for (std::size_t c = 0; c < n_centroids; c += kScreenRows)
    for_panels(n_panels, [&](std::size_t p, auto width) {
      constexpr std::size_t P = decltype(width)::value;
      const std::size_t rows = min_of(kScreenRows, n_centroids - c);
      F32x16 top[P], limit[P];
      for (std::size_t j = 0; j < P; ++j) top[j] = load(highest + (p + j) * kLanes);
      estimate<P>(panels_i8 + p * dim * kLanes, dim, zero + p * kLanes, screen.rows + c * dim,
                  screen.scale + c, rows, estimates, top);
      for (std::size_t j = 0; j < P; ++j) {
        store(highest + (p + j) * kLanes, top[j]);
        limit[j] = sub(top[j], load(window + (p + j) * kLanes));
      }
      const std::size_t listed = list_rows<P>(estimates, rows, limit, list);

      F32x16 exact[P];
      I32x16 before[P], arg[P];
      nearest.load_at(p, exact, before);
      for (std::size_t j = 0; j < P; ++j) arg[j] = set1(std::int32_t{-1});
      ListedRows source{centroids + c * dim, list, dim};
      max_dot<true, P>(source, listed, panels + p * dim * kLanes, dim, 0, exact, arg);
      nearest.store_at(p, exact, arg);
      for (std::size_t j = 0; j < P; ++j) {
        std::int32_t old[kLanes], *code = nearest.code + (p + j) * kLanes;
        store(old, before[j]);
        for (std::size_t lane = 0; lane < kLanes; ++lane)
          code[lane] = code[lane] < 0 ? old[lane] : static_cast<std::int32_t>(c) + list[code[lane]];
      }
    });
  memcpy(best, nearest.best, n * sizeof *best);
  memcpy(codes, nearest.code, n * sizeof *codes);
}

// Two levels. Points are rows of bytes and centroids lie in the lanes: the points that look into a
// group differ from block to block, and transposing them would cost as much as the products.

void quantise(const float *points, std::size_t n, std::size_t dim, std::uint8_t *rows,
              float *lengths) {
  for (std::size_t i = 0; i < n; ++i) {
    const float *x = points + i * dim;
    F32x16 largest = set1(0.0f), squares = set1(0.0f);
    for (std::size_t d = 0; d < dim; d += kLanes) {
      const F32x16 value = load_row(x, d, dim);
      largest = max(max(value, sub(set1(0.0f), value)), largest);
      squares = fma(value, value, squares);
    }
    float sizes[kLanes], size = 0.0f;
    store(sizes, largest);
    for (std::size_t j = 0; j < kLanes; ++j) size = sizes[j] > size ? sizes[j] : size;
    const float length = sqrtf(reduce_add(squares));
    const bool usable = length < HUGE_VALF; // squares that overflow are as bad as NaN
    const float scale = size > kVanishing ? size / 63.0f : 1.0f;
    lengths[i] = usable ? length / scale : -1.0f;
    const F32x16 steps = set1(usable ? 1.0f / scale : 0.0f), magic = set1(kRound + kScreenZero);
    for (std::size_t d = 0; d < dim; d += kLanes) {
      float rounded[kLanes];
      std::uint32_t value[kLanes];
      std::uint8_t bytes[kLanes];
      store(rounded, add(mul(load_row(x, d, dim), steps), magic));
      memcpy(value, rounded, sizeof value);
      for (std::size_t j = 0; j < kLanes; ++j)
        bytes[j] = usable ? static_cast<std::uint8_t>(value[j]) : kScreenZero;
      memcpy(rows + i * dim + d, bytes, min_of(kLanes, dim - d));
    }
  }
}

// Estimates of rows named by `row` with panels p, p + 1, ... of the columns.
template <std::size_t P>
inline void estimate_tile(const std::uint8_t *const (&row)[kTileRows], const ScreenPanels &columns,
                          std::size_t p, F32x16 (&out)[kTileRows][P]) {
  I32x16 acc[kTileRows][P];
  dot_tile_i8<P>(row, columns.data + p * columns.dim * kLanes, columns.dim, acc);
  for (std::size_t j = 0; j < P; ++j) {
    const F32x16 zero = load(columns.zero + (p + j) * kLanes);
    const F32x16 scale = load(columns.scale + (p + j) * kLanes);
    for (std::size_t t = 0; t < kTileRows; ++t)
      out[t][j] = mul(sub(to_float(acc[t][j]), zero), scale);
  }
}

void near_columns(const std::uint8_t *rows, const float *lengths, std::size_t n,
                  const ScreenPanels &columns, float reach, float *scratch, std::uint16_t *marks) {
  static_assert(kTileRows <= kScreenTile, "a tile's estimates must fit the scratch");
  const std::size_t n_panels = columns.n_panels;
  for (std::size_t i = 0; i < n; i += kTileRows) {
    const std::uint8_t *row[kTileRows];
    for (std::size_t t = 0; t < kTileRows; ++t) row[t] = rows + min_of(i + t, n - 1) * columns.dim;
    F32x16 top[kTileRows];
    for (std::size_t t = 0; t < kTileRows; ++t) top[t] = set1(kMinusInf);
    for_panels(n_panels, [&](std::size_t p, auto width) {
      constexpr std::size_t P = decltype(width)::value;
      F32x16 found[kTileRows][P];
      estimate_tile<P>(row, columns, p, found);
      for (std::size_t t = 0; t < kTileRows; ++t)
        for (std::size_t j = 0; j < P; ++j) {
          store(scratch + (t * n_panels + p + j) * kLanes, found[t][j]);
          top[t] = max(found[t][j], top[t]);
        }
    });
    for (std::size_t t = 0; t < min_of(kTileRows, n - i); ++t) {
      float tops[kLanes], best = kMinusInf;
      store(tops, top[t]);
      for (std::size_t j = 0; j < kLanes; ++j) best = tops[j] > best ? tops[j] : best;
      const unsigned usable = lengths[i + t] < 0.0f ? 0u : 0xffffu;
      const F32x16 limit = set1(best - reach * lengths[i + t]);
      for (std::size_t p = 0; p < n_panels; ++p) {
        const unsigned below = bits(gt(limit, load(scratch + (t * n_panels + p) * kLanes)));
        marks[(i + t) * n_panels + p] = static_cast<std::uint16_t>(~below & usable);
      }
    }
  }
}

void best_columns(const std::uint8_t *rows, const std::int32_t *which, std::size_t n,
                  const ScreenPanels &columns, const std::int32_t *ids, float *best,
                  std::int32_t *codes) {
  for_panels(columns.n_panels, [&](std::size_t p, auto width) {
    constexpr std::size_t P = decltype(width)::value;
    I32x16 id[P];
    for (std::size_t j = 0; j < P; ++j) id[j] = load(ids + (p + j) * kLanes);
    for (std::size_t i = 0; i < n; i += kTileRows) {
      const std::uint8_t *row[kTileRows];
      for (std::size_t t = 0; t < kTileRows; ++t)
        row[t] = rows + static_cast<std::size_t>(which[min_of(i + t, n - 1)]) * columns.dim;
      F32x16 found[kTileRows][P];
      estimate_tile<P>(row, columns, p, found);
      for (std::size_t t = 0; t < min_of(kTileRows, n - i); ++t) {
        const std::size_t at = static_cast<std::size_t>(which[i + t]) * kLanes;
        F32x16 top = load(best + at);
        I32x16 arg = load(codes + at);
        for (std::size_t j = 0; j < P; ++j) {
          const F32x16 x = found[t][j];
          arg = select(gt(x, top), id[j], select(gt(top, x), arg, min(arg, id[j])));
          top = max(x, top);
        }
        store(best + at, top);
        store(codes + at, arg);
      }
    }
  });
}

// Eight chains of scalar fmas side by side hide their latency; the last ones repeat.
void products(const float *points, const std::int32_t *left, const float *centroids,
              const std::int32_t *right, std::size_t n, std::size_t dim, float *out) {
  constexpr std::size_t kChains = 8;
  for (std::size_t i = 0; i < n; i += kChains) {
    const float *x[kChains], *c[kChains];
    float sum[kChains] = {};
    for (std::size_t j = 0; j < kChains; ++j) {
      const std::size_t pair = min_of(i + j, n - 1);
      x[j] = points + static_cast<std::size_t>(left[pair]) * dim;
      c[j] = centroids + static_cast<std::size_t>(right[pair]) * dim;
    }
    for (std::size_t d = 0; d < dim; ++d)
      for (std::size_t j = 0; j < kChains; ++j) sum[j] = fmaf(x[j][d], c[j][d], sum[j]);
    memcpy(out + i, sum, min_of(kChains, n - i) * sizeof *out);
  }
}

void widen(const void *rows, DType type, std::size_t n, std::size_t dim, float *out) {
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t d = 0; d < dim; d += kLanes) {
      float values[kLanes];
      store(values, load_row(rows, type, i, d, dim));
      memcpy(out + i * dim + d, values, min_of(kLanes, dim - d) * sizeof(float));
    }
}

void sum_rows(const void *points, DType type, std::size_t dim, const std::int64_t *which,
              std::size_t n, float *out) {
  for (std::size_t d = 0; d < dim; d += kLanes) {
    F32x16 total = set1(0.0f);
    for (std::size_t i = 0; i < n; ++i)
      total = add(total, load_row(points, type, static_cast<std::size_t>(which[i]), d, dim));
    if (d + kLanes <= dim) {
      store(out + d, total);
      continue;
    }
    float values[kLanes];
    store(values, total);
    memcpy(out + d, values, (dim - d) * sizeof(float));
  }
}

} // namespace
