// Random small decoders, and their logits in double precision, computed independently of the step.
#pragma once

#include <deque>
#include <vector>

#include "kernels/rows/row_kernels.hpp"
#include "random_matrix.hpp"
#include "step/model.hpp"

namespace secateur {

using Doubles = std::vector<double>;

struct RandomModel {
    Model model;
    std::deque<Case> cases;  // the memory of the model's matrices
    bool eight_bits;

    const Case& of(const Matrix& matrix) const {
        for (const Case& made : cases)
            if (made.values.get() == matrix.values && made.matrix.rows == matrix.rows) return made;
        std::abort();
    }
};

class Maker {
public:
    // `wide`: rows long enough that the step shares out norms and the like among threads.
    RandomModel make(bool wide) {
        Model& model = made_.model;
        made_.eight_bits = pick(0, 1);
        model.hidden = static_cast<int32_t>(wide ? pick(400, 450) : pick(2, 90));
        model.head_width = static_cast<int32_t>(wide ? 8 : pick(0, 9) ? pick(1, 20) * 2 : pick(33, 70) * 2 + pick(0, 1));
        model.vocabulary = static_cast<int32_t>(pick(1, wide ? 20 : 120));
        model.positions = static_cast<int32_t>(wide ? pick(90, 110) : pick(1, 110));
        model.epsilon = 1e-5f;
        model.attention_scale = static_cast<float>(1 / std::sqrt(model.head_width));
        if (pick(0, 3) == 0) model.embedding_scale = std::sqrt(static_cast<float>(model.hidden));
        if (pick(0, 3) == 0) model.attention_cap = 2;
        if (pick(0, 3) == 0) model.logit_cap = 3;
        model.activation = pick(0, 1) ? Activation::silu : Activation::gelu_tanh;
        model.embedding = matrix(model.vocabulary, model.hidden);
        model.head = pick(0, 1) ? model.embedding : matrix(model.vocabulary, model.hidden);
        model.norm = vector(model.hidden, 1);
        for (int64_t i = pick(0, 2); i > 0; --i) add_rope();
        for (int64_t i = wide ? 1 : pick(1, 3); i > 0; --i) add_layer(wide ? 30 : 150);
        return std::move(made_);
    }

private:
    Matrix matrix(int64_t rows, int64_t columns) {
        made_.cases.push_back(random_matrix(rows, columns, true));
        return made_.cases.back().matrix;
    }

    static Vector vector(int64_t size, float about) {
        Vector values(size);
        for (float& value : values) value = about + 0.3f * normal();
        return values;
    }

    static Vector perhaps(int64_t size, float about) { return pick(0, 3) ? Vector{} : vector(size, about); }

    void add_rope() {
        Rope rope;
        rope.width = static_cast<int32_t>(pick(1, made_.model.head_width / 2) * 2);
        for (int64_t i = 0; i < int64_t{made_.model.positions} * (rope.width / 2); ++i) {
            const float angle = 3 * normal();
            rope.cosines.push_back(std::cos(angle)), rope.sines.push_back(std::sin(angle));
        }
        made_.model.ropes.push_back(rope);
    }

    void add_layer(int64_t widest) {
        const int64_t hidden = made_.model.hidden, width = made_.model.head_width;
        const bool many = width <= 20 && pick(0, 9) == 0;  // more query heads per key head than an attention tile
        const int64_t keys = (many ? 1 : pick(1, 3)) * width, inner = pick(1, widest);
        const int64_t queries = keys * (many ? pick(30, 40) : pick(1, 4));
        Layer layer;
        layer.query = matrix(queries, hidden), layer.key = matrix(keys, hidden), layer.value = matrix(keys, hidden);
        layer.output = matrix(hidden, queries);
        layer.gate = matrix(inner, hidden), layer.up = matrix(inner, hidden), layer.down = matrix(hidden, inner);
        layer.query_bias = perhaps(queries, 0), layer.key_bias = perhaps(keys, 0), layer.value_bias = perhaps(keys, 0);
        layer.output_bias = perhaps(hidden, 0), layer.down_bias = perhaps(hidden, 0);
        layer.gate_bias = perhaps(inner, 0), layer.up_bias = perhaps(inner, 0);
        layer.before_attention = vector(hidden, 1), layer.before_mlp = vector(hidden, 1);
        layer.after_attention = perhaps(hidden, 1), layer.after_mlp = perhaps(hidden, 1);
        layer.query_norm = perhaps(width, 1), layer.key_norm = perhaps(width, 1);
        layer.window = static_cast<int32_t>(pick(0, 1) ? 0 : pick(1, 70));
        layer.rope = static_cast<int32_t>(pick(-1, static_cast<int64_t>(made_.model.ropes.size()) - 1));
        made_.model.layers.push_back(layer);
    }

    RandomModel made_;
};

class Reference {
public:
    // `pairs`: queries and softmax weights are rounded to bf16, as AVX-512 multiplies them.
    Reference(const RandomModel& made, bool pairs)
        : made_(made), model_(made.model), pairs_(pairs), cache_(model_.layers.size()) {}

    // Appends an id and returns its logits.
    Doubles next(int32_t id) {
        const Case& embedding = made_.of(model_.embedding);
        const auto from = embedding.dense.begin() + int64_t{id} * model_.hidden;
        Doubles state(from, from + model_.hidden);
        for (double& value : state) value *= model_.embedding_scale;
        for (size_t i = 0; i < model_.layers.size(); ++i) {
            const Layer& layer = model_.layers[i];
            add(state, after(attention(layer, cache_[i], norm(state, model_.layers[i].before_attention)),
                             layer.after_attention));
            add(state, after(feed_forward(layer, norm(state, layer.before_mlp)), layer.after_mlp));
        }
        ++position_;
        Doubles logits = times(model_.head, norm(state, model_.norm));
        for (double& value : logits) value = capped(value, model_.logit_cap);
        return logits;
    }

private:
    struct Kept {
        std::vector<Doubles> keys, values;  // of each position
    };

    static double capped(double value, double cap) { return cap > 0 ? cap * std::tanh(value / cap) : value; }

    static void add(Doubles& to, const Doubles& what) {
        for (size_t i = 0; i < to.size(); ++i) to[i] += what[i];
    }

    Doubles norm(const Doubles& in, const Vector& weight) const {
        double squares = 0;
        for (double value : in) squares += value * value;
        const double factor = 1 / std::sqrt(squares / static_cast<double>(in.size()) + model_.epsilon);
        Doubles out(in);
        for (size_t i = 0; i < in.size(); ++i) out[i] *= factor * weight[i];
        return out;
    }

    Doubles after(const Doubles& in, const Vector& weight) const { return weight.empty() ? in : norm(in, weight); }

    Doubles times(const Matrix& matrix, const Doubles& in, const Vector& bias = {}) const {
        const Doubles x = rounded(matrix, std::vector<float>(in.begin(), in.end()), 1);
        const Case& made = made_.of(matrix);
        Doubles out(matrix.rows, 0);
        for (int64_t r = 0; r < matrix.rows; ++r) {
            for (int64_t c = 0; c < matrix.columns; ++c) out[r] += made.dense[r * matrix.columns + c] * x[c];
            if (!bias.empty()) out[r] += bias[r];
        }
        return out;
    }

    // Norm and rotation of each head.
    void turn(Doubles& heads, const Layer& layer, const Vector& weight) const {
        const int64_t width = model_.head_width;
        for (size_t at = 0; at < heads.size(); at += width) {
            const auto begin = heads.begin() + static_cast<int64_t>(at);
            Doubles head(begin, begin + width);
            if (!weight.empty()) head = norm(head, weight);
            if (layer.rope >= 0) {
                const Rope& rope = model_.ropes[layer.rope];
                const int64_t half = rope.width / 2;
                for (int64_t i = 0; i < half; ++i) {
                    const double c = rope.cosines[position_ * half + i], s = rope.sines[position_ * half + i];
                    const double a = head[i], b = head[half + i];
                    head[i] = a * c - b * s, head[half + i] = a * s + b * c;
                }
            }
            std::copy(head.begin(), head.end(), begin);
        }
    }

    // Rounded as the cache stores it, head by head.
    Doubles kept(const Doubles& heads) const {
        Doubles out(heads);
        for (size_t at = 0; at < heads.size(); at += model_.head_width) {
            double most = 0;
            for (int32_t i = 0; i < model_.head_width; ++i) most = std::max(most, std::fabs(heads[at + i]));
            for (int32_t i = 0; i < model_.head_width; ++i) {
                double& value = out[at + i];
                if (!made_.eight_bits) value = from_bf16(to_bf16(static_cast<float>(value)));
                else if (most > 0) value = std::nearbyint(value / most * 127) * most / 127;
            }
        }
        return out;
    }

    Doubles attention(const Layer& layer, Kept& cache, const Doubles& in) {
        Doubles query = times(layer.query, in, layer.query_bias), key = times(layer.key, in, layer.key_bias);
        turn(query, layer, layer.query_norm), turn(key, layer, layer.key_norm);
        cache.keys.push_back(kept(key)), cache.values.push_back(kept(times(layer.value, in, layer.value_bias)));
        Doubles mixed(query.size(), 0);
        for (int32_t head = 0; head < model_.heads(layer); ++head) mix(layer, cache, query, head, mixed);
        return times(layer.output, mixed, layer.output_bias);
    }

    void mix(const Layer& layer, const Kept& cache, const Doubles& query, int32_t head, Doubles& mixed) const {
        const int64_t width = model_.head_width, from = head * width;
        const int64_t shared = head / (model_.heads(layer) / model_.key_heads(layer)) * width;
        const int64_t first = layer.window ? std::max<int64_t>(0, position_ - layer.window + 1) : 0;
        const double unit = std::log2(std::exp(1)), cap = model_.attention_cap;
        const double scale = cap > 0 ? model_.attention_scale / cap : model_.attention_scale * unit;
        Doubles scores, most;  // in bits; and the largest score up to the end of each position's block
        for (int64_t at = first; at <= position_; ++at) {
            double score = 0;
            for (int64_t i = 0; i < width; ++i) score += halved(query[from + i] * scale) * cache.keys[at][shared + i];
            scores.push_back(cap > 0 ? cap * unit * std::tanh(score) : score);
        }
        for (int64_t at = first; at <= position_; ++at) {
            const int64_t end = std::min(position_, at / block_positions * block_positions + block_positions - 1);
            most.push_back(*std::max_element(scores.begin(), scores.begin() + (end - first + 1)));
        }
        double total = 0;
        for (int64_t at = first; at <= position_; ++at) {
            const double later = std::exp2(most[at - first] - most.back());
            const double weight = std::exp2(scores[at - first] - most[at - first]);
            const double step = step_of(cache.values[at], shared);
            total += later * halved(weight);
            for (int64_t i = 0; i < width; ++i)
                mixed[from + i] += later * halved(weight * step) / step * cache.values[at][shared + i];
        }
        for (int64_t i = 0; i < width; ++i) mixed[from + i] /= total;
    }

    double halved(double value) const { return pairs_ ? from_bf16(to_bf16(static_cast<float>(value))) : value; }

    // The scale of a cached value's codes; 1 at 16 bits.
    double step_of(const Doubles& values, int64_t from) const {
        double most = 0;
        for (int32_t i = 0; i < model_.head_width; ++i) most = std::max(most, std::fabs(values[from + i]));
        return made_.eight_bits && most > 0 ? most / 127 : 1;
    }

    Doubles feed_forward(const Layer& layer, const Doubles& in) const {
        Doubles gate = times(layer.gate, in, layer.gate_bias), up = times(layer.up, in, layer.up_bias);
        for (size_t i = 0; i < gate.size(); ++i) {
            const double x = gate[i];
            const double gelu = x * (1 + std::tanh(std::sqrt(2 / 3.141592653589793) * (x + 0.044715 * x * x * x))) / 2;
            gate[i] = (model_.activation == Activation::silu ? x / (1 + std::exp(-x)) : gelu) * up[i];
        }
        return times(layer.down, gate, layer.down_bias);
    }

    const RandomModel& made_;
    const Model& model_;
    const bool pairs_;
    std::vector<Kept> cache_;
    int64_t position_ = 0;
};

}  // namespace secateur
