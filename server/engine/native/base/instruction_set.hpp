// What an instruction set has to offer: products of some rows of a matrix with a rounded batch.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/input.hpp"
#include "kernels/matrix.hpp"

namespace secateur {

struct InstructionSet {
    const char* name;
    // Rows `first` .. `last` of the matrix times every row of the input, to output[token * weight.rows + row].
    // `first` is a multiple of BLOCK.
    void (*codes)(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output);
    void (*halves)(const Matrix& weight, const Input& input, int64_t first, int64_t last, float* output);
    bool tiles = false;  // whether it is quickest on tiles (tiles.hpp), and reads them at all
};

constexpr int64_t BLOCK = 32;  // rows that kernels like to have together

extern const InstructionSet PORTABLE, AVX2, AVX512;  // the last two only where the compiler knows them

// The instruction sets that were built and that this processor has, best first.
std::vector<const InstructionSet*> available();

// The best one, or the one named `wanted`; `reason` says why. Throws std::invalid_argument for one that is not there.
const InstructionSet& choose(std::string_view wanted, std::string& reason);

}  // namespace secateur
