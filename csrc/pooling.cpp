#include "pooling.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpu/dispatch.h"

namespace colbert_fast {
namespace {

// One row as float32.
void copy_row(const void *rows, DType type, std::size_t row, std::size_t dim, float *out) {
  if (type == DType::f32) {
    std::memcpy(out, static_cast<const float *>(rows) + row * dim, dim * sizeof *out);
    return;
  }
  const auto which = static_cast<std::int64_t>(row);
  kernels().sum_rows(rows, type, dim, &which, 1, out);
}

} // namespace

PoolPlan::PoolPlan(std::size_t n_rows, std::size_t factor, std::size_t protected_rows)
    : kept(std::min(n_rows, protected_rows)), n(n_rows - kept),
      clusters(std::min(std::max(n / factor, std::size_t{1}), n)) {}

std::int32_t Pooler::pool(const void *rows, DType type, std::size_t dim, const PoolPlan &plan,
                          float *out, std::int32_t *clusters) {
  const std::size_t n = plan.n, row_bytes = dim * size_of(type);
  const auto *free = static_cast<const char *>(rows) + plan.kept * row_bytes;
  for (std::size_t i = 0; i < plan.kept; ++i, out += dim) copy_row(rows, type, i, dim, out);
  if (clusters) std::iota(clusters, clusters + plan.kept, 0);
  first_.resize(n);
  std::iota(first_.begin(), first_.end(), 0);
  if (plan.clusters < n && !cluster(free, type, n, dim, plan.clusters)) return -1;
  auto row = static_cast<std::int32_t>(plan.kept);
  for (std::size_t first = 0; first < n; ++first) {
    const auto name = static_cast<std::int32_t>(first);
    if (first_[first] != name) continue;
    members_.clear();
    for (std::size_t i = first; i < n; ++i)
      if (first_[i] == name) members_.push_back(static_cast<std::int64_t>(i));
    if (clusters)
      for (const std::int64_t i : members_) clusters[plan.kept + static_cast<std::size_t>(i)] = row;
    kernels().sum_rows(free, type, dim, members_.data(), members_.size(), out);
    if (const auto size = static_cast<float>(members_.size()); size > 1.0f)
      for (std::size_t d = 0; d < dim; ++d) out[d] /= size;
    out += dim, ++row;
  }
  return row;
}

bool Pooler::cluster(const void *rows, DType type, std::size_t n, std::size_t dim,
                     std::size_t clusters) {
  const std::size_t padded = (dim + 7) / 8 * 8; // tiles step by eight dimensions
  const auto *wide = static_cast<const float *>(rows);
  if (type != DType::f32 || padded != dim) {
    rows_.resize(n * padded);
    wide = rows_.data();
    for (std::size_t i = 0; i < n; ++i) {
      float *row = rows_.data() + i * padded;
      copy_row(rows, type, i, dim, row);
      std::fill(row + dim, row + padded, 0.0f);
    }
  }
  const std::size_t n_panels = (n + kLanes - 1) / kLanes;
  panels_.resize(n_panels * kLanes * padded);
  for (std::size_t p = 0; p < n_panels; ++p) {
    const float *row[kLanes]; // a last panel repeats the last row
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      row[lane] = wide + std::min(p * kLanes + lane, n - 1) * padded;
    float *to = panels_.data() + p * kLanes * padded;
    for (std::size_t d = 0; d < padded; ++d)
      for (std::size_t lane = 0; lane < kLanes; ++lane) to[d * kLanes + lane] = row[lane][d];
  }
  scratch_.resize(ward_scratch(n_panels));
  return kernels().ward({panels_.data(), n, n_panels, padded}, wide, clusters, scratch_.data(),
                        first_.data());
}

} // namespace colbert_fast
