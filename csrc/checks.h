// Checks that several topics share, beyond dtype and shape.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "array_view.h"
#include "pairs.h"
#include "search/codec_tables.h"

namespace colbert_fast {

inline void check_dim(const View &view, const char *name) {
  const std::int64_t dim = view.shape.back();
  if (dim % 8 != 0 || dim < 8 || dim > static_cast<std::int64_t>(kMaxDim))
    throw py::value_error(std::string("`") + name +
                          "` must have a dimension that is a multiple of 8 from 8 to " +
                          std::to_string(kMaxDim) + ", got " + std::to_string(dim));
}

inline void check_nbits(std::int64_t nbits) {
  if (nbits != 1 && nbits != 2 && nbits != 3 && nbits != 4 && nbits != 8)
    throw py::value_error("`nbits` must be 1, 2, 3, 4 or 8, got " + std::to_string(nbits));
}

// The bits per dimension of rows of `packed_dim` bytes.
inline int nbits_of_rows(std::int64_t packed_dim, std::int64_t dim,
                         const std::string &name = "residuals") {
  for (const int nbits : {1, 2, 3, 4, 8})
    if (packed_dim * 8 == dim * nbits) return nbits;
  throw py::value_error("`" + name +
                        "` must have dim / 8 bytes per row and bit, for 1, 2, 3, 4 or 8 bits; "
                        "got " +
                        std::to_string(packed_dim) + " bytes for dim " + std::to_string(dim));
}

inline void check_weights(const View &weights, int nbits) {
  const std::size_t by_bucket = std::size_t{1} << nbits, by_window = windows_of(nbits);
  if (weights.dim(0) != by_bucket && weights.dim(0) != by_window)
    throw py::value_error(
        "`weights` must hold " + std::to_string(by_bucket) + " values" +
        (by_window != by_bucket ? " (or " + std::to_string(by_window) + ", of a trellis)" : "") +
        " for nbits=" + std::to_string(nbits) + ", got " + std::to_string(weights.dim(0)));
  for (std::size_t i = 0; i < weights.dim(0); ++i)
    if (!std::isfinite(weights.as<const float>()[i]))
      throw py::value_error("`weights` must be finite");
}

// The bits of buckets between so many cutoffs.
inline int nbits_of_cutoffs(const View &cutoffs) {
  for (const int nbits : {1, 2, 3, 4, 8})
    if (cutoffs.shape[0] == (std::int64_t{1} << nbits) - 1) return nbits;
  throw py::value_error("`cutoffs` must hold 1, 3, 7, 15 or 255 values, got " +
                        std::to_string(cutoffs.dim(0)));
}

// Byte columns with a value per token; null for None.
inline const std::uint8_t *check_bytes(const py::object &column, const std::string &name,
                                       std::int64_t n) {
  if (column.is_none()) return nullptr;
  return expect(column, name.c_str(), {DType::u8}, {n}).as<const std::uint8_t>();
}

inline void check_finite(const View &floats, const char *name) {
  const auto *values = floats.as<const float>();
  const std::size_t n = floats.dim(0) * floats.dim(1);
  if (!std::all_of(values, values + n, [](float x) { return std::isfinite(x); }))
    throw py::value_error(std::string("`") + name + "` must be finite");
}

// Offsets of the documents' first tokens, and one past the last.
inline std::vector<std::int64_t> check_doclens(const View &doclens,
                                               const std::string &name = "doclens") {
  if (doclens.shape[0] > std::numeric_limits<std::int32_t>::max())
    throw py::value_error("`" + name + "` must be of at most 2147483647 documents, got " +
                          std::to_string(doclens.shape[0]));
  std::vector<std::int64_t> offsets(doclens.dim(0) + 1, 0);
  for (std::size_t i = 0; i < doclens.dim(0); ++i) {
    const std::int32_t length = doclens.as<const std::int32_t>()[i];
    if (length < 0)
      throw py::value_error("`" + name + "` must not be negative, got " + std::to_string(length) +
                            " at " + std::to_string(i));
    offsets[i + 1] = offsets[i] + length;
  }
  return offsets;
}

// The same; the lengths must sum to n_tokens.
inline std::vector<std::int64_t> check_doclens(const View &doclens, std::int64_t n_tokens,
                                               const std::string &name = "doclens") {
  std::vector<std::int64_t> offsets = check_doclens(doclens, name);
  if (offsets.back() != n_tokens)
    throw py::value_error("`" + name + "` must sum to the number of tokens, " +
                          std::to_string(n_tokens) + ", got " + std::to_string(offsets.back()));
  return offsets;
}

// Which pairs of queries and `n_docs` documents `results` (n_queries, columns) has a place for.
inline Pairs check_pairs(const View &results, std::size_t n_docs, const char *name) {
  const Pairs pairs{results.dim(0), results.dim(1), results.dim(1) != n_docs};
  if (pairs.own && pairs.columns * pairs.n_queries != n_docs)
    throw py::value_error(std::string("`") + name + "` must have a column for each of the " +
                          std::to_string(n_docs) + " documents, or for each query's own, got " +
                          std::to_string(pairs.n_queries) + " rows of " +
                          std::to_string(pairs.columns));
  return pairs;
}

inline Codes codes_of(const View &codes) { return {codes.data, codes.dtype == DType::i32}; }

// Kernels index by code, so one out of range must not reach them.
inline Codes check_codes(const View &codes, std::int64_t n_centroids) {
  const std::size_t n = codes.dim(0);
  std::int64_t low = 0, high = -1;
  if (codes.dtype == DType::i32) {
    const auto *values = codes.as<const std::int32_t>();
    for (std::size_t i = 0; i < n; ++i)
      low = std::min<std::int64_t>(low, values[i]), high = std::max<std::int64_t>(high, values[i]);
  } else {
    const auto *values = codes.as<const std::uint16_t>();
    for (std::size_t i = 0; i < n; ++i) high = std::max<std::int64_t>(high, values[i]);
  }
  if (low < 0 || high >= n_centroids)
    throw py::value_error("`codes` must be from 0 to " + std::to_string(n_centroids - 1) +
                          ", got " + std::to_string(low < 0 ? low : high));
  return codes_of(codes);
}

} // namespace colbert_fast
