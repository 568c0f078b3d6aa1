// Shared by the AVX2 kernels.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernels/instruction_set.hpp"

namespace secateur::avx2 {

constexpr int64_t TILE = 16;  // rows unpacked together

inline __m256i load(const void* place) { return _mm256_loadu_si256(static_cast<const __m256i*>(place)); }
inline void store(void* place, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(place), value); }

// 8 rows of `scales` [rows, groups], or of minimums, as float32 [groups, 8]; rows from `last` on repeat the one before.
void transpose_scales(const uint16_t* scales, int64_t groups, int64_t first, int64_t last, float* out);

// Added to a code of 4 bits to make it unsigned.
inline int four_bit_bias(const Matrix& weight) { return weight.asymmetric() ? 0 : 8; }

// Integer products with one row of input, and with several.
void codes_gemv(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);
void codes_gemm(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);

void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);

// Transposes 8 x 8 elements of 32 bits.
inline void transpose(const __m256i* in, __m256i* out) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; ++i) {
        out[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        out[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

}  // namespace secateur::avx2
