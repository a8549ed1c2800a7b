#include "search/byte_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/dispatch.h"
#include "thread_pool.h"

namespace colbert_fast {
namespace {

// Centroids that a thread takes at once. Each block collects its winners from nothing, so fewer
// blocks mean fewer insertions.
constexpr std::size_t kLeastBlock = 4096, kBlocksOfThread = 2;
// Centroids that tell what is usual; their counts fit 16 bits.
constexpr std::size_t kSampled = 1024;
constexpr std::size_t kByteValues = 256;

} // namespace

void ByteScores::compute(const ByteCentroids &centroids, const QueryPanels &query,
                         std::size_t nprobe, std::vector<std::int32_t> &cells) {
  const std::size_t n = centroids.size(), lanes = query.lanes(), dim = centroids.dim();
  stride_ = (lanes + kTableLanes - 1) / kTableLanes * kTableLanes;
  rows_.resize(n * stride_);
  step_.assign(stride_, 0.0f);
  // No score is larger than the product of the lengths, so that no byte that matters is clamped:
  // two steps are for the rounding of the factors, which at dim 128 lengthens them by 1.2 % at
  // most.
  constexpr float kSteps = static_cast<float>(kTableZero) - 2.0f;
  const float longest = centroids.largest_norm() > 0.0f ? centroids.largest_norm() : 1.0f;
  for (std::size_t i = 0; i < query.count(); ++i) step_[i] = query.norms()[i] * longest / kSteps;
  query_.pack(query, 1, static_cast<float>(kScreenZero));
  ratio(query, 1.0f);
  const std::size_t block = std::max(kLeastBlock, n / (kBlocksOfThread * num_threads()));
  const std::size_t n_blocks = (n + block - 1) / block, winners = lanes * nprobe;
  values_.assign(n_blocks * winners, -std::numeric_limits<float>::infinity());
  ids_.assign(n_blocks * winners, -1);
  parallel_for(n, block, [&](std::size_t begin, std::size_t end) {
    const std::size_t at = begin / block * winners;
    kernels().scores_i8(query_.view(), ratio_.data(), centroids.rows() + begin * dim,
                        centroids.scale() + begin, end - begin, rows_.data() + begin * stride_,
                        stride_, begin, nprobe, values_.data() + at, ids_.data() + at);
  });
  merge(query, nprobe, cells);
}

void ByteScores::merge(const QueryPanels &query, std::size_t nprobe,
                       std::vector<std::int32_t> &cells) {
  cells.clear();
  const std::size_t winners = query.lanes() * nprobe;
  struct Cell {
    float value;
    std::int32_t id;
  };
  std::vector<Cell> all;
  for (std::size_t lane = 0; lane < query.count(); ++lane) {
    all.clear();
    for (std::size_t block = lane * nprobe; block < ids_.size(); block += winners)
      for (std::size_t j = block; j < block + nprobe; ++j)
        if (ids_[j] >= 0) all.push_back({values_[j], ids_[j]});
    const std::size_t found = std::min(nprobe, all.size());
    std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(found), all.end(),
                      [](const Cell &a, const Cell &b) {
                        return a.value != b.value ? a.value > b.value : a.id < b.id;
                      });
    for (std::size_t j = 0; j < found; ++j) cells.push_back(all[j].id);
  }
}

const std::uint8_t *ByteScores::quantile(std::size_t above) {
  const std::size_t n = rows_.size() / stride_, every = (n + kSampled - 1) / kSampled;
  counts_.assign(stride_ * kByteValues, 0);
  for (std::size_t c = 0; c < n; c += every)
    for (std::size_t lane = 0; lane < stride_; ++lane)
      ++counts_[lane * kByteValues + rows_[c * stride_ + lane]];
  quantile_.resize(stride_);
  above /= every;
  for (std::size_t lane = 0; lane < stride_; ++lane) {
    const std::uint16_t *counts = counts_.data() + lane * kByteValues;
    std::size_t byte = kByteValues - 1;
    for (std::size_t seen = counts[byte]; seen <= above && byte > 0; seen += counts[byte]) --byte;
    quantile_[lane] = static_cast<std::uint8_t>(byte);
  }
  return quantile_.data();
}

const float *ByteScores::ratio(const QueryPanels &query, float unit_of_bytes) {
  ratio_.assign(query.lanes(), 0.0f);
  for (std::size_t i = 0; i < query.count(); ++i)
    if (step_[i] > 0.0f) ratio_[i] = query.units()[i] * unit_of_bytes / step_[i];
  return ratio_.data();
}

} // namespace colbert_fast
