// bfloat16 products with AVX2: both operands become float32, 8 columns to a register. Each output is one chain of fused
// additions by ascending column and a fixed sum across its register, so it does not depend on the batch.
#include "kernels/matrices/avx2/avx2.hpp"
#include "kernels/matrices/avx2/spread.hpp"
#include "kernels/matrices/rounding.hpp"

namespace secateur::avx2 {
namespace {

constexpr int64_t TOKENS = 32;  // rows of input whose float32 form stays in the second-level cache

struct Scratch {
    Buffer<float> input, weight;
};

// The even and the odd columns of 16 bfloat16 values, without moves between lanes.
inline __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

// ((0 + 2) + (1 + 3)) of the lower half plus that of the upper half.
inline float sum(__m256 value) {
    __m256 pairs = _mm256_add_ps(value, _mm256_permute_ps(value, 0b01001110));
    __m256 four = _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0b10110001));
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}

// Rows of input as float32; for dense weights the even columns of each 16 come first.
template <bool DENSE> void widen(const uint16_t* halves, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += 16) {
        __m256i pairs = load(halves + i);
        if (DENSE) {
            _mm256_storeu_ps(out + i, even(pairs));
            _mm256_storeu_ps(out + i + 8, odd(pairs));
            continue;
        }
        for (int half = 0; half < 2; ++half) {
            __m128i eight = half ? _mm256_extracti128_si256(pairs, 1) : _mm256_castsi256_si128(pairs);
            store(out + i + half * 8, _mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
        }
    }
}

// The next eight columns as float32, zero where `mask` has no bit; advances both arguments.
inline __m256 eight(uint64_t& mask, const uint8_t*& values) {
    uint64_t part = mask & 255;
    __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
    values += _mm_popcnt_u64(part) * 2;
    mask >>= 8;
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(twice, load(CONTROLS.of[part])));
}

void gemv_dense(const Matrix& weight, const float* input, int64_t runs, int64_t first, int64_t last, float* output) {
    constexpr int ROWS = 8;  // independent sums that hide the latency of fma
    for (int64_t row = first; row < last; row += ROWS) {
        PackedRows<ROWS> stored(weight, row, last);
        __m256 total[ROWS];
        for (int i = 0; i < ROWS; ++i) total[i] = _mm256_setzero_ps();
        for (int64_t run = 0; run < runs; ++run) {
            const float* x = input + run * RUN;
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                const uint8_t* values = stored.run(i, run);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) {
                    __m256i pairs = load(values + j * 32);
                    total[i] = _mm256_fmadd_ps(even(pairs), _mm256_loadu_ps(x + j * 16), total[i]);
                    total[i] = _mm256_fmadd_ps(odd(pairs), _mm256_loadu_ps(x + j * 16 + 8), total[i]);
                }
            }
        }
        for (int i = 0; i < std::min<int64_t>(ROWS, last - row); ++i) output[row + i] = sum(total[i]);
    }
}

void gemv_sparse(const Matrix& weight, const float* input, int64_t runs, int64_t first, int64_t last, float* output) {
    constexpr int ROWS = 4;  // 4 masks and 4 pointers fill the general registers
    for (int64_t row = first; row < last; row += ROWS) {
        PackedRows<ROWS> stored(weight, row, last);
        __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
        for (int64_t run = 0; run < runs; ++run) {
            uint64_t of_a = stored.mask(0, run), of_b = stored.mask(1, run), of_c = stored.mask(2, run),
                     of_d = stored.mask(3, run);
            const uint8_t *at_a = stored.run(0, run), *at_b = stored.run(1, run), *at_c = stored.run(2, run),
                          *at_d = stored.run(3, run);
#pragma GCC unroll 1  // else the compiler spills the parts of all masks to the stack
            for (const float* x = input + run * RUN; x < input + (run + 1) * RUN; x += 8) {
                __m256 columns = _mm256_loadu_ps(x);
                a = _mm256_fmadd_ps(eight(of_a, at_a), columns, a);
                b = _mm256_fmadd_ps(eight(of_b, at_b), columns, b);
                c = _mm256_fmadd_ps(eight(of_c, at_c), columns, c);
                d = _mm256_fmadd_ps(eight(of_d, at_d), columns, d);
            }
        }
        __m256 total[ROWS] = {a, b, c, d};
        for (int i = 0; i < std::min<int64_t>(ROWS, last - row); ++i) output[row + i] = sum(total[i]);
    }
}

// ROWS rows of weight times COUNT rows of input, both float32 in the same order of columns.
template <int ROWS, int COUNT>
inline void block(const float* weight, const float* input, int64_t width, float* output, int64_t next) {
    __m256 total[ROWS][COUNT];
    for (int i = 0; i < ROWS; ++i)
        for (int t = 0; t < COUNT; ++t) total[i][t] = _mm256_setzero_ps();
    for (int64_t j = 0; j < width; j += 8) {
        __m256 x[COUNT];
        for (int t = 0; t < COUNT; ++t) x[t] = _mm256_loadu_ps(input + t * width + j);
        for (int i = 0; i < ROWS; ++i) {
            __m256 w = _mm256_loadu_ps(weight + i * width + j);
            for (int t = 0; t < COUNT; ++t) total[i][t] = _mm256_fmadd_ps(w, x[t], total[i][t]);
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int t = 0; t < COUNT; ++t) output[t * next + i] = sum(total[i][t]);
}

template <int ROWS>
void blocks(const float* weight, const float* input, int64_t count, int64_t width, float* output, int64_t next) {
    int64_t token = 0;
    for (; token + 4 <= count; token += 4)
        block<ROWS, 4>(weight, input + token * width, width, output + token * next, next);
    const float* x = input + token * width;
    float* out = output + token * next;
    switch (count - token) {
        case 3: return block<ROWS, 3>(weight, x, width, out, next);
        case 2: return block<ROWS, 2>(weight, x, width, out, next);
        case 1: return block<ROWS, 1>(weight, x, width, out, next);
    }
}

// One run of one row as 64 float32, in the order of `widen`.
template <bool DENSE> inline void unpack(PackedRows<3>& stored, int64_t row, int64_t run, float* out) {
    const uint8_t* values = stored.run(row, run);
    if (DENSE) return widen<true>(reinterpret_cast<const uint16_t*>(values), RUN, out);
    uint64_t mask = stored.mask(row, run);
#pragma GCC unroll 1
    for (int j = 0; j < RUN; j += 8) _mm256_storeu_ps(out + j, eight(mask, values));
}

template <bool DENSE>
void gemm(const Matrix& weight, const float* input, int64_t tokens, int64_t runs, int64_t first, int64_t last,
           float* wide, float* output) {
    constexpr int64_t ROWS = 3;  // 3 x 4 sums, 4 inputs: all 16 registers
    for (int64_t row = first; row < last; row += ROWS) {
        PackedRows<ROWS> stored(weight, row, last);
        for (int64_t run = 0; run < runs; ++run)
            for (int64_t i = 0; i < ROWS; ++i) unpack<DENSE>(stored, i, run, wide + (i * runs + run) * RUN);
        float* out = output + row;
        switch (std::min(ROWS, last - row)) {
            case 3: blocks<3>(wide, input, tokens, runs * RUN, out, weight.rows); break;
            case 2: blocks<2>(wide, input, tokens, runs * RUN, out, weight.rows); break;
            default: blocks<1>(wide, input, tokens, runs * RUN, out, weight.rows);
        }
    }
}

template <bool DENSE>
void product(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    thread_local Scratch scratch;
    int64_t width = input.runs * RUN;
    for (int64_t token = 0; token < input.tokens; token += TOKENS) {
        int64_t count = std::min(TOKENS, input.tokens - token);
        float* x = scratch.input.grow(count * width);
        widen<DENSE>(input.bf16.get() + token * width, count * width, x);
        float* out = output + token * weight.rows;
        if (count == 1) {
            (DENSE ? gemv_dense : gemv_sparse)(weight, x, input.runs, first, last, out);
        } else {
            float* wide = scratch.weight.grow(3 * width);
            gemm<DENSE>(weight, x, count, input.runs, first, last, wide, out);
        }
    }
}

}  // namespace

void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    weight.dense() ? product<true>(weight, input, first, last, output)
                   : product<false>(weight, input, first, last, output);
}

}  // namespace secateur::avx2

namespace secateur {
namespace {

void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    input.tokens == 1 ? avx2::codes_gemv(weight, input, first, last, output)
                      : avx2::codes_gemm(weight, input, first, last, output);
}

}  // namespace

const InstructionSet AVX2{"avx2", codes, avx2::bf16, round_to_codes};

}  // namespace secateur
