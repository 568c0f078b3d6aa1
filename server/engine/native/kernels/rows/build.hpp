// The row kernels, compiled once for each instruction set by avx2.cpp, avx512.cpp and portable.cpp.
#include <algorithm>
#include <cmath>

#include "kernels/rows/attention/units.hpp"
#include "kernels/rows/lanes.hpp"
#include "kernels/rows/row_kernels.hpp"

namespace secateur::SECATEUR_SET {
namespace {

template <class Function>
SECATEUR_INLINE void each(float* values, const float* others, int64_t size, Function function) {
    int64_t i = 0;
    for (; i + lanes <= size; i += lanes) store(values + i, function(load(values + i), load(others + i)));
    if (i == size) return;
    float own[lanes] = {}, other[lanes] = {};
    std::copy(values + i, values + size, own);
    std::copy(others + i, others + size, other);
    store(own, function(load(own), load(other)));
    std::copy(own, own + (size - i), values + i);
}

void norm(const float* in, const float* weight, float* out, int64_t size, float epsilon) {
    Floats squares{}, more{};
    int64_t i = 0;
    for (; i + 2 * lanes <= size; i += 2 * lanes) {
        const Floats a = load(in + i), b = load(in + i + lanes);
        squares = fused(a, a, squares);
        more = fused(b, b, more);
    }
    float total = sum(squares + more);
    for (; i < size; ++i) total += in[i] * in[i];
    const float factor = 1.0f / std::sqrt(total / static_cast<float>(size) + epsilon);
    for (i = 0; i + lanes <= size; i += lanes) store(out + i, load(in + i) * factor * load(weight + i));
    for (; i < size; ++i) out[i] = in[i] * factor * weight[i];
}

void add(float* into, const float* what, int64_t size) {
    each(into, what, size, [](Floats a, Floats b) { return a + b; });
}

void scale(float* values, float factor, int64_t size) {
    each(values, values, size, [factor](Floats a, Floats) { return a * factor; });
}

void cap(float* values, float limit, int64_t size) {
    each(values, values, size, [limit](Floats a, Floats) { return limit * tangent(a / limit); });
}

void gate(float* gate, const float* up, int64_t size, bool gelu) {
    if (gelu)
        each(gate, up, size, [](Floats x, Floats y) {
            return 0.5f * x * (1.0f + tangent(0.79788456f * (x + 0.044715f * x * x * x))) * y;
        });
    else
        each(gate, up, size, [](Floats x, Floats y) { return x / (1.0f + exponential(-x)) * y; });
}

void rotate(float* head, const float* cosines, const float* sines, int32_t width) {
    const int32_t half = width / 2;
    int32_t i = 0;
    for (; i + lanes <= half; i += lanes) {
        const Floats a = load(head + i), b = load(head + half + i), c = load(cosines + i), s = load(sines + i);
        store(head + i, a * c - b * s);
        store(head + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = head[i], b = head[half + i];
        head[i] = a * cosines[i] - b * sines[i];
        head[half + i] = b * cosines[i] + a * sines[i];
    }
}

// The int8 scale of `values`: the largest magnitude becomes 127.
float step_of(const float* values, int32_t width) {
    float most = 0;
    for (int32_t i = 0; i < width; ++i) most = std::max(most, std::fabs(values[i]));
    return most / 127.0f;
}

int8_t code(float value, float step) {
    return step > 0 ? static_cast<int8_t>(std::lrint(std::clamp(value / step, -127.0f, 127.0f))) : int8_t{0};
}

// Writes one head's key and value into the layout of `Cache`.
template <class Element, class Round>
void store_values(const Cache& cache, const Place& place, const float* key, const float* value, Round round) {
    const int64_t unit = place.position / unit_values, within = place.position % unit_values;
    auto* keys = static_cast<Element*>(cache.keys) + cache.key_offset(place.block, place.head);
    auto* values = static_cast<Element*>(cache.values) + cache.value_offset(place.block, place.head);
    keys += place.position * unit_values, values += unit * padded(cache.width) * unit_values + within;
    for (int32_t i = 0; i < units_of(cache.width) * unit_values; ++i)
        keys[int64_t{i / unit_values} * block_positions * unit_values + i % unit_values] =
            i < cache.width ? round(key[i], true) : Element{0};
    for (int32_t i = 0; i < cache.width; ++i) values[int64_t{i} * unit_values] = round(value[i], false);
    if (!place.last || within + 1 == unit_values) return;
    for (int32_t i = 0; i < cache.width; ++i) values[int64_t{i} * unit_values + 1] = 0;
}

void store_row(const Cache& cache, const Place& place, const float* key, const float* value) {
    if (!cache.eight_bits) {
        store_values<uint16_t>(cache, place, key, value, [](float x, bool) { return to_bf16(x); });
        return;
    }
    const float key_step = step_of(key, cache.width), value_step = step_of(value, cache.width);
    store_values<int8_t>(cache, place, key, value,
                         [&](float x, bool of_key) { return code(x, of_key ? key_step : value_step); });
    const int64_t scale = cache.scale_offset(place.block, place.head) + place.position;
    cache.key_scales[scale] = key_step, cache.value_scales[scale] = value_step;
    if (place.last && place.position % unit_values + 1 < unit_values) cache.value_scales[scale + 1] = 0;
}

}  // namespace
}  // namespace secateur::SECATEUR_SET

#include "kernels/rows/attention/attend.hpp"
#include "kernels/rows/softmax.hpp"

namespace secateur::SECATEUR_SET {

extern const RowKernels kernels;
const RowKernels kernels{norm, add, scale, cap, gate, rotate, store_row, attend, most_queries, maxima, weigh};

}  // namespace secateur::SECATEUR_SET
