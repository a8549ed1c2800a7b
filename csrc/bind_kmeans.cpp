#include "array_view.h"
#include "assigner.h"
#include "checks.h"
#include "clusters.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

void assign(const py::object &points, const py::object &centroids, const py::object &codes,
            const py::object &best, bool exact) {
  const View x = expect(points, "points", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(x, "points");
  const View c = expect(centroids, "centroids", {DType::f32}, {kAny, x.shape[1]});
  if (c.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
  const View out = expect_out(codes, "codes", DType::i32, {x.shape[0]});
  const View scores = expect_out(best, "best", DType::f32, {x.shape[0]});
  const std::size_t dim = x.dim(1), row_bytes = dim * size_of(x.dtype);
  const py::gil_scoped_release release;
  const Assigner assigner(c.as<const float>(), c.dim(0), dim, x.dim(0),
                          exact ? Assigner::kExact : Assigner::kTwoLevel);
  parallel_for(x.dim(0), kAssignBlock, [&](std::size_t begin, std::size_t end) {
    assigner.assign(x.as<const char>() + begin * row_bytes, x.dtype, end - begin,
                    out.as<std::int32_t>() + begin, scores.as<float>() + begin);
  });
}

void accumulate(const py::object &points, const py::object &codes, const py::object &sums,
                const py::object &counts) {
  const View x = expect(points, "points", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(x, "points");
  const View ids = expect(codes, "codes", {DType::i32}, {x.shape[0]});
  const View out = expect_out(sums, "sums", DType::f32, {kAny, x.shape[1]});
  const View sizes = expect_out(counts, "counts", DType::i64, {out.shape[0]});
  check_codes(ids, out.shape[0]);
  const py::gil_scoped_release release;
  const Clusters clusters(ids.as<const std::int32_t>(), x.dim(0), out.dim(0));
  clusters.sum(x.data, x.dtype, x.dim(1), out.as<float>());
  for (std::size_t c = 0; c < out.dim(0); ++c)
    sizes.as<std::int64_t>()[c] = static_cast<std::int64_t>(clusters.size(c));
}

} // namespace

void bind_kmeans(py::module_ &m) {
  using py::arg;
  m.def("assign", &assign, arg("points"), arg("centroids"), arg("codes"), arg("best"),
        arg("exact"));
  m.def("accumulate", &accumulate, arg("points"), arg("codes"), arg("sums"), arg("counts"));
}
