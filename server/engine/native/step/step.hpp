// One forward pass of a decoder: a batch of ids in, float32 logits of the requested ids out.
//
// Prefill chunks and decode rows share one batch; a row's logits depend on its own sequence only. Cache and activations
// are allocated with the step; other scratch grows until the first batch of full size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/mapping.hpp"
#include "base/pool.hpp"
#include "kernels/matrices/multiplier.hpp"
#include "kernels/rows/row_kernels.hpp"
#include "step/model.hpp"

namespace secateur {

struct Chunk {               // consecutive ids of one sequence
    int32_t start, count;    // position of the first
    int32_t wanted;          // number of last ids whose logits are returned
    std::span<const int32_t> blocks;  // block table of the sequence
};

struct Batch {
    std::span<const int32_t> ids;  // of all chunks, concatenated
    std::span<const Chunk> chunks;
};

struct Limits {
    int32_t tokens;      // of a batch
    int32_t blocks;      // of the cache
    bool eight_bits;     // keys and values are int8, else bf16
};

class Step {
public:
    // Throws std::invalid_argument if shapes do not fit each other. The matrices, `pool` and `set` must outlive it.
    Step(Model model, Limits limits, Pool& pool, const InstructionSet& set);

    // Writes logits [sum of wanted, vocabulary]. Throws std::invalid_argument before computing anything if an id, a
    // position or a block is out of range.
    void run(const Batch& batch, float* logits);

    const Model& model() const { return model_; }
    size_t cache_bytes() const { return keys_and_values_.size(); }

    // Bytes of the keys, values and scales of one block, over all layers.
    size_t block_bytes() const;
    // Copies blocks out of the cache or into it, block_bytes() each. Throws std::invalid_argument for a block outside.
    void read_blocks(std::span<const int32_t> blocks, uint8_t* into) const;
    void write_blocks(std::span<const int32_t> blocks, const uint8_t* from);

private:
    struct Part {  // of attention: some ids of one chunk
        int32_t chunk, row, rows;
    };

    void check(const Batch& batch) const;
    void place(const Batch& batch);
    void embed(const Batch& batch);
    void attention(const Layer& layer, const Cache& cache, const Batch& batch);
    void rotate_and_store(const Layer& layer, const Cache& cache, const Batch& batch, int64_t row);
    void feed_forward(const Layer& layer);
    void add_to_residual(const Vector& norm);
    void head(const Batch& batch, float* logits);
    template <class Function> void for_each_row(Function function);
    template <class Function> void for_each_part(std::span<const int32_t> blocks, Function function) const;

    Model model_;
    Limits limits_;
    Pool& pool_;
    Multiplier multiplier_;
    const RowKernels& kernels_;
    std::vector<Cache> caches_;
    Mapping keys_and_values_;
    Mapping activations_;
    // [tokens, ...] each, in activations_
    float *residual_, *normed_, *query_, *key_, *value_, *mixed_, *gate_, *up_, *added_;
    int32_t count_ = 0;                     // ids of the batch
    std::vector<int32_t> positions_, owners_;  // position and chunk of each id
    std::vector<int32_t> ends_;                // of each chunk, in ids of the batch
    std::vector<Part> parts_;
};

}  // namespace secateur
