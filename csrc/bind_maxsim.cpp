#include <cstring>

#include "array_view.h"
#include "checks.h"
#include "cpu/dispatch.h"
#include "search/query_panels.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

// scores (n_queries, n_docs), argmax (n_queries, n_docs, nq) or None
void maxsim(const py::object &query, const py::object &documents, const py::object &doclens,
            const py::object &scores, const py::object &argmax) {
  const View q = expect(query, "query", {DType::f32}, {kAny, kAny, kAny});
  check_dim(q, "query");
  const View d =
      expect(documents, "documents", {DType::f32, DType::f16, DType::bf16}, {kAny, q.shape[2]});
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  const std::vector<std::int64_t> offsets = check_doclens(lengths, d.shape[0]);
  const std::size_t n_docs = lengths.dim(0), nq = q.dim(1), dim = q.dim(2);
  const View out = expect_out(scores, "scores", DType::f32, {q.shape[0], lengths.shape[0]});
  std::int32_t *arg = nullptr;
  if (!argmax.is_none())
    arg = expect_out(argmax, "argmax", DType::i32, {q.shape[0], lengths.shape[0], q.shape[1]})
              .as<std::int32_t>();

  const py::gil_scoped_release release;
  const std::size_t row_bytes = dim * (d.dtype == DType::f32 ? 4 : 2);
  for (std::size_t b = 0; b < q.dim(0); ++b) {
    QueryPanels panels;
    panels.pack(q.as<const float>() + b * nq * dim, nq, dim);
    parallel_for(n_docs, 16, [&](std::size_t begin, std::size_t end) {
      std::vector<std::int32_t> best(panels.lanes());
      for (std::size_t i = begin; i < end; ++i) {
        out.as<float>()[b * n_docs + i] = kernels().maxsim(
            panels.f32(), d.as<const char>() + static_cast<std::size_t>(offsets[i]) * row_bytes,
            d.dtype, static_cast<std::size_t>(offsets[i + 1] - offsets[i]),
            arg == nullptr ? nullptr : best.data());
        if (arg != nullptr) std::memcpy(arg + (b * n_docs + i) * nq, best.data(), nq * sizeof *arg);
      }
    });
  }
}

} // namespace

void bind_maxsim(py::module_ &m) {
  m.def("maxsim", &maxsim, py::arg("query"), py::arg("documents"), py::arg("doclens"),
        py::arg("scores"), py::arg("argmax"));
}
