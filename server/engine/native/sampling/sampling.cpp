// Weights are e^((logit - top) / temperature), summed in double precision.
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

constexpr int64_t head = 256;          // ids; nearly every nucleus is smaller
constexpr int64_t spans = 2048;        // buckets of probability for a wide nucleus
constexpr double spans_per_unit = 32;  // a span is a factor e^(1/32) of probability wide; the last is unbounded
constexpr float infinity = std::numeric_limits<float>::infinity();

int64_t groups(int64_t size) { return (size + draw_group - 1) / draw_group; }

// Sorts ascending by: larger values first, ties by index.
uint64_t key(float value, int64_t place) {
    const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // 0 and -0 are equal
    const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(~rising) << 32 | static_cast<uint32_t>(place);
}

int64_t place_of_key(uint64_t key) { return static_cast<int64_t>(key & 0xFFFFFFFFu); }

// Calls function(index) for values of at least `bound`, skipping groups below.
template <class Function>
void for_each_from(const Candidates& row, const std::vector<float>& maxima, float bound, Function function) {
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

int64_t Sampler::draw(std::span<const float> logits, const Options& options, const LogitChanges& changes,
                      std::span<const uint32_t> mask) {
    Candidates row{logits.data(), nullptr, static_cast<int64_t>(logits.size())};
    find_maxima(row);
    if (!std::isfinite(top_)) return -1;
    apply(row, changes, mask);
    if (top_ == -infinity) return row.id(0);  // every allowed id is impossible
    if (options.temperature > 0) keep(row, options);
    if (options.temperature == 0 || row.size == 1) {
        rank(row, 1);
        return row.id(place_of_key(order_[0]));
    }
    const double factor = 1 / std::max(options.temperature, DBL_MIN);  // finite
    return row.id(options.top_p < 1 ? place_in_nucleus(row, factor, options) : place_of(row, factor, options.uniform));
}

Logprobs Sampler::logprobs(std::span<const float> logits, int64_t id, int64_t count) {
    const Candidates row{logits.data(), nullptr, static_cast<int64_t>(logits.size())};
    find_maxima(row);
    if (!std::isfinite(top_)) return {};
    const double normaliser = top_ + std::log(total(row, 1));
    Logprobs result;
    if (count) rank(row, count);
    for (int64_t i = 0; i < std::min(count, row.size); ++i) result.top.push_back(place_of_key(order_[i]));
    for (int64_t place : result.top) result.values.push_back(row.values[place] - normaliser);
    result.values.push_back(row.values[id] - normaliser);
    return result;
}

// Sets maxima_ and top_; NaN where a value is NaN.
void Sampler::find_maxima(const Candidates& row) {
    maxima_.resize(groups(row.size));
    kernels_.maxima(row.values, row.size, maxima_.data());
    top_ = -infinity;
    for (float most : maxima_) {
        top_ = std::isnan(most) || most > top_ ? most : top_;
        if (std::isnan(top_)) return;
    }
}

// Applies the changes and removes ids outside the mask.
void Sampler::apply(Candidates& row, const LogitChanges& changes, std::span<const uint32_t> mask) {
    if (changes.empty() && mask.empty()) return;
    if (!changes.empty()) {
        changed_.assign(row.values, row.values + row.size);
        for (int64_t id : changes.repeated) {
            const float value = changed_[id];
            changed_[id] = value < 0 ? value * changes.repetition_penalty : value / changes.repetition_penalty;
        }
        for (size_t i = 0; i < changes.ids.size(); ++i) changed_[changes.ids[i]] += changes.values[i];
        row.values = changed_.data();
    }
    if (!mask.empty()) {
        allow(mask, row.size);
        values_.resize(allowed_.size());
        std::ranges::transform(allowed_, values_.begin(), [&](int32_t id) { return row.values[id]; });
        changed_.swap(values_);  // `keep` needs `values_`
        row = {changed_.data(), allowed_.data(), static_cast<int64_t>(allowed_.size())};
    }
    find_maxima(row);
}

// Sets allowed_ to the ids of a mask's bits below `size`, ascending.
void Sampler::allow(std::span<const uint32_t> mask, int64_t size) {
    allowed_.clear();
    for (int64_t first = 0; uint32_t bits : mask) {
        if (size - first < 32) bits &= size > first ? (uint32_t{1} << (size - first)) - 1 : 0;
        for (; bits; bits &= bits - 1) allowed_.push_back(static_cast<int32_t>(first + std::countr_zero(bits)));
        first += 32;
    }
}

// Removes what `min_p` and `top_k` exclude.
void Sampler::keep(Candidates& row, const Options& options) {
    float floor = -infinity;
    if (options.min_p > 0) floor = static_cast<float>(top_ + options.temperature * std::log(options.min_p));
    if (options.top_k <= 0 || options.top_k >= row.size) {
        if (floor > -infinity) gather(row, floor, row.size);
        return;
    }
    rank(row, options.top_k);
    const float least = row.values[place_of_key(order_[options.top_k - 1])];
    if (least < floor) return gather(row, floor, row.size);
    int64_t ties = 0;
    for (int64_t i = 0; i < options.top_k; ++i) ties += row.values[place_of_key(order_[i])] == least;
    gather(row, least, ties);
}

// Keeps values above `bound`, and the first `ties` values equal to it.
void Sampler::gather(Candidates& row, float bound, int64_t ties) {
    values_.clear();
    ids_.clear();
    for_each_from(row, maxima_, bound, [&](int64_t place) {
        if (row.values[place] == bound && ties-- <= 0) return;
        values_.push_back(row.values[place]);
        ids_.push_back(static_cast<int32_t>(row.id(place)));
    });
    row = {values_.data(), ids_.data(), static_cast<int64_t>(values_.size())};
    maxima_.resize(groups(row.size));
    kernels_.maxima(row.values, row.size, maxima_.data());
}

// Sets order_ to the `count` largest, in order.
void Sampler::rank(const Candidates& row, int64_t count) {
    count = std::min(count, row.size);
    float bound = -infinity;
    if (count <= static_cast<int64_t>(maxima_.size())) {  // `count` groups reach the bound, so `count` values do
        std::vector<float> largest = maxima_;
        std::nth_element(largest.begin(), largest.begin() + (count - 1), largest.end(), std::greater<>());
        bound = largest[count - 1];
    }
    order_.clear();
    for_each_from(row, maxima_, bound, [&](int64_t place) { order_.push_back(key(row.values[place], place)); });
    std::nth_element(order_.begin(), order_.begin() + (count - 1), order_.end());
    std::sort(order_.begin(), order_.begin() + count);
    order_.resize(count);
}

// The sum of all weights; sets weights_ to those of the groups.
double Sampler::total(const Candidates& row, double factor) {
    double each[draw_group], sum = 0;
    weights_.clear();
    for (int64_t start = 0; start < row.size; start += draw_group) {
        const int64_t size = std::min<int64_t>(draw_group, row.size - start);
        weights_.push_back(kernels_.weigh(row.values + start, size, top_, factor, each));
        sum += weights_.back();
    }
    return sum;
}

// The first index, in the order of ids, at which the cumulative weight exceeds `uniform` of the total.
int64_t Sampler::place_of(const Candidates& row, double factor, double uniform) {
    const double target = uniform * total(row, factor);
    double sum = 0, each[draw_group];
    size_t group = 0;
    while (group + 1 < weights_.size() && sum + weights_[group] <= target) sum += weights_[group++];
    while (weights_[group] == 0) --group;  // rounding went past the last possible id
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

// The same over the nucleus, in the order of probability.
int64_t Sampler::place_in_nucleus(const Candidates& row, double factor, const Options& options) {
    sum_ = total(row, factor);
    rank(row, head);
    if (!accumulate(row, factor, 0, options.top_p) && row.size > head)
        return place_in_wide_nucleus(row, factor, options);
    const double target = options.uniform * reached_.back();
    const auto found = std::ranges::upper_bound(reached_, target);
    return place_of_key(order_[std::min<size_t>(found - reached_.begin(), reached_.size() - 1)]);
}

// A nucleus of more than `head` ids: finds the span it ends in, then orders only spans that matter.
int64_t Sampler::place_in_wide_nucleus(const Candidates& row, double factor, const Options& options) {
    fill_spans(row, factor);
    const auto ends = std::ranges::subrange(spans_.begin() + 1, spans_.end());
    const int64_t last = std::ranges::lower_bound(ends, std::min(options.top_p, spans_.back())) - ends.begin();
    rank_span(row, factor, last);
    accumulate(row, factor, spans_[last], options.top_p);
    const double target = options.uniform * reached_.back();
    if (target < spans_[last]) {
        const int64_t span = std::ranges::upper_bound(ends, target) - ends.begin();
        rank_span(row, factor, span);
        accumulate(row, factor, spans_[span], 2);
    }
    const auto found = std::ranges::upper_bound(reached_, target);
    return place_of_key(order_[std::min<size_t>(found - reached_.begin(), reached_.size() - 1)]);
}

// Sets spans_[i] to the probability of all spans before i, the most likely first.
void Sampler::fill_spans(const Candidates& row, double factor) {
    spans_.assign(spans + 1, 0);
    double each[draw_group];
    for (int64_t start = 0; start < row.size; start += draw_group) {
        const int64_t size = std::min<int64_t>(draw_group, row.size - start);
        kernels_.weigh(row.values + start, size, top_, factor, each);
        for (int64_t i = 0; i < size; ++i) spans_[span_at(top_, factor, row.values[start + i]) + 1] += each[i];
    }
    for (int64_t i = 0; i < spans; ++i) spans_[i + 1] = spans_[i] + spans_[i + 1] / sum_;
}

// Sets order_ to the values of one span, in order.
void Sampler::rank_span(const Candidates& row, double factor, int64_t span) {
    const double width = 1 / (factor * spans_per_unit), middle = top_ - (static_cast<double>(span) + 0.5) * width;
    const double reach = span == spans - 1 ? infinity : 1.5 * width;  // one span wider on either side, for rounding
    order_.clear();
    for (int64_t place = 0; place < row.size; ++place) {
        const float value = row.values[place];
        if (std::abs(value - middle) > reach) continue;  // one well-predicted branch
        if (span_at(top_, factor, value) == span) order_.push_back(key(value, place));
    }
    if (!std::ranges::is_sorted(order_)) std::ranges::sort(order_);
}

// Sets reached_ to the cumulative probability along order_, starting at `from`; returns whether it reaches `limit`.
bool Sampler::accumulate(const Candidates& row, double factor, double from, double limit) {
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
