// Products with NEON, which every 64-bit Arm processor has.
#include "kernels/neon/codes.hpp"
#include "kernels/matrices/rounding.hpp"

namespace secateur {
namespace {

int32_t dot(const int8_t* a, const int8_t* b) {  // products fit 16 bits, and pairs of them are added in 32
    int32x4_t sum = vdupq_n_s32(0);
    for (int64_t i = 0; i < SPAN; i += 16) {
        const int8x16_t x = vld1q_s8(a + i), y = vld1q_s8(b + i);
        sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
        sum = vpadalq_s16(sum, vmull_high_s8(x, y));
    }
    return vaddvq_s32(sum);
}

void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    products(weight, input, first, last, output, [](const int8_t* a, const int8_t* b) { return dot(a, b); });
}

inline float32x4_t from_bf16(uint16x4_t bits) { return vreinterpretq_f32_u32(vshll_n_u16(bits, 16)); }

}  // namespace

namespace neon {

void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    thread_local Buffer<uint16_t> bits;
    const int64_t padded = input.runs * RUN;
    uint16_t* row = bits.grow(padded);
    for (int64_t index = first; index < last; ++index) {
        std::fill_n(row, padded, uint16_t{0});
        for_each_value(weight, index, [&](int64_t column, int32_t value) { row[column] = static_cast<uint16_t>(value); });
        for (int64_t token = 0; token < input.tokens; ++token) {
            const uint16_t* x = input.bf16.get() + token * padded;
            float32x4_t low = vdupq_n_f32(0), high = vdupq_n_f32(0);
            for (int64_t i = 0; i < padded; i += 8) {
                const uint16x8_t a = vld1q_u16(row + i), b = vld1q_u16(x + i);
                low = vfmaq_f32(low, from_bf16(vget_low_u16(a)), from_bf16(vget_low_u16(b)));
                high = vfmaq_f32(high, from_bf16(vget_high_u16(a)), from_bf16(vget_high_u16(b)));
            }
            output[token * weight.rows + index] = vaddvq_f32(vaddq_f32(low, high));
        }
    }
}

void round_to_codes(const float* values, RoundedInput& input, int64_t first, int64_t last) {
    secateur::round_to_codes(values, input, first, last);
}

}  // namespace neon

const InstructionSet NEON{"neon", codes, neon::bf16, neon::round_to_codes};

}  // namespace secateur
