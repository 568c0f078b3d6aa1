// One pass of a decoder: a batch of rows in, float32 logits of the rows asked for out.
//
// Decode rows and chunks of prompts lie in one batch; each row's logits depend on its own sequence only. Its cache
// and its rows are allocated when a step is made; the threads' scratch grows until the first batch of full size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "step/model.hpp"
#include "base/pool.hpp"
#include "step/rows.hpp"

namespace secateur {

struct Chunk {               // consecutive ids of one sequence
    int32_t start, count;    // position of the first
    int32_t wanted;          // of so many ids, the last ones, the logits are asked for
    std::span<const int32_t> blocks;  // where the sequence's positions lie in the cache
};

struct Batch {
    std::span<const int32_t> ids;  // of all chunks, one after another
    std::span<const Chunk> chunks;
};

struct Limits {
    int32_t tokens;      // ids in a batch
    int32_t blocks;      // in the cache
    bool eight_bits;     // of keys and values, else 16
};

class Memory {  // zeroed pages, given back at the end
public:
    explicit Memory(size_t bytes);
    Memory(Memory&& other) noexcept;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    Memory& operator=(Memory&&) = delete;
    ~Memory();
    void* data() const { return data_; }
    size_t size() const { return bytes_; }

private:
    void* data_;
    size_t bytes_;
};

class Step {
public:
    // Throws std::invalid_argument in a sentence if shapes do not fit each other.
    Step(Model model, Limits limits, Pool& pool, const InstructionSet& set);

    // logits [sum of wanted, vocabulary]. Throws std::invalid_argument before anything is computed if an id, a position
    // or a block is out of range.
    void run(const Batch& batch, float* logits);

    const Model& model() const { return model_; }
    size_t cache_bytes() const { return keys_and_values_.size(); }

private:
    struct Part {  // of attention: some rows of one chunk
        int32_t chunk, row, rows;
    };

    void check(const Batch& batch) const;
    void place(const Batch& batch);
    void embed(const Batch& batch);
    void attention(const Layer& layer, const Cache& cache, const Batch& batch);
    void turn_and_store(const Layer& layer, const Cache& cache, const Batch& batch, int64_t row);
    void feed_forward(const Layer& layer);
    void add_to_residual(const Vector& norm);
    void head(const Batch& batch, float* logits);
    template <class Function> void rows(Function function);

    Model model_;
    Limits limits_;
    Pool& pool_;
    const InstructionSet& set_;
    const RowKernels& kernels_;
    std::vector<Cache> caches_;
    Memory keys_and_values_;
    Memory arena_;
    float *residual_, *normed_, *query_, *key_, *value_, *mixed_, *gate_, *up_, *added_;  // [tokens, ...] in the arena
    int32_t count_ = 0;  // ids of the batch
    std::vector<int32_t> positions_, owners_, ends_;  // of each id its position and chunk; of each chunk its end
    std::vector<Part> parts_;
};

}  // namespace secateur
