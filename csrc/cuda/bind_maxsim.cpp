// As the CPU's, with `first`, int64: the first row of each document.
#include "checks.h"
#include "cuda/arguments.h"

using namespace colbert_fast;

namespace {

void starts(const py::object &doclens, const py::object &first, std::uintptr_t stream) {
  const cuda::Arguments arguments(doclens, "doclens", stream);
  const View lengths = arguments.in(doclens, "doclens", {DType::i32}, {kAny});
  const View out = arguments.out(first, "first", DType::i64, {lengths.shape[0]});
  cuda::starts(lengths.as<const std::int32_t>(), lengths.dim(0), out.as<std::int64_t>(),
               arguments.stream());
}

void maxsim(const py::object &query, const py::object &documents, const py::object &first,
            const py::object &doclens, const py::object &scores, const py::object &argmax,
            std::uintptr_t stream) {
  const cuda::Arguments arguments(query, "query", stream);
  const View q =
      arguments.in(query, "query", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny, kAny});
  check_dim(q, "query");
  const View d = arguments.in(documents, "documents", {DType::f32, DType::f16, DType::bf16},
                              {kAny, q.shape[2]});
  const bool mma = q.dtype != DType::f32;
  if (mma && (q.dtype != d.dtype || q.dim(2) > cuda::kMaxMmaDim))
    throw py::type_error(std::string("`query` must be float32, or of the documents' type with a "
                                     "dimension up to ") +
                         std::to_string(cuda::kMaxMmaDim) + "; got " + dtype_name(q.dtype) +
                         " with " + dtype_name(d.dtype) + " documents of dimension " +
                         std::to_string(q.dim(2)));
  const cuda::Documents where = arguments.documents(first, doclens, d.shape[0]);
  const View out = arguments.out(scores, "scores", DType::f32, {q.shape[0], kAny});
  const Pairs pairs = check_pairs(out, where.count, "scores");
  std::int32_t *arg = nullptr;
  if (!argmax.is_none())
    arg = arguments.out(argmax, "argmax", DType::i32, {q.shape[0], out.shape[1], q.shape[1]})
              .as<std::int32_t>();
  if (mma)
    cuda::maxsim_mma(q.data, q.dim(1), q.dim(2), d.data, d.dtype, where, pairs, out.as<float>(),
                     arg, arguments.stream());
  else
    cuda::maxsim(q.as<const float>(), q.dim(1), q.dim(2), d.data, d.dtype, where, pairs,
                 out.as<float>(), arg, arguments.stream());
}

void maxsim_grad_query(const py::object &documents, const py::object &first,
                       const py::object &doclens, const py::object &argmax, const py::object &grad,
                       const py::object &out, std::uintptr_t stream) {
  const cuda::Arguments arguments(documents, "documents", stream);
  const View d =
      arguments.in(documents, "documents", {DType::f32, DType::f16, DType::bf16}, {kAny, kAny});
  check_dim(d, "documents");
  const cuda::Documents where = arguments.documents(first, doclens, d.shape[0]);
  const View g = arguments.in(grad, "grad", {DType::f32}, {kAny, kAny});
  const Pairs pairs = check_pairs(g, where.count, "grad");
  const View arg = arguments.in(argmax, "argmax", {DType::i32}, {g.shape[0], g.shape[1], kAny});
  const View sums = arguments.out(out, "out", DType::f32, {g.shape[0], arg.shape[2], d.shape[1]});
  cuda::maxsim_grad_query(g.as<const float>(), arg.as<const std::int32_t>(), arg.dim(2), d.dim(1),
                          d.data, d.dtype, where, pairs, sums.as<float>(), arguments.stream());
}

void maxsim_grad_documents(const py::object &query, const py::object &first,
                           const py::object &doclens, const py::object &argmax,
                           const py::object &grad, const py::object &out, std::uintptr_t stream) {
  const cuda::Arguments arguments(query, "query", stream);
  const View q = arguments.in(query, "query", {DType::f32}, {kAny, kAny, kAny});
  check_dim(q, "query");
  const View rows = arguments.out(out, "out", DType::f32, {kAny, q.shape[2]});
  const cuda::Documents where = arguments.documents(first, doclens, rows.shape[0]);
  const View g = arguments.in(grad, "grad", {DType::f32}, {q.shape[0], kAny});
  const Pairs pairs = check_pairs(g, where.count, "grad");
  const View arg =
      arguments.in(argmax, "argmax", {DType::i32}, {g.shape[0], g.shape[1], q.shape[1]});
  cuda::maxsim_grad_documents(q.as<const float>(), g.as<const float>(),
                              arg.as<const std::int32_t>(), q.dim(1), q.dim(2), where, pairs,
                              rows.as<float>(), arguments.stream());
}

} // namespace

void bind_maxsim(py::module_ &m) {
  using py::arg;
  m.def("starts", &starts, arg("doclens"), arg("first"), arg("stream"));
  m.def("maxsim", &maxsim, arg("query"), arg("documents"), arg("first"), arg("doclens"),
        arg("scores"), arg("argmax").none(true), arg("stream"));
  m.def("maxsim_grad_query", &maxsim_grad_query, arg("documents"), arg("first"), arg("doclens"),
        arg("argmax"), arg("grad"), arg("out"), arg("stream"));
  m.def("maxsim_grad_documents", &maxsim_grad_documents, arg("query"), arg("first"), arg("doclens"),
        arg("argmax"), arg("grad"), arg("out"), arg("stream"));
}
