// Unpacks the codes of several rows to bytes, run by run.
#pragma once

#include "kernels/matrices/avx2/avx2.hpp"
#include "kernels/matrices/avx2/spread.hpp"

namespace secateur::avx2 {

// Codes are signed bytes; those of 4 bits are bytes 0 .. 15, in two's complement if symmetric.
// After prepare(step), run step - LAG can be read: a wide load right after narrow stores to its bytes would stall.
template <Kind KIND, bool DENSE, int ROWS> class Unpacked {
public:
    static constexpr int64_t LAG = (KIND != Kind::int8) + !DENSE;

    Unpacked(const Matrix& weight, int64_t first, int64_t last)
        : weight_(weight), stored_(weight, first, last), runs_(weight.runs()) {}

    void prepare(int64_t step) {
        if (DENSE && KIND == Kind::int8) {
            for (int64_t i = 0; i < ROWS; ++i) place_[i] = stored_.run(i, step);
            return;
        }
        if constexpr (KIND != Kind::int8 && KIND != Kind::int4) {
            static_assert(DENSE);
            if (step == runs_) return;
            for (int64_t i = 0; i < ROWS; ++i) unpack_stream<KIND>(weight_, stored_.run(i, step), split_[step % 2][i]);
            return;
        }
        int64_t spread = KIND == Kind::int4 ? step - 1 : step;
        if (KIND == Kind::int4 && step < runs_)
            for (int64_t i = 0; i < ROWS; ++i) split_bytes(stored_.run(i, step), split_[step % 2][i]);
        if (!DENSE && spread >= 0 && spread < runs_)
            for (int64_t i = 0; i < ROWS; ++i) {
                const uint8_t* from = KIND == Kind::int4 ? split_[spread % 2][i] : stored_.run(i, spread);
                spread_bytes(from, stored_.mask(i, spread), bytes_[i] + spread % 2 * 64);
            }
    }

    const uint8_t* at(int64_t row, int64_t run) const {
        if (DENSE) return KIND == Kind::int8 ? place_[row] : split_[run % 2][row];
        return bytes_[row] + run % 2 * 64;
    }

private:
    const Matrix& weight_;
    PackedRows<ROWS> stored_;
    int64_t runs_;
    const uint8_t* place_[ROWS] = {};
    alignas(64) uint8_t split_[2][ROWS][128];          // 64 bytes, and padding for reads past them
    alignas(64) uint8_t bytes_[ROWS][128 + 64];
};

// Calls function<KIND, DENSE>() with the parameters of the matrix.
template <typename Function> void with_unpacked(const Matrix& weight, Function function) {
    if (weight.kind == Kind::int8 && weight.dense()) function.template operator()<Kind::int8, true>();
    else if (weight.kind == Kind::int8) function.template operator()<Kind::int8, false>();
    else if (weight.kind == Kind::int3) function.template operator()<Kind::int3, true>();
    else if (weight.kind == Kind::int5) function.template operator()<Kind::int5, true>();
    else if (weight.kind == Kind::int6) function.template operator()<Kind::int6, true>();
    else if (weight.dense()) function.template operator()<Kind::int4, true>();
    else function.template operator()<Kind::int4, false>();
}

}  // namespace secateur::avx2
