// Centroid scores in int8, a byte each: what chooses centroids and ranks documents before any exact
// score is computed.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.h"
#include "byte_centroids.h"
#include "cpu/kernels.h"
#include "search/query_panels.h"

namespace colbert_fast {

// One query's scores with all centroids. Keeps its memory from query to query.
class ByteScores {
public:
  // Fills the table; with nprobe > 0 also cells[count][nprobe], the best centroids of each query
  // token in descending score, ties by the lower id. nprobe <= kMostProbes (of probe.h)
  // and centroids.size().
  void compute(const ByteCentroids &centroids, const QueryPanels &query, std::size_t nprobe,
               std::vector<std::int32_t> &cells);

  ByteTable table() const { return {rows_.data(), stride_, step_.data()}; }
  // Per lane, a byte that about `above` centroids exceed, judged by a sample; valid until the next
  // call.
  const std::uint8_t *quantile(std::size_t above);
  // Per lane, `unit_of_bytes` times the query's unit, in steps of the table.
  const float *ratio(const QueryPanels &query, float unit_of_bytes);
  std::size_t bytes() const { return rows_.capacity(); }

private:
  void merge(const QueryPanels &query, std::size_t nprobe, std::vector<std::int32_t> &cells);

  AlignedVector<std::uint8_t> rows_;
  AlignedVector<std::uint8_t> quantile_;
  AlignedVector<float> step_, ratio_;
  QueryI8 query_;
  std::size_t stride_ = 0;
  // Winners of each block of centroids.
  std::vector<float> values_;
  std::vector<std::int32_t> ids_;
  std::vector<std::uint16_t> counts_; // stride x 256: how often a lane has a byte
};

} // namespace colbert_fast
