// Scores by int8 on the emulated GPU, from the query to the documents, bit by bit against what the
// CPU's search computes.
#include "cuda/residual_maxsim.cu"

#include "cuda_cases.h"
#include "search/byte_scores.h"
#include "search/codec_tables.h"
#include "search/query_panels.h"

using namespace colbert_fast;
using namespace testing;

namespace {

constexpr std::size_t kLengths[] = {0, 1, 7, 8, 9, 17, 70};

// A packed query's memory.
struct PackedQuery {
  PackedQuery(std::size_t nq, std::size_t dim)
      : levels(cuda::query_words(nq, dim)), start((nq + 31) / 32 * 32), norms(start.size()),
        units(start.size()) {
    levels.poison(0xff), start.poison(0xff), norms.poison(0xff), units.poison(0xff);
  }
  cuda::QueryBytes view() { return {levels.data(), start.data(), norms.data(), units.data()}; }
  DeviceBuffer<std::uint32_t> levels;
  DeviceBuffer<std::int32_t> start;
  DeviceBuffer<float> norms, units;
};

// The CPU's side of a comparison.
struct Expected {
  Expected(const Buffer<float> &queries, const Buffer<float> &centroids, std::size_t nq,
           const CodecTables &codec)
      : decoder(codec.decoder()) {
    const std::size_t dim = decoder.dim;
    query.pack(queries.data(), nq, dim);
    std::vector<std::int32_t> cells;
    table.compute(ByteCentroids(centroids.data(), centroids.size() / dim, dim), query, 0, cells);
    levels.pack(query, codec);
    ratio = table.ratio(query, codec.step());
  }
  float score(const Residuals &tokens, std::size_t n) const {
    if (n == 0) return -std::numeric_limits<float>::infinity();
    float scratch[kLanes], out;
    kernels().residual_maxsim_i8(levels.view(), ratio, table.table(), decoder, &tokens, nullptr, n,
                                 1, scratch, &out);
    return out;
  }

  Decoder decoder;
  QueryPanels query;
  ByteScores table;
  colbert_fast::QueryI8 levels;
  const float *ratio;
};

void score(Random &random, Tally &tally, std::size_t nq, std::size_t dim, int nbits) {
  const std::string what = "query " + std::to_string(nq) + ", dim " + std::to_string(dim) +
                           ", nbits " + std::to_string(nbits);
  const std::size_t k = 1 + random.below(40), n_docs = 6;
  const Buffer<float> queries = random.floats(nq * dim), centroids = random.floats(k * dim);
  const bool by_window = random.below(2) == 0;
  const Buffer<float> weights =
      random.floats(by_window ? windows_of(nbits) : std::size_t{1} << nbits);
  const CodecTables codec(centroids.data(), weights.data(), weights.size(), nbits, dim);
  const Decoder decoder = codec.decoder();

  Buffer<std::int32_t> lengths(n_docs);
  Buffer<std::int64_t> first(n_docs);
  std::size_t n = 0;
  for (std::size_t i = 0; i < n_docs; ++i, n += static_cast<std::size_t>(lengths[i - 1])) {
    lengths[i] = static_cast<std::int32_t>(pick(random, kLengths));
    first[i] = static_cast<std::int64_t>(n);
  }
  const Case c{n, dim, nq, k, DType::f32, nbits, false, random.below(2) == 0};
  const CodeBuffer codes(random, c);
  const DeviceBuffer<std::uint8_t> packed(
      random.integers<std::uint8_t>(n * decoder.packed_dim, 256));
  const auto scales = random.integers<std::uint8_t>(n, 256);
  const auto norms = random.integers<std::uint8_t>(n, 256);
  const Residuals tokens{codes.view(), packed.data(), random.below(3) > 0 ? scales.data() : nullptr,
                         random.below(3) > 0 ? norms.data() : nullptr};
  const Expected want(queries, centroids, nq, codec);
  const std::size_t stride = want.table.table().stride;
  Buffer<std::uint8_t> want_table(k * stride);
  Buffer<float> want_step(stride), want_scores(n_docs);
  std::copy_n(want.table.table().rows, k * stride, want_table.data());
  std::copy_n(want.table.table().step, stride, want_step.data());
  for (std::size_t i = 0; i < n_docs; ++i)
    want_scores[i] = want.score(residuals_from(tokens, decoder, static_cast<std::size_t>(first[i])),
                                static_cast<std::size_t>(lengths[i]));

  both_orders([&] {
    DeviceBuffer<std::uint8_t> rows(k * dim), table(k * stride);
    DeviceBuffer<float> scale(k), longest(1), step(stride);
    PackedQuery for_centroids(nq, dim), for_levels(nq, dim);
    rows.poison(0xff), table.poison(0xff), scale.poison(0xff), step.poison(0xff);
    longest[0] = 0.0f;
    cuda::quantise_centroids(centroids.data(), k, dim, rows.data(), scale.data(), longest.data(),
                             nullptr);
    cuda::pack_query(queries.data(), nq, dim, 8, kScreenZero, for_centroids.view(), nullptr);
    cuda::byte_scores(for_centroids.view(), nq, dim, rows.data(), scale.data(), longest.data(), k,
                      table.data(), step.data(), nullptr);
    for (std::size_t i = 0; i < table.size(); ++i) // past the query's panels the CPU's are not set
      if (i % stride >= want.query.lanes()) want_table[i] = table[i];
    tally.same(table, want_table, "cuda byte_scores table, " + what);
    tally.same(step, want_step, "cuda byte_scores step, " + what);

    cuda::pack_query(queries.data(), nq, dim, nbits,
                     codec.step() > 0.0f ? -codec.low() / codec.step() : 0.0f, for_levels.view(),
                     nullptr);
    Buffer<float> scores(n_docs);
    cuda::residual_maxsim_i8(for_levels.view(), 1, nq, table.data(), step.data(), decoder,
                             codec.step(), k, cuda::stored(tokens),
                             {first.data(), lengths.data(), n_docs, n}, {nullptr, nullptr, n_docs},
                             scores.poison(0xff).data(), nullptr);
    tally.same(scores, want_scores, "cuda residual_maxsim_i8, " + what);
  });
}

} // namespace

int main() {
  constexpr std::size_t kQueries[] = {1, 15, 17, 32, 33, 65};
  constexpr std::size_t kSlabs[] = {8, 24, 32, 64, 96, 120, 128, 128, 136, 160, 384};
  Tally tally;
  Random random;
  for (const std::size_t dim : kSlabs)
    for (const int nbits : {1, 2, 3, 4}) score(random, tally, pick(random, kQueries), dim, nbits);
  return tally.finish();
}
