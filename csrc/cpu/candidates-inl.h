// Candidate generation: centroid scores, the best centroids of each query token, and PLAID's
// centroid-only MaxSim. The score table is centroid-major, so one code reads one run of lanes.
#pragma once

namespace {

using namespace colbert_fast;

void scores(const Panels &query, const float *rows, std::size_t n, float *out) {
  const std::size_t lanes = query.n_panels * kLanes;
  FloatRows source{rows, query.dim};
  for_panels(query.n_panels, [&](std::size_t p, auto width) {
    constexpr std::size_t P = decltype(width)::value;
    for (std::size_t i = 0; i < n; i += kTileRows) {
      Rows tile;
      source.tile(i, n, tile);
      F32x16 acc[kTileRows][P];
      dot_tile<P>(tile, source.after(i), query.data + p * query.dim * kLanes, query.dim, acc);
      for (std::size_t t = 0; t < kTileRows; ++t)
        for (std::size_t j = 0; j < P; ++j)
          store(out + min_of(i + t, n - 1) * lanes + (p + j) * kLanes, acc[t][j]);
    }
  });
}

// Insert into a descending list, after equal values (so the lower row stays first).
inline void insert(float value, std::int32_t id, std::size_t n, float *values, std::int32_t *ids) {
  std::size_t at = n - 1;
  for (; at > 0 && value > values[at - 1]; --at) {
    values[at] = values[at - 1];
    ids[at] = ids[at - 1];
  }
  values[at] = value;
  ids[at] = id;
}

// Sixteen running thresholds, one per lane, are compared with a row at once; past the first rows a
// lane is entered only some nprobe * ln(n / nprobe) times.
void probe(const float *scores, std::size_t first, std::size_t n, std::size_t lanes,
           std::size_t nprobe, float *values, std::int32_t *ids) {
  for (std::size_t lane = 0; lane < lanes; lane += kLanes) {
    float last[kLanes];
    for (std::size_t j = 0; j < kLanes; ++j) last[j] = values[(lane + j) * nprobe + nprobe - 1];
    F32x16 threshold = load(last);
    for (std::size_t i = 0; i < n; ++i) {
      const float *row = scores + i * lanes + lane;
      const unsigned better = bits(gt(load(row), threshold));
      if (better == 0) continue;
      for (std::size_t j = 0; j < kLanes; ++j) {
        if ((better >> j & 1u) == 0) continue;
        const std::size_t at = (lane + j) * nprobe;
        insert(row[j], static_cast<std::int32_t>(first + i), nprobe, values + at, ids + at);
        last[j] = values[at + nprobe - 1];
      }
      threshold = load(last);
    }
  }
}

template <std::size_t P, class Code>
inline void best_of_codes(const float *scores, std::size_t lanes, const Code *codes, std::size_t n,
                          const std::uint8_t *keep, F32x16 (&best)[P]) {
  constexpr std::size_t kAhead = 16; // rows of the table, far apart, in flight at once
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t next = static_cast<std::size_t>(codes[min_of(i + kAhead, n - 1)]);
    for (std::size_t p = 0; p < P; ++p) prefetch(scores + next * lanes + p * kLanes);
    const std::size_t code = static_cast<std::size_t>(codes[i]);
    if (keep != nullptr && keep[code] == 0) continue;
    for (std::size_t p = 0; p < P; ++p)
      best[p] = max(load(scores + code * lanes + p * kLanes), best[p]);
  }
}

float approximate(const float *scores, std::size_t lanes, Codes codes, std::size_t n,
                  const std::uint8_t *keep, const float *init) {
  F32x16 total = set1(0.0f);
  for_panels(lanes / kLanes, [&](std::size_t p, auto width) {
    constexpr std::size_t P = decltype(width)::value;
    F32x16 best[P];
    for (std::size_t j = 0; j < P; ++j) best[j] = load(init + (p + j) * kLanes);
    const float *columns = scores + p * kLanes;
    if (codes.wide)
      best_of_codes<P>(columns, lanes, static_cast<const std::int32_t *>(codes.data), n, keep,
                       best);
    else
      best_of_codes<P>(columns, lanes, static_cast<const std::uint16_t *>(codes.data), n, keep,
                       best);
    for (std::size_t j = 0; j < P; ++j) total = add(total, best[j]);
  });
  return reduce_add(total);
}

} // namespace
