// Arguments at the door: numpy arrays and torch tensors become one View, without a copy and without
// torch headers. Every message about a wrong argument is made here.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace colbert_fast {

namespace py = pybind11;

// The device of memory that the CPU reads; others are CUDA's ordinals.
constexpr int kHost = -1;

struct View {
  void *data = nullptr;
  DType dtype{};
  std::string foreign; // the name of a dtype that has no DType, which `expect` refuses
  int device = kHost;
  std::vector<std::int64_t> shape;
  bool contiguous = false, writable = false;

  std::size_t dim(std::size_t i) const { return static_cast<std::size_t>(shape[i]); }
  template <class T> T *as() const { return static_cast<T *>(data); }
};

// Any length, in `expect`.
constexpr std::int64_t kAny = -1;

// TypeError if `object` is neither a numpy array nor a torch tensor in the memory of the CPU or of
// a CUDA device. The object must outlive the view.
View as_view(py::handle object, const char *name);

// Checks device and dtype (TypeError), number and length of dimensions, C order and alignment, on
// CUDA devices to 16 bytes (ValueError).
View expect(py::handle object, const char *name, std::initializer_list<DType> dtypes,
            std::initializer_list<std::int64_t> shape, int device = kHost);

// The same for an output, which must also be writable.
View expect_out(py::handle object, const char *name, DType dtype,
                std::initializer_list<std::int64_t> shape, int device = kHost);

const char *dtype_name(DType dtype);

} // namespace colbert_fast
