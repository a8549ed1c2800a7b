// Every kernel of every table this CPU can run, against the scalar table: the same bits, for sizes
// around the lane widths, exact ties, documents without tokens, and outputs that start as garbage.
#include <algorithm>
#include <cmath>
#include <limits>

#include "dispatch.h"
#include "testing.h"

using namespace colbert_fast;
using namespace testing;

namespace {

constexpr std::size_t kSizes[] = {0,  1,  2,  3,  7,   8,   15,  16,  17, 31,
                                  33, 63, 64, 65, 127, 128, 129, 255, 256};
constexpr std::size_t kDims[] = {8, 16, 24, 32, 40, 64, 96, 128, 128, 136, 384};
constexpr std::size_t kCounts[] = {1, 2, 7, 15, 16, 17, 31, 32, 32, 33, 48, 65};
constexpr int kNbits[] = {1, 2, 3, 4, 8};
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};

struct Case {
  std::size_t n, dim, count, centroids;
  DType type;
  int nbits;
  bool whole, wide;

  std::string describe(const Kernels &isa, const char *kernel) const {
    return std::string(kernel) + " on " + isa.name + ", n " + std::to_string(n) + ", dim " +
           std::to_string(dim) + ", query " + std::to_string(count) + ", type " +
           std::to_string(static_cast<int>(type)) + ", nbits " + std::to_string(nbits) +
           (whole ? ", whole" : "") + (wide ? ", wide codes" : "");
  }
};

template <class T, std::size_t N> T pick(Random &random, const T (&from)[N]) {
  return from[random.below(N)];
}

template <class F> void sweep(Random &random, int repeats, F check) {
  for (const std::size_t n : kSizes)
    for (const int nbits : kNbits)
      for (int i = 0; i < repeats; ++i)
        check(Case{n, pick(random, kDims), pick(random, kCounts), 1 + random.below(70),
                   pick(random, kTypes), nbits, random.below(2) == 0, random.below(2) == 0});
}

// Codes of either width, in a buffer that ends with them.
class CodeBuffer {
public:
  CodeBuffer(Random &random, const Case &c)
      : wide_(c.wide), int32_(random.integers<std::int32_t>(c.wide ? c.n : 0, c.centroids)),
        uint16_(random.integers<std::uint16_t>(c.wide ? 0 : c.n, c.centroids)) {}
  Codes view() const {
    return {wide_ ? static_cast<const void *>(int32_.data()) : uint16_.data(), wide_};
  }

private:
  bool wide_;
  Buffer<std::int32_t> int32_;
  Buffer<std::uint16_t> uint16_;
};

// A random codec and the tables that the kernels read it from.
class Codec {
public:
  Codec(Random &random, const Case &c)
      : nbits_(c.nbits), dim_(c.dim), centroids_(random.floats(c.centroids * c.dim, c.whole)),
        by_byte_(weights_by_byte(random.floats(std::size_t{1} << c.nbits, c.whole), c.nbits)),
        levels_(c.nbits == 8 ? 256 : 16), norms_(random.floats(256)) {
    for (std::size_t i = 0; i < levels_.size(); ++i)
      levels_[i] = static_cast<std::uint8_t>(kMaxLevel - (c.whole ? 0 : random.below(128)));
  }
  std::size_t packed_dim() const { return dim_ * static_cast<std::size_t>(nbits_) / 8; }
  Decoder view() const {
    return {centroids_.data(), by_byte_.data(), levels_.data(), norms_.data(), nbits_, dim_,
            packed_dim()};
  }

private:
  int nbits_;
  std::size_t dim_;
  Buffer<float> centroids_, by_byte_;
  Buffer<std::uint8_t> levels_;
  Buffer<float> norms_;
};

class IsaTest {
public:
  IsaTest(const Kernels &isa, const Kernels &scalar, Tally &tally)
      : isa_(isa), scalar_(scalar), tally_(tally) {}

  void run() {
    sweep(random_, 2, [this](const Case &c) { maxsim(c); });
    sweep(random_, 1, [this](const Case &c) { assign(c); });
    sweep(random_, 1, [this](const Case &c) { assign_screened(c); });
    sweep(random_, 1, [this](const Case &c) { quantise(c); });
    sweep(random_, 1, [this](const Case &c) { near_columns(c); });
    sweep(random_, 1, [this](const Case &c) { best_columns(c); });
    sweep(random_, 1, [this](const Case &c) { products(c); });
    sweep(random_, 1, [this](const Case &c) { sum_rows(c); });
    sweep(random_, 1, [this](const Case &c) { scores(c); });
    sweep(random_, 1, [this](const Case &c) { probe(c); });
    sweep(random_, 1, [this](const Case &c) { approximate(c); });
    sweep(random_, 1, [this](const Case &c) { pack(c); });
    sweep(random_, 3, [this](const Case &c) { compress(c); });
    sweep(random_, 3, [this](const Case &c) { residual(c); });
    sweep(random_, 3, [this](const Case &c) { residual_i8(c); });
  }

private:
  void maxsim(const Case &c) {
    const Query query(random_.floats(c.count * c.dim, c.whole), c.count, c.dim);
    const Rows rows = random_.rows(c.type, c.n * c.dim, c.whole);
    const auto run = [&](const Kernels &k, Buffer<float> &score, Buffer<std::int32_t> &argmax) {
      score[0] = k.maxsim(query.view(), rows.data(), c.type, c.n, nullptr);
      score[1] = k.maxsim(query.view(), rows.data(), c.type, c.n, argmax.data());
    };
    Buffer<float> got(2), want(2);
    Buffer<std::int32_t> got_argmax(query.lanes()), want_argmax(query.lanes());
    run(isa_, got, got_argmax.poison(0xff));
    run(scalar_, want, want_argmax.poison(0xee));
    for (std::size_t lane = c.count; lane < query.lanes(); ++lane) // not part of the promise
      got_argmax[lane] = want_argmax[lane] = 0;
    tally_.same(got, want, c.describe(isa_, "maxsim"));
    tally_.same(got_argmax, want_argmax, c.describe(isa_, "maxsim argmax"));
  }

  void assign(const Case &c) {
    const Rows points = random_.rows(c.type, c.n * c.dim, c.whole);
    const Buffer<float> centroids = random_.floats(c.centroids * c.dim, c.whole);
    const auto run = [&](const Kernels &k, Buffer<std::int32_t> &codes, Buffer<float> &best) {
      Buffer<float> scratch(assign_scratch(c.dim));
      k.assign(points.data(), c.type, c.n, c.dim, centroids.data(), c.centroids,
               scratch.poison(0xff).data(), codes.data(), best.data());
    };
    Buffer<std::int32_t> got(c.n), want(c.n);
    Buffer<float> got_best(c.n), want_best(c.n);
    run(isa_, got.poison(0xff), got_best.poison(0xff));
    run(scalar_, want.poison(0xee), want_best.poison(0xee));
    tally_.same(got, want, c.describe(isa_, "assign"));
    tally_.same(got_best, want_best, c.describe(isa_, "assign best"));
  }

  // Many points of a table that screening cannot settle alone: near ties and equal centroids.
  void assign_screened(const Case &c) {
    const std::size_t k = c.centroids + 40;
    const Rows points = random_.rows(c.type, c.n * c.dim, c.whole);
    Buffer<float> centroids = random_.floats(k * c.dim, c.whole);
    std::copy_n(centroids.data(), c.dim, centroids.data() + (k - 1) * c.dim);
    Buffer<std::uint8_t> rows(k * c.dim);
    Buffer<float> scale(k);
    Screen screen{rows.data(), scale.data(), 0.0f, 0.0f, 0.0f};
    for (std::size_t i = 0; i < k; ++i) {
      float largest = 0.0f, l1 = 0.0f;
      for (std::size_t d = 0; d < c.dim; ++d) {
        largest = std::max(largest, std::fabs(centroids[i * c.dim + d]));
        l1 += std::fabs(centroids[i * c.dim + d]);
      }
      scale[i] = largest > 0.0f ? largest / 63.0f : 1.0f;
      for (std::size_t d = 0; d < c.dim; ++d)
        rows[i * c.dim + d] = static_cast<std::uint8_t>(
            kScreenZero + static_cast<int>(std::nearbyintf(centroids[i * c.dim + d] / scale[i])));
      screen.largest_scale = std::max(screen.largest_scale, scale[i]);
      screen.largest_l1 = std::max(screen.largest_l1, l1);
      screen.largest_value = std::max(screen.largest_value, largest);
    }
    Buffer<float> scratch(screened_scratch(c.dim));
    Buffer<std::int32_t> got(c.n), want(c.n);
    Buffer<float> got_best(c.n), want_best(c.n);
    isa_.assign_screened(points.data(), c.type, c.n, c.dim, centroids.data(), k, screen,
                         scratch.data(), got.data(), got_best.data());
    scalar_.assign(points.data(), c.type, c.n, c.dim, centroids.data(), k, scratch.data(),
                   want.data(), want_best.data());
    tally_.same(got, want, c.describe(isa_, "assign_screened"));
    tally_.same(got_best, want_best, c.describe(isa_, "assign_screened best"));
  }

  void quantise(const Case &c) {
    const Rows rows = random_.rows(c.type, c.n * c.dim, c.whole);
    Buffer<float> got(c.n * c.dim), want(c.n * c.dim);
    isa_.widen(rows.data(), c.type, c.n, c.dim, got.poison(0xff).data());
    scalar_.widen(rows.data(), c.type, c.n, c.dim, want.poison(0xee).data());
    tally_.same(got, want, c.describe(isa_, "widen"));
    for (std::size_t i = 0; i < c.n; ++i) { // some of no length, some without one
      const std::size_t kind = random_.below(8);
      if (kind < 2) std::fill_n(want.data() + i * c.dim, c.dim, kind == 0 ? 0.0f : 1e30f);
      if (kind == 2) want[i * c.dim + random_.below(c.dim)] = std::nanf("");
    }
    Buffer<std::uint8_t> bytes(c.n * c.dim), want_bytes(c.n * c.dim);
    Buffer<float> lengths(c.n), want_lengths(c.n);
    isa_.quantise(want.data(), c.n, c.dim, bytes.poison(0xff).data(), lengths.poison(0xff).data());
    scalar_.quantise(want.data(), c.n, c.dim, want_bytes.data(), want_lengths.data());
    tally_.same(bytes, want_bytes, c.describe(isa_, "quantise"));
    tally_.same(lengths, want_lengths, c.describe(isa_, "quantise lengths"));
  }

  void near_columns(const Case &c) {
    const auto rows = random_.integers<std::uint8_t>(c.n * c.dim, 128);
    const Columns columns(random_, c.count, c.dim, c.whole);
    Buffer<float> lengths(c.n);
    for (std::size_t i = 0; i < c.n; ++i)
      lengths[i] = random_.below(5) == 0 ? -1.0f : 1000.0f * static_cast<float>(random_.below(9));
    const auto run = [&](const Kernels &k, Buffer<std::uint16_t> &marks) {
      Buffer<float> scratch(kScreenTile * columns.panels() * kLanes);
      k.near_columns(rows.data(), lengths.data(), c.n, columns.view(), 0.25f,
                     scratch.poison(0xff).data(), marks.data());
    };
    Buffer<std::uint16_t> got(c.n * columns.panels()), want(c.n * columns.panels());
    run(isa_, got.poison(0xff));
    run(scalar_, want.poison(0xee));
    tally_.same(got, want, c.describe(isa_, "near_columns"));
  }

  void best_columns(const Case &c) {
    const std::size_t n_points = 1 + random_.below(40);
    const auto rows = random_.integers<std::uint8_t>(n_points * c.dim, 128);
    const auto which = random_.integers<std::int32_t>(c.n, n_points);
    const Columns columns(random_, c.count, c.dim, c.whole);
    const auto ids = random_.integers<std::int32_t>(columns.panels() * kLanes, 1000);
    const auto run = [&](const Kernels &k, Buffer<float> &best, Buffer<std::int32_t> &codes) {
      std::fill_n(best.data(), best.size(), -std::numeric_limits<float>::infinity());
      std::fill_n(codes.data(), codes.size(), 0);
      k.best_columns(rows.data(), which.data(), c.n, columns.view(), ids.data(), best.data(),
                     codes.data());
    };
    Buffer<float> got(n_points * kLanes), want(n_points * kLanes);
    Buffer<std::int32_t> got_codes(n_points * kLanes), want_codes(n_points * kLanes);
    run(isa_, got, got_codes);
    run(scalar_, want, want_codes);
    tally_.same(got, want, c.describe(isa_, "best_columns"));
    tally_.same(got_codes, want_codes, c.describe(isa_, "best_columns codes"));
  }

  void products(const Case &c) {
    const Buffer<float> points = random_.floats(c.count * c.dim, c.whole);
    const Buffer<float> centroids = random_.floats(c.centroids * c.dim, c.whole);
    const auto left = random_.integers<std::int32_t>(c.n, c.count);
    const auto right = random_.integers<std::int32_t>(c.n, c.centroids);
    Buffer<float> got(c.n), want(c.n);
    isa_.products(points.data(), left.data(), centroids.data(), right.data(), c.n, c.dim,
                  got.poison(0xff).data());
    for (std::size_t i = 0; i < c.n; ++i) { // the same chain as an assignment to one centroid
      Buffer<float> scratch(assign_scratch(c.dim));
      std::int32_t code;
      scalar_.assign(points.data() + static_cast<std::size_t>(left[i]) * c.dim, DType::f32, 1,
                     c.dim, centroids.data() + static_cast<std::size_t>(right[i]) * c.dim, 1,
                     scratch.data(), &code, &want[i]);
    }
    tally_.same(got, want, c.describe(isa_, "products"));
  }

  void sum_rows(const Case &c) {
    const std::size_t n_points = 1 + random_.below(40);
    const Rows points = random_.rows(c.type, n_points * c.dim, c.whole);
    const Buffer<std::int64_t> which = random_.integers<std::int64_t>(c.n, n_points);
    Buffer<float> got(c.dim), want(c.dim);
    isa_.sum_rows(points.data(), c.type, c.dim, which.data(), c.n, got.poison(0xff).data());
    scalar_.sum_rows(points.data(), c.type, c.dim, which.data(), c.n, want.poison(0xee).data());
    tally_.same(got, want, c.describe(isa_, "sum_rows"));
  }

  void scores(const Case &c) {
    const Query query(random_.floats(c.count * c.dim, c.whole), c.count, c.dim);
    const Buffer<float> rows = random_.floats(c.n * c.dim, c.whole);
    Buffer<float> got(c.n * query.lanes()), want(c.n * query.lanes());
    isa_.scores(query.view(), rows.data(), c.n, got.poison(0xff).data());
    scalar_.scores(query.view(), rows.data(), c.n, want.poison(0xee).data());
    tally_.same(got, want, c.describe(isa_, "scores"));
  }

  void probe(const Case &c) {
    const std::size_t lanes = (c.count + kLanes - 1) / kLanes * kLanes;
    const std::size_t nprobe = 1 + random_.below(9), split = random_.below(c.n + 1);
    const Buffer<float> scores = random_.floats(c.n * lanes, c.whole);
    const auto run = [&](const Kernels &k, Buffer<float> &values, Buffer<std::int32_t> &ids) {
      std::fill_n(values.data(), values.size(), -std::numeric_limits<float>::infinity());
      std::fill_n(ids.data(), ids.size(), -1);
      k.probe(scores.data(), 0, split, lanes, nprobe, values.data(), ids.data());
      k.probe(scores.data() + split * lanes, split, c.n - split, lanes, nprobe, values.data(),
              ids.data());
    };
    Buffer<float> got(lanes * nprobe), want(lanes * nprobe);
    Buffer<std::int32_t> got_ids(lanes * nprobe), want_ids(lanes * nprobe);
    run(isa_, got, got_ids);
    run(scalar_, want, want_ids);
    tally_.same(got, want, c.describe(isa_, "probe"));
    tally_.same(got_ids, want_ids, c.describe(isa_, "probe ids"));
  }

  void approximate(const Case &c) {
    const std::size_t lanes = (c.count + kLanes - 1) / kLanes * kLanes;
    const Buffer<float> scores = random_.floats(c.centroids * lanes, c.whole);
    const CodeBuffer codes(random_, c);
    const auto keep = random_.integers<std::uint8_t>(c.centroids, 2);
    const Buffer<float> init = random_.floats(lanes, c.whole);
    Buffer<float> got(2), want(2);
    const auto run = [&](const Kernels &k, Buffer<float> &out) {
      out[0] = k.approximate(scores.data(), lanes, codes.view(), c.n, nullptr, init.data());
      out[1] = k.approximate(scores.data(), lanes, codes.view(), c.n, keep.data(), init.data());
    };
    run(isa_, got);
    run(scalar_, want);
    tally_.same(got, want, c.describe(isa_, "approximate"));
  }

  void pack(const Case &c) {
    const auto buckets = random_.integers<std::uint8_t>(c.n * c.dim, std::size_t{1} << c.nbits);
    const std::size_t packed = c.n * c.dim * static_cast<std::size_t>(c.nbits) / 8;
    Buffer<std::uint8_t> got(packed), want(packed), back(c.n * c.dim);
    isa_.pack(buckets.data(), c.n, c.dim, c.nbits, got.poison(0xff).data());
    scalar_.pack(buckets.data(), c.n, c.dim, c.nbits, want.poison(0xee).data());
    isa_.unpack(got.data(), c.n, c.dim, c.nbits, back.poison(0xff).data());
    tally_.same(got, want, c.describe(isa_, "pack"));
    tally_.same(back, buckets, c.describe(isa_, "unpack"));
  }

  void compress(const Case &c) {
    const Rows points = random_.rows(c.type, c.n * c.dim, c.whole);
    const Buffer<float> centroids = random_.floats(c.centroids * c.dim, c.whole);
    const auto codes = random_.integers<std::int32_t>(c.n, c.centroids);
    Buffer<float> cutoffs = random_.floats((std::size_t{1} << c.nbits) - 1, c.whole);
    std::sort(cutoffs.data(), cutoffs.data() + cutoffs.size());
    const std::size_t packed = c.n * c.dim * static_cast<std::size_t>(c.nbits) / 8;
    Buffer<std::uint8_t> got(packed), want(packed);
    isa_.compress(points.data(), c.type, c.n, c.dim, centroids.data(), codes.data(), cutoffs.data(),
                  c.nbits, got.poison(0xff).data());
    scalar_.compress(points.data(), c.type, c.n, c.dim, centroids.data(), codes.data(),
                     cutoffs.data(), c.nbits, want.poison(0xee).data());
    tally_.same(got, want, c.describe(isa_, "compress"));
  }

  void residual(const Case &c) {
    const Codec codec(random_, c);
    const CodeBuffer codes(random_, c);
    const auto residuals = random_.integers<std::uint8_t>(c.n * codec.packed_dim(), 256);
    const Query query(random_.floats(c.count * c.dim, c.whole), c.count, c.dim);
    const auto decompress = [&](const Kernels &k, Buffer<float> &out, float *norms) {
      k.decompress(codec.view(), codes.view(), residuals.data(), c.n, out.data(), norms);
    };
    Buffer<float> got(c.n * c.dim), want(c.n * c.dim), got_norms(c.n), want_norms(c.n);
    decompress(isa_, got.poison(0xff), got_norms.poison(0xff).data());
    decompress(scalar_, want.poison(0xee), want_norms.poison(0xee).data());
    tally_.same(got, want, c.describe(isa_, "decompress"));
    tally_.same(got_norms, want_norms, c.describe(isa_, "decompress norms"));
    decompress(isa_, got.poison(0xee), nullptr);
    tally_.same(got, want, c.describe(isa_, "decompress without norms"));

    Buffer<float> fused(1), plain(1);
    fused[0] =
        isa_.residual_maxsim(query.view(), codec.view(), codes.view(), residuals.data(), c.n);
    plain[0] = scalar_.maxsim(query.view(), want.data(), DType::f32, c.n, nullptr);
    tally_.same(fused, plain, c.describe(isa_, "residual_maxsim"));
  }

  void residual_i8(const Case &c) {
    const Codec codec(random_, c);
    const CodeBuffer codes(random_, c);
    const auto residuals = random_.integers<std::uint8_t>(c.n * codec.packed_dim(), 256);
    const auto inverse_norms = random_.integers<std::uint8_t>(c.n, 256);
    const std::size_t panels = (c.count + kLanes - 1) / kLanes, lanes = panels * kLanes;
    Buffer<std::int8_t> data(lanes * c.dim);
    for (std::size_t i = 0; i < data.size(); ++i) // all extremes, or from -127 to 127
      data[i] =
          static_cast<std::int8_t>(c.whole ? 127 : static_cast<int>(random_.below(255)) - 127);
    const Buffer<float> scale = random_.floats(lanes), base = random_.floats(lanes);
    const Buffer<float> scores = random_.floats(c.centroids * lanes, c.whole);
    const PanelsI8 query{data.data(), scale.data(), base.data(), c.count, panels, c.dim};
    const auto run = [&](const Kernels &k) {
      return k.residual_maxsim_i8(query, codec.view(), scores.data(), codes.view(),
                                  residuals.data(), inverse_norms.data(), c.n);
    };
    Buffer<float> got(1), want(1);
    got[0] = run(isa_);
    want[0] = run(scalar_);
    tally_.same(got, want, c.describe(isa_, "residual_maxsim_i8"));
  }

  const Kernels &isa_, &scalar_;
  Tally &tally_;
  Random random_;
};

} // namespace

int main() {
  Tally tally;
  const auto tables = available_kernels();
  const Kernels &scalar = *tables.back();
  for (const Kernels *isa : tables) {
    std::printf("%s\n", isa->name);
    IsaTest(*isa, scalar, tally).run(); // scalar too: against itself, for what the sanitizers see
  }
  return tally.finish();
}
