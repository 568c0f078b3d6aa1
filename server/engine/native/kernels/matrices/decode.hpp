// Reads rows of a packed matrix in plain C++: the reference for every other reader.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/matrices/matrix.hpp"

namespace secateur {

// Bytes of a row of `values`, if all rows have the same length.
inline int64_t stride(const Matrix& weight) {
    int64_t runs = weight.runs(), keep = weight.keep;
    switch (weight.kind) {
        case Kind::bf16: return (weight.dense() ? weight.columns : runs * keep) * 2;
        case Kind::int8: return weight.dense() ? weight.columns : runs * keep;
        case Kind::int4: return weight.dense() ? (weight.columns + 1) / 2 : runs * ((keep + 1) / 2);
    }
    return 0;
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

// The value `index` of a row that starts at `values`: an integer, or bf16 bits.
inline int32_t stored(Kind kind, const uint8_t* values, int64_t index) {
    if (kind == Kind::int8) return static_cast<int8_t>(values[index]);
    if (kind == Kind::int4) return ((values[index / 2] >> (index % 2 * 4) & 15) ^ 8) - 8;
    uint16_t bits;
    std::memcpy(&bits, values + index * 2, 2);
    return bits;
}

// Calls `visit(column, value)` for each stored value of a row, by ascending column.
template <typename Visit> void for_each(const Matrix& weight, int64_t index, Visit visit) {
    if (weight.dense()) {
        const uint8_t* values = weight.values + index * stride(weight);
        for (int64_t column = 0; column < weight.columns; ++column) visit(column, stored(weight.kind, values, column));
        return;
    }
    int64_t runs = weight.runs(), size = weight.kind == Kind::bf16 ? 2 : 1;
    const uint8_t* values = weight.keep ? weight.values + index * stride(weight)
                                        : weight.values + weight.offsets[index] * size;
    int64_t step = weight.kind == Kind::int4 ? (weight.keep + 1) / 2 : weight.keep * size;
    for (int64_t run = 0; run < runs; ++run) {
        uint64_t mask = weight.mask[index * runs + run];
        int64_t count = 0;
        for (uint64_t left = mask; left; left &= left - 1) {
            int64_t column = run * RUN + std::countr_zero(left);
            if (column < weight.columns) visit(column, stored(weight.kind, values, count));
            ++count;
        }
        values += weight.keep ? step : count * size;
    }
}

}  // namespace secateur
