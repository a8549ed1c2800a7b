#include <cstring>

#include "array_view.h"
#include "checks.h"
#include "pooling.h"
#include "thread_pool.h"

using namespace colbert_fast;

namespace {

constexpr std::size_t kDocumentsAtOnce = 16; // share their scratch

std::size_t at_least(std::int64_t value, std::int64_t least, const char *name) {
  if (value < least)
    throw py::value_error(std::string("`") + name + "` must be at least " + std::to_string(least) +
                          ", got " + std::to_string(value));
  return static_cast<std::size_t>(value);
}

// Closes the gaps that documents left which came out smaller than planned; returns all rows.
std::size_t close_up(const std::vector<std::size_t> &planned, const std::int32_t *doclens,
                     std::size_t dim, float *rows) {
  std::size_t end = 0;
  for (std::size_t i = 0; i + 1 < planned.size(); ++i) {
    const auto n = static_cast<std::size_t>(doclens[i]);
    if (end != planned[i])
      std::memmove(rows + end * dim, rows + planned[i] * dim, n * dim * sizeof *rows);
    end += n;
  }
  return end;
}

struct Plans {
  std::vector<PoolPlan> documents;
  std::vector<std::size_t> offsets; // of the documents' pooled rows, and the end

  Plans(const std::vector<std::int64_t> &starts, std::int64_t factor, std::int64_t protected_rows)
      : offsets(starts.size(), 0) {
    const std::size_t by = at_least(factor, 1, "factor"),
                      kept = at_least(protected_rows, 0, "protected");
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
      documents.emplace_back(static_cast<std::size_t>(starts[i + 1] - starts[i]), by, kept);
      offsets[i + 1] = offsets[i] + documents[i].kept + documents[i].clusters;
    }
  }
};

// Rows that pooling leaves at most.
std::size_t pooled_rows(const py::object &doclens, std::int64_t n_tokens, std::int64_t factor,
                        std::int64_t protected_rows) {
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  return Plans(check_doclens(lengths, n_tokens), factor, protected_rows).offsets.back();
}

// pooled (pooled_rows, dim), pooled_doclens (n_docs,), clusters (n,) or None; returns how many rows
// there are.
std::size_t pool(const py::object &embeddings, const py::object &doclens, std::int64_t factor,
                 std::int64_t protected_rows, const py::object &pooled,
                 const py::object &pooled_doclens, const py::object &clusters) {
  const View x =
      expect(embeddings, "embeddings", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  const View lengths = expect(doclens, "doclens", {DType::i32}, {kAny});
  const std::vector<std::int64_t> starts = check_doclens(lengths, x.shape[0]);
  const Plans plans(starts, factor, protected_rows);
  const std::size_t n_docs = lengths.dim(0), dim = x.dim(1);
  const View out = expect_out(pooled, "pooled", DType::f32,
                              {static_cast<std::int64_t>(plans.offsets.back()), x.shape[1]});
  auto *found = expect_out(pooled_doclens, "pooled_doclens", DType::i32, {lengths.shape[0]})
                    .as<std::int32_t>();
  std::int32_t *into = nullptr;
  if (!clusters.is_none())
    into = expect_out(clusters, "clusters", DType::i32, {x.shape[0]}).as<std::int32_t>();
  {
    const py::gil_scoped_release release;
    const std::size_t row_bytes = dim * size_of(x.dtype);
    parallel_for(n_docs, kDocumentsAtOnce, [&](std::size_t begin, std::size_t end) {
      Pooler pooler;
      for (std::size_t i = begin; i < end; ++i) {
        const auto start = static_cast<std::size_t>(starts[i]);
        found[i] =
            pooler.pool(x.as<const char>() + start * row_bytes, x.dtype, dim, plans.documents[i],
                        out.as<float>() + plans.offsets[i] * dim, into ? into + start : nullptr);
      }
    });
  }
  for (std::size_t i = 0; i < n_docs; ++i)
    if (found[i] < 0)
      throw py::value_error("`embeddings` must be finite unit rows, those of document " +
                            std::to_string(i) + " are not");
  return close_up(plans.offsets, found, dim, out.as<float>());
}

} // namespace

void bind_pooling(py::module_ &m) {
  using py::arg;
  m.def("pooled_rows", &pooled_rows, arg("doclens"), arg("n_tokens"), arg("factor"),
        arg("protected"));
  m.def("pool", &pool, arg("embeddings"), arg("doclens"), arg("factor"), arg("protected"),
        arg("pooled"), arg("pooled_doclens"), arg("clusters") = py::none());
}
