// Rounds activations, in plain C++ that the compiler vectorises.
#include "kernels/matrices/rounded_input.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/half_precision.hpp"
#include "kernels/matrices/matrix.hpp"

namespace secateur {
namespace {

constexpr float LARGEST = 127.0f;
constexpr int LANES = 8;
constexpr float SHIFT = 0x1.8p23f;  // x + SHIFT - SHIFT rounds |x| < 2^22 to the nearest integer, ties to even

// Rounds a span to codes and returns its scale. NaN or infinity makes the scale NaN, and so the product.
float round_span(const float* values, int8_t* codes, int32_t& sum) {
    constexpr int32_t INFINITE = 0x7f800000;
    int32_t most[LANES] = {};  // magnitudes as bits, whose order is that of the numbers, and which vectors compare
    for (int i = 0; i < SPAN; i += LANES)
        for (int lane = 0; lane < LANES; ++lane)
            most[lane] = std::max(most[lane], std::bit_cast<int32_t>(values[i + lane]) & 0x7fffffff);
    const int32_t bits = *std::max_element(most, most + LANES);
    const float largest = std::bit_cast<float>(bits);
    sum = 0;
    if (bits >= INFINITE || largest < 0x1p-100f) {
        std::fill_n(codes, SPAN, int8_t{0});
        return bits >= INFINITE ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    float inverse = LARGEST / largest;
    int32_t rounded[SPAN];
    for (int i = 0; i < SPAN; ++i) rounded[i] = static_cast<int32_t>((values[i] * inverse + SHIFT) - SHIFT);
    for (int i = 0; i < SPAN; ++i) sum += rounded[i];
    for (int i = 0; i < SPAN; ++i) codes[i] = static_cast<int8_t>(rounded[i]);
    return largest / LARGEST;
}

}  // namespace

void round_to_codes(const float* values, RoundedInput& input, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        const float* row = values + token * input.columns;
        for (int64_t span = 0; span < input.runs * 2; ++span) {
            int64_t place = token * input.runs * 2 + span, left = input.columns - span * SPAN;
            float padded[SPAN] = {};
            const float* from = row + span * SPAN;
            if (left < SPAN) {
                std::copy_n(from, std::max<int64_t>(left, 0), padded);
                from = padded;
            }
            input.scales.get()[place] = round_span(from, input.codes.get() + place * SPAN, input.sums.get()[place]);
        }
    }
}

void round_to_bf16(const float* values, RoundedInput& input, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        uint16_t* out = input.bf16.get() + token * input.runs * RUN;
        for (int64_t i = 0; i < input.columns; ++i) out[i] = to_bf16(values[token * input.columns + i]);
        std::fill(out + input.columns, out + input.runs * RUN, uint16_t{0});
    }
}

}  // namespace secateur
