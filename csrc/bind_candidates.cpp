#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include <pybind11/stl.h>

#include "aligned.h"
#include "array_view.h"
#include "checks.h"
#include "cpu/dispatch.h"
#include "packed_codes.h"
#include "search/lists.h"
#include "search/probe.h"
#include "search/query_panels.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

// A (K, nq) table with its rows padded to whole panels.
AlignedVector<float> padded(const View &scores, std::size_t lanes) {
  const std::size_t n = scores.dim(0), nq = scores.dim(1);
  AlignedVector<float> table(n * lanes, 0.0f);
  for (std::size_t c = 0; c < n; ++c)
    std::memcpy(table.data() + c * lanes, scores.as<const float>() + c * nq, nq * sizeof(float));
  return table;
}

std::size_t lanes_of(std::size_t nq) { return (nq + kLanes - 1) / kLanes * kLanes; }

void centroid_scores(const py::object &query, const py::object &centroids,
                     const py::object &scores) {
  const View q = expect(query, "query", {DType::f32}, {kAny, kAny});
  check_dim(q, "query");
  const View c = expect(centroids, "centroids", {DType::f32}, {kAny, q.shape[1]});
  const View out = expect_out(scores, "scores", DType::f32, {c.shape[0], q.shape[0]});
  const std::size_t nq = q.dim(0), dim = q.dim(1);
  const py::gil_scoped_release release;
  QueryPanels panels;
  panels.pack(q.as<const float>(), nq, dim);
  parallel_for(c.dim(0), 256, [&](std::size_t begin, std::size_t end) {
    AlignedVector<float> block((end - begin) * panels.lanes());
    kernels().scores(panels.f32(), c.as<const float>() + begin * dim, end - begin, block.data());
    for (std::size_t i = begin; i < end; ++i)
      std::memcpy(out.as<float>() + i * nq, block.data() + (i - begin) * panels.lanes(),
                  nq * sizeof(float));
  });
}

void top_centroids(const py::object &scores, const py::object &cells) {
  const View s = expect(scores, "scores", {DType::f32}, {kAny, kAny});
  const View out = expect_out(cells, "cells", DType::i32, {s.shape[1], kAny});
  const std::size_t nprobe = out.dim(1), lanes = lanes_of(s.dim(1));
  if (nprobe < 1 || nprobe > s.dim(0))
    throw py::value_error("`nprobe` must be from 1 to the number of centroids, " +
                          std::to_string(s.dim(0)) + ", got " + std::to_string(nprobe));
  const py::gil_scoped_release release;
  const AlignedVector<float> table = padded(s, lanes);
  std::vector<std::int32_t> ids;
  probe(table.data(), s.dim(0), lanes, s.dim(1), nprobe, ids);
  std::copy(ids.begin(), ids.end(), out.as<std::int32_t>());
}

void check_code_bits(int bits) {
  if (bits < 1 || bits > kMaxCodeBits)
    throw py::value_error("`bits` must be from 1 to " + std::to_string(kMaxCodeBits) + ", got " +
                          std::to_string(bits));
}

std::int64_t padded_bytes(std::int64_t n, int bits) {
  return static_cast<std::int64_t>(packed_bytes(static_cast<std::size_t>(n), bits) + kCodePadding);
}

void pack_codes(const py::object &codes, int bits, const py::object &packed) {
  check_code_bits(bits);
  const View ids = expect(codes, "codes", {DType::i32, DType::u16}, {kAny});
  const Codes checked = check_codes(ids, std::int64_t{1} << bits);
  const View out = expect_out(packed, "packed", DType::u8, {padded_bytes(ids.shape[0], bits)});
  const py::gil_scoped_release release;
  write_codes(checked, ids.dim(0), bits, out.as<std::uint8_t>());
}

void unpack_codes(const py::object &packed, int bits, std::int64_t first, const py::object &codes) {
  check_code_bits(bits);
  const View in = expect(packed, "packed", {DType::u8}, {kAny});
  const View out = expect_out(codes, "codes", DType::i32, {kAny});
  const std::int64_t most = in.shape[0] * 8 / bits; // so that no sum overflows
  if (first < 0 || first > most || padded_bytes(first + out.shape[0], bits) > in.shape[0])
    throw py::value_error("`first` and `count` must lie within the ids of `packed`, got " +
                          std::to_string(first) + " and " + std::to_string(out.shape[0]) + " of " +
                          std::to_string(in.shape[0]) + " bytes");
  const PackedCodes all{in.as<const std::uint8_t>(), bits,
                        std::numeric_limits<std::int32_t>::max()};
  const py::gil_scoped_release release;
  parallel_for(out.dim(0), std::size_t{1} << 14, [&](std::size_t begin, std::size_t end) {
    AlignedVector<std::int32_t> buffer;
    const Codes block = all.unpack(static_cast<std::size_t>(first) + begin, end - begin, buffer);
    std::memcpy(out.as<std::int32_t>() + begin, block.data, (end - begin) * sizeof(std::int32_t));
  });
}

// A ListBuilder with the Python array that it reads.
class BoundListBuilder {
public:
  BoundListBuilder(py::object packed, int bits, const py::object &doclens, std::int64_t n_centroids,
                   std::optional<std::int64_t> n_codes)
      : packed_(std::move(packed)), builder_(make(packed_, bits, doclens, n_centroids, n_codes)) {}

  py::array_t<std::int32_t> counts() const { return copied(builder_.counts()); }
  py::array_t<std::int64_t> offsets() const { return copied(builder_.offsets()); }

  void fill(std::int64_t first, std::int64_t last, const py::object &data) const {
    const auto n = static_cast<std::int64_t>(builder_.counts().size());
    if (first < 0 || first > last || last > n)
      throw py::value_error("`first` and `last` must be from 0 to " + std::to_string(n) + ", got " +
                            std::to_string(first) + " and " + std::to_string(last));
    const auto begin = static_cast<std::size_t>(first), end = static_cast<std::size_t>(last);
    const View out =
        expect_out(data, "data", DType::u8, {builder_.offsets()[end] - builder_.offsets()[begin]});
    const py::gil_scoped_release release;
    builder_.fill(begin, end, out.as<std::uint8_t>());
  }

private:
  static ListBuilder make(const py::object &packed, int bits, const py::object &doclens,
                          std::int64_t n_centroids, std::optional<std::int64_t> n_codes) {
    if (n_centroids < 1)
      throw py::value_error("`num_centroids` must be at least 1, got " +
                            std::to_string(n_centroids));
    check_code_bits(bits);
    const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
    std::vector<std::int64_t> starts =
        n_codes ? check_doclens(lengths, *n_codes) : check_doclens(lengths);
    const View codes = expect(packed, "codes", {DType::u8}, {padded_bytes(starts.back(), bits)});
    const PackedCodes all{codes.as<const std::uint8_t>(), bits,
                          std::numeric_limits<std::int32_t>::max()};
    const py::gil_scoped_release release;
    return ListBuilder(all, std::move(starts), static_cast<std::size_t>(n_centroids));
  }

  template <class T> static py::array_t<T> copied(const std::vector<T> &values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
  }

  py::object packed_;
  ListBuilder builder_;
};

py::array_t<std::int32_t> read_lists(const py::object &counts, const py::object &offsets,
                                     const py::object &data, const py::object &cells,
                                     std::int64_t n_docs) {
  const View n = expect(counts, "counts", {DType::i32}, {kAny});
  const View at = expect(offsets, "offsets", {DType::i64}, {n.shape[0] + 1});
  const View bytes = expect(data, "data", {DType::u8}, {kAny});
  const View which = expect(cells, "cells", {DType::i32}, {kAny});
  const auto *ends = at.as<const std::int64_t>();
  if (ends[0] != 0 || !std::is_sorted(ends, ends + at.dim(0)) || ends[n.dim(0)] != bytes.shape[0])
    throw py::value_error("`offsets` must rise from 0 to the length of `data`");
  if (n_docs < 0)
    throw py::value_error("`n_docs` must not be negative, got " + std::to_string(n_docs));
  const Lists lists{n.as<const std::int32_t>(), ends, bytes.as<const std::uint8_t>(), n.dim(0)};
  const auto *first = which.as<const std::int32_t>(), *last = first + which.dim(0);
  const auto wrong = std::find_if(first, last, [&](auto c) { return c < 0 || c >= n.shape[0]; });
  if (wrong != last)
    throw py::value_error("`cells` must be from 0 to " + std::to_string(n.shape[0] - 1) + ", got " +
                          std::to_string(*wrong));
  std::vector<std::int32_t> ids;
  try {
    const py::gil_scoped_release release;
    for (const auto *cell = first; cell != last; ++cell)
      read_list(lists, static_cast<std::size_t>(*cell), static_cast<std::size_t>(n_docs), ids);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  } catch (const std::runtime_error &error) {
    throw py::value_error(std::string("`lists`: ") + error.what());
  }
  return py::array_t<std::int32_t>(static_cast<py::ssize_t>(ids.size()), ids.data());
}

void approximate_maxsim(const py::object &scores, const py::object &codes,
                        const py::object &doclens, const py::object &candidates,
                        std::optional<float> threshold, const py::object &out) {
  const View s = expect(scores, "scores", {DType::f32}, {kAny, kAny});
  if (s.shape[1] == 0)
    throw py::value_error("`scores` must have a column per query token, got none");
  const View ids = expect(codes, "codes", {DType::i32, DType::u16}, {kAny});
  const Codes checked = check_codes(ids, s.shape[0]);
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  const std::vector<std::int64_t> offsets = check_doclens(lengths, ids.shape[0]);
  const View which = expect(candidates, "candidates", {DType::i32}, {kAny});
  const auto *documents = which.as<const std::int32_t>();
  for (std::size_t i = 0; i < which.dim(0); ++i)
    if (documents[i] < 0 || documents[i] >= lengths.shape[0])
      throw py::value_error("`candidates` must be from 0 to " +
                            std::to_string(lengths.shape[0] - 1) + ", got " +
                            std::to_string(documents[i]));
  const View result = expect_out(out, "out", DType::f32, {which.shape[0]});

  const py::gil_scoped_release release;
  const std::size_t nq = s.dim(1), lanes = lanes_of(nq);
  const AlignedVector<float> table = padded(s, lanes);
  AlignedVector<float> init(lanes, 0.0f);
  std::fill_n(init.begin(), nq, kNothingMatched);
  std::vector<std::uint8_t> keep;
  if (threshold)
    for (std::size_t c = 0; c < s.dim(0); ++c) {
      const float *row = table.data() + c * lanes;
      keep.push_back(*std::max_element(row, row + nq) >= *threshold);
    }
  parallel_for(which.dim(0), 256, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const auto first = static_cast<std::size_t>(offsets[static_cast<std::size_t>(documents[i])]);
      const auto n = static_cast<std::size_t>(lengths.as<const std::int32_t>()[documents[i]]);
      result.as<float>()[i] =
          kernels().approximate(table.data(), lanes, codes_from(checked, first), n,
                                threshold ? keep.data() : nullptr, init.data());
    }
  });
}

void top_k(const py::object &scores, const py::object &values, const py::object &indices) {
  const View s = expect(scores, "scores", {DType::f32}, {kAny});
  const View out = expect_out(values, "values", DType::f32, {kAny});
  const View at = expect_out(indices, "indices", DType::i64, {out.shape[0]});
  if (out.dim(0) > s.dim(0)) throw py::value_error("`values` must not be longer than `scores`");
  const py::gil_scoped_release release;
  const auto *x = s.as<const float>();
  std::vector<std::int64_t> order(s.dim(0));
  std::iota(order.begin(), order.end(), 0);
  // NaN counts as -inf: comparisons with it would leave no order to sort by.
  const auto key = [&](std::int64_t i) {
    return x[i] == x[i] ? x[i] : -std::numeric_limits<float>::infinity();
  };
  std::partial_sort(
      order.begin(), order.begin() + out.shape[0], order.end(),
      [&](std::int64_t a, std::int64_t b) { return key(a) != key(b) ? key(a) > key(b) : a < b; });
  for (std::size_t i = 0; i < out.dim(0); ++i) {
    out.as<float>()[i] = x[order[i]];
    at.as<std::int64_t>()[i] = order[i];
  }
}

} // namespace

void bind_candidates(py::module_ &m) {
  using py::arg;
  m.def("centroid_scores", &centroid_scores, arg("query"), arg("centroids"), arg("scores"));
  m.def("top_centroids", &top_centroids, arg("scores"), arg("cells"));
  m.def("pack_codes", &pack_codes, arg("codes"), arg("bits"), arg("packed"));
  m.def("unpack_codes", &unpack_codes, arg("packed"), arg("bits"), arg("first"), arg("codes"));
  py::class_<BoundListBuilder>(m, "ListBuilder")
      .def(py::init<py::object, int, const py::object &, std::int64_t,
                    std::optional<std::int64_t>>(),
           arg("packed"), arg("bits"), arg("doclens"), arg("num_centroids"),
           arg("num_codes") = py::none())
      .def_property_readonly("counts", &BoundListBuilder::counts)
      .def_property_readonly("offsets", &BoundListBuilder::offsets)
      .def("fill", &BoundListBuilder::fill, arg("first"), arg("last"), arg("data"));
  m.def("read_lists", &read_lists, arg("counts"), arg("offsets"), arg("data"), arg("cells"),
        arg("n_docs"));
  m.def("approximate_maxsim", &approximate_maxsim, arg("scores"), arg("codes"), arg("doclens"),
        arg("candidates"), arg("threshold"), arg("out"));
  m.def("top_k", &top_k, arg("scores"), arg("values"), arg("indices"));
}
