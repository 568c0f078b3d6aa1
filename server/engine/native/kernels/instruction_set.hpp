// The matrix kernels of one instruction set, and the choice of a set that this machine runs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/matrices/matrix.hpp"
#include "kernels/matrices/rounded_input.hpp"

namespace secateur {

struct InstructionSet {
    const char* name;
    // output[token * weight.rows + row] for rows `first` .. `last` and every row of the input, of integer and of bf16
    // weights. `first` is a multiple of BLOCK_ROWS.
    void (*codes)(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);
    void (*bf16)(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);
    // Rounds rows `first` .. `last` of `values` [tokens, columns] to the codes of `input`, whose buffers are large enough.
    void (*round_to_codes)(const float* values, RoundedInput& input, int64_t first, int64_t last);
    bool tiles = false;  // whether it reads tiles (tiles.hpp), which are then its quickest layout
};

extern const InstructionSet PORTABLE, AVX2, AVX512, NEON, DOTPROD;  // all but the first only for their processors

// The instruction sets that were built and that this processor has, best first.
std::vector<const InstructionSet*> available();

// The best one, or the one named `wanted`; `reason` says why. Throws std::invalid_argument for one that is not there.
const InstructionSet& choose(std::string_view wanted, std::string& reason);

}  // namespace secateur
