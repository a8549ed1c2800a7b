// Which documents a search scores: bitmaps that the inverted lists set, turned into lists in
// ascending order.
#include "cuda/documents.cuh"
#include "cuda/stages.h"

namespace colbert_fast::cuda {
namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / kWarp;
constexpr unsigned kRun = 8; // gaps that a lane reads in a row
constexpr std::size_t kChunkWords = 1024;

__global__ void __launch_bounds__(kThreads)
    fill_kernel(std::uint32_t *bits, std::size_t n_words, std::uint32_t value) {
  const std::size_t step = std::size_t{gridDim.x} * kThreads;
  for (std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x; i < n_words; i += step)
    bits[i] = value;
}

// Whether it was set before.
__device__ bool set_bit(std::uint32_t *bits, std::size_t i) {
  const std::uint32_t bit = std::uint32_t{1} << i % 32;
  return (atomicOr(bits + i / 32, bit) & bit) != 0;
}

// The gaps of a list (search/lists.h): `width` bits each from bit `start` of the data on. Reads
// whole words, the last of which may lie in the padding.
struct Gaps {
  const std::uint32_t *words;
  std::size_t start, count;
  unsigned width;

  __device__ std::uint32_t operator[](std::size_t i) const {
    if (i >= count || width == 0) return 0;
    const std::size_t bit = start + i * width;
    const std::uint32_t *at = words + bit / 32;
    return __funnelshift_r(at[0], at[1], static_cast<std::uint32_t>(bit % 32)) &
           (~0u >> (32 - width));
  }
};

// The header of list c; false if the list is not as long as it says.
__device__ bool open_list(const Lists &lists, std::size_t c, Gaps &gaps) {
  const std::int64_t begin = lists.offsets[c], n_bytes = lists.offsets[c + 1] - begin;
  gaps = {reinterpret_cast<const std::uint32_t *>(lists.data),
          8 * (static_cast<std::size_t>(begin) + 1), 0, 0};
  if (lists.counts[c] == 0) return true;
  if (lists.counts[c] < 0 || begin < 0 || n_bytes < 1) return false;
  const auto count = static_cast<std::size_t>(lists.counts[c]);
  gaps.width = lists.data[begin];
  if (gaps.width > 32 || static_cast<std::size_t>(n_bytes) - 1 != (count * gaps.width + 7) / 8)
    return false;
  gaps.count = count;
  return true;
}

// A warp sets the documents of a list: gaps to ids by a scan over the lanes' sums. False if an id
// is not below n_docs.
__device__ bool mark_list(const Gaps &gaps, std::size_t n_docs, std::uint32_t *seen) {
  const unsigned lane = threadIdx.x % kWarp;
  unsigned long long next = 0; // the lowest id that may follow
  bool whole = true;
  for (std::size_t first = 0; first < gaps.count && next < n_docs; first += kWarp * kRun) {
    const std::size_t begin = first + lane * kRun;
    std::uint32_t run[kRun];
    unsigned long long sum = 0;
#pragma unroll
    for (unsigned j = 0; j < kRun; ++j)
      run[j] = gaps[begin + j], sum += begin + j < gaps.count ? run[j] + 1ull : 0;
    const unsigned long long upto = sum_up_to_lane(sum);
    unsigned long long id = next + upto - sum;
#pragma unroll
    for (unsigned j = 0; j < kRun; ++j) {
      id += run[j];
      if (begin + j < gaps.count && id < n_docs) set_bit(seen, static_cast<std::size_t>(id));
      ++id;
    }
    next += __shfl_sync(kAllLanes, upto, kWarp - 1);
    whole = next <= n_docs && (next < n_docs || first + kWarp * kRun >= gaps.count);
  }
  return whole;
}

// A warp for each cell of each query; of several equal cells one does it, whichever comes first.
__global__ void __launch_bounds__(kThreads)
    mark_lists_kernel(Lists lists, std::size_t n_docs, const std::int32_t *cells, unsigned n_cells,
                      std::uint32_t *probed, std::uint32_t *seen, std::int32_t *damaged) {
  const unsigned at = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  cells += std::size_t{blockIdx.y} * n_cells;
  if (at >= n_cells) return;
  const std::int32_t cell = cells[at];
  if (cell < 0 || static_cast<std::size_t>(cell) >= lists.n_lists) return;
  const auto c = static_cast<std::size_t>(cell);
  const bool again = lane == 0 && set_bit(probed + blockIdx.y * words_of(lists.n_lists), c);
  if (__ballot_sync(kAllLanes, again) != 0) return;
  Gaps gaps;
  const bool opened = open_list(lists, c, gaps);
  const bool whole = mark_list(gaps, n_docs, seen + blockIdx.y * words_of(n_docs));
  if (lane == 0 && !(opened && whole)) atomicMax(damaged, cell + 1);
}

__global__ void __launch_bounds__(kThreads)
    mark_given_kernel(SearchSelection selection, std::size_t n_docs, std::uint32_t *seen) {
  const std::int64_t end = selection.given_starts[blockIdx.y + 1];
  seen += blockIdx.y * words_of(n_docs);
  for (std::int64_t i = selection.given_starts[blockIdx.y] + blockIdx.x * kThreads + threadIdx.x;
       i < end; i += gridDim.x * kThreads) {
    const auto document = static_cast<std::size_t>(selection.given[i]);
    if (document < n_docs) set_bit(seen, document);
  }
}

// The sum over a block's threads, in all of them; `sums` has room for each warp's.
__device__ unsigned sum_of_block(unsigned x, unsigned *sums) {
  for (int half = 16; half > 0; half /= 2) x += __shfl_xor_sync(kAllLanes, x, half);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  unsigned total = 0;
  for (unsigned w = 0; w < kWarps; ++w) total += sums[w];
  return total;
}

// The sum over the threads before this one.
__device__ unsigned sum_before(unsigned x, unsigned *sums) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned upto = sum_up_to_lane(x);
  __syncthreads();
  if (lane == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  for (unsigned w = 0; w < warp; ++w) upto += sums[w];
  return upto - x;
}

// A chunk of a query's bitmap, less what cannot be found; counts[query][chunk] is what is left.
__global__ void __launch_bounds__(kThreads)
    count_hits_kernel(std::uint32_t *seen, const std::int32_t *lengths, std::size_t n_docs,
                      const std::uint8_t *allowed, unsigned *counts) {
  auto *sums = &shared_memory<unsigned>(); // kWarps
  const std::size_t n_words = words_of(n_docs), first = blockIdx.x * kChunkWords;
  seen += blockIdx.y * n_words;
  unsigned count = 0;
  for (std::size_t w = first + threadIdx.x; w < min_of(first + kChunkWords, n_words);
       w += kThreads) {
    std::uint32_t word = seen[w];
    for (std::uint32_t bits = word; bits != 0; bits &= bits - 1) {
      const std::size_t document = w * 32 + static_cast<unsigned>(__ffs(bits)) - 1;
      if (document >= n_docs || lengths[document] <= 0 ||
          (allowed != nullptr && allowed[document] == 0))
        word &= ~(bits & (0u - bits));
    }
    seen[w] = word;
    count += static_cast<unsigned>(__popc(word));
  }
  count = sum_of_block(count, sums);
  if (threadIdx.x == 0) counts[blockIdx.y * gridDim.x + blockIdx.x] = count;
}

// The documents of a chunk, behind those of the chunks before it.
__global__ void __launch_bounds__(kThreads)
    list_hits_kernel(const std::uint32_t *seen, std::size_t n_docs, const unsigned *counts,
                     Hits hits) {
  auto *sums = &shared_memory<unsigned>(); // kWarps
  const std::size_t n_words = words_of(n_docs), first = blockIdx.x * kChunkWords;
  seen += blockIdx.y * n_words, counts += blockIdx.y * gridDim.x;
  unsigned before = 0;
  for (unsigned i = threadIdx.x; i < blockIdx.x; i += kThreads) before += counts[i];
  std::size_t end = sum_of_block(before, sums);
  std::int32_t *out = hits.documents + blockIdx.y * hits.stride;
  for (std::size_t round = first; round < min_of(first + kChunkWords, n_words); round += kThreads) {
    const std::size_t w = round + threadIdx.x;
    const std::uint32_t word = w < n_words ? seen[w] : 0;
    const auto own = static_cast<unsigned>(__popc(word));
    std::size_t at = end + sum_before(own, sums);
    for (std::uint32_t bits = word; bits != 0; bits &= bits - 1)
      out[at++] = static_cast<std::int32_t>(w * 32 + static_cast<unsigned>(__ffs(bits)) - 1);
    end += sum_of_block(own, sums);
  }
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0)
    hits.counts[blockIdx.y] = static_cast<std::int32_t>(end);
}

} // namespace

void fill_bitmaps(std::uint32_t *bits, std::size_t n_words, bool value, Stream stream) {
  launch(fill_kernel, min_of(ceil_div(n_words, kThreads), kFullGrid), 1, kThreads, 0, stream, bits,
         n_words, value ? ~0u : 0u);
}

void mark_lists(const Lists &lists, std::size_t n_docs, const std::int32_t *cells,
                std::size_t n_queries, std::size_t cells_per_query, std::uint32_t *probed,
                std::uint32_t *seen, std::int32_t *damaged, Stream stream) {
  launch(mark_lists_kernel, ceil_div(cells_per_query, kWarps), n_queries, kThreads, 0, stream,
         lists, n_docs, cells, static_cast<unsigned>(cells_per_query), probed, seen, damaged);
}

void mark_given(const SearchSelection &selection, std::size_t n_docs, std::size_t n_queries,
                std::uint32_t *seen, Stream stream) {
  launch(mark_given_kernel, 16, n_queries, kThreads, 0, stream, selection, n_docs, seen);
}

std::size_t hit_chunks(std::size_t n_docs) { return ceil_div(words_of(n_docs), kChunkWords); }

void collect_hits(std::uint32_t *seen, const Documents &documents, const std::uint8_t *allowed,
                  std::size_t n_queries, std::uint32_t *counts, const Hits &hits, Stream stream) {
  const std::size_t n = documents.count, shared = kWarps * sizeof(unsigned);
  launch(count_hits_kernel, hit_chunks(n), n_queries, kThreads, shared, stream, seen,
         documents.lengths, n, allowed, counts);
  launch(list_hits_kernel, hit_chunks(n), n_queries, kThreads, shared, stream, seen, n, counts,
         hits);
}

} // namespace colbert_fast::cuda
