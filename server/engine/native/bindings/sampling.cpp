// Sampling and log probabilities. Every id and number is checked before a pointer is followed.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "base/require.hpp"
#include "bindings/bindings.hpp"
#include "sampling/sampling.hpp"

namespace secateur {
namespace {

using Ids = Array<const int64_t, 1>;
using Values = FloatVector;
using OptionRows = Array<const double, 2>;
using ChangesOfRows = std::vector<std::optional<std::pair<Ids, Values>>>;
using Mask = Array<const uint32_t, 1>;
using MasksOfRows = std::vector<std::optional<Mask>>;
using RepetitionsOfRows = std::vector<std::optional<std::pair<Ids, double>>>;

constexpr int64_t most_ids = int64_t{1} << 28;

template <class Values> auto span_of(const Values& values) { return std::span(values.data(), values.size()); }

Options options_of(const OptionRows& rows, size_t row) {
    const double top_k = rows(row, 4);
    require(top_k >= 0 && top_k <= most_ids, "top_k is 0 to 2^28");
    const Options options{rows(row, 0), rows(row, 1), rows(row, 2), rows(row, 3), static_cast<int64_t>(top_k)};
    require(options.temperature >= 0 && std::isfinite(options.temperature), "a temperature is finite and at least 0");
    require(options.top_p > 0, "top_p is more than 0");
    require(options.min_p >= 0 && options.min_p <= 1, "min_p is 0 to 1");
    require(options.uniform >= 0 && options.uniform < 1, "a uniform number is at least 0 and less than 1");
    return options;
}

LogitChanges changes_of(const ChangesOfRows::value_type& change, int64_t vocabulary) {
    if (!change) return {};
    const auto& [ids, values] = *change;
    require(ids.size() == values.size(), "a change has one value for each id");
    for (int64_t id : span_of(ids)) require(id >= 0 && id < vocabulary, "a change names an id that does not exist");
    LogitChanges changes;
    changes.ids = span_of(ids);
    changes.values = span_of(values);
    return changes;
}

void add_repetition(LogitChanges& changes, const RepetitionsOfRows::value_type& repetition, int64_t vocabulary) {
    if (!repetition) return;
    const auto& [ids, penalty] = *repetition;
    require(penalty > 0 && std::isfinite(penalty), "a repetition penalty is finite and more than 0");
    int64_t before = -1;
    for (int64_t id : span_of(ids)) {
        require(id > before && id < vocabulary, "repeated ids are ascending and exist");
        before = id;
    }
    changes.repeated = span_of(ids);
    changes.repetition_penalty = static_cast<float>(penalty);
}

std::span<const uint32_t> mask_of(const MasksOfRows::value_type& mask, int64_t vocabulary) {
    if (!mask) return {};
    const auto words = span_of(*mask);
    const bool some = std::ranges::any_of(words, [&, first = int64_t{0}](uint32_t word) mutable {
        const int64_t id = first + std::countr_zero(word);
        first += 32;
        return word && id < vocabulary;
    });
    require(some, "a mask allows at least one id");
    return words;
}

std::vector<int64_t> sample(FloatRows logits, OptionRows options, const ChangesOfRows& changes,
                            const MasksOfRows& masks, const Instructions& set,
                            const RepetitionsOfRows& repetitions) {
    const size_t rows = logits.shape(0), vocabulary = logits.shape(1);
    require(vocabulary > 0 && vocabulary < size_t{most_ids}, "a vocabulary has 1 to 2^28 ids");
    require(options.shape(0) == rows && options.shape(1) == 5, "options are [rows, 5]");
    require(changes.size() == rows && masks.size() == rows, "each row has one change and one mask, or None");
    require(repetitions.empty() || repetitions.size() == rows, "each row has one repetition, or None");
    std::vector<Options> wanted;
    std::vector<LogitChanges> added;
    std::vector<std::span<const uint32_t>> allowed;
    for (size_t row = 0; row < rows; ++row) {
        wanted.push_back(options_of(options, row));
        added.push_back(changes_of(changes[row], static_cast<int64_t>(vocabulary)));
        if (!repetitions.empty()) add_repetition(added.back(), repetitions[row], static_cast<int64_t>(vocabulary));
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

std::pair<std::vector<int64_t>, std::vector<double>> logprobs(Values logits, int64_t id, int64_t count,
                                                              const Instructions& set) {
    const size_t vocabulary = logits.size();
    require(vocabulary > 0 && vocabulary < size_t{most_ids}, "a vocabulary has 1 to 2^28 ids");
    require(id >= 0 && id < static_cast<int64_t>(vocabulary) && count >= 0, "the id does not exist");
    nb::gil_scoped_release release;
    Logprobs result = Sampler(row_kernels(*set.set)).logprobs(span_of(logits), id, count);
    require(!result.values.empty(), "the logits are NaN or infinite");
    return {std::move(result.top), std::move(result.values)};
}

}  // namespace

void bind_sampling(nb::module_& module) {
    module.def("sample", sample, nb::arg("logits"), nb::arg("options"), nb::arg("changes"), nb::arg("masks"),
               nb::arg("set"), nb::arg("repetitions") = RepetitionsOfRows(),
               "Sample one id per row of logits [rows, vocabulary]; -1 if the largest logit is NaN or infinite. "
               "options [rows, 5]: temperature, top_p, min_p, uniform number, top_k. "
               "changes: ids and the numbers to add. masks: allowed ids, as bits. "
               "repetitions: ids, ascending, and the penalty that divides their positive logits and multiplies others.");
    module.def("logprobs", logprobs, nb::arg("logits"), nb::arg("id"), nb::arg("count"), nb::arg("set"),
               "The `count` most likely ids, and the log probabilities of these, then of `id`.");
}

}  // namespace secateur
