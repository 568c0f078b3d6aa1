// Codes of 3, 5 and 6 bits and asymmetric ones with AVX-512; apart, since GCC inlines less in a larger file.
#include "kernels/matrices/avx512/code_product.hpp"

namespace secateur::avx512 {
namespace {

template <Kind KIND> using Symmetric = CodeProduct<KIND, false>;
template <Kind KIND> using Asymmetric = CodeProduct<KIND, true>;

template <template <Kind> class Product>
void multiply(const Matrix& weight, const RoundedInput& input, int64_t last, float* output, int64_t first) {
    switch (weight.kind) {
        case Kind::int3: return Passes<Product, Kind::int3, true>(weight, input, last, output).pass(first);
        case Kind::int4: return Passes<Product, Kind::int4, true>(weight, input, last, output).pass(first);
        case Kind::int5: return Passes<Product, Kind::int5, true>(weight, input, last, output).pass(first);
        default: return Passes<Product, Kind::int6, true>(weight, input, last, output).pass(first);
    }
}

}  // namespace

void dense_codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    (weight.asymmetric() ? multiply<Asymmetric> : multiply<Symmetric>)(weight, input, last, output, first);
}

}  // namespace secateur::avx512
