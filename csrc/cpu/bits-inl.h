// Bit order of packed residuals.
//
// 1, 2, 4, 8 bits: dimensions in order, each giving its bits least significant first, the stream
// filling bytes from the most significant bit (numpy.packbits). So a byte holds 8 / nbits fields,
// the first dimension on top, each field with its bits reversed. This is PLAID's order.
//
// 3 bits: dimension d = 4 * i + s. The low two bits lie as in the 2-bit layout in the first dim / 4
// bytes; the high bit is bit 7 - (2 * s + i / (dim / 8)) of byte dim / 4 + i % (dim / 8), so that
// shifts alone bring the high bits of plane s next to its low ones.
#pragma once

namespace {

using namespace colbert_fast;

inline unsigned reverse_bits(unsigned value, int n) {
  unsigned r = 0;
  for (int k = 0; k < n; ++k) r |= ((value >> k) & 1u) << (n - 1 - k);
  return r;
}

template <int B, class T>
inline void pack_row(const T *buckets, std::size_t dim, std::uint8_t *out) {
  constexpr int kLow = B == 3 ? 2 : B;
  constexpr std::size_t kPlanes = planes_of(B);
  const std::size_t width = dim / kPlanes, eighth = dim / 8;
  for (std::size_t i = 0; i < width; ++i) {
    unsigned byte = 0;
    for (std::size_t s = 0; s < kPlanes; ++s) {
      const unsigned value = static_cast<unsigned>(buckets[kPlanes * i + s]) & ((1u << kLow) - 1u);
      byte = byte << kLow | reverse_bits(value, kLow);
    }
    out[i] = static_cast<std::uint8_t>(byte);
  }
  if constexpr (B == 3) {
    for (std::size_t i = 0; i < eighth; ++i) {
      unsigned byte = 0;
      for (std::size_t s = 0; s < 4; ++s)
        for (std::size_t half = 0; half < 2; ++half)
          byte =
              byte << 1 | (static_cast<unsigned>(buckets[4 * (half * eighth + i) + s]) >> 2 & 1u);
      out[width + i] = static_cast<std::uint8_t>(byte);
    }
  }
}

template <int B>
inline void unpack_row(const std::uint8_t *packed, std::size_t dim, std::uint8_t *out) {
  constexpr int kLow = B == 3 ? 2 : B;
  constexpr std::size_t kPlanes = planes_of(B);
  const std::size_t width = dim / kPlanes, eighth = dim / 8;
  for (std::size_t i = 0; i < width; ++i)
    for (std::size_t s = 0; s < kPlanes; ++s) {
      const unsigned raw = packed[i] >> (8 - kLow * static_cast<int>(s + 1)) & ((1u << kLow) - 1u);
      unsigned value = reverse_bits(raw, kLow);
      if constexpr (B == 3) {
        const int bit = 7 - static_cast<int>(2 * s + i / eighth);
        value |= (packed[width + i % eighth] >> bit & 1u) << 2;
      }
      out[kPlanes * i + s] = static_cast<std::uint8_t>(value);
    }
}

// Calls f(std::integral_constant-like tag) for the run-time nbits, so that bodies see a constant.
template <int B> struct Bits {
  static constexpr int value = B;
};
template <class F> inline auto with_bits(int nbits, F f) {
  switch (nbits) {
  case 1: return f(Bits<1>{});
  case 2: return f(Bits<2>{});
  case 3: return f(Bits<3>{});
  case 4: return f(Bits<4>{});
  default: return f(Bits<8>{});
  }
}

void pack(const std::uint8_t *buckets, std::size_t n, std::size_t dim, int nbits,
          std::uint8_t *out) {
  const std::size_t width = dim * static_cast<std::size_t>(nbits) / 8;
  with_bits(nbits, [&](auto b) {
    for (std::size_t i = 0; i < n; ++i) pack_row<b.value>(buckets + i * dim, dim, out + i * width);
  });
}

void unpack(const std::uint8_t *packed, std::size_t n, std::size_t dim, int nbits,
            std::uint8_t *out) {
  const std::size_t width = dim * static_cast<std::size_t>(nbits) / 8;
  with_bits(nbits, [&](auto b) {
    for (std::size_t i = 0; i < n; ++i) unpack_row<b.value>(packed + i * width, dim, out + i * dim);
  });
}

} // namespace
