// Reads rows of a packed matrix in plain C++: the reference for every other reader.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/matrices/matrix.hpp"

namespace secateur {

// Bytes of `count` values that start a new byte.
constexpr int64_t packed_bytes(Kind kind, int64_t count) { return (count * bits_of(kind) + 7) / 8; }

// Bytes of a row of `values`, if all rows have the same length.
inline int64_t stride(const Matrix& weight) {
    if (weight.dense()) return packed_bytes(weight.kind, weight.columns);
    return weight.runs() * packed_bytes(weight.kind, weight.keep);
}

// Index of the scale of a span; the last one for a span of padding, whose input is 0.
class GroupOf {
public:
    explicit GroupOf(const Matrix& weight)
        : shift_(weight.group >= weight.columns ? 62 : std::countr_zero(static_cast<uint64_t>(weight.group / SPAN))),
          last_(weight.groups() - 1) {}
    int64_t operator()(int64_t span) const { return std::min(span >> shift_, last_); }

private:
    int shift_;
    int64_t last_;
};

// The bits `index` of a row that starts at `values`, unsigned.
inline int32_t stored(Kind kind, const uint8_t* values, int64_t index) {
    const int bits = bits_of(kind);
    if (bits == 16) return values[index * 2] | values[index * 2 + 1] << 8;
    const int64_t first = index * bits, shift = first % 8;
    const int32_t high = shift + bits > 8 ? values[first / 8 + 1] << 8 : 0;
    return (values[first / 8] | high) >> shift & ((1 << bits) - 1);
}

// The integer that stored bits mean; bf16 bits as they are.
inline int32_t value_of(const Matrix& weight, int32_t bits) {
    if (weight.kind == Kind::int3) return weight.levels[bits];
    if (weight.kind == Kind::bf16 || weight.asymmetric()) return bits;
    const int32_t half = 1 << (bits_of(weight.kind) - 1);
    return (bits ^ half) - half;
}

// Calls `visit(column, bits)` for each stored value of a row, by ascending column.
template <typename Visit> void for_each_stored(const Matrix& weight, int64_t index, Visit visit) {
    if (weight.dense()) {
        const uint8_t* values = weight.values + index * stride(weight);
        for (int64_t column = 0; column < weight.columns; ++column) visit(column, stored(weight.kind, values, column));
        return;
    }
    int64_t runs = weight.runs(), size = weight.kind == Kind::bf16 ? 2 : 1;
    const uint8_t* values = weight.keep ? weight.values + index * stride(weight)
                                        : weight.values + weight.offsets[index] * size;
    for (int64_t run = 0; run < runs; ++run) {
        uint64_t mask = weight.mask[index * runs + run];
        int64_t count = 0;
        for (uint64_t left = mask; left; left &= left - 1) {
            int64_t column = run * RUN + std::countr_zero(left);
            if (column < weight.columns) visit(column, stored(weight.kind, values, count));
            ++count;
        }
        values += weight.keep ? packed_bytes(weight.kind, weight.keep) : count * size;
    }
}

// Calls `visit(column, value)` likewise; a value is an integer, or bf16 bits.
template <typename Visit> void for_each(const Matrix& weight, int64_t index, Visit visit) {
    for_each_stored(weight, index, [&](int64_t column, int32_t bits) { visit(column, value_of(weight, bits)); });
}

}  // namespace secateur
