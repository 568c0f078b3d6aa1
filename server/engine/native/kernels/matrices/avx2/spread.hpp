// Spreads the kept values of a run over its 64 columns, for processors without vpexpand: pdep and tables.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "kernels/matrices/avx2/avx2.hpp"
#include "kernels/matrices/decode.hpp"

namespace secateur::avx2 {

// For each 8 bits of a mask, the bytes that pdep fills.
inline constexpr std::array<uint64_t, 256> BYTES = [] {
    std::array<uint64_t, 256> table{};
    for (int mask = 0; mask < 256; ++mask)
        for (int column = 0; column < 8; ++column)
            if (mask >> column & 1) table[mask] |= uint64_t{0xff} << (8 * column);
    return table;
}();

// For each 8 bits of a mask, the vpshufb control that spreads bfloat16 values to 8 floats, zero where none is kept.
struct alignas(64) Controls {
    uint8_t of[256][32];
};
inline constexpr Controls CONTROLS = [] {
    Controls table{};
    for (int mask = 0; mask < 256; ++mask)
        for (int column = 0; column < 8; ++column) {
            int place = std::popcount(static_cast<unsigned>(mask & ((1 << column) - 1)));
            bool kept = mask >> column & 1;
            uint8_t* four = table.of[mask] + column * 4;
            four[0] = four[1] = 0x80;
            four[2] = kept ? static_cast<uint8_t>(2 * place) : 0x80;
            four[3] = kept ? static_cast<uint8_t>(2 * place + 1) : 0x80;
        }
    return table;
}();

inline uint64_t word(const uint8_t* place) {
    uint64_t value;
    std::memcpy(&value, place, 8);
    return value;
}

// Reads the packed values of ROWS rows, run by run. Rows past the last one repeat it, so kernels need no code for the
// remainder; rows near the end of the values are read from a padded copy.
template <int ROWS> class PackedRows {
public:
    static constexpr int64_t SPARE = 128;  // bytes that a kernel may read past a row's values
    static constexpr int64_t AHEAD = 16;   // rows to prefetch ahead

    PackedRows(const Matrix& weight, int64_t first, int64_t last)
        : size_(weight.kind == Kind::bf16 ? 2 : 1),
          step_(packed_bytes(weight.kind, weight.keep)),
          length_(stride(weight)),
          ahead_(AHEAD * (weight.keep ? length_ : weight.columns * size_ / 2)) {
        for (int64_t i = 0; i < ROWS; ++i) {
            int64_t row = std::min(first + i, last - 1);
            mask_[i] = weight.mask ? weight.mask + row * weight.runs() : nullptr;
            at_[i] = weight.values + (step_ ? row * length_ : static_cast<int64_t>(weight.offsets[row]) * size_);
        }
        for (int64_t run = 0; weight.mask && run < ROWS * weight.runs(); run += 8)
            _mm_prefetch(mask_[0] + AHEAD * weight.runs() + run, _MM_HINT_T0);
        int64_t longest = step_ ? length_ : weight.runs() * RUN * size_;
        const uint8_t* known = weight.values + (step_ ? weight.rows * length_
                                                      : static_cast<int64_t>(weight.offsets[weight.rows - 1]) * size_);
        if (at_[ROWS - 1] + longest + SPARE > known) [[unlikely]] copy(weight);
    }

    uint64_t mask(int64_t row, int64_t run) const { return mask_[row][run]; }

    // The values of a run. Unstructured rows must be read in the order of the runs.
    const uint8_t* run(int64_t row, int64_t run) {
        const uint8_t* place = at_[row];
        if (step_) place += run * step_;
        else at_[row] += std::popcount(mask_[row][run]) * size_;
        _mm_prefetch(place + ahead_, _MM_HINT_T0);
        if (step_ > 64) _mm_prefetch(place + ahead_ + 64, _MM_HINT_T0);
        return place;
    }

private:
    [[gnu::noinline]] void copy(const Matrix& weight) {
        thread_local Buffer<uint8_t> spare;
        int64_t row = weight.rows - 1;
        const uint8_t* end = weight.values + weight.rows * length_;
        if (!step_) {
            int64_t count = static_cast<int64_t>(weight.offsets[row]);
            for (int64_t run = 0; run < weight.runs(); ++run)
                count += std::popcount(weight.mask[row * weight.runs() + run]);
            end = weight.values + count * size_;
        }
        int64_t left = end - at_[0];
        uint8_t* begin = spare.grow(left + 2 * SPARE);
        std::memcpy(begin, at_[0], left);
        std::memset(begin + left, 0, 2 * SPARE);
        for (int64_t i = ROWS - 1; i >= 0; --i) at_[i] = begin + (at_[i] - at_[0]);
    }

    int64_t size_, step_, length_, ahead_;
    std::array<const uint8_t*, ROWS> at_;
    std::array<const uint64_t*, ROWS> mask_;
};

// Spreads bytes over the 64 columns of `mask`; reads up to 7 bytes past the last value.
inline void spread_bytes(const uint8_t* values, uint64_t mask, uint8_t* out) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i, mask >>= 8) {
        asm("" : "+r"(mask));  // else the compiler spills all parts to the stack
        uint64_t part = mask & 255, eight = _pdep_u64(word(values), BYTES[part]);
        std::memcpy(out + 8 * i, &eight, 8);
        values += _mm_popcnt_u64(part);
    }
}

// Unpacks 64 codes of 3, 5 or 6 bits to signed bytes in the order of the columns; those of 3 bits are looked up.
template <Kind KIND> inline void unpack_stream(const Matrix& weight, const uint8_t* values, uint8_t* out) {
    constexpr int bits = bits_of(KIND);
    constexpr uint64_t every = 0x0101010101010101u * ((1u << bits) - 1);
    int64_t words;
    std::memcpy(&words, weight.levels.data(), 8);
    const __m128i levels = _mm_set1_epi64x(words);
    const __m128i half = _mm_set1_epi8(weight.asymmetric() ? 0 : 1 << (bits - 1));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const auto eight = [&](int j) { return static_cast<int64_t>(_pdep_u64(word(values + j * bits), every)); };
        const __m128i codes = _mm_set_epi64x(eight(2 * i + 1), eight(2 * i));
        const __m128i made = KIND == Kind::int3 ? _mm_shuffle_epi8(levels, codes)
                                                : _mm_sub_epi8(_mm_xor_si128(codes, half), half);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out) + i, made);
    }
}

// Unpacks 64 codes of 4 bits to bytes 0 .. 15 in the order of the columns.
inline void split_bytes(const uint8_t* values, uint8_t* out) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    __m256i even = _mm256_and_si256(pairs, low), odd = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
    __m256i left = _mm256_unpacklo_epi8(even, odd), right = _mm256_unpackhi_epi8(even, odd);
    auto place = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(place, _mm256_permute2x128_si256(left, right, 0x20));
    _mm256_storeu_si256(place + 1, _mm256_permute2x128_si256(left, right, 0x31));
}

}  // namespace secateur::avx2
