// What the tests of GPU kernels share. Include it behind the .cu file.
#pragma once

#include <algorithm>

#include "cases.h"
#include "dispatch.h"

namespace testing {

inline const Kernels &scalar() { return *colbert_fast::available_kernels().back(); }

// A buffer that starts as device memory does, at a multiple of 16 bytes, and ends with the data.
template <class T> class DeviceBuffer {
public:
  explicit DeviceBuffer(std::size_t size)
      : size_(size), block_(static_cast<T *>(::operator new(size * sizeof(T), kAlignment))) {}
  explicit DeviceBuffer(const Buffer<T> &from) : DeviceBuffer(from.size()) {
    std::copy(from.data(), from.data() + size_, data());
  }
  T *data() { return block_.get(); }
  const T *data() const { return block_.get(); }
  std::size_t size() const { return size_; }
  T &operator[](std::size_t i) { return data()[i]; }
  const T &operator[](std::size_t i) const { return data()[i]; }
  DeviceBuffer &poison(int byte) {
    std::memset(static_cast<void *>(data()), byte, size_ * sizeof(T));
    return *this;
  }

private:
  static constexpr std::align_val_t kAlignment{16};
  struct Delete {
    void operator()(T *p) const { ::operator delete(p, kAlignment); }
  };
  std::size_t size_;
  std::unique_ptr<T, Delete> block_;
};

// Once with threads in ascending order and once in descending.
template <class F> void both_orders(F check) {
  for (const bool reverse : {false, true}) {
    cuda_on_host::reverse = reverse;
    check();
  }
}

} // namespace testing
