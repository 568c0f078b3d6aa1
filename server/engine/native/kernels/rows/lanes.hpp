// Vectors of floats in the compiler's own vector types, so that one source serves each instruction set.
//
// Everything is inline in a namespace of the instruction set, so that builds are never mixed.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__FMA__) && !(defined(__AVX512F__) && defined(SECATEUR_EMULATE))
#include <immintrin.h>
#define SECATEUR_FUSES
#endif

#ifndef SECATEUR_SET
#error "define SECATEUR_SET, the namespace of this build"
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // about calls, and all of this is inlined

namespace secateur::SECATEUR_SET {

#if defined(__AVX512F__)
constexpr int32_t lanes = 16;
#elif defined(__AVX2__)
constexpr int32_t lanes = 8;
#else
constexpr int32_t lanes = 4;
#endif
using Floats = float __attribute__((vector_size(4 * lanes)));
using Words = int32_t __attribute__((vector_size(4 * lanes)));
using Halves = uint16_t __attribute__((vector_size(2 * lanes)));
using Bytes = int8_t __attribute__((vector_size(lanes)));

#define SECATEUR_INLINE inline __attribute__((always_inline))

// a * b + c, rounded once where the set can. Explicit, since automatic contraction differs between inlined copies, and
// a row's bits would depend on its batch.
SECATEUR_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if !defined(SECATEUR_FUSES)
    return a * b + c;
#elif defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#else
    return _mm256_fmadd_ps(a, b, c);
#endif
}

// Not Floats{} + value: the compiler may not drop that addition, which turns -0 into 0.
SECATEUR_INLINE Floats all(float value) {
    Floats values;
    for (int32_t lane = 0; lane < lanes; ++lane) values[lane] = value;
    return values;
}

SECATEUR_INLINE Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

SECATEUR_INLINE Floats load(const uint16_t* from) {  // bf16
    Halves values;
    std::memcpy(&values, from, sizeof values);
    return reinterpret_cast<Floats>(__builtin_convertvector(values, Words) << 16);
}

SECATEUR_INLINE Floats load(const int8_t* from) {
    Bytes values;
    std::memcpy(&values, from, sizeof values);
    return __builtin_convertvector(__builtin_convertvector(values, Words), Floats);
}

SECATEUR_INLINE void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// The first `count` values, at most a register of them, and zeros.
SECATEUR_INLINE Floats load_some(const float* from, int32_t count) {
    if (count >= lanes) return load(from);
    float values[lanes] = {};
    for (int32_t i = 0; i < count; ++i) values[i] = from[i];
    return load(values);
}

SECATEUR_INLINE void store_some(float* to, Floats values, int32_t count) {
    if (count >= lanes) return store(to, values);
    float some[lanes];
    store(some, values);
    for (int32_t i = 0; i < count; ++i) to[i] = some[i];
}

SECATEUR_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

SECATEUR_INLINE float sum(Floats values) {  // pairwise, in a fixed order
    float parts[lanes];
    store(parts, values);
    for (int width = lanes / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
    return parts[0];
}

SECATEUR_INLINE float largest(Floats values) {
    float parts[lanes];
    store(parts, values);
    for (int width = lanes / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) parts[i] = parts[i] > parts[i + width] ? parts[i] : parts[i + width];
    return parts[0];
}

constexpr float rounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

// e^x for |x| <= 0.35
SECATEUR_INLINE Floats near_one(Floats x) {
    Floats power = all(1.9875691500e-4f);  // Cephes' polynomial
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        power = fused(power, x, all(next));
    return fused(power * x, x, x) + 1.0f;
}

// e^x to about 2 units in the last place; 0 below -87, e^88 above 88.
SECATEUR_INLINE Floats exponential(Floats x) {
    const Words tiny = x < all(-87.0f);
    x = x > all(88.0f) ? all(88.0f) : x;
    x = tiny ? all(-87.0f) : x;
    const Floats count = fused(x, all(1.44269504f), all(rounding)) - all(rounding);
    const Floats rest = fused(count, all(2.12194440e-4f), fused(count, all(-0.693359375f), x));
    const Words exponent = (__builtin_convertvector(count, Words) + 127) << 23;
    const Floats result = near_one(rest) * reinterpret_cast<Floats>(exponent);
    return tiny ? Floats{} : result;
}

SECATEUR_INLINE Floats tangent(Floats x) {  // tanh
    return 1.0f - 2.0f / (1.0f + exponential(2.0f * x));
}

// Exchanges the off-diagonal quarters of each square of 2 * width rows.
template <int32_t width> SECATEUR_INLINE void exchange(Floats (&rows)[lanes]) {
    Words first, second;
    for (int32_t lane = 0; lane < lanes; ++lane) {
        first[lane] = lane & width ? lanes + lane - width : lane;
        second[lane] = lane & width ? lanes + lane : lane + width;
    }
    for (int32_t i = 0; i < lanes; ++i) {
        if (i & width) continue;
        const Floats above = rows[i], below = rows[i + width];
        rows[i] = __builtin_shuffle(above, below, first);
        rows[i + width] = __builtin_shuffle(above, below, second);
    }
}

// rows[i][lane] becomes rows[lane][i].
SECATEUR_INLINE void transpose(Floats (&rows)[lanes]) {
    exchange<1>(rows);
    exchange<2>(rows);
    if constexpr (lanes > 4) exchange<4>(rows);
    if constexpr (lanes > 8) exchange<8>(rows);
}

SECATEUR_INLINE uint16_t to_bf16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace secateur::SECATEUR_SET
