// Which documents each query of a batch is scored with.
#pragma once

#include <cstddef>

#ifdef __CUDACC__
#define COLBERT_FAST_ANYWHERE __host__ __device__
#else
#define COLBERT_FAST_ANYWHERE
#endif

namespace colbert_fast {

// All documents, or as many of its own, query after query. Results are (n_queries, columns).
struct Pairs {
  std::size_t n_queries, columns;
  bool own;

  COLBERT_FAST_ANYWHERE std::size_t queries_per_document() const { return own ? 1 : n_queries; }
  COLBERT_FAST_ANYWHERE std::size_t first_query(std::size_t document) const {
    return own ? document / columns : 0;
  }
  COLBERT_FAST_ANYWHERE std::size_t end_query(std::size_t document) const {
    return first_query(document) + queries_per_document();
  }
  COLBERT_FAST_ANYWHERE std::size_t first_document(std::size_t query) const {
    return own ? query * columns : 0;
  }
  COLBERT_FAST_ANYWHERE std::size_t at(std::size_t query, std::size_t document) const {
    return query * columns + document - first_document(query);
  }
};

} // namespace colbert_fast
