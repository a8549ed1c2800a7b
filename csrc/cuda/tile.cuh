// Float32 products of 32 rows with 64 columns, as MaxSim, k-means and centroid scores need them: a
// chain of fused multiply-adds in ascending dimension each, so the same bits as the CPU's.
#pragma once

#include "cuda/device.cuh"

namespace colbert_fast::cuda {

constexpr unsigned kTileRows = 32, kTileColumns = 64, kTileDims = 16, kTileThreads = 128;

// Rows are padded by four floats: reads of four stay aligned, and writes spread over the banks.
struct Tile {
  float rows[kTileDims][kTileRows + 4];
  float columns[kTileDims][kTileColumns + 4];
};

// A thread's four rows and four columns of the tile.
__device__ inline unsigned tile_row() { return threadIdx.x / 16 * 4; }
__device__ inline unsigned tile_column() { return threadIdx.x % 16 * 4; }

// products[i][j] of row tile_row() + i and column tile_column() + j, which are row(r, d) and
// column(c, d) in dimension d. All threads of the block take part.
template <class Row, class Column>
__device__ void dot_tile(Tile &tile, Row row, Column column, unsigned dim,
                         float (&products)[4][4]) {
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned j = 0; j < 4; ++j) products[i][j] = 0.0f;
  for (unsigned first = 0; first < dim; first += kTileDims) {
    const unsigned n = min_of(kTileDims, dim - first); // 8 or 16
    __syncthreads();                                   // the tile before has been read
    for (unsigned i = threadIdx.x; i < kTileRows * kTileDims; i += kTileThreads)
      if (const unsigned d = i % kTileDims; d < n)
        tile.rows[d][i / kTileDims] = row(i / kTileDims, first + d);
    for (unsigned i = threadIdx.x; i < kTileColumns * kTileDims; i += kTileThreads)
      if (const unsigned d = i % kTileDims; d < n)
        tile.columns[d][i / kTileDims] = column(i / kTileDims, first + d);
    __syncthreads();
#pragma unroll 8
    for (unsigned d = 0; d < n; ++d) {
      float x[4], y[4];
      for (unsigned i = 0; i < 4; ++i) x[i] = tile.rows[d][tile_row() + i];
      for (unsigned j = 0; j < 4; ++j) y[j] = tile.columns[d][tile_column() + j];
      for (unsigned i = 0; i < 4; ++i)
        for (unsigned j = 0; j < 4; ++j) products[i][j] = fmaf(y[j], x[i], products[i][j]);
    }
  }
}

// The largest value so far and where it came first. NaN never is.
struct Best {
  float value;
  std::int32_t index;
  __device__ void offer(float x, std::int32_t at) {
    if (x > value) value = x, index = at;
  }
  __device__ void merge(const Best &other) {
    if (other.value > value || (other.value == value && other.index < index)) *this = other;
  }
  // The best of `lanes` neighbouring lanes, in all of them; of equal ones the lowest index.
  __device__ void reduce(int lanes) {
    for (int half = lanes / 2; half > 0; half /= 2) {
      merge({__shfl_xor_sync(kAllLanes, value, half), __shfl_xor_sync(kAllLanes, index, half)});
    }
  }
};

} // namespace colbert_fast::cuda
