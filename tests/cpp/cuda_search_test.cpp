// Whole searches on the emulated GPU. Each stage's scores have the bits of the CPU's, so the same
// stages by the CPU's kernels find the same documents; exhaustive search is the CPU's Searcher's.
#include "cuda/search.h"

#include <limits>
#include <numeric>
#include <set>

#include "cuda/device.cuh"
#include "cuda_cases.h"
#include "packed_codes.h"
#include "search/searcher.h"

using namespace colbert_fast;
using namespace testing;
using cuda::SearchShape;

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

template <class T> DeviceBuffer<T> device(const std::vector<T> &from, std::size_t padding = 0) {
  DeviceBuffer<T> out(from.size() + padding);
  out.poison(0xff);
  std::copy(from.begin(), from.end(), out.data());
  return out;
}

std::vector<std::uint8_t> bytes(Random &random, std::size_t n) {
  const auto drawn = random.integers<std::uint8_t>(n, 256);
  return {drawn.data(), drawn.data() + n};
}

std::vector<float> floats(Random &random, std::size_t n) {
  const auto drawn = random.floats(n);
  return {drawn.data(), drawn.data() + n};
}

struct Sizes {
  std::size_t n_docs, longest, n_centroids, dim;
  int nbits; // 0: vectors as float16
};

// A random index, for either searcher. Half of the ids that its packed codes can hold are those of
// no centroid, where that number is no power of two: they are read as the last.
struct Index {
  Index(Random &random, const Sizes &sizes)
      : dim(sizes.dim), k(sizes.n_centroids), nbits(sizes.nbits),
        centroids(floats(random, k * dim)),
        weights(floats(random, std::size_t{1} << (nbits == 0 ? 1 : nbits))),
        codec(centroids.data(), weights.data(), weights.size(), nbits == 0 ? 1 : nbits, dim) {
    for (std::size_t i = 0; i < sizes.n_docs; ++i) {
      lengths.push_back(static_cast<std::int32_t>(random.below(sizes.longest + 1)));
      starts.push_back(starts.back() + lengths.back());
    }
    const auto n = static_cast<std::size_t>(starts.back());
    const int bits = code_bits(k);
    codes = bytes(random, packed_bytes(n, bits) + kCodePadding);
    build_lists(n, bits);
    residuals = bytes(random, n * codec.decoder().packed_dim);
    if (random.below(3) > 0) scales = bytes(random, n);
    if (random.below(3) > 0) inverse_norms = bytes(random, n);
    for (std::size_t i = 0; i < (nbits == 0 ? n * dim : 0); ++i)
      embeddings.push_back(to_f16(random.uniform()));
  }

  void build_lists(std::size_t n, int bits) {
    const auto largest = static_cast<std::int32_t>(k - 1);
    AlignedVector<std::int32_t> unpacked;
    const Codes read = PackedCodes{codes.data(), bits, largest}.unpack(0, n, unpacked);
    std::vector<std::uint8_t> clamped(codes.size());
    write_codes(read, n, bits, clamped.data());
    const ListBuilder builder({clamped.data(), bits, largest}, starts, k);
    counts = builder.counts(), offsets = builder.offsets();
    data.resize(static_cast<std::size_t>(offsets.back()));
    builder.fill(0, k, data.data());
  }
  Collection collection() const {
    const auto column = [](const std::vector<std::uint8_t> &bytes_of_tokens) {
      return bytes_of_tokens.empty() ? nullptr : bytes_of_tokens.data();
    };
    Part part{0,
              starts,
              {counts.data(), offsets.data(), data.data(), k},
              {codes.data(), code_bits(k), static_cast<std::int32_t>(k - 1)},
              nbits == 0 ? nullptr : residuals.data(),
              column(scales),
              column(inverse_norms),
              nbits == 0 ? embeddings.data() : nullptr};
    return {centroids.data(), k, dim, nbits == 0 ? nullptr : &codec, {part}};
  }

  std::size_t dim, k;
  int nbits;
  std::vector<float> centroids, weights;
  CodecTables codec;
  std::vector<std::int32_t> lengths, counts;
  std::vector<std::int64_t> starts{0}, offsets;
  std::vector<std::uint8_t> codes, data, residuals, scales, inverse_norms;
  std::vector<std::uint16_t> embeddings;
};

// The same in buffers that end where the arrays do.
class OnDevice {
public:
  explicit OnDevice(const Index &index)
      : index_(index), rows_(index.k * index.dim), scale_(index.k), longest_(1),
        centroids_(device(index.centroids)), first_(device(index.starts)),
        lengths_(device(index.lengths)), counts_(device(index.counts)),
        offsets_(device(index.offsets)), data_(device(index.data, cuda::kListPadding)),
        codes_(device(index.codes)), residuals_(device(index.residuals)),
        scales_(device(index.scales)), inverse_norms_(device(index.inverse_norms)),
        embeddings_(device(index.embeddings)) {
    longest_[0] = 0.0f;
    cuda::quantise_centroids(centroids_.data(), index.k, index.dim, rows_.data(), scale_.data(),
                             longest_.data(), nullptr);
  }
  cuda::SearchIndex view() const {
    const auto column = [](const DeviceBuffer<std::uint8_t> &buffer) {
      return buffer.size() == 0 ? nullptr : buffer.data();
    };
    Decoder decoder = index_.codec.decoder();
    decoder.centroids = centroids_.data();
    return {index_.k,
            index_.dim,
            rows_.data(),
            scale_.data(),
            longest_.data(),
            {first_.data(), lengths_.data(), lengths_.size(),
             static_cast<std::size_t>(index_.starts.back())},
            {counts_.data(), offsets_.data(), data_.data(), index_.k},
            {codes_.data(), code_bits(index_.k), residuals_.data(), column(scales_),
             column(inverse_norms_)},
            decoder,
            index_.codec.low(),
            index_.codec.step(),
            index_.nbits == 0 ? embeddings_.data() : nullptr};
  }

private:
  const Index &index_;
  DeviceBuffer<std::uint8_t> rows_;
  DeviceBuffer<float> scale_, longest_, centroids_;
  DeviceBuffer<std::int64_t> first_;
  DeviceBuffer<std::int32_t> lengths_, counts_;
  DeviceBuffer<std::int64_t> offsets_;
  DeviceBuffer<std::uint8_t> data_, codes_, residuals_, scales_, inverse_norms_;
  DeviceBuffer<std::uint16_t> embeddings_;
};

struct Query {
  std::vector<float> rows;
  std::vector<std::int64_t> candidates;
};

// A search by the CPU's kernels, with what the GPU leaves out and adds.
class Expected {
public:
  Expected(const Index &index, const Collection &collection, const SearchShape &shape,
           const Selection &selection, const std::vector<float> &rows)
      : index_(index), part_(collection.parts[0]), shape_(shape), selection_(selection) {
    query_.pack(rows.data(), rows.size() / index.dim, index.dim);
    std::vector<std::int32_t> none;
    bytes_.compute(ByteCentroids(index.centroids.data(), index.k, index.dim), query_, 0, none);
    if (shape.kind == SearchShape::filter && selection.candidates == nullptr)
      gather();
    else
      all_documents(collection, selection, hits_);
  }
  std::vector<Hit> search() {
    const Kernels &cpu = kernels();
    if (shape_.kind == SearchShape::filter) {
      score([&](const colbert_fast::Tokens &tokens) {
        return cpu.approximate_i8(bytes_.table(), tokens.codes(), tokens.count);
      });
      keep(shape_.ndocs);
    }
    const Decoder decoder = index_.codec.decoder();
    if (shape_.kind != SearchShape::exhaustive && index_.nbits != 0 && index_.nbits != 8) {
      colbert_fast::QueryI8 levels;
      levels.pack(query_, index_.codec);
      const float *ratio = bytes_.ratio(query_, index_.codec.step());
      score([&](const colbert_fast::Tokens &tokens) {
        const Residuals residuals = tokens.residuals(decoder);
        float scratch[kLanes], score;
        cpu.residual_maxsim_i8(levels.view(), ratio, bytes_.table(), decoder, &residuals, nullptr,
                               tokens.count, 1, scratch, &score);
        return score;
      });
      keep(shape_.rescored());
    }
    score([&](const colbert_fast::Tokens &tokens) {
      return index_.nbits != 0
                 ? cpu.residual_maxsim(query_.f32(), decoder, tokens.residuals(decoder),
                                       tokens.count)
                 : cpu.maxsim(query_.f32(), part_.embeddings + tokens.first * index_.dim,
                              DType::f16, tokens.count, nullptr);
    });
    keep(shape_.k);
    return hits_;
  }

private:
  void gather() {
    const ByteTable table = bytes_.table();
    std::set<std::size_t> cells;
    for (std::size_t q = 0; q < query_.count(); ++q) {
      if (!(table.step[q] > 0.0f)) continue;
      const auto byte = [&](std::size_t c) { return table.rows[c * table.stride + q]; };
      std::vector<std::size_t> order(index_.k);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](std::size_t a, std::size_t b) { return byte(a) > byte(b); });
      cells.insert(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shape_.nprobe));
    }
    std::vector<std::int32_t> found;
    for (const std::size_t cell : cells) read_list(part_.lists, cell, part_.n_docs(), found);
    for (const std::int32_t id : std::set<std::int32_t>(found.begin(), found.end()))
      if (selection_.holds(static_cast<std::size_t>(id))) hits_.push_back({0.0f, id});
  }
  template <class Score> void score(Score f) {
    for (Hit &hit : hits_)
      hit.score = f(colbert_fast::Tokens(part_, static_cast<std::size_t>(hit.document)));
  }
  void keep(std::size_t n) {
    std::sort(hits_.begin(), hits_.end(), better);
    hits_.resize(std::min(n, hits_.size()));
  }

  const Index &index_;
  const Part &part_;
  const SearchShape &shape_;
  const Selection &selection_;
  QueryPanels query_;
  ByteScores bytes_;
  std::vector<Hit> hits_;
};

struct Found {
  DeviceBuffer<std::int64_t> ids;
  DeviceBuffer<float> scores;
  std::int32_t damaged = 0;
};

// A batch, its queries padded with zeros to one length.
Found search_on_gpu(const cuda::SearchIndex &index, const SearchShape &shape,
                    const std::vector<Query> &queries, const std::vector<std::uint8_t> &allowed,
                    bool given) {
  std::vector<float> rows(shape.n_queries * shape.nq * index.dim, 0.0f);
  std::vector<std::int64_t> candidates, starts{0};
  for (std::size_t b = 0; b < queries.size(); ++b) {
    const auto at = static_cast<std::ptrdiff_t>(b * shape.nq * index.dim);
    std::copy(queries[b].rows.begin(), queries[b].rows.end(), rows.begin() + at);
    candidates.insert(candidates.end(), queries[b].candidates.begin(), queries[b].candidates.end());
    starts.push_back(static_cast<std::int64_t>(candidates.size()));
  }
  const auto on_device = device(rows);
  const auto may = device(allowed);
  const auto ids = device(candidates), from = device(starts);
  const std::size_t n = shape.n_queries * shape.k;
  Found found{DeviceBuffer<std::int64_t>(n), DeviceBuffer<float>(n)};
  found.ids.poison(0xff), found.scores.poison(0xff);
  DeviceBuffer<std::uint8_t> workspace(cuda::search_workspace(index, shape));
  cuda::search(index, shape, on_device.data(),
               {allowed.empty() ? nullptr : may.data(), given ? ids.data() : nullptr, from.data()},
               workspace.poison(0xff).data(), found.ids.data(), found.scores.data(), &found.damaged,
               nullptr);
  return found;
}

const char *const kKinds[] = {"filter", "scan", "exhaustive"};

struct Options {
  std::size_t n_queries, longest_query, k, nprobe, ndocs;
  SearchShape::Kind kind;
  bool subset, given;
};

void check(Random &random, Tally &tally, const Sizes &sizes, const Options &options) {
  const Index index(random, sizes);
  const OnDevice on_device(index);
  const Collection collection = index.collection();
  std::vector<Query> queries(options.n_queries);
  for (Query &query : queries) {
    query.rows = floats(random, (1 + random.below(options.longest_query)) * sizes.dim);
    if (options.given && sizes.n_docs > 0)
      for (std::size_t i = random.below(sizes.n_docs); i > 0; --i)
        query.candidates.push_back(static_cast<std::int64_t>(random.below(sizes.n_docs)));
  }
  std::vector<std::uint8_t> allowed;
  for (std::size_t i = 0; i < (options.subset ? sizes.n_docs : 0); ++i)
    allowed.push_back(static_cast<std::uint8_t>(random.below(2)));
  const SearchShape shape{options.n_queries, (options.longest_query + 31) / 32 * 32,
                          options.k,         std::min(options.nprobe, sizes.n_centroids),
                          options.ndocs,     options.kind};
  const std::string what =
      std::string(kKinds[options.kind]) + ", docs " + std::to_string(sizes.n_docs) + ", dim " +
      std::to_string(sizes.dim) + ", nbits " + std::to_string(sizes.nbits) + ", centroids " +
      std::to_string(sizes.n_centroids) + ", nprobe " + std::to_string(shape.nprobe) + ", ndocs " +
      std::to_string(shape.ndocs) + ", k " + std::to_string(shape.k) +
      (options.subset ? ", subset" : "") + (options.given ? ", candidates" : "");

  Buffer<std::int64_t> ids(options.n_queries * options.k);
  Buffer<float> scores(ids.size());
  std::fill_n(ids.data(), ids.size(), -1);
  std::fill_n(scores.data(), scores.size(), kNothing);
  const Searcher searcher(collection);
  for (std::size_t b = 0; b < options.n_queries; ++b) {
    const Query &query = queries[b];
    static constexpr std::int64_t kNone = 0;
    const Selection selection{options.subset ? allowed.data() : nullptr, sizes.n_docs,
                              !options.given             ? nullptr
                              : query.candidates.empty() ? &kNone
                                                         : query.candidates.data(),
                              query.candidates.size()};
    std::vector<Hit> hits;
    if (options.kind == SearchShape::exhaustive)
      searcher.search(query.rows.data(), query.rows.size() / sizes.dim,
                      {options.k, 1, 1, false, 0.0f, true}, selection, hits);
    else
      hits = Expected(index, collection, shape, selection, query.rows).search();
    for (std::size_t i = 0; i < hits.size(); ++i) {
      ids[b * options.k + i] = hits[i].document;
      scores[b * options.k + i] = hits[i].score;
    }
  }
  both_orders([&] {
    const Found found = search_on_gpu(on_device.view(), shape, queries, allowed, options.given);
    tally.same(found.ids, ids, "cuda search ids, " + what);
    tally.same(found.scores, scores, "cuda search scores, " + what);
    tally.check(found.damaged == 0, "cuda search damaged, " + what);
  });
}

// Lists that are not what they claim: told, and nothing else than a document is found.
void damage(Random &random, Tally &tally) {
  const Sizes sizes{50, 6, 5, 16, 2};
  for (std::size_t i = 0; i < 40; ++i) {
    Index index(random, sizes);
    const std::size_t list = random.below(sizes.n_centroids);
    const auto header = static_cast<std::size_t>(index.offsets[list]);
    const bool in_data = random.below(2) == 0;
    if (index.counts[list] == 0) continue;
    if (in_data)
      index.data[header] = static_cast<std::uint8_t>(index.data[header] + 1 + random.below(250));
    else
      index.counts[list] += 100;
    const std::vector<Query> queries{{floats(random, 3 * sizes.dim), {}}};
    const SearchShape shape{1, 32, 9, sizes.n_centroids, 30, SearchShape::filter};
    const Found found = search_on_gpu(OnDevice(index).view(), shape, queries, {}, false);
    tally.check(found.damaged == static_cast<std::int32_t>(list) + 1, "cuda search, damaged list");
    for (std::size_t j = 0; j < shape.k; ++j)
      tally.check(found.ids[j] < 50 && found.ids[j] >= -1, "cuda search, id in a damaged list");
  }
}

} // namespace

int main() {
  Tally tally;
  Random random;
  using Kind = SearchShape::Kind;
  constexpr Kind kFilter = SearchShape::filter, kScan = SearchShape::scan,
                 kAll = SearchShape::exhaustive;
  for (const int nbits : {1, 2, 3, 4, 8, 0}) {
    const std::size_t dim = nbits % 2 == 0 ? 40 : 128;
    check(random, tally, {90, 9, 37, dim, nbits}, {3, 33, 5, 2, 20, kFilter, false, false});
    check(random, tally, {40, 70, 300, 8, nbits}, {2, 20, 50, 4, 60, kFilter, true, false});
    check(random, tally, {30, 12, 16, dim, nbits}, {2, 40, 7, 1, 1, kAll, nbits > 2, false});
    if (nbits % 8 == 0) continue;
    check(random, tally, {30, 12, 7, 24, nbits}, {2, 9, 30, 1, 1, kScan, nbits > 1, nbits > 2});
    check(random, tally, {30, 5, 7, dim, nbits}, {3, 9, 4, 1, 1, kAll, nbits > 1, true});
  }
  // Float16 rows so long that fewer of them are staged at once.
  check(random, tally, {4, 70, 5, 512, 0}, {1, 9, 3, 1, 1, kAll, false, false});
  // The smallest, all cells, fewer documents kept than wanted in exact scores, many equal scores.
  check(random, tally, {1, 1, 1, 8, 2}, {1, 1, 1, 1, 1, kFilter, false, false});
  check(random, tally, {60, 4, 520, 8, 1}, {1, 32, 3, 520, 3, kFilter, false, false});
  check(random, tally, {300, 1, 3, 8, 1}, {1, 2, 40, 1, 130, kFilter, true, false});
  // More documents than a chunk of a bitmap has, more centroids than a chunk of the table.
  check(random, tally, {33000, 1, 2000, 8, 2}, {1, 3, 10, 5, 64, kFilter, false, false});
  damage(random, tally);
  return tally.finish();
}
