// Integer products of several rows of input with AVX-512. A run of 64 columns of 32 rows is unpacked and turned once,
// so that a register holds 16 rows and no sum across a register is needed, and is then used for all rows of the input.
#include "avx512.hpp"

namespace secateur::avx512 {
namespace {

constexpr int64_t TOKENS = 64;  // rows of input that go through one run together: their codes stay in the cache
constexpr int TOGETHER = 8;     // and in registers: 16 sums, 2 registers of weights
constexpr int64_t ROWS = 2 * TILE;

struct Scratch {
    Buffer<float> scales, totals;
};

// 16 x 16 elements of 32 bits, rows to columns.
inline void turn(const __m512i* in, __m512i* out) {
    __m512i a[16], b[16];
    for (int i = 0; i < 8; ++i) {
        a[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; ++i) {  // b[4 k + i], quarter q: rows 4 k .. 4 k + 3 of column 4 q + i
        __m512i low = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88), high = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
        out[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
        out[8 + i] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        out[4 + i] = _mm512_shuffle_i32x4(high, high2, 0x88);
        out[12 + i] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
}

// Columns 4 j .. 4 j + 3 of 32 rows: of[j][block].
struct Tile {
    __m512i of[16][2];
};

inline __m512i broadcast(const int8_t* place) {
    int32_t value;
    __builtin_memcpy(&value, place, 4);
    return _mm512_set1_epi32(value);
}

template <Kind KIND> struct Chunk {
    const Matrix& weight;
    const Input& input;
    int64_t first_token;
    const float* scales;  // [2][2, groups, 8]
    float* totals;        // [tokens][ROWS]
    GroupOf group{weight};

    // The columns of half a run, for COUNT rows of input.
    template <int COUNT> void add_half(const Tile& tile, int64_t run, int64_t token, int half) const {
        __m512i sums[2][COUNT];
        int64_t width = input.runs * RUN, spans = input.runs * 2, span = run * 2 + half;
        int64_t place = (first_token + token) * spans + span;
        const int8_t* x = input.codes.get() + place * SPAN;
        for (int t = 0; t < COUNT; ++t)
            sums[0][t] = sums[1][t] = _mm512_set1_epi32(-input.sums.get()[place + t * spans] * BIAS<KIND>);
        for (int j = 0; j < SPAN / 4; ++j) {
            __m512i w0 = tile.of[half * 8 + j][0], w1 = tile.of[half * 8 + j][1];
            for (int t = 0; t < COUNT; ++t) {
                __m512i four = broadcast(x + t * width + j * 4);
                sums[0][t] = dot_codes(sums[0][t], w0, four);
                sums[1][t] = dot_codes(sums[1][t], w1, four);
            }
        }
        int64_t next = weight.groups() * 8;
        for (int block = 0; block < 2; ++block) {
            __m512 scale = two(scales + block * 2 * next + group(span) * 8, next);
            for (int t = 0; t < COUNT; ++t) {
                float* total = totals + (token + t) * ROWS + block * TILE;
                __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(input.scales.get()[place + t * spans]));
                __m512 sum = _mm512_cvtepi32_ps(sums[block][t]);
                _mm512_storeu_ps(total, _mm512_fmadd_ps(sum, both, _mm512_loadu_ps(total)));
            }
        }
    }

    template <int COUNT> void add(const Tile& tile, int64_t run, int64_t token) const {
        add_half<COUNT>(tile, run, token, 0);
        add_half<COUNT>(tile, run, token, 1);
    }

    void add_all(const Tile& tile, int64_t run, int64_t count) const {
        int64_t token = 0;
        for (; token + TOGETHER <= count; token += TOGETHER) add<TOGETHER>(tile, run, token);
        if (token + 4 <= count) add<4>(tile, run, token), token += 4;
        switch (count - token) {
            case 3: return add<3>(tile, run, token);
            case 2: return add<2>(tile, run, token);
            case 1: return add<1>(tile, run, token);
        }
    }
};

template <Kind KIND, Shape SHAPE>
void batch(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    thread_local Scratch scratch;
    int64_t groups = weight.groups();
    float* scales = scratch.scales.grow(4 * groups * 8);
    float* totals = scratch.totals.grow(TOKENS * ROWS);
    Tile tile;
    for (int64_t token = 0; token < input.tokens; token += TOKENS) {
        int64_t count = std::min(TOKENS, input.tokens - token);
        Chunk<KIND> chunk{weight, input, token, scales, totals};
        for (int64_t row = first; row < last; row += ROWS) {
            int64_t starts[2] = {begin(weight, row), begin(weight, row + TILE)};
            Stored<SHAPE> blocks[2] = {{weight, starts[0]}, {weight, starts[1]}};
            for (int block = 0; block < 2; ++block) turn_scales(weight, starts[block], scales + block * 2 * groups * 8);
            std::fill_n(totals, count * ROWS, 0.0f);
            for (int64_t run = 0; run < input.runs; ++run) {
                for (int block = 0; block < 2; ++block) {
                    __m512i rows[TILE], columns[TILE];
                    for (int i = 0; i < TILE; ++i) rows[i] = codes_of<KIND, SHAPE>(blocks[block], i, run);
                    turn(rows, columns);
                    for (int j = 0; j < TILE; ++j) tile.of[j][block] = columns[j];
                }
                chunk.add_all(tile, run, count);
            }
            for (int64_t t = 0; t < count; ++t)
                for (int block = 0; block < 2 && row + block * TILE < last; ++block) {
                    int64_t place = row + block * TILE;
                    std::copy_n(totals + t * ROWS + block * TILE + (place - starts[block]), std::min(TILE, last - place),
                                output + (token + t) * weight.rows + place);
                }
        }
    }
}

}  // namespace

void codes_batch(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    with_layout(weight, [&]<Kind KIND, Shape SHAPE>() {
        batch<KIND, SHAPE>(weight, input, first, last, output);
    });
}

}  // namespace secateur::avx512
