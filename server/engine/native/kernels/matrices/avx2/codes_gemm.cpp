// Integer products of several rows of input with AVX2. A run of 64 columns of 16 rows is unpacked and transposed once,
// so that a register holds 8 rows and needs no sum across its lanes, and is then used for all rows of input.
#include <type_traits>

#include "kernels/matrices/avx2/unpack.hpp"

namespace secateur::avx2 {
namespace {

constexpr int64_t TOKENS = 64;  // rows of input that share a run: their codes stay in the cache
constexpr int64_t TOGETHER = 4; // rows of input whose sums fit the registers

struct Scratch {
    Buffer<float> scales, minimums, totals;
    Buffer<int16_t> wide;
};

// One run of 16 rows, transposed. 4 bits: element [half][j][block] holds columns 4j .. 4j + 3 of 8 rows, unsigned.
// Others: [half][j][part][block] holds columns 4j, 4j + 2 (part 0) or 4j + 1, 4j + 3 (part 1), widened to 16 bits.
template <Kind KIND> struct Tile {
    static constexpr int PARTS = KIND == Kind::int4 ? 1 : 2;
    __m256i of[2][8][PARTS][2];
    __m256i bias;

    explicit Tile(const Matrix& weight) : bias(_mm256_set1_epi8(static_cast<char>(four_bit_bias(weight)))) {}

    template <typename Source> void fill(const Source& source, int64_t run) {
        for (int block = 0; block < 2; ++block)
            for (int half = 0; half < 2; ++half) {
                __m256i rows[8], columns[8];
                for (int i = 0; i < 8; ++i) rows[i] = load(source.at(block * 8 + i, run) + half * 32);
                transpose(rows, columns);
                for (int j = 0; j < 8; ++j) {
                    if (KIND == Kind::int4) {
                        of[half][j][0][block] = _mm256_xor_si256(columns[j], bias);
                    } else {
                        of[half][j][0][block] = _mm256_srai_epi16(_mm256_slli_epi16(columns[j], 8), 8);
                        of[half][j][PARTS - 1][block] = _mm256_srai_epi16(columns[j], 8);
                    }
                }
            }
    }
};

// Widens the input's codes to 16 bits in the order of a Tile: of each 32 columns the even pairs (0, 2), (4, 6) ...,
// then the odd ones.
void widen(const int8_t* codes, int64_t count, int16_t* out) {
    for (int64_t i = 0; i < count; i += 32) {
        __m256i four = load(codes + i);
        store(out + i, _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8));
        store(out + i + 16, _mm256_srai_epi16(four, 8));
    }
}

inline __m256i broadcast(const void* place) {
    int32_t value;
    __builtin_memcpy(&value, place, 4);
    return _mm256_set1_epi32(value);
}

// Sums over 32 columns for 16 rows and COUNT rows of input: sums[block][token].
template <Kind KIND, int COUNT>
inline void half_sums(const Tile<KIND>& tile, int half, const void* const* inputs, __m256i sums[2][COUNT]) {
    __m256i total[2][COUNT];
    for (int t = 0; t < COUNT; ++t) total[0][t] = total[1][t] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
        if constexpr (KIND == Kind::int4) {
            __m256i w0 = tile.of[half][j][0][0], w1 = tile.of[half][j][0][1];
            for (int t = 0; t < COUNT; ++t) {
                __m256i x = broadcast(static_cast<const int8_t*>(inputs[t]) + half * 32 + j * 4);
                total[0][t] = _mm256_add_epi16(total[0][t], _mm256_maddubs_epi16(w0, x));  // at most 16 * 15 * 127
                total[1][t] = _mm256_add_epi16(total[1][t], _mm256_maddubs_epi16(w1, x));
            }
        } else {
#pragma GCC unroll 2
            for (int part = 0; part < 2; ++part) {
                __m256i w0 = tile.of[half][j][part][0], w1 = tile.of[half][j][part][1];
                for (int t = 0; t < COUNT; ++t) {
                    __m256i x = broadcast(static_cast<const int16_t*>(inputs[t]) + half * 32 + part * 16 + j * 2);
                    total[0][t] = _mm256_add_epi32(total[0][t], _mm256_madd_epi16(w0, x));
                    total[1][t] = _mm256_add_epi32(total[1][t], _mm256_madd_epi16(w1, x));
                }
            }
        }
    }
    for (int block = 0; block < 2; ++block)
        for (int t = 0; t < COUNT; ++t)
            sums[block][t] = KIND == Kind::int4 ? _mm256_madd_epi16(total[block][t], _mm256_set1_epi16(1))
                                                : total[block][t];
}

struct Span {  // scales to add the sums of a span to the totals of COUNT rows of input
    const float* scales;       // of 8 rows; those of the next 8 are `next` floats on
    int64_t next;
    const float* input_scales; // of the first token; the next token's is `spans` on
    const int32_t* sums;       // likewise
    int64_t spans;             // of one token
    int32_t bias;              // of codes of 4 bits
    const float* minimums;     // likewise `scales`, or null
    const float* input_totals; // likewise `input_scales`
};

template <Kind KIND, int COUNT> inline void finish(const Span& span, const __m256i sums[2][COUNT], float* totals) {
    for (int t = 0; t < COUNT; ++t) {
        __m256i bias = _mm256_setzero_si256();
        if (KIND == Kind::int4) bias = _mm256_set1_epi32(span.sums[t * span.spans] * span.bias);
        __m256 scale = _mm256_set1_ps(span.input_scales[t * span.spans]);
        for (int block = 0; block < 2; ++block) {
            float* total = totals + t * TILE + block * 8;
            __m256 both = _mm256_mul_ps(_mm256_loadu_ps(span.scales + block * span.next), scale);
            __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[block][t], bias));
            __m256 made = _mm256_fmadd_ps(sum, both, _mm256_loadu_ps(total));
            if (span.minimums)
                made = _mm256_fmadd_ps(_mm256_loadu_ps(span.minimums + block * span.next),
                                       _mm256_set1_ps(span.input_totals[t * span.spans]), made);
            _mm256_storeu_ps(total, made);
        }
    }
}

template <Kind KIND> struct Chunk {
    const Matrix& weight;
    const RoundedInput& input;
    int64_t first_token;
    const float* scales;   // [2][groups][8]
    const float* minimums; // likewise, or null
    const int16_t* wide;
    float* totals;         // [tokens][16]
    GroupOf group{weight};

    template <int COUNT> void add(const Tile<KIND>& tile, int64_t run, int64_t token) const {
        const void* inputs[COUNT];
        int64_t width = input.runs * RUN;
        for (int t = 0; t < COUNT; ++t)
            inputs[t] = KIND == Kind::int4
                            ? static_cast<const void*>(input.codes.get() + (first_token + token + t) * width + run * RUN)
                            : static_cast<const void*>(wide + (token + t) * width + run * RUN);
        int64_t spans = input.runs * 2;
        for (int half = 0; half < 2; ++half) {
            __m256i sums[2][COUNT];
            half_sums<KIND, COUNT>(tile, half, inputs, sums);
            int64_t span = run * 2 + half, place = (first_token + token) * spans + span;
            const int64_t of_group = group(span) * 8;
            finish<KIND, COUNT>({scales + of_group, weight.groups() * 8, input.scales.get() + place,
                                 input.sums.get() + place, spans, four_bit_bias(weight),
                                 minimums ? minimums + of_group : nullptr, input.totals.get() + place},
                                sums, totals + token * TILE);
        }
    }

    void add_all(const Tile<KIND>& tile, int64_t run, int64_t count) const {
        int64_t token = 0;
        for (; token + TOGETHER <= count; token += TOGETHER) add<TOGETHER>(tile, run, token);
        switch (count - token) {
            case 3: return add<3>(tile, run, token);
            case 2: return add<2>(tile, run, token);
            case 1: return add<1>(tile, run, token);
        }
    }
};

template <Kind KIND, bool DENSE>
void gemm(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    thread_local Scratch scratch;
    int64_t groups = weight.groups(), width = input.runs * RUN;
    float* scales = scratch.scales.grow(2 * groups * 8);
    float* minimums = weight.asymmetric() ? scratch.minimums.grow(2 * groups * 8) : nullptr;
    float* totals = scratch.totals.grow(TOKENS * TILE);
    Tile<KIND> tile(weight);
    for (int64_t token = 0; token < input.tokens; token += TOKENS) {
        int64_t count = std::min(TOKENS, input.tokens - token);
        int16_t* wide = KIND != Kind::int4 ? scratch.wide.grow(count * width) : nullptr;
        if (wide) widen(input.codes.get() + token * width, count * width, wide);
        for (int64_t row = first; row < last; row += TILE) {
            const auto both_blocks = [&](const uint16_t* from, float* to) {
                transpose_scales(from, groups, row, last, to);
                transpose_scales(from, groups, std::min(row + 8, last - 1), last, to + groups * 8);
            };
            both_blocks(weight.scales, scales);
            if (minimums) both_blocks(weight.minimums, minimums);
            std::fill_n(totals, count * TILE, 0.0f);
            Chunk<KIND> chunk{weight, input, token, scales, minimums, wide, totals};
            using Source = Unpacked<KIND, DENSE, TILE>;
            Source source(weight, row, last);
            for (int64_t step = 0; step < input.runs + Source::LAG; ++step) {
                source.prepare(step);
                if (step < Source::LAG) continue;
                tile.fill(source, step - Source::LAG);
                chunk.add_all(tile, step - Source::LAG, count);
            }
            for (int64_t t = 0; t < count; ++t)
                std::copy_n(totals + t * TILE, std::min(TILE, last - row), output + (token + t) * weight.rows + row);
        }
    }
}

}  // namespace

void codes_gemm(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    with_unpacked(weight, [&]<Kind KIND, bool DENSE>() {
        gemm<KIND, DENSE>(weight, input, first, last, output);
    });
}

}  // namespace secateur::avx2
