// Rounds the input once, then shares out blocks of rows.
#include "kernels/matrices/multiplier.hpp"

#include <algorithm>

#include "base/half_precision.hpp"
#include "kernels/matrices/tiles.hpp"

namespace secateur {
namespace {

constexpr int64_t SHARE_PRODUCTS = 1 << 16;  // multiplications of one share for one token: some microseconds
constexpr int64_t SHARE_ROWS = 512;          // the most rows of a share
constexpr int64_t ROUNDED_TOGETHER = 8;      // rows of input

}  // namespace

void Multiplier::share_out(std::span<const Matrix> weights) {
    shares_.clear();
    for (size_t i = 0; i < weights.size(); ++i) {
        const int64_t fitting = SHARE_PRODUCTS / std::max<int64_t>(weights[i].columns, 1) / BLOCK_ROWS * BLOCK_ROWS;
        const int64_t rows = std::clamp(fitting, BLOCK_ROWS, SHARE_ROWS);
        for (int64_t first = 0; first < weights[i].rows; first += rows)
            shares_.push_back({i, first, std::min(first + rows, weights[i].rows)});
    }
}

void Multiplier::round(std::span<const Matrix> weights, const float* values, int64_t tokens) {
    const int64_t runs = weights[0].runs();
    input_.tokens = tokens, input_.columns = weights[0].columns, input_.runs = runs;
    const bool bf16 = std::ranges::any_of(weights, [](const Matrix& w) { return w.kind == Kind::bf16; });
    const bool codes = std::ranges::any_of(weights, [](const Matrix& w) { return w.kind != Kind::bf16; });
    if (bf16) input_.bf16.grow(tokens * runs * RUN);
    if (codes) {
        input_.codes.grow(tokens * runs * RUN);
        input_.scales.grow(tokens * runs * 2);
        input_.sums.grow(tokens * runs * 2);
        input_.totals.grow(tokens * runs * 2);
    }
    pool_.run((tokens + ROUNDED_TOGETHER - 1) / ROUNDED_TOGETHER, [&](int64_t part) {
        const int64_t first = part * ROUNDED_TOGETHER, last = std::min(first + ROUNDED_TOGETHER, tokens);
        if (bf16) round_to_bf16(values, input_, first, last);
        if (codes) set_.round_to_codes(values, input_, first, last);
    });
}

void Multiplier::multiply(std::span<const Matrix> weights, const float* input, std::span<float* const> outputs,
                          int64_t tokens) {
    if (weights.empty() || tokens <= 0) return;
    round(weights, input, tokens);
    share_out(weights);
    pool_.run(static_cast<int64_t>(shares_.size()), [&](int64_t part) {
        const Share& share = shares_[part];
        const Matrix& weight = weights[share.weight];
        const InstructionSet& able = weight.tiled && !set_.tiles ? PORTABLE : set_;
        const auto product = weight.kind == Kind::bf16 ? able.bf16 : able.codes;
        product(weight, input_, share.first, share.last, outputs[share.weight]);
    });
}

void Multiplier::multiply(const Matrix& weight, const float* input, float* output, int64_t tokens) {
    float* const outputs[] = {output};
    multiply(std::span(&weight, 1), input, outputs, tokens);
}

void unpack_row(const Matrix& weight, int64_t index, float* out) {
    std::fill_n(out, weight.columns, 0.0f);
    if (weight.kind == Kind::bf16) {
        for_each_value(weight, index, [&](int64_t column, int32_t value) { out[column] = from_bf16(value); });
        return;
    }
    for_each_value(weight, index, [&](int64_t column, int32_t value) {
        const int64_t place = scale_place(weight, index, column / weight.group);
        out[column] = static_cast<float>(value) * from_half(weight.scales[place]);
        if (weight.asymmetric()) out[column] += from_half(weight.minimums[place]);
    });
}

}  // namespace secateur
