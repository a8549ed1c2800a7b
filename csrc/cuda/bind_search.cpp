// Whole searches: an index whose arrays lie on a device (its vectors perhaps on the host), and
// batches of queries over it.
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "cuda/arguments.h"
#include "cuda/runtime.h"
#include "cuda/search.h"
#include "packed_codes.h"

using namespace colbert_fast;

namespace {

cuda::SearchShape::Kind kind_of(const std::string &name, const cuda::SearchIndex &index) {
  using Shape = cuda::SearchShape;
  if (name == "filter") return Shape::filter;
  if (name == "exhaustive") return Shape::exhaustive;
  if (name != "scan")
    throw py::value_error("`kind` must be 'filter', 'scan' or 'exhaustive', got '" + name + "'");
  if (!index.has_int8())
    throw py::value_error("`kind` must not be 'scan' for 8 bits or embeddings: they have no int8 "
                          "scores on a GPU");
  return Shape::scan;
}

void check_at_most(std::int64_t value, std::int64_t most, const char *name) {
  if (value < 1 || value > most)
    throw py::value_error(std::string("`") + name + "` must be from 1 to " + std::to_string(most) +
                          " on a CUDA device, got " + std::to_string(value));
}

// An index with the tensors that it reads. `longest` is what quantise_centroids has made.
class BoundSearcher {
public:
  BoundSearcher(const py::dict &arrays, const py::object &weights) : arrays_(arrays) {
    const py::object first = arrays["centroids"];
    const cuda::Arguments arguments(first, "centroids", 0);
    const auto array = [&](const char *name, DType dtype,
                           std::initializer_list<std::int64_t> shape) {
      return arguments.in(py::object(arrays[name]), name, {dtype}, shape);
    };
    const View centroids = array("centroids", DType::f32, {kAny, kAny});
    check_dim(centroids, "centroids");
    const std::int64_t k = centroids.shape[0], dim = centroids.shape[1];
    if (k == 0) throw py::value_error("`centroids` must not be empty");
    index_.n_centroids = centroids.dim(0), index_.dim = centroids.dim(1);
    index_.rows = array("rows", DType::u8, {k, dim}).as<const std::uint8_t>();
    index_.scale = array("scale", DType::f32, {k}).as<const float>();
    index_.longest = array("longest", DType::f32, {1}).as<const float>();
    const std::int64_t n = check_vectors(arguments, centroids.as<const float>(), dim, weights);
    index_.tokens.code_bits = code_bits(index_.n_centroids);
    const auto coded = packed_bytes(static_cast<std::size_t>(n), index_.tokens.code_bits);
    const View codes = array("codes", DType::u8, {static_cast<std::int64_t>(coded + kCodePadding)});
    index_.tokens.codes = codes.data;
    index_.documents = arguments.documents(arrays["first"], arrays["doclens"], n);
    if (index_.documents.count == 0) throw py::value_error("`doclens` must not be empty");
    check_lists(array("counts", DType::i32, {k}), array("offsets", DType::i64, {k + 1}),
                array("data", DType::u8, {kAny}));
  }

  std::size_t workspace(std::int64_t n_queries, std::int64_t nq, std::int64_t k,
                        std::int64_t nprobe, std::int64_t ndocs, const std::string &kind) const {
    return cuda::search_workspace(index_, shape(n_queries, nq, k, nprobe, ndocs, kind));
  }

  // queries (n, nq, dim), of zeros where they end before nq; given (total,) with starts (n + 1) or
  // None; ids and scores (n, k); damaged (1,), which the caller has set to 0.
  void search(const py::object &queries, std::int64_t nprobe, std::int64_t ndocs,
              const std::string &kind, const py::object &allowed, const py::object &given,
              const py::object &given_starts, const py::object &workspace, const py::object &ids,
              const py::object &scores, const py::object &damaged, std::uintptr_t stream) const {
    const py::object centroids = arrays_["centroids"]; // all lies on their device
    const cuda::Arguments arguments(centroids, "centroids", stream);
    const View q = arguments.in(queries, "queries", {DType::f32},
                                {kAny, kAny, static_cast<std::int64_t>(index_.dim)});
    const View out = arguments.out(ids, "ids", DType::i64, {q.shape[0], kAny});
    const View values = arguments.out(scores, "scores", DType::f32, {q.shape[0], out.shape[1]});
    const View flag = arguments.out(damaged, "damaged", DType::i32, {1});
    if (q.shape[0] == 0) return;
    const cuda::SearchShape as = shape(q.shape[0], q.shape[1], out.shape[1], nprobe, ndocs, kind);
    cuda::SearchSelection selection{};
    if (!allowed.is_none())
      selection.allowed = arguments
                              .in(allowed, "allowed", {DType::boolean},
                                  {static_cast<std::int64_t>(index_.documents.count)})
                              .as<const std::uint8_t>();
    if (!given.is_none()) {
      const View list = arguments.in(given, "given", {DType::i64}, {kAny});
      const View starts =
          arguments.in(given_starts, "given_starts", {DType::i64}, {q.shape[0] + 1});
      selection.given_starts = starts.as<const std::int64_t>();
      // An empty list may have no address.
      selection.given = list.shape[0] == 0 ? selection.given_starts : list.as<const std::int64_t>();
    }
    const View block = arguments.out(workspace, "workspace", DType::u8, {kAny});
    const std::size_t needed = cuda::search_workspace(index_, as);
    if (block.dim(0) < needed)
      throw py::value_error("`workspace` must have " + std::to_string(needed) + " bytes, got " +
                            std::to_string(block.dim(0)));
    cuda::search(index_, as, q.as<const float>(), selection, block.data, out.as<std::int64_t>(),
                 values.as<float>(), flag.as<std::int32_t>(), arguments.stream());
  }

private:
  // On the device, or on the host, where they are pinned.
  View vectors(const cuda::Arguments &arguments, const char *name, DType dtype, std::int64_t dim) {
    const py::object rows = arrays_[name];
    if (as_view(rows, name).device != kHost) return arguments.in(rows, name, {dtype}, {kAny, dim});
    View view = expect(rows, name, {dtype}, {kAny, dim});
    const std::size_t n_bytes = view.dim(0) * view.dim(1) * (dtype == DType::u8 ? 1 : 2);
    if (n_bytes == 0) return view;
    if (reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0)
      throw py::value_error(std::string("`") + name + "` must start at a multiple of 16 bytes");
    try {
      const py::gil_scoped_release release; // tens of gigabytes take their time
      pinned_.emplace(view.data, n_bytes);
    } catch (const std::runtime_error &error) {
      PyErr_Format(PyExc_MemoryError, "the host cannot pin %zu bytes of %s: %s", n_bytes, name,
                   error.what());
      throw py::error_already_set();
    }
    view.data = pinned_->on_device();
    return view;
  }

  // Residuals with their columns, or embeddings; returns the number of tokens.
  std::int64_t check_vectors(const cuda::Arguments &arguments, const float *centroids,
                             std::int64_t dim, const py::object &weights) {
    if (weights.is_none()) {
      const View rows = vectors(arguments, "embeddings", DType::f16, dim);
      index_.embeddings = rows.as<const std::uint16_t>();
      return rows.shape[0];
    }
    const View packed = vectors(arguments, "residuals", DType::u8, kAny);
    const int nbits = nbits_of_rows(packed.shape[1], dim);
    const View w = expect(weights, "weights", {DType::f32}, {kAny});
    check_weights(w, nbits);
    codec_ = std::make_unique<CodecTables>(centroids, w.as<const float>(), w.dim(0), nbits,
                                           static_cast<std::size_t>(dim));
    index_.decoder = codec_->decoder();
    index_.low = codec_->low(), index_.level_step = codec_->step();
    index_.tokens.packed = packed.as<const std::uint8_t>();
    index_.tokens.scales = arguments.bytes(arrays_["scales"], "scales", packed.shape[0]);
    index_.tokens.inverse_norms =
        arguments.bytes(arrays_["inverse_norms"], "inverse_norms", packed.shape[0]);
    return packed.shape[0];
  }

  // That offsets rise within the data is the caller's to check: they lie on the device.
  void check_lists(const View &counts, const View &offsets, const View &data) {
    if (data.dim(0) < cuda::kListPadding)
      throw py::value_error("`data` must end with " + std::to_string(cuda::kListPadding) +
                            " bytes of padding");
    index_.lists = {counts.as<const std::int32_t>(), offsets.as<const std::int64_t>(),
                    data.as<const std::uint8_t>(), counts.dim(0)};
  }

  cuda::SearchShape shape(std::int64_t n_queries, std::int64_t nq, std::int64_t k,
                          std::int64_t nprobe, std::int64_t ndocs, const std::string &kind) const {
    check_at_most(n_queries, 0xffff, "queries");
    if (nq < 1 || nq % 32 != 0)
      throw py::value_error("`queries` must have a multiple of 32 tokens each, got " +
                            std::to_string(nq));
    check_at_most(k, cuda::kMaxTop, "k");
    check_at_most(nprobe, static_cast<std::int64_t>(index_.n_centroids), "nprobe");
    if (ndocs < 1)
      throw py::value_error("`ndocs` must be at least 1, got " + std::to_string(ndocs));
    const cuda::SearchShape found{
        static_cast<std::size_t>(n_queries), static_cast<std::size_t>(nq),
        static_cast<std::size_t>(k),         static_cast<std::size_t>(nprobe),
        static_cast<std::size_t>(ndocs),     kind_of(kind, index_)};
    if (kind == "filter") check_at_most(n_queries * (nq / 32), 0xffff, "n_queries * nq / 32");
    return found;
  }

  py::dict arrays_; // keeps the memory
  std::optional<cuda::Pinned> pinned_;
  std::unique_ptr<CodecTables> codec_;
  cuda::SearchIndex index_{};
};

} // namespace

void bind_search(py::module_ &m) {
  using py::arg;
  m.attr("list_padding") = cuda::kListPadding;
  m.attr("max_top") = cuda::kMaxTop;
  py::class_<BoundSearcher>(m, "Searcher")
      .def(py::init<const py::dict &, const py::object &>(), arg("arrays"), arg("weights"))
      .def("workspace", &BoundSearcher::workspace, arg("n_queries"), arg("nq"), arg("k"),
           arg("nprobe"), arg("ndocs"), arg("kind"))
      .def("search", &BoundSearcher::search, arg("queries"), arg("nprobe"), arg("ndocs"),
           arg("kind"), arg("allowed").none(true), arg("given").none(true),
           arg("given_starts").none(true), arg("workspace"), arg("ids"), arg("scores"),
           arg("damaged"), arg("stream"));
}
