// What a search reads: some centroids and parts, each a run of documents with lists of its own. All
// arrays belong to the caller.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "packed_codes.h"
#include "search/codec_tables.h"
#include "search/lists.h"

namespace colbert_fast {

struct Part {
  std::size_t base;                  // documents in the parts before
  std::vector<std::int64_t> offsets; // of each document's first token, and one past the last
  // Ids count from 0 in each part. Centroids are appended, so that a part may have fewer lists than
  // there are centroids now.
  Lists lists;
  PackedCodes codes;
  // Residuals, or whole vectors as float16.
  const std::uint8_t *residuals, *scales, *inverse_norms;
  const std::uint16_t *embeddings;

  std::size_t n_docs() const { return offsets.size() - 1; }
  bool holds(std::size_t document) const { return document - base < n_docs(); }
};

// Some tokens of a part, counted from 0 in it; mostly a document's.
struct Tokens {
  const Part &part;
  std::size_t first, count;

  Tokens(const Part &of, std::size_t begin, std::size_t n) : part(of), first(begin), count(n) {}
  Tokens(const Part &of, std::size_t document)
      : part(of), first(static_cast<std::size_t>(of.offsets[document - of.base])),
        count(static_cast<std::size_t>(of.offsets[document - of.base + 1]) - first) {}

  // In memory of this thread, until it unpacks another document's, or of the caller.
  Codes codes() const {
    thread_local AlignedVector<std::int32_t> buffer;
    return codes(buffer);
  }
  Codes codes(AlignedVector<std::int32_t> &buffer) const {
    return part.codes.unpack(first, count, buffer);
  }
  Residuals residuals(const Decoder &decoder) const { return residuals(decoder, codes()); }
  Residuals residuals(const Decoder &decoder, Codes codes) const {
    const auto from = [this](const std::uint8_t *bytes) {
      return bytes == nullptr ? nullptr : bytes + first;
    };
    return {codes, part.residuals + first * decoder.packed_dim, from(part.scales),
            from(part.inverse_norms)};
  }
};

struct Collection {
  const float *centroids;
  std::size_t n_centroids, dim;
  const CodecTables *codec; // null: the parts hold embeddings
  std::vector<Part> parts;

  std::size_t n_docs() const {
    return parts.empty() ? 0 : parts.back().base + parts.back().n_docs();
  }
  std::size_t n_tokens() const {
    std::size_t n = 0;
    for (const Part &part : parts) n += static_cast<std::size_t>(part.offsets.back());
    return n;
  }
  Tokens tokens_of(std::size_t document) const { return Tokens(part_of(document), document); }
  // The last part that begins at or before the document: of several that begin there, all but the
  // last are empty.
  const Part &part_of(std::size_t document) const {
    const auto after =
        std::upper_bound(parts.begin(), parts.end(), document,
                         [](std::size_t id, const Part &part) { return id < part.base; });
    return *(after - 1);
  }
};

} // namespace colbert_fast
