// bfloat16 products with AVX-512: vdpbf16ps on 32 columns a register. Each output is one chain in the order of the
// columns and one fixed sum across its register, so that it does not depend on the batch.
#include "avx512.hpp"

namespace secateur::avx512 {
namespace {

constexpr int ROWS = 8;

// Calls visit(half, 32 values) for the two registers of a run of one row.
template <Shape SHAPE, typename Visit> inline void each(Stored<SHAPE>& stored, int64_t row, int64_t run, Visit visit) {
    int64_t count = stored.count(row, run);
    const uint8_t* place = stored.run(row, run, count);
    if constexpr (SHAPE == Shape::dense) {
        visit(0, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lowest(count)), place));
        visit(1, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lowest(count) >> 32), place + 64));
    } else {
        uint64_t mask = stored.mask(row, run);
        auto low = static_cast<__mmask32>(mask), high = static_cast<__mmask32>(mask >> 32);
        int64_t first = std::popcount(static_cast<uint32_t>(low));
        auto part = [](int64_t values) { return static_cast<__mmask32>(lowest(values)); };
        visit(0, _mm512_maskz_expand_epi16(low, _mm512_maskz_loadu_epi16(part(first), place)));
        visit(1, _mm512_maskz_expand_epi16(high, _mm512_maskz_loadu_epi16(part(count - first), place + first * 2)));
    }
}

inline __m512 dot(__m512 total, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(total, (__m512bh)a, (__m512bh)b);
}

template <Shape SHAPE> void line(const Matrix& weight, const Input& input, int64_t token, int64_t first, int64_t last,
                                float* output) {
    const uint16_t* x = input.halves.get() + token * input.runs * RUN;
    for (int64_t row = first; row < last; row += ROWS) {
        int64_t eight = std::min(row, weight.rows - ROWS), start = begin(weight, eight), skip = eight - start;
        Stored<SHAPE> stored(weight, start);
        __m512 total[ROWS];
        for (int i = 0; i < ROWS; ++i) total[i] = _mm512_setzero_ps();
        for (int64_t run = 0; run < input.runs; ++run) {
            __m512i both[2] = {_mm512_loadu_si512(x + run * RUN), _mm512_loadu_si512(x + run * RUN + 32)};
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i)
                each(stored, skip + i, run, [&](int half, __m512i w) { total[i] = dot(total[i], w, both[half]); });
        }
        for (int64_t i = 0; i < ROWS; ++i)  // rows before `row` have been written already
            if (eight + i >= row && eight + i < last) output[eight + i] = _mm512_reduce_add_ps(total[i]);
    }
}

// 4 rows of weight times COUNT rows of input, `width` bfloat16 values each.
template <int COUNT>
inline void block(const uint16_t* weight, const uint16_t* input, int64_t width, float* output, int64_t next,
                  int64_t rows) {
    __m512 total[4][COUNT];
    for (int i = 0; i < 4; ++i)
        for (int t = 0; t < COUNT; ++t) total[i][t] = _mm512_setzero_ps();
    for (int64_t j = 0; j < width; j += 32) {
        __m512i x[COUNT];
        for (int t = 0; t < COUNT; ++t) x[t] = _mm512_loadu_si512(input + t * width + j);
        for (int i = 0; i < 4; ++i) {
            __m512i w = _mm512_loadu_si512(weight + i * width + j);
            for (int t = 0; t < COUNT; ++t) total[i][t] = dot(total[i][t], w, x[t]);
        }
    }
    for (int i = 0; i < rows; ++i)
        for (int t = 0; t < COUNT; ++t) output[t * next + i] = _mm512_reduce_add_ps(total[i][t]);
}

template <Shape SHAPE> void batch(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    thread_local Buffer<uint16_t> scratch;
    int64_t width = input.runs * RUN;
    uint16_t* wide = scratch.grow(4 * width);
    const uint16_t* x = input.halves.get();
    for (int64_t row = first; row < last; row += 4) {
        int64_t start = begin(weight, row), rows = std::min<int64_t>(4, last - row), next = weight.rows;
        Stored<SHAPE> stored(weight, start);
        for (int64_t run = 0; run < input.runs; ++run)
            for (int64_t i = 0; i < rows; ++i)
                each(stored, row - start + i, run,
                     [&](int half, __m512i w) { _mm512_storeu_si512(wide + i * width + run * RUN + half * 32, w); });
        int64_t token = 0;
        float* out = output + row;
        for (; token + 4 <= input.tokens; token += 4)
            block<4>(wide, x + token * width, width, out + token * next, next, rows);
        switch (input.tokens - token) {
            case 3: block<3>(wide, x + token * width, width, out + token * next, next, rows); break;
            case 2: block<2>(wide, x + token * width, width, out + token * next, next, rows); break;
            case 1: block<1>(wide, x + token * width, width, out + token * next, next, rows); break;
        }
    }
}

template <Shape SHAPE>
void product(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    input.tokens == 1 ? line<SHAPE>(weight, input, 0, first, last, output)
                      : batch<SHAPE>(weight, input, first, last, output);
}

}  // namespace

void halves(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    switch (shape_of(weight)) {
        case Shape::dense: return product<Shape::dense>(weight, input, first, last, output);
        case Shape::balanced: return product<Shape::balanced>(weight, input, first, last, output);
        case Shape::running: return product<Shape::running>(weight, input, first, last, output);
    }
}

}  // namespace secateur::avx512

namespace secateur {
namespace {

// A matrix that does not fill a tile is not worth a kernel.
bool tiny(const Matrix& weight) { return weight.rows < avx512::TILE; }

void codes(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    if (tiny(weight)) return PORTABLE.codes(weight, input, first, last, output);
    input.tokens == 1 ? avx512::codes_line(weight, input, first, last, output)
                      : avx512::codes_batch(weight, input, first, last, output);
}

void halves(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output) {
    auto product = tiny(weight) ? PORTABLE.halves : avx512::halves;
    product(weight, input, first, last, output);
}

}  // namespace

const InstructionSet AVX512{"avx512", codes, halves};

}  // namespace secateur
