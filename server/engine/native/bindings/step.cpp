// A decoder's forward pass, one call for each batch.
#include <nanobind/stl/vector.h>

#include "base/require.hpp"
#include "bindings/bindings.hpp"
#include "step/step.hpp"

namespace secateur {
namespace {

using Ids = Array<const int32_t, 1>;
using Table = Array<const int32_t, 2>;

struct BoundStep {
    std::vector<nb::object> weights;  // what the step's matrices are views of
    Step step;
};

void make_step(BoundStep* self, const BoundModel& model, int32_t tokens, int32_t blocks, bool eight_bits, Pool& pool,
               const Instructions& set) {
    new (self) BoundStep{model.weights, Step(model.model, {tokens, blocks, eight_bits}, pool, *set.set)};
}

// chunks [n, 3]: start, count, wanted. tables [n, most blocks]: the block table of each chunk.
void run(BoundStep& self, Ids ids, Table chunks, Table tables, FloatOutput logits) {
    require(chunks.shape(1) == 3 && tables.shape(0) == chunks.shape(0), "chunks are [n, 3] and tables [n, blocks]");
    std::vector<Chunk> list;
    list.reserve(chunks.shape(0));
    int64_t wanted = 0;
    for (size_t i = 0; i < chunks.shape(0); ++i) {
        list.push_back({chunks(i, 0), chunks(i, 1), chunks(i, 2),
                        std::span(tables.data() + i * tables.shape(1), tables.shape(1))});
        wanted += chunks(i, 2);
    }
    require(static_cast<int64_t>(logits.shape(0)) == wanted &&
                static_cast<int32_t>(logits.shape(1)) == self.step.model().vocabulary,
            "logits are not [rows asked for, vocabulary]");
    const Batch batch{std::span(ids.data(), ids.size()), list};
    nb::gil_scoped_release release;
    self.step.run(batch, logits.data());
}

using Bytes = nb::ndarray<uint8_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using ReadBytes = nb::ndarray<const uint8_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

template <class Array> void check_bytes(const BoundStep& self, Ids blocks, const Array& bytes) {
    require(bytes.shape(0) == blocks.shape(0) && bytes.shape(1) == self.step.block_bytes(),
            "the bytes are not [blocks, block_bytes]");
}

void read_blocks(const BoundStep& self, Ids blocks, Bytes into) {
    check_bytes(self, blocks, into);
    self.step.read_blocks(std::span(blocks.data(), blocks.size()), into.data());
}

void write_blocks(BoundStep& self, Ids blocks, ReadBytes from) {
    check_bytes(self, blocks, from);
    self.step.write_blocks(std::span(blocks.data(), blocks.size()), from.data());
}

}  // namespace

void bind_step(nb::module_& module) {
    module.attr("BLOCK_POSITIONS") = block_positions;
    nb::class_<BoundStep>(module, "Step", "A decoder with its cache of keys and values; it keeps its weights alive.")
        .def("__init__", make_step, nb::arg("model"), nb::kw_only(), nb::arg("tokens"), nb::arg("blocks"),
             nb::arg("eight_bits"), nb::arg("pool"), nb::arg("set"), nb::keep_alive<1, 6>())
        .def_prop_ro("cache_bytes", [](const BoundStep& self) { return self.step.cache_bytes(); })
        .def_prop_ro("block_bytes", [](const BoundStep& self) { return self.step.block_bytes(); })
        .def("read_blocks", read_blocks, nb::arg("blocks"), nb::arg("into"),
             "Copy blocks of the cache to uint8 [blocks, block_bytes].")
        .def("write_blocks", write_blocks, nb::arg("blocks"), nb::arg("from_"), "Copy such bytes into blocks.")
        .def("run", run, nb::arg("ids"), nb::arg("chunks"), nb::arg("tables"), nb::arg("logits"),
             "Compute a batch and write float32 logits [sum of wanted, vocabulary]; ValueError if it is invalid.");
}

}  // namespace secateur
