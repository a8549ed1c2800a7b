// The best centroids of each query token from a table of byte scores: their 256 values are counted,
// which tells where to cut, and then those above the cut are collected. Blocks share the centroids
// in chunks, each for a tile of 32 tokens.
#include "cuda/bytes.cuh"
#include "cuda/stages.h"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / kWarp, kBins = 256;
constexpr unsigned kWords = kQueryTile / 4;        // of a tile in a row of the table
constexpr unsigned kStaged = 256;                  // centroids in shared memory at once
constexpr std::size_t kBlocks = 256;               // enough of them
constexpr std::size_t kMaxChunks = 64;             // whose counts a warp adds up
constexpr unsigned kPerWarp = kQueryTile / kWarps; // tokens

std::size_t chunks_of(std::size_t n_centroids, std::size_t n_tokens) {
  const std::size_t chunks = min_of(ceil_div(kBlocks * kQueryTile, n_tokens), kMaxChunks);
  return min_of(chunks, ceil_div(n_centroids, kStaged));
}

// Centroids [first, last) of a block's chunk.
struct Chunk {
  std::size_t first, last;
  __device__ explicit Chunk(std::size_t n) {
    const std::size_t size = (n + gridDim.x - 1) / gridDim.x;
    first = min_of(blockIdx.x * size, n), last = min_of(first + size, n);
  }
};

struct CountShared {
  unsigned counts[kQueryTile][kBins];
};

// counts[chunk][token][byte]
__global__ void __launch_bounds__(kThreads)
    count_bytes_kernel(const std::uint8_t *table, std::size_t n, unsigned *counts) {
  auto &shared = shared_memory<CountShared>();
  const std::size_t n_tokens = std::size_t{gridDim.y} * kQueryTile;
  const unsigned tile = blockIdx.y * kQueryTile, word = threadIdx.x % kWords;
  const Chunk chunk(n);
  unsigned *bins = &shared.counts[0][0];
  for (unsigned i = threadIdx.x; i < kQueryTile * kBins; i += kThreads) bins[i] = 0;
  __syncthreads();
  for (std::size_t c = chunk.first + threadIdx.x / kWords; c < chunk.last; c += kThreads / kWords) {
    const std::uint32_t bytes =
        *reinterpret_cast<const std::uint32_t *>(table + c * n_tokens + tile + 4 * word);
    for (unsigned j = 0; j < 4; ++j)
      atomicAdd(&shared.counts[4 * word + j][bytes >> 8 * j & 255u], 1u);
  }
  __syncthreads();
  unsigned *out = counts + (blockIdx.x * n_tokens + tile) * kBins;
  for (unsigned i = threadIdx.x; i < kQueryTile * kBins; i += kThreads) out[i] = bins[i];
}

// A warp finds where to cut a token's bytes, its lanes each eight of the bins from the largest on.
__global__ void __launch_bounds__(kThreads)
    cut_kernel(const unsigned *counts, const float *step, unsigned chunks, std::size_t n_tokens,
               unsigned nprobe, Cut *cuts, std::int32_t *cells) {
  const unsigned lane = threadIdx.x % kWarp;
  const std::size_t token = std::size_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (token >= n_tokens) return;
  for (unsigned j = lane; j < nprobe; j += kWarp) cells[token * nprobe + j] = -1;
  constexpr unsigned kRun = kBins / kWarp;
  unsigned run[kRun] = {}, own = 0;
#pragma unroll 4
  for (unsigned chunk = 0; chunk < chunks; ++chunk) {
    const unsigned *bins = counts + (chunk * n_tokens + token) * kBins + kBins - (lane + 1) * kRun;
    for (unsigned j = 0; j < kRun; ++j) run[j] += bins[kRun - 1 - j];
  }
  for (unsigned j = 0; j < kRun; ++j) own += run[j];
  const unsigned upto = sum_up_to_lane(own);
  unsigned above = upto - own; // in front of the lane's bins
  if (upto < nprobe || above >= nprobe) return;
  unsigned byte = kBins - 1 - lane * kRun;
  own = 0; // the first bin that reaches nprobe
#pragma unroll
  for (unsigned j = 0; j < kRun; ++j)
    if (above + own < nprobe) above += own, own = run[j], byte = kBins - 1 - lane * kRun - j;
  const bool empty = !(step[token] > 0.0f);
  cuts[token] = {empty ? kBins : byte, empty ? 0 : nprobe - above, 0};
}

struct CellShared {
  std::uint32_t rows[kStaged][kWords + 1]; // an odd number of words: columns meet all banks
};

// A warp collects the cells of four tokens.
__global__ void __launch_bounds__(kThreads)
    cells_kernel(const std::uint8_t *table, std::size_t n, const unsigned *counts, unsigned nprobe,
                 Cut *cuts, std::int32_t *cells) {
  auto &shared = shared_memory<CellShared>();
  const std::size_t n_tokens = std::size_t{gridDim.y} * kQueryTile;
  const std::size_t tile = std::size_t{blockIdx.y} * kQueryTile;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Chunk chunk(n);
  Cut cut[kPerWarp];
  unsigned equal[kPerWarp]; // that lie in front
#pragma unroll
  for (unsigned j = 0; j < kPerWarp; ++j) {
    const std::size_t token = tile + warp * kPerWarp + j;
    cut[j] = {cuts[token].byte, cuts[token].equal, 0}, equal[j] = 0;
    for (std::size_t c = lane; c < (cut[j].byte < kBins ? blockIdx.x : 0); c += kWarp)
      equal[j] += counts[(c * n_tokens + token) * kBins + cut[j].byte];
    for (int half = 16; half > 0; half /= 2) equal[j] += __shfl_xor_sync(kAllLanes, equal[j], half);
  }
  for (std::size_t first = chunk.first; first < chunk.last; first += kStaged) {
    const auto staged = static_cast<unsigned>(min_of<std::size_t>(kStaged, chunk.last - first));
    __syncthreads();
    for (unsigned i = threadIdx.x; i < staged * kWords; i += kThreads)
      shared.rows[i / kWords][i % kWords] = *reinterpret_cast<const std::uint32_t *>(
          table + (first + i / kWords) * n_tokens + tile + i % kWords * 4);
    __syncthreads();
#pragma unroll
    for (unsigned j = 0; j < kPerWarp; ++j)
      for (unsigned c = lane; c - lane < staged; c += kWarp) {
        const unsigned q = warp * kPerWarp + j;
        const unsigned byte = c < staged ? shared.rows[c][q / 4] >> q % 4 * 8 & 255u : 0;
        const bool ties = c < staged && byte == cut[j].byte;
        const unsigned tied = __ballot_sync(kAllLanes, ties);
        const unsigned rank = equal[j] + static_cast<unsigned>(__popc(tied & ((1u << lane) - 1)));
        equal[j] += static_cast<unsigned>(__popc(tied));
        if ((c < staged && byte > cut[j].byte) || (ties && rank < cut[j].equal))
          cells[(tile + q) * nprobe + atomicAdd(&cuts[tile + q].found, 1u)] =
              static_cast<std::int32_t>(first + c);
      }
  }
}

} // namespace

std::size_t probe_counts(std::size_t n_centroids, std::size_t n_tokens) {
  return chunks_of(n_centroids, n_tokens) * n_tokens * kBins;
}

void probe(const std::uint8_t *table, const float *step, std::size_t n_centroids,
           std::size_t n_tokens, std::size_t nprobe, std::uint32_t *counts, Cut *cuts,
           std::int32_t *cells, Stream stream) {
  const std::size_t chunks = chunks_of(n_centroids, n_tokens), tiles = n_tokens / kQueryTile;
  const auto wanted = static_cast<unsigned>(nprobe);
  launch(count_bytes_kernel, chunks, tiles, kThreads, sizeof(CountShared), stream, table,
         n_centroids, counts);
  launch(cut_kernel, ceil_div(n_tokens, kWarps), 1, kThreads, 0, stream, counts, step,
         static_cast<unsigned>(chunks), n_tokens, wanted, cuts, cells);
  launch(cells_kernel, chunks, tiles, kThreads, sizeof(CellShared), stream, table, n_centroids,
         counts, wanted, cuts, cells);
}

} // namespace colbert_fast::cuda
