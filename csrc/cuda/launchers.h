// The GPU kernels, as functions that put them on a stream, and what each promises. Names, layouts
// and results are those of cpu/kernels.h unless it is said here.
//
// Arrays lie on the device and start at multiples of 16 bytes. Launchers allocate nothing and do
// not wait; they throw std::runtime_error where CUDA refuses a launch. Kernels cannot be asked to
// check values without waiting for the answer, so they stay inside their arrays whatever these
// hold: a code too large is read as the last, of a document what lies outside the rows is left out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace colbert_fast::cuda {

using Stream = void *; // a cudaStream_t

// Document i is rows first[i] to first[i] + lengths[i] - 1 of n_rows: all of a collection, or any
// choice from it.
struct Documents {
  const std::int64_t *first;
  const std::int32_t *lengths;
  std::size_t count, n_rows;
};

// -- residual ------------------------------------------------------------------------------------
void pack(const std::uint8_t *buckets, std::size_t n, std::size_t dim, int nbits,
          std::uint8_t *packed, Stream stream);
void unpack(const std::uint8_t *packed, std::size_t n, std::size_t dim, int nbits,
            std::uint8_t *buckets, Stream stream);
// The decoder's centroids lie on the device, its tables on the host. The same bits as the CPU's.
void decompress(const Decoder &decoder, std::size_t n_centroids, const Residuals &tokens,
                std::size_t n, float *out, Stream stream);

} // namespace colbert_fast::cuda
