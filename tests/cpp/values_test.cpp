// Values worked out by hand, on every table: what the kernels mean, and the bit order that indexes
// on disk depend on.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

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

void candidates_i8(const Kernels &k, Tally &tally) {
  // One query token, (2, -1, 0, ...), whose products start at -64 times the sum of its bytes.
  Buffer<std::int8_t> data(8 * kLanes);
  Buffer<std::int32_t> start(kLanes), ids(2 * kLanes);
  Buffer<float> ratio(kLanes), values(2 * kLanes), step(kTableLanes);
  data.poison(0), start.poison(0), ratio.poison(0), step.poison(0);
  data[0] = 2, data[1] = -1, start[0] = -64, ratio[0] = 2.5f;
  const PanelsI8 query{data.data(), start.data(), 1, 1, 8};
  Buffer<std::uint8_t> rows(5 * 8), out(5 * kTableLanes);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = kScreenZero;
  rows[0] = 67, rows[1] = 69;       // 2 * 3 - 5 = 1, times a scale of 2 and 2.5: 5
  rows[8] = 74;                     // 2 * 10, times 2.5: 50
  rows[16] = 124, rows[24] = 4;     // 300 and -300: past the ends
  rows[32] = 64 + 1, rows[33] = 65; // 1, times 2.5: halves go to the even
  const Buffer<float> scale{2, 1, 1, 1, 1};
  for (std::size_t i = 0; i < 2 * kLanes; ++i) values[i] = -kInfinity, ids[i] = -1;
  k.scores_i8(query, ratio.data(), rows.data(), scale.data(), 5, out.data(), kTableLanes, 10, 2,
              values.data(), ids.data());
  Buffer<std::uint8_t> lane(5);
  for (std::size_t i = 0; i < 5; ++i) lane[i] = out[i * kTableLanes];
  tally.same(lane, {132, 177, 255, 0, 130}, "scores_i8: 127 + scale * ratio * product");
  tally.check(out[1] == kTableZero, "scores_i8: a lane of zeros");
  tally.check(values[0] == 427 && ids[0] == 12 && values[1] == 177 && ids[1] == 11,
              "scores_i8: the best, before clamping");

  step[0] = .5f, step[1] = 2;
  Buffer<std::uint8_t> table(2 * kTableLanes);
  table.poison(0);
  table[0] = 137, table[1] = 117;                         // 10 and -10
  table[kTableLanes] = 127, table[kTableLanes + 1] = 132; // 0 and 5
  const ByteTable view{table.data(), kTableLanes, step.data()};
  const Buffer<std::uint16_t> codes{0, 1};
  tally.check(k.approximate_i8(view, {codes.data(), false}, 2) == 15.0f,
              "approximate_i8: the best of each lane, .5 * 10 + 2 * 5");
  tally.check(k.approximate_i8(view, {codes.data(), false}, 1) == -15.0f,
              "approximate_i8: below zero");
  const Buffer<std::int32_t> which{1};
  k.raise_rows(table.data(), kTableLanes, which.data(), 1, table.data());
  tally.check(table[kTableLanes] == 137 && table[kTableLanes + 1] == 132,
              "raise_rows: the better of each lane");
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

// A decoder of one centroid at zero; byte b of the scales stands for b / 64.
struct Toy {
  Buffer<float> centroid{0, 0, 0, 0, 0, 0, 0, 0}, norms = Buffer<float>(256),
                                                  scales = Buffer<float>(256);
  Buffer<float> values;
  Buffer<std::uint8_t> levels = Buffer<std::uint8_t>(256);
  int nbits;

  Toy(Buffer<float> by_window, int bits) : values(std::move(by_window)), nbits(bits) {
    for (std::size_t b = 0; b < 256; ++b) scales[b] = static_cast<float>(b) / 64;
  }
  Decoder view() const {
    return {centroid.data(),
            values.data(),
            levels.data(),
            norms.data(),
            scales.data(),
            nbits,
            8,
            static_cast<std::size_t>(nbits)};
  }
};

Buffer<float> counting(float unit = 1) {
  Buffer<float> out(16);
  for (std::size_t i = 0; i < 16; ++i) out[i] = static_cast<float>(i) * unit;
  return out;
}

bool close(const Buffer<float> &out, const Buffer<float> &values, float norm) {
  for (std::size_t d = 0; d < 8; ++d)
    if (!(std::abs(out[d] - values[d] / norm) < 1e-6f)) return false;
  return true;
}

void residual(const Kernels &k, Tally &tally) {
  const Buffer<std::uint16_t> codes{0};
  const auto decompress = [&](const Toy &toy, const Buffer<std::uint8_t> &packed,
                              const std::uint8_t *scale, Buffer<float> &out) {
    Buffer<float> inverse(1);
    k.decompress(toy.view(), {{codes.data(), false}, packed.data(), scale, nullptr}, 1, out.data(),
                 inverse.data());
    return inverse[0];
  };
  Buffer<float> out(8);
  const Toy two(values_by_window({-.75f, -.25f, .25f, .75f}, 2), 2);
  const float inverse = decompress(two, {0x8d, 0x8d}, nullptr, out);
  tally.check(std::abs(inverse * std::sqrt(2.5f) - 1) < 1e-6f, "decompress: the inverse norm");
  tally.check(close(out, {-.25f, -.75f, .75f, .25f, -.25f, -.75f, .75f, .25f}, std::sqrt(2.5f)),
              "decompress: 2 bits, 10 00 11 01 -> [1, 0, 3, 2], made a unit vector");
  const Buffer<std::uint8_t> scale{128};
  const float scaled = decompress(two, {0x8d, 0x8d}, scale.data(), out);
  tally.check(std::abs(scaled * 2 * std::sqrt(2.5f) - 1) < 1e-6f, "decompress: a scale of 2");
  decompress(Toy(values_by_window({0, 1, 2, 3, 4, 5, 6, 7}, 3), 3), {0x27, 0x27, 0x55}, nullptr,
             out);
  tally.check(close(out, {0, 1, 2, 3, 4, 5, 6, 7}, std::sqrt(140.0f)), "decompress: 3 bits");
  decompress(Toy(values_by_window({0, 0, 0, 0}, 2), 2), {0x8d, 0x8d}, nullptr, out);
  tally.same(out, two.centroid, "decompress: a zero vector stays zero");

  // By window: the last bits of the row up to a dimension's own.
  decompress(Toy(counting(), 1), {0xb0}, nullptr, out);
  tally.check(close(out, {1, 2, 5, 11, 6, 12, 8, 0}, std::sqrt(395.0f)),
              "decompress: 1 0 1 1 0 0 0 0 by windows of 4");
  decompress(Toy(counting(), 2), {0x8d, 0x8d}, nullptr, out);
  tally.check(close(out, {2, 8, 3, 13, 6, 8, 3, 13}, std::sqrt(524.0f)),
              "decompress: 10 00 11 01 10 00 11 01 by windows of 4");
  decompress(Toy(counting(), 3), {0x27, 0x27, 0x55}, nullptr, out);
  tally.check(close(out, {0, 2, 1, 7, 12, 10, 9, 15}, std::sqrt(604.0f)),
              "decompress: 00 10 01 11 00 10 01 11 by windows of 3 and a high bit");
}

// A residual of thrice what a row decodes to is coded as that row and a scale of 3.
void trellis(const Kernels &k, Tally &tally) {
  const auto check = [&](int nbits, const Buffer<std::uint8_t> &packed,
                         const Buffer<float> &windows, float squares) {
    const Toy toy(counting(1 / std::sqrt(squares)), nbits);
    Buffer<float> point(8), scratch(trellis_scratch(8)), scale(1);
    for (std::size_t d = 0; d < 8; ++d) point[d] = 3 * windows[d] / std::sqrt(squares);
    const Buffer<std::int32_t> codes{0};
    Buffer<std::uint8_t> found(packed.size());
    k.compress_trellis(point.data(), DType::f32, 1, codes.data(), toy.view(), scratch.data(),
                       found.data(), scale.data());
    const std::string what = "compress_trellis: " + std::to_string(nbits) + " bits";
    tally.same(found, packed, what);
    tally.check(std::abs(scale[0] - 3) < 1e-5f, what + ", the scale");
  };
  check(1, {0xb0}, {1, 2, 5, 11, 6, 12, 8, 0}, 395);
  check(2, {0x8d, 0x8d}, {2, 8, 3, 13, 6, 8, 3, 13}, 524);
  check(3, {0x27, 0x27, 0x55}, {0, 2, 1, 7, 12, 10, 9, 15}, 604);
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
    candidates_i8(*isa, tally);
    pack(*isa, tally);
    residual(*isa, tally);
    trellis(*isa, tally);
  }
  dispatch(tally);
  return tally.finish();
}
