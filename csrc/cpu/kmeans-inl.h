// k-means: assignment is MaxSim's tile with points in the lanes and centroids as rows, so the
// points x centroids matrix never exists; a block of centroids stays in L2 while the panels pass.
#pragma once

namespace {

using namespace colbert_fast;

void assign(const void *points, DType type, std::size_t n, std::size_t dim, const float *centroids,
            std::size_t n_centroids, float *scratch, std::int32_t *codes, float *best) {
  constexpr std::size_t kCentroidBlock = 256;
  alignas(64) float best_of[kAssignBlock];
  alignas(64) std::int32_t code_of[kAssignBlock];
  const std::size_t n_panels = n_panels_of(n);
  memset(scratch, 0, n_panels * kLanes * dim * sizeof(float));
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t d = 0; d < dim; d += kLanes) {
      float values[kLanes];
      store(values, load_row(points, type, i, d, dim));
      float *to = scratch + (i / kLanes * dim + d) * kLanes + i % kLanes;
      for (std::size_t j = 0; j < min_of(kLanes, dim - d); ++j) to[j * kLanes] = values[j];
    }
  for (std::size_t i = 0; i < n_panels * kLanes; ++i)
    best_of[i] = kMinusInf, code_of[i] = 0; // 0, lest a NaN point index below the table

  for (std::size_t c = 0; c < n_centroids; c += kCentroidBlock) {
    FloatRows rows{centroids + c * dim, dim};
    for_panels(n_panels, [&](std::size_t p, auto width) {
      constexpr std::size_t P = decltype(width)::value;
      F32x16 top[P];
      I32x16 arg[P];
      for (std::size_t j = 0; j < P; ++j) {
        top[j] = load(best_of + (p + j) * kLanes);
        arg[j] = load(code_of + (p + j) * kLanes);
      }
      max_dot<true, P>(rows, min_of(kCentroidBlock, n_centroids - c), scratch + p * dim * kLanes,
                       dim, c, top, arg);
      for (std::size_t j = 0; j < P; ++j) {
        store(best_of + (p + j) * kLanes, top[j]);
        store(code_of + (p + j) * kLanes, arg[j]);
      }
    });
  }
  memcpy(best, best_of, n * sizeof *best);
  memcpy(codes, code_of, n * sizeof *codes);
}

void sum_rows(const void *points, DType type, std::size_t dim, const std::int64_t *which,
              std::size_t n, float *out) {
  for (std::size_t d = 0; d < dim; d += kLanes) {
    F32x16 total = set1(0.0f);
    for (std::size_t i = 0; i < n; ++i)
      total = add(total, load_row(points, type, static_cast<std::size_t>(which[i]), d, dim));
    float values[kLanes];
    store(values, total);
    memcpy(out + d, values, min_of(kLanes, dim - d) * sizeof(float));
  }
}

} // namespace
