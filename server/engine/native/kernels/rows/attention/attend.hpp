// Attention of a few queries over the blocks of one sequence, with an online softmax (FlashAttention).
// Included by build.hpp only.
//
// A tile is a block of the cache, so its bounds are absolute positions. A query's sums, maximum and total take the same
// steps in the same order alone and beside others: invisible keys have a weight of 0, which changes nothing.
#pragma once

#include "kernels/rows/attention/few.hpp"
#include "kernels/rows/attention/many.hpp"
#include "kernels/rows/attention/queries.hpp"

namespace secateur::SECATEUR_SET {
namespace {

constexpr int32_t many_queries = lanes * 3 / 4;  // from which a lane for each query is faster

template <class Element, class State> void attend_blocks(State& state, const Attention& what) {
    const Cache& cache = *what.cache;
    const Queries& queries = state.queries;
    begin(state);
    for (int32_t number = queries.first[0] / block_positions; number <= queries.highest() / block_positions; ++number) {
        const int64_t block = what.blocks[number], scales = cache.scale_offset(block, what.head);
        const int32_t start = number * block_positions, end = std::min(block_positions, queries.highest() - start + 1);
        const auto* keys = static_cast<const Element*>(cache.keys) + cache.key_offset(block, what.head);
        const auto* values = static_cast<const Element*>(cache.values) + cache.value_offset(block, what.head);
        const bool is_last = number == queries.highest() / block_positions;
        const int64_t next = is_last ? 0 : cache.key_offset(what.blocks[number + 1], what.head);
        const auto* next_keys = is_last ? nullptr : static_cast<const Element*>(cache.keys) + next;
        attend_block(state, Block<Element>{start, end, keys, values, next_keys,
                                           cache.eight_bits ? cache.key_scales + scales : nullptr,
                                           cache.eight_bits ? cache.value_scales + scales : nullptr});
    }
    finish(state);
}

template <class State> void attend_queries(Queries& queries, const Attention& what) {
    State state(queries, what.cache->width);
    if (what.cache->eight_bits) attend_blocks<int8_t>(state, what);
    else attend_blocks<uint16_t>(state, what);
}

// At most `most_queries`: rows [from, from + rows) and heads [first, first + heads) of the group.
void attend_tile(const Attention& what, int32_t from, int32_t rows, int32_t first, int32_t heads) {
    Queries queries;
    for (int32_t row = from; row < from + rows; ++row)
        for (int32_t head = first; head < first + heads; ++head) add_query(queries, what, row, head);
    queries.capped = what.cap > 0;
    queries.factor = what.cap * log2_of_e;
    const float scale = what.scale * (queries.capped ? 1 / what.cap : log2_of_e);
    for (int32_t at = 0; at < queries.count; at += lanes) pack_queries(queries, at, what.cache->width, scale);
    if (queries.count < many_queries) attend_queries<Few>(queries, what);
    else attend_queries<Many>(queries, what);
}

void attend(const Attention& what) {
    const int32_t heads = std::min(what.group, most_queries);
    const int32_t rows = std::max(1, most_queries / heads);
    for (int32_t first = 0; first < what.group; first += heads)
        for (int32_t from = 0; from < what.rows; from += rows)
            attend_tile(what, from, std::min(rows, what.rows - from), first, std::min(heads, what.group - first));
}

}  // namespace
}  // namespace secateur::SECATEUR_SET
