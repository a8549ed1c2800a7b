// A query in the layouts that kernels read. Owns its memory and keeps it from query to query.
#pragma once

#include "aligned.h"
#include "cpu/kernels.h"
#include "search/codec_tables.h"

namespace colbert_fast {

class QueryPanels {
public:
  // `query` is (count, dim) float32, row-major.
  void pack(const float *query, std::size_t count, std::size_t dim);

  Panels f32() const { return {f32_.data(), count_, n_panels_, dim_}; }
  std::size_t lanes() const { return n_panels_ * kLanes; }
  std::size_t count() const { return count_; }
  std::size_t dim() const { return dim_; }
  // Values of a lane, kLanes apart.
  const float *lane(std::size_t i) const {
    return f32_.data() + i / kLanes * dim_ * kLanes + i % kLanes;
  }
  // Length of each row; what its int8 form counts in (its largest magnitude is 127). Zero for the
  // lanes past the query, and for rows that are not finite or vanish.
  const float *norms() const { return norms_.data(); }
  const float *units() const { return units_.data(); }

private:
  AlignedVector<float> f32_, norms_, units_;
  std::size_t count_ = 0, n_panels_ = 0, dim_ = 0;
};

// The same as int8, to be multiplied with bytes whose value is byte - zero, and whose dimensions
// lie plane by plane: dimension planes * i + s at s * dim / planes + i.
class QueryI8 {
public:
  void pack(const QueryPanels &query, std::size_t planes, float zero);
  // To be multiplied with the levels of a codec.
  void pack(const QueryPanels &query, const CodecTables &codec);
  PanelsI8 view() const {
    return {data_.data(), start_.data(), count_, start_.size() / kLanes, dim_};
  }

private:
  AlignedVector<std::int8_t> data_;
  AlignedVector<std::int32_t> start_;
  std::size_t count_ = 0, dim_ = 0;
};

} // namespace colbert_fast
