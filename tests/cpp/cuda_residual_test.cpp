// The GPU kernels of the residual codec on the emulator, bit by bit against the CPU's scalar table.
#include "cuda/residual.cu"

#include "cuda_cases.h"
#include "search/codec_tables.h"

using namespace colbert_fast;
using namespace testing;

namespace {

void pack(Random &random, Tally &tally, const Case &c) {
  const std::size_t width = c.dim * static_cast<std::size_t>(c.nbits) / 8;
  const auto buckets = random.integers<std::uint8_t>(c.n * c.dim, std::size_t{1} << c.nbits);
  Buffer<std::uint8_t> want(c.n * width);
  scalar().pack(buckets.data(), c.n, c.dim, c.nbits, want.data());
  both_orders([&] {
    Buffer<std::uint8_t> got(c.n * width), back(c.n * c.dim);
    cuda::pack(buckets.data(), c.n, c.dim, c.nbits, got.poison(0xff).data(), nullptr);
    tally.same(got, want, c.describe("cuda pack"));
    cuda::unpack(got.data(), c.n, c.dim, c.nbits, back.poison(0xff).data(), nullptr);
    tally.same(back, buckets, c.describe("cuda unpack"));
  });
}

void decompress(Random &random, Tally &tally, const Case &c) {
  const Codec codec(random, c);
  const Tokens tokens(random, c, codec.packed_dim());
  Buffer<float> want(c.n * c.dim), inverse(c.n);
  scalar().decompress(codec.view(), tokens.view(), c.n, want.data(), inverse.data());
  Buffer<std::uint8_t> want_norms(c.n);
  for (std::size_t i = 0; i < c.n; ++i) want_norms[i] = encode_inverse_norm(inverse[i]);
  both_orders([&] {
    Buffer<float> got(c.n * c.dim);
    Buffer<std::uint8_t> norms(c.n);
    cuda::decompress(codec.view(), c.centroids, tokens.view(), c.n, got.poison(0xff).data(),
                     nullptr);
    cuda::inverse_norms(codec.view(), c.centroids, tokens.view(), c.n, inverse_norm_edges().data(),
                        norms.poison(0xff).data(), nullptr);
    tally.same(got, want, c.describe("cuda decompress"));
    tally.same(norms, want_norms, c.describe("cuda inverse_norms"));
  });
}

// Kernels cannot refuse a code that is too large: they read the last centroid.
void codes_out_of_range(Random &random, Tally &tally) {
  Case c{4, 32, 1, 3, DType::f32, 2, false, true};
  const Codec codec(random, c);
  const auto packed = random.integers<std::uint8_t>(c.n * codec.packed_dim(), 256);
  const Buffer<std::int32_t> wild{2, 3, 1 << 30, -1}, last{2, 2, 2, 2};
  Buffer<float> got(c.n * c.dim), want(c.n * c.dim);
  const auto decode = [&](const Buffer<std::int32_t> &codes, Buffer<float> &out) {
    cuda::decompress(codec.view(), c.centroids,
                     {{codes.data(), true}, packed.data(), nullptr, nullptr}, c.n, out.data(),
                     nullptr);
  };
  decode(wild, got.poison(0xff));
  decode(last, want.poison(0xee));
  tally.same(got, want, "decompress: codes out of range");
}

} // namespace

int main() {
  Tally tally;
  Random random;
  sweep(random, 1, [&](const Case &c) { pack(random, tally, c); });
  sweep(random, 2, [&](const Case &c) { decompress(random, tally, c); });
  codes_out_of_range(random, tally);
  return tally.finish();
}
