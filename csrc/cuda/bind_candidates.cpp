#include "checks.h"
#include "cuda/arguments.h"

using namespace colbert_fast;

namespace {

void centroid_scores(const py::object &query, const py::object &centroids, const py::object &scores,
                     std::uintptr_t stream) {
  const cuda::Arguments arguments(query, "query", stream);
  const View q = arguments.in(query, "query", {DType::f32}, {kAny, kAny});
  check_dim(q, "query");
  const View c = arguments.in(centroids, "centroids", {DType::f32}, {kAny, q.shape[1]});
  const View out = arguments.out(scores, "scores", DType::f32, {c.shape[0], q.shape[0]});
  cuda::centroid_scores(q.as<const float>(), q.dim(0), q.dim(1), c.as<const float>(), c.dim(0),
                        out.as<float>(), arguments.stream());
}

// At most so many are sorted in shared memory.
void check_top(std::size_t k, const char *name) {
  if (k > cuda::kMaxTop)
    throw py::value_error(std::string("`") + name + "` must be at most " +
                          std::to_string(cuda::kMaxTop) + " on a CUDA device, got " +
                          std::to_string(k));
}

void top_centroids(const py::object &scores, const py::object &cells, std::uintptr_t stream) {
  const cuda::Arguments arguments(scores, "scores", stream);
  const View s = arguments.in(scores, "scores", {DType::f32}, {kAny, kAny});
  const View out = arguments.out(cells, "cells", DType::i32, {s.shape[1], kAny});
  if (out.dim(1) < 1 || out.dim(1) > s.dim(0))
    throw py::value_error("`nprobe` must be from 1 to the number of centroids, " +
                          std::to_string(s.dim(0)) + ", got " + std::to_string(out.dim(1)));
  check_top(out.dim(1), "nprobe");
  cuda::top_centroids(s.as<const float>(), s.dim(0), s.dim(1), out.dim(1), out.as<std::int32_t>(),
                      arguments.stream());
}

void top_k(const py::object &scores, const py::object &values, const py::object &indices,
           std::uintptr_t stream) {
  const cuda::Arguments arguments(scores, "scores", stream);
  const View s = arguments.in(scores, "scores", {DType::f32}, {kAny});
  const View out = arguments.out(values, "values", DType::f32, {kAny});
  const View at = arguments.out(indices, "indices", DType::i64, {out.shape[0]});
  if (out.dim(0) > s.dim(0)) throw py::value_error("`values` must not be longer than `scores`");
  check_top(out.dim(0), "k");
  cuda::top_k(s.as<const float>(), s.dim(0), out.dim(0), out.as<float>(), at.as<std::int64_t>(),
              arguments.stream());
}

} // namespace

void bind_candidates(py::module_ &m) {
  using py::arg;
  m.def("centroid_scores", &centroid_scores, arg("query"), arg("centroids"), arg("scores"),
        arg("stream"));
  m.def("top_centroids", &top_centroids, arg("scores"), arg("cells"), arg("stream"));
  m.def("top_k", &top_k, arg("scores"), arg("values"), arg("indices"), arg("stream"));
}
