// What the tests against the scalar table share: sizes around the lane widths, and codes.
#pragma once

#include <string>

#include "kernels.h"
#include "testing.h"

namespace testing {

using colbert_fast::Codes;
using colbert_fast::Kernels;

constexpr std::size_t kSizes[] = {0,  1,  2,  3,  7,   8,   15,  16,  17, 31,
                                  33, 63, 64, 65, 127, 128, 129, 255, 256};
constexpr std::size_t kDims[] = {8, 16, 24, 32, 40, 64, 96, 128, 128, 136, 264, 384, 1024};
constexpr std::size_t kCounts[] = {1, 2, 7, 15, 16, 17, 31, 32, 32, 33, 48, 65};
constexpr int kNbits[] = {1, 2, 3, 4, 8};
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};

struct Case {
  std::size_t n, dim, count, centroids;
  DType type;
  int nbits;
  bool whole, wide;

  std::string describe(const Kernels &isa, const char *kernel) const {
    return describe(std::string(kernel) + " on " + isa.name);
  }
  std::string describe(const std::string &kernel) const {
    return kernel + ", n " + std::to_string(n) + ", dim " + std::to_string(dim) + ", query " +
           std::to_string(count) + ", type " + std::to_string(static_cast<int>(type)) + ", nbits " +
           std::to_string(nbits) + (whole ? ", whole" : "") + (wide ? ", wide codes" : "");
  }
};

template <class T, std::size_t N> T pick(Random &random, const T (&from)[N]) {
  return from[random.below(N)];
}

template <class F> void sweep(Random &random, int repeats, F check) {
  for (const std::size_t n : kSizes)
    for (const int nbits : kNbits)
      for (int i = 0; i < repeats; ++i)
        check(Case{n, pick(random, kDims), pick(random, kCounts), 1 + random.below(70),
                   pick(random, kTypes), nbits, random.below(2) == 0, random.below(2) == 0});
}

// Codes of either width, in a buffer that ends with them.
class CodeBuffer {
public:
  CodeBuffer(Random &random, const Case &c)
      : wide_(c.wide), int32_(random.integers<std::int32_t>(c.wide ? c.n : 0, c.centroids)),
        uint16_(random.integers<std::uint16_t>(c.wide ? 0 : c.n, c.centroids)) {}
  Codes view() const {
    return {wide_ ? static_cast<const void *>(int32_.data()) : uint16_.data(), wide_};
  }

  // Those of some tokens.
  CodeBuffer(const CodeBuffer &of, const colbert_fast::Chosen *chosen, std::size_t n)
      : wide_(of.wide_), int32_(wide_ ? n : 0), uint16_(wide_ ? 0 : n) {
    for (std::size_t i = 0; i < n; ++i) {
      const auto token = static_cast<std::size_t>(chosen[i].token);
      if (wide_)
        int32_[i] = of.int32_[token];
      else
        uint16_[i] = of.uint16_[token];
    }
  }

private:
  bool wide_;
  Buffer<std::int32_t> int32_;
  Buffer<std::uint16_t> uint16_;
};

// A random codec, by bucket or by window, and the tables that the kernels read it from.
class Codec {
public:
  Codec(Random &random, const Case &c)
      : nbits_(c.nbits), dim_(c.dim), centroids_(random.floats(c.centroids * c.dim, c.whole)),
        values_(random.floats(colbert_fast::windows_of(c.nbits), c.whole)),
        levels_(colbert_fast::windows_of(c.nbits)), norms_(random.floats(256)),
        scales_(random.floats(256)) {
    if (random.below(2) == 0)
      values_ = values_by_window(random.floats(std::size_t{1} << nbits_, c.whole), nbits_);
    for (std::size_t i = 0; i < levels_.size(); ++i)
      levels_[i] =
          static_cast<std::uint8_t>(colbert_fast::kMaxLevel - (c.whole ? 0 : random.below(128)));
  }
  std::size_t packed_dim() const { return dim_ * static_cast<std::size_t>(nbits_) / 8; }
  colbert_fast::Decoder view() const {
    return {centroids_.data(), values_.data(), levels_.data(), norms_.data(),
            scales_.data(),    nbits_,         dim_,           packed_dim()};
  }

private:
  int nbits_;
  std::size_t dim_;
  Buffer<float> centroids_, values_;
  Buffer<std::uint8_t> levels_;
  Buffer<float> norms_, scales_;
};

// Compressed tokens, with or without scales and inverse norms.
class Tokens {
public:
  Tokens(Random &random, const Case &c, std::size_t packed_dim)
      : codes_(random, c), packed_(random.integers<std::uint8_t>(c.n * packed_dim, 256)),
        scales_(random.integers<std::uint8_t>(c.n, 256)),
        norms_(random.integers<std::uint8_t>(c.n, 256)), with_scales_(random.below(3) > 0),
        with_norms_(random.below(3) > 0) {}
  // Some of them.
  Tokens(const Tokens &of, std::size_t packed_dim, const colbert_fast::Chosen *chosen,
         std::size_t n)
      : codes_(of.codes_, chosen, n), packed_(n * packed_dim), scales_(n), norms_(n),
        with_scales_(of.with_scales_), with_norms_(of.with_norms_) {
    for (std::size_t i = 0; i < n; ++i) {
      const auto token = static_cast<std::size_t>(chosen[i].token);
      for (std::size_t d = 0; d < packed_dim; ++d)
        packed_[i * packed_dim + d] = of.packed_[token * packed_dim + d];
      scales_[i] = of.scales_[token];
      norms_[i] = of.norms_[token];
    }
  }
  colbert_fast::Residuals view() const {
    return {codes_.view(), packed_.data(), with_scales_ ? scales_.data() : nullptr,
            with_norms_ ? norms_.data() : nullptr};
  }

private:
  CodeBuffer codes_;
  Buffer<std::uint8_t> packed_, scales_, norms_;
  bool with_scales_, with_norms_;
};

} // namespace testing
