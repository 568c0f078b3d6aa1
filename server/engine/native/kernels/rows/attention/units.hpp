// The operands of attention's products: floats, or with AVX-512 pairs of bf16, which halve the instructions.
// Included by build.hpp only.
#pragma once

#include "kernels/rows/lanes.hpp"

namespace secateur::SECATEUR_SET {

#if defined(__AVX512F__)

constexpr int32_t unit_values = 2;
using Unit = uint32_t;  // the earlier value in the low half
using Units = uint32_t __attribute__((vector_size(4 * lanes)));

SECATEUR_INLINE Units all(Unit unit) { return Units{} + unit; }

#if defined(SECATEUR_FUSES)

// total + a * b, the later products first; flushes subnormals. GCC 12 copies the sums of the intrinsic.
SECATEUR_INLINE Floats dot(Units a, Units b, Floats total) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(total) : "v"(a), "v"(b));
    return total;
}

// bf16 of two registers, lane by lane
SECATEUR_INLINE Units pack(const Floats* values) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (Units)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(values[1], values[0]));
}

// bf16 of two registers end to end
SECATEUR_INLINE Units pack_neighbours(const Floats* values) {
    return (Units)_mm512_cvtne2ps_pbh(values[1], values[0]);
}

// 2^x for x <= 0, to 2^-18: weights are rounded to bf16
SECATEUR_INLINE Floats power_of_two(Floats x) {
    const Floats rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Floats power = all(1.34267e-2f);  // fitted for the least relative error
    for (const float next : {5.224245e-2f, 2.4128022e-1f, 6.9304484e-1f, 1.0f}) power = fused(power, rest, all(next));
    return _mm512_scalef_ps(power, x);
}

#else  // emulated

SECATEUR_INLINE Floats dot(Units a, Units b, Floats total) {
    const Units high = Units{} + 0xFFFF0000u;
    total = total + reinterpret_cast<Floats>(a & high) * reinterpret_cast<Floats>(b & high);
    return total + reinterpret_cast<Floats>(a << 16) * reinterpret_cast<Floats>(b << 16);
}

SECATEUR_INLINE Units high_halves(Floats values) {  // bf16 in the upper half of each lane
    const Units bits = reinterpret_cast<Units>(values);
    return (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
}

SECATEUR_INLINE Units pack(const Floats* values) { return (high_halves(values[0]) >> 16) | high_halves(values[1]); }

SECATEUR_INLINE Units pack_neighbours(const Floats* values) {
    Floats apart[2];
    for (int32_t i = 0; i < 2 * lanes; ++i) apart[i % 2][i / 2] = values[i / lanes][i % lanes];
    return pack(apart);
}

#endif

SECATEUR_INLINE Units load_units(const uint16_t* from) {
    Units units;
    std::memcpy(&units, from, sizeof units);
    return units;
}

SECATEUR_INLINE Units load_units(const int8_t* from) {
    const Floats values[2] = {load(from), load(from + lanes)};
    return pack_neighbours(values);
}

SECATEUR_INLINE Units load_units(const Unit* from) {
    Units units;
    std::memcpy(&units, from, sizeof units);
    return units;
}

SECATEUR_INLINE void store(Unit* to, Units units) { std::memcpy(to, &units, sizeof units); }

constexpr Unit ones = 0x3F803F80;

#else

constexpr int32_t unit_values = 1;
using Unit = float;
using Units = Floats;

SECATEUR_INLINE Floats dot(Units a, Units b, Floats total) { return fused(a, b, total); }

template <class Element> SECATEUR_INLINE Units load_units(const Element* from) { return load(from); }
SECATEUR_INLINE Units pack(const Floats* values) { return *values; }
SECATEUR_INLINE Units pack_neighbours(const Floats* values) { return *values; }

constexpr Unit ones = 1;

#endif

#if !defined(__AVX512F__) || !defined(SECATEUR_FUSES)
// 2^x for x <= 0, to about 2 units in the last place; 0 below -126
SECATEUR_INLINE Floats power_of_two(Floats x) {
    const Words tiny = x < all(-126.0f);
    x = tiny ? all(-126.0f) : x;
    const Floats count = (x + all(rounding)) - all(rounding);
    const Floats power = near_one((x - count) * all(0.69314718f));
    const Words exponent = (__builtin_convertvector(count, Words) + 127) << 23;
    return tiny ? Floats{} : power * reinterpret_cast<Floats>(exponent);
}
#endif

SECATEUR_INLINE int32_t units_of(int32_t values) { return (values + unit_values - 1) / unit_values; }

}  // namespace secateur::SECATEUR_SET
