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

void set_dtype(View &view, const std::string &name) {
  for (const Named &named : kNames)
    if (name == named.name) {
      view.dtype = named.dtype;
      return;
    }
  view.foreign = name;
}

// The name of a numpy dtype is put together in Python, which takes longer than many a kernel: the
// usual ones are told by kind and size. Others have no DType, but for bfloat16 of ml_dtypes.
void set_dtype(View &view, const py::dtype &dtype) {
  switch (dtype.kind() << 8 | static_cast<int>(dtype.itemsize())) {
  case 'f' << 8 | 4: view.dtype = DType::f32; break;
  case 'f' << 8 | 2: view.dtype = DType::f16; break;
  case 'i' << 8 | 4: view.dtype = DType::i32; break;
  case 'i' << 8 | 8: view.dtype = DType::i64; break;
  case 'u' << 8 | 1: view.dtype = DType::u8; break;
  case 'u' << 8 | 2: view.dtype = DType::u16; break;
  case 'b' << 8 | 1: view.dtype = DType::boolean; break;
  default: set_dtype(view, std::string(py::str(py::object(dtype.attr("name")))));
  }
}

View view_numpy(const py::array &array, const char *name) {
  View view;
  const py::dtype dtype = array.dtype();
  set_dtype(view, dtype);
  const char order = dtype.byteorder();
  if (order != '=' && order != '|' && !dtype.attr("isnative").cast<bool>())
    throw py::type_error(std::string("`") + name + "`: the byte order must be the machine's own");
  view.data = const_cast<void *>(array.data());
  view.shape.assign(array.shape(), array.shape() + array.ndim());
  view.contiguous = (array.flags() & py::array::c_style) != 0;
  view.writable = array.writeable();
  return view;
}

bool is_tensor(py::handle object) {
  return py::hasattr(object, "data_ptr") && py::hasattr(object, "is_contiguous");
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
  set_dtype(view, dtype.substr(dtype.find('.') + 1));
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
  if (is_tensor(object)) return view_torch(object, name);
  throw py::type_error(std::string("`") + name + "` must be a numpy array or a torch tensor, got " +
                       std::string(py::str(py::type::of(object).attr("__name__"))));
}

View expect(py::handle object, const char *name, std::initializer_list<DType> dtypes,
            std::initializer_list<std::int64_t> shape, int device) {
  View view = as_view(object, name);
  if (view.device != device)
    throw py::type_error(std::string("`") + name + "` must be on " + device_name(device) +
                         ", got an array on " + device_name(view.device));
  const bool foreign = !view.foreign.empty();
  if (foreign || std::find(dtypes.begin(), dtypes.end(), view.dtype) == dtypes.end()) {
    std::string wanted;
    for (const DType dtype : dtypes)
      wanted += (wanted.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    throw py::type_error(std::string("`") + name + "` must be " + wanted + ", got " +
                         (foreign ? view.foreign : dtype_name(view.dtype)));
  }
  const bool same =
      view.shape.size() == shape.size() &&
      std::equal(shape.begin(), shape.end(), view.shape.begin(),
                 [](std::int64_t want, std::int64_t got) { return want == kAny || want == got; });
  if (!same) wrong(name, "of shape " + join(shape), join(view.shape));
  if (!view.contiguous)
    wrong(name, "C-contiguous",
          is_tensor(object) ? "a strided tensor: pass .contiguous()"
                            : "a strided array: pass numpy.ascontiguousarray(...)");
  // Of odd offsets into bytes; C++ may assume that a float lies at a multiple of four.
  if (reinterpret_cast<std::uintptr_t>(view.data) % find(view.dtype).size != 0)
    wrong(name, "aligned in memory",
          is_tensor(object) ? "a misaligned tensor: pass .clone()"
                            : "a misaligned array: pass numpy.array(...)");
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
