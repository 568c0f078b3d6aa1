// A decoder: its numbers, small weights by value, and views of its matrices.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/matrices/matrix.hpp"

namespace secateur {

using Vector = std::vector<float>;  // the weight of a norm, or a bias; empty: absent

enum class Activation : int32_t { silu, gelu_tanh };

struct Rope {              // rotary embedding, tabulated: [positions, width / 2] each
    int32_t width = 0;     // the first values of a head that are rotated; value i pairs with i + width / 2
    Vector cosines, sines;
};

struct Layer {
    Matrix query, key, value, output, gate, up, down;
    Vector query_bias, key_bias, value_bias, output_bias, gate_bias, up_bias, down_bias;
    Vector before_attention, after_attention, before_mlp, after_mlp;  // norms; `after`: of the residual's addend
    Vector query_norm, key_norm;                                      // of each head
    int32_t window = 0;                                               // positions a query attends to; 0: all
    int32_t rope = -1;                                                // index into Model::ropes; -1: none
};

struct Model {
    int32_t hidden = 0, head_width = 0, vocabulary = 0;
    int32_t positions = 0;           // rows of each rope's tables
    float epsilon = 0;               // of every norm
    float embedding_scale = 1, attention_scale = 1;
    float attention_cap = 0, logit_cap = 0;  // x becomes cap * tanh(x / cap); 0: unchanged
    Activation activation = Activation::silu;
    Matrix embedding, head;          // the same matrix where they are tied
    Vector norm;
    std::vector<Rope> ropes;
    std::vector<Layer> layers;

    int32_t heads(const Layer& layer) const { return static_cast<int32_t>(layer.query.rows) / head_width; }
    int32_t key_heads(const Layer& layer) const { return static_cast<int32_t>(layer.key.rows) / head_width; }
};

// Returns the model if its shapes fit each other; throws std::invalid_argument naming the first that does not.
Model checked(Model model);

}  // namespace secateur
