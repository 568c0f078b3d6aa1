// A decoder from a plan's numbers and weights. A new number is a member in step/model.hpp and a line here.
#include <nanobind/stl/string.h>

#include <string>
#include <utility>

#include "bindings/keywords.hpp"

namespace secateur {
namespace {

struct BoundLayer {
    Layer layer;
    std::vector<nb::object> weights;
};

Vector copied(const FloatRows& values) { return Vector(values.data(), values.data() + values.size()); }

void make_rope(Rope* self, const FloatRows& cosines, const FloatRows& sines) {
    new (self) Rope{static_cast<int32_t>(2 * cosines.shape(1)), copied(cosines), copied(sines)};
}

void make_layer(BoundLayer* self, nb::kwargs given) {
    Keywords keywords("Layer", std::move(given));
    Layer layer;
    keywords.take("query", layer.query);
    keywords.take("key", layer.key);
    keywords.take("value", layer.value);
    keywords.take("output", layer.output);
    keywords.take("gate", layer.gate);
    keywords.take("up", layer.up);
    keywords.take("down", layer.down);
    keywords.take("before_attention", layer.before_attention);
    keywords.take("before_mlp", layer.before_mlp);
    keywords.take("window", layer.window);
    keywords.take("rope", layer.rope);
    keywords.take_optional("after_attention", layer.after_attention);
    keywords.take_optional("after_mlp", layer.after_mlp);
    keywords.take_optional("query_norm", layer.query_norm);
    keywords.take_optional("key_norm", layer.key_norm);
    keywords.take_optional("query_bias", layer.query_bias);
    keywords.take_optional("key_bias", layer.key_bias);
    keywords.take_optional("value_bias", layer.value_bias);
    keywords.take_optional("output_bias", layer.output_bias);
    keywords.take_optional("gate_bias", layer.gate_bias);
    keywords.take_optional("up_bias", layer.up_bias);
    keywords.take_optional("down_bias", layer.down_bias);
    keywords.finish();
    new (self) BoundLayer{std::move(layer), std::move(keywords.weights)};
}

Activation activation_of(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    throw nb::value_error(("there is no activation " + name + ": choose silu or gelu_tanh").c_str());
}

void make_model(BoundModel* self, nb::kwargs given) {
    Keywords keywords("Model", std::move(given));
    Model model;
    std::string activation;
    nb::list ropes, layers;
    keywords.take("hidden", model.hidden);
    keywords.take("head_width", model.head_width);
    keywords.take("vocabulary", model.vocabulary);
    keywords.take("positions", model.positions);
    keywords.take("epsilon", model.epsilon);
    keywords.take("embedding_scale", model.embedding_scale);
    keywords.take("attention_scale", model.attention_scale);
    keywords.take("attention_cap", model.attention_cap);
    keywords.take("logit_cap", model.logit_cap);
    keywords.take("activation", activation);
    keywords.take("embedding", model.embedding);
    keywords.take("head", model.head);
    keywords.take("norm", model.norm);
    keywords.take("ropes", ropes);
    keywords.take("layers", layers);
    keywords.finish();
    model.activation = activation_of(activation);
    for (const nb::handle rope : ropes) model.ropes.push_back(keywords.item<Rope>("ropes", rope));
    std::vector<nb::object> weights = keywords.weights;
    for (const nb::handle item : layers) {
        const auto& bound = keywords.item<BoundLayer>("layers", item);
        model.layers.push_back(bound.layer);
        weights.insert(weights.end(), bound.weights.begin(), bound.weights.end());
    }
    new (self) BoundModel{std::move(model), std::move(weights)};
}

}  // namespace

void bind_model(nb::module_& module) {
    nb::class_<Rope>(module, "Rope", "Angles of a rotary embedding: cosines and sines [positions, width / 2], float32.")
        .def("__init__", make_rope, nb::kw_only(), nb::arg("cosines"), nb::arg("sines"));
    nb::class_<BoundLayer>(module, "Layer", "One decoder layer: weights, norms, biases, its window and its rope.")
        .def("__init__", make_layer);
    nb::class_<BoundModel>(module, "Model", "A decoder's numbers and layers; it keeps the arrays of its weights alive.")
        .def("__init__", make_model);
}

}  // namespace secateur
