// What the files of the AVX-512 kernels share: the values of one run of a row in registers, whatever its layout.
#pragma once

#include <immintrin.h>
#if defined(SECATEUR_EMULATE)
#include "emulate.hpp"  // tests/native: the same kernels where the processor has no AVX-512
#endif

#include <algorithm>
#include <bit>

#include "avx2.hpp"
#include "decode.hpp"
#include "instruction_set.hpp"

namespace secateur::avx512 {

constexpr int64_t TILE = 16;  // rows whose sums fill a register

inline uint64_t lowest(int64_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

// Where the runs of up to TILE rows lie; rows past the last are the last one again. Loads are masked to what belongs
// to the run, so nothing is read past the end of the file.
template <bool DENSE> class Stored {
public:
    Stored(const Matrix& weight, int64_t first, int64_t last, int64_t rows) {
        int64_t runs = weight.runs(), size = weight.kind == Kind::bf16 ? 2 : 1;
        for (int64_t i = 0; i < rows; ++i) {
            int64_t row = std::min(first + i, last - 1);
            int64_t place = weight.keep ? row * stride(weight) : static_cast<int64_t>(weight.offsets[row]) * size;
            at_[i] = weight.values + place;
            if (!DENSE) mask_[i] = weight.mask + row * runs;
        }
        running_ = weight.keep == 0;
        keep_ = weight.keep;
        last_run_ = runs - 1;
        last_count_ = DENSE ? weight.columns - last_run_ * RUN : weight.keep;
    }

    uint64_t mask(int64_t row, int64_t run) const { return mask_[row][run]; }

    // How many values the run has.
    int64_t count(int64_t row, int64_t run) const {
        if (!DENSE && running_) return std::popcount(mask_[row][run]);
        return run == last_run_ ? last_count_ : keep_;
    }

    // Where they are; ask for each run of a row once, in order, and give the bytes that it has.
    const uint8_t* take(int64_t row, int64_t bytes) {
        const uint8_t* place = at_[row];
        at_[row] += bytes;
        return place;
    }

private:
    const uint8_t* at_[TILE];
    const uint64_t* mask_[TILE];
    int64_t keep_, last_run_, last_count_;
    bool running_;
};

// 64 codes of one run in the order of the columns, made unsigned by adding BIAS; columns that are not kept hold BIAS.
template <Kind KIND> constexpr int BIAS = KIND == Kind::int8 ? 128 : 8;

template <Kind KIND, bool DENSE> inline __m512i codes_of(Stored<DENSE>& stored, int64_t row, int64_t run) {
    const __m512i bias = _mm512_set1_epi8(static_cast<char>(BIAS<KIND>));
    int64_t count = stored.count(row, run);
    __m512i codes;
    if constexpr (KIND == Kind::int8) {
        codes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(lowest(count), stored.take(row, count)), bias);
    } else {
        int64_t bytes = (count + 1) / 2;
        __m256i pairs = _mm256_maskz_loadu_epi8(static_cast<__mmask32>(lowest(bytes)), stored.take(row, bytes));
        const __m512i shifts = _mm512_set1_epi64(0x1c1814100c080400);  // byte i of 8 begins at bit 4 i
        __m512i wide = _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu32_epi64(pairs));
        codes = _mm512_ternarylogic_epi64(wide, _mm512_set1_epi8(15), bias, 0x6a);  // (a & b) ^ c
    }
    return DENSE ? codes : _mm512_mask_expand_epi8(bias, stored.mask(row, run), codes);
}

void codes_line(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output);
void codes_batch(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output);
void halves(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output);

// The scales of 8 rows at `scales` and of 8 more `next` floats on.
inline __m512 two(const float* scales, int64_t next) {
    __m512 low = _mm512_castps256_ps512(_mm256_loadu_ps(scales));
    return _mm512_insertf32x8(low, _mm256_loadu_ps(scales + next), 1);
}

// Scales of TILE rows, [2, groups, 8].
inline void turn_scales(const Matrix& weight, int64_t first, int64_t last, float* out) {
    avx2::turn_scales(weight, first, last, out);
    avx2::turn_scales(weight, std::min(first + 8, last - 1), last, out + weight.groups() * 8);
}

template <typename Function> void with_layout(const Matrix& weight, Function function) {
    if (weight.kind == Kind::int8 && weight.dense()) function.template operator()<Kind::int8, true>();
    else if (weight.kind == Kind::int8) function.template operator()<Kind::int8, false>();
    else if (weight.dense()) function.template operator()<Kind::int4, true>();
    else function.template operator()<Kind::int4, false>();
}

}  // namespace secateur::avx512
