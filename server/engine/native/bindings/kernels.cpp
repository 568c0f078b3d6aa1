// Packed weights, products with them, and instruction sets. Sizes are checked before any pointer is followed.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <bit>
#include <span>
#include <stdexcept>

#include "base/require.hpp"
#include "bindings/bindings.hpp"
#include "kernels/matrices/multiplier.hpp"
#include "kernels/matrices/tiles.hpp"

namespace secateur {
namespace {

Kind kind_of(const std::string& name) {
    if (name == "bf16") return Kind::bf16;
    if (name == "int8") return Kind::int8;
    if (name == "int4") return Kind::int4;
    if (name == "int3") return Kind::int3;
    if (name == "int5") return Kind::int5;
    if (name == "int6") return Kind::int6;
    throw std::invalid_argument("no weights are stored as " + name + ": choose bf16, int8, int6, int5, int4 or int3");
}

// The values of codes of 3 bits: those of a table, or else the codes themselves.
std::array<int8_t, 8> levels_of(const std::optional<std::vector<int>>& given, bool asymmetric) {
    std::array<int8_t, 8> levels{};
    require(!given || given->size() == levels.size(), "a table has 8 levels");
    for (int i = 0; i < 8; ++i) {
        const int level = given ? (*given)[i] : asymmetric || i < 4 ? i : i - 8;
        require(level >= -128 && level <= 127, "a level is -128 to 127");
        levels[i] = static_cast<int8_t>(level);
    }
    return levels;
}

constexpr int64_t LARGEST = int64_t{1} << 28;

void check(const Matrix& matrix, const Weight& weight) {
    require(matrix.rows >= 0 && matrix.columns >= 1, "a matrix has at least one column and 0 rows");
    require(matrix.rows < LARGEST && matrix.columns < LARGEST, "a matrix is larger than 2^28 rows or columns");
    require(matrix.keep >= 0 && matrix.keep <= RUN, "keep is 0 to 64");
    require(matrix.keep != 0 || matrix.kind != Kind::int4, "unstructured weights are bf16 or int8");
    require(matrix.dense() || !by_spans(matrix.kind), "weights of 3, 5 and 6 bits are dense");
    int64_t rows = matrix.rows, runs = matrix.runs();
    require(matrix.dense() || (weight.mask && int64_t(weight.mask->size()) == rows * runs), "the mask's size is wrong");
    if (matrix.kind != Kind::bf16) {
        require(matrix.group == 32 || matrix.group == 64 || matrix.group == 128 || matrix.group == matrix.columns,
                "a group is 32, 64, 128 or all columns");
        require(weight.scales && int64_t(weight.scales->size()) == rows * matrix.groups(), "the scales' size is wrong");
    }
    if (weight.minimums) {
        require(matrix.dense() && matrix.kind != Kind::bf16 && matrix.kind != Kind::int8,
                "weights with minimums are dense codes of 3 to 6 bits");
        require(int64_t(weight.minimums->size()) == rows * matrix.groups(), "the minimums' size is wrong");
    }
    int64_t size = matrix.kind == Kind::bf16 ? 2 : 1, held = int64_t(weight.values.size());
    if (matrix.keep) {
        std::span<const uint64_t> masks(matrix.mask, matrix.dense() ? 0 : rows * runs);
        bool fits = std::ranges::all_of(masks, [&](uint64_t word) { return std::popcount(word) == matrix.keep; });
        require(fits, "a mask does not name " + std::to_string(matrix.keep) + " columns");
        require(held == rows * stride(matrix), "the values' size is wrong");
        return;
    }
    require(weight.offsets && int64_t(weight.offsets->size()) == rows, "the offsets' size is wrong");
    uint64_t place = 0;
    for (int64_t row = 0; row < rows; ++row) {
        require(matrix.offsets[row] == place, "an offset does not follow from the mask");
        for (int64_t run = 0; run < runs; ++run) place += std::popcount(matrix.mask[row * runs + run]);
    }
    require(held == int64_t(place) * size, "the values' size is wrong");
}

void build(Weight* self, const std::string& kind, int64_t rows, int64_t columns, int32_t keep, int32_t group,
           Bytes values, std::optional<Words> mask, std::optional<Halves> scales, std::optional<Words> offsets,
           std::optional<Halves> minimums, const std::optional<std::vector<int>>& levels) {
    Weight weight{{}, values, mask, scales, offsets, minimums};
    Matrix& matrix = weight.matrix;
    matrix = {kind_of(kind), rows, columns, keep, group, values.data(), mask ? mask->data() : nullptr,
              scales ? scales->data() : nullptr, offsets ? offsets->data() : nullptr};
    if (minimums) matrix.minimums = minimums->data();
    if (matrix.kind == Kind::int3) matrix.levels = levels_of(levels, matrix.asymmetric());
    else require(!levels, "levels go with 3 bits");
    check(weight.matrix, weight);
    new (self) Weight(std::move(weight));
}

void multiply(Multiplier& self, const std::vector<const Weight*>& weights, FloatRows input,
              const std::vector<FloatOutput>& outputs) {
    require(!weights.empty() && weights.size() == outputs.size(), "each weight needs one output");
    std::vector<Matrix> matrices;
    std::vector<float*> places;
    for (size_t i = 0; i < weights.size(); ++i) {
        const Matrix& matrix = weights[i]->matrix;
        require(int64_t(input.shape(1)) == matrix.columns, "the input has another number of columns than the weight");
        require(outputs[i].shape(0) == input.shape(0) && int64_t(outputs[i].shape(1)) == matrix.rows,
                "an output is not [tokens, rows]");
        matrices.push_back(matrix);
        places.push_back(outputs[i].data());
    }
    nb::gil_scoped_release release;
    self.multiply(matrices, input.data(), places, int64_t(input.shape(0)));
}

// The same weight in tiles; it keeps only `room` alive.
Weight tiled(const Weight& weight, Array<uint8_t, 1> room) {
    require(!weight.matrix.tiled, "the weight is in tiles already");
    require(int64_t(room.size()) == tiled_bytes(weight.matrix), "the room's size is wrong");
    require(reinterpret_cast<uintptr_t>(room.data()) % 64 == 0, "the room does not begin at a multiple of 64 bytes");
    Matrix matrix;
    {
        nb::gil_scoped_release release;
        matrix = tile(weight.matrix, room.data());
    }
    return {matrix, Bytes(room), {}, {}, {}, {}};
}

}  // namespace

void bind_kernels(nb::module_& module) {
    nb::class_<Weight>(module, "Weight", "A view of one packed matrix; it keeps its arrays alive.")
        .def("__init__", build, nb::kw_only(), nb::arg("kind"), nb::arg("rows"), nb::arg("columns"), nb::arg("keep"),
             nb::arg("group"), nb::arg("values"), nb::arg("mask").none(), nb::arg("scales").none(),
             nb::arg("offsets").none(), nb::arg("minimums").none() = nb::none(), nb::arg("levels").none() = nb::none())
        .def_prop_ro("rows", [](const Weight& weight) { return weight.matrix.rows; })
        .def_prop_ro("columns", [](const Weight& weight) { return weight.matrix.columns; })
        .def_prop_ro("tiled_bytes", [](const Weight& weight) { return tiled_bytes(weight.matrix); },
                     "Size of the room that `tiled` needs.")
        .def("tiled", tiled, nb::arg("room"), "Copy the weight into `room` in tiles, for kernels that read them.");
    nb::class_<Pool>(module, "Pool", "Threads that share out work; the caller is one of them.")
        .def(nb::init<int>(), nb::arg("threads"))
        .def_prop_ro("threads", &Pool::threads);
    nb::class_<Instructions>(module, "InstructionSet", "The kernels of one instruction set.")
        .def_prop_ro("name", [](const Instructions& set) { return std::string(set.set->name); })
        .def_prop_ro("tiles", [](const Instructions& set) { return set.set->tiles; }, "Whether they read tiles.");
    module.def("available", [] {
        std::vector<std::string> names;
        for (const InstructionSet* set : available()) names.emplace_back(set->name);
        return names;
    }, "The instruction sets of this build that this processor supports, best first.");
    module.def("choose", [](const std::string& wanted) {
        std::string reason;
        const InstructionSet& set = choose(wanted, reason);
        return std::pair(Instructions{&set}, reason);
    }, nb::arg("wanted") = "",
       "An instruction set and the reason: the best, or the one named `wanted`; ValueError if it is unavailable.");
    nb::class_<Multiplier>(module, "Multiplier", "Products on a pool's threads; keeps its scratch between calls.")
        .def("__init__",
             [](Multiplier* self, Pool& pool, const Instructions& set) { new (self) Multiplier(pool, *set.set); },
             nb::arg("pool"), nb::arg("set"), nb::keep_alive<1, 2>())
        .def("multiply", multiply, nb::arg("weights"), nb::arg("input"), nb::arg("outputs"),
             "Write input [tokens, columns] times each weight to outputs [tokens, rows].");
}

}  // namespace secateur
