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

// 64 values to codes; returns the scale. A value that is no number makes the scale NaN, and so the product.
float round_run(const float* values, int8_t* codes, int32_t* sums) {
    float largest = 0, check = 0;
    for (int i = 0; i < RUN; ++i) {
        largest = std::max(largest, std::fabs(values[i]));
        check += values[i] * 0.0f;  // NaN where a value is infinite or NaN
    }
    if (!(check == 0) || largest < 0x1p-100f) {
        std::fill_n(codes, RUN, int8_t{0});
        sums[0] = sums[1] = 0;
        return check == 0 ? 0.0f : check;
    }
    float inverse = LARGEST / largest;
    int32_t rounded[RUN];
    for (int i = 0; i < RUN; ++i) rounded[i] = static_cast<int32_t>((values[i] * inverse + SHIFT) - SHIFT);
    for (int half = 0; half < 2; ++half) {
        int32_t sum = 0;
        for (int i = 0; i < RUN / 2; ++i) sum += rounded[half * (RUN / 2) + i];
        sums[half] = sum;
    }
    for (int i = 0; i < RUN; ++i) codes[i] = static_cast<int8_t>(rounded[i]);
    return largest / LARGEST;
}

}  // namespace

void round_codes(const float* values, Input& input, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        const float* row = values + token * input.columns;
        for (int64_t run = 0; run < input.runs; ++run) {
            int64_t place = token * input.runs + run, left = std::min(RUN, input.columns - run * RUN);
            float padded[RUN] = {};
            std::copy_n(row + run * RUN, left, padded);
            input.scales.get()[place] =
                round_run(padded, input.codes.get() + place * RUN, input.sums.get() + place * 2);
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
