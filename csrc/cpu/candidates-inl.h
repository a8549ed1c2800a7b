// Candidate generation: centroid scores, the best centroids of each query token, and PLAID's
// centroid-only MaxSim; in float32, and in int8 with a byte per score. Score tables are
// centroid-major, so one code reads one run of lanes: with bytes, 32 lanes in half a cache line.
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

// The winners so far of sixteen lanes. Their thresholds are compared with a row at once; past the
// first rows a lane is entered only some nprobe * ln(n / nprobe) times.
struct Winners {
  std::size_t nprobe = 0;
  float *values = nullptr;
  std::int32_t *ids = nullptr;
  F32x16 threshold = set1(HUGE_VALF); // nobody wins

  Winners() = default;
  Winners(std::size_t n, std::size_t lane, float *all_values, std::int32_t *all_ids)
      : nprobe(n), values(all_values + lane * n), ids(all_ids + lane * n) {
    set_threshold();
  }
  void set_threshold() {
    float last[kLanes];
    for (std::size_t j = 0; j < kLanes; ++j) last[j] = values[j * nprobe + nprobe - 1];
    threshold = load(last);
  }
  // Between the products of a tile, so that only the comparison stands there.
  COLBERT_FAST_INLINE void offer(F32x16 row, std::size_t id) {
    const unsigned better = bits(gt(row, threshold));
    if (better != 0) enter(row, better, id);
  }
  COLBERT_FAST_NOINLINE void enter(F32x16 row, unsigned better, std::size_t id) {
    float value[kLanes];
    store(value, row);
    for (std::size_t j = 0; j < kLanes; ++j)
      if ((better >> j & 1u) != 0)
        insert(value[j], static_cast<std::int32_t>(id), nprobe, values + j * nprobe,
               ids + j * nprobe);
    set_threshold();
  }
};

void probe(const float *scores, std::size_t first, std::size_t n, std::size_t lanes,
           std::size_t nprobe, float *values, std::int32_t *ids) {
  for (std::size_t lane = 0; lane < lanes; lane += kLanes) {
    Winners winners(nprobe, lane, values, ids);
    for (std::size_t i = 0; i < n; ++i) winners.offer(load(scores + i * lanes + lane), first + i);
  }
}

void scores_i8(const PanelsI8 &query, const float *ratio, const std::uint8_t *rows,
               const float *row_scale, std::size_t n, std::uint8_t *out, std::size_t stride,
               std::size_t first, std::size_t nprobe, float *values, std::int32_t *ids) {
  const std::size_t dim = query.dim;
  for_panels(query.n_panels, [&](std::size_t panel, auto width) {
    constexpr std::size_t P = decltype(width)::value;
    const std::size_t lane = panel * kLanes;
    Winners winners[P];
    if (nprobe > 0)
      for (std::size_t p = 0; p < P; ++p)
        winners[p] = Winners(nprobe, lane + p * kLanes, values, ids);
    for (std::size_t i = 0; i < n; i += kTileRows) {
      const std::uint8_t *tile[kTileRows];
      for (std::size_t t = 0; t < kTileRows; ++t) tile[t] = rows + min_of(i + t, n - 1) * dim;
      I32x16 acc[kTileRows][P];
      dot_tile_i8<P>(tile, query.data + lane * dim, query.start + lane, dim, acc,
                     [&](std::size_t t) {
                       const std::uint8_t *next = rows + min_of(i + kTileRows + t, n - 1) * dim;
                       for (std::size_t d = 0; d < dim; d += 64) prefetch(next + d);
                     });
      unrolled<kTileRows>([&](auto t) {
        if (i + t >= n) return;
        unrolled<P>([&](auto p) {
          const F32x16 product = mul(to_float(acc[t][p]), set1(row_scale[i + t]));
          const F32x16 value =
              fma(product, load(ratio + lane + p * kLanes), set1(static_cast<float>(kTableZero)));
          store_u8(out + (i + t) * stride + lane + p * kLanes, value);
          winners[p].offer(value, first + i + t);
        });
      });
    }
  });
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

// The best of kTableLanes lanes from `lane` on.
template <class Code, std::size_t R>
inline void best_bytes(const ByteTable &table, std::size_t lane, const Code *codes, std::size_t n,
                       Bytes (&best)[R]) {
  constexpr std::size_t kAhead = 16;
  const std::uint8_t *columns = table.rows + lane;
  alignas(64) std::uint8_t none[kBytes] = {};
  for (std::size_t r = 0; r < R; ++r) best[r] = load_bytes(none);
  for (std::size_t i = 0; i < n; ++i) {
    prefetch(columns + static_cast<std::size_t>(codes[min_of(i + kAhead, n - 1)]) * table.stride);
    const std::uint8_t *row = columns + static_cast<std::size_t>(codes[i]) * table.stride;
    for (std::size_t r = 0; r < R; ++r) best[r] = max_bytes(best[r], load_bytes(row + r * kBytes));
  }
}

// What kTableLanes bytes are worth, added to `total`.
inline F32x16 add_worth(const std::uint8_t *bytes, const float *step, F32x16 total) {
  for (std::size_t j = 0; j < kTableLanes; j += kLanes) {
    const F32x16 byte = sub(to_float(load_u8(bytes + j)), set1(static_cast<float>(kTableZero)));
    total = fma(byte, load(step + j), total);
  }
  return total;
}

template <class Code>
inline float approximate_i8(const ByteTable &table, const Code *codes, std::size_t n) {
  constexpr std::size_t kRegisters = kTableLanes / kBytes;
  F32x16 total = set1(0.0f);
  for (std::size_t lane = 0; lane < table.stride; lane += kTableLanes) {
    Bytes best[kRegisters];
    best_bytes(table, lane, codes, n, best);
    alignas(64) std::uint8_t bytes[kTableLanes];
    for (std::size_t r = 0; r < kRegisters; ++r) store_bytes(bytes + r * kBytes, best[r]);
    total = add_worth(bytes, table.step + lane, total);
  }
  return reduce_add(total);
}

void row_scores_i8(const ByteTable &table, std::size_t n, float *scores) {
  for (std::size_t i = 0; i < n; ++i) {
    F32x16 total = set1(0.0f);
    for (std::size_t lane = 0; lane < table.stride; lane += kTableLanes)
      total = add_worth(table.rows + i * table.stride + lane, table.step + lane, total);
    scores[i] = reduce_add(total);
  }
}

float approximate_i8(const ByteTable &table, Codes codes, std::size_t n) {
  return codes.wide ? approximate_i8(table, static_cast<const std::int32_t *>(codes.data), n)
                    : approximate_i8(table, static_cast<const std::uint16_t *>(codes.data), n);
}

template <class Code>
inline std::size_t likely_tokens(const ByteTable &table, const std::uint8_t *reach,
                                 const Code *codes, std::size_t n, std::int32_t document,
                                 std::uint8_t *bounds, Chosen *which) {
  constexpr std::size_t kRegisters = kTableLanes / kBytes;
  for (std::size_t lane = 0; lane < table.stride; lane += kTableLanes) {
    Bytes best[kRegisters];
    best_bytes(table, lane, codes, n, best);
    for (std::size_t r = 0; r < kRegisters; ++r) {
      const std::size_t at = lane + r * kBytes;
      store_bytes(bounds + at, sub_bytes(best[r], load_bytes(reach + at)));
    }
  }
  std::size_t count = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t *row = table.rows + static_cast<std::size_t>(codes[i]) * table.stride;
    std::size_t any = 0;
    for (std::size_t lane = 0; lane < table.stride; lane += kBytes)
      any |= any_above(load_bytes(row + lane), load_bytes(bounds + lane));
    which[count] = {document, static_cast<std::int32_t>(i)};
    count += any;
  }
  return count;
}

std::size_t likely_tokens(const ByteTable &table, const std::uint8_t *reach, Codes codes,
                          std::size_t n, std::int32_t document, std::uint8_t *bounds,
                          Chosen *which) {
  if (codes.wide)
    return likely_tokens(table, reach, static_cast<const std::int32_t *>(codes.data), n, document,
                         bounds, which);
  return likely_tokens(table, reach, static_cast<const std::uint16_t *>(codes.data), n, document,
                       bounds, which);
}

void raise_rows(std::uint8_t *rows, std::size_t stride, const std::int32_t *which, std::size_t n,
                const std::uint8_t *row) {
  if (n == 0) return;
  constexpr std::size_t kRegisters = kTableLanes / kBytes;
  for (std::size_t lane = 0; lane < stride; lane += kTableLanes) {
    Bytes least[kRegisters];
    for (std::size_t r = 0; r < kRegisters; ++r) least[r] = load_bytes(row + lane + r * kBytes);
    for (std::size_t i = 0; i < n; ++i) {
      std::uint8_t *out = rows + static_cast<std::size_t>(which[i]) * stride + lane;
      for (std::size_t r = 0; r < kRegisters; ++r)
        store_bytes(out + r * kBytes, max_bytes(least[r], load_bytes(out + r * kBytes)));
    }
  }
}

} // namespace
