// Rounds inputs. Plain C++ that the compiler turns into vectors; it is small beside the products.
#include <algorithm>
#include <cmath>

#include "input.hpp"
#include "matrix.hpp"
#include "numbers.hpp"

namespace secateur {
namespace {

constexpr float LARGEST = 127.0f;
constexpr float SHIFT = 0x1.8p23f;  // x + SHIFT - SHIFT rounds |x| < 2^22 to the nearest integer, ties to even

// A span to codes; returns the scale. A value that is no number makes the scale NaN, and so the product.
float round_span(const float* values, int8_t* codes, int32_t& sum) {
    float largest = 0, check = 0;
    sum = 0;
    for (int i = 0; i < SPAN; ++i) {
        largest = std::max(largest, std::fabs(values[i]));
        check += values[i] * 0.0f;  // NaN where a value is infinite or NaN
    }
    if (!(check == 0) || largest < 0x1p-100f) {
        std::fill_n(codes, SPAN, int8_t{0});
        return check == 0 ? 0.0f : check;
    }
    float inverse = LARGEST / largest;
    int32_t rounded[SPAN];
    for (int i = 0; i < SPAN; ++i) rounded[i] = static_cast<int32_t>((values[i] * inverse + SHIFT) - SHIFT);
    for (int i = 0; i < SPAN; ++i) sum += rounded[i];
    for (int i = 0; i < SPAN; ++i) codes[i] = static_cast<int8_t>(rounded[i]);
    return largest / LARGEST;
}

}  // namespace

void round_codes(const float* values, Input& input, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        const float* row = values + token * input.columns;
        for (int64_t span = 0; span < input.runs * 2; ++span) {
            int64_t place = token * input.runs * 2 + span, left = input.columns - span * SPAN;
            float padded[SPAN] = {};
            if (left > 0) std::copy_n(row + span * SPAN, std::min(SPAN, left), padded);
            input.scales.get()[place] =
                round_span(padded, input.codes.get() + place * SPAN, input.sums.get()[place]);
        }
    }
}

void round_halves(const float* values, Input& input, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        uint16_t* out = input.halves.get() + token * input.runs * RUN;
        for (int64_t i = 0; i < input.columns; ++i) out[i] = to_bf16(values[token * input.columns + i]);
        std::fill(out + input.columns, out + input.runs * RUN, uint16_t{0});
    }
}

}  // namespace secateur
