// What Python sees of the step: a model from a plan's numbers and weights, and one call for each batch.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <string>
#include <utility>

#include "bindings/bindings.hpp"
#include "step/step.hpp"

namespace secateur {
namespace {

using Numbers = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Angles = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr std::array<std::pair<const char*, Matrix Layer::*>, 7> matrices{{{"query", &Layer::query},
                                                                         {"key", &Layer::key},
                                                                         {"value", &Layer::value},
                                                                         {"output", &Layer::output},
                                                                         {"gate", &Layer::gate},
                                                                         {"up", &Layer::up},
                                                                         {"down", &Layer::down}}};

constexpr std::array<std::pair<const char*, Vector Layer::*>, 13> vectors{
    {{"query_bias", &Layer::query_bias},
     {"key_bias", &Layer::key_bias},
     {"value_bias", &Layer::value_bias},
     {"output_bias", &Layer::output_bias},
     {"gate_bias", &Layer::gate_bias},
     {"up_bias", &Layer::up_bias},
     {"down_bias", &Layer::down_bias},
     {"before_attention", &Layer::before_attention},
     {"after_attention", &Layer::after_attention},
     {"before_mlp", &Layer::before_mlp},
     {"after_mlp", &Layer::after_mlp},
     {"query_norm", &Layer::query_norm},
     {"key_norm", &Layer::key_norm}}};

template <class Array> Vector copied(const Array& values) { return Vector(values.data(), values.data() + values.size()); }

const Matrix& matrix_of(nb::handle weight) { return nb::cast<const Weight&>(weight).matrix; }

Layer layer_of(const nb::dict& values) {
    Layer layer;
    for (const auto& [name, member] : matrices) layer.*member = matrix_of(values[name]);
    for (const auto& [name, member] : vectors)
        if (values.contains(name)) layer.*member = copied(nb::cast<Numbers>(values[name]));
    layer.window = nb::cast<int32_t>(values["window"]);
    layer.rope = nb::cast<int32_t>(values["rope"]);
    return layer;
}

Model model_of(const nb::dict& values) {
    Model model;
    model.hidden = nb::cast<int32_t>(values["hidden"]);
    model.head_width = nb::cast<int32_t>(values["head_width"]);
    model.vocabulary = nb::cast<int32_t>(values["vocabulary"]);
    model.positions = nb::cast<int32_t>(values["positions"]);
    model.epsilon = nb::cast<float>(values["epsilon"]);
    model.embedding_scale = nb::cast<float>(values["embedding_scale"]);
    model.attention_scale = nb::cast<float>(values["attention_scale"]);
    model.attention_cap = nb::cast<float>(values["attention_cap"]);
    model.logit_cap = nb::cast<float>(values["logit_cap"]);
    model.activation = nb::cast<bool>(values["gelu"]) ? Activation::gelu_tanh : Activation::silu;
    model.embedding = matrix_of(values["embedding"]);
    model.head = matrix_of(values["head"]);
    model.norm = copied(nb::cast<Numbers>(values["norm"]));
    for (nb::handle rope : nb::cast<nb::list>(values["ropes"])) {
        const auto cosines = nb::cast<Angles>(rope[0]), sines = nb::cast<Angles>(rope[1]);
        model.ropes.push_back({static_cast<int32_t>(2 * cosines.shape(1)), copied(cosines), copied(sines)});
    }
    for (nb::handle layer : nb::cast<nb::list>(values["layers"])) model.layers.push_back(layer_of(nb::cast<nb::dict>(layer)));
    return model;
}

struct BoundStep {  // with what it is a view of
    nb::object values, pool;
    Step step;
};

void make(BoundStep* self, nb::dict values, int32_t tokens, int32_t blocks, bool eight_bits, nb::object pool,
          const Instructions& set) {
    new (self) BoundStep{values, pool,
                         Step(model_of(values), {tokens, blocks, eight_bits}, nb::cast<Pool&>(pool), *set.set)};
}

// chunks [n, 3]: start, count, wanted. tables [n, most blocks]: where the positions of each lie.
void run(BoundStep& self, Ids ids, Table chunks, Table tables, Output logits) {
    if (chunks.shape(1) != 3 || tables.shape(0) != chunks.shape(0))
        throw nb::value_error("chunks are [n, 3] and tables [n, blocks]");
    std::vector<Chunk> list;
    list.reserve(chunks.shape(0));
    int64_t wanted = 0;
    for (size_t i = 0; i < chunks.shape(0); ++i) {
        list.push_back({chunks(i, 0), chunks(i, 1), chunks(i, 2),
                        std::span(tables.data() + i * tables.shape(1), tables.shape(1))});
        wanted += chunks(i, 2);
    }
    if (static_cast<int64_t>(logits.shape(0)) != wanted ||
        static_cast<int32_t>(logits.shape(1)) != self.step.model().vocabulary)
        throw nb::value_error("logits are not [rows asked for, vocabulary]");
    const Batch batch{std::span(ids.data(), ids.size()), list};
    nb::gil_scoped_release release;
    self.step.run(batch, logits.data());
}

}  // namespace

void bind_step(nb::module_& module) {
    module.attr("BLOCK_POSITIONS") = block_positions;
    nb::class_<BoundStep>(module, "Step", "One pass of a decoder over a batch; it keeps its weights and cache alive.")
        .def("__init__", make, nb::arg("values"), nb::kw_only(), nb::arg("tokens"), nb::arg("blocks"),
             nb::arg("eight_bits"), nb::arg("pool"), nb::arg("set"))
        .def_prop_ro("cache_bytes", [](const BoundStep& self) { return self.step.cache_bytes(); })
        .def("run", run, nb::arg("ids"), nb::arg("chunks"), nb::arg("tables"), nb::arg("logits"),
             "Write float32 logits of the last ids of each chunk. ValueError before anything is computed.");
}

}  // namespace secateur
