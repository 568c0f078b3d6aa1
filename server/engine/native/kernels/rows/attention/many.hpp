// Attention of many queries, with a lane for each: keys and values are read once for all of them, and nothing is summed
// across a register.
// Included by attend.hpp only.
#pragma once

#include "kernels/rows/attention/queries.hpp"

namespace secateur::SECATEUR_SET {
namespace {

constexpr int32_t most_registers = lanes == 16 ? 3 : 2;  // of queries in one product
constexpr int32_t rows_at_once = lanes == 16 ? 8 : 4;    // keys, or columns of the values

struct Many {
    Many(Queries& of, int32_t head_width) : queries(of), width(head_width) {}

    Queries& queries;
    const int32_t width;
    float maximum[most_queries], total[most_queries], factor[most_queries];
    float scores[block_positions][most_queries];
    Unit weights[block_units][most_queries];
    Unit scaled[block_units][most_queries];  // weights times the values' scales
    float sums[widest_head][most_queries];
    Unit keys[widest_head / unit_values * block_positions], values[block_units * widest_head];  // a block unpacked
};

// sums[row][register] += left[unit][register] * right[unit][row]
template <int32_t registers>
SECATEUR_INLINE void multiply(Floats (&sums)[rows_at_once][registers], const Unit* left, const Unit* right,
                              int32_t right_stride, int32_t units) {
    for (int32_t unit = 0; unit < units; ++unit) {
        Units queries[registers];
        for (int32_t r = 0; r < registers; ++r) queries[r] = load_units(left + unit * most_queries + r * lanes);
        for (int32_t row = 0; row < rows_at_once; ++row) {
            const Units other = all(right[unit * right_stride + row]);
            for (int32_t r = 0; r < registers; ++r) sums[row][r] = dot(queries[r], other, sums[row][r]);
        }
    }
}

// Fetches one of `parts` parts of what the next product reads: the processor does not foresee the block table.
SECATEUR_INLINE void fetch(const Unit* from, int32_t units, int32_t part, int32_t parts) {
    constexpr int32_t line = 64 / sizeof(Unit);
    for (int32_t i = units * part / parts; i < units * (part + 1) / parts; i += line) __builtin_prefetch(from + i);
}

template <int32_t registers> void score(Many& state, int32_t from, const Block<Unit>& block) {
    for (int32_t key = 0; key < block.end; key += rows_at_once) {
        fetch(block.values, padded(state.width) * block_units, key / rows_at_once, block_positions / rows_at_once);
        Floats sums[rows_at_once][registers] = {};
        multiply(sums, state.queries.units[0] + from, block.keys + key, block_positions, units_of(state.width));
        for (int32_t row = 0; row < rows_at_once; ++row)
            for (int32_t r = 0; r < registers; ++r)
                store(state.scores[key + row] + from + r * lanes, sums[row][r]);
    }
}

// Final scores of one register of queries, and their maximum.
void finish_scores(Many& state, int32_t from, const Block<Unit>& block) {
    const Queries& queries = state.queries;
    const bool masked = !queries.see_all(block.start);
    Words first, last;
    std::memcpy(&first, queries.first + from, sizeof first), std::memcpy(&last, queries.last + from, sizeof last);
    Floats most = load(state.maximum + from);
    for (int32_t key = 0; key < units_of(block.end) * unit_values; ++key) {
        float* const place = state.scores[key] + from;
        Floats score = load(place);
        if (block.key_scales) score *= block.key_scales[key];
        score = in_bits(queries, score);
        if (masked) {
            const Words position = Words{} + (block.start + key);
            score = (position >= first) & (position <= last) ? score : all(invisible);
        }
        store(place, score);
        most = larger(score, most);
    }
    store(state.factor + from, power_of_two(load(state.maximum + from) - most));
    store(state.maximum + from, most);
}

// Turns the scores of one register of queries into softmax weights.
void soften(Many& state, int32_t from, const Block<Unit>& block) {
    finish_scores(state, from, block);
    const Floats most = load(state.maximum + from);
    Floats total = load(state.total + from) * load(state.factor + from);
    for (int32_t unit = 0; unit < units_of(block.end); ++unit) {
        Floats weights[unit_values];
        for (int32_t i = 0; i < unit_values; ++i)
            weights[i] = power_of_two(load(state.scores[unit * unit_values + i] + from) - most);
        const Units packed = pack(weights);
        total = dot(packed, all(ones), total);
        store(state.weights[unit] + from, packed);
        if (!block.value_scales) continue;
        for (int32_t i = 0; i < unit_values; ++i) weights[i] *= block.value_scales[unit * unit_values + i];
        store(state.scaled[unit] + from, pack(weights));
    }
    store(state.total + from, total);
}

template <int32_t registers> void gather(Many& state, int32_t from, const Block<Unit>& block) {
    const Unit* const weights = (block.value_scales ? state.scaled : state.weights)[0] + from;
    const int32_t stride = padded(state.width);
    for (int32_t column = 0; column < stride; column += rows_at_once) {
        if (block.next_keys)
            fetch(block.next_keys, units_of(state.width) * block_positions, column / rows_at_once, stride / rows_at_once);
        Floats sums[rows_at_once][registers];
        for (int32_t row = 0; row < rows_at_once; ++row)
            for (int32_t r = 0; r < registers; ++r) {
                const int32_t at = from + r * lanes;
                sums[row][r] = load(state.sums[column + row] + at) * load(state.factor + at);
            }
        multiply(sums, weights, block.values + column, stride, units_of(block.end));
        for (int32_t row = 0; row < rows_at_once; ++row)
            for (int32_t r = 0; r < registers; ++r)
                store(state.sums[column + row] + from + r * lanes, sums[row][r]);
    }
}

template <int32_t registers> void attend_registers(Many& state, int32_t from, const Block<Unit>& block) {
    score<registers>(state, from, block);
    for (int32_t r = 0; r < registers; ++r) soften(state, from + r * lanes, block);
    gather<registers>(state, from, block);
}

void attend_block(Many& state, const Block<Unit>& block) {
    for (int32_t from = 0; from < state.queries.count; from += most_registers * lanes) {
        const int32_t left = std::min(most_registers, (state.queries.count - from + lanes - 1) / lanes);
        if (left == 1) attend_registers<1>(state, from, block);
        else if (left == 2) attend_registers<2>(state, from, block);
        else attend_registers<3>(state, from, block);
    }
}

template <class Element> void unpack(Unit* to, const Element* from, int32_t units) {
    for (int32_t i = 0; i < units; i += lanes) store(to + i, load_units(from + i * unit_values));
}

template <class Element> void attend_block(Many& state, const Block<Element>& block) {
    Block<Unit> same{block.start, block.end, nullptr, nullptr, nullptr, block.key_scales, block.value_scales};
    if constexpr (sizeof(Element) * unit_values == sizeof(Unit)) {
        same.keys = reinterpret_cast<const Unit*>(block.keys);
        same.values = reinterpret_cast<const Unit*>(block.values);
        same.next_keys = reinterpret_cast<const Unit*>(block.next_keys);
    } else {
        unpack(state.keys, block.keys, units_of(state.width) * block_positions);
        unpack(state.values, block.values, padded(state.width) * block_units);
        same.keys = state.keys, same.values = state.values;
    }
    attend_block(state, same);
}

void begin(Many& state) {
    for (int32_t from = state.queries.count; from < most_queries; ++from)  // lanes without a query see nothing
        state.queries.first[from] = 1, state.queries.last[from] = 0;
    std::fill(state.maximum, state.maximum + most_queries, lowest_maximum);
    std::fill(state.total, state.total + most_queries, 0.0f);
    std::fill(state.sums[0], state.sums[padded(state.width)], 0.0f);
}

void finish(Many& state) {
    const Queries& queries = state.queries;
    for (int32_t from = 0; from < queries.count; from += lanes) {
        const Floats factor = 1.0f / load(state.total + from);
        for (int32_t at = 0; at < state.width; at += lanes) {
            Floats rows[lanes];
            for (int32_t i = 0; i < lanes; ++i) rows[i] = load(state.sums[at + i] + from) * factor;
            transpose(rows);
            for (int32_t lane = 0; lane < std::min(lanes, queries.count - from); ++lane) {
                store_some(queries.output[from + lane] + at, rows[lane], state.width - at);
            }
        }
    }
}

}  // namespace
}  // namespace secateur::SECATEUR_SET
