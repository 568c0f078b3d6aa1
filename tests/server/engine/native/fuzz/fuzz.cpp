// Random matrices of every layout through every instruction set, against sums in double precision.
// Buffers have exactly the size of the format, so that AddressSanitizer sees each read past their ends.
// usage: fuzz SECONDS SEED
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/pool.hpp"
#include "kernels/instruction_set.hpp"
#include "kernels/matrices/multiplier.hpp"
#include "random_matrix.hpp"

using namespace secateur;

namespace {

bool compare(const Case& made, const std::vector<float>& input, int64_t tokens, Pool& pool, const InstructionSet& set,
             std::vector<float>& bits) {
    const Matrix& matrix = made.matrix;
    std::vector<float> output(tokens * matrix.rows, NAN);
    Multiplier multiplier(pool, set);
    multiplier.multiply(matrix, input.data(), output.data(), tokens);
    std::vector<double> x = rounded(matrix, input, tokens);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t r = 0; r < matrix.rows; ++r) {
            double sum = 0, size = 1e-30;
            for (int64_t c = 0; c < matrix.columns; ++c) {
                double product = made.dense[r * matrix.columns + c] * x[t * matrix.columns + c];
                sum += product, size += std::fabs(product);
                if (!matrix.asymmetric()) continue;  // a code's part may cancel against its minimum's
                const float minimum = from_half(matrix.minimums[scale_place(matrix, r, c / matrix.group)]);
                size += std::fabs(minimum * x[t * matrix.columns + c]);
            }
            float got = output[t * matrix.rows + r];
            if (std::fabs(got - sum) <= 2e-5 * size) continue;
            std::printf("%s row %ld token %ld: %g instead of %g\n", set.name, long(r), long(t), got, sum);
            return false;
        }
    if (tokens > 0 && matrix.rows > 0 && pick(0, 3) == 0) {  // one token alone: the same bits
        int64_t t = pick(0, tokens - 1);
        std::vector<float> alone(matrix.rows);
        multiplier.multiply(matrix, input.data() + t * matrix.columns, alone.data(), 1);
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
    int64_t rows = pick(0, 9) ? pick(0, 40) : pick(0, 300), columns = pick(0, 9) ? pick(1, 300) : pick(1, 1200);
    int64_t tokens = pick(0, 3) ? pick(0, 9) : pick(10, 70);
    Case made = random_matrix(rows, columns, false);
    const Matrix& matrix = made.matrix;
    std::vector<float> input(tokens * columns), bits;
    for (float& value : input) value = pick(0, 30) ? normal() : 50 * normal();
    for (const InstructionSet* set : available()) {
        if (compare(made, input, tokens, pool, *set, bits)) continue;
        std::printf("kind %d rows %ld columns %ld keep %d group %d tiled %d tokens %ld threads %d\n", int(matrix.kind),
                    long(rows), long(columns), matrix.keep, matrix.group, matrix.tiled, long(tokens), pool.threads());
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
