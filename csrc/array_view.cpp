#include "array_view.h"

#include <algorithm>
#include <iterator>

namespace colbert_fast {
namespace {

struct Named {
  DType dtype;
  const char *name;
  std::size_t size;
};
constexpr Named kNames[] = {
    {DType::u8, "uint8", 1},    {DType::u16, "uint16", 2},   {DType::i32, "int32", 4},
    {DType::i64, "int64", 8},   {DType::f16, "float16", 2},  {DType::bf16, "bfloat16", 2},
    {DType::f32, "float32", 4}, {DType::boolean, "bool", 1},
};

const Named &find(DType dtype) {
  return *std::find_if(std::begin(kNames), std::end(kNames),
                       [&](const Named &named) { return named.dtype == dtype; });
}

std::string join(const std::vector<std::int64_t> &shape) {
  std::string text = "(";
  for (const std::int64_t n : shape) text += (n == kAny ? "any" : std::to_string(n)) + ", ";
  if (shape.size() > 1)
    text.resize(text.size() - 2);
  else if (shape.size() == 1)
    text.resize(text.size() - 1);
  return text + ")";
}

DType parse_dtype(const std::string &text, const char *name) {
  for (const Named &named : kNames)
    if (text == named.name) return named.dtype;
  throw py::type_error(std::string("`") + name + "`: dtype " + text + " is not supported");
}

// The name of a numpy dtype is put together in Python, which takes longer than many a kernel: the
// usual ones are told by kind and size. Others have no DType, but for bfloat16 of ml_dtypes.
DType dtype_of(const py::dtype &dtype, const char *name) {
  switch (dtype.kind() << 8 | static_cast<int>(dtype.itemsize())) {
  case 'f' << 8 | 4: return DType::f32;
  case 'f' << 8 | 2: return DType::f16;
  case 'i' << 8 | 4: return DType::i32;
  case 'i' << 8 | 8: return DType::i64;
  case 'u' << 8 | 1: return DType::u8;
  case 'u' << 8 | 2: return DType::u16;
  case 'b' << 8 | 1: return DType::boolean;
  default: return parse_dtype(py::str(py::object(dtype.attr("name"))), name);
  }
}

View view_numpy(const py::array &array, const char *name) {
  View view;
  const py::dtype dtype = array.dtype();
  view.dtype = dtype_of(dtype, name);
  const char order = dtype.byteorder();
  if (order != '=' && order != '|' && !dtype.attr("isnative").cast<bool>())
    throw py::type_error(std::string("`") + name + "`: the byte order must be the machine's own");
  view.data = const_cast<void *>(array.data());
  view.shape.assign(array.shape(), array.shape() + array.ndim());
  view.contiguous = (array.flags() & py::array::c_style) != 0;
  view.writable = array.writeable();
  return view;
}

View view_torch(py::handle tensor, const char *name) {
  View view;
  const py::object device = tensor.attr("device");
  const std::string type = py::str(device.attr("type"));
  if (type == "cuda")
    view.device = device.attr("index").cast<int>();
  else if (type != "cpu")
    throw py::type_error(std::string("`") + name +
                         "`: a CPU or CUDA tensor is wanted, got one on " + type);
  const std::string dtype = py::str(tensor.attr("dtype"));
  view.dtype = parse_dtype(dtype.substr(dtype.find('.') + 1), name);
  view.data = reinterpret_cast<void *>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
  for (const py::handle n : tensor.attr("shape")) view.shape.push_back(n.cast<std::int64_t>());
  view.contiguous = tensor.attr("is_contiguous")().cast<bool>();
  view.writable = true;
  return view;
}

std::string device_name(int device) {
  return device == kHost ? "the CPU" : "cuda:" + std::to_string(device);
}

[[noreturn]] void wrong(const char *name, const std::string &wanted, const std::string &got) {
  throw py::value_error(std::string("`") + name + "` must be " + wanted + ", got " + got);
}

} // namespace

const char *dtype_name(DType dtype) { return find(dtype).name; }

View as_view(py::handle object, const char *name) {
  if (py::isinstance<py::array>(object))
    return view_numpy(py::reinterpret_borrow<py::array>(object), name);
  if (py::hasattr(object, "data_ptr") && py::hasattr(object, "is_contiguous"))
    return view_torch(object, name);
  throw py::type_error(std::string("`") + name + "` must be a numpy array or a torch tensor, got " +
                       std::string(py::str(py::type::of(object).attr("__name__"))));
}

View expect(py::handle object, const char *name, std::initializer_list<DType> dtypes,
            std::initializer_list<std::int64_t> shape, int device) {
  View view = as_view(object, name);
  if (view.device != device)
    throw py::type_error(std::string("`") + name + "` must be on " + device_name(device) +
                         ", got an array on " + device_name(view.device));
  if (std::find(dtypes.begin(), dtypes.end(), view.dtype) == dtypes.end()) {
    std::string wanted;
    for (const DType dtype : dtypes)
      wanted += (wanted.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    throw py::type_error(std::string("`") + name + "` must be " + wanted + ", got " +
                         dtype_name(view.dtype));
  }
  const bool same =
      view.shape.size() == shape.size() &&
      std::equal(shape.begin(), shape.end(), view.shape.begin(),
                 [](std::int64_t want, std::int64_t got) { return want == kAny || want == got; });
  if (!same) wrong(name, "of shape " + join(shape), join(view.shape));
  if (!view.contiguous)
    wrong(name, "C-contiguous", "a strided array: pass numpy.ascontiguousarray(...)");
  // Of odd offsets into bytes; C++ may assume that a float lies at a multiple of four.
  if (reinterpret_cast<std::uintptr_t>(view.data) % find(view.dtype).size != 0)
    wrong(name, "aligned in memory", "a misaligned array: pass numpy.array(...)");
  if (device != kHost && reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0)
    wrong(name, "aligned to 16 bytes", "a misaligned tensor: pass a clone()");
  return view;
}

View expect_out(py::handle object, const char *name, DType dtype,
                std::initializer_list<std::int64_t> shape, int device) {
  View view = expect(object, name, {dtype}, shape, device);
  if (!view.writable) wrong(name, "writable", "a read-only array");
  return view;
}

} // namespace colbert_fast
