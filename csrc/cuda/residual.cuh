// The residual codec's tables and bit order, for the kernels that read it; cpu/bits-inl.h and
// cpu/trellis-inl.h tell what they mean.
#pragma once

#include "cuda/device.cuh"

namespace colbert_fast::cuda {

// A decoder by value: kernels take at most 4 KB of arguments.
struct Tables {
  float values[256];
  float scales[256];
  float norms[256];
  std::uint8_t levels[256];
};

inline Tables tables_of(const Decoder &decoder) {
  Tables tables{};
  for (std::size_t i = 0; i < windows_of(decoder.nbits); ++i) {
    tables.values[i] = decoder.values[i];
    tables.levels[i] = decoder.levels[i];
  }
  for (std::size_t i = 0; i < 256; ++i) {
    tables.scales[i] = decoder.scales[i];
    tables.norms[i] = decoder.norms[i];
  }
  return tables;
}

// f(std::integral_constant-like tag) for the run-time nbits.
template <int B> struct Bits {
  static constexpr int value = B;
};
template <class F> void with_bits(int nbits, F f) {
  switch (nbits) {
  case 1: return f(Bits<1>{});
  case 2: return f(Bits<2>{});
  case 3: return f(Bits<3>{});
  case 4: return f(Bits<4>{});
  default: return f(Bits<8>{});
  }
}

// Ids at most `largest`, whatever is stored.
struct SafeCodes {
  const void *data;
  unsigned bits;
  std::uint32_t largest;

  SafeCodes(const StoredTokens &tokens, std::size_t n_centroids)
      : data(tokens.codes), bits(static_cast<unsigned>(tokens.code_bits)),
        largest(static_cast<std::uint32_t>(n_centroids - 1)) {}
  __device__ std::size_t operator[](std::size_t i) const {
    std::uint32_t code;
    if (bits == 32) {
      code = static_cast<const std::uint32_t *>(data)[i];
    } else if (bits == 16) {
      code = static_cast<const std::uint16_t *>(data)[i];
    } else {
      const std::size_t bit = i * bits;
      const std::uint32_t *words = static_cast<const std::uint32_t *>(data) + bit / 32;
      code = __funnelshift_r(words[0], words[1], static_cast<std::uint32_t>(bit % 32)) &
             ((1u << bits) - 1);
    }
    return min_of(code, largest);
  }
};

// The byte that an encoder of codec_tables.h gives: how many of its edges, 1 to 255, are reached.
struct Edges {
  float at[256];
  __device__ std::uint8_t byte_of(float x) const {
    unsigned byte = 0;
    for (unsigned step = 128; step > 0; step /= 2)
      if (x >= at[byte + step]) byte += step;
    return static_cast<std::uint8_t>(byte);
  }
};
inline Edges edges_from(const float *edges) {
  Edges copy{};
  for (std::size_t i = 0; i < 256; ++i) copy.at[i] = edges[i];
  return copy;
}

template <int B> constexpr int kLowBits = B == 3 ? 2 : B;

__device__ inline unsigned reverse_bits(unsigned value, unsigned n) {
  unsigned r = 0;
  for (unsigned k = 0; k < n; ++k) r |= (value >> k & 1u) << (n - 1 - k);
  return r;
}

// The bucket of a window: its own bits.
template <int B> __device__ inline unsigned bucket_of(unsigned window) {
  constexpr unsigned kLow = kLowBits<B>;
  const unsigned low = reverse_bits(window & ((1u << kLow) - 1), kLow);
  return B == 3 ? low | window >> 3 << 2 : low;
}

// Byte i of a packed row, from the buckets of dimensions.
template <int B, class Bucket>
__device__ inline std::uint8_t packed_byte(unsigned i, unsigned dim, Bucket bucket) {
  constexpr unsigned kLow = kLowBits<B>, kPlanes = 8 / kLow;
  unsigned byte = 0;
  if (i < dim / kPlanes) {
    for (unsigned s = 0; s < kPlanes; ++s)
      byte = byte << kLow | reverse_bits(bucket(kPlanes * i + s) & ((1u << kLow) - 1), kLow);
  } else { // third bits
    const unsigned eighth = dim / 8, first = i - dim / 4;
    for (unsigned s = 0; s < 4; ++s)
      for (unsigned half = 0; half < 2; ++half)
        byte = byte << 1 | (bucket(4 * (half * eighth + first) + s) >> 2 & 1u);
  }
  return static_cast<std::uint8_t>(byte);
}

// What dimension d of a packed row is looked up by.
template <int B>
__device__ inline unsigned window_of(const std::uint8_t *row, unsigned d, unsigned dim) {
  constexpr unsigned kLow = kLowBits<B>, kPlanes = 8 / kLow;
  constexpr unsigned kWidth = B == 8 ? 8 : B == 3 ? 3 : 4;
  const unsigned i = d / kPlanes, plane = d % kPlanes;
  const unsigned stream = row[i] | (i == 0 ? 0u : row[i - 1]) << 8;
  unsigned window = stream >> (8 - kLow * (plane + 1)) & ((1u << kWidth) - 1);
  if (B == 3) {
    const unsigned eighth = dim / 8, bit = 7 - (2 * plane + i / eighth);
    window |= (row[dim / 4 + i % eighth] >> bit & 1u) << 3;
  }
  return window;
}

} // namespace colbert_fast::cuda
