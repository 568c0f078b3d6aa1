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

// How the values of a row are found: all columns, the same number in each run, or where the last run ended.
enum class Shape { dense, balanced, running };

// The runs of TILE rows, of which there must be as many. Loads are masked to what belongs to the run, so nothing is
// read past the end of the file. Addresses are one base and multiples of two strides, which need few registers.
template <Shape SHAPE> class Stored {
public:
    Stored(const Matrix& weight, int64_t first) : runs_(weight.runs()), size_(weight.kind == Kind::bf16 ? 2 : 1) {
        int64_t count = SHAPE == Shape::dense ? RUN : weight.keep;
        last_count_ = SHAPE == Shape::dense ? weight.columns - (runs_ - 1) * RUN : count;
        count_ = count;
        step_ = weight.kind == Kind::int4 ? (count + 1) / 2 : count * size_;
        if constexpr (SHAPE == Shape::running) {
            for (int64_t i = 0; i < TILE; ++i) at_[i] = weight.values + weight.offsets[first + i] * size_;
        } else {
            stride_ = stride(weight);
            base_ = weight.values + first * stride_;
        }
        mask_ = SHAPE == Shape::dense ? nullptr : weight.mask + first * runs_;
    }

    uint64_t mask(int64_t row, int64_t run) const { return mask_[row * runs_ + run]; }

    // How many values the run has.
    int64_t count(int64_t row, int64_t run) const {
        if constexpr (SHAPE == Shape::running) return std::popcount(mask(row, run));
        if constexpr (SHAPE == Shape::balanced) return count_;
        return run == runs_ - 1 ? last_count_ : RUN;
    }

    // Where they are. A running row must be asked for each run once, in order.
    const uint8_t* run(int64_t row, int64_t run, int64_t count) {
        if constexpr (SHAPE != Shape::running) return base_ + row * stride_ + run * step_;
        const uint8_t* place = at_[row];
        at_[row] += count * size_;
        return place;
    }

private:
    const uint8_t* base_ = nullptr;
    const uint64_t* mask_;
    int64_t runs_, size_, stride_ = 0, step_, count_, last_count_;
    const uint8_t* at_[SHAPE == Shape::running ? TILE : 1];
};

// total + the products of unsigned `a` and signed `b`, four to an element. Between the types of the intrinsic GCC 12 moves
// each sum twice in every turn of a loop; the bare instruction updates it in place.
inline __m512i dot_codes(__m512i total, __m512i a, __m512i b) {
#if defined(SECATEUR_EMULATE)
    return _mm512_dpbusd_epi32(total, a, b);
#else
    asm("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(a), "v"(b));
    return total;
#endif
}

// 64 codes of one run in the order of the columns, made unsigned by adding BIAS; columns that are not kept hold BIAS.
template <Kind KIND> constexpr int BIAS = KIND == Kind::int8 ? 128 : 8;

template <Kind KIND, Shape SHAPE> inline __m512i codes_of(Stored<SHAPE>& stored, int64_t row, int64_t run) {
    const __m512i bias = _mm512_set1_epi8(static_cast<char>(BIAS<KIND>));
    int64_t count = stored.count(row, run);
    const uint8_t* place = stored.run(row, run, count);
    __m512i codes;
    if constexpr (KIND == Kind::int8) {
        codes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(lowest(count), place), bias);
    } else {
        __m256i pairs = _mm256_maskz_loadu_epi8(static_cast<__mmask32>(lowest((count + 1) / 2)), place);
        const __m512i shifts = _mm512_set1_epi64(0x1c1814100c080400);  // byte i of 8 begins at bit 4 i
        __m512i wide = _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu32_epi64(pairs));
        codes = _mm512_ternarylogic_epi64(wide, _mm512_set1_epi8(15), bias, 0x6a);  // (a & b) ^ c
    }
    if constexpr (SHAPE == Shape::dense) return codes;
    else return _mm512_mask_expand_epi8(bias, stored.mask(row, run), codes);
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
inline void turn_scales(const Matrix& weight, int64_t first, float* out) {
    avx2::turn_scales(weight, first, first + TILE, out);
    avx2::turn_scales(weight, first + 8, first + TILE, out + weight.groups() * 8);
}

// Where TILE rows begin that hold row `first`, none of them past the end of the matrix.
inline int64_t begin(const Matrix& weight, int64_t first) { return std::min(first, weight.rows - TILE); }

inline Shape shape_of(const Matrix& weight) {
    return weight.dense() ? Shape::dense : weight.keep ? Shape::balanced : Shape::running;
}

template <typename Function> void with_layout(const Matrix& weight, Function function) {
    Shape shape = shape_of(weight);
    if (weight.kind == Kind::int4)
        return shape == Shape::dense ? function.template operator()<Kind::int4, Shape::dense>()
                                     : function.template operator()<Kind::int4, Shape::balanced>();
    if (shape == Shape::dense) function.template operator()<Kind::int8, Shape::dense>();
    else if (shape == Shape::balanced) function.template operator()<Kind::int8, Shape::balanced>();
    else function.template operator()<Kind::int8, Shape::running>();
}

}  // namespace secateur::avx512
