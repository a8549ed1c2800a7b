// Ward's clustering, greedily: the nearest two clusters become one until few enough are left. Each
// cluster remembers its nearest; merging never brings two clusters nearer ("Modern hierarchical,
// agglomerative clustering algorithms", arXiv 1109.2378, section 2.5), so what is remembered
// stays a bound, and is looked up again only if it leads. Most merges cost one or two runs over a
// row, and only those that are wanted are made.
//
// Distances are kept squared, where Ward's update is linear, and negated: the nearest is the
// largest. Rows are whole, not condensed, so that a search reads one run of memory.
#pragma once

namespace {

using namespace colbert_fast;

// Clusters are known by their lowest row. Arrays of `width` rows, the points filled up to whole
// panels.
struct Clusters {
  std::size_t width;
  float *matrix;                   // nearness of each two, width x width; -inf on the diagonal
  float *sizes, *gone;             // rows in a cluster; 0, or -inf if there is none of that name
  float *bounds;                   // nearness of the nearest cluster, or more
  std::int32_t *nearest, *reverse; // the nearest, or -1 if not known; minus each row's index
};

// nearness = -max(1 - dot, 0)^2; rounding can make the distance of equal rows negative. False if
// one is so far off that sums of squares could overflow, or NaN.
inline bool fill(const Panels &points, const float *rows, float *matrix) {
  const F32x16 zero = set1(0.0f), one = set1(1.0f), farthest = set1(1e24f);
  const std::size_t width = points.n_panels * kLanes;
  const FloatRows source{rows, points.dim};
  bool usable = true;
  for_panels(points.n_panels, [&](std::size_t p, auto panels) {
    constexpr std::size_t P = decltype(panels)::value;
    for (std::size_t i = p * kLanes; i < width; i += kTileRows) {
      Rows tile;
      source.tile(i, points.count, tile);
      F32x16 acc[kTileRows][P];
      dot_tile<P>(tile, source.after(i), points.data + p * points.dim * kLanes, points.dim, acc);
      for (std::size_t t = 0; t < kTileRows; ++t)
        for (std::size_t j = 0; j < P; ++j) {
          const F32x16 distance = sub(one, acc[t][j]), positive = max(distance, zero);
          usable &= bits(gt(farthest, mul(distance, distance))) == 0xffffu;
          store(matrix + (i + t) * width + (p + j) * kLanes, sub(zero, mul(positive, positive)));
        }
    }
  });
  for (std::size_t i = 0; i < width; i += kLanes) // the other half, in blocks that stay in L1
    for (std::size_t first = i + kLanes; first < width; first += kLanes)
      for (std::size_t r = i; r < i + kLanes; ++r)
        for (std::size_t c = first; c < first + kLanes; ++c)
          matrix[r * width + c] = matrix[c * width + r];
  for (std::size_t i = 0; i < width; ++i) matrix[i * width + i] = kMinusInf;
  return usable;
}

// The nearest of every point; lanes are points.
inline void find_all(const Clusters &c, std::size_t n) {
  for (std::size_t lanes = 0; lanes < c.width; lanes += kLanes) {
    F32x16 best = set1(kMinusInf);
    I32x16 at = set1(std::int32_t{-1});
    for (std::size_t i = 0; i < n; ++i) {
      const F32x16 value = load(c.matrix + i * c.width + lanes);
      at = select(gt(value, best), set1(static_cast<std::int32_t>(i)), at);
      best = max(value, best);
    }
    store(c.bounds + lanes, best);
    store(c.nearest + lanes, at);
  }
}

// The largest of a row (the lowest of equal ones) among the clusters that there are.
inline std::size_t largest(const Clusters &c, const float *row) {
  F32x16 best = set1(kMinusInf);
  I32x16 at = set1(std::int32_t{0});
  for (std::size_t i = 0; i < c.width; i += kLanes) {
    const F32x16 value = add(load(row + i), load(c.gone + i));
    at = select(gt(value, best), load(c.reverse + i), at);
    best = max(value, best);
  }
  const Mask less = gt(set1(reduce_max(best)), best);
  const I32x16 last = set1(-static_cast<std::int32_t>(c.width));
  return static_cast<std::size_t>(-reduce_max(to_float(select(less, last, at))));
}

inline void find(const Clusters &c, std::size_t x) {
  const float *row = c.matrix + x * c.width;
  const std::size_t y = largest(c, row);
  c.nearest[x] = static_cast<std::int32_t>(y);
  c.bounds[x] = row[y];
}

// Cluster y goes into x by Ward's update (Lance and Williams). Exactly computed, none comes nearer
// than the nearer of the two was; the bounds rest on that, so rounding must not undo it.
inline void merge(const Clusters &c, std::size_t x, std::size_t y) {
  const auto name_x = static_cast<std::int32_t>(x), name_y = static_cast<std::int32_t>(y);
  float *into = c.matrix + x * c.width;
  const float *from = c.matrix + y * c.width, *sizes = c.sizes;
  const float size_x = sizes[x], size_y = sizes[y], both = size_x + size_y, apart = into[y];
  for (std::size_t i = 0; i < c.width; ++i) {
    const float sum =
        (size_x + sizes[i]) * into[i] + (size_y + sizes[i]) * from[i] - sizes[i] * apart;
    const float updated = sum / (both + sizes[i]), nearer = into[i] > from[i] ? into[i] : from[i];
    into[i] = updated < nearer ? updated : nearer;
  }
  for (std::size_t i = 0; i < c.width; ++i) {
    const std::int32_t known = into[i] < c.bounds[i] ? -1 : name_x;
    c.nearest[i] = c.nearest[i] == name_x || c.nearest[i] == name_y ? known : c.nearest[i];
  }
  into[x] = kMinusInf;
  for (std::size_t i = 0; i < c.width; ++i) c.matrix[i * c.width + x] = into[i];
  c.sizes[x] = both, c.sizes[y] = 0.0f, c.gone[y] = kMinusInf;
  find(c, x);
}

bool ward(const Panels &points, const float *rows, std::size_t clusters, float *scratch,
          std::int32_t *first) {
  const std::size_t n = points.count, width = points.n_panels * kLanes;
  float *sizes = scratch + width * width;
  auto *nearest = reinterpret_cast<std::int32_t *>(sizes + 3 * width);
  const Clusters c{width,   scratch,        sizes, sizes + width, sizes + 2 * width,
                   nearest, nearest + width};
  for (std::size_t i = 0; i < width; ++i) {
    c.sizes[i] = i < n ? 1.0f : 0.0f;
    c.gone[i] = i < n ? 0.0f : kMinusInf;
    c.reverse[i] = -static_cast<std::int32_t>(i);
  }
  for (std::size_t i = 0; i < n; ++i) first[i] = static_cast<std::int32_t>(i);
  if (!fill(points, rows, c.matrix)) return false;
  find_all(c, n);
  float last = kMinusInf;
  for (std::size_t left = n; left > 1;) {
    const std::size_t i = largest(c, c.bounds);
    if (c.nearest[i] < 0) {
      find(c, i);
      continue;
    }
    if (left <= clusters && c.bounds[i] < last) break;
    const auto j = static_cast<std::size_t>(c.nearest[i]), x = min_of(i, j), y = i + j - x;
    last = c.bounds[i];
    first[y] = static_cast<std::int32_t>(x);
    merge(c, x, y);
    --left;
  }
  for (std::size_t i = 0; i < n; ++i) first[i] = first[first[i]]; // lower ones have arrived
  return true;
}

} // namespace
