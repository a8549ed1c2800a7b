// Values worked out by hand, on every table: what the kernels mean, and the bit order that indexes
// on disk depend on.
#include <cmath>
#include <limits>
#include <stdexcept>

#include "dispatch.h"
#include "testing.h"

using namespace colbert_fast;
using namespace testing;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void maxsim(const Kernels &k, Tally &tally) {
  // Two query tokens against two document tokens, in eight dimensions of which two are used.
  const Query query({1, 2, 0, 0, 0, 0, 0, 0, /**/ 3, -1, 0, 0, 0, 0, 0, 0}, 2, 8);
  const Buffer<float> rows{2, 0, 0, 0, 0, 0, 0, 0, /**/ 0, 5, 0, 0, 0, 0, 0, 0};
  Buffer<std::int32_t> argmax(query.lanes());
  const float score = k.maxsim(query.view(), rows.data(), DType::f32, 2, argmax.data());
  tally.check(score == 16.0f, "maxsim: max(2, 10) + max(6, -5)");
  tally.check(argmax[0] == 1 && argmax[1] == 0, "maxsim: the second row, then the first");
  const float none = k.maxsim(query.view(), rows.data(), DType::f32, 0, argmax.data());
  tally.check(none == -kInfinity && argmax[0] == -1, "maxsim: an empty document");
}

void kmeans(const Kernels &k, Tally &tally) {
  const Buffer<float> points{1, 0, 0, 0, 0, 0, 0, 0, /**/ 0, 0, 0, 0, 0, 0, 0, 2};
  const Buffer<float> centroids{0,      1, 0, 0, 0, 0, 0, 0, /**/ 3, 0, 0, 0, 0, 0, 0, 1,
                                /**/ 3, 0, 0, 0, 0, 0, 0, 1};
  Buffer<float> scratch(kPointBlock * 8), best(2), sum(8);
  Buffer<std::int32_t> codes(2);
  k.assign(points.data(), DType::f32, 2, 8, centroids.data(), 3, scratch.data(), codes.data(),
           best.data());
  tally.same(codes, {1, 1}, "assign: ties go to the lowest centroid");
  tally.same(best, {3, 2}, "assign: dot products");
  const Buffer<std::int64_t> which{1, 0, 1};
  k.sum_rows(points.data(), DType::f32, 8, which.data(), 3, sum.data());
  tally.same(sum, {1, 0, 0, 0, 0, 0, 0, 4}, "sum_rows: a row may come twice");
}

void candidates(const Kernels &k, Tally &tally) {
  const Query query({1, 0, 0, 0, 0, 0, 0, 0}, 1, 8);
  const Buffer<float> rows{5,      0, 0, 0, 0, 0, 0, 0, /**/ 7, 0, 0, 0, 0, 0, 0, 0,
                           /**/ 5, 0, 0, 0, 0, 0, 0, 0};
  Buffer<float> scores(3 * kLanes), values(2 * kLanes);
  k.scores(query.view(), rows.data(), 3, scores.data());
  tally.check(scores[0] == 5 && scores[kLanes] == 7 && scores[1] == 0,
              "scores: a row per centroid");
  Buffer<std::int32_t> ids(2 * kLanes);
  for (std::size_t i = 0; i < 2 * kLanes; ++i) values[i] = -kInfinity, ids[i] = -1;
  k.probe(scores.data(), 10, 3, kLanes, 2, values.data(), ids.data());
  tally.check(values[0] == 7 && ids[0] == 11 && values[1] == 5 && ids[1] == 10,
              "probe: descending, ties to the lowest");
  const Buffer<std::uint16_t> codes{0, 1};
  const Buffer<std::uint8_t> keep{1, 0, 1};
  Buffer<float> init(kLanes);
  for (std::size_t i = 0; i < kLanes; ++i) init[i] = 0;
  const Codes view{codes.data(), false};
  tally.check(k.approximate(scores.data(), kLanes, view, 2, nullptr, init.data()) == 7,
              "approximate: the best code");
  tally.check(k.approximate(scores.data(), kLanes, view, 2, keep.data(), init.data()) == 5,
              "approximate: the best code that counts");
}

void pack(const Kernels &k, Tally &tally) {
  const Buffer<float> zero{0, 0, 0, 0, 0, 0, 0, 0};
  const Buffer<std::int32_t> codes{0};
  const auto packed = [&](const Buffer<float> &point, const Buffer<float> &cutoffs, int nbits) {
    Buffer<std::uint8_t> out(static_cast<std::size_t>(nbits));
    k.compress(point.data(), DType::f32, 1, 8, zero.data(), codes.data(), cutoffs.data(), nbits,
               out.data());
    return out;
  };
  const Buffer<float> three{0, 1, 2}, seven{0, 1, 2, 3, 4, 5, 6};
  tally.same(packed({.5f, -1, 9, 1.5f, .5f, -1, 9, 1.5f}, three, 2), {0x8d, 0x8d},
             "compress: 2 bits, [1, 0, 3, 2] -> 10 00 11 01");
  tally.same(packed({0, 1, 2, 3, 0, 1, 2, 3}, three, 2), {0x27, 0x27},
             "compress: a value equal to a cutoff is in the lower bucket, [0, 1, 2, 3]");
  tally.same(packed({1, -1, -1, 1, 1, 1, -1, -1}, {0}, 1), {0x9c}, "compress: 1 bit");
  tally.same(
      packed({-1, .5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f}, seven, 3), {0x27, 0x27, 0x55},
      "compress: 3 bits, [0, 1, 2, 3, 4, 5, 6, 7]: two planes of low bits, one of high bits");
}

void residual(const Kernels &k, Tally &tally) {
  const Buffer<float> centroid{0, 0, 0, 0, 0, 0, 0, 0}, norms(256);
  const Buffer<std::uint8_t> levels(16);
  const Buffer<std::uint16_t> codes{0};
  const auto decompress = [&](const Buffer<float> &weights, const Buffer<std::uint8_t> &packed,
                              Buffer<float> &out) {
    const int nbits = static_cast<int>(packed.size());
    const Buffer<float> by_byte = weights_by_byte(weights, nbits);
    const Decoder decoder{centroid.data(), by_byte.data(), levels.data(), norms.data(), nbits, 8,
                          packed.size()};
    Buffer<float> inverse(1);
    k.decompress(decoder, {codes.data(), false}, packed.data(), 1, out.data(), inverse.data());
    return inverse[0];
  };
  const auto close = [](const Buffer<float> &out, const Buffer<float> &values, float norm) {
    for (std::size_t d = 0; d < 8; ++d)
      if (!(std::abs(out[d] - values[d] / norm) < 1e-6f)) return false;
    return true;
  };
  Buffer<float> out(8);
  const float inverse = decompress({-.75f, -.25f, .25f, .75f}, {0x8d, 0x8d}, out);
  tally.check(std::abs(inverse * std::sqrt(2.5f) - 1) < 1e-6f, "decompress: the inverse norm");
  tally.check(close(out, {-.25f, -.75f, .75f, .25f, -.25f, -.75f, .75f, .25f}, std::sqrt(2.5f)),
              "decompress: 2 bits, 10 00 11 01 -> [1, 0, 3, 2], made a unit vector");
  decompress({0, 1, 2, 3, 4, 5, 6, 7}, {0x27, 0x27, 0x55}, out);
  tally.check(close(out, {0, 1, 2, 3, 4, 5, 6, 7}, std::sqrt(140.0f)), "decompress: 3 bits");
  decompress({0, 0, 0, 0}, {0x8d, 0x8d}, out);
  tally.same(out, centroid, "decompress: a zero vector stays zero");
}

void dispatch(Tally &tally) {
  for (const Kernels *isa : available_kernels()) {
    set_isa(isa->name);
    tally.check(&kernels() == isa, std::string("set_isa: ") + isa->name);
  }
  std::string message;
  try {
    set_isa("abacus");
  } catch (const std::runtime_error &error) { message = error.what(); }
  tally.check(message.find("abacus") != std::string::npos &&
                  message.find("scalar") != std::string::npos,
              "set_isa: an unknown name is an error that lists the choices");
}

} // namespace

int main() {
  Tally tally;
  for (const Kernels *isa : available_kernels()) {
    std::printf("%s\n", isa->name);
    maxsim(*isa, tally);
    kmeans(*isa, tally);
    candidates(*isa, tally);
    pack(*isa, tally);
    residual(*isa, tally);
  }
  dispatch(tally);
  return tally.finish();
}
