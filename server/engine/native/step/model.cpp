// Checks that the shapes of a model fit each other.
#include "step/model.hpp"

#include <string>

#include "base/require.hpp"
#include "kernels/rows/row_kernels.hpp"

namespace secateur {
namespace {

void require_shape(const Matrix& matrix, int64_t rows, int64_t columns, const char* name) {
    require(matrix.rows == rows && matrix.columns == columns,
            std::string(name) + " is " + std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns) +
                " where " + std::to_string(rows) + " x " + std::to_string(columns) + " is needed");
}

void require_size(const Vector& vector, int64_t size, const char* name) {
    require(vector.empty() || static_cast<int64_t>(vector.size()) == size,
            std::string(name) + " has " + std::to_string(vector.size()) + " values where " + std::to_string(size) +
                " are needed");
}

void check_layer(const Model& model, const Layer& layer) {
    const int64_t width = model.head_width, queries = layer.query.rows, keys = layer.key.rows;
    require(queries > 0 && keys > 0 && queries % width == 0 && keys % width == 0 && queries % keys == 0,
            "heads, key heads and their width do not fit each other");
    require_shape(layer.query, queries, model.hidden, "query");
    require_shape(layer.key, keys, model.hidden, "key");
    require_shape(layer.value, keys, model.hidden, "value");
    require_shape(layer.output, model.hidden, queries, "output");
    require_shape(layer.gate, layer.up.rows, model.hidden, "gate");
    require_shape(layer.up, layer.up.rows, model.hidden, "up");
    require_shape(layer.down, model.hidden, layer.up.rows, "down");
    require_size(layer.query_bias, queries, "query bias");
    require_size(layer.key_bias, keys, "key bias");
    require_size(layer.value_bias, keys, "value bias");
    require_size(layer.gate_bias, layer.up.rows, "gate bias");
    require_size(layer.up_bias, layer.up.rows, "up bias");
    for (const Vector* norm : {&layer.query_norm, &layer.key_norm}) require_size(*norm, width, "norm of a head");
    for (const Vector* vector : {&layer.output_bias, &layer.down_bias, &layer.before_attention, &layer.after_attention,
                                 &layer.before_mlp, &layer.after_mlp})
        require_size(*vector, model.hidden, "norm or bias");
    require(!layer.before_attention.empty() && !layer.before_mlp.empty(),
            "a norm is missing: a layer needs before_attention and before_mlp");
    require(layer.window >= 0 && layer.rope >= -1 && layer.rope < static_cast<int32_t>(model.ropes.size()),
            "a layer's window or rope is out of range");
}

}  // namespace

Model checked(Model model) {
    require(model.head_width > 0 && model.head_width <= widest_head, "a head must have 1 to 256 values");
    require_shape(model.embedding, model.vocabulary, model.hidden, "embedding");
    require_shape(model.head, model.vocabulary, model.hidden, "head");
    require(!model.norm.empty() && !model.layers.empty(), "a model needs layers and a last norm");
    require_size(model.norm, model.hidden, "last norm");
    for (const Rope& rope : model.ropes) {
        const auto size = static_cast<size_t>(model.positions) * (rope.width / 2);
        require(rope.width > 0 && rope.width % 2 == 0 && rope.width <= model.head_width && rope.cosines.size() == size &&
                    rope.sines.size() == size,
                "a rope does not fit the heads or the positions");
    }
    for (const Layer& layer : model.layers) check_layer(model, layer);
    return model;
}

}  // namespace secateur
