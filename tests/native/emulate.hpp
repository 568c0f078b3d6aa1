// The AVX-512 instructions that the kernels use, in plain C++, for processors that lack them and for sanitizers.
// Written from the definitions in Intel's manual; what it cannot show is whether a compiler and a processor agree.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

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

template <typename T> I load_masked(uint64_t mask, const void* place) {
    auto from = static_cast<const uint8_t*>(place);
    return each<T, I>([&](unsigned i) {
        T value{};
        if (mask >> i & 1) std::memcpy(&value, from + i * sizeof(T), sizeof(T));
        return value;
    });
}
inline __m256i load_masked_256(uint32_t mask, const void* place) {
    uint8_t bytes[32] = {};
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) bytes[i] = static_cast<const uint8_t*>(place)[i];
    __m256i out;
    std::memcpy(&out, bytes, 32);
    return out;
}
template <typename V> V load(const void* place) {
    V out;
    std::memcpy(&out, place, 64);
    return out;
}
template <typename V> void store(void* place, V value) { std::memcpy(place, &value, 64); }

inline I set_8(char value) { return each<int8_t, I>([&](unsigned) { return static_cast<int8_t>(value); }); }
inline I set_32(int value) { return each<int32_t, I>([&](unsigned) { return value; }); }
inline I set_64(long long value) { return each<int64_t, I>([&](unsigned) { return value; }); }
inline F set_float(float value) { return each<float, F>([&](unsigned) { return value; }); }

inline I bits_xor(I a, I b) { return map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x ^ y; }); }
inline I add(I a, I b) { return map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x + y; }); }
inline I sub(I a, I b) { return map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x - y; }); }
inline F mul(F a, F b) { return map<float>(a, b, [](float x, float y) { return x * y; }); }
inline F fused(F a, F b, F c) {
    Lanes<float> x = lanes<float>(a), y = lanes<float>(b), z = lanes<float>(c);
    return each<float, F>([&](unsigned i) { return std::fma(x.of[i], y.of[i], z.of[i]); });
}
inline F to_float(I a) {
    Lanes<int32_t> x = lanes<int32_t>(a);
    return each<float, F>([&](unsigned i) { return static_cast<float>(x.of[i]); });
}
inline I ternary(I a, I b, I c, int table) {
    Lanes<uint64_t> x = lanes<uint64_t>(a), y = lanes<uint64_t>(b), z = lanes<uint64_t>(c);
    return each<uint64_t, I>([&](unsigned i) {
        uint64_t out = 0;
        for (int bit = 0; bit < 64; ++bit) {
            int row = int(x.of[i] >> bit & 1) * 4 + int(y.of[i] >> bit & 1) * 2 + int(z.of[i] >> bit & 1);
            out |= uint64_t(table >> row & 1) << bit;
        }
        return out;
    });
}
inline I widen(__m256i a) {
    uint32_t from[8];
    std::memcpy(from, &a, 32);
    return each<uint64_t, I>([&](unsigned i) { return uint64_t{from[i]}; });
}
inline I multishift(I control, I value) {
    Lanes<uint8_t> shifts = lanes<uint8_t>(control);
    Lanes<uint64_t> words = lanes<uint64_t>(value);
    return each<uint8_t, I>([&](unsigned i) {
        uint64_t word = words.of[i / 8];
        int shift = shifts.of[i] & 63;
        return static_cast<uint8_t>(shift ? word >> shift | word << (64 - shift) : word);
    });
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
template <typename T, int HIGH> I unpack(I a, I b) {  // within each 128 bits
    Lanes<T> x = lanes<T>(a), y = lanes<T>(b);
    constexpr unsigned N = 16 / sizeof(T);
    return each<T, I>([&](unsigned i) {
        unsigned from = i / N * N + i % N / 2 + HIGH * N / 2;
        return i % 2 ? y.of[from] : x.of[from];
    });
}
struct Quarter {
    uint8_t of[16];
};
inline I shuffle(I a, I b, int control) {
    Quarter x[4], y[4], out[4];
    std::memcpy(x, &a, 64), std::memcpy(y, &b, 64);
    for (int i = 0; i < 4; ++i) {
        int from = control >> (2 * i) & 3;
        out[i] = i < 2 ? x[from] : y[from];  // GCC 12 gets (i < 2 ? x : y)[from] wrong under its sanitizers
    }
    I result;
    std::memcpy(&result, out, 64);
    return result;
}
inline float total(F a) {
    Lanes<float> x = lanes<float>(a);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; ++i) x.of[i] += x.of[i + step];
    return x.of[0];
}
inline F from_half(__m256 low) {
    F out{};
    std::memcpy(&out, &low, 32);
    return out;
}
inline F insert(F a, __m256 b, int place) {
    std::memcpy(reinterpret_cast<char*>(&a) + 32 * place, &b, 32);
    return a;
}

}  // namespace emulated

#define _mm512_maskz_loadu_epi8(mask, place) emulated::load_masked<uint8_t>(mask, place)
#define _mm512_maskz_loadu_epi16(mask, place) emulated::load_masked<uint16_t>(mask, place)
#define _mm256_maskz_loadu_epi8(mask, place) emulated::load_masked_256(mask, place)
#define _mm512_loadu_si512(place) emulated::load<__m512i>(place)
#define _mm512_loadu_ps(place) emulated::load<__m512>(place)
#define _mm512_storeu_si512(place, value) emulated::store(place, value)
#define _mm512_storeu_ps(place, value) emulated::store(place, value)
#define _mm512_set1_epi8(value) emulated::set_8(value)
#define _mm512_set1_epi32(value) emulated::set_32(value)
#define _mm512_set1_epi64(value) emulated::set_64(value)
#define _mm512_set1_ps(value) emulated::set_float(value)
#define _mm512_setzero_si512() emulated::set_32(0)
#define _mm512_setzero_ps() emulated::set_float(0)
#define _mm512_xor_si512(a, b) emulated::bits_xor(a, b)
#define _mm512_add_epi32(a, b) emulated::add(a, b)
#define _mm512_sub_epi32(a, b) emulated::sub(a, b)
#define _mm512_mul_ps(a, b) emulated::mul(a, b)
#define _mm512_fmadd_ps(a, b, c) emulated::fused(a, b, c)
#define _mm512_cvtepi32_ps(a) emulated::to_float(a)
#define _mm512_ternarylogic_epi64(a, b, c, table) emulated::ternary(a, b, c, table)
#define _mm512_cvtepu32_epi64(a) emulated::widen(a)
#define _mm512_multishift_epi64_epi8(control, value) emulated::multishift(control, value)
#define _mm512_mask_expand_epi8(source, mask, value) emulated::expand<uint8_t>(source, mask, value)
#define _mm512_maskz_expand_epi16(mask, value) emulated::expand<uint16_t>(emulated::set_32(0), mask, value)
#define _mm512_dpbusd_epi32(total, a, b) emulated::dot_codes(total, a, b)
#define _mm512_dpbf16_ps(total, a, b) emulated::dot_halves(total, a, b)
#define _mm512_unpacklo_epi32(a, b) emulated::unpack<uint32_t, 0>(a, b)
#define _mm512_unpackhi_epi32(a, b) emulated::unpack<uint32_t, 1>(a, b)
#define _mm512_unpacklo_epi64(a, b) emulated::unpack<uint64_t, 0>(a, b)
#define _mm512_unpackhi_epi64(a, b) emulated::unpack<uint64_t, 1>(a, b)
#define _mm512_shuffle_i32x4(a, b, control) emulated::shuffle(a, b, control)
#define _mm512_reduce_add_ps(a) emulated::total(a)
#define _mm512_castps256_ps512(a) emulated::from_half(a)
#define _mm512_insertf32x8(a, b, place) emulated::insert(a, b, place)
