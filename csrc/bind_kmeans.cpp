#include <numeric>

#include "array_view.h"
#include "assigner.h"
#include "checks.h"
#include "cpu/dispatch.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

void assign(const py::object &points, const py::object &centroids, const py::object &codes,
            const py::object &best) {
  const View x = expect(points, "points", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(x, "points");
  const View c = expect(centroids, "centroids", {DType::f32}, {kAny, x.shape[1]});
  if (c.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
  const View out = expect_out(codes, "codes", DType::i32, {x.shape[0]});
  const View scores = expect_out(best, "best", DType::f32, {x.shape[0]});
  const std::size_t dim = x.dim(1), row_bytes = dim * (x.dtype == DType::f32 ? 4 : 2);
  const py::gil_scoped_release release;
  const Assigner assigner(c.as<const float>(), c.dim(0), dim, x.dim(0));
  parallel_for(x.dim(0), kAssignBlock, [&](std::size_t begin, std::size_t end) {
    assigner.assign(x.as<const char>() + begin * row_bytes, x.dtype, end - begin,
                    out.as<std::int32_t>() + begin, scores.as<float>() + begin);
  });
}

// Points are sorted by cluster first, so that each cluster is summed by one thread in point order.
void accumulate(const py::object &points, const py::object &codes, const py::object &sums,
                const py::object &counts) {
  const View x = expect(points, "points", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(x, "points");
  const View ids = expect(codes, "codes", {DType::i32}, {x.shape[0]});
  const View out = expect_out(sums, "sums", DType::f32, {kAny, x.shape[1]});
  const View sizes = expect_out(counts, "counts", DType::i64, {out.shape[0]});
  check_codes(ids, out.shape[0]);
  const std::size_t n = x.dim(0), k = out.dim(0), dim = x.dim(1);
  const auto *code = ids.as<const std::int32_t>();
  const py::gil_scoped_release release;
  std::vector<std::size_t> next(k + 1, 0);
  for (std::size_t i = 0; i < n; ++i) ++next[static_cast<std::size_t>(code[i]) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  const std::vector<std::size_t> first = next;
  std::vector<std::int64_t> order(n);
  for (std::size_t i = 0; i < n; ++i)
    order[next[static_cast<std::size_t>(code[i])]++] = static_cast<std::int64_t>(i);
  parallel_for(k, 64, [&](std::size_t begin, std::size_t end) {
    for (std::size_t c = begin; c < end; ++c) {
      const std::size_t size = first[c + 1] - first[c];
      kernels().sum_rows(x.data, x.dtype, dim, order.data() + first[c], size,
                         out.as<float>() + c * dim);
      sizes.as<std::int64_t>()[c] = static_cast<std::int64_t>(size);
    }
  });
}

} // namespace

void bind_kmeans(py::module_ &m) {
  using py::arg;
  m.def("assign", &assign, arg("points"), arg("centroids"), arg("codes"), arg("best"));
  m.def("accumulate", &accumulate, arg("points"), arg("codes"), arg("sums"), arg("counts"));
}
