// Spreads the stored values of a run to its 64 columns, for processors without vpexpand: pdep and tables.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "avx2.hpp"
#include "decode.hpp"

namespace secateur::avx2 {

// For 8 bits of a mask: the bytes that pdep fills.
inline constexpr std::array<uint64_t, 256> BYTES = [] {
    std::array<uint64_t, 256> table{};
    for (int mask = 0; mask < 256; ++mask)
        for (int column = 0; column < 8; ++column)
            if (mask >> column & 1) table[mask] |= uint64_t{0xff} << (8 * column);
    return table;
}();

// For 8 bits of a mask: the control of vpshufb that makes 8 floats of up to 8 bfloat16 values, zero where there is none.
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

// Where the values of up to TILE rows lie. Rows that are asked for past the last one are the last one again, so
// kernels need no other code for the end; reads past the last value are redirected to a padded copy.
class Stored {
public:
    static constexpr int64_t SPARE = 64;  // a kernel may read so many bytes past the end of a run's values

    Stored(const Matrix& weight, int64_t first, int64_t last) : weight_(weight), runs_(weight.runs()) {
        int64_t size = weight.kind == Kind::bf16 ? 2 : 1, keep = weight.keep;
        step_ = weight.kind == Kind::int4 ? (keep + 1) / 2 : keep * size;
        for (int64_t i = 0; i < TILE; ++i) {
            int64_t row = std::min(first + i, last - 1);
            mask_[i] = weight.mask ? weight.mask + row * runs_ : nullptr;
            at_[i] = weight.values + (keep ? row * stride(weight) : static_cast<int64_t>(weight.offsets[row]) * size);
        }
        end_ = keep ? weight.values + weight.rows * stride(weight) : finish(size);
    }

    // The mask of a run; 0 past the last run, so that a loop may look ahead.
    uint64_t mask(int64_t row, int64_t run) const { return run < runs_ ? mask_[row][run] : 0; }

    // Where the values of a run begin. Unstructured rows must be asked for run after run, since each says where the
    // next begins. `spare` holds a copy where the end of the file is near.
    const uint8_t* run(int64_t row, int64_t run, uint8_t* spare) {
        const uint8_t* place = at_[row];
        if (weight_.keep) {
            place += run * step_;
        } else {
            int64_t size = weight_.kind == Kind::bf16 ? 2 : 1;
            at_[row] += std::popcount(mask(row, run)) * size;
        }
        if (place + 3 * SPARE <= end_) [[likely]] return place;
        int64_t left = std::clamp<int64_t>(end_ - place, 0, 2 * SPARE);
        std::memcpy(spare, place, left);
        std::memset(spare + left, 0, 3 * SPARE - left);
        return spare;
    }

private:
    const uint8_t* finish(int64_t size) const {
        int64_t row = weight_.rows - 1, count = static_cast<int64_t>(weight_.offsets[row]);
        for (int64_t run = 0; run < runs_; ++run) count += std::popcount(weight_.mask[row * runs_ + run]);
        return weight_.values + count * size;
    }

    const Matrix& weight_;
    int64_t runs_, step_;
    const uint8_t* end_;
    std::array<const uint8_t*, TILE> at_;
    std::array<const uint64_t*, TILE> mask_;
};

// 64 columns of bytes from the values that `mask` names; reads up to 7 bytes past the last one.
inline void spread_bytes(const uint8_t* values, uint64_t mask, uint8_t* out) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        uint8_t part = static_cast<uint8_t>(mask >> (8 * i));
        uint64_t eight = _pdep_u64(word(values), BYTES[part]);
        std::memcpy(out + 8 * i, &eight, 8);
        values += std::popcount(static_cast<unsigned>(part));
    }
}

// 64 codes of 4 bits, as stored, to bytes 0 .. 15 in the order of the columns.
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
