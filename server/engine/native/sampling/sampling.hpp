// From a row of logits to the id that is drawn, and to log probabilities; server/engine/sampling/reference.py is the definition.
//
// Nothing sorts a vocabulary: groups of logits have their largest, and those that cannot matter are passed over.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/rows/row_kernels.hpp"

namespace secateur {

struct Wish {
    double temperature;  // 0: the most likely id
    double top_p;        // from 1 on: all
    double min_p;        // 0: all
    double uniform;      // in [0, 1)
    int64_t top_k;       // 0: all
};

struct Change {  // what is added to the logits of some ids
    std::span<const int64_t> ids;
    std::span<const float> values;
};

struct Logits {
    const float* values;
    const int32_t* ids;  // of each value; null: its place
    int64_t size;

    int64_t id(int64_t place) const { return ids ? ids[place] : place; }
};

using Scores = std::pair<std::vector<int64_t>, std::vector<double>>;

class Sampler {  // its buffers serve one row after another; one thread at a time
public:
    explicit Sampler(const RowKernels& kernels) : kernels_(kernels) {}

    // The id drawn among `mask` (ids in rising order; empty: all); -1 where a row holds NaN or infinity at its top.
    int64_t draw(std::span<const float> logits, const Wish& wish, const Change& change, std::span<const int64_t> mask);

    // The `count` most likely ids, and of these and then of `id` the natural logarithm of the probability; empty where
    // `draw` gives -1.
    Scores score(std::span<const float> logits, int64_t id, int64_t count);

private:
    void look(const Logits& row);
    void change(Logits& row, const Change& change, std::span<const int64_t> mask);
    void keep(Logits& row, const Wish& wish);
    void gather(Logits& row, float bound, int64_t ties);
    void best(const Logits& row, int64_t count);
    double total(const Logits& row, double factor);
    int64_t place_of(const Logits& row, double factor, double uniform);
    int64_t place_in_nucleus(const Logits& row, double factor, const Wish& wish);
    int64_t place_in_spans(const Logits& row, double factor, const Wish& wish);
    void spread(const Logits& row, double factor);
    void span_of(const Logits& row, double factor, int64_t span);
    bool climb(const Logits& row, double factor, double from, double limit);

    const RowKernels& kernels_;
    float top_ = 0;
    double sum_ = 0;                                 // of all weights
    std::vector<float> maxima_, changed_, values_;   // of groups; the row after changes; what may be drawn
    std::vector<int32_t> allowed_, ids_;
    std::vector<double> weights_, spans_, reached_;  // of groups; before each span; after each of `order_`
    std::vector<uint64_t> order_;                    // places, the most likely first
};

}  // namespace secateur
