// Which table runs: the best one this CPU supports, or the one COLBERT_FAST_ISA names.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace colbert_fast {

// The active table. Throws std::runtime_error, once and for each later call, if COLBERT_FAST_ISA
// names a table that is unknown or that this CPU cannot run.
const Kernels &kernels();

// Best first; "scalar" is always there and last.
std::vector<const Kernels *> available_kernels();

// Choose a table by name; throws std::runtime_error naming the choices.
void set_isa(const std::string &name);

} // namespace colbert_fast
