#include <algorithm>
#include <limits>

#include "aligned.h"
#include "array_view.h"
#include "assigner.h"
#include "checks.h"
#include "cpu/dispatch.h"
#include "search/byte_scores.h"
#include "search/codec_tables.h"
#include "search/query_panels.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

// Tokens that a thread takes at once.
constexpr std::size_t kGrain = 1024;

void pack(const py::object &buckets, int nbits, const py::object &packed) {
  check_nbits(nbits);
  const View in = expect(buckets, "buckets", {DType::u8}, {kAny, kAny});
  check_dim(in, "buckets");
  const View out = expect_out(packed, "packed", DType::u8, {in.shape[0], in.shape[1] * nbits / 8});
  const std::size_t n = in.dim(0), dim = in.dim(1), width = out.dim(1);
  const auto *values = in.as<const std::uint8_t>();
  const std::uint8_t *largest = std::max_element(values, values + n * dim);
  if (n > 0 && *largest >= 1u << nbits)
    throw py::value_error("`buckets` must be below " + std::to_string(1 << nbits) + " for nbits=" +
                          std::to_string(nbits) + ", got " + std::to_string(*largest));
  const py::gil_scoped_release release;
  parallel_for(n, kGrain, [&](std::size_t begin, std::size_t end) {
    kernels().pack(values + begin * dim, end - begin, dim, nbits,
                   out.as<std::uint8_t>() + begin * width);
  });
}

void unpack(const py::object &packed, int nbits, const py::object &buckets) {
  check_nbits(nbits);
  const View out = expect_out(buckets, "buckets", DType::u8, {kAny, kAny});
  check_dim(out, "buckets");
  const View in = expect(packed, "packed", {DType::u8}, {out.shape[0], out.shape[1] * nbits / 8});
  const std::size_t dim = out.dim(1), width = in.dim(1);
  const py::gil_scoped_release release;
  parallel_for(in.dim(0), kGrain, [&](std::size_t begin, std::size_t end) {
    kernels().unpack(in.as<const std::uint8_t>() + begin * width, end - begin, dim, nbits,
                     out.as<std::uint8_t>() + begin * dim);
  });
}

void compress(const py::object &embeddings, const py::object &centroids, const py::object &cutoffs,
              const py::object &codes, const py::object &residuals) {
  const View points =
      expect(embeddings, "embeddings", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(points, "embeddings");
  const View c = expect(centroids, "centroids", {DType::f32}, {kAny, points.shape[1]});
  const View cuts = expect(cutoffs, "cutoffs", {DType::f32}, {kAny});
  const int nbits = nbits_of_cutoffs(cuts);
  if (c.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
  const View out_codes = expect_out(codes, "codes", DType::i32, {points.shape[0]});
  const View out =
      expect_out(residuals, "residuals", DType::u8, {points.shape[0], points.shape[1] * nbits / 8});
  const std::size_t dim = points.dim(1), bytes = size_of(points.dtype);

  const py::gil_scoped_release release;
  const Assigner assigner(c.as<const float>(), c.dim(0), dim, points.dim(0));
  parallel_for(points.dim(0), kAssignBlock, [&](std::size_t begin, std::size_t end) {
    float best[kAssignBlock];
    const char *at = points.as<const char>() + begin * dim * bytes;
    std::int32_t *codes_at = out_codes.as<std::int32_t>() + begin;
    assigner.assign(at, points.dtype, end - begin, codes_at, best);
    kernels().compress(at, points.dtype, end - begin, dim, c.as<const float>(), codes_at,
                       cuts.as<const float>(), nbits, out.as<std::uint8_t>() + begin * out.dim(1));
  });
}

void compress_trellis(const py::object &embeddings, const py::object &centroids,
                      const py::object &weights, const py::object &codes,
                      const py::object &residuals, const py::object &scales) {
  const View points =
      expect(embeddings, "embeddings", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(points, "embeddings");
  const View c = expect(centroids, "centroids", {DType::f32}, {kAny, points.shape[1]});
  if (c.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
  const View out_codes = expect_out(codes, "codes", DType::i32, {points.shape[0]});
  const View out = expect_out(residuals, "residuals", DType::u8, {points.shape[0], kAny});
  const View out_scales = expect_out(scales, "scales", DType::u8, {points.shape[0]});
  const int nbits = nbits_of_rows(out.shape[1], points.shape[1]);
  const View w = expect(weights, "weights", {DType::f32}, {kAny});
  check_weights(w, nbits);
  const std::size_t dim = points.dim(1), bytes = size_of(points.dtype);

  const py::gil_scoped_release release;
  const CodecTables tables(c.as<const float>(), w.as<const float>(), w.dim(0), nbits, dim);
  const Decoder decoder = tables.decoder();
  const Assigner assigner(c.as<const float>(), c.dim(0), dim, points.dim(0));
  parallel_for(points.dim(0), kAssignBlock, [&](std::size_t begin, std::size_t end) {
    thread_local AlignedVector<float> scratch;
    scratch.resize(trellis_scratch(dim));
    float best[kAssignBlock], scale[kTrellisBlock];
    const char *at = points.as<const char>() + begin * dim * bytes;
    std::int32_t *codes_at = out_codes.as<std::int32_t>() + begin;
    assigner.assign(at, points.dtype, end - begin, codes_at, best);
    for (std::size_t i = begin; i < end; i += kTrellisBlock) {
      const std::size_t n = std::min(kTrellisBlock, end - i);
      kernels().compress_trellis(at + (i - begin) * dim * bytes, points.dtype, n,
                                 codes_at + (i - begin), decoder, scratch.data(),
                                 out.as<std::uint8_t>() + i * out.dim(1), scale);
      for (std::size_t j = 0; j < n; ++j)
        out_scales.as<std::uint8_t>()[i + j] = encode_scale(scale[j]);
    }
  });
}

// The arguments that every reader of residuals has, checked.
struct Packed {
  Residuals tokens;
  std::size_t n, n_centroids;
  CodecTables tables;

  static Packed check(const py::object &codes, const py::object &residuals,
                      const py::object &centroids, const py::object &weights,
                      const py::object &scales) {
    const View c = expect(centroids, "centroids", {DType::f32}, {kAny, kAny});
    check_dim(c, "centroids");
    if (c.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
    const View ids = expect(codes, "codes", {DType::i32, DType::u16}, {kAny});
    const View r = expect(residuals, "residuals", {DType::u8}, {ids.shape[0], kAny});
    const int nbits = nbits_of_rows(r.shape[1], c.shape[1]);
    const View w = expect(weights, "weights", {DType::f32}, {kAny});
    check_weights(w, nbits);
    const Residuals tokens{check_codes(ids, c.shape[0]), r.as<const std::uint8_t>(),
                           check_bytes(scales, "scales", ids.shape[0]), nullptr};
    return {tokens, ids.dim(0), c.dim(0),
            CodecTables(c.as<const float>(), w.as<const float>(), w.dim(0), nbits, c.dim(1))};
  }
};

void decompress(const py::object &codes, const py::object &residuals, const py::object &centroids,
                const py::object &weights, const py::object &scales, const py::object &embeddings) {
  const Packed packed = Packed::check(codes, residuals, centroids, weights, scales);
  const Decoder decoder = packed.tables.decoder();
  const auto n = static_cast<std::int64_t>(packed.n);
  const View out =
      expect_out(embeddings, "embeddings", DType::f32, {n, static_cast<std::int64_t>(decoder.dim)});
  const py::gil_scoped_release release;
  parallel_for(packed.n, kGrain, [&](std::size_t begin, std::size_t end) {
    kernels().decompress(decoder, residuals_from(packed.tokens, decoder, begin), end - begin,
                         out.as<float>() + begin * decoder.dim, nullptr);
  });
}

void inverse_norms(const py::object &codes, const py::object &residuals,
                   const py::object &centroids, const py::object &weights, const py::object &scales,
                   const py::object &norms) {
  const Packed packed = Packed::check(codes, residuals, centroids, weights, scales);
  const Decoder decoder = packed.tables.decoder();
  const View out =
      expect_out(norms, "inverse_norms", DType::u8, {static_cast<std::int64_t>(packed.n)});
  const py::gil_scoped_release release;
  parallel_for(packed.n, kGrain, [&](std::size_t begin, std::size_t end) {
    float inverse[kGrain];
    kernels().decompress(decoder, residuals_from(packed.tokens, decoder, begin), end - begin,
                         nullptr, inverse);
    for (std::size_t i = begin; i < end; ++i)
      out.as<std::uint8_t>()[i] = encode_inverse_norm(inverse[i - begin]);
  });
}

// `inverse_norms` None: float32, the exact scores. Given: the int8 approximation.
void residual_maxsim(const py::object &query, const py::object &codes, const py::object &residuals,
                     const py::object &doclens, const py::object &centroids,
                     const py::object &weights, const py::object &scales,
                     const py::object &inverse_norms, const py::object &scores) {
  Packed packed = Packed::check(codes, residuals, centroids, weights, scales);
  const Decoder decoder = packed.tables.decoder();
  const auto dim = static_cast<std::int64_t>(decoder.dim);
  const auto n_tokens = static_cast<std::int64_t>(packed.n);
  const View q = expect(query, "query", {DType::f32}, {kAny, dim});
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  const std::vector<std::int64_t> offsets = check_doclens(lengths, n_tokens);
  const View out = expect_out(scores, "scores", DType::f32, {lengths.shape[0]});
  packed.tokens.inverse_norms = check_bytes(inverse_norms, "inverse_norms", n_tokens);
  const bool int8 = !inverse_norms.is_none();
  if (int8) check_finite(as_view(centroids, "centroids"), "centroids");

  const py::gil_scoped_release release;
  QueryPanels panels;
  panels.pack(q.as<const float>(), q.dim(0), decoder.dim);
  QueryI8 levels;
  ByteScores table;
  const float *ratio = nullptr;
  if (int8) {
    std::vector<std::int32_t> cells;
    table.compute(ByteCentroids(decoder.centroids, packed.n_centroids, decoder.dim), panels, 0,
                  cells);
    levels.pack(panels, packed.tables);
    ratio = table.ratio(panels, packed.tables.step());
  }
  parallel_for(lengths.dim(0), 16, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const auto first = static_cast<std::size_t>(offsets[i]),
                 n = static_cast<std::size_t>(offsets[i + 1]) - first;
      const Residuals tokens = residuals_from(packed.tokens, decoder, first);
      float &score = out.as<float>()[i];
      alignas(64) float scratch[kLanes];
      if (n == 0)
        score = -std::numeric_limits<float>::infinity();
      else if (int8)
        kernels().residual_maxsim_i8(levels.view(), ratio, table.table(), decoder, &tokens, nullptr,
                                     n, 1, scratch, &score);
      else
        score = kernels().residual_maxsim(panels.f32(), decoder, tokens, n);
    }
  });
}

// For tests: what the exact stage of a search does with one document. Returns the exact score.
float contenders(const py::object &query, const py::object &codes, const py::object &residuals,
                 const py::object &centroids, const py::object &weights, const py::object &scales,
                 const py::object &inverse_norms, const py::object &slack, float relative,
                 const py::object &marks) {
  Packed packed = Packed::check(codes, residuals, centroids, weights, scales);
  const Decoder decoder = packed.tables.decoder();
  const View q =
      expect(query, "query", {DType::f32}, {kAny, static_cast<std::int64_t>(decoder.dim)});
  const View within = expect(slack, "slack", {DType::f32}, {q.shape[0]});
  packed.tokens.inverse_norms =
      check_bytes(inverse_norms, "inverse_norms", static_cast<std::int64_t>(packed.n));
  if (packed.n == 0) throw py::value_error("`codes` must not be empty");
  QueryPanels panels;
  panels.pack(q.as<const float>(), q.dim(0), decoder.dim);
  const View out = expect_out(
      marks, "marks", DType::u8,
      {static_cast<std::int64_t>(packed.n), static_cast<std::int64_t>(panels.f32().n_panels)});
  QueryI8 levels;
  levels.pack(panels, packed.tables);
  ByteScores table;
  std::vector<std::int32_t> cells;
  table.compute(ByteCentroids(decoder.centroids, packed.n_centroids, decoder.dim), panels, 0,
                cells);
  const float *ratio = table.ratio(panels, packed.tables.step());
  AlignedVector<float> squares(panels.lanes()), products(packed.n * panels.lanes()),
      rows(marked_scratch(packed.n, decoder.dim));
  std::vector<std::int32_t> which(packed.n);
  for (std::size_t i = 0; i < panels.count(); ++i) {
    const float steps = within.as<const float>()[i] / table.table().step[i];
    squares[i] = steps * steps;
  }
  kernels().contenders(levels.view(), ratio, table.table(), decoder, packed.tokens, packed.n,
                       squares.data(), relative, products.data(), out.as<std::uint8_t>());
  return kernels().residual_maxsim_marked(panels.f32(), decoder, packed.tokens, packed.n,
                                          out.as<std::uint8_t>(), rows.data(), which.data());
}

} // namespace

void bind_residual(py::module_ &m) {
  using py::arg;
  m.def("pack", &pack, arg("buckets"), arg("nbits"), arg("packed"));
  m.def("unpack", &unpack, arg("packed"), arg("nbits"), arg("buckets"));
  m.def("compress", &compress, arg("embeddings"), arg("centroids"), arg("cutoffs"), arg("codes"),
        arg("residuals"));
  m.def("compress_trellis", &compress_trellis, arg("embeddings"), arg("centroids"), arg("weights"),
        arg("codes"), arg("residuals"), arg("scales"));
  m.def("decompress", &decompress, arg("codes"), arg("residuals"), arg("centroids"), arg("weights"),
        arg("scales").none(true), arg("embeddings"));
  m.def("inverse_norms", &inverse_norms, arg("codes"), arg("residuals"), arg("centroids"),
        arg("weights"), arg("scales").none(true), arg("inverse_norms"));
  m.def("residual_maxsim", &residual_maxsim, arg("query"), arg("codes"), arg("residuals"),
        arg("doclens"), arg("centroids"), arg("weights"), arg("scales").none(true),
        arg("inverse_norms").none(true), arg("scores"));
  m.def("contenders", &contenders, arg("query"), arg("codes"), arg("residuals"), arg("centroids"),
        arg("weights"), arg("scales").none(true), arg("inverse_norms").none(true), arg("slack"),
        arg("relative"), arg("marks"));
}
