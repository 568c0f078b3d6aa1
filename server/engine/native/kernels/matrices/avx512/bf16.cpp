// bfloat16 products with AVX-512: vdpbf16ps on tiles. Each output is the sum of two chains, over even and odd pairs of
// columns, so it does not depend on the batch.
#include "kernels/matrices/avx512/avx512.hpp"
#include "kernels/matrices/rounding.hpp"

namespace secateur::avx512 {
namespace {

inline __m512 dot(__m512 total, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(total, (__m512bh)a, (__m512bh)b);
}

template <Kind KIND> struct Product {
    template <int COUNT, typename From>
    static void run(From& tiles, const Matrix&, int64_t, const RoundedInput& input, int64_t token,
                    __m512 (*totals)[COUNT]) {
        const int64_t width = input.runs * RUN;
        const uint16_t* x = input.bf16.get() + token * width;
        __m512 even[PARTS][COUNT], odd[PARTS][COUNT];
        for (int i = 0; i < PARTS; ++i)
            for (int t = 0; t < COUNT; ++t) even[i][t] = odd[i][t] = _mm512_setzero_ps();
        for (int64_t j = 0; j < width; j += 4) {
            __m512i first[PARTS], second[PARTS];
            tiles.next(first, second, 0);
            for (int t = 0; t < COUNT; ++t) {
                const __m512i low = four_bytes(x + t * width + j), high = four_bytes(x + t * width + j + 2);
                for (int i = 0; i < PARTS; ++i) {
                    even[i][t] = dot(even[i][t], first[i], low);
                    odd[i][t] = dot(odd[i][t], second[i], high);
                }
            }
        }
        for (int i = 0; i < PARTS; ++i)
            for (int t = 0; t < COUNT; ++t) totals[i][t] = _mm512_add_ps(even[i][t], odd[i][t]);
    }
};

}  // namespace

void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    multiply_tiles<Product, Kind::bf16>(weight, input, first, last, output);
}

}  // namespace secateur::avx512

namespace secateur {
namespace {

// Weights that did not fit into memory twice are not in tiles.
void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    (weight.tiled ? avx512::codes : AVX2.codes)(weight, input, first, last, output);
}

void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    (weight.tiled ? avx512::bf16 : AVX2.bf16)(weight, input, first, last, output);
}

}  // namespace

const InstructionSet AVX512{"avx512", codes, bf16, round_to_codes, true};

}  // namespace secateur
