// The one thread pool. parallel_for splits [0, n) into grains that threads take from a counter; the
// caller works too. Kernels give the same bits however the range is cut, so nothing else is needed.
#pragma once

#include <cstddef>
#include <functional>

namespace colbert_fast {

std::size_t num_threads();

// n >= 1; takes effect at the next parallel_for.
void set_num_threads(std::size_t n);

// Calls body(begin, end) over disjoint ranges covering [0, n), each at most `grain` long. The first
// exception is rethrown. A call from inside a body that was cut up, or while another thread runs a
// parallel_for, does its work alone: many Python threads searching at once then share the cores
// without queueing.
void parallel_for(std::size_t n, std::size_t grain,
                  const std::function<void(std::size_t begin, std::size_t end)> &body);

} // namespace colbert_fast
