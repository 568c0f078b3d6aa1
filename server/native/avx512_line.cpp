// Integer products of one row of input with AVX-512: vpdpbusd along the rows of the weight, 16 rows summed together.
#include "avx512.hpp"

namespace secateur::avx512 {
namespace {

inline __m512i add_32(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
inline __m512i add_64(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// Sums of one run for 16 rows: over its first 32 columns and over the others.
struct Sums {
    __m512i first, second;
};

template <Kind KIND, Shape SHAPE> inline Sums sums(Stored<SHAPE>& stored, int64_t run, __m512i input) {
    __m512i four[4];  // element r of each quarter: that quarter's sum for row 4 i + r
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        __m512i part[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            __m512i codes = codes_of<KIND, SHAPE>(stored, i * 4 + r, run);
            part[r] = dot_codes(_mm512_setzero_si512(), codes, input);
        }
        four[i] = add_64(add_32(part[0], part[1]), add_32(part[2], part[3]));
    }
    __m512i halves[2];
    for (int i = 0; i < 2; ++i)
        halves[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(four[2 * i], four[2 * i + 1], 0x88),
                                     _mm512_shuffle_i32x4(four[2 * i], four[2 * i + 1], 0xdd));
    return {_mm512_shuffle_i32x4(halves[0], halves[1], 0x88), _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd)};
}

template <Kind KIND, Shape SHAPE>
void line(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    thread_local Buffer<float> scratch;
    const GroupOf group(weight);
    int64_t next = weight.groups() * 8;
    float* scales = scratch.grow(2 * next);
    for (int64_t row = first; row < last; row += TILE) {
        int64_t start = begin(weight, row);
        turn_scales(weight, start, scales);
        Stored<SHAPE> stored(weight, start);
        __m512 total = _mm512_setzero_ps();
        auto add = [&](__m512i sum, int64_t span) {
            sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(input.sums.get()[span] * BIAS<KIND>));
            __m512 both = _mm512_mul_ps(two(scales + group(span) * 8, next), _mm512_set1_ps(input.scales.get()[span]));
            total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, total);
        };
        for (int64_t run = 0; run < input.runs; ++run) {
            Sums both = sums<KIND, SHAPE>(stored, run, _mm512_loadu_si512(input.codes.get() + run * RUN));
            add(both.first, run * 2);
            add(both.second, run * 2 + 1);
        }
        alignas(64) float out[TILE];
        _mm512_storeu_ps(out, total);
        std::copy_n(out + (row - start), std::min(TILE, last - row), output + row);
    }
}

}  // namespace

void codes_line(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    with_layout(weight, [&]<Kind KIND, Shape SHAPE>() {
        line<KIND, SHAPE>(weight, input, first, last, output);
    });
}

}  // namespace secateur::avx512
