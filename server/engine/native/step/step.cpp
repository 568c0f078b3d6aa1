// The order of operations in a decoder, and where their inputs and outputs lie.
#include "step/step.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/require.hpp"

namespace secateur {
namespace {

constexpr int64_t rows_at_once = 8;       // rows of norms and the like that a thread takes
constexpr int64_t worth_sharing = 32768;  // values; with fewer, waking threads costs more

// Keys, values and scales of one layer's cache, in elements.
struct CacheSizes {
    int64_t keys, values, scales;
};

CacheSizes cache_sizes(const Model& model, const Layer& layer, const Limits& limits) {
    const int64_t places = int64_t{limits.blocks} * model.key_heads(layer) * block_positions;
    return {places * even(model.head_width), places * padded(model.head_width), limits.eight_bits ? places : 0};
}

size_t all_cache_bytes(const Model& model, const Limits& limits) {
    require(limits.tokens > 0 && limits.blocks > 0, "a step needs room for one id and one block");
    const int64_t width = limits.eight_bits ? 1 : 2;
    int64_t bytes = 0;
    for (const Layer& layer : model.layers) {
        const CacheSizes sizes = cache_sizes(model, layer, limits);
        bytes += Mapping::part_bytes(sizes.keys * width) + Mapping::part_bytes(sizes.values * width);
        if (limits.eight_bits) bytes += 2 * Mapping::part_bytes(sizes.scales * 4);
    }
    return static_cast<size_t>(bytes);
}

Cache make_cache(const Model& model, const Layer& layer, const Limits& limits, Mapping& memory) {
    const CacheSizes sizes = cache_sizes(model, layer, limits);
    Cache cache{limits.eight_bits, model.key_heads(layer), model.head_width, nullptr, nullptr, nullptr, nullptr};
    if (!limits.eight_bits) {
        cache.keys = memory.take<uint16_t>(sizes.keys), cache.values = memory.take<uint16_t>(sizes.values);
        return cache;
    }
    cache.keys = memory.take<int8_t>(sizes.keys), cache.values = memory.take<int8_t>(sizes.values);
    cache.key_scales = memory.take<float>(sizes.scales), cache.value_scales = memory.take<float>(sizes.scales);
    return cache;
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

size_t all_activation_bytes(const Model& model, const Limits& limits) {
    const Widths widths = widest(model);
    const auto part = [&](int64_t width) { return Mapping::part_bytes(limits.tokens * width * 4); };
    const int64_t pairs = part(widths.query) + part(widths.key) + part(widths.feed_forward);
    return static_cast<size_t>(3 * part(model.hidden) + 2 * pairs);
}

}  // namespace

Step::Step(Model model, Limits limits, Pool& pool, const InstructionSet& set)
    : model_(checked(std::move(model))),
      limits_(limits),
      pool_(pool),
      multiplier_(pool, set),
      kernels_(row_kernels(set)),
      keys_and_values_(all_cache_bytes(model_, limits)),
      activations_(all_activation_bytes(model_, limits)) {
    for (const Layer& layer : model_.layers) caches_.push_back(make_cache(model_, layer, limits, keys_and_values_));
    const Widths widths = widest(model_);
    const auto floats = [&](int64_t width) { return activations_.take<float>(limits.tokens * width); };
    residual_ = floats(model_.hidden), normed_ = floats(model_.hidden), added_ = floats(model_.hidden);
    query_ = floats(widths.query), mixed_ = floats(widths.query);
    key_ = floats(widths.key), value_ = floats(widths.key);
    gate_ = floats(widths.feed_forward), up_ = floats(widths.feed_forward);
    positions_.resize(limits.tokens), owners_.resize(limits.tokens);
    ends_.reserve(limits.tokens), parts_.reserve(limits.tokens);
}

// Calls function(where, bytes) for each contiguous piece of each block, in a fixed order.
template <class Function> void Step::for_each_part(std::span<const int32_t> blocks, Function function) const {
    for (const int32_t block : blocks)
        require(block >= 0 && block < limits_.blocks, "a block is outside the cache");
    for (const int32_t block : blocks)
        for (const Cache& cache : caches_) {
            const int64_t width = cache.eight_bits ? 1 : 2, heads = cache.heads;
            const int64_t keys = heads * even(cache.width) * block_positions * width;
            const int64_t values = heads * padded(cache.width) * block_positions * width;
            function(static_cast<uint8_t*>(cache.keys) + block * keys, keys);
            function(static_cast<uint8_t*>(cache.values) + block * values, values);
            if (!cache.eight_bits) continue;
            const int64_t scales = heads * block_positions * 4;
            function(reinterpret_cast<uint8_t*>(cache.key_scales) + block * scales, scales);
            function(reinterpret_cast<uint8_t*>(cache.value_scales) + block * scales, scales);
        }
}

size_t Step::block_bytes() const {
    size_t bytes = 0;
    const int32_t first = 0;
    for_each_part({&first, 1}, [&](const uint8_t*, int64_t part) { bytes += part; });
    return bytes;
}

void Step::read_blocks(std::span<const int32_t> blocks, uint8_t* into) const {
    for_each_part(blocks, [&](const uint8_t* where, int64_t bytes) {
        std::memcpy(into, where, bytes);
        into += bytes;
    });
}

void Step::write_blocks(std::span<const int32_t> blocks, const uint8_t* from) {
    for_each_part(blocks, [&](uint8_t* where, int64_t bytes) {
        std::memcpy(where, from, bytes);
        from += bytes;
    });
}

template <class Function> void Step::for_each_row(Function function) {
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
                "a chunk's start, count or wanted is out of range");
        const int64_t end = int64_t{chunk.start} + chunk.count;
        require(end <= model_.positions, "a chunk ends beyond the context");
        const int64_t needed = (end + block_positions - 1) / block_positions;
        require(needed <= static_cast<int64_t>(chunk.blocks.size()), "a chunk has too few blocks of the cache");
        for (const int32_t block : chunk.blocks.first(static_cast<size_t>(needed)))
            require(block >= 0 && block < limits_.blocks, "a block is outside the cache");
        count += chunk.count;
    }
    require(count == static_cast<int64_t>(batch.ids.size()), "the chunks' counts do not add up to the number of ids");
    require(count <= limits_.tokens, "the batch is larger than this step supports");
    for (const int32_t id : batch.ids)
        if (id < 0 || id >= model_.vocabulary)
            throw std::invalid_argument("token id " + std::to_string(id) + " is outside the vocabulary");
}

void Step::place(const Batch& batch) {
    count_ = 0;
    ends_.clear(), parts_.clear();
    const Layer& first = model_.layers.front();
    const int32_t group = model_.heads(first) / model_.key_heads(first);
    const int32_t rows = std::max(1, kernels_.queries / group);
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
    for_each_row([&](int64_t i) {
        float* out = residual_ + i * model_.hidden;
        unpack_row(model_.embedding, batch.ids[i], out);
        if (model_.embedding_scale != 1) kernels_.scale(out, model_.embedding_scale, model_.hidden);
    });
}

void Step::attention(const Layer& layer, const Cache& cache, const Batch& batch) {
    const int32_t hidden = model_.hidden, width = model_.head_width;
    for_each_row([&](int64_t i) {
        kernels_.norm(residual_ + i * hidden, layer.before_attention.data(), normed_ + i * hidden, hidden,
                      model_.epsilon);
    });
    const Matrix weights[] = {layer.query, layer.key, layer.value};
    float* const outputs[] = {query_, key_, value_};
    multiplier_.multiply(weights, normed_, outputs, count_);
    for_each_row([&](int64_t i) { rotate_and_store(layer, cache, batch, i); });
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
    multiplier_.multiply(layer.output, mixed_, added_, count_);
    if (!layer.output_bias.empty())
        for_each_row([&](int64_t i) { kernels_.add(added_ + i * hidden, layer.output_bias.data(), hidden); });
    add_to_residual(layer.after_attention);
}

// Applies biases, norms and rope to a row's heads, and stores its key and value in the cache.
void Step::rotate_and_store(const Layer& layer, const Cache& cache, const Batch& batch, int64_t i) {
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
        kernels_.store(cache, {block, head, position % block_positions, i + 1 == ends_[owners_[i]]}, key + head * width,
                       value + head * width);
    }
}

void Step::feed_forward(const Layer& layer) {
    const int32_t hidden = model_.hidden;
    const int64_t inner = layer.up.rows;
    for_each_row([&](int64_t i) {
        kernels_.norm(residual_ + i * hidden, layer.before_mlp.data(), normed_ + i * hidden, hidden, model_.epsilon);
    });
    const Matrix weights[] = {layer.gate, layer.up};
    float* const outputs[] = {gate_, up_};
    multiplier_.multiply(weights, normed_, outputs, count_);
    for_each_row([&](int64_t i) {
        if (!layer.gate_bias.empty()) kernels_.add(gate_ + i * inner, layer.gate_bias.data(), inner);
        if (!layer.up_bias.empty()) kernels_.add(up_ + i * inner, layer.up_bias.data(), inner);
        kernels_.gate(gate_ + i * inner, up_ + i * inner, inner, model_.activation == Activation::gelu_tanh);
    });
    multiplier_.multiply(layer.down, gate_, added_, count_);
    if (!layer.down_bias.empty())
        for_each_row([&](int64_t i) { kernels_.add(added_ + i * hidden, layer.down_bias.data(), hidden); });
    add_to_residual(layer.after_mlp);
}

void Step::add_to_residual(const Vector& norm) {
    const int32_t hidden = model_.hidden;
    for_each_row([&](int64_t i) {
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
    multiplier_.multiply(model_.head, normed_, logits, wanted);
    if (model_.logit_cap > 0)
        pool_.run(wanted, [&](int64_t i) {
            kernels_.cap(logits + i * model_.vocabulary, model_.logit_cap, model_.vocabulary);
        });
}

}  // namespace secateur
