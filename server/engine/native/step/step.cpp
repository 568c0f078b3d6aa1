#include "step/step.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "base/check.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace secateur {
namespace {

// Under a sanitizer, a line that nobody may touch lies after each part of one mapping.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t gap = 64;
void forbid(void* from, int64_t bytes) { __asan_poison_memory_region(from, bytes); }
void allow(void* from, size_t bytes) { __asan_unpoison_memory_region(from, bytes); }
#else
constexpr int64_t gap = 0;
void forbid(void*, int64_t) {}
void allow(void*, size_t) {}
#endif

constexpr int64_t page = 4096;
constexpr int64_t rows_at_once = 8;     // that a thread takes of norms and the like
constexpr int64_t worth_sharing = 32768;  // values; below that, waking threads costs more

int64_t whole(int64_t bytes) { return (bytes + 63) / 64 * 64 + gap; }

// The next `bytes` of a mapping.
template <class Value> Value* take(uint8_t*& next, int64_t bytes) {
    forbid(next + bytes, whole(bytes) - bytes);
    return reinterpret_cast<Value*>(std::exchange(next, next + whole(bytes)));
}

int64_t value_bytes(const Limits& limits) { return limits.eight_bits ? 1 : 2; }

// Bytes of keys, values and scales of one layer.
struct CacheSizes {
    int64_t keys, values, scales;
    int64_t total() const { return whole(keys) + whole(values) + (scales ? 2 * whole(scales) : 0); }
};

CacheSizes cache_sizes(const Model& model, const Layer& layer, const Limits& limits) {
    const int64_t places = int64_t{limits.blocks} * model.key_heads(layer) * block_positions;
    return {places * model.head_width * value_bytes(limits), places * padded(model.head_width) * value_bytes(limits),
            limits.eight_bits ? places * 4 : 0};
}

size_t all_cache_bytes(const Model& model, const Limits& limits) {
    require(limits.tokens > 0 && limits.blocks > 0, "a step needs room for one id and one block");
    int64_t bytes = 0;
    for (const Layer& layer : model.layers) bytes += cache_sizes(model, layer, limits).total();
    return static_cast<size_t>(bytes);
}

struct Widths {  // the widest of all layers
    int64_t query = 0, key = 0, feed_forward = 0;
};

Widths widest(const Model& model) {
    Widths widths;
    for (const Layer& layer : model.layers) {
        widths.query = std::max(widths.query, layer.query.rows);
        widths.key = std::max(widths.key, layer.key.rows);
        widths.feed_forward = std::max(widths.feed_forward, layer.up.rows);
    }
    return widths;
}

size_t arena_bytes(const Model& model, const Limits& limits) {
    const Widths widths = widest(model);
    const int64_t floats = 3 * int64_t{model.hidden} + 2 * widths.query + 2 * widths.key + 2 * widths.feed_forward;
    return static_cast<size_t>(limits.tokens * floats * 4 + 9 * (64 + gap));
}

}  // namespace

Memory::Memory(size_t bytes) : bytes_((bytes + page - 1) / page * page) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
}

Memory::Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

Memory::~Memory() {
    if (!data_) return;
    allow(data_, bytes_);
    munmap(data_, bytes_);
}

Step::Step(Model model, Limits limits, Pool& pool, const InstructionSet& set)
    : model_(checked(std::move(model))),
      limits_(limits),
      pool_(pool),
      set_(set),
      kernels_(row_kernels(set)),
      keys_and_values_(all_cache_bytes(model_, limits)),
      arena_(arena_bytes(model_, limits)) {
    auto* at = static_cast<uint8_t*>(keys_and_values_.data());
    for (const Layer& layer : model_.layers) {
        const CacheSizes sizes = cache_sizes(model_, layer, limits);
        Cache cache{limits.eight_bits, model_.key_heads(layer), model_.head_width, nullptr, nullptr, nullptr, nullptr};
        cache.keys = take<uint8_t>(at, sizes.keys), cache.values = take<uint8_t>(at, sizes.values);
        if (limits.eight_bits)
            cache.key_scales = take<float>(at, sizes.scales), cache.value_scales = take<float>(at, sizes.scales);
        caches_.push_back(cache);
    }
    const Widths widths = widest(model_);
    auto* next = static_cast<uint8_t*>(arena_.data());
    const auto floats = [&](int64_t width) { return take<float>(next, limits.tokens * width * 4); };
    residual_ = floats(model_.hidden), normed_ = floats(model_.hidden), added_ = floats(model_.hidden);
    query_ = floats(widths.query), mixed_ = floats(widths.query);
    key_ = floats(widths.key), value_ = floats(widths.key);
    gate_ = floats(widths.feed_forward), up_ = floats(widths.feed_forward);
    positions_.resize(limits.tokens), owners_.resize(limits.tokens);
    ends_.reserve(limits.tokens), parts_.reserve(limits.tokens);
}

template <class Function> void Step::rows(Function function) {
    if (int64_t{count_} * model_.hidden < worth_sharing) {
        for (int64_t row = 0; row < count_; ++row) function(row);
        return;
    }
    pool_.run((count_ + rows_at_once - 1) / rows_at_once, [&](int64_t part) {
        const int64_t end = std::min<int64_t>(count_, (part + 1) * rows_at_once);
        for (int64_t row = part * rows_at_once; row < end; ++row) function(row);
    });
}

void Step::run(const Batch& batch, float* logits) {
    check(batch);
    place(batch);
    if (count_ == 0) return;
    embed(batch);
    for (size_t i = 0; i < model_.layers.size(); ++i) {
        attention(model_.layers[i], caches_[i], batch);
        feed_forward(model_.layers[i]);
    }
    head(batch, logits);
}

void Step::check(const Batch& batch) const {
    int64_t count = 0;
    for (const Chunk& chunk : batch.chunks) {
        require(chunk.start >= 0 && chunk.count > 0 && chunk.wanted >= 0 && chunk.wanted <= chunk.count,
                "a chunk's numbers are out of range");
        const int64_t end = int64_t{chunk.start} + chunk.count;
        require(end <= model_.positions, "a chunk ends beyond the context");
        const int64_t needed = (end + block_positions - 1) / block_positions;
        require(needed <= static_cast<int64_t>(chunk.blocks.size()), "a chunk has too few blocks of the cache");
        for (const int32_t block : chunk.blocks.first(static_cast<size_t>(needed)))
            require(block >= 0 && block < limits_.blocks, "a block is outside the cache");
        count += chunk.count;
    }
    require(count == static_cast<int64_t>(batch.ids.size()), "the chunks do not hold as many ids as there are");
    require(count <= limits_.tokens, "the batch is larger than this step was made for");
    for (const int32_t id : batch.ids)
        require(id >= 0 && id < model_.vocabulary, "token id " + std::to_string(id) + " is outside the vocabulary");
}

void Step::place(const Batch& batch) {
    count_ = 0;
    ends_.clear(), parts_.clear();
    const Layer& first = model_.layers.front();
    const int32_t group = model_.heads(first) / model_.key_heads(first);
    const int32_t rows = std::max(1, 32 / group);
    for (size_t i = 0; i < batch.chunks.size(); ++i) {
        const Chunk& chunk = batch.chunks[i];
        for (int32_t row = 0; row < chunk.count; row += rows)
            parts_.push_back({static_cast<int32_t>(i), row, std::min(rows, chunk.count - row)});
        for (int32_t row = 0; row < chunk.count; ++row, ++count_) {
            positions_[count_] = chunk.start + row;
            owners_[count_] = static_cast<int32_t>(i);
        }
        ends_.push_back(count_);
    }
}

void Step::embed(const Batch& batch) {
    rows([&](int64_t i) {
        float* out = residual_ + i * model_.hidden;
        row(model_.embedding, batch.ids[i], out);
        if (model_.embedding_scale != 1) kernels_.scale(out, model_.embedding_scale, model_.hidden);
    });
}

void Step::attention(const Layer& layer, const Cache& cache, const Batch& batch) {
    const int32_t hidden = model_.hidden, width = model_.head_width;
    rows([&](int64_t i) {
        kernels_.norm(residual_ + i * hidden, layer.before_attention.data(), normed_ + i * hidden, hidden,
                      model_.epsilon);
    });
    const Matrix weights[] = {layer.query, layer.key, layer.value};
    float* const outputs[] = {query_, key_, value_};
    multiply(weights, normed_, outputs, count_, pool_, set_);
    rows([&](int64_t i) { turn_and_store(layer, cache, batch, i); });
    const int32_t heads = cache.heads, group = model_.heads(layer) / heads;
    const int64_t stride = layer.query.rows;
    pool_.run(static_cast<int64_t>(parts_.size()) * heads, [&](int64_t number) {
        const Part& part = parts_[number / heads];
        const auto head = static_cast<int32_t>(number % heads);
        const Chunk& chunk = batch.chunks[part.chunk];
        const int64_t at = (ends_[part.chunk] - chunk.count + part.row) * stride + int64_t{head} * group * width;
        kernels_.attend({&cache, chunk.blocks.data(), query_ + at, mixed_ + at, stride, chunk.start + part.row, part.rows,
                         head, group, layer.window, model_.attention_scale, model_.attention_cap});
    });
    multiply(layer.output, mixed_, added_, count_, pool_, set_);
    if (!layer.output_bias.empty())
        rows([&](int64_t i) { kernels_.add(added_ + i * hidden, layer.output_bias.data(), hidden); });
    add_to_residual(layer.after_attention);
}

// Biases, norms and rotation of a row's heads, and its key and value into the cache.
void Step::turn_and_store(const Layer& layer, const Cache& cache, const Batch& batch, int64_t i) {
    const int32_t width = model_.head_width, position = positions_[i];
    float* query = query_ + i * layer.query.rows;
    float* key = key_ + i * layer.key.rows;
    float* value = value_ + i * layer.value.rows;
    if (!layer.query_bias.empty()) kernels_.add(query, layer.query_bias.data(), layer.query.rows);
    if (!layer.key_bias.empty()) kernels_.add(key, layer.key_bias.data(), layer.key.rows);
    if (!layer.value_bias.empty()) kernels_.add(value, layer.value_bias.data(), layer.value.rows);
    const auto turn = [&](float* head, const Vector& norm) {
        if (!norm.empty()) kernels_.norm(head, norm.data(), head, width, model_.epsilon);
        if (layer.rope < 0) return;
        const Rope& rope = model_.ropes[layer.rope];
        const int64_t at = int64_t{position} * (rope.width / 2);
        kernels_.rotate(head, rope.cosines.data() + at, rope.sines.data() + at, rope.width);
    };
    for (int32_t head = 0; head < model_.heads(layer); ++head) turn(query + head * width, layer.query_norm);
    const int32_t block = batch.chunks[owners_[i]].blocks[position / block_positions];
    for (int32_t head = 0; head < cache.heads; ++head) {
        turn(key + head * width, layer.key_norm);
        kernels_.store(cache, block, head, position % block_positions, key + head * width, value + head * width);
    }
}

void Step::feed_forward(const Layer& layer) {
    const int32_t hidden = model_.hidden;
    const int64_t inner = layer.up.rows;
    rows([&](int64_t i) {
        kernels_.norm(residual_ + i * hidden, layer.before_mlp.data(), normed_ + i * hidden, hidden, model_.epsilon);
    });
    const Matrix weights[] = {layer.gate, layer.up};
    float* const outputs[] = {gate_, up_};
    multiply(weights, normed_, outputs, count_, pool_, set_);
    rows([&](int64_t i) {
        if (!layer.gate_bias.empty()) kernels_.add(gate_ + i * inner, layer.gate_bias.data(), inner);
        if (!layer.up_bias.empty()) kernels_.add(up_ + i * inner, layer.up_bias.data(), inner);
        kernels_.gate(gate_ + i * inner, up_ + i * inner, inner, model_.activation == Activation::gelu_tanh);
    });
    multiply(layer.down, gate_, added_, count_, pool_, set_);
    if (!layer.down_bias.empty())
        rows([&](int64_t i) { kernels_.add(added_ + i * hidden, layer.down_bias.data(), hidden); });
    add_to_residual(layer.after_mlp);
}

void Step::add_to_residual(const Vector& norm) {
    const int32_t hidden = model_.hidden;
    rows([&](int64_t i) {
        float* added = added_ + i * hidden;
        if (!norm.empty()) kernels_.norm(added, norm.data(), added, hidden, model_.epsilon);
        kernels_.add(residual_ + i * hidden, added, hidden);
    });
}

void Step::head(const Batch& batch, float* logits) {
    int64_t wanted = 0;
    for (size_t i = 0; i < batch.chunks.size(); ++i)
        for (int32_t row = ends_[i] - batch.chunks[i].wanted; row < ends_[i]; ++row, ++wanted)
            kernels_.norm(residual_ + int64_t{row} * model_.hidden, model_.norm.data(), normed_ + wanted * model_.hidden,
                          model_.hidden, model_.epsilon);
    if (wanted == 0) return;
    multiply(model_.head, normed_, logits, wanted, pool_, set_);
    if (model_.logit_cap > 0)
        pool_.run(wanted, [&](int64_t i) {
            kernels_.cap(logits + i * model_.vocabulary, model_.logit_cap, model_.vocabulary);
        });
}

}  // namespace secateur
