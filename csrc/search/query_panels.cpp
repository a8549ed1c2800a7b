#include "search/query_panels.h"

#include <algorithm>
#include <cmath>

#include "search/codec_tables.h"

namespace colbert_fast {

void QueryPanels::pack(const float *query, std::size_t count, std::size_t dim) {
  count_ = count, dim_ = dim, n_panels_ = (count + kLanes - 1) / kLanes;
  f32_.assign(n_panels_ * dim * kLanes, 0.0f);
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t d = 0; d < dim; ++d)
      f32_[(i / kLanes * dim + d) * kLanes + i % kLanes] = query[i * dim + d];
}

void QueryPanels::pack_i8(int nbits, float low, float step) {
  i8_.assign(f32_.size(), 0);
  scale_.assign(lanes(), 0.0f);
  base_.assign(lanes(), 0.0f);
  const std::size_t planes = planes_of(nbits), width = dim_ / planes;
  for (std::size_t i = 0; i < count_; ++i) {
    const float *row = f32_.data() + i / kLanes * dim_ * kLanes + i % kLanes;
    float largest = 0.0f;
    for (std::size_t d = 0; d < dim_; ++d) largest = std::max(largest, std::fabs(row[d * kLanes]));
    const float unit = largest / 127.0f;
    if (unit == 0.0f) continue;
    std::int8_t *out = i8_.data() + i / kLanes * dim_ * kLanes;
    std::int32_t sum = 0;
    for (std::size_t at = 0; at < dim_; ++at) {
      const std::size_t d = planes * (at % width) + at / width;
      const auto value = static_cast<std::int8_t>(std::nearbyintf(row[d * kLanes] / unit));
      out[(at / 4 * kLanes + i % kLanes) * 4 + at % 4] = value;
      sum += value;
    }
    scale_[i] = unit * step;
    base_[i] = unit * low * static_cast<float>(sum);
  }
}

} // namespace colbert_fast
