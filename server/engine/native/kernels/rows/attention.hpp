// Attention of a few queries over the blocks of one sequence, with an online softmax (FlashAttention).
// Included by build.hpp only.
//
// The queries of a tile share each block's keys and values in the first-level cache. A query skips blocks outside its
// window, so its sums are the same as alone.

namespace secateur::SECATEUR_SET {
namespace {

constexpr int32_t tile = 32;                               // the most queries that share a block
constexpr int32_t block_vectors = block_positions / lanes;
constexpr int32_t at_once = lanes / 4;                     // queries whose accumulators fit the registers

struct Tile {  // the queries' state, on the stack
    const float* query[tile];
    float* output[tile];
    int32_t position[tile];
    float maximum[tile], total[tile];
    float scores[tile][block_positions];
    float sums[tile][widest_head];
    float keys[widest_head * block_positions];    // a block widened to float, if many queries share it
    float values[widest_head * block_positions];
};

// scores[q][position] = query q . key, for `count` queries from `from` on
template <int32_t count, class Element>
SECATEUR_INLINE void score(Tile& state, int32_t from, const Element* keys, int32_t width) {
    Floats sums[count][block_vectors] = {};
    for (int32_t i = 0; i < width; ++i) {
        Floats key[block_vectors];
        for (int32_t v = 0; v < block_vectors; ++v) key[v] = load(keys + i * block_positions + v * lanes);
        for (int32_t q = 0; q < count; ++q)
            for (int32_t v = 0; v < block_vectors; ++v)
                sums[q][v] = fused(all(state.query[from + q][i]), key[v], sums[q][v]);
    }
    for (int32_t q = 0; q < count; ++q)
        for (int32_t v = 0; v < block_vectors; ++v) store(state.scores[from + q] + v * lanes, sums[q][v]);
}

// sums[q] += scores[q][position] * value[position], for positions in [begin, end)
template <int32_t count, int32_t vectors, class Element>
SECATEUR_INLINE void gather(Tile& state, int32_t from, const Element* values, int32_t stride, int32_t at, int32_t begin,
                            int32_t end) {
    Floats sums[count][vectors];
    for (int32_t q = 0; q < count; ++q)
        for (int32_t v = 0; v < vectors; ++v) sums[q][v] = load(state.sums[from + q] + at + v * lanes);
    for (int32_t position = begin; position < end; ++position) {
        Floats value[vectors];
        for (int32_t v = 0; v < vectors; ++v) value[v] = load(values + position * stride + at + v * lanes);
        for (int32_t q = 0; q < count; ++q)
            for (int32_t v = 0; v < vectors; ++v)
                sums[q][v] = fused(all(state.scores[from + q][position]), value[v], sums[q][v]);
    }
    for (int32_t q = 0; q < count; ++q)
        for (int32_t v = 0; v < vectors; ++v) store(state.sums[from + q] + at + v * lanes, sums[q][v]);
}

// Turns the scores of query q into softmax weights, 0 outside its window; false if the block is outside its window.
bool soften(Tile& state, int32_t q, const Attention& what, int32_t start, const float* key_scales,
            const float* value_scales) {
    const int32_t seen = what.window ? std::max(0, state.position[q] - what.window + 1) : 0;
    const int32_t low = std::max(0, seen - start), high = std::min(block_positions - 1, state.position[q] - start);
    float* scores = state.scores[q];
    if (low > high) {
        std::fill(scores, scores + block_positions, 0.0f);
        return false;
    }
    float most = state.maximum[q];
    for (int32_t v = 0; v < block_vectors; ++v) {
        Floats values = load(scores + v * lanes) * what.scale;
        if (key_scales) values *= load(key_scales + v * lanes);
        if (what.cap > 0) values = what.cap * tangent(values / what.cap);
        store(scores + v * lanes, values);
    }
    std::fill(scores, scores + low, -3.0e38f);
    std::fill(scores + high + 1, scores + block_positions, -3.0e38f);
    for (int32_t v = 0; v < block_vectors; ++v) most = std::max(most, largest(load(scores + v * lanes)));
    const float factor = exponential(all(state.maximum[q] - most))[0];
    Floats total{};
    for (int32_t v = 0; v < block_vectors; ++v) {
        Floats weights = exponential(load(scores + v * lanes) - most);
        total += weights;
        if (value_scales) weights *= load(value_scales + v * lanes);
        store(scores + v * lanes, weights);
    }
    std::fill(scores, scores + low, 0.0f);
    std::fill(scores + high + 1, scores + block_positions, 0.0f);
    state.maximum[q] = most;
    state.total[q] = state.total[q] * factor + sum(total);
    if (factor != 1.0f)
        for (int32_t i = 0; i < padded(what.cache->width); i += lanes)
            store(state.sums[q] + i, load(state.sums[q] + i) * factor);
    return true;
}

template <class Element>
void one_block(Tile& state, int32_t queries, const Attention& what, int32_t start, int64_t scales, const Element* keys,
               const Element* values) {
    const Cache& cache = *what.cache;
    const int32_t width = cache.width, stride = padded(width);
    int32_t q = 0;
    for (; q + at_once <= queries; q += at_once) score<at_once>(state, q, keys, width);
    for (; q < queries; ++q) score<1>(state, q, keys, width);
    int32_t begin = block_positions, end = 0;
    for (q = 0; q < queries; ++q) {
        const float* key_scales = cache.eight_bits ? cache.key_scales + scales : nullptr;
        const float* value_scales = cache.eight_bits ? cache.value_scales + scales : nullptr;
        if (!soften(state, q, what, start, key_scales, value_scales)) continue;
        const int32_t seen = what.window ? std::max(0, state.position[q] - what.window + 1) : 0;
        begin = std::min(begin, std::max(0, seen - start));
        end = std::max(end, std::min(block_positions, state.position[q] - start + 1));
    }
    constexpr int32_t narrow = 16 / lanes, wide = 2 * narrow;  // vectors
    for (int32_t at = 0; at < stride;) {
        const bool is_wide = at + 32 <= stride;
        for (q = 0; q + at_once <= queries; q += at_once)
            is_wide ? gather<at_once, wide>(state, q, values, stride, at, begin, end)
                    : gather<at_once, narrow>(state, q, values, stride, at, begin, end);
        for (; q < queries; ++q)
            is_wide ? gather<1, wide>(state, q, values, stride, at, begin, end)
                    : gather<1, narrow>(state, q, values, stride, at, begin, end);
        at += is_wide ? 32 : 16;
    }
}

template <class Element>
void widen(float* to, const Element* from, int32_t size) {
    for (int32_t i = 0; i < size; i += lanes) store(to + i, load(from + i));
}

template <class Element>
void all_blocks(Tile& state, int32_t queries, const Attention& what) {
    const Cache& cache = *what.cache;
    const int32_t lowest = state.position[0], highest = state.position[queries - 1];
    const int32_t begin = what.window ? std::max(0, lowest - what.window + 1) / block_positions : 0;
    for (int32_t number = begin; number <= highest / block_positions; ++number) {
        const int64_t block = what.blocks[number];
        const auto* keys = static_cast<const Element*>(cache.keys) + cache.key_offset(block, what.head);
        const auto* values = static_cast<const Element*>(cache.values) + cache.value_offset(block, what.head);
        const int64_t scales = cache.scale_offset(block, what.head);
        if (queries > 2 * at_once) {
            widen(state.keys, keys, cache.width * block_positions);
            widen(state.values, values, padded(cache.width) * block_positions);
            one_block<float>(state, queries, what, number * block_positions, scales, state.keys, state.values);
        } else {
            one_block<Element>(state, queries, what, number * block_positions, scales, keys, values);
        }
    }
}

// At most `tile` queries: rows [from, from + rows) and heads [first, first + heads) of the group.
void attend_tile(const Attention& what, int32_t from, int32_t rows, int32_t first, int32_t heads) {
    Tile state;
    const int32_t width = what.cache->width;
    int32_t queries = 0;
    for (int32_t row = from; row < from + rows; ++row)
        for (int32_t head = first; head < first + heads; ++head, ++queries) {
            const int64_t offset = row * what.stride + int64_t{head} * width;
            state.query[queries] = what.query + offset;
            state.output[queries] = what.output + offset;
            state.position[queries] = what.first + row;
            state.maximum[queries] = -3.0e38f;
            state.total[queries] = 0;
            std::fill(state.sums[queries], state.sums[queries] + padded(width), 0.0f);
        }
    if (what.cache->eight_bits) all_blocks<int8_t>(state, queries, what);
    else all_blocks<uint16_t>(state, queries, what);
    for (int32_t q = 0; q < queries; ++q) {
        const float factor = 1.0f / state.total[q];
        for (int32_t i = 0; i < width; ++i) state.output[q][i] = state.sums[q][i] * factor;
    }
}

void attend(const Attention& what) {
    const int32_t heads = std::min(what.group, tile);
    const int32_t rows = std::max(1, tile / heads);
    for (int32_t first = 0; first < what.group; first += heads)
        for (int32_t from = 0; from < what.rows; from += rows)
            attend_tile(what, from, std::min(rows, what.rows - from), first, std::min(heads, what.group - first));
}

}  // namespace
}  // namespace secateur::SECATEUR_SET
