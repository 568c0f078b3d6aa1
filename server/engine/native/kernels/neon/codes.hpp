// Integer products with NEON, compiled for each form of the dot product: exact sums of 32 columns, then scales in order.
#pragma once

#include <arm_neon.h>

#include <cmath>

#include "base/buffer.hpp"
#include "base/half_precision.hpp"
#include "kernels/instruction_set.hpp"
#include "kernels/matrices/tiles.hpp"

namespace secateur {
namespace {

// Splits bytes into the codes of 4 bits of their low and high halves, in the order of the columns.
inline void split_nibbles(const uint8_t* from, bool asymmetric, int8_t* to) {
    const uint8x16_t bytes = vld1q_u8(from);
    int8x16_t low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
    int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    if (!asymmetric) {  // from two's complement of 4 bits
        const int8x16_t sign = vdupq_n_s8(8);
        low = vsubq_s8(veorq_s8(low, sign), sign), high = vsubq_s8(veorq_s8(high, sign), sign);
    }
    vst1q_s8(to, vzip1q_s8(low, high));
    vst1q_s8(to + 16, vzip2q_s8(low, high));
}

// The codes of row `index` as bytes, padded with zeros to whole runs.
inline void unpack_row(const Matrix& weight, int64_t index, int64_t padded, int8_t* row) {
    const bool plain = weight.dense() && !weight.tiled;
    int64_t done = 0;
    if (plain && weight.kind == Kind::int8) {
        std::memcpy(row, weight.values + index * weight.columns, weight.columns);
        done = weight.columns;
    } else if (plain && weight.kind == Kind::int4) {
        const uint8_t* from = weight.values + index * stride(weight);
        for (; done + SPAN <= weight.columns; done += SPAN) split_nibbles(from + done / 2, weight.asymmetric(), row + done);
        for (int64_t column = done; column < weight.columns; ++column)
            row[column] = static_cast<int8_t>(value_of(weight, stored(weight.kind, from, column)));
        done = weight.columns;
    }
    std::fill(row + done, row + padded, int8_t{0});
    if (done) return;
    for_each_value(weight, index, [&](int64_t column, int32_t value) { row[column] = static_cast<int8_t>(value); });
}

template <typename Dot>
inline __attribute__((always_inline)) void products(const Matrix& weight, const RoundedInput& input, int64_t first,
                                                    int64_t last, float* output, Dot dot) {
    thread_local Buffer<int8_t> bytes;
    thread_local Buffer<float> factors;
    const int64_t spans = (weight.columns + SPAN - 1) / SPAN, padded = input.runs * RUN;
    const GroupOf group(weight);
    int8_t* row = bytes.grow(padded);
    float* scales = factors.grow(2 * spans);
    float* minimums = scales + spans;
    for (int64_t index = first; index < last; ++index) {
        unpack_row(weight, index, padded, row);
        for (int64_t span = 0; span < spans; ++span) {
            const int64_t place = scale_place(weight, index, group(span));
            scales[span] = from_half(weight.scales[place]);
            if (weight.asymmetric()) minimums[span] = from_half(weight.minimums[place]);
        }
        for (int64_t token = 0; token < input.tokens; ++token) {
            const int8_t* x = input.codes.get() + token * padded;
            const float* of_input = input.scales.get() + token * input.runs * 2;
            const float* totals = input.totals.get() + token * input.runs * 2;
            float total = 0;
            for (int64_t span = 0; span < spans; ++span) {
                const int32_t sum = dot(row + span * SPAN, x + span * SPAN);
                total = std::fma(static_cast<float>(sum), scales[span] * of_input[span], total);
                if (weight.asymmetric()) total = std::fma(minimums[span], totals[span], total);
            }
            output[token * weight.rows + index] = total;
        }
    }
}

}  // namespace
}  // namespace secateur
