// Rounds activations to codes, in the compiler's own vectors; included by one source of each instruction set.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/matrices/matrix.hpp"
#include "kernels/matrices/rounded_input.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // about calls, and all of this is inlined

namespace secateur {
namespace {

constexpr int half_span = SPAN / 2;
using HalfSpan = float __attribute__((vector_size(4 * half_span)));
using HalfSpanWords = int32_t __attribute__((vector_size(4 * half_span)));
using HalfSpanCodes = int8_t __attribute__((vector_size(half_span)));

// The lanes combined pairwise, in lane 0.
template <class Combine>
inline __attribute__((always_inline)) int32_t combined(const HalfSpanWords& from, Combine combine) {
    static_assert(half_span == 16);
    const HalfSpanWords by[] = {{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7},
                                {4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11},
                                {2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13},
                                {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}};
    HalfSpanWords words = from;
    for (const HalfSpanWords& order : by) words = combine(words, __builtin_shuffle(words, order));
    return words[0];
}

// Rounds a span to codes and returns its scale. NaN or infinity makes the scale NaN, and so the product.
inline __attribute__((always_inline)) float round_span(const float* values, int8_t* codes, int32_t& sum) {
    constexpr int32_t infinite = 0x7f800000, magnitude = 0x7fffffff;
    constexpr float most_code = 127.0f, shift = 0x1.8p23f;  // x + shift - shift rounds to the nearest, ties to even
    HalfSpan parts[2];
    std::memcpy(parts, values, sizeof parts);
    // Magnitudes as bits, whose order is that of the numbers.
    const HalfSpanWords low = reinterpret_cast<HalfSpanWords>(parts[0]) & magnitude;
    const HalfSpanWords high = reinterpret_cast<HalfSpanWords>(parts[1]) & magnitude;
    const int32_t bits = combined(low > high ? low : high, [](const HalfSpanWords& a, const HalfSpanWords& b) {
        return a > b ? a : b;
    });
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    if (bits >= infinite || largest < 0x1p-100f) {
        std::fill_n(codes, SPAN, int8_t{0});
        sum = 0;
        return bits >= infinite ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    const float inverse = most_code / largest;
    HalfSpanWords rounded[2];
    for (int part = 0; part < 2; ++part) {
        rounded[part] = __builtin_convertvector((parts[part] * inverse + shift) - shift, HalfSpanWords);
        const HalfSpanCodes some = __builtin_convertvector(rounded[part], HalfSpanCodes);
        std::memcpy(codes + part * half_span, &some, sizeof some);
    }
    sum = combined(rounded[0] + rounded[1], [](const HalfSpanWords& a, const HalfSpanWords& b) { return a + b; });
    return largest / most_code;
}

void round_to_codes(const float* values, RoundedInput& input, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        const float* row = values + token * input.columns;
        for (int64_t span = 0; span < input.runs * 2; ++span) {
            const int64_t place = token * input.runs * 2 + span, left = input.columns - span * SPAN;
            float padded[SPAN] = {};
            const float* from = row + span * SPAN;
            if (left < SPAN) {
                std::copy_n(from, std::max<int64_t>(left, 0), padded);
                from = padded;
            }
            int32_t& sum = input.sums.get()[place];
            const float scale = round_span(from, input.codes.get() + place * SPAN, sum);
            input.scales.get()[place] = scale;
            input.totals.get()[place] = scale * static_cast<float>(sum);
        }
    }
}

}  // namespace
}  // namespace secateur
