#include "checks.h"
#include "cuda/arguments.h"

using namespace colbert_fast;

namespace {

// rows float16 (K, dim), extremes float32 (2,), which the caller has set to 0
void narrow_centroids(const py::object &centroids, const py::object &rows,
                      const py::object &extremes, std::uintptr_t stream) {
  const cuda::Arguments arguments(centroids, "centroids", stream);
  const View c = arguments.in(centroids, "centroids", {DType::f32}, {kAny, kAny});
  check_dim(c, "centroids");
  const View out = arguments.out(rows, "rows", DType::f16, {c.shape[0], c.shape[1]});
  const View bounds = arguments.out(extremes, "extremes", DType::f32, {2});
  cuda::narrow_centroids(c.as<const float>(), c.dim(0), c.dim(1), out.as<std::uint16_t>(),
                         bounds.as<cuda::Extremes>(), arguments.stream());
}

// By tensor cores if there are `rows` and `extremes`, from narrow_centroids.
void assign(const py::object &points, const py::object &centroids, const py::object &codes,
            const py::object &best, const py::object &rows, const py::object &extremes,
            std::uintptr_t stream) {
  const cuda::Arguments arguments(points, "points", stream);
  const View x =
      arguments.in(points, "points", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(x, "points");
  const View c = arguments.in(centroids, "centroids", {DType::f32}, {kAny, x.shape[1]});
  if (c.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
  const View out = arguments.out(codes, "codes", DType::i32, {x.shape[0]});
  const View scores = arguments.out(best, "best", DType::f32, {x.shape[0]});
  if (rows.is_none())
    return cuda::assign(x.data, x.dtype, x.dim(0), x.dim(1), c.as<const float>(), c.dim(0),
                        out.as<std::int32_t>(), scores.as<float>(), arguments.stream());
  if (x.dim(1) > cuda::kMaxMmaDim)
    throw py::value_error("`rows` must be None for more than " + std::to_string(cuda::kMaxMmaDim) +
                          " dimensions, got " + std::to_string(x.dim(1)));
  const View narrow = arguments.in(rows, "rows", {DType::f16}, {c.shape[0], c.shape[1]});
  const View bounds = arguments.in(extremes, "extremes", {DType::f32}, {2});
  cuda::assign_mma(x.data, x.dtype, x.dim(0), x.dim(1), c.as<const float>(), c.dim(0),
                   narrow.as<const std::uint16_t>(), bounds.as<const cuda::Extremes>(),
                   out.as<std::int32_t>(), scores.as<float>(), arguments.stream());
}

// sums (K, dim), of the points order[first[c]] to order[first[c + 1] - 1]
void accumulate(const py::object &points, const py::object &order, const py::object &first,
                const py::object &sums, std::uintptr_t stream) {
  const cuda::Arguments arguments(points, "points", stream);
  const View x =
      arguments.in(points, "points", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(x, "points");
  const View ids = arguments.in(order, "order", {DType::i64}, {x.shape[0]});
  const View out = arguments.out(sums, "sums", DType::f32, {kAny, x.shape[1]});
  const View at = arguments.in(first, "first", {DType::i64}, {out.shape[0] + 1});
  cuda::accumulate(x.data, x.dtype, x.dim(0), x.dim(1), ids.as<const std::int64_t>(),
                   at.as<const std::int64_t>(), out.dim(0), out.as<float>(), arguments.stream());
}

} // namespace

void bind_kmeans(py::module_ &m) {
  using py::arg;
  m.def("narrow_centroids", &narrow_centroids, arg("centroids"), arg("rows"), arg("extremes"),
        arg("stream"));
  m.def("assign", &assign, arg("points"), arg("centroids"), arg("codes"), arg("best"),
        arg("rows").none(true), arg("extremes").none(true), arg("stream"));
  m.def("accumulate", &accumulate, arg("points"), arg("order"), arg("first"), arg("sums"),
        arg("stream"));
}
