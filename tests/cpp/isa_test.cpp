// Every kernel of every table this CPU can run, against the scalar table: the same bits, for sizes
// around the lane widths, exact ties, documents without tokens, and outputs that start as garbage.
// Those of the residual codec are in codec_test.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cases.h"
#include "dispatch.h"

using namespace colbert_fast;
using namespace testing;

namespace {

class IsaTest {
public:
  IsaTest(const Kernels &isa, const Kernels &scalar, Tally &tally)
      : isa_(isa), scalar_(scalar), tally_(tally) {}

  void run() {
    sweep(random_, 2, [this](const Case &c) { maxsim(c); });
    sweep(random_, 1, [this](const Case &c) { maxsim_grad_query(c); });
    sweep(random_, 1, [this](const Case &c) { maxsim_grad_documents(c); });
    sweep(random_, 1, [this](const Case &c) { assign(c); });
    sweep(random_, 1, [this](const Case &c) { assign_screened(c); });
    sweep(random_, 1, [this](const Case &c) { quantise(c); });
    sweep(random_, 1, [this](const Case &c) { near_columns(c); });
    sweep(random_, 1, [this](const Case &c) { best_columns(c); });
    sweep(random_, 1, [this](const Case &c) { products(c); });
    sweep(random_, 1, [this](const Case &c) { sum_rows(c); });
    sweep(random_, 1, [this](const Case &c) { ward(c); });
    sweep(random_, 1, [this](const Case &c) { scores(c); });
    sweep(random_, 1, [this](const Case &c) { probe(c); });
    sweep(random_, 1, [this](const Case &c) { approximate(c); });
    sweep(random_, 2, [this](const Case &c) { scores_i8(c); });
    sweep(random_, 1, [this](const Case &c) { approximate_i8(c); });
    sweep(random_, 2, [this](const Case &c) { likely_tokens(c); });
    sweep(random_, 1, [this](const Case &c) { raise_rows(c); });
    sweep(random_, 8, [this](const Case &c) { unpack_codes(c); });
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

  // Documents of the same length; of `count` tokens all but the first.
  void maxsim_grad_query(const Case &c) {
    const std::size_t n_docs = 1 + random_.below(5), count = c.count - 1;
    const Rows documents = random_.rows(c.type, n_docs * c.n * c.dim, c.whole);
    const Buffer<float> grad = random_.floats(n_docs, c.whole),
                        before = random_.floats(count * c.dim);
    const Buffer<std::int32_t> argmax = met(n_docs * c.count, c.n);
    Buffer<std::int64_t> offsets(n_docs);
    for (std::size_t i = 0; i < n_docs; ++i) offsets[i] = static_cast<std::int64_t>(i * c.n);
    const auto run = [&](const Kernels &k, Buffer<float> &out) {
      std::copy_n(before.data(), before.size(), out.data());
      k.maxsim_grad_query(grad.data(), argmax.data() + 1, c.count, documents.data(), c.type,
                          offsets.data(), n_docs, count, c.dim, out.data());
    };
    Buffer<float> got(before.size()), want(before.size());
    run(isa_, got);
    run(scalar_, want);
    tally_.same(got, want, c.describe(isa_, "maxsim_grad_query"));
  }

  void maxsim_grad_documents(const Case &c) {
    const std::size_t n_queries = random_.below(4), stride = 1 + random_.below(3);
    const Buffer<float> query = random_.floats(n_queries * c.count * c.dim, c.whole);
    const Buffer<float> grad = random_.floats(n_queries * stride, c.whole);
    const Buffer<std::int32_t> argmax = met(n_queries * stride * c.count, c.n);
    Buffer<float> got(c.n * c.dim), want(c.n * c.dim);
    const auto run = [&](const Kernels &k, Buffer<float> &out) {
      k.maxsim_grad_documents(query.data(), n_queries, c.count, c.dim, grad.data(), argmax.data(),
                              stride, c.n, out.data());
    };
    run(isa_, got.poison(0xff));
    run(scalar_, want.poison(0xee));
    tally_.same(got, want, c.describe(isa_, "maxsim_grad_documents"));
  }

  // Tokens of a document of n, or -1.
  Buffer<std::int32_t> met(std::size_t count, std::size_t n) {
    auto argmax = random_.integers<std::int32_t>(count, n + 1);
    for (std::size_t i = 0; i < count; ++i) --argmax[i];
    return argmax;
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

  void ward(const Case &c) {
    const std::size_t n = c.n + 2, clusters = 1 + random_.below(n);
    Buffer<float> rows = random_.floats(n * c.dim, c.whole);
    if (random_.below(8) == 0) rows[random_.below(rows.size())] = 1e30f; // refused
    const Query points(rows, n, c.dim);
    Buffer<float> scratch(ward_scratch(points.view().n_panels));
    Buffer<std::int32_t> got(n + 1), want(n + 1);
    const auto run = [&](const Kernels &k, Buffer<std::int32_t> &first) {
      first[n] =
          k.ward(points.view(), rows.data(), clusters, scratch.poison(0xff).data(), first.data());
      if (first[n] == 0) std::fill_n(first.data(), n, 0);
    };
    run(isa_, got.poison(0xff));
    run(scalar_, want.poison(0xee));
    tally_.same(got, want, c.describe(isa_, "ward"));
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

  void scores_i8(const Case &c) {
    const QueryI8 query(random_, c.count, c.dim, c.whole);
    const std::size_t lanes = query.lanes(), nprobe = random_.below(4) * 3, first = 5;
    const std::size_t stride = (lanes + kTableLanes - 1) / kTableLanes * kTableLanes;
    const auto rows = random_.integers<std::uint8_t>(c.n * c.dim, 128);
    const Buffer<float> scale = random_.floats(c.n, c.whole), ratio = random_.floats(lanes);
    const auto run = [&](const Kernels &k, Buffer<std::uint8_t> &out, Buffer<float> &values,
                         Buffer<std::int32_t> &ids) {
      std::fill_n(values.data(), values.size(), -std::numeric_limits<float>::infinity());
      std::fill_n(ids.data(), ids.size(), -1);
      k.scores_i8(query.view(), ratio.data(), rows.data(), scale.data(), c.n, out.data(), stride,
                  first, nprobe, values.data(), ids.data());
      for (std::size_t i = 0; i < c.n; ++i) // not part of the promise
        std::fill_n(out.data() + i * stride + lanes, stride - lanes, std::uint8_t{0});
    };
    Buffer<std::uint8_t> got(c.n * stride), want(c.n * stride);
    Buffer<float> got_values(lanes * nprobe), want_values(lanes * nprobe);
    Buffer<std::int32_t> got_ids(lanes * nprobe), want_ids(lanes * nprobe);
    run(isa_, got.poison(0xff), got_values, got_ids);
    run(scalar_, want.poison(0xee), want_values, want_ids);
    tally_.same(got, want, c.describe(isa_, "scores_i8"));
    tally_.same(got_values, want_values, c.describe(isa_, "scores_i8 values"));
    tally_.same(got_ids, want_ids, c.describe(isa_, "scores_i8 ids"));
  }

  void approximate_i8(const Case &c) {
    const ByteTableBuffer table(random_, c.centroids, c.count);
    const CodeBuffer codes(random_, c);
    Buffer<float> got(1), want(1);
    got[0] = isa_.approximate_i8(table.view(), codes.view(), c.n);
    want[0] = scalar_.approximate_i8(table.view(), codes.view(), c.n);
    tally_.same(got, want, c.describe(isa_, "approximate_i8"));
    Buffer<float> got_rows(c.centroids), want_rows(c.centroids);
    isa_.row_scores_i8(table.view(), c.centroids, got_rows.poison(0xff).data());
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(c.centroids); ++i)
      want_rows[static_cast<std::size_t>(i)] = scalar_.approximate_i8(table.view(), {&i, true}, 1);
    tally_.same(got_rows, want_rows, c.describe(isa_, "row_scores_i8"));
  }

  void likely_tokens(const Case &c) {
    const ByteTableBuffer buffer(random_, c.centroids, c.count);
    const ByteTable table = buffer.view();
    const CodeBuffer codes(random_, c);
    // Of no lane, of some, or of all; up to what no byte is below.
    auto reach = random_.integers<std::uint8_t>(table.stride, c.whole ? 60 : 256);
    const std::size_t zeros = random_.below(5); // of four lanes
    for (std::size_t lane = 0; lane < table.stride; ++lane)
      if (random_.below(4) < zeros) reach[lane] = 0;
    std::vector<bool> likely(c.n, false);
    for (std::size_t lane = 0; lane < table.stride; ++lane) {
      const auto byte = [&](std::size_t i) {
        return int{table.rows[code_at(codes.view(), i) * table.stride + lane]};
      };
      int best = 0;
      for (std::size_t i = 0; i < c.n; ++i) best = std::max(best, byte(i));
      for (std::size_t i = 0; i < c.n; ++i)
        if (byte(i) > std::max(best - int{reach[lane]}, 0)) likely[i] = true;
    }
    Buffer<std::uint8_t> bounds(table.stride);
    Buffer<Chosen> which(c.n);
    const std::size_t n = isa_.likely_tokens(table, reach.data(), codes.view(), c.n, 7,
                                             bounds.poison(0xff).data(), which.data());
    std::vector<std::int32_t> expected;
    for (std::size_t i = 0; i < c.n; ++i)
      if (likely[i]) expected.push_back(static_cast<std::int32_t>(i));
    Buffer<std::int32_t> got(n), want(expected.size());
    for (std::size_t i = 0; i < n; ++i) got[i] = which[i].document == 7 ? which[i].token : -1;
    std::copy(expected.begin(), expected.end(), want.data());
    tally_.same(got, want, c.describe(isa_, "likely_tokens"));
  }

  void raise_rows(const Case &c) {
    const ByteTableBuffer table(random_, c.centroids, c.count);
    const std::size_t stride = table.view().stride;
    const auto which = random_.integers<std::int32_t>(c.n, static_cast<int>(c.centroids));
    const auto row = random_.integers<std::uint8_t>(stride, 256);
    Buffer<std::uint8_t> got(c.centroids * stride), want(c.centroids * stride);
    for (std::size_t i = 0; i < got.size(); ++i) got[i] = want[i] = table.view().rows[i];
    isa_.raise_rows(got.data(), stride, which.data(), c.n, row.data());
    scalar_.raise_rows(want.data(), stride, which.data(), c.n, row.data());
    tally_.same(got, want, c.describe(isa_, "raise_rows"));
  }

  // All bits, from any first id, in a buffer that ends with the padding; some above the largest.
  void unpack_codes(const Case &c) {
    const int n_bits = 1 + static_cast<int>(random_.below(kMaxCodeBits));
    const auto bits = static_cast<std::size_t>(n_bits);
    const std::size_t first = random_.below(40), n = (first + c.n) * bits;
    const std::uint32_t mask = (1u << bits) - 1u;
    const auto largest = static_cast<std::int32_t>(c.whole ? mask : random_.below(mask));
    auto packed = random_.integers<std::uint8_t>((n + 7) / 8 + kCodePadding, 256);
    const std::size_t padded = (c.n + kLanes - 1) / kLanes * kLanes;
    Buffer<std::int32_t> got(padded), want(c.n);
    isa_.unpack_codes(packed.data(), first, c.n, n_bits, largest, got.poison(0xff).data());
    for (std::size_t i = 0; i < c.n; ++i) {
      std::uint32_t code = 0;
      for (std::size_t b = 0; b < bits; ++b) {
        const std::size_t at = (first + i) * bits + b;
        code |= (packed[at / 8] >> at % 8 & 1u) << b;
      }
      want[i] = std::min(static_cast<std::int32_t>(code), largest);
    }
    Buffer<std::int32_t> head(c.n); // what is past n is not part of the promise
    std::copy_n(got.data(), c.n, head.data());
    tally_.same(head, want, c.describe(isa_, "unpack_codes") + ", bits " + std::to_string(bits));
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
