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
  alignas(64) float best[kAssignBlock];
  alignas(64) std::int32_t code[kAssignBlock];
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

// Points as int8 panels, dimensions in order; `zero` is kScreenZero * sum(x8) and `window` twice
// the bound, both in units of s. False if a point is not finite.
inline bool pack_points_i8(const float *panels, std::size_t n, std::size_t dim,
                           const Screen &screen, std::int8_t *out, float *zero, float *window) {
  const std::size_t lanes = n_panels_of(n) * kLanes;
  for (std::size_t i = 0; i < lanes; ++i) {
    const float *x = panels + i / kLanes * dim * kLanes + i % kLanes;
    float largest = 0.0f, l1 = 0.0f;
    for (std::size_t d = 0; d < dim; ++d) {
      const float size = fabsf(x[d * kLanes]);
      largest = size > largest ? size : largest;
      l1 += size;
    }
    if (!(l1 < HUGE_VALF)) return false;
    const float scale = largest > 0.0f ? largest / 127.0f : 1.0f;
    std::int8_t *to = out + i / kLanes * dim * kLanes;
    std::int32_t sum = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      const auto value = static_cast<std::int8_t>(nearbyintf(x[d * kLanes] / scale));
      to[(d / 4 * kLanes + i % kLanes) * 4 + d % 4] = value;
      sum += value;
    }
    const float size = static_cast<float>(dim), rounded_l1 = l1 / scale + size;
    const float bound = 0.5f * screen.largest_l1 + 0.5f * screen.largest_scale * rounded_l1 +
                        size * 1.2e-7f * screen.largest_value * rounded_l1;
    zero[i] = static_cast<float>(kScreenZero * sum);
    window[i] = 2.02f * bound; // the hundredth covers the rounding of the estimates
  }
  return true;
}

// Estimates of `n` centroids, in units of s, into out[n][P * kLanes]; their maximum into `top`.
template <std::size_t P>
inline void estimate(const std::int8_t *panel, std::size_t dim, const float *zero,
                     const std::uint8_t *rows, const float *scale, std::size_t n, float *out,
                     F32x16 (&top)[P]) {
  const std::int32_t start[P * kLanes] = {};
  for (std::size_t i = 0; i < n; i += kTileRows) {
    const std::uint8_t *row[kTileRows];
    for (std::size_t t = 0; t < kTileRows; ++t) row[t] = rows + min_of(i + t, n - 1) * dim;
    I32x16 acc[kTileRows][P];
    dot_tile_i8<P>(row, panel, start, dim, acc, [](std::size_t) {});
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
  auto *panels_i8 = reinterpret_cast<std::int8_t *>(panels + kAssignBlock * dim);
  auto *list = reinterpret_cast<std::int32_t *>(panels + kAssignBlock * (dim + dim / 4));
  alignas(64) float zero[kAssignBlock], window[kAssignBlock], highest[kAssignBlock];
  const std::size_t n_panels = n_panels_of(n);
  pack_points(points, type, n, dim, panels);
  if (!pack_points_i8(panels, n, dim, screen, panels_i8, zero, window))
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
