// Products of int8 query tokens with rows of bytes by tensor cores: 32 query tokens, 8 rows and a
// slab of 128 dimensions at a time, each lane 32 of them.
//
// Rows go from memory into registers and from there into the tensor cores: whatever order a lane's
// bytes come in after decoding, the query has been laid out in the same one (`slab_dim`), so
// nothing is shuffled. A lane's accumulators belong to four query tokens that follow one another,
// 4 * (lane / 4) and up, so that it reads their table bytes as one word.
#pragma once

#include "cuda/residual.cuh"

namespace colbert_fast::cuda {

constexpr unsigned kQueryTile = 32; // as kTableLanes
constexpr unsigned kSlab = 128, kSlabWords = kQueryTile * kSlab / 4;
__host__ __device__ constexpr std::size_t slabs_of(std::size_t dim) {
  return (dim + kSlab - 1) / kSlab;
}

// The dimension in a slab that byte j of register r of lane 4 * g + t stands for. A word of the
// stream, first byte on top, has its windows in its nibbles: the last field's lowest, and with
// fields of 1 or 2 bits also those of the word shifted by 1, 2, 3.
template <int B>
__host__ __device__ constexpr unsigned slab_dim(unsigned t, unsigned r, unsigned j) {
  if (B == 8) return 32 * t + 4 * r + j;
  constexpr unsigned kLow = kLowBits<B>, kPerWord = 32 / kLow; // fields
  const unsigned word = r / (kPerWord / 4), in_word = r % (kPerWord / 4);
  const unsigned lowest_bit = kLow * (in_word / 2) + 16 * (in_word % 2) + 4 * j;
  return 32 * t + word * kPerWord + kPerWord - 1 - lowest_bit / kLow;
}

// Four bytes from `at`, the first on top; zeros from `end` on. Aligned rows have none of those.
template <bool kAligned>
__device__ inline std::uint32_t word_at(const std::uint8_t *bytes, unsigned at, unsigned end) {
  if (kAligned) return permute(*reinterpret_cast<const std::uint32_t *>(bytes + at), 0, 0x0123);
  std::uint32_t word = 0;
  for (unsigned i = 0; i < 4; ++i) word = word << 8 | (at + i < end ? bytes[at + i] : 0u);
  return word;
}

// The third bits (nibbles' top ones) of the windows in the word at byte `at` of the low bits, for
// the word as it is; those of the word shifted by 2 lie two bits lower.
template <bool kAligned>
__device__ inline std::uint32_t third_bits(const std::uint8_t *high, unsigned at, unsigned eighth) {
  if (kAligned) return word_at<true>(high, at % eighth, eighth) << at / eighth;
  std::uint32_t word = 0;
  for (unsigned i = at; i < at + 4; ++i)
    word = word << 8 | (i < 2 * eighth ? high[i % eighth] << i / eighth & 255u : 0u);
  return word;
}

// Sixteen levels below 128, to be looked up four at a time by the nibbles of a register.
struct Levels {
  std::uint32_t words[4];
  __device__ std::uint32_t look_up(std::uint32_t nibbles) const {
    const std::uint32_t low = permute(words[0], words[1], nibbles & 0x7777u);
    const std::uint32_t high = permute(words[2], words[3], nibbles & 0x7777u);
    // A selector's top bit asks for the sign of a byte: 0xff where it is set, else 0x80.
    const std::uint32_t upper = permute(0x80808080u, 0x80808080u, nibbles);
    return (low & ~upper) | (high & upper);
  }
};

// A lane's 32 bytes of a slab of a row, decoded; of dimensions past the row's end something below
// 128, which meets zeros of the query.
template <int B, bool kAligned>
__device__ inline void load_slab(const std::uint8_t *row, unsigned dim, unsigned slab,
                                 const Levels &levels, std::uint32_t (&out)[8]) {
  const unsigned t = threadIdx.x % 4, first = slab * kSlab + 32 * t;
  if (first >= dim) {
    for (unsigned r = 0; r < 8; ++r) out[r] = 0;
    return;
  }
  if constexpr (B == 8) {
    for (unsigned r = 0; r < 8; ++r) // dimensions ascend from the lowest byte
      out[r] = permute(word_at<kAligned>(row, first + 4 * r, dim), 0, 0x0123);
  } else {
    constexpr unsigned kLow = kLowBits<B>, kShifts = 4 / kLow;
    const unsigned end = dim * kLow / 8, at = first * kLow / 8;
    std::uint32_t before = B == 4 || at == 0 ? 0 : word_at<kAligned>(row, at - 4, end);
#pragma unroll
    for (unsigned w = 0; w < kLow; ++w) {
      const std::uint32_t word = word_at<kAligned>(row, at + 4 * w, end);
      std::uint32_t third = 0;
      if (B == 3) third = third_bits<kAligned>(row + end, at + 4 * w, dim / 8);
#pragma unroll
      for (unsigned m = 0; m < kShifts; ++m) {
        std::uint32_t nibbles = m == 0 ? word : __funnelshift_r(word, before, kLow * m);
        if (B == 3)
          nibbles = (nibbles & 0x77777777u) | ((m == 0 ? third << 2 : third) & 0x88888888u);
        out[(w * kShifts + m) * 2] = levels.look_up(nibbles);
        out[(w * kShifts + m) * 2 + 1] = levels.look_up(nibbles >> 16);
      }
      before = word;
    }
  }
}

// sums[q][c]: of the lane's query token q and row 2 * (lane % 4) + c. `query` is one slab of one
// tile, laid out by pack_query.
__device__ inline void add_products(const uint4 *query, const std::uint32_t (&row)[8],
                                    std::int32_t (&sums)[4][2]) {
  __syncwarp(); // load_slab may have parted the lanes
#pragma unroll
  for (unsigned m = 0; m < 2; ++m) {
    std::int32_t d[4] = {sums[2 * m][0], sums[2 * m][1], sums[2 * m + 1][0], sums[2 * m + 1][1]};
#pragma unroll
    for (unsigned block = 0; block < 4; ++block) {
      const uint4 a = query[(m * 4 + block) * kWarp + threadIdx.x % kWarp];
      mma_i8(d, {a.x, a.y, a.z, a.w}, {row[2 * block], row[2 * block + 1]});
    }
    sums[2 * m][0] = d[0], sums[2 * m][1] = d[1];
    sums[2 * m + 1][0] = d[2], sums[2 * m + 1][1] = d[3];
  }
}

// Copies a tile's slabs into shared memory; the caller puts barriers around it.
__device__ inline void stage_query(const QueryBytes &query, unsigned tile, unsigned slabs,
                                   uint4 *shared) {
  const auto *from = reinterpret_cast<const uint4 *>(query.levels) +
                     static_cast<std::size_t>(tile) * slabs * (kSlabWords / 4);
  for (unsigned i = threadIdx.x; i < slabs * (kSlabWords / 4); i += blockDim.x) shared[i] = from[i];
}

} // namespace colbert_fast::cuda
