// Integer products with AVX-512: vpdpbusd on tiles; each element of a register is the sum of one row.
#pragma once

#include "kernels/matrices/avx512/avx512.hpp"

namespace secateur::avx512 {
// total + products of unsigned `a` and signed `b`, four to an element. With the intrinsic, GCC 12 moves each sum twice
// per iteration; the bare instruction updates it in place.
inline __m512i dot(__m512i total, __m512i a, __m512i b) {
#if defined(SECATEUR_EMULATE)
    return _mm512_dpbusd_epi32(total, a, b);
#else
    asm("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(a), "v"(b));
    return total;
#endif
}

inline __m512 halves(const uint16_t* place) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(place)));
}

template <Kind KIND, bool ASYMMETRIC> struct CodeProduct {
    template <int COUNT, typename From>
    static void run(From& tiles, const Matrix& weight, int64_t block, const RoundedInput& input, int64_t token,
                    __m512 (*totals)[COUNT]) {
        const GroupOf group(weight);
        const int64_t spans = input.runs * 2, place = token * spans, groups = weight.groups();
        for (int i = 0; i < PARTS; ++i)
            for (int t = 0; t < COUNT; ++t) totals[i][t] = _mm512_setzero_ps();
        for (int64_t span = 0; span < spans; ++span) {
            const int8_t* x = input.codes.get() + (place + span) * SPAN;
            __m512i sums[PARTS][COUNT];
            for (int t = 0; t < COUNT; ++t)
                sums[0][t] = sums[1][t] = _mm512_set1_epi32(-input.sums.get()[place + span + t * spans] * bias(KIND, ASYMMETRIC));
#pragma GCC unroll 4
            for (int j = 0; j < SPAN; j += 8) {
                __m512i even[PARTS], odd[PARTS];
                tiles.next(even, odd, j / 8);
                for (int t = 0; t < COUNT; ++t) {
                    const int8_t* row = x + t * spans * SPAN + j;
                    const __m512i low = four_bytes(row), high = four_bytes(row + 4);
                    for (int i = 0; i < PARTS; ++i) sums[i][t] = dot(dot(sums[i][t], even[i], low), odd[i], high);
                }
            }
            for (int i = 0; i < PARTS; ++i) {
                const int64_t first = (block * groups + group(span)) * BLOCK_ROWS + i * TILE_ROWS;
                const __m512 scale = halves(weight.scales + first);
                for (int t = 0; t < COUNT; ++t) {
                    const float of_input = input.scales.get()[place + span + t * spans];
                    const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(of_input));
                    totals[i][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][t]), both, totals[i][t]);
                }
                if constexpr (ASYMMETRIC) {
                    const __m512 minimum = halves(weight.minimums + first);
                    for (int t = 0; t < COUNT; ++t) {
                        const __m512 of_input = _mm512_set1_ps(input.totals.get()[place + span + t * spans]);
                        totals[i][t] = _mm512_fmadd_ps(minimum, of_input, totals[i][t]);
                    }
                }
            }
        }
    }
};

}  // namespace secateur::avx512
