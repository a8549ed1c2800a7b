// The encoders of both residual codecs, the same bits as the CPU's.
//
// A thread quantises one token: its chain of states is sequential, and there are tokens enough.
// What leads to a state is one of 2^bits windows, so of all states the choices at a dimension are
// 8 bits at most: the way back takes a byte per token and dimension, which then becomes the window
// that was chosen. Residuals are computed again in each of the five passes, from L2.
#include "cuda/residual.cuh"

namespace colbert_fast::cuda {
namespace {

// point - centroid.
template <class T> struct Differences {
  const T *points;
  const float *centroids;
  SafeCodes codes;
  std::size_t n;
  unsigned dim;
  __device__ float at(std::size_t token, unsigned d) const {
    return to_float(points[token * dim + d]) - centroids[codes[token] * dim + d];
  }
};

// -- buckets -------------------------------------------------------------------------------------

constexpr unsigned kThreads = 256;

struct Cutoffs {
  float at[255];
};

// A thread makes one byte.
template <int B, class T>
__global__ void compress_kernel(Cutoffs cutoffs, Differences<T> residuals, std::uint8_t *packed) {
  const unsigned width = residuals.dim * B / 8;
  const std::size_t at = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= residuals.n * width) return;
  const auto bucket = [&](unsigned d) {
    const float value = residuals.at(at / width, d);
    unsigned below = 0;
#pragma unroll 15
    for (unsigned i = 0; i < (1u << B) - 1; ++i) below += value > cutoffs.at[i] ? 1u : 0u;
    return below;
  };
  packed[at] = packed_byte<B>(static_cast<unsigned>(at % width), residuals.dim, bucket);
}

// -- trellis -------------------------------------------------------------------------------------

// Of a block, which is a warp. Rows of one more than that: reads along and across meet all banks.
constexpr unsigned kTokens = kWarp, kPitch = kTokens + 1, kDims = 32;

struct TrellisTables {
  float values[256];
  Edges scale_edges;
};

struct Shared {
  float values[256];
  float points[kDims][kPitch];
  __device__ std::uint8_t &window(unsigned d, unsigned token) { // behind the end, dim x kPitch
    return reinterpret_cast<std::uint8_t *>(this + 1)[d * kPitch + token];
  }
};

// The windows by which states follow one another, as in cpu/trellis-inl.h.
template <int B> struct Trellis {
  static constexpr unsigned kStates = 1u << context_bits(B), kChoices = 1u << B;
  static constexpr unsigned kStream = B == 3 ? 8 : windows_of(B), kLow = kLowBits<B>;
  static __device__ constexpr unsigned before(unsigned window) { return window % kStream >> kLow; }
  static __device__ constexpr unsigned into(unsigned state, unsigned j) {
    return state + kStates * j;
  }
};

// f(d, x) for all dimensions of this thread's token, in order.
template <class T, class F>
__device__ void for_dims(Shared &shared, const Differences<T> &residuals, F f) {
  const std::size_t token = static_cast<std::size_t>(blockIdx.x) * kTokens;
  for (unsigned first = 0; first < residuals.dim; first += kDims) {
    const unsigned d = first + threadIdx.x;
    __syncthreads(); // the ones before have been read
    if (d < residuals.dim)
      for (unsigned i = 0; i < kTokens; ++i)
        shared.points[threadIdx.x][i] = residuals.at(min_of(token + i, residuals.n - 1), d);
    __syncthreads();
    for (unsigned i = 0; i < min_of(kDims, residuals.dim - first); ++i)
      f(first + i, shared.points[i][threadIdx.x]);
  }
}

// The best windows for the residual times `gain`: of the largest sum of 2 x v - v^2.
template <int B, class T>
__device__ void viterbi(Shared &shared, const Differences<T> &residuals, float gain) {
  using Path = Trellis<B>;
  constexpr unsigned kHeld = B == 8 ? 1 : 16; // 256 values are not for registers
  [[maybe_unused]] float twice[kHeld], square[kHeld];
  float sum[Path::kStates];
#pragma unroll
  for (unsigned w = 0; w < kHeld; ++w)
    twice[w] = 2.0f * shared.values[w], square[w] = shared.values[w] * shared.values[w];
#pragma unroll
  for (unsigned s = 0; s < Path::kStates; ++s) sum[s] = s == 0 ? 0.0f : kMinusInf;
  for_dims(shared, residuals, [&](unsigned d, float point) {
    const float x = point * gain;
    float next[Path::kStates];
    unsigned choices = 0;
#pragma unroll
    for (unsigned s = 0; s < Path::kStates; ++s) {
      float best = kMinusInf;
      unsigned chosen = 0;
#pragma unroll 16
      for (unsigned j = 0; j < Path::kChoices; ++j) {
        const unsigned w = Path::into(s, j);
        float path;
        if constexpr (B == 8) {
          const float value = shared.values[w];
          path = fmaf(x, 2.0f * value, sum[0] - value * value);
        } else {
          path = fmaf(x, twice[w], sum[Path::before(w)] - square[w]);
        }
        if (path > best) best = path, chosen = j;
      }
      next[s] = best;
      choices |= chosen << (B * s);
    }
#pragma unroll
    for (unsigned s = 0; s < Path::kStates; ++s) sum[s] = next[s];
    shared.window(d, threadIdx.x) = static_cast<std::uint8_t>(choices);
  });
  unsigned state = 0;
  float top = sum[0];
#pragma unroll
  for (unsigned s = 1; s < Path::kStates; ++s)
    if (sum[s] > top) top = sum[s], state = s;
  for (unsigned d = residuals.dim; d-- > 0;) {
    std::uint8_t &cell = shared.window(d, threadIdx.x);
    const unsigned w = Path::into(state, cell >> (B * state) & (Path::kChoices - 1));
    cell = static_cast<std::uint8_t>(w);
    state = Path::before(w);
  }
}

// The scale that brings scale * values nearest to the residual.
template <class T> __device__ float best_scale(Shared &shared, const Differences<T> &residuals) {
  float product = 0.0f, square = 0.0f;
  for_dims(shared, residuals, [&](unsigned d, float x) {
    const float value = shared.values[shared.window(d, threadIdx.x)];
    product = fmaf(value, x, product);
    square = fmaf(value, value, square);
  });
  return product > 0.0f && square > 0.0f ? product / square : 0.0f;
}

template <int B, class T>
__global__ void __launch_bounds__(kTokens)
    compress_trellis_kernel(TrellisTables tables, Differences<T> residuals, std::uint8_t *packed,
                            std::uint8_t *scales) {
  auto &shared = shared_memory<Shared>();
  for (unsigned i = threadIdx.x; i < 256; i += kTokens) shared.values[i] = tables.values[i];
  float scale = 0.0f;
  for_dims(shared, residuals, [&](unsigned, float x) { scale = fmaf(x, x, scale); });
  scale = sqrtf(scale);
  for (unsigned pass = 0; pass < 2; ++pass) {
    viterbi<B>(shared, residuals, scale > 1e-12f ? 1.0f / scale : 0.0f);
    scale = best_scale(shared, residuals);
  }
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kTokens;
  if (first + threadIdx.x < residuals.n)
    scales[first + threadIdx.x] = tables.scale_edges.byte_of(scale);
  __syncthreads();
  const unsigned width = residuals.dim * B / 8;
  const auto count = static_cast<unsigned>(min_of<std::size_t>(kTokens, residuals.n - first));
  for (unsigned i = threadIdx.x; i < count * width; i += kTokens)
    packed[first * width + i] = packed_byte<B>(i % width, residuals.dim, [&](unsigned d) {
      return bucket_of<B>(shared.window(d, i / width));
    });
}

template <class T>
Differences<T> differences(const void *points, std::size_t n, std::size_t dim,
                           const float *centroids, std::size_t n_centroids,
                           const std::int32_t *codes) {
  return {static_cast<const T *>(points), centroids,
          SafeCodes({codes, 32, nullptr, nullptr, nullptr}, n_centroids), n,
          static_cast<unsigned>(dim)};
}

} // namespace

void compress(const void *points, DType type, std::size_t n, std::size_t dim,
              const float *centroids, std::size_t n_centroids, const std::int32_t *codes,
              const float *cutoffs, int nbits, std::uint8_t *residuals, Stream stream) {
  Cutoffs table{};
  for (std::size_t i = 0; i < (std::size_t{1} << nbits) - 1; ++i) table.at[i] = cutoffs[i];
  with_type(type, [&](auto element) {
    using T = decltype(element);
    with_bits(nbits, [&](auto b) {
      constexpr int B = decltype(b)::value;
      launch(compress_kernel<B, T>, ceil_div(n * (dim * B / 8), kThreads), 1, kThreads, 0, stream,
             table, differences<T>(points, n, dim, centroids, n_centroids, codes), residuals);
    });
  });
}

void compress_trellis(const void *points, DType type, std::size_t n, const std::int32_t *codes,
                      const Decoder &decoder, std::size_t n_centroids, const float *scale_edges,
                      std::uint8_t *residuals, std::uint8_t *scales, Stream stream) {
  TrellisTables tables{{}, edges_from(scale_edges)};
  for (std::size_t i = 0; i < windows_of(decoder.nbits); ++i) tables.values[i] = decoder.values[i];
  with_type(type, [&](auto element) {
    using T = decltype(element);
    with_bits(decoder.nbits, [&](auto b) {
      launch(compress_trellis_kernel<decltype(b)::value, T>, ceil_div(n, kTokens), 1, kTokens,
             sizeof(Shared) + decoder.dim * kPitch, stream, tables,
             differences<T>(points, n, decoder.dim, decoder.centroids, n_centroids, codes),
             residuals, scales);
    });
  });
}

} // namespace colbert_fast::cuda
