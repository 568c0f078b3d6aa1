// Drawing a token. Sums are taken of weights e^((x - top) / temperature), in double precision.
#include "sampling/sampling.hpp"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <ranges>

namespace secateur {
namespace {

constexpr int64_t head = 256;          // a nucleus nearly always lies within so many ids
constexpr int64_t spans = 2048;        // into which a wide one is divided
constexpr double spans_per_unit = 32;  // a span is e^(1/32) wide in probability, the last has all the rest
constexpr float infinity = std::numeric_limits<float>::infinity();

int64_t groups(int64_t size) { return (size + draw_group - 1) / draw_group; }

// Ascending keys: the largest value first, and of equal ones the first place.
uint64_t key(float value, int64_t place) {
    const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // 0 and -0 are equal
    const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(~rising) << 32 | static_cast<uint32_t>(place);
}

int64_t place_of_key(uint64_t key) { return static_cast<int64_t>(key & 0xFFFFFFFFu); }

// Places whose values reach `bound`, group by group.
template <class Function>
void each_from(const Logits& row, const std::vector<float>& maxima, float bound, Function function) {
    for (int64_t group = 0, start = 0; start < row.size; ++group, start += draw_group) {
        if (maxima[group] < bound) continue;
        const int64_t end = std::min(start + draw_group, row.size);
        for (int64_t place = start; place < end; ++place)
            if (row.values[place] >= bound) function(place);
    }
}

int64_t span_at(float top, double factor, float value) {
    const double down = (static_cast<double>(top) - value) * factor * spans_per_unit;
    return down < spans - 1 ? static_cast<int64_t>(down) : spans - 1;
}

}  // namespace

int64_t Sampler::draw(std::span<const float> logits, const Wish& wish, const Change& changes,
                      std::span<const int64_t> mask) {
    Logits row{logits.data(), nullptr, static_cast<int64_t>(logits.size())};
    look(row);
    if (!std::isfinite(top_)) return -1;
    change(row, changes, mask);
    if (top_ == -infinity) return row.id(0);  // nothing that is allowed is possible
    if (wish.temperature > 0) keep(row, wish);
    if (wish.temperature == 0 || row.size == 1) {
        best(row, 1);
        return row.id(place_of_key(order_[0]));
    }
    const double factor = 1 / std::max(wish.temperature, DBL_MIN);  // finite, and no less sharp
    return row.id(wish.top_p < 1 ? place_in_nucleus(row, factor, wish) : place_of(row, factor, wish.uniform));
}

Scores Sampler::score(std::span<const float> logits, int64_t id, int64_t count) {
    const Logits row{logits.data(), nullptr, static_cast<int64_t>(logits.size())};
    look(row);
    if (!std::isfinite(top_)) return {};
    const double normaliser = top_ + std::log(total(row, 1));
    Scores result;
    if (count) best(row, count);
    for (int64_t i = 0; i < std::min(count, row.size); ++i) result.first.push_back(place_of_key(order_[i]));
    for (int64_t place : result.first) result.second.push_back(row.values[place] - normaliser);
    result.second.push_back(row.values[id] - normaliser);
    return result;
}

// The largest of each group and of all; NaN where there is one.
void Sampler::look(const Logits& row) {
    maxima_.resize(groups(row.size));
    kernels_.maxima(row.values, row.size, maxima_.data());
    top_ = -infinity;
    for (float most : maxima_) {
        top_ = std::isnan(most) || most > top_ ? most : top_;
        if (std::isnan(top_)) return;
    }
}

void Sampler::change(Logits& row, const Change& change, std::span<const int64_t> mask) {
    if (change.ids.empty() && mask.empty()) return;
    if (!change.ids.empty()) {
        changed_.assign(row.values, row.values + row.size);
        for (size_t i = 0; i < change.ids.size(); ++i) changed_[change.ids[i]] += change.values[i];
        row.values = changed_.data();
    }
    if (!mask.empty()) {
        allowed_.assign(mask.begin(), mask.end());
        values_.resize(mask.size());
        std::ranges::transform(allowed_, values_.begin(), [&](int32_t id) { return row.values[id]; });
        changed_.swap(values_);  // `values_` is for what is kept
        row = {changed_.data(), allowed_.data(), static_cast<int64_t>(mask.size())};
    }
    look(row);
}

// What `min_p` and `top_k` leave.
void Sampler::keep(Logits& row, const Wish& wish) {
    float floor = -infinity;
    if (wish.min_p > 0) floor = static_cast<float>(top_ + wish.temperature * std::log(wish.min_p));
    if (wish.top_k <= 0 || wish.top_k >= row.size) {
        if (floor > -infinity) gather(row, floor, row.size);
        return;
    }
    best(row, wish.top_k);
    const float least = row.values[place_of_key(order_[wish.top_k - 1])];
    if (least < floor) return gather(row, floor, row.size);
    int64_t ties = 0;
    for (int64_t i = 0; i < wish.top_k; ++i) ties += row.values[place_of_key(order_[i])] == least;
    gather(row, least, ties);
}

// Only values above `bound`, and the first `ties` of those that equal it.
void Sampler::gather(Logits& row, float bound, int64_t ties) {
    values_.clear();
    ids_.clear();
    each_from(row, maxima_, bound, [&](int64_t place) {
        if (row.values[place] == bound && ties-- <= 0) return;
        values_.push_back(row.values[place]);
        ids_.push_back(static_cast<int32_t>(row.id(place)));
    });
    row = {values_.data(), ids_.data(), static_cast<int64_t>(values_.size())};
    maxima_.resize(groups(row.size));
    kernels_.maxima(row.values, row.size, maxima_.data());
}

// `order_` begins with the `count` largest, in order.
void Sampler::best(const Logits& row, int64_t count) {
    count = std::min(count, row.size);
    float bound = -infinity;
    if (count <= static_cast<int64_t>(maxima_.size())) {  // so many groups reach it, so at least so many values do
        std::vector<float> largest = maxima_;
        std::nth_element(largest.begin(), largest.begin() + (count - 1), largest.end(), std::greater<>());
        bound = largest[count - 1];
    }
    order_.clear();
    each_from(row, maxima_, bound, [&](int64_t place) { order_.push_back(key(row.values[place], place)); });
    std::nth_element(order_.begin(), order_.begin() + (count - 1), order_.end());
    std::sort(order_.begin(), order_.begin() + count);
    order_.resize(count);
}

// The sum of all weights; of each group it is in `weights_`.
double Sampler::total(const Logits& row, double factor) {
    double each[draw_group], sum = 0;
    weights_.clear();
    for (int64_t start = 0; start < row.size; start += draw_group) {
        const int64_t size = std::min<int64_t>(draw_group, row.size - start);
        weights_.push_back(kernels_.weigh(row.values + start, size, top_, factor, each));
        sum += weights_.back();
    }
    return sum;
}

// The first place at which the sum of the weights, in the order of ids, exceeds its part `uniform`.
int64_t Sampler::place_of(const Logits& row, double factor, double uniform) {
    const double target = uniform * total(row, factor);
    double sum = 0, each[draw_group];
    size_t group = 0;
    while (group + 1 < weights_.size() && sum + weights_[group] <= target) sum += weights_[group++];
    while (weights_[group] == 0) --group;  // rounding took it past the last one
    const int64_t start = static_cast<int64_t>(group) * draw_group;
    const int64_t size = std::min<int64_t>(draw_group, row.size - start);
    kernels_.weigh(row.values + start, size, top_, factor, each);
    int64_t last = 0;
    for (int64_t i = 0; i < size; ++i) {
        if (each[i] > 0) last = i;
        if ((sum += each[i]) > target) return start + i;
    }
    return start + last;
}

// Likewise among the fewest most likely that reach `top_p`, in the order of probability.
int64_t Sampler::place_in_nucleus(const Logits& row, double factor, const Wish& wish) {
    sum_ = total(row, factor);
    best(row, head);
    if (!climb(row, factor, 0, wish.top_p) && row.size > head) return place_in_spans(row, factor, wish);
    const double target = wish.uniform * reached_.back();
    const auto found = std::ranges::upper_bound(reached_, target);
    return place_of_key(order_[std::min<size_t>(found - reached_.begin(), reached_.size() - 1)]);
}

int64_t Sampler::place_in_spans(const Logits& row, double factor, const Wish& wish) {
    spread(row, factor);
    const auto ends = std::ranges::subrange(spans_.begin() + 1, spans_.end());
    const int64_t last = std::ranges::lower_bound(ends, std::min(wish.top_p, spans_.back())) - ends.begin();
    span_of(row, factor, last);
    climb(row, factor, spans_[last], wish.top_p);
    const double target = wish.uniform * reached_.back();
    if (target < spans_[last]) {
        const int64_t span = std::ranges::upper_bound(ends, target) - ends.begin();
        span_of(row, factor, span);
        climb(row, factor, spans_[span], 2);
    }
    const auto found = std::ranges::upper_bound(reached_, target);
    return place_of_key(order_[std::min<size_t>(found - reached_.begin(), reached_.size() - 1)]);
}

// spans_[i] = the probability of all values in the spans before i, the most likely first.
void Sampler::spread(const Logits& row, double factor) {
    spans_.assign(spans + 1, 0);
    double each[draw_group];
    for (int64_t start = 0; start < row.size; start += draw_group) {
        const int64_t size = std::min<int64_t>(draw_group, row.size - start);
        kernels_.weigh(row.values + start, size, top_, factor, each);
        for (int64_t i = 0; i < size; ++i) spans_[span_at(top_, factor, row.values[start + i]) + 1] += each[i];
    }
    for (int64_t i = 0; i < spans; ++i) spans_[i + 1] = spans_[i] + spans_[i + 1] / sum_;
}

// `order_` becomes that of one span.
void Sampler::span_of(const Logits& row, double factor, int64_t span) {
    const double width = 1 / (factor * spans_per_unit), middle = top_ - (static_cast<double>(span) + 0.5) * width;
    const double reach = span == spans - 1 ? infinity : 1.5 * width;  // a span more on either side: rounding
    order_.clear();
    for (int64_t place = 0; place < row.size; ++place) {
        const float value = row.values[place];
        if (std::abs(value - middle) > reach) continue;  // one branch, which nearly always goes the same way
        if (span_at(top_, factor, value) == span) order_.push_back(key(value, place));
    }
    if (!std::ranges::is_sorted(order_)) std::ranges::sort(order_);
}

// `reached_` becomes the sums of probability along `order_`, from `from` until `limit`; whether they reach it.
bool Sampler::climb(const Logits& row, double factor, double from, double limit) {
    float values[draw_group];
    double each[draw_group];
    reached_.clear();
    for (size_t start = 0; start < order_.size(); start += draw_group) {
        const size_t size = std::min<size_t>(draw_group, order_.size() - start);
        for (size_t i = 0; i < size; ++i) values[i] = row.values[place_of_key(order_[start + i])];
        kernels_.weigh(values, static_cast<int64_t>(size), top_, factor, each);
        for (size_t i = 0; i < size; ++i) {
            reached_.push_back(from += each[i] / sum_);
            if (from >= limit) return true;
        }
    }
    return false;
}

}  // namespace secateur
