// Rounds activations to bfloat16; rounding.hpp rounds them to codes.
#include "kernels/matrices/rounded_input.hpp"

#include <algorithm>

#include "base/half_precision.hpp"
#include "kernels/matrices/matrix.hpp"

namespace secateur {
void round_to_bf16(const float* values, RoundedInput& input, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        uint16_t* out = input.bf16.get() + token * input.runs * RUN;
        for (int64_t i = 0; i < input.columns; ++i) out[i] = to_bf16(values[token * input.columns + i]);
        std::fill(out + input.columns, out + input.runs * RUN, uint16_t{0});
    }
}

}  // namespace secateur
