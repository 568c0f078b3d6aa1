// Attention of few queries: registers run along the positions for scores, and along the head's width for sums.
// Each product is the same chain as in many.hpp, so a row has the same bits.
// Included by attend.hpp only.
#pragma once

#include "kernels/rows/attention/queries.hpp"

namespace secateur::SECATEUR_SET {
namespace {

constexpr int32_t few_at_once = 4;                        // queries that share a load
constexpr int32_t columns_at_once = lanes == 16 ? 4 : 2;  // registers of a value
constexpr int32_t block_registers = block_positions / lanes;

struct Few {
    Few(Queries& of, int32_t head_width) : queries(of), width(head_width) {}

    Queries& queries;
    const int32_t width;
    float maximum[most_queries], total[most_queries], factor[most_queries];
    float scores[most_queries][block_positions];
    Unit weights[most_queries][block_units];
    Unit scaled[most_queries][block_units];  // weights times the values' scales
    float sums[most_queries][widest_head];
};

template <int32_t count, class Element> void score(Few& state, int32_t from, const Block<Element>& block) {
    for (int32_t position = 0; position < block_positions; position += 2 * lanes) {
        Floats sums[count][2] = {};
        for (int32_t unit = 0; unit < units_of(state.width); ++unit) {
            const Element* const place = block.keys + (unit * block_positions + position) * unit_values;
            const Units keys[2] = {load_units(place), load_units(place + lanes * unit_values)};
            for (int32_t q = 0; q < count; ++q)
                for (int32_t v = 0; v < 2; ++v)
                    sums[q][v] = dot(all(state.queries.units[unit][from + q]), keys[v], sums[q][v]);
        }
        for (int32_t q = 0; q < count; ++q)
            for (int32_t v = 0; v < 2; ++v) store(state.scores[from + q] + position + v * lanes, sums[q][v]);
    }
}

template <class Element> void soften(Few& state, int32_t query, const Block<Element>& block) {
    const Queries& queries = state.queries;
    Words lane;
    for (int32_t i = 0; i < lanes; ++i) lane[i] = i;
    Floats scores[block_registers];
    Floats most = all(state.maximum[query]);
    for (int32_t v = 0; v < block_registers; ++v) {
        scores[v] = load(state.scores[query] + v * lanes);
        if (block.key_scales) scores[v] *= load(block.key_scales + v * lanes);
        scores[v] = in_bits(queries, scores[v]);
        const Words position = lane + (block.start + v * lanes);
        const Words seen = (position >= queries.first[query]) & (position <= queries.last[query]);
        scores[v] = seen ? scores[v] : all(invisible);
        most = larger(scores[v], most);
    }
    const float maximum = largest(most);
    state.factor[query] = power_of_two(all(state.maximum[query] - maximum))[0];
    state.maximum[query] = maximum;
    for (int32_t v = 0; v < block_registers; v += unit_values) {
        Floats weights[unit_values];
        for (int32_t i = 0; i < unit_values; ++i) weights[i] = power_of_two(scores[v + i] - maximum);
        store(state.weights[query] + v * lanes / unit_values, pack_neighbours(weights));
        if (!block.value_scales) continue;
        for (int32_t i = 0; i < unit_values; ++i) weights[i] *= load(block.value_scales + (v + i) * lanes);
        store(state.scaled[query] + v * lanes / unit_values, pack_neighbours(weights));
    }
}

template <int32_t count, int32_t registers, class Element>
SECATEUR_INLINE void gather(Few& state, int32_t from, const Block<Element>& block, int32_t column) {
    const auto& weights = block.value_scales ? state.scaled : state.weights;
    Floats sums[count][registers];
    for (int32_t q = 0; q < count; ++q)
        for (int32_t v = 0; v < registers; ++v)
            sums[q][v] = load(state.sums[from + q] + column + v * lanes) * state.factor[from + q];
    for (int32_t unit = 0; unit < units_of(block.end); ++unit) {
        Units values[registers];
        for (int32_t v = 0; v < registers; ++v)
            values[v] = load_units(block.values + (unit * padded(state.width) + column + v * lanes) * unit_values);
        for (int32_t q = 0; q < count; ++q)
            for (int32_t v = 0; v < registers; ++v)
                sums[q][v] = dot(all(weights[from + q][unit]), values[v], sums[q][v]);
    }
    for (int32_t q = 0; q < count; ++q)
        for (int32_t v = 0; v < registers; ++v) store(state.sums[from + q] + column + v * lanes, sums[q][v]);
}

template <int32_t count> void add_up(Few& state, int32_t from, int32_t units) {
    Floats totals[count];
    for (int32_t q = 0; q < count; ++q) totals[q] = all(state.total[from + q] * state.factor[from + q]);
    for (int32_t unit = 0; unit < units; ++unit)
        for (int32_t q = 0; q < count; ++q)
            totals[q] = dot(all(state.weights[from + q][unit]), all(ones), totals[q]);
    for (int32_t q = 0; q < count; ++q) state.total[from + q] = totals[q][0];
}

template <int32_t count, class Element> void attend_some(Few& state, int32_t from, const Block<Element>& block) {
    score<count>(state, from, block);
    for (int32_t q = 0; q < count; ++q) soften(state, from + q, block);
    add_up<count>(state, from, units_of(block.end));
    constexpr int32_t narrow = 16 / lanes, step = columns_at_once * lanes;
    int32_t column = 0;
    for (; column + step <= padded(state.width); column += step)
        gather<count, columns_at_once>(state, from, block, column);
    for (; column < padded(state.width); column += 16) gather<count, narrow>(state, from, block, column);
}

template <class Element> void attend_block(Few& state, const Block<Element>& block) {
    int32_t from = 0;
    for (; from + few_at_once <= state.queries.count; from += few_at_once)
        attend_some<few_at_once>(state, from, block);
    const int32_t left = state.queries.count - from;
    if (left == 1) attend_some<1>(state, from, block);
    else if (left == 2) attend_some<2>(state, from, block);
    else if (left == 3) attend_some<3>(state, from, block);
}

void begin(Few& state) {
    for (int32_t q = 0; q < state.queries.count; ++q) {
        state.maximum[q] = lowest_maximum, state.total[q] = 0;
        std::fill(state.sums[q], state.sums[q] + padded(state.width), 0.0f);
    }
}

void finish(Few& state) {
    for (int32_t q = 0; q < state.queries.count; ++q) {
        const float factor = 1.0f / state.total[q];
        for (int32_t i = 0; i < state.width; ++i) state.queries.output[q][i] = state.sums[q][i] * factor;
    }
}

}  // namespace
}  // namespace secateur::SECATEUR_SET
