// Symmetric codes of 4 and 8 bits with AVX-512.
#include "kernels/matrices/avx512/code_product.hpp"

namespace secateur::avx512 {
namespace {

template <Kind KIND> using Symmetric = CodeProduct<KIND, false>;

}  // namespace

void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    if (weight.asymmetric() || by_spans(weight.kind)) return dense_codes(weight, input, first, last, output);
    weight.kind == Kind::int4 ? multiply_tiles<Symmetric, Kind::int4>(weight, input, first, last, output)
                              : multiply_tiles<Symmetric, Kind::int8>(weight, input, first, last, output);
}

}  // namespace secateur::avx512
