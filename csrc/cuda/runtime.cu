#include "cuda/runtime.h"

#include "cuda/device.cuh"

namespace colbert_fast::cuda {

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

bool can_run(int device) {
  int major = 0;
  const auto asked = cudaDevAttrComputeCapabilityMajor;
  return cudaDeviceGetAttribute(&major, asked, device) == cudaSuccess && major >= 8;
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

std::string release() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

Pinned::Pinned(void *host, std::size_t n_bytes) : host_(host) {
  cudaError_t status = cudaGetDevice(&device_);
  if (status == cudaSuccess) status = cudaHostRegister(host, n_bytes, cudaHostRegisterDefault);
  if (status == cudaSuccess) {
    status = cudaHostGetDevicePointer(&on_device_, host, 0);
    if (status == cudaSuccess) return;
    cudaHostUnregister(host);
  }
  cudaGetLastError(); // or the next launch would report it
  throw std::runtime_error(cudaGetErrorString(status));
}

Pinned::~Pinned() {
  int current = device_;
  cudaGetDevice(&current);
  if (current != device_) cudaSetDevice(device_);
  cudaHostUnregister(host_);
  if (current != device_) cudaSetDevice(current);
  cudaGetLastError(); // or the next launch would report it
}

} // namespace colbert_fast::cuda
