// Integer products of one row of input with AVX2: dot products along the rows of the weight, 8 rows at a time.
//
// 4 bits: code + 8 is unsigned, vpmaddubsw multiplies it exactly, and sixteen products fit 16 bits; the sum of the
// input corrects for the 8. 8 bits: vpmaddubsw would saturate, so |code| is multiplied with sign(code) * input.
#include "kernels/matrices/avx2/unpack.hpp"

namespace secateur::avx2 {
namespace {

// Sums of 8 rows over the first and the second 32 columns of a run.
struct Sums {
    __m256i first, second;
};

inline Sums halves_of(__m256i front, __m256i back) {
    return {_mm256_permute2x128_si256(front, back, 0x20), _mm256_permute2x128_si256(front, back, 0x31)};
}

// Within each half of the registers, sums eight vectors by 32-bit groups: out[0] has vectors 0 .. 3, out[1] 4 .. 7.
template <typename Add> inline void fold(const __m256i* in, __m256i* out, Add add) {
    __m256i pairs[4];
    for (int i = 0; i < 4; ++i)
        pairs[i] = add(_mm256_unpacklo_epi32(in[2 * i], in[2 * i + 1]), _mm256_unpackhi_epi32(in[2 * i], in[2 * i + 1]));
    for (int i = 0; i < 2; ++i)
        out[i] = add(_mm256_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                     _mm256_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
}

inline Sums fold_16(const __m256i* part) {  // at most 16 * 15 * 127 in each element
    const __m256i one = _mm256_set1_epi16(1);
    __m256i out[2];
    fold(part, out, [](__m256i a, __m256i b) { return _mm256_add_epi16(a, b); });
    return halves_of(_mm256_madd_epi16(out[0], one), _mm256_madd_epi16(out[1], one));
}

// Dense 4-bit codes: one shift separates even and odd columns, and the input is reordered to match.
class Pairs {
public:
    static constexpr int64_t LAG = 0;
    static constexpr bool BIASED = true, EVEN_FIRST = true;

    Pairs(const Matrix& weight, int64_t first, int64_t last)
        : stored_(weight, first, last), bias_(_mm256_set1_epi8(static_cast<char>(four_bit_bias(weight) * 0x11))) {}
    void prepare(int64_t) {}
    Sums sums(int64_t run, const int8_t* input) {
        const __m256i low = _mm256_set1_epi8(15);
        __m256i even = load(input), odd = load(input + 32), part[8];
        for (int i = 0; i < 8; ++i) {
            __m256i pairs = _mm256_xor_si256(load(stored_.run(i, run)), bias_);
            __m256i upper = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
            part[i] = _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_and_si256(pairs, low), even),
                                       _mm256_maddubs_epi16(upper, odd));
        }
        return fold_16(part);
    }

private:
    PackedRows<8> stored_;
    __m256i bias_;
};

template <Kind KIND, bool DENSE> class InOrder {
public:
    static constexpr int64_t LAG = Unpacked<KIND, DENSE, 8>::LAG;
    static constexpr bool BIASED = KIND == Kind::int4, EVEN_FIRST = false;

    InOrder(const Matrix& weight, int64_t first, int64_t last) : unpacked_(weight, first, last) {}
    void prepare(int64_t step) { unpacked_.prepare(step); }
    Sums sums(int64_t run, const int8_t* input) {
        __m256i left = load(input), right = load(input + 32), part[8], out[2];
        for (int i = 0; i < 8; ++i) {
            const uint8_t* values = unpacked_.at(i, run);
            __m256i a = products(load(values), left), b = products(load(values + 32), right);
            Sums both = halves_of(a, b);  // the first 32 columns to the lower half of the register
            part[i] = BIASED ? _mm256_add_epi16(both.first, both.second) : _mm256_add_epi32(both.first, both.second);
        }
        if (BIASED) return fold_16(part);
        fold(part, out, [](__m256i a, __m256i b) { return _mm256_add_epi32(a, b); });
        return halves_of(out[0], out[1]);
    }

private:
    static __m256i products(__m256i codes, __m256i input) {
        if (BIASED) return _mm256_maddubs_epi16(_mm256_xor_si256(codes, _mm256_set1_epi8(8)), input);
        __m256i exact = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(input, codes));
        return _mm256_madd_epi16(exact, _mm256_set1_epi16(1));
    }

    Unpacked<KIND, DENSE, 8> unpacked_;
};

struct Scratch {
    Buffer<float> scales, minimums;
    Buffer<int8_t> even_first;
};

inline void even_first(const int8_t* in, int64_t runs, int8_t* out) {
    for (int64_t run = 0; run < runs; ++run)
        for (int i = 0; i < 32; ++i) {
            out[run * 64 + i] = in[run * 64 + 2 * i];
            out[run * 64 + 32 + i] = in[run * 64 + 2 * i + 1];
        }
}

template <typename Reader>
void gemv(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    thread_local Scratch scratch;
    const int8_t* codes = input.codes.get();
    if (Reader::EVEN_FIRST) {
        int8_t* turned = scratch.even_first.grow(input.runs * RUN);
        even_first(codes, input.runs, turned);
        codes = turned;
    }
    const int64_t groups = weight.groups();
    float* scales = scratch.scales.grow(groups * 8);
    float* minimums = weight.asymmetric() ? scratch.minimums.grow(groups * 8) : nullptr;
    const int32_t bias = Reader::BIASED ? four_bit_bias(weight) : 0;
    const GroupOf group(weight);
    for (int64_t row = first; row < last; row += 8) {
        transpose_scales(weight.scales, groups, row, last, scales);
        if (minimums) transpose_scales(weight.minimums, groups, row, last, minimums);
        Reader reader(weight, row, last);
        __m256 total = _mm256_setzero_ps();
        auto add = [&](__m256i sums, int64_t span) {
            if (Reader::BIASED) sums = _mm256_sub_epi32(sums, _mm256_set1_epi32(input.sums.get()[span] * bias));
            __m256 both = _mm256_mul_ps(_mm256_loadu_ps(scales + group(span) * 8),
                                        _mm256_set1_ps(input.scales.get()[span]));
            total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), both, total);
            if (minimums)
                total = _mm256_fmadd_ps(_mm256_loadu_ps(minimums + group(span) * 8),
                                        _mm256_set1_ps(input.totals.get()[span]), total);
        };
        for (int64_t step = 0; step < input.runs + Reader::LAG; ++step) {
            reader.prepare(step);
            int64_t run = step - Reader::LAG;
            if (run < 0) continue;
            Sums sums = reader.sums(run, codes + run * RUN);
            add(sums.first, run * 2);
            add(sums.second, run * 2 + 1);
        }
        alignas(32) float out[8];
        _mm256_store_ps(out, total);
        std::copy_n(out, std::min<int64_t>(8, last - row), output + row);
    }
}

}  // namespace

void transpose_scales(const uint16_t* scales, int64_t groups, int64_t first, int64_t last, float* out) {
    int64_t group = 0;
    const uint16_t* rows[8];
    for (int64_t i = 0; i < 8; ++i) rows[i] = scales + std::min(first + i, last - 1) * groups;
    auto put = [&](__m128i halves) { _mm256_storeu_ps(out + group++ * 8, _mm256_cvtph_ps(halves)); };
    while (group + 8 <= groups) {
        __m128i a[8], b[8];
        for (int i = 0; i < 8; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + group));
        for (int i = 0; i < 4; ++i) {
            b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
        }
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; ++j) {
                a[i + 2 * j] = _mm_unpacklo_epi32(b[i + j], b[i + j + 2]);
                a[i + 2 * j + 1] = _mm_unpackhi_epi32(b[i + j], b[i + j + 2]);
            }
        for (int i = 0; i < 4; ++i) {
            put(_mm_unpacklo_epi64(a[i], a[i + 4]));
            put(_mm_unpackhi_epi64(a[i], a[i + 4]));
        }
    }
    while (group < groups) {
        alignas(16) uint16_t halves[8];
        for (int i = 0; i < 8; ++i) halves[i] = rows[i][group];
        put(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
    }
}

void codes_gemv(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    if (weight.kind == Kind::int4 && weight.dense()) return gemv<Pairs>(weight, input, first, last, output);
    with_unpacked(weight, [&]<Kind KIND, bool DENSE>() {
        gemv<InOrder<KIND, DENSE>>(weight, input, first, last, output);
    });
}

}  // namespace secateur::avx2
