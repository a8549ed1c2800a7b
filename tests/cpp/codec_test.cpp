// The kernels of the residual codec on every table this CPU can run, against the scalar table, as
// in isa_test.cpp.
#include <algorithm>

#include "cases.h"
#include "dispatch.h"

using namespace colbert_fast;
using namespace testing;

namespace {

class CodecTest {
public:
  CodecTest(const Kernels &isa, const Kernels &scalar, Tally &tally)
      : isa_(isa), scalar_(scalar), tally_(tally) {}

  void run() {
    sweep(random_, 1, [this](const Case &c) { pack(c); });
    sweep(random_, 3, [this](const Case &c) { compress(c); });
    sweep(random_, 3, [this](const Case &c) { compress_trellis(c); });
    sweep(random_, 4, [this](const Case &c) { residual(c); });
    sweep(random_, 6, [this](const Case &c) { residual_i8(c); });
    sweep(random_, 3, [this](const Case &c) { contenders(c); });
    sweep(random_, 3, [this](const Case &c) { marked(c); });
  }

private:
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

  void compress_trellis(const Case &c) {
    const std::size_t n = std::min(c.n, kTrellisBlock);
    const Codec codec(random_, c);
    const Rows points = random_.rows(c.type, n * c.dim, c.whole);
    const auto codes = random_.integers<std::int32_t>(n, c.centroids);
    const auto run = [&](const Kernels &k, Buffer<std::uint8_t> &rows, Buffer<float> &scales) {
      Buffer<float> scratch(trellis_scratch(c.dim));
      k.compress_trellis(points.data(), c.type, n, codes.data(), codec.view(),
                         scratch.poison(0xff).data(), rows.data(), scales.data());
    };
    Buffer<std::uint8_t> got(n * codec.packed_dim()), want(n * codec.packed_dim());
    Buffer<float> got_scales(n), want_scales(n);
    run(isa_, got.poison(0xff), got_scales.poison(0xff));
    run(scalar_, want.poison(0xee), want_scales.poison(0xee));
    tally_.same(got, want, c.describe(isa_, "compress_trellis"));
    tally_.same(got_scales, want_scales, c.describe(isa_, "compress_trellis scales"));
  }

  void residual(const Case &c) {
    const Codec codec(random_, c);
    const Tokens tokens(random_, c, codec.packed_dim());
    const Query query(random_.floats(c.count * c.dim, c.whole), c.count, c.dim);
    const auto decompress = [&](const Kernels &k, Buffer<float> &out, float *norms) {
      k.decompress(codec.view(), tokens.view(), c.n, out.data(), norms);
    };
    Buffer<float> got(c.n * c.dim), want(c.n * c.dim), got_norms(c.n), want_norms(c.n);
    decompress(isa_, got.poison(0xff), got_norms.poison(0xff).data());
    decompress(scalar_, want.poison(0xee), want_norms.poison(0xee).data());
    tally_.same(got, want, c.describe(isa_, "decompress"));
    tally_.same(got_norms, want_norms, c.describe(isa_, "decompress norms"));
    decompress(isa_, got.poison(0xee), nullptr);
    tally_.same(got, want, c.describe(isa_, "decompress without norms"));

    Buffer<float> fused(1), plain(1);
    fused[0] = isa_.residual_maxsim(query.view(), codec.view(), tokens.view(), c.n);
    plain[0] = scalar_.maxsim(query.view(), want.data(), DType::f32, c.n, nullptr);
    tally_.same(fused, plain, c.describe(isa_, "residual_maxsim"));
  }

  void residual_i8(const Case &c) {
    if (c.n == 0) return; // not part of the promise
    const Codec codec(random_, c);
    const Tokens tokens(random_, c, codec.packed_dim());
    const QueryI8 query(random_, c.count, c.dim, c.whole);
    const ByteTableBuffer table(random_, c.centroids, c.count);
    const Buffer<float> ratio = random_.floats(query.lanes());
    const auto run = [&](const Kernels &k, const Residuals *documents, const Chosen *chosen,
                         std::size_t n, std::size_t n_documents) {
      Buffer<float> scores(n_documents), scratch(n_documents * kLanes);
      k.residual_maxsim_i8(query.view(), ratio.data(), table.view(), codec.view(), documents,
                           chosen, n, n_documents, scratch.poison(0xff).data(),
                           scores.poison(0xee).data());
      return scores;
    };
    const Residuals all = tokens.view();
    const Buffer<float> whole = run(scalar_, &all, nullptr, c.n, 1);
    tally_.same(run(isa_, &all, nullptr, c.n, 1), whole, c.describe(isa_, "residual_maxsim_i8"));

    // A few documents, some tokens of each: as many documents that have no other tokens.
    std::vector<Residuals> documents;
    std::vector<Chosen> chosen;
    std::vector<Tokens> wholes, parts;
    Buffer<float> want(1 + random_.below(9));
    for (std::size_t i = 0; i < want.size(); ++i) {
      const std::size_t before = chosen.size(), always = random_.below(c.n);
      for (std::size_t t = 0; t < c.n; ++t)
        if (t == always || random_.below(3) == 0)
          chosen.push_back({static_cast<std::int32_t>(i), static_cast<std::int32_t>(t)});
      wholes.emplace_back(random_, c, codec.packed_dim());
      documents.push_back(wholes.back().view());
      parts.emplace_back(wholes.back(), codec.packed_dim(), chosen.data() + before,
                         chosen.size() - before);
      const Residuals some = parts.back().view();
      want[i] = run(scalar_, &some, nullptr, chosen.size() - before, 1)[0];
    }
    tally_.same(run(isa_, documents.data(), chosen.data(), chosen.size(), want.size()), want,
                c.describe(isa_, "residual_maxsim_i8 of several"));
  }

  void contenders(const Case &c) {
    if (c.n == 0) return; // not part of the promise
    const Codec codec(random_, c);
    const Tokens tokens(random_, c, codec.packed_dim());
    const QueryI8 query(random_, c.count, c.dim, c.whole);
    const ByteTableBuffer table(random_, c.centroids, c.count);
    const Buffer<float> ratio = random_.floats(query.lanes());
    Buffer<float> squares = random_.floats(query.lanes());
    for (std::size_t i = 0; i < squares.size(); ++i)
      squares[i] = c.whole ? 0 : 2500 * (squares[i] + 1);
    const float relative = c.whole ? 0.0f : 0.05f;
    const auto run = [&](const Kernels &k, Buffer<std::uint8_t> &marks) {
      Buffer<float> cells(c.n * query.lanes()), score(1);
      score[0] =
          k.contenders(query.view(), ratio.data(), table.view(), codec.view(), tokens.view(), c.n,
                       squares.data(), relative, cells.poison(0xff).data(), marks.data());
      return score;
    };
    Buffer<std::uint8_t> got(c.n * query.view().n_panels), want(c.n * query.view().n_panels);
    const Buffer<float> got_score = run(isa_, got.poison(0xff)),
                        want_score = run(scalar_, want.poison(0xee));
    tally_.same(got, want, c.describe(isa_, "contenders"));
    tally_.same(got_score, want_score, c.describe(isa_, "contenders' score"));
    Buffer<float> scratch(kLanes), score(1);
    const Residuals document = tokens.view();
    scalar_.residual_maxsim_i8(query.view(), ratio.data(), table.view(), codec.view(), &document,
                               nullptr, c.n, 1, scratch.data(), score.data());
    tally_.same(got_score, score, c.describe(isa_, "contenders' score, residual_maxsim_i8"));
  }

  void marked(const Case &c) {
    if (c.n == 0) return; // not part of the promise
    const Codec codec(random_, c);
    const Tokens tokens(random_, c, codec.packed_dim());
    const Query query(random_.floats(c.count * c.dim, c.whole), c.count, c.dim);
    const std::size_t panels = query.view().n_panels;
    auto marks = random_.integers<std::uint8_t>(c.n * panels, 2);
    for (std::size_t p = 0; p < panels; ++p) marks[random_.below(c.n) * panels + p] = 1;
    const auto run = [&](const Kernels &k) {
      Buffer<float> score(1), scratch(marked_scratch(c.n, c.dim));
      Buffer<std::int32_t> which(c.n);
      score[0] =
          k.residual_maxsim_marked(query.view(), codec.view(), tokens.view(), c.n, marks.data(),
                                   scratch.poison(0xff).data(), which.poison(0xff).data());
      return score;
    };
    tally_.same(run(isa_), run(scalar_), c.describe(isa_, "residual_maxsim_marked"));
    std::fill(marks.data(), marks.data() + marks.size(), std::uint8_t{1});
    Buffer<float> whole(1);
    whole[0] = scalar_.residual_maxsim(query.view(), codec.view(), tokens.view(), c.n);
    tally_.same(run(isa_), whole, c.describe(isa_, "residual_maxsim_marked: all"));
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
    CodecTest(*isa, scalar, tally).run(); // scalar too: against itself, for the sanitizers
  }
  return tally.finish();
}
