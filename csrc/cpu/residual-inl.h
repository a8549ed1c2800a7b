// Residual codec (ColBERTv2, arXiv 2112.01488, section 3.3): bucket, pack, decode, and MaxSim
// straight from the packed bytes, in float32 (the exact scores) and in int8 (to choose what is
// worth them).
//
// The int8 product needs no particular order of dimensions, so `expand` leaves them as shifts give
// them: plane s of the bytes, holding dimensions planes * i + s, lies at [s * width, (s + 1) *
// width), and the query is permuted alike. Per 32 x 128 token the cost is then the 64 dot
// instructions.
#pragma once

namespace {

using namespace colbert_fast;

void compress(const void *points, DType type, std::size_t n, std::size_t dim,
              const float *centroids, const std::int32_t *codes, const float *cutoffs, int nbits,
              std::uint8_t *residuals) {
  const std::size_t n_cutoffs = (std::size_t{1} << nbits) - 1;
  const std::size_t width = dim * static_cast<std::size_t>(nbits) / 8;
  std::int32_t buckets[kMaxDim];
  for (std::size_t i = 0; i < n; ++i) {
    const float *centroid = centroids + static_cast<std::size_t>(codes[i]) * dim;
    for (std::size_t d = 0; d < dim; d += kLanes) {
      const F32x16 r = sub(load_row(points, type, i, d, dim), load_row(centroid, d, dim));
      I32x16 bucket = set1(std::int32_t{0});
      for (std::size_t j = 0; j < n_cutoffs; ++j) bucket = count(bucket, gt(r, set1(cutoffs[j])));
      store(buckets + d, bucket);
    }
    with_bits(nbits, [&](auto b) { pack_row<b.value>(buckets, dim, residuals + i * width); });
  }
}

// The weights of a packed row, in dimension order: one table look-up per byte. With 3 bits the four
// high bits that belong to a byte join it as bits 8 to 11 of the index.
template <int B>
inline void weights_row(const Decoder &decoder, const std::uint8_t *packed, float *out) {
  constexpr std::size_t kPerByte = planes_of(B);
  const std::size_t width = decoder.dim / kPerByte, eighth = decoder.dim / 8;
  for (std::size_t i = 0; i < width; ++i) {
    std::size_t index = packed[i];
    if constexpr (B == 3) {
      unsigned high = packed[width + i % eighth] >> (1 - i / eighth) & 0x55u;
      high = (high | high >> 1) & 0x33u;
      index |= std::size_t{(high | high >> 2) & 0x0fu} << 8;
    }
    memcpy(out + i * kPerByte, decoder.by_byte + index * kPerByte, kPerByte * sizeof(float));
  }
}

// row = unit(centroid + weights), zero up to a multiple of 16; returns 1 / |centroid + weights|.
inline float decode_row(const Decoder &decoder, std::size_t code, const std::uint8_t *packed,
                        float *row) {
  const float *centroid = decoder.centroids + code * decoder.dim;
  with_bits(decoder.nbits, [&](auto b) { weights_row<b.value>(decoder, packed, row); });
  F32x16 squares = set1(0.0f);
  for (std::size_t d = 0; d < decoder.dim; d += kLanes) {
    const F32x16 x = add(load_row(row, d, decoder.dim), load_row(centroid, d, decoder.dim));
    squares = fma(x, x, squares);
    store(row + d, x);
  }
  const float norm = sqrtf(reduce_add(squares)), inverse = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
  for (std::size_t d = 0; d < decoder.dim; d += kLanes)
    store(row + d, mul(load(row + d), set1(inverse)));
  return inverse;
}

// Centroids are the one thing that decoding reads at random: 4 to 64 MB, so from L2 or beyond.
inline void prefetch_centroid(const Decoder &decoder, std::size_t code) {
  const float *centroid = decoder.centroids + code * decoder.dim;
  for (std::size_t d = 0; d < decoder.dim; d += kLanes) prefetch(centroid + d);
}

void decompress(const Decoder &decoder, Codes codes, const std::uint8_t *residuals, std::size_t n,
                float *out, float *inverse_norms) {
  constexpr std::size_t kAhead = 4;
  alignas(64) float row[kMaxDim];
  for (std::size_t i = 0; i < n; ++i) {
    prefetch_centroid(decoder, code_at(codes, min_of(i + kAhead, n - 1)));
    const float inverse =
        decode_row(decoder, code_at(codes, i), residuals + i * decoder.packed_dim, row);
    if (out != nullptr) memcpy(out + i * decoder.dim, row, decoder.dim * sizeof(float));
    if (inverse_norms != nullptr) inverse_norms[i] = inverse;
  }
}

struct DecodedRows {
  const Decoder &decoder;
  Codes codes;
  const std::uint8_t *residuals;
  alignas(64) float scratch[kTileRows][kMaxDim];
  // A constructor, so that the scratch is not zeroed for every document.
  DecodedRows(const Decoder &d, Codes c, const std::uint8_t *r)
      : decoder(d), codes(c), residuals(r) {}
  const void *after(std::size_t i) const {
    return address_at(residuals, (i + kTileRows) * decoder.packed_dim);
  }
  void tile(std::size_t i, std::size_t n, Rows &rows) {
    for (std::size_t t = 0; t < kTileRows; ++t) {
      prefetch_centroid(decoder, code_at(codes, min_of(i + kTileRows + t, n - 1)));
      rows[t] = scratch[min_of(t, n - 1 - i)];
      if (i + t < n)
        decode_row(decoder, code_at(codes, i + t), residuals + (i + t) * decoder.packed_dim,
                   scratch[t]);
    }
  }
};

float residual_maxsim(const Panels &query, const Decoder &decoder, Codes codes,
                      const std::uint8_t *residuals, std::size_t n) {
  DecodedRows source(decoder, codes, residuals);
  return sum_of_max(query, source, n, nullptr);
}

// table[(a >> shift) & mask] of n bytes; with `high`, its bit (high >> high_shift) & 1 counts four
// in the index. May write, but never reads, up to kBytes - 1 bytes past the end. Half a register at
// a time before single bytes: short rows (1 and 3 bits) would else stall on a copy that loads must
// see.
inline void expand_run(const std::uint8_t *a, int shift, std::uint8_t mask,
                       const std::uint8_t *high, int high_shift, std::size_t n, Bytes table,
                       std::uint8_t *out) {
  const auto expand_at = [&](std::size_t i, auto load_at) {
    Bytes index = field(load_at(a + i), shift, mask);
    if (high != nullptr) {
      const Bytes bit = field(load_at(high + i), high_shift, 1), two = add_bytes(bit, bit);
      index = add_bytes(index, add_bytes(two, two));
    }
    store_bytes(out + i, lookup(table, index));
  };
  std::size_t i = 0;
  for (; i + kBytes <= n; i += kBytes)
    expand_at(i, [](const std::uint8_t *p) { return load_bytes(p); });
  for (; i + 16 <= n; i += 16) expand_at(i, [](const std::uint8_t *p) { return load_16_bytes(p); });
  if (i < n)
    expand_at(i, [&](const std::uint8_t *p) {
      std::uint8_t tail[kBytes] = {};
      memcpy(tail, p, n - i);
      return load_bytes(tail);
    });
}

// The 7-bit levels of a packed row, plane by plane.
template <int B>
inline void expand(const Decoder &decoder, const std::uint8_t *packed, std::uint8_t *out) {
  constexpr std::size_t kPlanes = planes_of(B);
  const std::size_t width = decoder.dim / kPlanes, eighth = decoder.dim / 8;
  if constexpr (B == 8) {
    for (std::size_t i = 0; i < width; ++i) out[i] = decoder.levels[packed[i]];
  } else {
    constexpr int kLow = B == 3 ? 2 : B;
    const Bytes table = load_table(decoder.levels);
    for (std::size_t s = 0; s < kPlanes; ++s) {
      const int shift = 8 - kLow * static_cast<int>(s + 1);
      const std::uint8_t mask = (1 << kLow) - 1;
      if constexpr (B == 3) {
        for (std::size_t half = 0; half < 2; ++half)
          expand_run(packed + half * eighth, shift, mask, packed + width,
                     7 - static_cast<int>(2 * s + half), eighth, table,
                     out + s * width + half * eighth);
      } else {
        expand_run(packed, shift, mask, nullptr, 0, width, table, out + s * width);
      }
    }
  }
}

template <int B, std::size_t P>
inline void max_dot_i8(const PanelsI8 &query, std::size_t panel, const Decoder &decoder,
                       const float *scores, Codes codes, const std::uint8_t *residuals,
                       const std::uint8_t *inverse_norms, std::size_t n, F32x16 (&best)[P]) {
  const std::size_t lanes = query.n_panels * kLanes, dim = decoder.dim;
  const std::int8_t *q = query.data + panel * dim * kLanes;
  alignas(64) std::uint8_t rows[kTileRows][kMaxDim + kBytes];
  for (std::size_t i = 0; i < n; i += kTileRows) {
    const std::size_t count = min_of(kTileRows, n - i);
    for (std::size_t t = 0; t < count; ++t) {
      const float *scores_at = scores + code_at(codes, i + t) * lanes + panel * kLanes;
      for (std::size_t p = 0; p < P; ++p) prefetch(scores_at + p * kLanes);
      expand<B>(decoder, residuals + (i + t) * decoder.packed_dim, rows[t]);
    }
    const std::uint8_t *row[kTileRows];
    for (std::size_t t = 0; t < kTileRows; ++t) row[t] = rows[min_of(t, count - 1)];

    I32x16 acc[kTileRows][P];
    dot_tile_i8<P>(row, q, dim, acc);
    for (std::size_t t = 0; t < kTileRows; ++t) {
      const std::size_t token = i + min_of(t, count - 1), lane = panel * kLanes;
      const float *centroid_scores = scores + code_at(codes, token) * lanes + lane;
      const F32x16 inverse = set1(decoder.norms[inverse_norms[token]]);
      for (std::size_t p = 0; p < P; ++p) {
        const F32x16 residual = fma(load(query.scale + lane + p * kLanes), to_float(acc[t][p]),
                                    load(query.base + lane + p * kLanes));
        best[p] = max(mul(add(residual, load(centroid_scores + p * kLanes)), inverse), best[p]);
      }
    }
  }
}

float residual_maxsim_i8(const PanelsI8 &query, const Decoder &decoder, const float *scores,
                         Codes codes, const std::uint8_t *residuals,
                         const std::uint8_t *inverse_norms, std::size_t n) {
  F32x16 total = set1(0.0f);
  for_panels(query.n_panels, [&](std::size_t panel, auto width) {
    constexpr std::size_t P = decltype(width)::value;
    F32x16 best[P];
    for (std::size_t p = 0; p < P; ++p) best[p] = set1(kMinusInf);
    with_bits(decoder.nbits, [&](auto b) {
      max_dot_i8<b.value, P>(query, panel, decoder, scores, codes, residuals, inverse_norms, n,
                             best);
    });
    for (std::size_t p = 0; p < P; ++p) total = add(total, best[p]);
  });
  return reduce_add(total);
}

} // namespace
