// Packing, unpacking and decoding of residuals: bound by memory, so every thread writes next to its
// neighbours.
#include "cuda/residual.cuh"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = 256;

__device__ unsigned reverse_bits(unsigned value, unsigned n) {
  unsigned r = 0;
  for (unsigned k = 0; k < n; ++k) r |= (value >> k & 1u) << (n - 1 - k);
  return r;
}

__device__ std::size_t thread_index() {
  return static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// A thread makes one byte.
template <int B>
__global__ void pack_kernel(const std::uint8_t *buckets, std::size_t n_bytes, unsigned dim,
                            std::uint8_t *packed) {
  constexpr unsigned kLow = kLowBits<B>, kPlanes = 8 / kLow;
  const std::size_t at = thread_index();
  if (at >= n_bytes) return;
  const unsigned width = dim * B / 8, i = static_cast<unsigned>(at % width);
  const std::uint8_t *row = buckets + at / width * dim;
  unsigned byte = 0;
  if (i < dim / kPlanes) {
    for (unsigned s = 0; s < kPlanes; ++s)
      byte = byte << kLow | reverse_bits(row[kPlanes * i + s] & ((1u << kLow) - 1), kLow);
  } else { // third bits
    const unsigned eighth = dim / 8, first = i - dim / 4;
    for (unsigned s = 0; s < 4; ++s)
      for (unsigned half = 0; half < 2; ++half)
        byte = byte << 1 | (row[4 * (half * eighth + first) + s] >> 2 & 1u);
  }
  packed[at] = static_cast<std::uint8_t>(byte);
}

// A thread makes one bucket.
template <int B>
__global__ void unpack_kernel(const std::uint8_t *packed, std::size_t n_buckets, unsigned dim,
                              std::uint8_t *buckets) {
  constexpr unsigned kLow = kLowBits<B>;
  const std::size_t at = thread_index();
  if (at >= n_buckets) return;
  const auto d = static_cast<unsigned>(at % dim);
  const unsigned window = window_of<B>(packed + at / dim * (dim * B / 8), d, dim);
  const unsigned low = reverse_bits(window & ((1u << kLow) - 1), kLow);
  buckets[at] = static_cast<std::uint8_t>(B == 3 ? low | window >> 3 << 2 : low);
}

// Half a warp decodes a token, its lanes dimensions 16 apart, as the CPU's do. The second pass
// decodes again, from L1: values by the dimension would need registers by the dimension.
template <int B>
__global__ void decompress_kernel(Tables tables, const float *centroids, SafeCodes codes,
                                  const std::uint8_t *packed, const std::uint8_t *scales,
                                  std::size_t n, unsigned dim, float *out) {
  float *values = &shared_memory<float>(); // 256
  for (unsigned i = threadIdx.x; i < 256; i += kThreads) values[i] = tables.values[i];
  __syncthreads();
  const std::size_t token = thread_index() / kLanes;
  const std::size_t at = min_of(token, n - 1); // all lanes meet in add_16_lanes
  const unsigned lane = threadIdx.x % kLanes;
  const std::uint8_t *row = packed + at * (dim * B / 8);
  const float *centroid = centroids + codes[at] * dim;
  const float scale = scales == nullptr ? 1.0f : tables.scales[scales[at]];
  const auto value = [&](unsigned d) {
    return fmaf(values[window_of<B>(row, d, dim)], scale, centroid[d]);
  };
  float squares = 0.0f;
  for (unsigned d = lane; d < dim; d += kLanes) squares = fmaf(value(d), value(d), squares);
  const float norm = sqrtf(add_16_lanes(squares));
  const float inverse = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
  if (token >= n) return;
  for (unsigned d = lane; d < dim; d += kLanes) out[at * dim + d] = value(d) * inverse;
}

} // namespace

void pack(const std::uint8_t *buckets, std::size_t n, std::size_t dim, int nbits,
          std::uint8_t *packed, Stream stream) {
  const std::size_t n_bytes = n * (dim * static_cast<std::size_t>(nbits) / 8);
  with_bits(nbits, [&](auto b) {
    launch(pack_kernel<decltype(b)::value>, ceil_div(n_bytes, kThreads), 1, kThreads, 0, stream,
           buckets, n_bytes, static_cast<unsigned>(dim), packed);
  });
}

void unpack(const std::uint8_t *packed, std::size_t n, std::size_t dim, int nbits,
            std::uint8_t *buckets, Stream stream) {
  with_bits(nbits, [&](auto b) {
    launch(unpack_kernel<decltype(b)::value>, ceil_div(n * dim, kThreads), 1, kThreads, 0, stream,
           packed, n * dim, static_cast<unsigned>(dim), buckets);
  });
}

void decompress(const Decoder &decoder, std::size_t n_centroids, const Residuals &tokens,
                std::size_t n, float *out, Stream stream) {
  with_bits(decoder.nbits, [&](auto b) {
    launch(decompress_kernel<decltype(b)::value>, ceil_div(n * kLanes, kThreads), 1, kThreads,
           256 * sizeof(float), stream, tables_of(decoder), decoder.centroids,
           SafeCodes(stored(tokens), n_centroids), tokens.packed, tokens.scales, n,
           static_cast<unsigned>(decoder.dim), out);
  });
}

} // namespace colbert_fast::cuda
