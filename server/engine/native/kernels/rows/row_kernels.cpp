// Finds the row kernels of an instruction set.
#include "kernels/rows/row_kernels.hpp"

#include "kernels/instruction_set.hpp"

namespace secateur {

namespace rows_portable { extern const RowKernels kernels; }
namespace rows_avx2 { extern const RowKernels kernels; }
namespace rows_avx512 { extern const RowKernels kernels; }

const RowKernels& row_kernels([[maybe_unused]] const InstructionSet& set) {
#if defined(SECATEUR_AVX512)
    if (&set == &AVX512) return rows_avx512::kernels;
#endif
#if defined(SECATEUR_AVX2)
    if (&set == &AVX2) return rows_avx2::kernels;
#endif
    return rows_portable::kernels;
}

}  // namespace secateur
