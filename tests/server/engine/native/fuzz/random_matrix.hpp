// Random matrices of every layout in buffers of exactly the format's size, with their dense values.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "base/half_precision.hpp"
#include "kernels/matrices/matrix.hpp"
#include "kernels/matrices/tiles.hpp"

namespace secateur {

inline std::mt19937_64 generator;

inline int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
inline float normal() { return std::normal_distribution<float>()(generator); }

// A heap copy without spare capacity.
template <typename T> std::unique_ptr<T[]> exact(const std::vector<T>& from) {
    std::unique_ptr<T[]> copy(new T[from.size()]);
    std::copy(from.begin(), from.end(), copy.get());
    return copy;
}

struct Case {
    Matrix matrix;
    std::vector<double> dense;  // [rows, columns]
    std::unique_ptr<uint8_t[]> values;
    std::unique_ptr<uint64_t[]> mask, offsets;
    std::unique_ptr<uint16_t[]> scales, minimums;
};

inline uint64_t random_mask(int32_t keep) {
    if (keep == 0) return generator() & generator() & (pick(0, 3) ? ~uint64_t{0} : 0);
    uint64_t mask = 0;
    while (std::popcount(mask) < keep) mask |= uint64_t{1} << pick(0, 63);
    return mask;
}

class Builder {
public:
    // Scales of any magnitude; with `gentle`, values of about 1 / sqrt(columns), which keep the magnitude of the input.
    Builder(Kind kind, int64_t rows, int64_t columns, int32_t keep, int32_t group, bool asymmetric, bool gentle = false)
        : size_(gentle ? 1 / std::sqrt(static_cast<float>(columns)) : 1) {
        made_.matrix = {kind, rows, columns, keep, group, nullptr, nullptr, nullptr, nullptr};
        made_.dense.assign(rows * columns, 0);
        if (kind == Kind::bf16) return;
        const int half = 1 << (bits_of(kind) - 1);
        for (int8_t& level : made_.matrix.levels) level = static_cast<int8_t>(gentle ? pick(-5, 5) : pick(-128, 127));
        const int64_t step = std::bit_cast<uint32_t>(size_ / (kind == Kind::int3 ? 5 : half * 0.6f));
        for (int64_t i = 0; i < rows * made_.matrix.groups(); ++i) {
            scales_.push_back(gentle ? near(step) : static_cast<uint16_t>(pick(0, 0x3c00) | (pick(0, 1) << 15)));
            if (asymmetric) minimums_.push_back(gentle ? near(std::bit_cast<uint32_t>(size_)) | 0x8000 : scales_[i] ^ 0x8000);
        }
        if (asymmetric) made_.matrix.minimums = minimums_.data();  // until `build`
    }

    Case build() {
        Matrix& matrix = made_.matrix;
        for (int64_t row = 0; row < matrix.rows; ++row) {
            offsets_.push_back(count_);
            for (int64_t run = 0; run < matrix.runs(); ++run) add_run(row, run);
            if (matrix.dense()) filled_ = 0;
        }
        made_.values = exact(values_), made_.mask = exact(masks_), made_.scales = exact(scales_);
        made_.offsets = exact(offsets_);
        if (matrix.asymmetric()) made_.minimums = exact(minimums_), matrix.minimums = made_.minimums.get();
        matrix.values = made_.values.get();
        if (!matrix.dense()) matrix.mask = made_.mask.get();
        if (matrix.keep == 0) matrix.offsets = made_.offsets.get();
        if (matrix.kind != Kind::bf16) matrix.scales = made_.scales.get();
        return std::move(made_);
    }

private:
    // float16 bits within a quarter of the given float32 bits
    static uint16_t near(int64_t bits) {
        return static_cast<uint16_t>(((bits - 0x38000000) >> 13) + pick(-256, 256));
    }

    void add_run(int64_t row, int64_t run) {
        const Matrix& matrix = made_.matrix;
        uint64_t mask = matrix.dense() ? ~uint64_t{0} : random_mask(matrix.keep);
        if (!matrix.dense()) masks_.push_back(mask), filled_ = 0;
        for (int64_t i = 0; i < 64; ++i) {
            int64_t column = run * 64 + i;
            if (!(mask >> i & 1) || (matrix.dense() && column >= matrix.columns)) continue;
            double value = add_value(row, column);
            if (column < matrix.columns) made_.dense[row * matrix.columns + column] = value;
        }
    }

    double add_value(int64_t row, int64_t column) {
        const Matrix& matrix = made_.matrix;
        ++count_;
        if (matrix.kind == Kind::bf16) {
            uint16_t bits = to_bf16(normal() * size_);
            values_.push_back(static_cast<uint8_t>(bits));
            values_.push_back(static_cast<uint8_t>(bits >> 8));
            return from_bf16(bits);
        }
        const int bits = bits_of(matrix.kind), stored = static_cast<int>(pick(0, (1 << bits) - 1));
        for (int bit = 0; bit < bits; ++bit, filled_ = (filled_ + 1) % 8) {
            if (filled_ == 0) values_.push_back(0);
            values_.back() |= static_cast<uint8_t>((stored >> bit & 1) << filled_);
        }
        int code = stored >> (bits - 1) ? stored - (1 << bits) : stored;
        if (matrix.asymmetric()) code = stored;
        if (matrix.kind == Kind::int3) code = matrix.levels[stored];
        const int64_t group = row * matrix.groups() + std::min(column / matrix.group, matrix.groups() - 1);
        const double value = static_cast<double>(code) * from_half(scales_[group]);
        return matrix.asymmetric() ? value + from_half(minimums_[group]) : value;
    }

    Case made_;
    float size_;
    std::vector<uint8_t> values_;
    std::vector<uint64_t> masks_, offsets_;
    std::vector<uint16_t> scales_, minimums_;
    uint64_t count_ = 0;
    int filled_ = 0;  // bits of the last byte
};

// The same matrix in tiles.
inline Case in_tiles(Case from) {
    std::unique_ptr<uint8_t[]> room(new uint8_t[tiled_bytes(from.matrix)]);
    from.matrix = tile(from.matrix, room.get());
    from.values = std::move(room);
    from.mask.reset(), from.offsets.reset(), from.scales.reset(), from.minimums.reset();
    return from;
}

// A matrix of any layout, stored or in tiles.
inline Case random_matrix(int64_t rows, int64_t columns, bool gentle) {
    auto kind = static_cast<Kind>(pick(0, 5));
    int32_t keep = pick(0, 2) == 0 ? 64 : pick(0, 2) == 0 ? (kind == Kind::int4 ? 32 : 0) : int32_t(pick(1, 64));
    if (by_spans(kind)) keep = 64;
    const bool asymmetric = keep == 64 && kind != Kind::bf16 && kind != Kind::int8 && pick(0, 1);
    int32_t groups[] = {32, 64, 128, static_cast<int32_t>(columns)};
    Case made = Builder(kind, rows, columns, keep, groups[pick(0, 3)], asymmetric, gentle).build();
    return pick(0, 1) ? in_tiles(std::move(made)) : std::move(made);
}

// Rows of input, rounded as the kernels round them, in double precision.
inline std::vector<double> rounded(const Matrix& matrix, const std::vector<float>& input, int64_t tokens) {
    std::vector<double> out(input.size());
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < matrix.columns; ++c) {
            size_t place = t * matrix.columns + c;
            if (matrix.kind == Kind::bf16) {
                out[place] = from_bf16(to_bf16(input[place]));
                continue;
            }
            float largest = 0;
            for (int64_t i = c / SPAN * SPAN; i < std::min(c / SPAN * SPAN + SPAN, matrix.columns); ++i)
                largest = std::max(largest, std::fabs(input[t * matrix.columns + i]));
            if (largest > 0) out[place] = std::nearbyint(input[place] * (127.0f / largest)) * (largest / 127.0f);
        }
    return out;
}

}  // namespace secateur
