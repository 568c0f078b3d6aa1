// What the bindings share: the arrays that Python hands in, and values that keep them alive.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <vector>

#include "kernels/instruction_set.hpp"
#include "kernels/matrices/matrix.hpp"
#include "step/model.hpp"

namespace secateur {

namespace nb = nanobind;

template <class Value, int dimensions>
using Array = nb::ndarray<Value, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;
using Bytes = Array<const uint8_t, 1>;
using Words = Array<const uint64_t, 1>;
using Halves = Array<const uint16_t, 1>;  // float16 bits
using FloatVector = Array<const float, 1>;
using FloatRows = Array<const float, 2>;
using FloatOutput = Array<float, 2>;

// A matrix and the arrays that it is a view of.
struct Weight {
    Matrix matrix;
    Bytes values;
    std::optional<Words> mask;
    std::optional<Halves> scales;
    std::optional<Words> offsets;
    std::optional<Halves> minimums;
};

struct Instructions {
    const InstructionSet* set;
};

// A model and the weights that its matrices are views of.
struct BoundModel {
    Model model;
    std::vector<nb::object> weights;
};

void bind_kernels(nb::module_& module);
void bind_model(nb::module_& module);
void bind_step(nb::module_& module);
void bind_sampling(nb::module_& module);
void bind_attention(nb::module_& module);

}  // namespace secateur
