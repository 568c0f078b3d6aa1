// Products of matrices with a batch: rounds the input once, then shares out blocks of rows.
#include <algorithm>
#include <vector>

#include "base/instruction_set.hpp"
#include "base/numbers.hpp"
#include "base/pool.hpp"
#include "kernels/tiles.hpp"

namespace secateur {
namespace {

constexpr int64_t PART = 1 << 16;   // multiplications in one part for one token: some microseconds
constexpr int64_t PART_ROWS = 512;  // and no more rows than this

struct Share {
    size_t weight;
    int64_t first, last;
};

std::vector<Share> shares(std::span<const Matrix> weights) {
    std::vector<Share> parts;
    for (size_t i = 0; i < weights.size(); ++i) {
        int64_t rows = std::clamp(PART / std::max<int64_t>(weights[i].columns, 1) / BLOCK * BLOCK, BLOCK, PART_ROWS);
        for (int64_t first = 0; first < weights[i].rows; first += rows)
            parts.push_back({i, first, std::min(first + rows, weights[i].rows)});
    }
    return parts;
}

void round_input(std::span<const Matrix> weights, const float* values, int64_t tokens, Pool& pool) {
    Input& input = pool.input();
    int64_t columns = weights[0].columns, runs = weights[0].runs();
    input.tokens = tokens, input.columns = columns, input.runs = runs;
    bool halves = std::ranges::any_of(weights, [](const Matrix& w) { return w.kind == Kind::bf16; });
    bool codes = std::ranges::any_of(weights, [](const Matrix& w) { return w.kind != Kind::bf16; });
    if (halves) input.halves.grow(tokens * runs * RUN);
    if (codes) {
        input.codes.grow(tokens * runs * RUN);
        input.scales.grow(tokens * runs * 2);
        input.sums.grow(tokens * runs * 2);
    }
    constexpr int64_t TOGETHER = 8;
    pool.run((tokens + TOGETHER - 1) / TOGETHER, [&](int64_t part) {
        int64_t first = part * TOGETHER, last = std::min(first + TOGETHER, tokens);
        if (halves) round_halves(values, input, first, last);
        if (codes) round_codes(values, input, first, last);
    });
}

}  // namespace

void multiply(std::span<const Matrix> weights, const float* values, std::span<float* const> outputs, int64_t tokens,
              Pool& pool, const InstructionSet& set) {
    if (weights.empty() || tokens <= 0) return;
    round_input(weights, values, tokens, pool);
    const Input& input = pool.input();
    std::vector<Share> parts = shares(weights);
    pool.run(static_cast<int64_t>(parts.size()), [&](int64_t part) {
        const Share& share = parts[part];
        const Matrix& weight = weights[share.weight];
        const InstructionSet& able = weight.tiled && !set.tiles ? PORTABLE : set;
        auto product = weight.kind == Kind::bf16 ? able.halves : able.codes;
        product(weight, input, share.first, share.last, outputs[share.weight]);
    });
}

void multiply(const Matrix& weight, const float* input, float* output, int64_t tokens, Pool& pool,
              const InstructionSet& set) {
    float* const outputs[] = {output};
    multiply(std::span(&weight, 1), input, outputs, tokens, pool, set);
}

void row(const Matrix& weight, int64_t index, float* out) {
    std::fill_n(out, weight.columns, 0.0f);
    if (weight.kind == Kind::bf16) {
        for_each_value(weight, index, [&](int64_t column, int32_t value) { out[column] = from_bf16(value); });
        return;
    }
    for_each_value(weight, index, [&](int64_t column, int32_t value) {
        const int64_t place = scale_place(weight, index, column / weight.group);
        out[column] = static_cast<float>(value) * from_half(weight.scales[place]);
    });
}

}  // namespace secateur
