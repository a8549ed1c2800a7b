// Residuals of vectors whose nearest centroids are known. Cutoffs and weights lie on the host.
#include "checks.h"
#include "cuda/arguments.h"
#include "search/codec_tables.h"

using namespace colbert_fast;

namespace {

// Vectors, and the centroid of each.
struct Assigned {
  View points, centroids, codes;

  static Assigned check(const cuda::Arguments &arguments, const py::object &embeddings,
                        const py::object &centroids, const py::object &codes) {
    Assigned found;
    found.points =
        arguments.in(embeddings, "embeddings", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
    check_dim(found.points, "embeddings");
    found.centroids =
        arguments.in(centroids, "centroids", {DType::f32}, {kAny, found.points.shape[1]});
    if (found.centroids.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
    found.codes = arguments.in(codes, "codes", {DType::i32}, {found.points.shape[0]});
    return found;
  }
};

void compress(const py::object &embeddings, const py::object &centroids, const py::object &codes,
              const py::object &cutoffs, const py::object &residuals, std::uintptr_t stream) {
  const cuda::Arguments arguments(embeddings, "embeddings", stream);
  const auto [points, c, ids] = Assigned::check(arguments, embeddings, centroids, codes);
  const View cuts = expect(cutoffs, "cutoffs", {DType::f32}, {kAny});
  const int nbits = nbits_of_cutoffs(cuts);
  const View out = arguments.out(residuals, "residuals", DType::u8,
                                 {points.shape[0], points.shape[1] * nbits / 8});
  cuda::compress(points.data, points.dtype, points.dim(0), points.dim(1), c.as<const float>(),
                 c.dim(0), ids.as<const std::int32_t>(), cuts.as<const float>(), nbits,
                 out.as<std::uint8_t>(), arguments.stream());
}

void compress_trellis(const py::object &embeddings, const py::object &centroids,
                      const py::object &codes, const py::object &weights,
                      const py::object &residuals, const py::object &scales,
                      std::uintptr_t stream) {
  const cuda::Arguments arguments(embeddings, "embeddings", stream);
  const auto [points, c, ids] = Assigned::check(arguments, embeddings, centroids, codes);
  const View out = arguments.out(residuals, "residuals", DType::u8, {points.shape[0], kAny});
  const View out_scales = arguments.out(scales, "scales", DType::u8, {points.shape[0]});
  const int nbits = nbits_of_rows(out.shape[1], points.shape[1]);
  const View w = expect(weights, "weights", {DType::f32}, {kAny});
  check_weights(w, nbits);
  const CodecTables tables(c.as<const float>(), w.as<const float>(), w.dim(0), nbits,
                           points.dim(1));
  cuda::compress_trellis(points.data, points.dtype, points.dim(0), ids.as<const std::int32_t>(),
                         tables.decoder(), c.dim(0), scale_edges().data(), out.as<std::uint8_t>(),
                         out_scales.as<std::uint8_t>(), arguments.stream());
}

} // namespace

void bind_compress(py::module_ &m) {
  using py::arg;
  m.def("compress", &compress, arg("embeddings"), arg("centroids"), arg("codes"), arg("cutoffs"),
        arg("residuals"), arg("stream"));
  m.def("compress_trellis", &compress_trellis, arg("embeddings"), arg("centroids"), arg("codes"),
        arg("weights"), arg("residuals"), arg("scales"), arg("stream"));
}
