#include "byte_centroids.h"

#include <algorithm>
#include <cmath>

namespace colbert_fast {
namespace {

// Returns the scale of a row whose largest magnitude is `largest`.
float quantise_row(const float *row, std::size_t dim, float largest, std::uint8_t *bytes) {
  constexpr float kSteps = 63.0f; // either side of kScreenZero, so that bytes stay below 128
  if (!(largest > kVanishing)) {
    std::fill_n(bytes, dim, static_cast<std::uint8_t>(kScreenZero));
    return 0.0f;
  }
  const float scale = largest / kSteps;
  // kRound rounds in loops that compilers vectorise; nearbyintf is a call where SSE4 is not
  // assumed.
  for (std::size_t d = 0; d < dim; ++d)
    bytes[d] = static_cast<std::uint8_t>(kScreenZero +
                                         static_cast<int>((row[d] / scale + kRound) - kRound));
  return scale;
}

} // namespace

ByteCentroids::ByteCentroids(const float *centroids, std::size_t n, std::size_t dim)
    : rows_(n * dim), scale_(n), dim_(dim) {
  for (std::size_t c = 0; c < n; ++c) {
    const float *row = centroids + c * dim;
    float largest = 0.0f, l1 = 0.0f, squares = 0.0f;
    for (std::size_t d = 0; d < dim; ++d) {
      largest = std::max(largest, std::fabs(row[d]));
      l1 += std::fabs(row[d]);
      squares += row[d] * row[d];
    }
    scale_[c] = quantise_row(row, dim, largest, rows_.data() + c * dim);
    largest_scale_ = std::max(largest_scale_, scale_[c]);
    largest_norm_ = std::max(largest_norm_, std::sqrt(squares));
    largest_l1_ = std::max(largest_l1_, l1);
    largest_value_ = std::max(largest_value_, largest);
  }
}

} // namespace colbert_fast
