// Table of contents of the CUDA extension.
#include <pybind11/pybind11.h>

#include "cuda/launchers.h"
#include "cuda/runtime.h"

namespace py = pybind11;
using namespace colbert_fast;

void bind_candidates(py::module_ &m);
void bind_compress(py::module_ &m);
void bind_kmeans(py::module_ &m);
void bind_maxsim(py::module_ &m);
void bind_residual(py::module_ &m);
void bind_search(py::module_ &m);

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "CUDA kernels of colbert_fast. Private: use colbert_fast.kernels.ops.";
  m.attr("release") = cuda::release();
  m.attr("max_mma_dim") = cuda::kMaxMmaDim;
  m.def("device_count", &cuda::device_count);
  m.def("can_run", &cuda::can_run, py::arg("device"));
  m.def("device_name", &cuda::device_name, py::arg("device"));
  m.def("problem", &cuda::problem);
  bind_candidates(m);
  bind_compress(m);
  bind_kmeans(m);
  bind_maxsim(m);
  bind_residual(m);
  bind_search(m);
}
