// The arguments of a call: all on the CUDA device of the first one, and the stream they are used
// on.
#pragma once

#include <initializer_list>

#include "array_view.h"
#include "cuda/launchers.h"

namespace colbert_fast::cuda {

class Arguments {
public:
  Arguments(py::handle first, const char *name, std::uintptr_t stream)
      : device_(as_view(first, name).device), stream_(reinterpret_cast<Stream>(stream)) {
    if (device_ == kHost)
      throw py::type_error(std::string("`") + name + "` must be on a CUDA device");
  }
  View in(py::handle object, const char *name, std::initializer_list<DType> dtypes,
          std::initializer_list<std::int64_t> shape) const {
    return expect(object, name, dtypes, shape, device_);
  }
  View out(py::handle object, const char *name, DType dtype,
           std::initializer_list<std::int64_t> shape) const {
    return expect_out(object, name, dtype, shape, device_);
  }
  // A column of bytes with a value per token; null for None.
  const std::uint8_t *bytes(const py::object &column, const char *name, std::int64_t n) const {
    if (column.is_none()) return nullptr;
    return in(column, name, {DType::u8}, {n}).as<const std::uint8_t>();
  }
  Documents documents(const py::object &first, const py::object &doclens,
                      std::int64_t n_rows) const {
    const View lengths = in(doclens, "doclens", {DType::i32}, {kAny});
    const View at = in(first, "first", {DType::i64}, {lengths.shape[0]});
    return {at.as<const std::int64_t>(), lengths.as<const std::int32_t>(), lengths.dim(0),
            static_cast<std::size_t>(n_rows)};
  }
  Stream stream() const { return stream_; }

private:
  int device_;
  Stream stream_;
};

} // namespace colbert_fast::cuda
