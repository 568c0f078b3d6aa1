// The queries of a tile, packed for products, and what they share: one key head of one block at a time.
// Included by attend.hpp only.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/rows/attention/units.hpp"
#include "kernels/rows/row_kernels.hpp"

namespace secateur::SECATEUR_SET {
namespace {

constexpr int32_t most_queries = lanes == 16 ? 48 : 32;
constexpr int32_t block_units = block_positions / unit_values;
constexpr float lowest_maximum = -3.0e38f;
constexpr float invisible = -std::numeric_limits<float>::infinity();  // score of a key that a query may not see
constexpr float log2_of_e = 1.44269504f;

struct Queries {
    int32_t count = 0;
    const float* query[most_queries];
    float* output[most_queries];
    int32_t first[most_queries], last[most_queries];  // positions that each attends to
    Unit units[widest_head / unit_values][most_queries];  // times the scale of attention
    float factor;   // of a score's capped value
    bool capped;

    int32_t highest() const { return last[count - 1]; }
    // Whether each query sees every position of the block from `start` on.
    bool see_all(int32_t start) const {
        return first[count - 1] <= start && last[0] >= start + block_positions - 1;
    }
};

template <class Element> struct Block {  // of one key head
    int32_t start, end;  // its first position, and its number of positions that some query sees
    const Element *keys, *values;
    const Element* next_keys;  // of the block after it; null at the end
    const float *key_scales, *value_scales;  // null at 16 bits
};

// Packs `lanes` queries from `from` on.
void pack_queries(Queries& queries, int32_t from, int32_t width, float scale) {
    for (int32_t at = 0; at < width; at += lanes) {
        Floats rows[lanes];
        for (int32_t lane = 0; lane < lanes; ++lane) {
            const bool is_there = from + lane < queries.count;
            rows[lane] = is_there ? load_some(queries.query[from + lane] + at, width - at) * scale : Floats{};
        }
        transpose(rows);
        for (int32_t i = 0; i < std::min(lanes, width - at); i += unit_values)
            store(queries.units[(at + i) / unit_values] + from, pack(rows + i));
    }
}

void add_query(Queries& queries, const Attention& what, int32_t row, int32_t head) {
    const int64_t offset = row * what.stride + int64_t{head} * what.cache->width;
    const int32_t at = queries.count++, position = what.first + row;
    queries.query[at] = what.query + offset;
    queries.output[at] = what.output + offset;
    queries.first[at] = what.window ? std::max(0, position - what.window + 1) : 0;
    queries.last[at] = position;
}

// A score in bits, so that the softmax takes powers of two.
SECATEUR_INLINE Floats in_bits(const Queries& queries, Floats score) {
    return queries.capped ? queries.factor * tangent(score) : score;
}

}  // namespace
}  // namespace secateur::SECATEUR_SET
