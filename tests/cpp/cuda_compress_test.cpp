// The GPU encoders of the residual codecs on the emulator, bit by bit against the CPU's scalar
// table.
#include "cuda/compress.cu"

#include <cmath>

#include "cuda_cases.h"
#include "search/codec_tables.h"

using namespace colbert_fast;
using namespace testing;

namespace {

void compress(Random &random, Tally &tally, const Case &c) {
  const Rows points = random.rows(c.type, c.n * c.dim, c.whole);
  const Buffer<float> centroids = random.floats(c.centroids * c.dim, c.whole);
  const auto codes = random.integers<std::int32_t>(c.n, c.centroids);
  Buffer<float> cutoffs = random.floats((std::size_t{1} << c.nbits) - 1, c.whole);
  std::sort(cutoffs.data(), cutoffs.data() + cutoffs.size());
  Buffer<std::uint8_t> want(c.n * c.dim * static_cast<std::size_t>(c.nbits) / 8);
  scalar().compress(points.data(), c.type, c.n, c.dim, centroids.data(), codes.data(),
                    cutoffs.data(), c.nbits, want.poison(0xee).data());
  both_orders([&] {
    Buffer<std::uint8_t> got(want.size());
    cuda::compress(points.data(), c.type, c.n, c.dim, centroids.data(), c.centroids, codes.data(),
                   cutoffs.data(), c.nbits, got.poison(0xff).data(), nullptr);
    tally.same(got, want, c.describe("cuda compress"));
  });
}

void compress_trellis(Random &random, Tally &tally, const Case &c) {
  const Codec codec(random, c);
  const Decoder decoder = codec.view();
  const Rows points = random.rows(c.type, c.n * c.dim, c.whole);
  const auto codes = random.integers<std::int32_t>(c.n, c.centroids);
  const std::size_t bytes = c.dim * (c.type == DType::f32 ? 4 : 2);
  Buffer<std::uint8_t> want(c.n * codec.packed_dim()), want_scales(c.n);
  Buffer<float> scratch(trellis_scratch(c.dim)), scales(kTrellisBlock);
  for (std::size_t i = 0; i < c.n; i += kTrellisBlock) {
    const std::size_t n = std::min(kTrellisBlock, c.n - i);
    scalar().compress_trellis(static_cast<const char *>(points.data()) + i * bytes, c.type, n,
                              codes.data() + i, decoder, scratch.poison(0xff).data(),
                              want.data() + i * codec.packed_dim(), scales.data());
    for (std::size_t j = 0; j < n; ++j) want_scales[i + j] = encode_scale(scales[j]);
  }
  both_orders([&] {
    Buffer<std::uint8_t> got(want.size()), got_scales(c.n);
    cuda::compress_trellis(points.data(), c.type, c.n, codes.data(), decoder, c.centroids,
                           scale_edges().data(), got.poison(0xff).data(),
                           got_scales.poison(0xff).data(), nullptr);
    tally.same(got, want, c.describe("cuda compress_trellis"));
    tally.same(got_scales, want_scales, c.describe("cuda compress_trellis scales"));
  });
}

// The bytes of the kernels are those of the encoders, at the edges too.
void edges(Random &random, Tally &tally) {
  const std::pair<const ByteEdges &, std::uint8_t (*)(float)> tables[] = {
      {scale_edges(), encode_scale}, {inverse_norm_edges(), encode_inverse_norm}};
  for (const auto &[table, encode] : tables) {
    const cuda::Edges on_device = cuda::edges_from(table.data());
    const auto check = [&](float x) {
      tally.check(on_device.byte_of(x) == encode(x), "the byte of " + std::to_string(x));
    };
    for (const float x : {0.0f, -1.0f, std::nanf(""), HUGE_VALF, 1e-30f, 1e30f}) check(x);
    for (std::size_t b = 1; b < table.size(); ++b) {
      check(table[b]);
      check(std::nextafter(table[b], 0.0f));
    }
    for (int i = 0; i < 2000; ++i)
      check(std::exp2(static_cast<float>(random.below(1 << 16)) / 4096.0f - 8.0f));
  }
}

} // namespace

int main() {
  Tally tally;
  Random random;
  sweep(random, 1, [&](const Case &c) { compress(random, tally, c); });
  sweep(random, 1, [&](const Case &c) { compress_trellis(random, tally, c); });
  edges(random, tally);
  return tally.finish();
}
