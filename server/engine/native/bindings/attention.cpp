// Attention over a cache of its own, for tests and measurements.
#include <algorithm>

#include "base/mapping.hpp"
#include "base/require.hpp"
#include "bindings/bindings.hpp"
#include "kernels/rows/row_kernels.hpp"

namespace secateur {
namespace {

using Heads = Array<const float, 3>;
using HeadsOutput = Array<float, 3>;

class KeyValueCache {
public:
    KeyValueCache(int32_t positions, int32_t heads, int32_t width, bool eight_bits, const Instructions& set)
        : blocks_((positions + block_positions - 1) / block_positions),
          kernels_(row_kernels(*set.set)),
          memory_(bytes(heads, width)) {
        const int64_t places = int64_t{blocks_} * heads * block_positions;
        cache_ = {eight_bits, heads, width, nullptr, nullptr, nullptr, nullptr};
        cache_.keys = memory_.take<uint16_t>(places * even(width));
        cache_.values = memory_.take<uint16_t>(places * padded(width));
        cache_.key_scales = memory_.take<float>(places), cache_.value_scales = memory_.take<float>(places);
        // What a block held before must not show: NaN, as bf16 and as a scale.
        std::fill_n(static_cast<uint8_t*>(cache_.keys), memory_.size(), uint8_t{0xff});
        for (int32_t block = 0; block < blocks_; ++block) table_.push_back(blocks_ - 1 - block);
    }

    // Appends keys and values [positions, heads, width].
    void append(Heads keys, Heads values) {
        const auto count = static_cast<int32_t>(keys.shape(0));
        require(fits(keys, cache_.heads) && fits(values, cache_.heads) && values.shape(0) == keys.shape(0),
                "keys and values are not [positions, heads, width]");
        require(count_ + count <= blocks_ * block_positions, "the cache is full");
        for (int32_t i = 0; i < count; ++i, ++count_)
            for (int32_t head = 0; head < cache_.heads; ++head) {
                const int64_t at = (int64_t{i} * cache_.heads + head) * cache_.width;
                const Place place{table_[count_ / block_positions], head, count_ % block_positions, i + 1 == count};
                kernels_.store(cache_, place, keys.data() + at, values.data() + at);
            }
    }

    // Writes to output [rows, query heads, width] what the last rows of the cache attend to.
    void attend(Heads queries, int32_t window, float scale, float cap, HeadsOutput output) const {
        const auto rows = static_cast<int32_t>(queries.shape(0)), heads = static_cast<int32_t>(queries.shape(1));
        require(rows <= count_ && heads % cache_.heads == 0 && fits(queries, heads) && output.size() == queries.size(),
                "queries and output are not [rows, heads, width], or the cache has fewer rows");
        const int64_t group = heads / cache_.heads, width = cache_.width;
        for (int32_t head = 0; head < cache_.heads; ++head)
            kernels_.attend({&cache_, table_.data(), queries.data() + head * group * width,
                             output.data() + head * group * width, heads * width, count_ - rows, rows, head,
                             static_cast<int32_t>(group), window, scale, cap});
    }

private:
    size_t bytes(int32_t heads, int32_t width) const {
        require(blocks_ > 0 && heads > 0 && width > 0 && width <= widest_head, "a size is out of range");
        const int64_t places = int64_t{blocks_} * heads * block_positions;
        return Mapping::part_bytes(places * even(width) * 2) + Mapping::part_bytes(places * padded(width) * 2) +
               2 * Mapping::part_bytes(places * 4);
    }

    bool fits(const Heads& array, int32_t heads) const {
        return static_cast<int32_t>(array.shape(1)) == heads && static_cast<int32_t>(array.shape(2)) == cache_.width;
    }

    int32_t blocks_, count_ = 0;
    const RowKernels& kernels_;
    Mapping memory_;
    Cache cache_;
    std::vector<int32_t> table_;
};

}  // namespace

void bind_attention(nb::module_& module) {
    nb::class_<KeyValueCache>(module, "KeyValueCache", "Keys and values of one layer and one sequence.")
        .def(nb::init<int32_t, int32_t, int32_t, bool, const Instructions&>(), nb::kw_only(), nb::arg("positions"),
             nb::arg("heads"), nb::arg("width"), nb::arg("eight_bits"), nb::arg("set"))
        .def("append", &KeyValueCache::append, nb::arg("keys"), nb::arg("values"),
             "Append keys and values [positions, heads, width].")
        .def("attend", &KeyValueCache::attend, nb::arg("queries"), nb::kw_only(), nb::arg("window"), nb::arg("scale"),
             nb::arg("cap"), nb::arg("output"),
             "Write the causal attention of queries [rows, query heads, width], which are at the last positions.");
}

}  // namespace secateur
