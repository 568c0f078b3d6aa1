// Products in plain C++: slow, for any processor.
#include <cmath>
#include <vector>

#include "kernels/instruction_set.hpp"
#include "base/half_precision.hpp"
#include "kernels/matrices/rounding.hpp"
#include "kernels/matrices/tiles.hpp"

namespace secateur {
namespace {

void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    int64_t spans = (weight.columns + SPAN - 1) / SPAN;
    GroupOf group(weight);
    std::vector<int8_t> row(input.runs * RUN);
    for (int64_t index = first; index < last; ++index) {
        std::fill(row.begin(), row.end(), int8_t{0});
        for_each_value(weight, index, [&](int64_t column, int32_t value) { row[column] = static_cast<int8_t>(value); });
        for (int64_t token = 0; token < input.tokens; ++token) {
            const int8_t* x = input.codes.get() + token * input.runs * RUN;
            float total = 0;
            for (int64_t span = 0; span < spans; ++span) {
                int32_t sum = 0;
                for (int64_t i = span * SPAN; i < (span + 1) * SPAN; ++i) sum += row[i] * x[i];
                const int64_t place = scale_place(weight, index, group(span)), of_input = token * input.runs * 2 + span;
                const float scale = from_half(weight.scales[place]) * input.scales.get()[of_input];
                total = std::fma(static_cast<float>(sum), scale, total);
                if (weight.asymmetric())
                    total = std::fma(from_half(weight.minimums[place]), input.totals.get()[of_input], total);
            }
            output[token * weight.rows + index] = total;
        }
    }
}

void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    std::vector<float> row(input.columns);
    for (int64_t index = first; index < last; ++index) {
        std::fill(row.begin(), row.end(), 0.0f);
        for_each_value(weight, index, [&](int64_t column, int32_t value) { row[column] = from_bf16(value); });
        for (int64_t token = 0; token < input.tokens; ++token) {
            const uint16_t* x = input.bf16.get() + token * input.runs * RUN;
            float total = 0;
            for (int64_t i = 0; i < input.columns; ++i) total += row[i] * from_bf16(x[i]);
            output[token * weight.rows + index] = total;
        }
    }
}

}  // namespace

const InstructionSet PORTABLE{"portable", codes, bf16, round_to_codes};

}  // namespace secateur
