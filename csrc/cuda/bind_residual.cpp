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

void unpack(const py::object &packed, int nbits, const py::object &buckets, std::uintptr_t stream) {
  check_nbits(nbits);
  const cuda::Arguments arguments(packed, "packed", stream);
  const View out = arguments.out(buckets, "buckets", DType::u8, {kAny, kAny});
  check_dim(out, "buckets");
  const View in =
      arguments.in(packed, "packed", {DType::u8}, {out.shape[0], out.shape[1] * nbits / 8});
  cuda::unpack(in.as<const std::uint8_t>(), in.dim(0), out.dim(1), nbits, out.as<std::uint8_t>(),
               arguments.stream());
}

// Compressed tokens and their codec, checked. `weights` lie on the host: the tables made from them
// are arguments of the kernels.
struct Packed {
  Residuals tokens;
  std::size_t n, n_centroids;
  CodecTables tables;

  static Packed check(const cuda::Arguments &arguments, const py::object &codes,
                      const py::object &residuals, const float *centroids, std::size_t n_centroids,
                      std::int64_t dim, const py::object &weights, const py::object &scales) {
    if (n_centroids == 0) throw py::value_error("`centroids` must not be empty");
    const View ids = arguments.in(codes, "codes", {DType::i32, DType::u16}, {kAny});
    const View r = arguments.in(residuals, "residuals", {DType::u8}, {ids.shape[0], kAny});
    const int nbits = nbits_of_rows(r.shape[1], dim);
    const View w = expect(weights, "weights", {DType::f32}, {kAny});
    check_weights(w, nbits);
    const Residuals tokens{codes_of(ids), r.as<const std::uint8_t>(),
                           arguments.bytes(scales, "scales", ids.shape[0]), nullptr};
    return {tokens, ids.dim(0), n_centroids,
            CodecTables(centroids, w.as<const float>(), w.dim(0), nbits,
                        static_cast<std::size_t>(dim))};
  }
};

void decompress(const py::object &codes, const py::object &residuals, const py::object &centroids,
                const py::object &weights, const py::object &scales, const py::object &embeddings,
                std::uintptr_t stream) {
  const cuda::Arguments arguments(codes, "codes", stream);
  const View c = arguments.in(centroids, "centroids", {DType::f32}, {kAny, kAny});
  check_dim(c, "centroids");
  const Packed packed = Packed::check(arguments, codes, residuals, c.as<const float>(), c.dim(0),
                                      c.shape[1], weights, scales);
  const View out = arguments.out(embeddings, "embeddings", DType::f32,
                                 {static_cast<std::int64_t>(packed.n), c.shape[1]});
  cuda::decompress(packed.tables.decoder(), packed.n_centroids, packed.tokens, packed.n,
                   out.as<float>(), arguments.stream());
}

void inverse_norms(const py::object &codes, const py::object &residuals,
                   const py::object &centroids, const py::object &weights, const py::object &scales,
                   const py::object &norms, std::uintptr_t stream) {
  const cuda::Arguments arguments(codes, "codes", stream);
  const View c = arguments.in(centroids, "centroids", {DType::f32}, {kAny, kAny});
  check_dim(c, "centroids");
  const Packed packed = Packed::check(arguments, codes, residuals, c.as<const float>(), c.dim(0),
                                      c.shape[1], weights, scales);
  const View out =
      arguments.out(norms, "inverse_norms", DType::u8, {static_cast<std::int64_t>(packed.n)});
  cuda::inverse_norms(packed.tables.decoder(), packed.n_centroids, packed.tokens, packed.n,
                      inverse_norm_edges().data(), out.as<std::uint8_t>(), arguments.stream());
}

// rows (K, dim), scale (K,), longest (1,), which the caller has set to 0
void quantise_centroids(const py::object &centroids, const py::object &rows,
                        const py::object &scale, const py::object &longest, std::uintptr_t stream) {
  const cuda::Arguments arguments(centroids, "centroids", stream);
  const View c = arguments.in(centroids, "centroids", {DType::f32}, {kAny, kAny});
  check_dim(c, "centroids");
  const View out = arguments.out(rows, "rows", DType::u8, {c.shape[0], c.shape[1]});
  const View unit = arguments.out(scale, "scale", DType::f32, {c.shape[0]});
  const View length = arguments.out(longest, "longest", DType::f32, {1});
  cuda::quantise_centroids(c.as<const float>(), c.dim(0), c.dim(1), out.as<std::uint8_t>(),
                           unit.as<float>(), length.as<float>(), arguments.stream());
}

// The parts of a packed query: words int32 (query_words,), start int32, norms and units float32 (nq
// up to a multiple of 32,).
cuda::QueryBytes check_query(const cuda::Arguments &arguments, const py::tuple &parts,
                             std::int64_t nq, std::int64_t dim) {
  if (parts.size() != 4) throw py::value_error("`packed` must have four parts");
  const auto words = static_cast<std::int64_t>(
      cuda::query_words(static_cast<std::size_t>(nq), static_cast<std::size_t>(dim)));
  const std::int64_t lanes = (nq + 31) / 32 * 32;
  return {arguments.out(parts[0], "packed words", DType::i32, {words}).as<std::uint32_t>(),
          arguments.out(parts[1], "packed start", DType::i32, {lanes}).as<std::int32_t>(),
          arguments.out(parts[2], "packed norms", DType::f32, {lanes}).as<float>(),
          arguments.out(parts[3], "packed units", DType::f32, {lanes}).as<float>()};
}

// table (K, nq up to a multiple of 32), step as wide; `packed` is scratch
void byte_scores(const py::object &query, const py::object &rows, const py::object &scale,
                 const py::object &longest, const py::tuple &packed, const py::object &table,
                 const py::object &step, std::uintptr_t stream) {
  const cuda::Arguments arguments(query, "query", stream);
  const View q = arguments.in(query, "query", {DType::f32}, {kAny, kAny});
  check_dim(q, "query");
  const View c = arguments.in(rows, "rows", {DType::u8}, {kAny, q.shape[1]});
  const View unit = arguments.in(scale, "scale", {DType::f32}, {c.shape[0]});
  const View length = arguments.in(longest, "longest", {DType::f32}, {1});
  const cuda::QueryBytes bytes = check_query(arguments, packed, q.shape[0], q.shape[1]);
  const std::int64_t lanes = (q.shape[0] + 31) / 32 * 32;
  const View out = arguments.out(table, "table", DType::u8, {c.shape[0], lanes});
  const View steps = arguments.out(step, "step", DType::f32, {lanes});
  cuda::pack_query(q.as<const float>(), q.dim(0), q.dim(1), 8, static_cast<float>(kScreenZero),
                   bytes, arguments.stream());
  cuda::byte_scores(bytes, q.dim(0), q.dim(1), c.as<const std::uint8_t>(), unit.as<const float>(),
                    length.as<const float>(), c.dim(0), out.as<std::uint8_t>(), steps.as<float>(),
                    arguments.stream());
}

// The int8 approximation, from the table of byte_scores; `packed` is scratch.
void residual_maxsim(const py::object &query, const py::object &codes, const py::object &residuals,
                     const py::object &first, const py::object &doclens, const py::object &weights,
                     const py::object &scales, const py::object &inverse_norms,
                     const py::object &table, const py::object &step, const py::tuple &packed,
                     const py::object &scores, std::uintptr_t stream) {
  const cuda::Arguments arguments(query, "query", stream);
  const View q = arguments.in(query, "query", {DType::f32}, {kAny, kAny});
  check_dim(q, "query");
  const std::int64_t lanes = (q.shape[0] + 31) / 32 * 32;
  const View bytes = arguments.in(table, "table", {DType::u8}, {kAny, lanes});
  const View steps = arguments.in(step, "step", {DType::f32}, {lanes});
  Packed tokens = Packed::check(arguments, codes, residuals, nullptr, bytes.dim(0), q.shape[1],
                                weights, scales);
  const auto n = static_cast<std::int64_t>(tokens.n);
  tokens.tokens.inverse_norms = arguments.bytes(inverse_norms, "inverse_norms", n);
  const Decoder decoder = tokens.tables.decoder();
  if (decoder.nbits == 8)
    throw py::value_error("`residuals` of 8 bits have no int8 scores on a GPU: use precision="
                          "'float32'");
  const cuda::Documents where = arguments.documents(first, doclens, n);
  const cuda::QueryBytes levels = check_query(arguments, packed, q.shape[0], q.shape[1]);
  const View out =
      arguments.out(scores, "scores", DType::f32, {static_cast<std::int64_t>(where.count)});
  const float level_step = tokens.tables.step();
  cuda::pack_query(q.as<const float>(), q.dim(0), q.dim(1), decoder.nbits,
                   level_step > 0.0f ? -tokens.tables.low() / level_step : 0.0f, levels,
                   arguments.stream());
  cuda::residual_maxsim_i8(levels, 1, q.dim(0), bytes.as<const std::uint8_t>(),
                           steps.as<const float>(), decoder, level_step, tokens.n_centroids,
                           cuda::stored(tokens.tokens), where, {nullptr, nullptr, where.count},
                           out.as<float>(), arguments.stream());
}

} // namespace

void bind_residual(py::module_ &m) {
  using py::arg;
  m.def("pack", &pack, arg("buckets"), arg("nbits"), arg("packed"), arg("stream"));
  m.def("unpack", &unpack, arg("packed"), arg("nbits"), arg("buckets"), arg("stream"));
  m.def("decompress", &decompress, arg("codes"), arg("residuals"), arg("centroids"), arg("weights"),
        arg("scales").none(true), arg("embeddings"), arg("stream"));
  m.def("inverse_norms", &inverse_norms, arg("codes"), arg("residuals"), arg("centroids"),
        arg("weights"), arg("scales").none(true), arg("inverse_norms"), arg("stream"));
  m.def("quantise_centroids", &quantise_centroids, arg("centroids"), arg("rows"), arg("scale"),
        arg("longest"), arg("stream"));
  m.def("query_words", &cuda::query_words, arg("nq"), arg("dim"));
  m.def("byte_scores", &byte_scores, arg("query"), arg("rows"), arg("scale"), arg("longest"),
        arg("packed"), arg("table"), arg("step"), arg("stream"));
  m.def("residual_maxsim", &residual_maxsim, arg("query"), arg("codes"), arg("residuals"),
        arg("first"), arg("doclens"), arg("weights"), arg("scales").none(true),
        arg("inverse_norms").none(true), arg("table"), arg("step"), arg("packed"), arg("scores"),
        arg("stream"));
}
