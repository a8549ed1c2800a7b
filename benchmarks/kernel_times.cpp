// The int8 kernels alone, as a search calls them: what Python's benchmarks reach only together with
// what is done once a call. All tables that this CPU runs take turns and must agree.
//
//   cmake -S tests/cpp -B build-cpp && cmake --build build-cpp --target kernel_times
//   build-cpp/kernel_times [rounds]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <vector>

#include "aligned.h"
#include "cpu/dispatch.h"

using namespace colbert_fast;

namespace {

constexpr std::size_t kCentroids = 8192, kDocuments = 512, kTokens = 70, kQueryTokens = 32;
constexpr std::size_t kNprobe = 4;

template <class F> auto filled(std::size_t n, F make) {
  AlignedVector<decltype(make())> all(n);
  std::generate(all.begin(), all.end(), make);
  return all;
}

// One table's time counts only while no other program has the CPU.
double seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

class Race {
public:
  explicit Race(int rounds) : rounds_(rounds), tables_(available_kernels()) {
    std::printf("ns per token or centroid, best of %d\n%-40s", rounds_, "");
    for (const Kernels *table : tables_) std::printf("%10s", table->name);
    std::printf("\n");
  }
  // `work` returns a sum of what it computed.
  void run(const char *name, std::size_t units,
           const std::function<double(const Kernels &)> &work) {
    std::vector<double> best(tables_.size(), 1e30), sums(tables_.size());
    for (int round = 0; round < rounds_; ++round)
      for (std::size_t i = 0; i < tables_.size(); ++i) {
        const double start = seconds();
        sums[i] = work(*tables_[i]);
        best[i] = std::min(best[i], seconds() - start);
      }
    std::printf("%-40s", name);
    for (const double time : best) std::printf("%10.2f", time / static_cast<double>(units) * 1e9);
    const bool same = std::equal(sums.begin() + 1, sums.end(), sums.begin());
    std::printf("%s\n", same ? "" : "  DIFFERENT RESULTS");
    failed = failed || !same;
  }
  bool failed = false;

private:
  int rounds_;
  std::vector<const Kernels *> tables_;
};

void race(Race &race, std::size_t dim, int nbits) {
  constexpr std::size_t n = kDocuments * kTokens;
  const std::size_t packed_dim = dim * static_cast<std::size_t>(nbits) / 8;
  std::mt19937 random(1);
  const auto byte = [&] { return static_cast<std::uint8_t>(random()); };
  const auto level = [&] { return static_cast<std::uint8_t>(random() % 128); };
  const auto real = [&] { return static_cast<float>(random() % 2001) * 1e-3f - 1.0f; };
  const auto code = [&] { return static_cast<std::int32_t>(random() % kCentroids); };
  const auto signed_byte = [&] { return static_cast<std::int8_t>(random() % 255 - 127); };
  const auto packed = filled(n * packed_dim, byte), scales = filled(n, byte),
             norms = filled(n, byte), table = filled(kCentroids * kQueryTokens, byte),
             levels = filled(256, level), rows = filled(kCentroids * dim, level);
  const auto codes = filled(n, code);
  const auto query = filled(kQueryTokens * dim, signed_byte);
  const auto centroids = filled(kCentroids * dim, real), values = filled(256, real);
  const std::vector<std::int32_t> start(kQueryTokens, -1000);
  const std::vector<float> ones(256, 1.0f), ratio(kQueryTokens, 1e-3f),
      row_scale(kCentroids, 1e-2f);
  const PanelsI8 panels{query.data(), start.data(), kQueryTokens, kQueryTokens / kLanes, dim};
  const ByteTable bytes{table.data(), kQueryTokens, ones.data()};
  const Decoder decoder{centroids.data(), values.data(), levels.data(), ones.data(),
                        ones.data(),      nbits,         dim,           packed_dim};
  const Residuals tokens{{codes.data(), true}, packed.data(), scales.data(), norms.data()};
  char name[64];
  std::snprintf(name, sizeof name, "fused int8, dim %zu, nbits %d", dim, nbits);
  race.run(name, n, [&](const Kernels &k) {
    double sum = 0;
    for (std::size_t i = 0; i < n; i += kTokens) {
      const Residuals document = residuals_from(tokens, decoder, i);
      float scratch[kLanes], score;
      k.residual_maxsim_i8(panels, ratio.data(), bytes, decoder, &document, nullptr, kTokens, 1,
                           scratch, &score);
      sum += score;
    }
    return sum;
  });
  // Every third token, eight documents at once.
  constexpr std::size_t kGroup = 8, kEvery = 3;
  std::vector<Chosen> chosen;
  for (std::size_t i = 0; i < kGroup; ++i)
    for (std::size_t t = 0; t < kTokens; t += kEvery)
      chosen.push_back({static_cast<std::int32_t>(i), static_cast<std::int32_t>(t)});
  std::snprintf(name, sizeof name, "the same of some, dim %zu, nbits %d", dim, nbits);
  race.run(name, kDocuments / kGroup * chosen.size(), [&](const Kernels &k) {
    double sum = 0;
    Residuals documents[kGroup];
    float scratch[kGroup * kLanes], scores[kGroup];
    for (std::size_t first = 0; first < kDocuments; first += kGroup) {
      for (std::size_t i = 0; i < kGroup; ++i)
        documents[i] = residuals_from(tokens, decoder, (first + i) * kTokens);
      k.residual_maxsim_i8(panels, ratio.data(), bytes, decoder, documents, chosen.data(),
                           chosen.size(), kGroup, scratch, scores);
      for (const float score : scores) sum += score;
    }
    return sum;
  });
  if (nbits != 1) return; // the rest has no residuals
  std::snprintf(name, sizeof name, "centroid scores and the best %zu, dim %zu", kNprobe, dim);
  std::vector<float> best(kQueryTokens * kNprobe);
  std::vector<std::int32_t> cells(best.size());
  std::vector<std::uint8_t> out(kCentroids * kQueryTokens);
  race.run(name, kCentroids, [&](const Kernels &k) {
    std::fill(best.begin(), best.end(), -1e30f);
    std::fill(cells.begin(), cells.end(), -1);
    k.scores_i8(panels, ratio.data(), rows.data(), row_scale.data(), kCentroids, out.data(),
                kQueryTokens, 0, kNprobe, best.data(), cells.data());
    double sum = 0;
    for (const std::int32_t cell : cells) sum += cell;
    return sum;
  });
  race.run("approximate, one code, of a byte table", n, [&](const Kernels &k) {
    double sum = 0;
    for (std::size_t i = 0; i < n; i += kTokens)
      sum += k.approximate_i8(bytes, codes_from(tokens.codes, i), kTokens);
    return sum;
  });
  const std::vector<std::uint8_t> reach(kQueryTokens, 3);
  std::vector<std::uint8_t> bounds(kQueryTokens);
  std::vector<Chosen> which(kTokens);
  race.run("likely tokens, one code", n, [&](const Kernels &k) {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < n; i += kTokens)
      sum += k.likely_tokens(bytes, reach.data(), codes_from(tokens.codes, i), kTokens, 0,
                             bounds.data(), which.data());
    return static_cast<double>(sum);
  });
}

} // namespace

int main(int argc, char **argv) {
  Race all(argc > 1 ? std::atoi(argv[1]) : 15);
  for (const std::size_t dim : {128, 96})
    for (const int nbits : {1, 2, 3, 4}) race(all, dim, nbits);
  return all.failed ? 1 : 0;
}
