// What the machine offers.
#pragma once

#include <string>

namespace colbert_fast::cuda {

// GPUs that can run the kernels; 0 where `problem` says why.
int device_count();
// Why there is none: no driver, one too old, no device. Empty if there is one.
std::string problem();
// The name of a GPU, and the CUDA release that the kernels were compiled with, such as "13.0".
std::string device_name(int device);
std::string release();

} // namespace colbert_fast::cuda
