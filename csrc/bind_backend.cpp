#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "thread_pool.h"

namespace py = pybind11;
using namespace colbert_fast;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels *table : available_kernels()) names.emplace_back(table->name);
  return names;
}

} // namespace

void bind_backend(py::module_ &m) {
  // Fail at import, where the name is still in sight, rather than at the first kernel.
  try {
    kernels();
    num_threads();
  } catch (const std::runtime_error &error) { throw py::import_error(error.what()); }
  m.attr("__version__") = COLBERT_FAST_VERSION;
  m.attr("compiler") = compiler();
  m.attr("max_dim") = kMaxDim;
  m.def("available_isas", &isas);
  m.def("isa", [] { return std::string(kernels().name); });
  m.def(
      "set_isa",
      [](const std::string &name) {
        try {
          set_isa(name);
        } catch (const std::runtime_error &error) { throw py::value_error(error.what()); }
      },
      py::arg("name"));
  m.def("get_num_threads", &num_threads);
  m.def(
      "set_num_threads",
      [](py::ssize_t n) {
        if (n < 1 || n > 4096)
          throw py::value_error("`n` must be a number of threads from 1 to 4096, got " +
                                std::to_string(n));
        set_num_threads(static_cast<std::size_t>(n));
      },
      py::arg("n"));
}
