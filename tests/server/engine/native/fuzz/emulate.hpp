// The AVX-512 instructions of the kernels in plain C++, for processors that lack them and for sanitizers.
// Written from Intel's manual; it cannot show whether compiler and processor agree.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/half_precision.hpp"

namespace emulated {

template <typename T> struct Lanes {
    T of[64 / sizeof(T)];
};
template <typename T, typename V> Lanes<T> lanes(V value) {
    static_assert(sizeof(V) == 64);
    Lanes<T> out;
    std::memcpy(&out, &value, 64);
    return out;
}
template <typename V, typename T> V join(const Lanes<T>& in) {
    V out;
    std::memcpy(&out, &in, 64);
    return out;
}
using I = __m512i;
using F = __m512;

template <typename T, typename V, typename Function> V each(Function function) {
    Lanes<T> out;
    for (unsigned i = 0; i < 64 / sizeof(T); ++i) out.of[i] = function(i);
    return join<V>(out);
}
template <typename T, typename V, typename Function> V map(V a, V b, Function function) {
    Lanes<T> x = lanes<T>(a), y = lanes<T>(b);
    return each<T, V>([&](unsigned i) { return function(x.of[i], y.of[i]); });
}

template <typename V> V load(const void* place) {
    V out;
    std::memcpy(&out, place, 64);
    return out;
}
template <typename V> void store(void* place, V value) { std::memcpy(place, &value, 64); }

inline I set_8(char value) { return each<int8_t, I>([&](unsigned) { return static_cast<int8_t>(value); }); }
inline I set_32(int value) { return each<int32_t, I>([&](unsigned) { return value; }); }
inline F set_float(float value) { return each<float, F>([&](unsigned) { return value; }); }

inline I bits_and(I a, I b) { return map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x & y; }); }
inline I shift_right(I a, int count) {
    Lanes<uint16_t> x = lanes<uint16_t>(a);
    return each<uint16_t, I>([&](unsigned i) { return static_cast<uint16_t>(x.of[i] >> count); });
}
template <int LOGIC> void static_assert_select() { static_assert(LOGIC == 0xca); }
inline I select_bits(I a, I b, I c) {  // bits of b where a has ones, else of c
    Lanes<uint64_t> x = lanes<uint64_t>(a), y = lanes<uint64_t>(b), z = lanes<uint64_t>(c);
    return each<uint64_t, I>([&](unsigned i) { return (x.of[i] & y.of[i]) | (~x.of[i] & z.of[i]); });
}
inline I look_up(I index, I table) {
    return map<uint8_t>(index, index, [from = lanes<uint8_t>(table)](uint8_t i, uint8_t) { return from.of[i & 63]; });
}
inline F add(F a, F b) { return map<float>(a, b, [](float x, float y) { return x + y; }); }
inline F mul(F a, F b) { return map<float>(a, b, [](float x, float y) { return x * y; }); }
inline F fused(F a, F b, F c) {
    Lanes<float> x = lanes<float>(a), y = lanes<float>(b), z = lanes<float>(c);
    return each<float, F>([&](unsigned i) { return std::fma(x.of[i], y.of[i], z.of[i]); });
}
inline F to_float(I a) {
    Lanes<int32_t> x = lanes<int32_t>(a);
    return each<float, F>([&](unsigned i) { return static_cast<float>(x.of[i]); });
}
template <typename T> I expand(I source, uint64_t mask, I value) {
    Lanes<T> from = lanes<T>(value), other = lanes<T>(source);
    unsigned place = 0;
    return each<T, I>([&](unsigned i) { return mask >> i & 1 ? from.of[place++] : other.of[i]; });
}
inline I dot_codes(I total, I a, I b) {  // a unsigned, b signed
    Lanes<int32_t> sums = lanes<int32_t>(total);
    Lanes<uint8_t> x = lanes<uint8_t>(a);
    Lanes<int8_t> y = lanes<int8_t>(b);
    return each<int32_t, I>([&](unsigned i) {
        int32_t sum = sums.of[i];
        for (unsigned j = 4 * i; j < 4 * i + 4; ++j) sum += int32_t{x.of[j]} * y.of[j];
        return sum;
    });
}
inline float half(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}
template <typename H> F dot_halves(F total, H a, H b) {
    Lanes<float> sums = lanes<float>(total);
    Lanes<uint16_t> x = lanes<uint16_t>(a), y = lanes<uint16_t>(b);
    return each<float, F>([&](unsigned i) {
        float sum = std::fma(half(x.of[2 * i + 1]), half(y.of[2 * i + 1]), sums.of[i]);
        return std::fma(half(x.of[2 * i]), half(y.of[2 * i]), sum);
    });
}
inline F from_halves(__m256i a) {
    uint16_t from[16];
    std::memcpy(from, &a, 32);
    return each<float, F>([&](unsigned i) { return secateur::from_half(from[i]); });
}

}  // namespace emulated

#define _mm512_loadu_si512(place) emulated::load<__m512i>(place)
#define _mm512_storeu_si512(place, value) emulated::store(place, value)
#define _mm512_storeu_ps(place, value) emulated::store(place, value)
#define _mm512_set1_epi8(value) emulated::set_8(value)
#define _mm512_set1_epi32(value) emulated::set_32(value)
#define _mm512_set1_ps(value) emulated::set_float(value)
#define _mm512_setzero_ps() emulated::set_float(0)
#define _mm512_mul_ps(a, b) emulated::mul(a, b)
#define _mm512_fmadd_ps(a, b, c) emulated::fused(a, b, c)
#define _mm512_cvtepi32_ps(a) emulated::to_float(a)
#define _mm512_mask_expand_epi8(source, mask, value) emulated::expand<uint8_t>(source, mask, value)
#define _mm512_maskz_expand_epi16(mask, value) emulated::expand<uint16_t>(emulated::set_32(0), mask, value)
#define _mm512_dpbusd_epi32(total, a, b) emulated::dot_codes(total, a, b)
#define _mm512_dpbf16_ps(total, a, b) emulated::dot_halves(total, a, b)
#define _mm512_add_ps(a, b) emulated::add(a, b)
#define _mm512_permutexvar_epi8(index, table) emulated::look_up(index, table)
#undef _mm512_ternarylogic_epi32  // a macro without optimisation
#define _mm512_ternarylogic_epi32(a, b, c, logic) (emulated::static_assert_select<logic>(), emulated::select_bits(a, b, c))
#define _mm512_and_si512(a, b) emulated::bits_and(a, b)
#define _mm512_cvtph_ps(a) emulated::from_halves(a)
#define _mm512_srli_epi16(a, count) emulated::shift_right(a, count)
