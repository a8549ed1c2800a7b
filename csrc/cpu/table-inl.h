// Included last by each ISA file: the families over that file's vocabulary, and their table.
#include "bits-inl.h"
#include "maxsim-inl.h"

#include "candidates-inl.h"
#include "codes-inl.h"
#include "kmeans-inl.h"
#include "pooling-inl.h"
#include "residual-inl.h"
#include "trellis-inl.h"

namespace colbert_fast {

extern const Kernels COLBERT_FAST_TABLE;
// clang-format off
const Kernels COLBERT_FAST_TABLE = {
    COLBERT_FAST_ISA_NAME, kScreens,
    maxsim, maxsim_grad_query, maxsim_grad_documents,
    assign, assign_screened, sum_rows, widen,
    quantise, near_columns, best_columns, products,
    ward,
    scores, probe, approximate, scores_i8, approximate_i8, row_scores_i8,
    likely_tokens, raise_rows,
    unpack_codes,
    pack, unpack, compress, compress_trellis, decompress, residual_maxsim, residual_maxsim_i8,
    contenders, residual_maxsim_marked,
};
// clang-format on

} // namespace colbert_fast
