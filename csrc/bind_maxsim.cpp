#include <algorithm>
#include <cstring>

#include "array_view.h"
#include "checks.h"
#include "cpu/dispatch.h"
#include "search/query_panels.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

// scores (n_queries, columns), argmax (n_queries, columns, nq) or None
void maxsim(const py::object &query, const py::object &documents, const py::object &doclens,
            const py::object &scores, const py::object &argmax) {
  const View q = expect(query, "query", {DType::f32}, {kAny, kAny, kAny});
  check_dim(q, "query");
  const View d =
      expect(documents, "documents", {DType::f32, DType::f16, DType::bf16}, {kAny, q.shape[2]});
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  const std::vector<std::int64_t> offsets = check_doclens(lengths, d.shape[0]);
  const std::size_t n_docs = lengths.dim(0), nq = q.dim(1), dim = q.dim(2);
  const View out = expect_out(scores, "scores", DType::f32, {q.shape[0], kAny});
  const Pairs pairs = check_pairs(out, n_docs, "scores");
  std::int32_t *arg = nullptr;
  if (!argmax.is_none())
    arg = expect_out(argmax, "argmax", DType::i32, {q.shape[0], out.shape[1], q.shape[1]})
              .as<std::int32_t>();

  const py::gil_scoped_release release;
  const std::size_t row_bytes = dim * size_of(d.dtype);
  std::vector<QueryPanels> panels(pairs.n_queries);
  for (std::size_t b = 0; b < pairs.n_queries; ++b)
    panels[b].pack(q.as<const float>() + b * nq * dim, nq, dim);
  // A document is met by all its queries while it lies in the cache.
  parallel_for(n_docs, 16, [&](std::size_t begin, std::size_t end) {
    std::vector<std::int32_t> best;
    for (std::size_t i = begin; i < end; ++i)
      for (std::size_t b = pairs.first_query(i); b < pairs.end_query(i); ++b) {
        best.resize(panels[b].lanes());
        out.as<float>()[pairs.at(b, i)] = kernels().maxsim(
            panels[b].f32(), d.as<const char>() + static_cast<std::size_t>(offsets[i]) * row_bytes,
            d.dtype, static_cast<std::size_t>(offsets[i + 1] - offsets[i]),
            arg == nullptr ? nullptr : best.data());
        if (arg != nullptr && nq > 0)
          std::memcpy(arg + pairs.at(b, i) * nq, best.data(), nq * sizeof *arg);
      }
  });
}

// Kernels index by argmax.
void check_argmax(const View &argmax, const Pairs &pairs,
                  const std::vector<std::int64_t> &offsets) {
  const std::size_t nq = argmax.dim(2);
  for (std::size_t b = 0; b < pairs.n_queries; ++b)
    for (std::size_t c = 0; c < pairs.columns; ++c) {
      const std::int32_t *met = argmax.as<const std::int32_t>() + (b * pairs.columns + c) * nq;
      const std::size_t i = pairs.first_document(b) + c;
      for (std::size_t j = 0; j < nq; ++j)
        if (met[j] < -1 || met[j] >= offsets[i + 1] - offsets[i])
          throw py::value_error("`argmax` must be tokens of the documents, or -1; got " +
                                std::to_string(met[j]) + " for document " + std::to_string(i) +
                                " of " + std::to_string(offsets[i + 1] - offsets[i]) + " tokens");
    }
}

// argmax (n_queries, columns, nq), grad (n_queries, columns), out (n_queries, nq, dim)
void maxsim_grad_query(const py::object &documents, const py::object &doclens,
                       const py::object &argmax, const py::object &grad, const py::object &out) {
  const View d =
      expect(documents, "documents", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(d, "documents");
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  const std::vector<std::int64_t> offsets = check_doclens(lengths, d.shape[0]);
  const View g = expect(grad, "grad", {DType::f32}, {kAny, kAny});
  const Pairs pairs = check_pairs(g, lengths.dim(0), "grad");
  const View arg = expect(argmax, "argmax", {DType::i32}, {g.shape[0], g.shape[1], kAny});
  check_argmax(arg, pairs, offsets);
  const std::size_t nq = arg.dim(2), dim = d.dim(1);
  const View sums = expect_out(out, "out", DType::f32, {g.shape[0], arg.shape[2], d.shape[1]});

  const py::gil_scoped_release release;
  parallel_for(pairs.n_queries * nq, 16, [&](std::size_t begin, std::size_t end) {
    std::fill(sums.as<float>() + begin * dim, sums.as<float>() + end * dim, 0.0f);
    while (begin < end) { // the tokens of one query
      const std::size_t b = begin / nq, count = std::min(end, (b + 1) * nq) - begin;
      kernels().maxsim_grad_query(g.as<const float>() + b * pairs.columns,
                                  arg.as<const std::int32_t>() + b * pairs.columns * nq +
                                      begin % nq,
                                  nq, d.data, d.dtype, offsets.data() + pairs.first_document(b),
                                  pairs.columns, count, dim, sums.as<float>() + begin * dim);
      begin += count;
    }
  });
}

// argmax (n_queries, columns, nq), grad (n_queries, columns), out (n_tokens, dim)
void maxsim_grad_documents(const py::object &query, const py::object &doclens,
                           const py::object &argmax, const py::object &grad,
                           const py::object &out) {
  const View q = expect(query, "query", {DType::f32}, {kAny, kAny, kAny});
  check_dim(q, "query");
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  const std::vector<std::int64_t> offsets = check_doclens(lengths);
  const View g = expect(grad, "grad", {DType::f32}, {q.shape[0], kAny});
  const Pairs pairs = check_pairs(g, lengths.dim(0), "grad");
  const View arg = expect(argmax, "argmax", {DType::i32}, {g.shape[0], g.shape[1], q.shape[1]});
  check_argmax(arg, pairs, offsets);
  const std::size_t nq = q.dim(1), dim = q.dim(2);
  const View rows = expect_out(out, "out", DType::f32, {offsets.back(), q.shape[2]});

  const py::gil_scoped_release release;
  parallel_for(lengths.dim(0), 4, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t b = pairs.first_query(i), at = pairs.at(b, i);
      kernels().maxsim_grad_documents(
          q.as<const float>() + b * nq * dim, pairs.end_query(i) - b, nq, dim,
          g.as<const float>() + at, arg.as<const std::int32_t>() + at * nq, pairs.columns,
          static_cast<std::size_t>(offsets[i + 1] - offsets[i]),
          rows.as<float>() + static_cast<std::size_t>(offsets[i]) * dim);
    }
  });
}

} // namespace

void bind_maxsim(py::module_ &m) {
  m.def("maxsim", &maxsim, py::arg("query"), py::arg("documents"), py::arg("doclens"),
        py::arg("scores"), py::arg("argmax"));
  m.def("maxsim_grad_query", &maxsim_grad_query, py::arg("documents"), py::arg("doclens"),
        py::arg("argmax"), py::arg("grad"), py::arg("out"));
  m.def("maxsim_grad_documents", &maxsim_grad_documents, py::arg("query"), py::arg("doclens"),
        py::arg("argmax"), py::arg("grad"), py::arg("out"));
}
