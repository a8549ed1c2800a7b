// Table of contents of the extension.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_backend(py::module_ &m);
void bind_maxsim(py::module_ &m);
void bind_pooling(py::module_ &m);
void bind_residual(py::module_ &m);
void bind_candidates(py::module_ &m);
void bind_kmeans(py::module_ &m);
void bind_search(py::module_ &m);

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Kernels of colbert_fast. Private: use colbert_fast.kernels.ops.";
  bind_backend(m);
  bind_maxsim(m);
  bind_pooling(m);
  bind_residual(m);
  bind_candidates(m);
  bind_kmeans(m);
  bind_search(m);
}
