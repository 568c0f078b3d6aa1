// Everything but matrix products: norms, rotary embeddings, activations, paged attention, and the softmax of sampling.
//
// Each result depends on its own row only, in a fixed order of operations, so a reply does not depend on its batch.
#pragma once

#include <cstdint>

namespace secateur {

struct InstructionSet;

constexpr int32_t block_positions = 32;  // positions in a block of the cache
constexpr int32_t widest_head = 256;
constexpr int32_t draw_group = 64;  // logits that share a maximum

inline int32_t padded(int32_t width) { return (width + 15) / 16 * 16; }  // to a multiple of the widest register

inline int32_t even(int32_t width) { return (width + 1) / 2 * 2; }

struct Cache {  // keys and values of one layer
    // Keys are [block, head, width, position] and values [block, head, position, padded width]. With AVX-512, pairs of a
    // key's columns and pairs of positions of the values are neighbours: keys [block, head, width / 2, position, 2], values
    // [block, head, position / 2, padded width, 2]. bf16, or int8 with one scale per head and position.
    bool eight_bits = false;
    int32_t heads = 0, width = 0;
    void *keys = nullptr, *values = nullptr;
    float *key_scales = nullptr, *value_scales = nullptr;  // [block, head, position], null at 16 bits

    int64_t key_offset(int64_t block, int64_t head) const {
        return (block * heads + head) * even(width) * block_positions;
    }
    int64_t value_offset(int64_t block, int64_t head) const {
        return (block * heads + head) * padded(width) * block_positions;
    }
    int64_t scale_offset(int64_t block, int64_t head) const { return (block * heads + head) * block_positions; }
};

struct Place {  // of a key and a value in the cache
    int64_t block;
    int32_t head, position;  // position in the block
    bool last;  // of the sequence so far: the next place may hold what another text left
};

struct Attention {  // some consecutive queries of one sequence, for the query heads of one key head
    const Cache* cache;
    const int32_t* blocks;  // the sequence's block table
    const float* query;     // of the first row and head; heads are contiguous
    float* output;          // in the same layout
    int64_t stride;         // floats from row to row
    int32_t first, rows;    // position of the first row
    int32_t head, group;    // key head, and its number of query heads
    int32_t window;         // 0: all
    float scale, cap;
};

struct RowKernels {
    // out = in / rms(in) * weight
    void (*norm)(const float* in, const float* weight, float* out, int64_t size, float epsilon);
    void (*add)(float* into, const float* what, int64_t size);
    void (*scale)(float* values, float factor, int64_t size);
    void (*cap)(float* values, float cap, int64_t size);
    // gate = activation(gate) * up
    void (*gate)(float* gate, const float* up, int64_t size, bool gelu);
    void (*rotate)(float* head, const float* cosines, const float* sines, int32_t width);
    // Writes one head's key and value [width].
    void (*store)(const Cache& cache, const Place& place, const float* key, const float* value);
    void (*attend)(const Attention& what);
    int32_t queries;  // that share a tile of `attend`
    // out[i] = the maximum of the i-th `draw_group` values, NaN if one of them is.
    void (*maxima)(const float* values, int64_t size, float* out);
    // out [draw_group] = e^((values - top) * factor) for at most `draw_group` values; returns their sum.
    double (*weigh)(const float* values, int64_t size, float top, double factor, double* out);
};

const RowKernels& row_kernels(const InstructionSet& set);

}  // namespace secateur
