// Shared by the AVX-512 kernels: the tiles of a block in registers, in any layout.
#pragma once

#include <immintrin.h>
#if defined(SECATEUR_EMULATE)
#include "emulate.hpp"  // of the fuzzers, for processors without AVX-512
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kernels/instruction_set.hpp"
#include "kernels/matrices/tiles.hpp"

namespace secateur::avx512 {

constexpr int TOGETHER = 4;     // rows of input whose sums fit the registers
constexpr int64_t AHEAD = 4096; // bytes to prefetch ahead of values, since processors stop at a page of 4 KB
constexpr int64_t MASKS_AHEAD = 2048;  // and ahead of masks
constexpr int64_t CHUNK = 128;  // rows of input that share an unpacked block in the second-level cache

void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);
void dense_codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);
void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);

// Bits of `a` where `mask` has ones, else of `b`.
inline __m512i select(int mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), a, b, 0xca);
}

// The tiles of a span from its lines, as PackedSpan defines; `step` is 0 .. 3, and tiles 2 step and 2 step + 1 are read.
// Codes of 5 and 6 bits are masked; those of 3 bits have other bits above them.
template <Kind KIND> inline void packed_tiles(const uint8_t* lines, int step, __m512i& even, __m512i& odd) {
    const auto line = [lines](int i) { return _mm512_loadu_si512(lines + i * 64); };
    if constexpr (KIND == Kind::int3) {
        if (step < 3) {
            even = line(step), odd = _mm512_srli_epi16(even, 3);
            return;
        }
        even = select(3, _mm512_srli_epi16(line(0), 6), _mm512_srli_epi16(line(2), 4));
        odd = select(3, _mm512_srli_epi16(line(1), 6), _mm512_srli_epi16(line(2), 5));
    } else if constexpr (KIND == Kind::int5) {
        if (step < 2) {
            even = line(2 * step), odd = line(2 * step + 1);
        } else if (step == 2) {
            even = line(4), odd = select(7, _mm512_srli_epi16(line(0), 5), _mm512_srli_epi16(line(3), 2));
        } else {
            even = select(7, _mm512_srli_epi16(line(1), 5), _mm512_srli_epi16(line(4), 2));
            odd = select(8, _mm512_srli_epi16(line(3), 4), _mm512_srli_epi16(line(4), 3));
            odd = select(7, _mm512_srli_epi16(line(2), 5), odd);
        }
        const __m512i low = _mm512_set1_epi8(31);
        even = _mm512_and_si512(even, low), odd = _mm512_and_si512(odd, low);
    } else {
        const int first = step / 2 * 3;
        if (step % 2 == 0) {
            even = line(first), odd = line(first + 1);
        } else {
            even = line(first + 2), odd = select(15, _mm512_srli_epi16(line(first + 1), 4), _mm512_srli_epi16(even, 2));
            odd = select(3, _mm512_srli_epi16(line(first), 6), odd);
        }
        const __m512i low = _mm512_set1_epi8(63);
        even = _mm512_and_si512(even, low), odd = _mm512_and_si512(odd, low);
    }
}

struct Levels {
    __m512i of;
};
struct Nothing {};

// The tiles of a block from left to right; codes are unsigned, pruned ones equal the bias.
template <Kind KIND, bool DENSE> class Tiles {
public:
    Tiles(const Matrix& weight, int64_t block) {
        const int64_t run = block * weight.runs();
        values_ = weight.values + (DENSE ? run * run_bytes(KIND) : static_cast<int64_t>(weight.offsets[run]));
        mask_ = DENSE ? nullptr : reinterpret_cast<const uint8_t*>(weight.mask + run * 32);
        if constexpr (KIND == Kind::int3) {
            uint8_t levels[64];
            for (int i = 0; i < 64; ++i) levels[i] = static_cast<uint8_t>(weight.levels[i % 8] + bias(KIND));
            levels_.of = _mm512_loadu_si512(levels);
        }
    }

    // Both tiles of the next columns, and of the columns after these. `step` counts the calls of a span, 0 .. 3.
    void next(__m512i (&even)[PARTS], __m512i (&odd)[PARTS], [[maybe_unused]] int step) {
        if constexpr (!DENSE) _mm_prefetch(mask_ + MASKS_AHEAD, _MM_HINT_T0);
        if constexpr (by_spans(KIND)) {
            for (int i = 0; i < PARTS; ++i) {
                packed_tiles<KIND>(values_ + i * bits_of(KIND) * 64, step, even[i], odd[i]);
                if constexpr (KIND == Kind::int3) {  // 64 levels, eight times the same: higher bits do not matter
                    even[i] = _mm512_permutexvar_epi8(even[i], levels_.of);
                    odd[i] = _mm512_permutexvar_epi8(odd[i], levels_.of);
                }
            }
            if (step == 0)
                for (int i = 0; i < PARTS * bits_of(KIND); ++i) _mm_prefetch(values_ + AHEAD + i * 64, _MM_HINT_T0);
            if (step == 3) values_ += PARTS * bits_of(KIND) * 64;
        } else if constexpr (KIND == Kind::int4) {
            for (int i = 0; i < PARTS; ++i) halves_of_bytes(i, even[i], odd[i]);
            mask_ += DENSE ? 0 : 4 * sizeof(uint64_t);
        } else if constexpr (DENSE) {
            even[0] = load(), even[1] = load(), odd[0] = load(), odd[1] = load();
        } else {
            even[0] = kept(), even[1] = kept(), odd[0] = kept(), odd[1] = kept();
        }
    }

private:
    __m512i load() {
        values_ += 64;
        return _mm512_loadu_si512(values_ - 64);
    }

    // A load that the compiler does not fold into the expansion: beyond the second-level cache, an expansion from memory
    // takes 3.8 ns on Zen 5, a load and an expansion 1.2.
    static __m512i in_register(const uint8_t* place) {
        __m512i values = _mm512_loadu_si512(place);
#if !defined(SECATEUR_EMULATE)
        asm("" : "+v"(values));
#endif
        return values;
    }

    __m512i kept() {
        _mm_prefetch(values_ + AHEAD, _MM_HINT_T0);
        if constexpr (KIND == Kind::bf16) {
            const auto mask = next_mask<uint32_t>();
            const __m512i values = in_register(values_);
            values_ += kept_bytes(KIND, mask);
            return _mm512_maskz_expand_epi16(mask, values);
        } else {
            const auto mask = next_mask<uint64_t>();
            const __m512i values = in_register(values_);
            values_ += kept_bytes(KIND, mask);
            return _mm512_mask_expand_epi8(_mm512_set1_epi8(static_cast<char>(bias(KIND))), mask, values);
        }
    }

    void halves_of_bytes(int part, __m512i& even, __m512i& odd) {
        const __m512i both = in_register(values_), low = _mm512_set1_epi8(15);
        _mm_prefetch(values_ + AHEAD, _MM_HINT_T0);
        even = _mm512_and_si512(both, low), odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        if constexpr (DENSE) {
            values_ += 64;
        } else {
            uint64_t first, later;
            std::memcpy(&first, mask_ + part * 8, 8), std::memcpy(&later, mask_ + (PARTS + part) * 8, 8);
            const __m512i zero = _mm512_set1_epi8(static_cast<char>(bias(KIND)));
            even = _mm512_mask_expand_epi8(zero, first, even), odd = _mm512_mask_expand_epi8(zero, later, odd);
            values_ += kept_bytes(KIND, first, later);
        }
    }

    template <typename Word> Word next_mask() {
        Word mask;
        std::memcpy(&mask, mask_, sizeof mask);
        mask_ += sizeof mask;
        return mask;
    }

    const uint8_t *values_, *mask_;
    [[no_unique_address]] std::conditional_t<KIND == Kind::int3, Levels, Nothing> levels_;
};

// Bytes of an unpacked block: 8-bit codes, or bf16.
template <Kind KIND> int64_t unpacked_bytes(const Matrix& weight) {
    return weight.runs() * run_bytes(KIND == Kind::bf16 ? KIND : Kind::int8);
}

// The tiles of an unpacked block; prefetches half as many bytes from `ahead` on, since memory is idle meanwhile.
template <Kind KIND> class Unpacked {
public:
    Unpacked(const uint8_t* place, const uint8_t* ahead) : place_(place), ahead_(ahead) {}

    void next(__m512i (&even)[PARTS], __m512i (&odd)[PARTS], int) {
        _mm_prefetch(ahead_, _MM_HINT_T0), _mm_prefetch(ahead_ + 64, _MM_HINT_T0);
        ahead_ += PARTS * 64;
        for (int i = 0; i < PARTS; ++i)
            even[i] = _mm512_loadu_si512(place_ + i * 64), odd[i] = _mm512_loadu_si512(place_ + (PARTS + i) * 64);
        place_ += 2 * PARTS * 64;
    }

private:
    const uint8_t *place_, *ahead_;
};

template <Kind KIND, bool DENSE> void unpack(const Matrix& weight, int64_t block, uint8_t* to) {
    Tiles<KIND, DENSE> tiles(weight, block);
    const auto put = [&](int step) {
        __m512i even[PARTS], odd[PARTS];
        tiles.next(even, odd, step);
        for (int i = 0; i < PARTS; ++i)
            _mm512_storeu_si512(to + i * 64, even[i]), _mm512_storeu_si512(to + (PARTS + i) * 64, odd[i]);
        to += 2 * PARTS * 64;
    };
    for (uint8_t* end = to + unpacked_bytes<KIND>(weight); to != end;) {
        put(0);
        if constexpr (DENSE) put(1), put(2), put(3);
    }
}

inline __m512i four_bytes(const void* place) {
    int32_t value;
    std::memcpy(&value, place, 4);
    return _mm512_set1_epi32(value);
}

// Writes 16 rows from `row` on, without those from `last` on.
inline void put(__m512 sums, int64_t row, int64_t last, float* output) {
    const int64_t count = std::min(TILE_ROWS, last - row);
    if (count <= 0) return;
    if (count == TILE_ROWS) return _mm512_storeu_ps(output + row, sums);
    float some[TILE_ROWS];
    _mm512_storeu_ps(some, sums);
    std::copy_n(some, count, output + row);
}

// Multiplies blocks of the weight with all rows of input. `Product<KIND>` has
//     static void run<COUNT>(tiles, weight, block, input, token, sums[PARTS][COUNT]).
template <template <Kind> class Product, Kind KIND, bool DENSE> class Passes {
public:
    Passes(const Matrix& weight, const RoundedInput& input, int64_t last, float* output)
        : weight_(weight), input_(input), last_(last), output_(output) {}

    void pass(int64_t first) {
        if (input_.tokens <= TOGETHER) {
            for (int64_t row = first; row < last_; row += BLOCK_ROWS) packed(row / BLOCK_ROWS);
            return;
        }
        for (int64_t token = 0; token < input_.tokens; token += CHUNK)
            for (int64_t row = first; row < last_; row += BLOCK_ROWS)
                unpacked(row / BLOCK_ROWS, token, std::min(token + CHUNK, input_.tokens));
    }

private:
    void packed(int64_t block) {
        Tiles<KIND, DENSE> tiles(weight_, block);
        some(tiles, block, 0, input_.tokens);
    }

    void unpacked(int64_t block, int64_t token, int64_t end) {
        const uint8_t* place = weight_.values + block * unpacked_bytes<KIND>(weight_);
        if constexpr (!DENSE || (KIND != Kind::int8 && KIND != Kind::bf16)) {
            thread_local Buffer<uint8_t> buffer;
            uint8_t* to = buffer.grow(unpacked_bytes<KIND>(weight_));
            unpack<KIND, DENSE>(weight_, block, to);
            place = to;
        }
        const uint8_t *ahead = start(block + 1), *stop = start(block + 2);
        for (; token < end; token += TOGETHER) {
            Unpacked<KIND> tiles(place, ahead < stop ? ahead : place);
            some(tiles, block, token, std::min<int64_t>(TOGETHER, end - token));
            ahead += unpacked_bytes<KIND>(weight_) / 2;
        }
    }

    // Where the values of a block begin; beyond the last block, where its own do.
    const uint8_t* start(int64_t block) const {
        const int64_t run = std::min(block, blocks(weight_) - 1) * weight_.runs();
        return weight_.values + (DENSE ? run * run_bytes(KIND) : static_cast<int64_t>(weight_.offsets[run]));
    }

    template <typename From> void some(From& tiles, int64_t block, int64_t token, int64_t count) {
        switch (count) {
            case 1: return run<1>(tiles, block, token);
            case 2: return run<2>(tiles, block, token);
            case 3: return run<3>(tiles, block, token);
            case 4: return run<4>(tiles, block, token);
        }
    }

    template <int COUNT, typename From> void run(From& tiles, int64_t block, int64_t token) {
        __m512 sums[PARTS][COUNT];
        Product<KIND>::template run<COUNT>(tiles, weight_, block, input_, token, sums);
        for (int t = 0; t < COUNT; ++t)
            for (int i = 0; i < PARTS; ++i)
                put(sums[i][t], block * BLOCK_ROWS + i * TILE_ROWS, last_, output_ + (token + t) * weight_.rows);
    }

    const Matrix& weight_;
    const RoundedInput& input_;
    int64_t last_;
    float* output_;
};

template <template <Kind> class Product, Kind KIND>
void multiply_tiles(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    weight.dense() ? Passes<Product, KIND, true>(weight, input, last, output).pass(first)
                   : Passes<Product, KIND, false>(weight, input, last, output).pass(first);
}

}  // namespace secateur::avx512
