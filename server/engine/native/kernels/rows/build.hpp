// The row kernels, compiled once for each instruction set by avx2.cpp, avx512.cpp and portable.cpp.
#include <algorithm>
#include <cmath>

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

void store_row(const Cache& cache, int64_t block, int32_t head, int32_t place, const float* key, const float* value) {
    const int64_t keys = cache.key_offset(block, head) + place;
    const int64_t values = cache.value_offset(block, head) + int64_t{place} * padded(cache.width);
    if (!cache.eight_bits) {
        auto* to_keys = static_cast<uint16_t*>(cache.keys) + keys;
        auto* to_values = static_cast<uint16_t*>(cache.values) + values;
        for (int32_t i = 0; i < cache.width; ++i) to_keys[int64_t{i} * block_positions] = to_bf16(key[i]);
        for (int32_t i = 0; i < cache.width; ++i) to_values[i] = to_bf16(value[i]);
        return;
    }
    auto* to_keys = static_cast<int8_t*>(cache.keys) + keys;
    auto* to_values = static_cast<int8_t*>(cache.values) + values;
    const float key_step = step_of(key, cache.width), value_step = step_of(value, cache.width);
    for (int32_t i = 0; i < cache.width; ++i) to_keys[int64_t{i} * block_positions] = code(key[i], key_step);
    for (int32_t i = 0; i < cache.width; ++i) to_values[i] = code(value[i], value_step);
    cache.key_scales[cache.scale_offset(block, head) + place] = key_step;
    cache.value_scales[cache.scale_offset(block, head) + place] = value_step;
}

}  // namespace
}  // namespace secateur::SECATEUR_SET

#include "kernels/rows/attention.hpp"
#include "kernels/rows/softmax.hpp"

namespace secateur::SECATEUR_SET {

extern const RowKernels kernels;
const RowKernels kernels{norm, add, scale, cap, gate, rotate, store_row, attend, maxima, weigh};

}  // namespace secateur::SECATEUR_SET
