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

SECATEUR_INLINE Floats all(float value) { return Floats{} + value; }

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

// e^x to about 2 units in the last place; 0 below -87, e^88 above 88.
SECATEUR_INLINE Floats exponential(Floats x) {
    const Words tiny = x < all(-87.0f);
    x = x > all(88.0f) ? all(88.0f) : x;
    x = tiny ? all(-87.0f) : x;
    const Floats shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats count = fused(x, all(1.44269504f), shift) - shift;
    const Floats rest = fused(count, all(2.12194440e-4f), fused(count, all(-0.693359375f), x));
    Floats power = all(1.9875691500e-4f);  // Cephes' polynomial
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        power = fused(power, rest, all(next));
    power = fused(power * rest, rest, rest) + 1.0f;
    const Words exponent = (__builtin_convertvector(count, Words) + 127) << 23;
    const Floats result = power * reinterpret_cast<Floats>(exponent);
    return tiny ? Floats{} : result;
}

SECATEUR_INLINE Floats tangent(Floats x) {  // tanh
    return 1.0f - 2.0f / (1.0f + exponential(2.0f * x));
}

SECATEUR_INLINE uint16_t to_bf16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace secateur::SECATEUR_SET
