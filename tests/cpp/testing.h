// A small harness: checks that count, seeded inputs, and buffers that end where the data ends.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

namespace testing {

using colbert_fast::DType;

// A heap block of exactly `size` elements, so that AddressSanitizer sees a read or write one past
// the end, and never aligned to more than one element, so that kernels may not assume it.
template <class T> class Buffer {
public:
  explicit Buffer(std::size_t size) : size_(size), block_(new T[size + 1]) {}
  Buffer(std::initializer_list<T> values) : Buffer(values.size()) {
    std::copy(values.begin(), values.end(), data());
  }
  T *data() { return block_.get() + 1; }
  const T *data() const { return block_.get() + 1; }
  std::size_t size() const { return size_; }
  T &operator[](std::size_t i) { return data()[i]; }
  const T &operator[](std::size_t i) const { return data()[i]; }
  // Outputs start as `byte` everywhere: two runs poisoned differently can only agree on what they
  // wrote.
  Buffer &poison(int byte) {
    std::memset(static_cast<void *>(data()), byte, size_ * sizeof(T));
    return *this;
  }

private:
  std::size_t size_;
  std::unique_ptr<T[]> block_;
};

// Vectors of any of the kernels' input types; the float values behind them are exact in that type.
class Rows {
public:
  Rows(DType type, std::size_t count) : type_(type), floats_(0), halves_(0) {
    if (type == DType::f32)
      floats_ = Buffer<float>(count);
    else
      halves_ = Buffer<std::uint16_t>(count);
  }
  void set(std::size_t i, float x);
  DType type() const { return type_; }
  const void *data() const {
    return type_ == DType::f32 ? static_cast<const void *>(floats_.data()) : halves_.data();
  }

private:
  DType type_;
  Buffer<float> floats_;
  Buffer<std::uint16_t> halves_;
};

inline std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Truncates; what is too small for a normal half becomes a subnormal one or zero.
inline std::uint16_t to_f16(float x) {
  const std::uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000u;
  const int exponent = static_cast<int>(bits >> 23 & 0xffu) - 112;
  const std::uint32_t mantissa = (bits & 0x7fffffu) >> 13;
  if (exponent > 0) return static_cast<std::uint16_t>(sign | exponent << 10 | mantissa);
  if (exponent < -9) return static_cast<std::uint16_t>(sign);
  return static_cast<std::uint16_t>(sign | (0x400u | mantissa) >> (1 - exponent));
}

inline void Rows::set(std::size_t i, float x) {
  if (type_ == DType::f32)
    floats_[i] = x;
  else
    halves_[i] = type_ == DType::f16 ? to_f16(x) : static_cast<std::uint16_t>(float_bits(x) >> 16);
}

// Inputs from a fixed seed, without the standard distributions, which differ between libraries.
class Random {
public:
  std::size_t below(std::size_t n) { return engine_() % n; }
  float uniform() { return static_cast<float>(engine_() >> 8) * 0x1p-23f - 1.0f; } // [-1, 1)
  // Whole numbers make exact ties, real ones make rounding.
  float value(bool whole) { return whole ? static_cast<float>(below(5)) - 2.0f : uniform(); }

  Buffer<float> floats(std::size_t n, bool whole = false) {
    Buffer<float> out(n);
    for (std::size_t i = 0; i < n; ++i) out[i] = value(whole);
    return out;
  }
  Rows rows(DType type, std::size_t n, bool whole = false) {
    Rows out(type, n);
    for (std::size_t i = 0; i < n; ++i) out.set(i, value(whole) * (below(8) ? 1.0f : 0x1p-16f));
    return out;
  }
  template <class T> Buffer<T> integers(std::size_t n, std::size_t bound) {
    Buffer<T> out(n);
    for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<T>(below(bound));
    return out;
  }

private:
  std::mt19937 engine_{20211202};
};

// The kernels' transposed query, from row-major vectors.
class Query {
public:
  Query(const Buffer<float> &rows, std::size_t count, std::size_t dim)
      : count_(count), dim_(dim), data_(panels() * dim * colbert_fast::kLanes) {
    constexpr std::size_t kLanes = colbert_fast::kLanes;
    for (std::size_t lane = 0; lane < panels() * kLanes; ++lane)
      for (std::size_t d = 0; d < dim; ++d)
        data_[(lane / kLanes * dim + d) * kLanes + lane % kLanes] =
            lane < count ? rows[lane * dim + d] : 0.0f;
  }
  std::size_t panels() const { return (count_ + colbert_fast::kLanes - 1) / colbert_fast::kLanes; }
  std::size_t lanes() const { return panels() * colbert_fast::kLanes; }
  colbert_fast::Panels view() const { return {data_.data(), count_, panels(), dim_}; }

private:
  std::size_t count_, dim_;
  Buffer<float> data_;
};

// Centroids as int8 panels: all extremes, or anything.
class Columns {
public:
  Columns(Random &random, std::size_t count, std::size_t dim, bool whole)
      : n_panels_((count + colbert_fast::kLanes - 1) / colbert_fast::kLanes), dim_(dim),
        data_(n_panels_ * colbert_fast::kLanes * dim), scale_(n_panels_ * colbert_fast::kLanes),
        zero_(scale_.size()) {
    for (std::size_t i = 0; i < data_.size(); ++i)
      data_[i] = static_cast<std::int8_t>(whole ? 127 : static_cast<int>(random.below(255)) - 127);
    for (std::size_t i = 0; i < scale_.size(); ++i) {
      scale_[i] = whole ? 1.0f : random.uniform();
      zero_[i] = static_cast<float>(random.below(4000));
    }
  }
  std::size_t panels() const { return n_panels_; }
  colbert_fast::ScreenPanels view() const {
    return {data_.data(), scale_.data(), zero_.data(), n_panels_, dim_};
  }

private:
  std::size_t n_panels_, dim_;
  Buffer<std::int8_t> data_;
  Buffer<float> scale_, zero_;
};

// A query as int8 panels: all extremes, or anything.
class QueryI8 {
public:
  QueryI8(Random &random, std::size_t count, std::size_t dim, bool whole)
      : count_(count), dim_(dim), data_(lanes() * dim),
        start_(random.integers<std::int32_t>(lanes(), 4000)) {
    for (std::size_t i = 0; i < data_.size(); ++i)
      data_[i] = static_cast<std::int8_t>(whole ? 127 : static_cast<int>(random.below(255)) - 127);
  }
  std::size_t lanes() const {
    return (count_ + colbert_fast::kLanes - 1) / colbert_fast::kLanes * colbert_fast::kLanes;
  }
  colbert_fast::PanelsI8 view() const {
    return {data_.data(), start_.data(), count_, lanes() / colbert_fast::kLanes, dim_};
  }

private:
  std::size_t count_, dim_;
  Buffer<std::int8_t> data_;
  Buffer<std::int32_t> start_;
};

// A table of byte scores; lanes past the query have a step of zero.
class ByteTableBuffer {
public:
  ByteTableBuffer(Random &random, std::size_t n, std::size_t count)
      : stride_((count + colbert_fast::kTableLanes - 1) / colbert_fast::kTableLanes *
                colbert_fast::kTableLanes),
        rows_(random.integers<std::uint8_t>(n * stride_, 256)), step_(random.floats(stride_)) {
    for (std::size_t lane = count; lane < stride_; ++lane) step_[lane] = 0;
  }
  colbert_fast::ByteTable view() const { return {rows_.data(), stride_, step_.data()}; }

private:
  std::size_t stride_;
  Buffer<std::uint8_t> rows_;
  Buffer<float> step_;
};

// Decoder::values from weights by bucket: a window's own bits are its last, the bucket's least
// significant bit first; with 3 bits the third is the window's top bit.
inline Buffer<float> values_by_window(const Buffer<float> &weights, int nbits) {
  const int low = colbert_fast::low_bits(nbits);
  Buffer<float> out(colbert_fast::windows_of(nbits));
  for (std::size_t window = 0; window < out.size(); ++window) {
    std::size_t bucket = nbits == 3 ? window >> 3 << 2 : 0;
    for (int k = 0; k < low; ++k) bucket |= (window >> (low - 1 - k) & 1) << k;
    out[window] = weights[bucket];
  }
  return out;
}

class Tally {
public:
  void check(bool ok, const std::string &what) {
    ++(ok ? passed_ : failed_);
    if (!ok && failed_ <= 20) std::printf("FAILED %s\n", what.c_str());
  }
  // The same bits, not the same values: -0 is not 0.
  template <class T, template <class> class Any>
  void same(const Any<T> &got, const Buffer<T> &want, const std::string &what) {
    std::size_t i = 0;
    while (i < want.size() && std::memcmp(&got[i], &want[i], sizeof(T)) == 0) ++i;
    const bool ok = got.size() == want.size() && i == want.size();
    check(ok, ok ? what
                 : what + ": at " + std::to_string(i) + " got " + std::to_string(got[i]) +
                       ", want " + std::to_string(want[i]));
  }
  int finish() const { // the exit status
    std::printf("%ld passed, %ld failed\n", passed_, failed_);
    return failed_ == 0 && passed_ > 0 ? 0 : 1;
  }

private:
  long passed_ = 0, failed_ = 0;
};

} // namespace testing
