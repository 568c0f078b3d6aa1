// A view of one packed weight matrix, and the arithmetic of its products.
//
// Integer weights: the input is rounded to int8 with one scale for each span of 32 columns. A row's products are summed
// exactly, in integers, over each span, and spans are added in order:
//     output = fma(float(sum), scale of the weights * scale of the input, output).
// Asymmetric weights add a second term for each span, after the first:
//     output = fma(minimum, sum of the input's codes * scale of the input, output).
// So the bits do not depend on the instruction set, the threads, or the rest of the batch.
// bf16 weights: the input is rounded to bf16; the bits depend on the instruction set, but not on the batch.
#pragma once

#include <array>
#include <cstdint>

namespace secateur {

constexpr int64_t RUN = 64;   // columns that share one word of a mask, as in server/artifact/checkpoint/layouts.py
constexpr int64_t SPAN = 32;  // columns whose products are summed in integers before scales are applied

enum class Kind { bf16, int8, int4, int3, int5, int6 };  // of a stored value

constexpr int bits_of(Kind kind) {
    switch (kind) {
        case Kind::int3: return 3;
        case Kind::int4: return 4;
        case Kind::int5: return 5;
        case Kind::int6: return 6;
        case Kind::int8: return 8;
        case Kind::bf16: break;
    }
    return 16;
}

// W of y = W x, [rows, columns]. Owns nothing.
struct Matrix {
    Kind kind;
    int64_t rows, columns;
    int32_t keep;             // values kept of every 64 columns; 64: dense; 0: unstructured, the mask decides
    int32_t group;            // columns that share a float16 scale: 32, 64, 128, or `columns`; unused for bf16
    const uint8_t* values;    // as server/artifact/checkpoint/layouts.py defines
    const uint64_t* mask;     // [rows, runs], null where dense
    const uint16_t* scales;   // [rows, ceil(columns / group)], float16 bits, null for bf16
    const uint64_t* offsets;  // [rows], index of each row's first value; null unless keep == 0
    bool tiled = false;       // the arrays are laid out as tiles.hpp defines
    const uint16_t* minimums = nullptr;  // as `scales`, added to code * scale; codes are then unsigned. Null: symmetric
    std::array<int8_t, 8> levels{};      // the value of each stored code of 3 bits

    int64_t runs() const { return (columns + RUN - 1) / RUN; }
    int64_t groups() const { return (columns + group - 1) / group; }
    bool dense() const { return keep == RUN; }
    bool asymmetric() const { return minimums != nullptr; }
};

}  // namespace secateur
