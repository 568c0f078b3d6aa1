// Random matrices of every layout through every instruction set, against sums in double precision.
// Buffers have exactly the size that the format gives them, so an address sanitizer sees each read past their ends.
// usage: fuzz SECONDS SEED
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "instruction_set.hpp"
#include "numbers.hpp"
#include "pool.hpp"

using namespace secateur;

namespace {

std::mt19937_64 generator;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
float normal() { return std::normal_distribution<float>()(generator); }

// A copy on the heap of just this size.
template <typename T> std::unique_ptr<T[]> exact(const std::vector<T>& from) {
    std::unique_ptr<T[]> copy(new T[from.size()]);
    std::copy(from.begin(), from.end(), copy.get());
    return copy;
}

struct Case {
    Matrix matrix;
    std::vector<double> dense;  // [rows, columns]
    std::unique_ptr<uint8_t[]> values;
    std::unique_ptr<uint64_t[]> mask, offsets;
    std::unique_ptr<uint16_t[]> scales;
};

uint64_t random_mask(int32_t keep) {
    if (keep == 0) return generator() & generator() & (pick(0, 3) ? ~uint64_t{0} : 0);
    uint64_t mask = 0;
    while (std::popcount(mask) < keep) mask |= uint64_t{1} << pick(0, 63);
    return mask;
}

class Builder {
public:
    Builder(Kind kind, int64_t rows, int64_t columns, int32_t keep, int32_t group) {
        made_.matrix = {kind, rows, columns, keep, group, nullptr, nullptr, nullptr, nullptr};
        made_.dense.assign(rows * columns, 0);
        if (kind != Kind::bf16)
            for (int64_t i = 0; i < rows * made_.matrix.groups(); ++i)
                scales_.push_back(static_cast<uint16_t>(pick(0, 0x3c00) | (pick(0, 1) << 15)));  // up to 1, both signs
    }

    Case build() {
        Matrix& matrix = made_.matrix;
        for (int64_t row = 0; row < matrix.rows; ++row) {
            offsets_.push_back(count_);
            for (int64_t run = 0; run < matrix.runs(); ++run) add_run(row, run);
            if (matrix.dense()) half_ = false;
        }
        made_.values = exact(values_), made_.mask = exact(masks_), made_.scales = exact(scales_);
        made_.offsets = exact(offsets_);
        matrix.values = made_.values.get();
        if (!matrix.dense()) matrix.mask = made_.mask.get();
        if (matrix.keep == 0) matrix.offsets = made_.offsets.get();
        if (matrix.kind != Kind::bf16) matrix.scales = made_.scales.get();
        return std::move(made_);
    }

private:
    void add_run(int64_t row, int64_t run) {
        const Matrix& matrix = made_.matrix;
        uint64_t mask = matrix.dense() ? ~uint64_t{0} : random_mask(matrix.keep);
        if (!matrix.dense()) masks_.push_back(mask), half_ = false;
        for (int64_t i = 0; i < 64; ++i) {
            int64_t column = run * 64 + i;
            if (!(mask >> i & 1) || (matrix.dense() && column >= matrix.columns)) continue;
            double value = add_value(row, column);
            if (column < matrix.columns) made_.dense[row * matrix.columns + column] = value;
        }
    }

    double add_value(int64_t row, int64_t column) {
        const Matrix& matrix = made_.matrix;
        ++count_;
        if (matrix.kind == Kind::bf16) {
            uint16_t bits = to_bf16(normal());
            values_.push_back(static_cast<uint8_t>(bits));
            values_.push_back(static_cast<uint8_t>(bits >> 8));
            return from_bf16(bits);
        }
        int64_t code = matrix.kind == Kind::int8 ? pick(-128, 127) : pick(-8, 7);
        if (matrix.kind == Kind::int4 && half_) values_.back() |= static_cast<uint8_t>((code & 15) << 4);
        else values_.push_back(static_cast<uint8_t>(matrix.kind == Kind::int8 ? code : code & 15));
        half_ = matrix.kind == Kind::int4 && !half_;
        int64_t group = std::min(column / matrix.group, matrix.groups() - 1);
        return static_cast<double>(code) * from_half(scales_[row * matrix.groups() + group]);
    }

    Case made_;
    std::vector<uint8_t> values_;
    std::vector<uint64_t> masks_, offsets_;
    std::vector<uint16_t> scales_;
    uint64_t count_ = 0;
    bool half_ = false;
};

// The input as the kernels round it, in double precision.
std::vector<double> rounded(const Matrix& matrix, const std::vector<float>& input, int64_t tokens) {
    std::vector<double> out(input.size());
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < matrix.columns; ++c) {
            size_t place = t * matrix.columns + c;
            if (matrix.kind == Kind::bf16) {
                out[place] = from_bf16(to_bf16(input[place]));
                continue;
            }
            float largest = 0;
            for (int64_t i = c / SPAN * SPAN; i < std::min(c / SPAN * SPAN + SPAN, matrix.columns); ++i)
                largest = std::max(largest, std::fabs(input[t * matrix.columns + i]));
            if (largest > 0) out[place] = std::nearbyint(input[place] * (127.0f / largest)) * (largest / 127.0f);
        }
    return out;
}

bool compare(const Case& made, const std::vector<float>& input, int64_t tokens, Pool& pool, const InstructionSet& set,
             std::vector<float>& bits) {
    const Matrix& matrix = made.matrix;
    std::vector<float> output(tokens * matrix.rows, NAN);
    multiply(matrix, input.data(), output.data(), tokens, pool, set);
    std::vector<double> x = rounded(matrix, input, tokens);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t r = 0; r < matrix.rows; ++r) {
            double sum = 0, size = 1e-30;
            for (int64_t c = 0; c < matrix.columns; ++c) {
                double product = made.dense[r * matrix.columns + c] * x[t * matrix.columns + c];
                sum += product, size += std::fabs(product);
            }
            float got = output[t * matrix.rows + r];
            if (std::fabs(got - sum) <= 2e-5 * size) continue;
            std::printf("%s row %ld token %ld: %g instead of %g\n", set.name, long(r), long(t), got, sum);
            return false;
        }
    if (tokens > 0 && matrix.rows > 0 && pick(0, 3) == 0) {  // one token alone: the same bits
        int64_t t = pick(0, tokens - 1);
        std::vector<float> alone(matrix.rows);
        multiply(matrix, input.data() + t * matrix.columns, alone.data(), 1, pool, set);
        if (std::memcmp(alone.data(), output.data() + t * matrix.rows, matrix.rows * 4)) {
            std::printf("%s: token %ld alone gives other bits than among %ld\n", set.name, long(t), long(tokens));
            return false;
        }
    }
    if (matrix.kind != Kind::bf16 && !bits.empty() && std::memcmp(bits.data(), output.data(), bits.size() * 4)) {
        std::printf("%s gives other bits than the instruction set before it\n", set.name);
        return false;
    }
    bits = output;
    return true;
}

bool once(Pool& pool) {
    auto kind = static_cast<Kind>(pick(0, 2));
    int32_t keep = pick(0, 2) == 0 ? 64 : pick(0, 2) == 0 ? (kind == Kind::int4 ? 32 : 0) : int32_t(pick(1, 64));
    int64_t rows = pick(0, 9) ? pick(0, 40) : pick(0, 300), columns = pick(0, 9) ? pick(1, 300) : pick(1, 1200);
    int32_t groups[] = {32, 64, 128, static_cast<int32_t>(columns)};
    int32_t group = groups[pick(0, 3)];
    int64_t tokens = pick(0, 3) ? pick(0, 9) : pick(10, 70);
    Case made = Builder(kind, rows, columns, keep, group).build();
    std::vector<float> input(tokens * columns), bits;
    for (float& value : input) value = pick(0, 30) ? normal() : 50 * normal();
    for (const InstructionSet* set : available()) {
        if (compare(made, input, tokens, pool, *set, bits)) continue;
        std::printf("kind %d rows %ld columns %ld keep %d group %d tokens %ld threads %d\n", int(kind), long(rows),
                    long(columns), keep, group, long(tokens), pool.threads());
        return false;
    }
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    double seconds = count > 1 ? std::atof(arguments[1]) : 1;
    generator.seed(count > 2 ? std::atoll(arguments[2]) : 0);
    Pool one(1), three(3);
    auto start = std::chrono::steady_clock::now();
    long cases = 0;
    do {
        if (!once(pick(0, 1) ? one : three)) return 1;
        ++cases;
    } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
    std::printf("%ld cases agree on", cases);
    for (const InstructionSet* set : available()) std::printf(" %s", set->name);
    std::printf("\n");
}
