// The types that Python hands in.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>

#include "base/instruction_set.hpp"
#include "kernels/matrix.hpp"
#include "base/pool.hpp"

namespace secateur {

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Line = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A matrix and the arrays that it is a view of.
struct Weight {
    Matrix matrix;
    Bytes values;
    std::optional<Words> mask;
    std::optional<Halves> scales;
    std::optional<Words> offsets;
};

struct Instructions {
    const InstructionSet* set;
};

void bind_step(nb::module_& module);
void bind_sampling(nb::module_& module);

}  // namespace secateur
