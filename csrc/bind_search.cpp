#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include <pybind11/stl.h>

#include "array_view.h"
#include "checks.h"
#include "search/searcher.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

// So that no sum of products overflows: scores stay finite and ordered.
constexpr float kLargestValue = 1e15f;

// A Searcher with the Python arrays that it reads.
class BoundSearcher {
public:
  BoundSearcher(const py::object &centroids, const std::optional<py::object> &weights,
                const py::object &codes, const std::optional<py::object> &residuals,
                const py::object &scales, const std::optional<py::object> &embeddings,
                const py::object &inverse_norms, const py::object &doclens,
                const py::object &counts, const py::object &offsets, const py::object &data) {
    Collection c{};
    const View centers =
        hold(expect(centroids, "centroids", {DType::f32}, {kAny, kAny}), centroids);
    check_dim(centers, "centroids");
    if (centers.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
    check_finite(centers, "centroids");
    c.centroids = centers.as<const float>(), c.n_centroids = centers.dim(0), c.dim = centers.dim(1);
    const View ids = hold(expect(codes, "codes", {DType::i32, DType::u16}, {kAny}), codes);
    c.tokens.codes = codes_of(ids);
    c.offsets = check_doclens(expect(doclens, "doclens", {DType::i32}, {kAny}), ids.shape[0]);
    if (residuals.has_value() == embeddings.has_value() ||
        residuals.has_value() != weights.has_value())
      throw py::value_error("pass `weights` and `residuals`, or `embeddings`");
    if (embeddings) {
      c.embeddings =
          hold(expect(*embeddings, "embeddings", {DType::f16}, {ids.shape[0], centers.shape[1]}),
               *embeddings)
              .as<const std::uint16_t>();
    } else {
      const View packed =
          hold(expect(*residuals, "residuals", {DType::u8}, {ids.shape[0], kAny}), *residuals);
      const int nbits = nbits_of_rows(packed.shape[1], centers.shape[1]);
      const View w = expect(*weights, "weights", {DType::f32}, {kAny});
      check_weights(w, nbits);
      codec_ =
          std::make_unique<CodecTables>(c.centroids, w.as<const float>(), w.dim(0), nbits, c.dim);
      c.codec = codec_.get();
      c.tokens.packed = packed.as<const std::uint8_t>();
      c.tokens.scales = check_bytes(scales, "scales", ids.shape[0]);
      c.tokens.inverse_norms = check_bytes(inverse_norms, "inverse_norms", ids.shape[0]);
      owners_.push_back(scales);
      owners_.push_back(inverse_norms);
    }
    const View n = hold(expect(counts, "counts", {DType::i32}, {centers.shape[0]}), counts);
    const View at = hold(expect(offsets, "offsets", {DType::i64}, {centers.shape[0] + 1}), offsets);
    const View bytes = hold(expect(data, "data", {DType::u8}, {kAny}), data);
    const auto *ends = at.as<const std::int64_t>();
    if (ends[0] != 0 || !std::is_sorted(ends, ends + at.dim(0)) ||
        ends[at.dim(0) - 1] != bytes.shape[0])
      throw py::value_error("`offsets` must rise from 0 to the length of `data`");
    c.lists = {n.as<const std::int32_t>(), ends, bytes.as<const std::uint8_t>(), centers.dim(0)};
    searcher_ = std::make_unique<Searcher>(std::move(c));
  }

  // queries: (total, dim) rows, starts (n + 1); ids (n, k) filled with -1, scores (n, k) with -inf.
  void search(const py::object &queries, const py::object &starts, std::int64_t nprobe,
              std::int64_t ndocs, bool plaid, float threshold, bool exhaustive,
              const std::optional<py::object> &subset, const py::object &ids,
              const py::object &scores) const {
    const View q = expect(queries, "queries", {DType::f32},
                          {kAny, static_cast<std::int64_t>(searcher_->dim())});
    const View begin = expect(starts, "starts", {DType::i64}, {kAny});
    const auto *row = begin.as<const std::int64_t>();
    const std::int64_t n = begin.shape[0] - 1;
    if (n < 0 || row[0] != 0 || row[n] != q.shape[0] || !std::is_sorted(row, row + n + 1))
      throw py::value_error("`starts` must rise from 0 to the number of query rows");
    for (std::int64_t i = 0; i < q.shape[0] * q.shape[1]; ++i)
      if (!(std::fabs(q.as<const float>()[i]) <= kLargestValue))
        throw py::value_error("`queries` must be finite and at most 1e15, got " +
                              std::to_string(q.as<const float>()[i]) + " in row " +
                              std::to_string(i / q.shape[1]));
    for (std::int64_t i = 0; i < n; ++i)
      if (row[i] == row[i + 1])
        throw py::value_error("`queries`: query " + std::to_string(i) + " has no tokens");
    const View out_ids = expect_out(ids, "ids", DType::i64, {n, kAny});
    const View out_scores = expect_out(scores, "scores", DType::f32, {n, out_ids.shape[1]});
    const std::size_t k = out_ids.dim(1);
    if (k < 1 || nprobe < 1 || ndocs < 1)
      throw py::value_error("`k`, `nprobe` and `ndocs` must be at least 1");
    const std::uint8_t *allowed = nullptr;
    std::size_t n_allowed = searcher_->n_docs();
    if (subset) {
      allowed = expect(*subset, "subset", {DType::boolean}, {static_cast<std::int64_t>(n_allowed)})
                    .as<const std::uint8_t>();
      n_allowed = n_allowed - static_cast<std::size_t>(std::count(allowed, allowed + n_allowed, 0));
    }
    const SearchParams params{k,
                              static_cast<std::size_t>(nprobe),
                              static_cast<std::size_t>(ndocs),
                              plaid,
                              threshold,
                              exhaustive};

    const py::gil_scoped_release release;
    const std::size_t dim = searcher_->dim();
    parallel_for(static_cast<std::size_t>(n), 1, [&](std::size_t first, std::size_t last) {
      std::vector<Hit> hits;
      for (std::size_t i = first; i < last; ++i) {
        const auto from = static_cast<std::size_t>(row[i]),
                   count = static_cast<std::size_t>(row[i + 1]) - from;
        searcher_->search(q.as<const float>() + from * dim, count, params, allowed, n_allowed,
                          hits);
        std::int64_t *id = out_ids.as<std::int64_t>() + i * k;
        float *score = out_scores.as<float>() + i * k;
        std::fill_n(id, k, -1);
        std::fill_n(score, k, -std::numeric_limits<float>::infinity());
        for (std::size_t j = 0; j < hits.size(); ++j)
          id[j] = hits[j].document, score[j] = hits[j].score;
      }
    });
  }

private:
  View hold(View view, const py::object &owner) {
    owners_.push_back(owner);
    return view;
  }

  std::vector<py::object> owners_;
  std::unique_ptr<CodecTables> codec_;
  std::unique_ptr<Searcher> searcher_;
};

} // namespace

void bind_search(py::module_ &m) {
  using py::arg;
  py::class_<BoundSearcher>(m, "Searcher")
      .def(py::init<const py::object &, const std::optional<py::object> &, const py::object &,
                    const std::optional<py::object> &, const py::object &,
                    const std::optional<py::object> &, const py::object &, const py::object &,
                    const py::object &, const py::object &, const py::object &>(),
           py::kw_only(), arg("centroids"), arg("weights"), arg("codes"), arg("residuals"),
           arg("scales").none(true), arg("embeddings"), arg("inverse_norms").none(true),
           arg("doclens"), arg("counts"), arg("offsets"), arg("data"))
      .def("search", &BoundSearcher::search, arg("queries"), arg("starts"), py::kw_only(),
           arg("nprobe"), arg("ndocs"), arg("plaid"), arg("threshold"), arg("exhaustive"),
           arg("subset"), arg("ids"), arg("scores"));
}
