#include "checks.h"
#include "cuda/arguments.h"
#include "search/codec_tables.h"

using namespace colbert_fast;

namespace {

void pack(const py::object &buckets, int nbits, const py::object &packed, std::uintptr_t stream) {
  check_nbits(nbits);
  const cuda::Arguments arguments(buckets, "buckets", stream);
  const View in = arguments.in(buckets, "buckets", {DType::u8}, {kAny, kAny});
  check_dim(in, "buckets");
  const View out =
      arguments.out(packed, "packed", DType::u8, {in.shape[0], in.shape[1] * nbits / 8});
  cuda::pack(in.as<const std::uint8_t>(), in.dim(0), in.dim(1), nbits, out.as<std::uint8_t>(),
             arguments.stream());
}

void unpack(const py::object &packed, int nbits, const py::object &buckets,
            std::uintptr_t stream) {
  check_nbits(nbits);
  const cuda::Arguments arguments(packed, "packed", stream);
  const View out = arguments.out(buckets, "buckets", DType::u8, {kAny, kAny});
  check_dim(out, "buckets");
  const View in =
      arguments.in(packed, "packed", {DType::u8}, {out.shape[0], out.shape[1] * nbits / 8});
  cuda::unpack(in.as<const std::uint8_t>(), in.dim(0), out.dim(1), nbits, out.as<std::uint8_t>(),
               arguments.stream());
}

// `weights` lie on the host: the tables made from them are arguments of the kernel.
void decompress(const py::object &codes, const py::object &residuals, const py::object &centroids,
                const py::object &weights, const py::object &scales, const py::object &embeddings,
                std::uintptr_t stream) {
  const cuda::Arguments arguments(codes, "codes", stream);
  const View c = arguments.in(centroids, "centroids", {DType::f32}, {kAny, kAny});
  check_dim(c, "centroids");
  if (c.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
  const View ids = arguments.in(codes, "codes", {DType::i32, DType::u16}, {kAny});
  const View r = arguments.in(residuals, "residuals", {DType::u8}, {ids.shape[0], kAny});
  const int nbits = nbits_of_rows(r.shape[1], c.shape[1]);
  const View w = expect(weights, "weights", {DType::f32}, {kAny});
  check_weights(w, nbits);
  const View out = arguments.out(embeddings, "embeddings", DType::f32, {ids.shape[0], c.shape[1]});
  const Residuals tokens{codes_of(ids), r.as<const std::uint8_t>(),
                         arguments.bytes(scales, "scales", ids.shape[0]), nullptr};
  const CodecTables tables(c.as<const float>(), w.as<const float>(), w.dim(0), nbits, c.dim(1));
  cuda::decompress(tables.decoder(), c.dim(0), tokens, ids.dim(0), out.as<float>(),
                   arguments.stream());
}

} // namespace

void bind_residual(py::module_ &m) {
  using py::arg;
  m.def("pack", &pack, arg("buckets"), arg("nbits"), arg("packed"), arg("stream"));
  m.def("unpack", &unpack, arg("packed"), arg("nbits"), arg("buckets"), arg("stream"));
  m.def("decompress", &decompress, arg("codes"), arg("residuals"), arg("centroids"), arg("weights"),
        arg("scales").none(true), arg("embeddings"), arg("stream"));
}
