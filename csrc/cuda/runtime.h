// What the machine offers.
#pragma once

#include <cstddef>
#include <string>

namespace colbert_fast::cuda {

// GPUs; 0 where `problem` says why.
int device_count();
// Why there is none: no driver, one too old, no device. Empty if there is one.
std::string problem();
// Whether a GPU has compute capability 8.0 or more, which mma.m16n8k16 and cp.async want. (That
// this build has code for it is not looked at.)
bool can_run(int device);
// The name of a GPU, and the CUDA release that the kernels were compiled with, such as "13.0".
std::string device_name(int device);
std::string release();

// Memory of the host that kernels read over the bus while this lives.
class Pinned {
public:
  // Throws std::runtime_error where the system refuses to pin it.
  Pinned(void *host, std::size_t n_bytes);
  ~Pinned();
  Pinned(const Pinned &) = delete;
  Pinned &operator=(const Pinned &) = delete;
  // Where kernels see it.
  void *on_device() const { return on_device_; }

private:
  void *host_, *on_device_ = nullptr;
  int device_ = 0; // that was current when it was pinned
};

} // namespace colbert_fast::cuda
