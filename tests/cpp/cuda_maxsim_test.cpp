// The GPU kernels of MaxSim on the emulator, bit by bit against the CPU's scalar table; those of
// tensor cores with whole numbers, of which every sum is exact.
#include "cuda/documents.cu"
#include "cuda/maxsim.cu"
#include "cuda/maxsim_mma.cu"

#include <numeric>

#include "cuda_cases.h"

using namespace colbert_fast;
using namespace testing;

namespace {

constexpr std::size_t kLengths[] = {0, 1, 2, 31, 63, 64, 65, 129, 273};
constexpr std::size_t kTokens[] = {1, 15, 16, 17, 32, 33, 65};

// Documents of awkward lengths, the queries that they are scored with, and what the CPU makes of
// them.
struct Batch {
  Batch(Random &random, std::size_t b, std::size_t columns, bool own_, std::size_t tokens,
        std::size_t width, DType type_, bool whole)
      : pairs{b, columns, own_}, nq(tokens), dim(width), type(type_),
        lengths(own_ ? b * columns : columns), offsets(lengths.size() + 1),
        queries(random.floats(b * nq * dim, whole)), grad(random.floats(b * columns, whole)),
        scores(b * columns), argmax(b * columns * nq), rows(type, 0), n_rows(0) {
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      lengths[i] = static_cast<std::int32_t>(pick(random, kLengths));
      offsets[i] = static_cast<std::int64_t>(n_rows);
      n_rows += static_cast<std::size_t>(lengths[i]);
    }
    offsets[lengths.size()] = static_cast<std::int64_t>(n_rows);
    rows = random.rows(type, n_rows * dim, whole);
    for (std::size_t q = 0; q < b; ++q) score(q);
  }

  std::size_t first(std::size_t query) const { return pairs.own ? query * pairs.columns : 0; }
  cuda::Documents documents() const {
    return {offsets.data(), lengths.data(), lengths.size(), n_rows};
  }
  const char *row(std::int64_t i) const {
    return static_cast<const char *>(rows.data()) +
           static_cast<std::size_t>(i) * dim * (type == DType::f32 ? 4 : 2);
  }
  void score(std::size_t b) {
    Buffer<float> tokens(nq * dim);
    std::copy_n(queries.data() + b * nq * dim, nq * dim, tokens.data());
    const Query panels(tokens, nq, dim);
    Buffer<std::int32_t> met(panels.lanes());
    for (std::size_t c = 0; c < pairs.columns; ++c) {
      const std::size_t i = first(b) + c, cell = b * pairs.columns + c;
      scores[cell] = scalar().maxsim(panels.view(), row(offsets[i]), type,
                                     static_cast<std::size_t>(lengths[i]), met.data());
      std::copy_n(met.data(), nq, argmax.data() + cell * nq);
    }
  }

  Pairs pairs;
  std::size_t nq, dim;
  DType type;
  Buffer<std::int32_t> lengths;
  Buffer<std::int64_t> offsets;
  DeviceBuffer<float> queries;
  Buffer<float> grad, scores;
  Buffer<std::int32_t> argmax;
  Rows rows;
  std::size_t n_rows;
};

void forward(const Batch &batch, Tally &tally, const std::string &what) {
  Buffer<float> scores(batch.scores.size()), alone(batch.scores.size());
  Buffer<std::int32_t> argmax(batch.argmax.size());
  const auto run = [&](Buffer<float> &out, std::int32_t *met) {
    cuda::maxsim(batch.queries.data(), batch.nq, batch.dim, batch.rows.data(), batch.type,
                 batch.documents(), batch.pairs, out.poison(0xff).data(), met, nullptr);
  };
  run(scores, argmax.poison(0xee).data());
  run(alone, nullptr);
  tally.same(scores, batch.scores, what + " scores");
  tally.same(alone, batch.scores, what + " scores without argmax");
  tally.same(argmax, batch.argmax, what + " argmax");
}

void backward(const Batch &batch, Tally &tally, const std::string &what) {
  const std::size_t b = batch.pairs.n_queries, columns = batch.pairs.columns, nq = batch.nq;
  Buffer<float> query(batch.queries.size()), want_query(batch.queries.size());
  DeviceBuffer<float> rows(batch.n_rows * batch.dim);
  Buffer<float> want_rows(batch.n_rows * batch.dim);
  want_query.poison(0);
  for (std::size_t i = 0; i < b; ++i)
    scalar().maxsim_grad_query(batch.grad.data() + i * columns,
                               batch.argmax.data() + i * columns * nq, nq, batch.rows.data(),
                               batch.type, batch.offsets.data() + batch.first(i), columns, nq,
                               batch.dim, want_query.data() + i * nq * batch.dim);
  for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
    const std::size_t q = batch.pairs.own ? i / columns : 0;
    const std::size_t cell = q * columns + i - batch.first(q);
    scalar().maxsim_grad_documents(
        batch.queries.data() + q * nq * batch.dim, batch.pairs.own ? 1 : b, nq, batch.dim,
        batch.grad.data() + cell, batch.argmax.data() + cell * nq, columns,
        static_cast<std::size_t>(batch.lengths[i]),
        want_rows.data() + static_cast<std::size_t>(batch.offsets[i]) * batch.dim);
  }
  cuda::maxsim_grad_query(batch.grad.data(), batch.argmax.data(), nq, batch.dim, batch.rows.data(),
                          batch.type, batch.documents(), batch.pairs, query.poison(0xff).data(),
                          nullptr);
  cuda::maxsim_grad_documents(batch.queries.data(), batch.grad.data(), batch.argmax.data(), nq,
                              batch.dim, batch.documents(), batch.pairs, rows.poison(0xff).data(),
                              nullptr);
  tally.same(query, want_query, what + " gradient by the query");
  tally.same(rows, want_rows, what + " gradient by the documents");
}

// Queries of the documents' type. Small whole numbers fit any of them.
void tensor_cores(const Batch &batch, Tally &tally, const std::string &what) {
  const std::size_t size = batch.type == DType::f32 ? 0 : batch.queries.size();
  DeviceBuffer<std::uint16_t> query(size), rows(batch.n_rows * batch.dim);
  for (std::size_t i = 0; i < size; ++i)
    query[i] = batch.type == DType::f16
                   ? to_f16(batch.queries[i])
                   : static_cast<std::uint16_t>(float_bits(batch.queries[i]) >> 16);
  std::memcpy(rows.data(), batch.rows.data(), rows.size() * sizeof rows[0]);
  Buffer<float> scores(batch.scores.size());
  Buffer<std::int32_t> argmax(batch.argmax.size());
  cuda::maxsim_mma(query.data(), batch.nq, batch.dim, rows.data(), batch.type, batch.documents(),
                   batch.pairs, scores.poison(0xff).data(), argmax.poison(0xee).data(), nullptr);
  tally.same(scores, batch.scores, what + " scores by tensor cores");
  tally.same(argmax, batch.argmax, what + " argmax by tensor cores");
}

// What lies outside the rows is left out, whatever the lengths and the argmax say.
void wild_values(Random &random, Tally &tally) {
  Batch batch(random, 1, 4, false, 3, 8, DType::f32, false);
  const std::int64_t first[] = {-5, 1 << 20, 2, 0};
  const std::int32_t lengths[] = {3, 3, 1 << 30, -7}, none[] = {-1, -1, -1};
  const Buffer<float> rows = random.floats(6 * 8);
  const cuda::Documents documents{first, lengths, 4, 6};
  Buffer<float> scores(4);
  Buffer<std::int32_t> argmax(12);
  cuda::maxsim(batch.queries.data(), 3, 8, rows.data(), DType::f32, documents, batch.pairs,
               scores.poison(0xff).data(), argmax.data(), nullptr);
  tally.check(std::isinf(scores[1]) && std::isinf(scores[3]) && std::isfinite(scores[2]),
              "maxsim: documents outside the rows");
  tally.check(std::equal(none, none + 3, argmax.data() + 3), "maxsim: they have no argmax");
  for (std::size_t i = 0; i < argmax.size(); ++i) argmax[i] = 1 << 30;
  Buffer<float> query(24);
  DeviceBuffer<float> out(48);
  cuda::maxsim_grad_query(batch.grad.data(), argmax.data(), 3, 8, rows.data(), DType::f32,
                          documents, batch.pairs, query.poison(0xff).data(), nullptr);
  cuda::maxsim_grad_documents(batch.queries.data(), batch.grad.data(), argmax.data(), 3, 8,
                              documents, batch.pairs, out.poison(0xff).data(), nullptr);
  tally.check(std::all_of(query.data(), query.data() + 24, [](float x) { return x == 0; }),
              "maxsim_grad_query: an argmax outside its document");
}

// Of an infinite value the products with zeros are NaN, and past the query's end are zeros.
void infinite_values(Tally &tally) {
  const std::int64_t first[] = {0};
  const std::int32_t lengths[] = {2};
  const cuda::Documents documents{first, lengths, 1, 2};
  for (const std::size_t nq : {1, 17, 33}) {
    DeviceBuffer<float> query(nq * 8);
    DeviceBuffer<std::uint16_t> narrow(nq * 8), rows(2 * 8);
    for (std::size_t i = 0; i < query.size(); ++i) query[i] = 1.0f, narrow[i] = to_f16(1.0f);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = i == 0 ? 0x7c00 : to_f16(1.0f);
    Buffer<float> wide(1), mma(1);
    cuda::maxsim(query.data(), nq, 8, rows.data(), DType::f16, documents, {1, 1, false},
                 wide.data(), nullptr, nullptr);
    cuda::maxsim_mma(narrow.data(), nq, 8, rows.data(), DType::f16, documents, {1, 1, false},
                     mma.data(), nullptr, nullptr);
    tally.check(wide[0] == HUGE_VALF && mma[0] == HUGE_VALF,
                "maxsim: an infinite value, query " + std::to_string(nq));
  }
}

// Sums past 2^31, for a part of a round and for more than one.
void starts(Random &random, Tally &tally, std::size_t n) {
  Buffer<std::int32_t> lengths(n);
  Buffer<std::int64_t> want(n);
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    lengths[i] = static_cast<std::int32_t>(random.below(1u << 30));
    want[i] = sum, sum += lengths[i];
  }
  both_orders([&] {
    Buffer<std::int64_t> first(n);
    cuda::starts(lengths.data(), n, first.poison(0xff).data(), nullptr);
    tally.same(first, want, "cuda starts, " + std::to_string(n));
  });
}

} // namespace

int main() {
  Tally tally;
  Random random;
  for (const std::size_t nq : kTokens)
    for (const bool own : {false, true})
      for (const DType type : kTypes) {
        const std::size_t dim = pick(random, kDims);
        const bool whole = random.below(3) > 0;
        const std::string what = "cuda maxsim, query " + std::to_string(nq) + ", dim " +
                                 std::to_string(dim) + (own ? ", own" : "");
        const Batch batch(random, 1 + random.below(3), 3, own, nq, dim, type, whole);
        both_orders([&] {
          forward(batch, tally, what);
          backward(batch, tally, what);
          if (whole && type != DType::f32 && dim <= cuda::kMaxMmaDim)
            tensor_cores(batch, tally, what);
        });
      }
  for (const std::size_t n : {0, 1, 9, 1000, 8192, 20'000}) starts(random, tally, n);
  wild_values(random, tally);
  infinite_values(tally);
  return tally.finish();
}
