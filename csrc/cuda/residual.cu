// Packing, unpacking and decoding of residuals: bound by memory, so every thread writes next to its
// neighbours.
#include "cuda/residual.cuh"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = 256;

__device__ std::size_t thread_index() {
  return static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// A thread makes one byte.
template <int B>
__global__ void pack_kernel(const std::uint8_t *buckets, std::size_t n_bytes, unsigned dim,
                            std::uint8_t *packed) {
  const std::size_t at = thread_index();
  if (at >= n_bytes) return;
  const unsigned width = dim * B / 8;
  const std::uint8_t *row = buckets + at / width * dim;
  packed[at] = packed_byte<B>(static_cast<unsigned>(at % width), dim,
                              [&](unsigned d) { return static_cast<unsigned>(row[d]); });
}

// A thread makes one bucket.
template <int B>
__global__ void unpack_kernel(const std::uint8_t *packed, std::size_t n_buckets, unsigned dim,
                              std::uint8_t *buckets) {
  const std::size_t at = thread_index();
  if (at >= n_buckets) return;
  const auto d = static_cast<unsigned>(at % dim);
  const unsigned window = window_of<B>(packed + at / dim * (dim * B / 8), d, dim);
  buckets[at] = static_cast<std::uint8_t>(bucket_of<B>(window));
}

// A token for half a warp, whose lanes have dimensions 16 apart, as the CPU's do.
template <int B> struct Token {
  const float *values, *centroid;
  const std::uint8_t *row;
  float scale;
  unsigned dim;
  __device__ float operator[](unsigned d) const {
    return fmaf(values[window_of<B>(row, d, dim)], scale, centroid[d]);
  }
  // What brings it to unit length. All lanes of the warp meet here.
  __device__ float inverse_norm() const {
    float squares = 0.0f;
    for (unsigned d = threadIdx.x % kLanes; d < dim; d += kLanes)
      squares = fmaf((*this)[d], (*this)[d], squares);
    const float norm = sqrtf(add_16_lanes(squares));
    return 1.0f / (norm > 1e-12f ? norm : 1e-12f);
  }
};

// Two of the decoder's tables, as an argument and where lanes look values up.
struct ValuesAndScales {
  float values[256], scales[256];
};
ValuesAndScales values_and_scales_of(const Decoder &decoder) {
  const Tables all = tables_of(decoder);
  ValuesAndScales tables;
  for (std::size_t i = 0; i < 256; ++i)
    tables.values[i] = all.values[i], tables.scales[i] = all.scales[i];
  return tables;
}

struct PackedTokens {
  const float *centroids;
  SafeCodes codes;
  const std::uint8_t *packed, *scales;
  std::size_t n;
  unsigned dim;

  // Token `at`; the last one where there is none.
  template <int B> __device__ Token<B> token(const ValuesAndScales &tables, std::size_t at) const {
    float *values = &shared_memory<float>(); // 256
    for (unsigned i = threadIdx.x; i < 256; i += kThreads) values[i] = tables.values[i];
    __syncthreads();
    at = min_of(at, n - 1);
    return {values, centroids + codes[at] * dim, packed + at * (dim * B / 8),
            scales == nullptr ? 1.0f : tables.scales[scales[at]], dim};
  }
};

// The second pass decodes again, from L1: values by the dimension would need registers by the
// dimension.
template <int B>
__global__ void decompress_kernel(ValuesAndScales tables, PackedTokens tokens, float *out) {
  const std::size_t at = thread_index() / kLanes;
  const Token<B> token = tokens.token<B>(tables, at);
  const float inverse = token.inverse_norm();
  if (at >= tokens.n) return;
  for (unsigned d = threadIdx.x % kLanes; d < token.dim; d += kLanes)
    out[at * token.dim + d] = token[d] * inverse;
}

template <int B>
__global__ void inverse_norms_kernel(ValuesAndScales tables, Edges edges, PackedTokens tokens,
                                     std::uint8_t *norms) {
  const std::size_t at = thread_index() / kLanes;
  const float inverse = tokens.token<B>(tables, at).inverse_norm();
  if (at < tokens.n && threadIdx.x % kLanes == 0) norms[at] = edges.byte_of(inverse);
}

PackedTokens packed_tokens(const Decoder &decoder, std::size_t n_centroids, const Residuals &tokens,
                           std::size_t n) {
  return {decoder.centroids,
          SafeCodes(stored(tokens), n_centroids),
          tokens.packed,
          tokens.scales,
          n,
          static_cast<unsigned>(decoder.dim)};
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
           256 * sizeof(float), stream, values_and_scales_of(decoder),
           packed_tokens(decoder, n_centroids, tokens, n), out);
  });
}

void inverse_norms(const Decoder &decoder, std::size_t n_centroids, const Residuals &tokens,
                   std::size_t n, const float *edges, std::uint8_t *norms, Stream stream) {
  with_bits(decoder.nbits, [&](auto b) {
    launch(inverse_norms_kernel<decltype(b)::value>, ceil_div(n * kLanes, kThreads), 1, kThreads,
           256 * sizeof(float), stream, values_and_scales_of(decoder), edges_from(edges),
           packed_tokens(decoder, n_centroids, tokens, n), norms);
  });
}

} // namespace colbert_fast::cuda
