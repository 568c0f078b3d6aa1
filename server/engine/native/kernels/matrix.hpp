// One weight matrix as it lies in the file or in tiles, and its products with a batch of rows.
//
// Integer weights: the input is rounded to int8 with one scale for every span of 32 columns (input.hpp). A row's products
// are summed exactly, in integers, over each span, and spans are added in order:
//     output = fma(float(sum), scale of the weights * scale of the input, output).
// So the bits do not depend on the instruction set, on the threads, or on what else is in the batch.
// bf16 weights: the input is rounded to bf16; the bits depend on the instruction set, but not on the batch.
#pragma once

#include <cstdint>
#include <span>

namespace secateur {

constexpr int64_t RUN = 64;   // columns that share one word of a mask, as in server/artifact/checkpoint/layouts.py
constexpr int64_t SPAN = 32;  // columns whose products are summed in integers before scales are applied

enum class Kind { bf16, int8, int4 };  // how a value is stored

// A view, nothing owned; y = W x, W is [rows, columns].
struct Matrix {
    Kind kind;
    int64_t rows, columns;
    int32_t keep;             // values in every 64 columns; 64: dense; 0: unstructured, as many as the mask says
    int32_t group;            // columns that share a float16 scale: 32, 64, 128, or `columns`; unused for bf16
    const uint8_t* values;    // as server/artifact/checkpoint/layouts.py says
    const uint64_t* mask;     // [rows, runs], null where dense
    const uint16_t* scales;   // [rows, ceil(columns / group)], float16 bits, null for bf16
    const uint64_t* offsets;  // [rows], where each row's values start, in values; null unless keep == 0
    bool tiled = false;       // the four are laid out as tiles.hpp says

    int64_t runs() const { return (columns + RUN - 1) / RUN; }
    int64_t groups() const { return (columns + group - 1) / group; }
    bool dense() const { return keep == RUN; }
};

class Pool;
struct InstructionSet;

// output[tokens, rows] = input[tokens, columns] * W^T, float32 in and out, row-major.
void multiply(const Matrix& weight, const float* input, float* output, int64_t tokens, Pool& pool,
              const InstructionSet& set);

// The same for several matrices that share one input (q, k, v; gate, up): the input is rounded once.
void multiply(std::span<const Matrix> weights, const float* input, std::span<float* const> outputs, int64_t tokens,
              Pool& pool, const InstructionSet& set);

// A row of the matrix as float32, such as a token's embedding: out[columns].
void row(const Matrix& weight, int64_t index, float* out);

}  // namespace secateur
