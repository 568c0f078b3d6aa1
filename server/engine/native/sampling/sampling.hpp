// Samples ids from logits and computes log probabilities, as server/engine/sampling/reference.py defines them.
//
// Nothing sorts a vocabulary: the maxima of groups of logits tell which groups can be skipped.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/rows/row_kernels.hpp"

namespace secateur {

struct Options {
    double temperature;  // 0: the most likely id
    double top_p;        // 1 or more: all
    double min_p;        // 0: all
    double uniform;      // the random number, in [0, 1)
    int64_t top_k;       // 0: all
};

struct LogitChanges {
    std::span<const int64_t> repeated{};  // distinct ids whose logits the penalty moves down, before the additions
    float repetition_penalty = 1;         // divides positive logits and multiplies the others
    std::span<const int64_t> ids{};       // ids with a value to add to their logits
    std::span<const float> values{};

    bool empty() const { return repeated.empty() && ids.empty(); }
};

struct Candidates {
    const float* values;
    const int32_t* ids;  // of each value; null: its index
    int64_t size;

    int64_t id(int64_t place) const { return ids ? ids[place] : place; }
};

struct Logprobs {
    std::vector<int64_t> top;    // ids, the most likely first
    std::vector<double> values;  // natural logarithms of the probabilities of `top`, then of the sampled id
};

// Its buffers are reused from row to row; one thread at a time.
class Sampler {
public:
    explicit Sampler(const RowKernels& kernels) : kernels_(kernels) {}

    // An id among the bits of `mask` (empty: all; else at least one); -1 if the largest logit is NaN or infinite.
    int64_t draw(std::span<const float> logits, const Options& options, const LogitChanges& changes,
                 std::span<const uint32_t> mask);

    // For the `count` most likely ids and for `id`; empty if the largest logit is NaN or infinite.
    Logprobs logprobs(std::span<const float> logits, int64_t id, int64_t count);

private:
    void find_maxima(const Candidates& row);
    void apply(Candidates& row, const LogitChanges& changes, std::span<const uint32_t> mask);
    void allow(std::span<const uint32_t> mask, int64_t size);
    void keep(Candidates& row, const Options& options);
    void gather(Candidates& row, float bound, int64_t ties);
    void rank(const Candidates& row, int64_t count);
    double total(const Candidates& row, double factor);
    int64_t place_of(const Candidates& row, double factor, double uniform);
    int64_t place_in_nucleus(const Candidates& row, double factor, const Options& options);
    int64_t place_in_wide_nucleus(const Candidates& row, double factor, const Options& options);
    void fill_spans(const Candidates& row, double factor);
    void rank_span(const Candidates& row, double factor, int64_t span);
    bool accumulate(const Candidates& row, double factor, double from, double limit);

    const RowKernels& kernels_;
    float top_ = 0;
    double sum_ = 0;                                 // of all weights
    std::vector<float> maxima_, changed_, values_;   // of each group; the row after changes; the row after filters
    std::vector<int32_t> allowed_, ids_;
    std::vector<double> weights_, spans_, reached_;  // of each group; cumulative by span; cumulative along `order_`
    std::vector<uint64_t> order_;                    // keys, the most likely first
};

}  // namespace secateur
