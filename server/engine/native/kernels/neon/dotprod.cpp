// Products with NEON's dot product of bytes (Armv8.2), compiled with its flag.
#include "kernels/neon/codes.hpp"

namespace secateur {
namespace neon {

void bf16(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output);
void round_to_codes(const float* values, RoundedInput& input, int64_t first, int64_t last);

}  // namespace neon
namespace {

void codes(const Matrix& weight, const RoundedInput& input, int64_t first, int64_t last, float* output) {
    products(weight, input, first, last, output, [](const int8_t* a, const int8_t* b) {
        const int32x4_t sum = vdotq_s32(vdupq_n_s32(0), vld1q_s8(a), vld1q_s8(b));
        return vaddvq_s32(vdotq_s32(sum, vld1q_s8(a + 16), vld1q_s8(b + 16)));
    });
}

}  // namespace

const InstructionSet DOTPROD{"dotprod", codes, neon::bf16, neon::round_to_codes};

}  // namespace secateur
