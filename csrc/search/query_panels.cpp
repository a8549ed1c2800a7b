#include "search/query_panels.h"

#include <algorithm>
#include <cmath>

namespace colbert_fast {

void QueryPanels::pack(const float *query, std::size_t count, std::size_t dim) {
  count_ = count, dim_ = dim, n_panels_ = (count + kLanes - 1) / kLanes;
  f32_.assign(n_panels_ * dim * kLanes, 0.0f);
  norms_.assign(lanes(), 0.0f);
  units_.assign(lanes(), 0.0f);
  for (std::size_t i = 0; i < count; ++i) {
    float *to = f32_.data() + i / kLanes * dim * kLanes + i % kLanes;
    float largest = 0.0f, squares = 0.0f;
    for (std::size_t d = 0; d < dim; ++d) {
      const float value = query[i * dim + d];
      to[d * kLanes] = value;
      largest = std::max(largest, std::fabs(value));
      squares += value * value;
    }
    if (!std::isfinite(squares) || !(largest > kVanishing)) continue;
    norms_[i] = std::sqrt(squares);
    units_[i] = largest / 127.0f;
  }
}

void QueryI8::pack(const QueryPanels &query, std::size_t planes, float zero) {
  const std::size_t width = query.dim() / planes;
  count_ = query.count(), dim_ = query.dim();
  data_.assign(query.lanes() * dim_, 0);
  start_.assign(query.lanes(), 0);
  for (std::size_t i = 0; i < count_; ++i) {
    const float unit = query.units()[i], *row = query.lane(i);
    if (unit == 0.0f) continue;
    std::int8_t *out = data_.data() + i / kLanes * dim_ * kLanes;
    std::int32_t sum = 0;
    for (std::size_t at = 0; at < dim_; ++at) {
      const std::size_t d = planes * (at % width) + at / width;
      const auto value = static_cast<std::int8_t>(std::nearbyintf(row[d * kLanes] / unit));
      out[(at / 4 * kLanes + i % kLanes) * 4 + at % 4] = value;
      sum += value;
    }
    start_[i] = static_cast<std::int32_t>(std::nearbyintf(-zero * static_cast<float>(sum)));
  }
}

void QueryI8::pack(const QueryPanels &query, const CodecTables &codec) {
  // The step is 0 where all values are 0.
  pack(query, planes_of(codec.decoder().nbits),
       codec.step() > 0.0f ? -codec.low() / codec.step() : 0.0f);
}

} // namespace colbert_fast
