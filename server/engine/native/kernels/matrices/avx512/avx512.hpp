// Shared by the AVX-512 kernels: the tiles of a block in registers, in any layout.
#pragma once

#include <immintrin.h>
#if defined(SECATEUR_EMULATE)
#include "emulate.hpp"  // of the fuzzers, for processors without AVX-512
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/instruction_set.hpp"
#include "kernels/matrices/tiles.hpp"

namespace secateur::avx512 {

constexpr int TOGETHER = 4;     // rows of input whose sums fit the registers
constexpr int64_t CHUNK = 128;  // rows of input that share an unpacked block in the second-level cache

void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);
void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);

// The tiles of a block from left to right; codes are unsigned, pruned ones equal the bias.
template <Kind KIND, bool DENSE> class Tiles {
public:
    Tiles(const Matrix& weight, int64_t block) {
        const int64_t run = block * weight.runs();
        values_ = weight.values + (DENSE ? run * run_bytes(KIND) : static_cast<int64_t>(weight.offsets[run]));
        mask_ = DENSE ? nullptr : reinterpret_cast<const uint8_t*>(weight.mask + run * 32);
    }

    // Both tiles of the next columns, and of the columns after these.
    void next(__m512i (&even)[PARTS], __m512i (&odd)[PARTS]) {
        if constexpr (KIND == Kind::int4) {
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
        asm("" : "+v"(values));
        return values;
    }

    __m512i kept() {
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
        const __m512i both = _mm512_loadu_si512(values_), low = _mm512_set1_epi8(15);
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
};

// Bytes of an unpacked block: 8-bit codes, or bf16.
template <Kind KIND> int64_t unpacked_bytes(const Matrix& weight) {
    return weight.runs() * run_bytes(KIND == Kind::int4 ? Kind::int8 : KIND);
}

// The tiles of an unpacked block.
template <Kind KIND> class Unpacked {
public:
    explicit Unpacked(const uint8_t* place) : place_(place) {}

    void next(__m512i (&even)[PARTS], __m512i (&odd)[PARTS]) {
        for (int i = 0; i < PARTS; ++i)
            even[i] = _mm512_loadu_si512(place_ + i * 64), odd[i] = _mm512_loadu_si512(place_ + (PARTS + i) * 64);
        place_ += 2 * PARTS * 64;
    }

private:
    const uint8_t* place_;
};

template <Kind KIND, bool DENSE> void unpack(const Matrix& weight, int64_t block, uint8_t* to) {
    Tiles<KIND, DENSE> tiles(weight, block);
    for (uint8_t* end = to + unpacked_bytes<KIND>(weight); to != end; to += 2 * PARTS * 64) {
        __m512i even[PARTS], odd[PARTS];
        tiles.next(even, odd);
        for (int i = 0; i < PARTS; ++i)
            _mm512_storeu_si512(to + i * 64, even[i]), _mm512_storeu_si512(to + (PARTS + i) * 64, odd[i]);
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
        if constexpr (!DENSE || KIND == Kind::int4) {
            thread_local Buffer<uint8_t> buffer;
            uint8_t* to = buffer.grow(unpacked_bytes<KIND>(weight_));
            unpack<KIND, DENSE>(weight_, block, to);
            place = to;
        }
        for (; token < end; token += TOGETHER) {
            Unpacked<KIND> tiles(place);
            some(tiles, block, token, std::min<int64_t>(TOGETHER, end - token));
        }
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
