// Residual codec (ColBERTv2, arXiv 2112.01488, section 3.3): bucket, pack, decode, and MaxSim
// straight from the packed bytes, in float32 (the exact scores) and in int8 (to choose what is
// worth them).
//
// With 1 to 3 bits a value is looked up by 4 bits of the stream: trellis-inl.h tells why.
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

// f(i, load) for the n bytes of a row in pieces of a register, or half or a quarter of one; the
// last piece ends with the row and repeats some of the one before. Only rows below 8 bytes are
// copied: loads that span several stores have to wait for them, which would cost more than all
// else.
template <class F> COLBERT_FAST_INLINE void for_pieces(std::size_t n, F f) {
  const auto of = [&](std::size_t size, auto load) {
    for (std::size_t i = 0; i < n; i += size) f(min_of(i, n - size), load);
  };
  if (n >= kBytes) {
    of(kBytes, [](const std::uint8_t *p) { return load_bytes(p); });
  } else if (n >= 16) {
    of(16, [](const std::uint8_t *p) { return load_16_bytes(p); });
  } else if (n >= 8) {
    of(8, [](const std::uint8_t *p) { return load_8_bytes(p); });
  } else {
    f(std::size_t{0}, [n](const std::uint8_t *p) {
      std::uint8_t all[kBytes] = {};
      memcpy(all, p, n);
      return load_bytes(all);
    });
  }
}

// One plane of windows, each looked up in `table`: out[i] for the n bytes of a row. The window of
// field s has kLow bits of its own at bits `shift` and up and the context above them, in this byte
// or the one before; `high`, with 3 bits, has its third bit in place of field s. May write, but
// never reads, up to kBytes - 1 bytes past the end.
template <int B>
COLBERT_FAST_INLINE void expand_plane(const std::uint8_t *packed, std::size_t n, std::size_t plane,
                                      const std::uint8_t *high, Bytes table, std::uint8_t *out) {
  constexpr int kLow = low_bits(B), kWidth = kLow + context_bits(B);
  const int end = kLow * static_cast<int>(plane + 1), shift = 8 - end;
  for_pieces(n, [&](std::size_t i, auto load) {
    const std::uint8_t *at = packed + i;
    const Bytes byte = load(at);
    // No more bits than this byte has: what `field` shifts in comes from its neighbour.
    Bytes window =
        field(byte, shift, static_cast<std::uint8_t>((1 << (kWidth < end ? kWidth : end)) - 1));
    if (kWidth > end) {
      const Bytes before = i == 0 ? shift_in(byte) : load(at - 1);
      const int from_before = (1 << kWidth) - (1 << end);
      window = add_bytes(window, field_left(before, end, static_cast<std::uint8_t>(from_before)));
    }
    if constexpr (B == 3) {
      const int up = 2 * static_cast<int>(plane) - 4; // from bit 7 - 2 * plane to bit 3
      const Bytes third = load_bytes(high + i);
      window = add_bytes(window, up < 0 ? field(third, -up, 8) : field_left(third, up, 8));
    }
    store_bytes(out + i, lookup(table, window));
  });
}

// The windows of a packed row looked up in `table`, plane by plane; not for 8 bits.
template <int B>
COLBERT_FAST_INLINE void expand(std::size_t dim, const std::uint8_t *packed, Bytes table,
                                std::uint8_t *out) {
  constexpr std::size_t kPlanes = planes_of(B);
  const std::size_t width = dim / kPlanes;
  std::uint8_t high[B == 3 ? kMaxDim / 4 + kBytes : 1];
  if constexpr (B == 3) {
    // Third bits of plane s at bit 7 - 2 * s throughout: those of the second half lie one lower.
    const std::uint8_t *from = packed + width;
    const std::size_t eighth = dim / 8;
    if (kBytes == 32 && eighth == 16) { // in one piece, which loads can be forwarded from
      store_bytes(high, double_upper(load_table(from)));
    } else {
      for_pieces(eighth, [&](std::size_t i, auto load) { store_bytes(high + i, load(from + i)); });
      for_pieces(eighth, [&](std::size_t i, auto load) {
        const Bytes half = load(from + i);
        store_bytes(high + eighth + i, add_bytes(half, half));
      });
    }
  }
#if defined(__GNUC__)
#pragma GCC unroll 8 // shifts by constants cost half
#endif
  for (std::size_t s = 0; s < kPlanes; ++s)
    expand_plane<B>(packed, width, s, high, table, out + s * width);
}

// The 7-bit levels of a packed row, plane by plane.
template <int B>
COLBERT_FAST_INLINE void levels_row(const Decoder &decoder, const std::uint8_t *packed,
                                    std::uint8_t *out) {
  if constexpr (B == 8)
    for (std::size_t i = 0; i < decoder.dim; ++i) out[i] = decoder.levels[packed[i]];
  else
    expand<B>(decoder.dim, packed, load_table(decoder.levels), out);
}

// The windows of a packed row in dimension order: planes 0 and 2 of four make the even dimensions,
// 1 and 3 the odd ones, and these the row. Writes up to 2 * kBytes - 1 bytes past the end; those
// that `finish_row` looks up with the last ones are zero, or the scalar table could be left.
template <int B>
inline void windows_row(std::size_t dim, const std::uint8_t *packed, std::uint8_t *out) {
  static const std::uint8_t itself[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  if constexpr (B == 8) {
    memcpy(out, packed, dim);
  } else {
    std::uint8_t other[kMaxDim + 2 * kBytes];
    std::uint8_t *from = out, *to = other;
    // So that the last step ends in `out`.
    if (planes_of(B) != 4) from = other, to = out;
    expand<B>(dim, packed, load_table(itself), from);
    for (std::size_t m = planes_of(B), width = dim / m; m > 1; m /= 2, width *= 2) {
      for (std::size_t s = 0; s < m / 2; ++s)
        for (std::size_t i = 0; i < width; i += 16)
          interleave(from + s * width + i, from + (s + m / 2) * width + i,
                     to + 2 * (s * width + i));
      std::uint8_t *swap = from;
      from = to, to = swap;
    }
  }
  if (dim % kLanes != 0) memset(out + dim, 0, kLanes);
}

// row = unit(centroid + scale * values), zero up to a multiple of 16, from a token's windows in
// dimension order; returns 1 / |...|.
template <int B>
inline float finish_row(const Decoder &decoder, const Residuals &tokens, std::size_t i,
                        const std::uint8_t *windows, float *row) {
  const float *centroid = decoder.centroids + code_at(tokens.codes, i) * decoder.dim;
  const F32x16 scale = set1(tokens.scales == nullptr ? 1.0f : decoder.scales[tokens.scales[i]]);
  const F32x16 table = load(decoder.values);
  F32x16 squares = set1(0.0f);
  for (std::size_t d = 0; d < decoder.dim; d += kLanes) {
    F32x16 value;
    if constexpr (B == 8) {
      float values[kLanes];
      for (std::size_t j = 0; j < kLanes; ++j) values[j] = decoder.values[windows[d + j]];
      value = load(values);
    } else {
      value = lookup(table, load_u8(windows + d));
    }
    if (d + kLanes > decoder.dim) { // the windows end within these
      float tail[kLanes];
      store(tail, value);
      value = load_row(tail, 0, decoder.dim - d);
    }
    const F32x16 x = fma(value, scale, load_row(centroid, d, decoder.dim));
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

// Tokens token(first), token(first + 1), ..., of n, in `rows`; returns how many, at most kDecoded.
// First the windows of all, then the rest, so that no load waits for the stores before it.
constexpr std::size_t kDecoded = 8;
template <class Token>
inline std::size_t decode_rows(const Decoder &decoder, const Residuals &tokens, std::size_t first,
                               std::size_t n, Token token, float *const *rows, float *inverse) {
  const std::size_t count = min_of(kDecoded, n - first);
  std::uint8_t windows[kDecoded][kMaxDim + 2 * kBytes];
  for (std::size_t j = 0; j < count; ++j)
    prefetch_centroid(decoder, code_at(tokens.codes, token(min_of(first + kDecoded + j, n - 1))));
  with_bits(decoder.nbits, [&](auto b) {
    for (std::size_t j = 0; j < count; ++j)
      windows_row<b.value>(decoder.dim, tokens.packed + token(first + j) * decoder.packed_dim,
                           windows[j]);
    for (std::size_t j = 0; j < count; ++j)
      inverse[j] = finish_row<b.value>(decoder, tokens, token(first + j), windows[j], rows[j]);
  });
  return count;
}
inline std::size_t in_order(std::size_t i) { return i; }

void decompress(const Decoder &decoder, const Residuals &tokens, std::size_t n, float *out,
                float *inverse_norms) {
  ScratchRows<kDecoded> scratch;
  float *rows[kDecoded], inverse[kDecoded];
  for (std::size_t j = 0; j < kDecoded; ++j) rows[j] = scratch.row(j, decoder.dim);
  for (std::size_t i = 0; i < n; i += kDecoded) {
    const std::size_t count = decode_rows(decoder, tokens, i, n, in_order, rows, inverse);
    for (std::size_t j = 0; j < count; ++j) {
      if (out != nullptr) memcpy(out + (i + j) * decoder.dim, rows[j], decoder.dim * sizeof(float));
      if (inverse_norms != nullptr) inverse_norms[i + j] = inverse[j];
    }
  }
}

// Decodes kDecoded tokens at a time, whatever the tile takes of them.
struct DecodedRows {
  static_assert(kDecoded % kTileRows == 0, "a tile's rows must be decoded together");
  const Decoder &decoder;
  const Residuals &tokens;
  float *decoded[kDecoded];
  ScratchRows<kDecoded> scratch;
  // A constructor, so that the scratch is not zeroed for every document.
  DecodedRows(const Decoder &d, const Residuals &t) : decoder(d), tokens(t) {
    for (std::size_t j = 0; j < kDecoded; ++j) decoded[j] = scratch.row(j, d.dim);
  }
  const void *after(std::size_t i) const {
    return address_at(tokens.packed, (i + kDecoded) * decoder.packed_dim);
  }
  void tile(std::size_t i, std::size_t n, Rows &rows) {
    float inverse[kDecoded];
    if (i % kDecoded == 0) decode_rows(decoder, tokens, i, n, in_order, decoded, inverse);
    for (std::size_t t = 0; t < kTileRows; ++t)
      rows[t] = decoded[min_of(i % kDecoded + t, min_of(kDecoded, n - i + i % kDecoded) - 1)];
  }
};

float residual_maxsim(const Panels &query, const Decoder &decoder, const Residuals &tokens,
                      std::size_t n) {
  DecodedRows source(decoder, tokens);
  return sum_of_max(query, source, n, nullptr);
}

// best = the maxima over those of n rows that have a mark, `stride` apart. The rows of a tile are
// chosen without a branch, which would be mispredicted every other time.
inline F32x16 max_dot_marked(const float *rows, const std::int32_t *which, std::size_t n,
                             const std::uint8_t *marks, std::size_t stride, const float *panel,
                             std::size_t dim) {
  F32x16 best[1] = {set1(kMinusInf)};
  Rows tile;
  std::size_t filled = 0;
  for (std::size_t i = 0; i < n; ++i) {
    tile[filled] = rows + i * row_stride(dim);
    filled += marks[static_cast<std::size_t>(which[i]) * stride];
    if (filled == 0 || (filled < kTileRows && i + 1 < n)) continue;
    for (std::size_t t = filled; t < kTileRows; ++t) tile[t] = tile[0];
    F32x16 acc[kTileRows][1];
    dot_tile<1>(tile, panel, panel, dim, acc);
    for (std::size_t t = 0; t < kTileRows; ++t) best[0] = max(acc[t][0], best[0]);
    filled = 0;
  }
  return best[0];
}

float residual_maxsim_marked(const Panels &query, const Decoder &decoder, const Residuals &tokens,
                             std::size_t n, const std::uint8_t *marks, float *scratch,
                             std::int32_t *which) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < n; ++i) {
    unsigned marked = 0;
    for (std::size_t p = 0; p < query.n_panels; ++p) marked |= marks[i * query.n_panels + p];
    which[count] = static_cast<std::int32_t>(i);
    count += marked;
  }
  for (std::size_t i = 0; i < count; i += kDecoded) {
    float *rows[kDecoded], inverse[kDecoded];
    for (std::size_t j = 0; j < kDecoded; ++j)
      rows[j] = scratch + min_of(i + j, count - 1) * row_stride(query.dim);
    decode_rows(
        decoder, tokens, i, count,
        [&](std::size_t k) { return static_cast<std::size_t>(which[k]); }, rows, inverse);
  }
  F32x16 total = set1(0.0f);
  for (std::size_t p = 0; p < query.n_panels; ++p)
    total = add(total, max_dot_marked(scratch, which, count, marks + p, query.n_panels,
                                      query.data + p * query.dim * kLanes, query.dim));
  return reduce_add(total);
}

// Levels of a tile of tokens, and of the one behind it while the products of the first are made.
// Rows lie at a constant distance: one register finds all of a tile. Those past the last token are
// whatever was there, and nobody looks at their products.
struct LevelTiles {
  static constexpr std::size_t kPitch = kMaxDim + 64;
  struct Tile {
    std::uint8_t *first;
    std::uint8_t *operator[](std::size_t t) const { return first + t * kPitch; }
  };
  // What a token's products are worth.
  struct Worth {
    const std::uint8_t *centroid; // its row of the table
    float inverse, scaled;        // inverse norm, and that times scale
    std::int32_t document;
  };
  const Decoder &decoder;
  const ByteTable &table;
  const Residuals *documents;
  const Chosen *chosen; // null: the first n tokens of one document
  std::size_t n;
  alignas(64) std::uint8_t bytes[2][kTileRows * kPitch];
  Worth worths[2][kTileRows];

  LevelTiles(const Decoder &d, const ByteTable &b, const Residuals *residuals, const Chosen *some,
             std::size_t count)
      : decoder(d), table(b), documents(residuals), chosen(some), n(count) {}
  // Token i + t, into row t of the tile that starts at i; none past the end.
  template <int B> COLBERT_FAST_INLINE void fill(std::size_t i, std::size_t t) {
    if (i + t >= n) return;
    const std::int32_t document = chosen == nullptr ? 0 : chosen[i + t].document;
    const std::size_t token =
        chosen == nullptr ? i + t : static_cast<std::size_t>(chosen[i + t].token);
    const Residuals &tokens = documents[document];
    const std::uint8_t *centroid = table.rows + code_at(tokens.codes, token) * table.stride;
    prefetch(centroid);
    const float inverse =
        tokens.inverse_norms == nullptr ? 1.0f : decoder.norms[tokens.inverse_norms[token]];
    const float scale = tokens.scales == nullptr ? 1.0f : decoder.scales[tokens.scales[token]];
    worths[i / kTileRows % 2][t] = {centroid, inverse, inverse * scale, document};
    levels_row<B>(decoder, tokens.packed + token * decoder.packed_dim, tile(i)[t]);
  }
  Tile tile(std::size_t i) { return {bytes[i / kTileRows % 2]}; }
  const Worth *worth(std::size_t i) const { return worths[i / kTileRows % 2]; }
};

// A cell is worth n * (c + s * r * dot), in units of the table's step: c the centroid's byte, s and
// n the token's scale and inverse norm, r the lane's ratio. `cells`, unless null, keeps them.
// done(document, best cells) is called after the last token of each.
template <int B, std::size_t P, class F>
inline void max_dot_i8(const PanelsI8 &query, std::size_t lane, const float *ratio,
                       LevelTiles &tiles, float *cells, F done) {
  const std::size_t n = tiles.n, dim = tiles.decoder.dim;
  F32x16 best[P];
  for (std::size_t p = 0; p < P; ++p) best[p] = set1(kMinusInf);
  for (std::size_t t = 0; t < kTileRows; ++t) tiles.template fill<B>(0, t);
  std::int32_t document = tiles.worth(0)->document;
  for (std::size_t i = 0; i < n; i += kTileRows) {
    I32x16 acc[kTileRows][P];
    dot_tile_i8<P>(tiles.tile(i), query.data + lane * dim, query.start + lane, dim, acc,
                   [&](std::size_t t) { tiles.template fill<B>(i + kTileRows, t); });
    const LevelTiles::Worth *worth = tiles.worth(i);
    unrolled<kTileRows>([&](auto t) {
      if (i + t >= n) return;
      if (worth[t].document != document) {
        done(document, best);
        for (std::size_t p = 0; p < P; ++p) best[p] = set1(kMinusInf);
        document = worth[t].document;
      }
      const F32x16 norm = set1(worth[t].inverse), scaled = set1(worth[t].scaled),
                   zero = set1(worth[t].inverse * static_cast<float>(-kTableZero));
      const std::uint8_t *byte = worth[t].centroid + lane;
      unrolled<P>([&](auto p) {
        const F32x16 centroid = fma(to_float(load_u8(byte + p * kLanes)), norm, zero);
        const F32x16 residual = mul(to_float(acc[t][p]), load(ratio + lane + p * kLanes));
        const F32x16 cell = fma(residual, scaled, centroid);
        if (cells != nullptr)
          store(cells + (i + t) * query.n_panels * kLanes + lane + p * kLanes, cell);
        best[p] = max(cell, best[p]);
      });
    });
  }
  done(document, best);
}

// f(panel index, document, best cells of its lanes) for all panels of all documents.
template <class F>
inline void best_cells(const PanelsI8 &query, const float *ratio, LevelTiles &tiles, float *cells,
                       F f) {
  for_panels(query.n_panels, [&](std::size_t panel, auto width) {
    constexpr std::size_t P = decltype(width)::value;
    with_bits(tiles.decoder.nbits, [&](auto b) {
      max_dot_i8<b.value, P>(query, panel * kLanes, ratio, tiles, cells,
                             [&](std::int32_t document, const F32x16(&best)[P]) {
                               for (std::size_t p = 0; p < P; ++p) f(panel + p, document, best[p]);
                             });
    });
  });
}

void residual_maxsim_i8(const PanelsI8 &query, const float *ratio, const ByteTable &table,
                        const Decoder &decoder, const Residuals *documents, const Chosen *chosen,
                        std::size_t n, std::size_t n_documents, float *scratch, float *scores) {
  LevelTiles tiles(decoder, table, documents, chosen, n);
  for (std::size_t i = 0; i < n_documents; ++i) store(scratch + i * kLanes, set1(0.0f));
  best_cells(query, ratio, tiles, nullptr,
             [&](std::size_t panel, std::int32_t document, F32x16 best) {
               float *total = scratch + static_cast<std::size_t>(document) * kLanes;
               store(total, fma(best, load(table.step + panel * kLanes), load(total)));
             });
  for (std::size_t i = 0; i < n_documents; ++i) scores[i] = reduce_add(load(scratch + i * kLanes));
}

float contenders(const PanelsI8 &query, const float *ratio, const ByteTable &table,
                 const Decoder &decoder, const Residuals &tokens, std::size_t n,
                 const float *squares, float relative, float *cells, std::uint8_t *marks) {
  LevelTiles tiles(decoder, table, &tokens, nullptr, n);
  F32x16 total = set1(0.0f);
  best_cells(query, ratio, tiles, cells, [&](std::size_t panel, std::int32_t, F32x16 best) {
    total = fma(best, load(table.step + panel * kLanes), total);
    const F32x16 share = mul(best, set1(relative));
    const F32x16 within = fma(share, share, load(squares + panel * kLanes));
    // Lanes past the query's last token have equal products throughout.
    const unsigned used = (1u << min_of(kLanes, query.count - panel * kLanes)) - 1u;
    const float *cell = cells + panel * kLanes;
    for (std::size_t i = 0; i < n; ++i, cell += query.n_panels * kLanes) {
      const F32x16 gap = sub(best, load(cell));
      marks[i * query.n_panels + panel] = (~bits(gt(mul(gap, gap), within)) & used) != 0;
    }
  });
  return reduce_add(total);
}

} // namespace
