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

// Whether `offsets` and `data` of inverted lists agree.
void check_offsets(const std::int64_t *offsets, std::size_t n_lists, std::int64_t n_bytes,
                   const std::string &part) {
  if (offsets[0] != 0 || !std::is_sorted(offsets, offsets + n_lists + 1) ||
      offsets[n_lists] != n_bytes)
    throw py::value_error("`" + part + "offsets` must rise from 0 to the length of `" + part +
                          "data`");
}

void check_starts(const std::int64_t *starts, std::int64_t n, std::int64_t total, const char *name,
                  const char *what) {
  if (n < 0 || starts[0] != 0 || starts[n] != total || !std::is_sorted(starts, starts + n + 1))
    throw py::value_error("`" + std::string(name) + "` must rise from 0 to the number of " + what);
}

// A Searcher with the Python arrays that it reads.
class BoundSearcher {
public:
  BoundSearcher(const py::object &centroids, const std::optional<py::object> &weights,
                const std::vector<py::dict> &parts) {
    Collection c{};
    const View centers =
        hold(expect(centroids, "centroids", {DType::f32}, {kAny, kAny}), centroids);
    check_dim(centers, "centroids");
    if (centers.shape[0] == 0) throw py::value_error("`centroids` must not be empty");
    check_finite(centers, "centroids");
    c.centroids = centers.as<const float>(), c.n_centroids = centers.dim(0), c.dim = centers.dim(1);
    std::size_t base = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      c.parts.push_back(part(parts[i], "parts[" + std::to_string(i) + "].", centers, weights));
      c.parts.back().base = base;
      base += c.parts.back().n_docs();
      if (base > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
        throw py::value_error("`parts` must be of at most 2147483647 documents together");
    }
    c.codec = codec_.get();
    const py::gil_scoped_release release;
    searcher_ = std::make_unique<Searcher>(std::move(c));
  }

  // queries: (total, dim) rows, starts (n + 1); candidates: documents (total,) and starts (n + 1);
  // ids (n, k) filled with -1, scores (n, k) with -inf.
  void search(const py::object &queries, const py::object &starts, std::int64_t nprobe,
              std::int64_t ndocs, bool plaid, float threshold, bool exhaustive,
              const std::optional<py::object> &subset,
              const std::optional<std::pair<py::object, py::object>> &candidates,
              const py::object &ids, const py::object &scores) const {
    const View q = expect(queries, "queries", {DType::f32},
                          {kAny, static_cast<std::int64_t>(searcher_->dim())});
    const View begin = expect(starts, "starts", {DType::i64}, {kAny});
    const auto *row = begin.as<const std::int64_t>();
    const std::int64_t n = begin.shape[0] - 1;
    check_starts(row, n, q.shape[0], "starts", "query rows");
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
    const auto n_docs = static_cast<std::int64_t>(searcher_->n_docs());
    Selection selection{nullptr, searcher_->n_docs(), nullptr, 0};
    if (subset) {
      const auto *allowed =
          expect(*subset, "subset", {DType::boolean}, {n_docs}).as<const std::uint8_t>();
      selection.allowed = allowed;
      selection.n_allowed -= static_cast<std::size_t>(std::count(allowed, allowed + n_docs, 0));
    }
    const std::int64_t *given = nullptr, *given_starts = nullptr;
    if (candidates) {
      const View list = expect(candidates->first, "candidates", {DType::i64}, {kAny});
      static constexpr std::int64_t kNone = 0; // an empty list may have no address
      given = list.shape[0] == 0 ? &kNone : list.as<const std::int64_t>();
      given_starts = expect(candidates->second, "candidate starts", {DType::i64}, {n + 1})
                         .as<const std::int64_t>();
      check_starts(given_starts, n, list.shape[0], "candidate starts", "candidates");
      for (std::int64_t i = 0; i < list.shape[0]; ++i)
        if (given[i] < 0 || given[i] >= n_docs)
          throw py::value_error("`candidates` must lie in [0, " + std::to_string(n_docs) +
                                "), got " + std::to_string(given[i]));
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
        Selection own = selection;
        if (given != nullptr) {
          own.candidates = given + given_starts[i];
          own.n_candidates = static_cast<std::size_t>(given_starts[i + 1] - given_starts[i]);
        }
        searcher_->search(q.as<const float>() + from * dim, count, params, own, hits);
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

  // The part that `arrays` holds; messages put `name` before an array's.
  Part part(const py::dict &arrays, const std::string &name, const View &centers,
            const std::optional<py::object> &weights) {
    const auto array = [&](const char *key, std::initializer_list<DType> dtypes,
                           std::initializer_list<std::int64_t> shape) {
      const py::object value = arrays[key];
      return hold(expect(value, (name + key).c_str(), dtypes, shape), value);
    };
    Part p{};
    std::int64_t n = 0; // tokens
    const bool has_residuals = !arrays["residuals"].is_none();
    if (has_residuals == !arrays["embeddings"].is_none() || has_residuals != weights.has_value())
      throw py::value_error("pass `weights` and `" + name + "residuals`, or `" + name +
                            "embeddings`");
    if (has_residuals) {
      const View packed = array("residuals", {DType::u8}, {kAny, kAny});
      n = packed.shape[0];
      use_codec(*weights, nbits_of_rows(packed.shape[1], centers.shape[1], name + "residuals"),
                name, centers);
      p.residuals = packed.as<const std::uint8_t>();
      p.scales = bytes(arrays["scales"], name + "scales", n);
      p.inverse_norms = bytes(arrays["inverse_norms"], name + "inverse_norms", n);
    } else {
      const View vectors = array("embeddings", {DType::f16}, {kAny, centers.shape[1]});
      n = vectors.shape[0];
      p.embeddings = vectors.as<const std::uint16_t>();
    }
    p.offsets = check_doclens(array("doclens", {DType::i32}, {kAny}), n, name + "doclens");
    const View counts = array("counts", {DType::i32}, {kAny});
    if (counts.shape[0] > centers.shape[0])
      throw py::value_error("`" + name + "counts` must be of at most the " +
                            std::to_string(centers.shape[0]) + " centroids, got " +
                            std::to_string(counts.shape[0]));
    const View offsets = array("offsets", {DType::i64}, {counts.shape[0] + 1});
    const View data = array("data", {DType::u8}, {kAny});
    check_offsets(offsets.as<const std::int64_t>(), counts.dim(0), data.shape[0], name);
    p.lists = {counts.as<const std::int32_t>(), offsets.as<const std::int64_t>(),
               data.as<const std::uint8_t>(), counts.dim(0)};
    if (n > 0 && counts.dim(0) == 0)
      throw py::value_error("`" + name + "counts` must not be empty where there are tokens");
    const int n_bits = code_bits(counts.dim(0));
    const View codes =
        array("codes", {DType::u8},
              {static_cast<std::int64_t>(packed_bytes(static_cast<std::size_t>(n), n_bits) +
                                         kCodePadding)});
    p.codes = {codes.as<const std::uint8_t>(), n_bits,
               static_cast<std::int32_t>(counts.shape[0] - 1)};
    return p;
  }

  // All parts are decoded by one codec, made when the first of them tells its bits.
  void use_codec(const py::object &weights, int nbits, const std::string &part,
                 const View &centers) {
    if (codec_ == nullptr) {
      const View w = expect(weights, "weights", {DType::f32}, {kAny});
      check_weights(w, nbits);
      codec_ = std::make_unique<CodecTables>(centers.as<const float>(), w.as<const float>(),
                                             w.dim(0), nbits, centers.dim(1));
    } else if (codec_->decoder().nbits != nbits) {
      throw py::value_error(
          "`" + part + "residuals` must have " + std::to_string(codec_->decoder().nbits) +
          " bits per dimension, as the parts before, got " + std::to_string(nbits));
    }
  }

  const std::uint8_t *bytes(const py::object &column, const std::string &name, std::int64_t n) {
    owners_.push_back(column);
    return check_bytes(column, name, n);
  }

  std::vector<py::object> owners_;
  std::unique_ptr<CodecTables> codec_;
  std::unique_ptr<Searcher> searcher_;
};

} // namespace

void bind_search(py::module_ &m) {
  using py::arg;
  py::class_<BoundSearcher>(m, "Searcher")
      .def(py::init<const py::object &, const std::optional<py::object> &,
                    const std::vector<py::dict> &>(),
           py::kw_only(), arg("centroids"), arg("weights"), arg("parts"))
      .def("search", &BoundSearcher::search, arg("queries"), arg("starts"), py::kw_only(),
           arg("nprobe"), arg("ndocs"), arg("plaid"), arg("threshold"), arg("exhaustive"),
           arg("subset"), arg("candidates"), arg("ids"), arg("scores"));
}
