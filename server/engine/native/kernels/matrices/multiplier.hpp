// Products of matrices with a batch of activations.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/pool.hpp"
#include "kernels/instruction_set.hpp"
#include "kernels/matrices/matrix.hpp"
#include "kernels/matrices/rounded_input.hpp"

namespace secateur {

// Multiplies on the threads of a pool. Its scratch grows to the largest batch seen, so later calls allocate nothing.
// One call at a time.
class Multiplier {
public:
    Multiplier(Pool& pool, const InstructionSet& set) : pool_(pool), set_(set) {}

    // outputs[i] [tokens, rows] = input [tokens, columns] * weights[i]^T, float32, row-major. The input is rounded once
    // for all weights (query, key and value; gate and up).
    void multiply(std::span<const Matrix> weights, const float* input, std::span<float* const> outputs, int64_t tokens);
    void multiply(const Matrix& weight, const float* input, float* output, int64_t tokens);

private:
    struct Share {  // rows of one weight: the work of one thread at a time
        size_t weight;
        int64_t first, last;
    };

    void round(std::span<const Matrix> weights, const float* values, int64_t tokens);
    void share_out(std::span<const Matrix> weights);

    Pool& pool_;
    const InstructionSet& set_;
    RoundedInput input_;
    std::vector<Share> shares_;
};

// Writes one row of a matrix as float32 [columns], such as a token's embedding.
void unpack_row(const Matrix& weight, int64_t index, float* out);

}  // namespace secateur
