// A query in the layouts that kernels read. Owns its memory and keeps it from query to query.
#pragma once

#include "aligned.h"
#include "cpu/kernels.h"

namespace colbert_fast {

class QueryPanels {
public:
  // `query` is (count, dim) float32, row-major.
  void pack(const float *query, std::size_t count, std::size_t dim);

  // Quantise the packed query for a codec of `nbits` whose weights are w = low + step * level:
  // each row to int8 by its largest magnitude.
  void pack_i8(int nbits, float low, float step);

  Panels f32() const { return {f32_.data(), count_, n_panels_, dim_}; }
  PanelsI8 i8() const { return {i8_.data(), scale_.data(), base_.data(), count_, n_panels_, dim_}; }
  std::size_t lanes() const { return n_panels_ * kLanes; }
  std::size_t count() const { return count_; }

private:
  AlignedVector<float> f32_, scale_, base_;
  AlignedVector<std::int8_t> i8_;
  std::size_t count_ = 0, n_panels_ = 0, dim_ = 0;
};

} // namespace colbert_fast
