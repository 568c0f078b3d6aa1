// Maxima and softmax weights of a row of logits, in double precision.
// Included by build.hpp only.
#pragma once

#include <limits>

#include "kernels/rows/lanes.hpp"
#include "kernels/rows/row_kernels.hpp"

namespace secateur::SECATEUR_SET {
namespace {

constexpr int32_t wide = lanes / 2;  // doubles in a register
constexpr int32_t together = 8;      // doubles at a time, so that sums have the same order in every set
using Doubles = double __attribute__((vector_size(8 * wide)));
using Longs = int64_t __attribute__((vector_size(8 * wide)));
using Singles = float __attribute__((vector_size(4 * wide)));

SECATEUR_INLINE Doubles fused(Doubles a, Doubles b, Doubles c) {
#if !defined(SECATEUR_FUSES)
    return a * b + c;
#elif defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, c);
#else
    return _mm256_fmadd_pd(a, b, c);
#endif
}

SECATEUR_INLINE Doubles doubles(const float* from) {
    Singles values;
    std::memcpy(&values, from, sizeof values);
    return __builtin_convertvector(values, Doubles);
}

// e^x for x <= 0 to about a unit in the last place; 0 below -700.
SECATEUR_INLINE Doubles exponential(Doubles x) {
    const Longs tiny = x < Doubles{} - 700.0;
    x = tiny ? Doubles{} - 700.0 : x;
    const double shift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, held in the lowest bits
    const Doubles turns = fused(x, Doubles{} + 1.4426950408889634, Doubles{} + shift);
    const Doubles count = turns - shift;
    const Doubles rest = fused(count, Doubles{} - 1.90821492927058770002e-10,
                               fused(count, Doubles{} - 6.93147180369123816490e-01, x));
    Doubles power = Doubles{} + 1.0 / 6227020800.0;  // Taylor series to the 13th power: the rest is below 4e-18
    for (const double factorial : {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0,
                                   6.0, 2.0, 1.0, 1.0})
        power = fused(power, rest, Doubles{} + 1.0 / factorial);
    const Longs bits = reinterpret_cast<Longs>(power) + (reinterpret_cast<Longs>(turns) << 52);
    return tiny ? Doubles{} : reinterpret_cast<Doubles>(bits);
}

float largest_of(const float* values, int64_t size) {
    Floats most = all(-std::numeric_limits<float>::infinity());
    Words broken{};
    int64_t i = 0;
    for (; i + lanes <= size; i += lanes) {
        const Floats some = load(values + i);
        broken |= some != some;
        most = larger(some, most);
    }
    float result = largest(most);
    int32_t spoilt = 0;
    for (int32_t lane = 0; lane < lanes; ++lane) spoilt |= broken[lane];
    for (; i < size; ++i) {
        spoilt |= values[i] != values[i];
        result = values[i] > result ? values[i] : result;
    }
    return spoilt ? std::numeric_limits<float>::quiet_NaN() : result;
}

void maxima(const float* values, int64_t size, float* out) {
    for (int64_t start = 0; start < size; start += draw_group)
        *out++ = largest_of(values + start, size - start < draw_group ? size - start : draw_group);
}

double weigh(const float* values, int64_t size, float top, double factor, double* out) {
    const double offset = top;
    constexpr int32_t parts = together / wide;
    Doubles totals[parts] = {};
    const auto some = [&](const float* from, double* to) {
        for (int32_t part = 0; part < parts; ++part) {
            const Doubles weights = exponential((doubles(from + part * wide) - offset) * factor);
            totals[part] += weights;
            std::memcpy(to + part * wide, &weights, sizeof weights);
        }
    };
    int64_t i = 0;
    for (; i + together <= size; i += together) some(values + i, out + i);
    if (i < size) {
        float last[together];
        for (int64_t lane = 0; lane < together; ++lane)
            last[lane] = i + lane < size ? values[i + lane] : -std::numeric_limits<float>::infinity();
        some(last, out + i);
    }
    double sums[together];
    std::memcpy(sums, totals, sizeof sums);
    for (int32_t width = together / 2; width; width /= 2)
        for (int32_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    return sums[0];
}

}  // namespace
}  // namespace secateur::SECATEUR_SET
