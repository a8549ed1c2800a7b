// Scores for hits, one after the other, in parallel.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "search/gathering.h"
#include "thread_pool.h"

namespace colbert_fast {

// NaN, from a damaged file, would break the order that selection needs.
inline float ordered(float score) {
  return score == score ? score : -std::numeric_limits<float>::infinity();
}

// Hits [begin, end) get score(tokens, index of the hit) each, `grain` at a time.
template <class Score>
void score_each(const Collection &collection, std::vector<Hit> &hits, std::size_t begin,
                std::size_t end, std::size_t grain, Score score) {
  // Hits whose codes are fetched ahead, and offsets twice as far: of many documents the next one
  // gathered lies pages away.
  constexpr std::size_t kAhead = 8;
  parallel_for(end - begin, grain, [&](std::size_t first, std::size_t last) {
    const Part *part = collection.parts.data(); // where hits are many they ascend
    for (std::size_t i = begin + first; i < begin + last; ++i) {
      const auto document = static_cast<std::size_t>(hits[i].document);
      if (!part->holds(document)) part = &collection.part_of(document);
#if !defined(_MSC_VER)
      // Written out: gcc takes a function that only prefetches for one without effect.
      const auto later = static_cast<std::size_t>(hits[std::min(i + 2 * kAhead, end - 1)].document);
      if (part->holds(later)) __builtin_prefetch(part->offsets.data() + (later - part->base));
      const auto soon = static_cast<std::size_t>(hits[std::min(i + kAhead, end - 1)].document);
      if (part->holds(soon)) {
        const Tokens tokens(*part, soon);
        const auto bits = static_cast<std::size_t>(part->codes.bits);
        const std::size_t end_byte = (tokens.first + tokens.count) * bits / 8;
        for (std::size_t at = tokens.first * bits / 8; at < end_byte; at += 64)
          __builtin_prefetch(part->codes.data + at);
      }
#endif
      hits[i].score = ordered(score(Tokens(*part, document), i));
    }
  });
}

} // namespace colbert_fast
