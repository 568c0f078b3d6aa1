// A batch of activations rounded to what matrix kernels read: int8 codes, bfloat16, or both.
#pragma once

#include <cstdint>

#include "base/buffer.hpp"

namespace secateur {

// Each row is padded with zeros to a multiple of 64 columns.
struct RoundedInput {
    int64_t tokens = 0, columns = 0, runs = 0;
    Buffer<int8_t> codes;    // [tokens, runs * 64]: value = code * scale
    Buffer<float> scales;    // [tokens, runs, 2]: of each span of 32 columns
    Buffer<int32_t> sums;    // [tokens, runs, 2]: of each span's codes, to correct for biased weights
    Buffer<float> totals;    // [tokens, runs, 2]: scale * sum, the sum of each span's rounded values
    Buffer<uint16_t> bf16;   // [tokens, runs * 64]: bits
};

// Rounds rows `first` .. `last` of `values` [tokens, columns] into `input`, whose buffers are large enough.
void round_to_bf16(const float* values, RoundedInput& input, int64_t first, int64_t last);

}  // namespace secateur
