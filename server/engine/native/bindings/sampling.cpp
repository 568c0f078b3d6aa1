// Sampling and log probabilities. Every id and number is checked before a pointer is followed.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cmath>

#include "base/require.hpp"
#include "bindings/bindings.hpp"
#include "sampling/sampling.hpp"

namespace secateur {
namespace {

using Ids = Array<const int64_t, 1>;
using Values = FloatVector;
using Wishes = Array<const double, 2>;
using Changes = std::vector<std::optional<std::pair<Ids, Values>>>;
using Masks = std::vector<std::optional<Ids>>;

constexpr int64_t most_ids = int64_t{1} << 28;

template <class Values> auto span_of(const Values& values) { return std::span(values.data(), values.size()); }

Wish wish_of(const Wishes& wishes, size_t row) {
    const double top_k = wishes(row, 4);
    require(top_k >= 0 && top_k <= most_ids, "top_k is 0 to 2^28");
    const Wish wish{wishes(row, 0), wishes(row, 1), wishes(row, 2), wishes(row, 3), static_cast<int64_t>(top_k)};
    require(wish.temperature >= 0 && std::isfinite(wish.temperature), "a temperature is 0 or more, and finite");
    require(wish.top_p > 0, "top_p is more than 0");
    require(wish.min_p >= 0 && wish.min_p <= 1, "min_p is 0 to 1");
    require(wish.uniform >= 0 && wish.uniform < 1, "a uniform number is 0 or more, and less than 1");
    return wish;
}

Change change_of(const Changes::value_type& change, int64_t vocabulary) {
    if (!change) return {};
    const auto& [ids, values] = *change;
    require(ids.size() == values.size(), "a change has one value for each id");
    for (int64_t id : span_of(ids)) require(id >= 0 && id < vocabulary, "a change names an id that does not exist");
    return {span_of(ids), span_of(values)};
}

std::span<const int64_t> mask_of(const Masks::value_type& mask, int64_t vocabulary) {
    if (!mask) return {};
    int64_t before = -1;
    for (int64_t id : span_of(*mask)) {
        require(id > before && id < vocabulary, "the ids of a mask rise and exist");
        before = id;
    }
    require(before >= 0, "a mask allows at least one id");
    return span_of(*mask);
}

std::vector<int64_t> sample(FloatRows logits, Wishes wishes, const Changes& changes, const Masks& masks,
                            const Instructions& set) {
    const size_t rows = logits.shape(0), vocabulary = logits.shape(1);
    require(vocabulary > 0 && vocabulary < size_t{most_ids}, "a vocabulary has 1 to 2^28 ids");
    require(wishes.shape(0) == rows && wishes.shape(1) == 5, "wishes are [rows, 5]");
    require(changes.size() == rows && masks.size() == rows, "each row has one change and one mask, or None");
    std::vector<Wish> wanted;
    std::vector<Change> added;
    std::vector<std::span<const int64_t>> allowed;
    for (size_t row = 0; row < rows; ++row) {
        wanted.push_back(wish_of(wishes, row));
        added.push_back(change_of(changes[row], static_cast<int64_t>(vocabulary)));
        allowed.push_back(mask_of(masks[row], static_cast<int64_t>(vocabulary)));
    }
    std::vector<int64_t> drawn(rows);
    const float* values = logits.data();
    nb::gil_scoped_release release;
    Sampler sampler(row_kernels(*set.set));
    for (size_t row = 0; row < rows; ++row)
        drawn[row] = sampler.draw({values + row * vocabulary, vocabulary}, wanted[row], added[row], allowed[row]);
    return drawn;
}

Scores score(Values logits, int64_t id, int64_t count, const Instructions& set) {
    const size_t vocabulary = logits.size();
    require(vocabulary > 0 && vocabulary < size_t{most_ids}, "a vocabulary has 1 to 2^28 ids");
    require(id >= 0 && id < static_cast<int64_t>(vocabulary) && count >= 0, "the id does not exist");
    nb::gil_scoped_release release;
    auto result = Sampler(row_kernels(*set.set)).score(span_of(logits), id, count);
    if (!result.second.empty()) return result;
    nb::gil_scoped_acquire acquire;
    throw nb::value_error("the logits are NaN or infinite");
}

}  // namespace

void bind_sampling(nb::module_& module) {
    module.def("sample", sample, nb::arg("logits"), nb::arg("wishes"), nb::arg("changes"), nb::arg("masks"),
               nb::arg("set"),
               "One id per row of logits [rows, vocabulary], -1 where a row is damaged. wishes [rows, 5]: temperature, "
               "top_p, min_p, a uniform number, top_k. changes: ids and what is added. masks: ids in rising order.");
    module.def("score", score, nb::arg("logits"), nb::arg("id"), nb::arg("count"), nb::arg("set"),
               "The `count` most likely ids, and of these and then of `id` the logarithm of the probability.");
}

}  // namespace secateur
