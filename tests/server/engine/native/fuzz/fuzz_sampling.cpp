// Random rows of logits through the sampler: every instruction set draws the same allowed id.
// Rows, masks and changes have no spare memory, so that AddressSanitizer sees each read past their ends.
// usage: fuzz_sampling SECONDS SEED
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>

#include "sampling/sampling.hpp"

namespace secateur {
namespace rows_portable { extern const RowKernels kernels; }
namespace rows_avx2 { extern const RowKernels kernels; }
}  // namespace secateur

using namespace secateur;

namespace {

const std::pair<const char*, const RowKernels*> sets[] = {{"portable", &rows_portable::kernels},
                                                          {"avx2", &rows_avx2::kernels}};

std::mt19937_64 generator;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
double part() { return std::uniform_real_distribution<double>()(generator); }
template <class Value> Value one_of(std::initializer_list<Value> values) {
    return values.begin()[pick(0, static_cast<int64_t>(values.size()) - 1)];
}

std::vector<float> random_row(int64_t size) {
    std::vector<float> row(size);
    const float spread = one_of({0.0f, 0.1f, 3.0f, 50.0f}), step = one_of({0.0f, 0.5f});
    for (float& value : row) {
        value = spread * std::normal_distribution<float>()(generator);
        if (step > 0) value = step * std::round(value / step);
        if (pick(0, 30) == 0) value = -std::numeric_limits<float>::infinity();
    }
    if (pick(0, 20) == 0) row[pick(0, size - 1)] = one_of({std::nanf(""), std::numeric_limits<float>::infinity()});
    row.shrink_to_fit();
    return row;
}

bool once() {
    const int64_t size = pick(0, 3) ? pick(1, 400) : pick(1, 6000);
    const std::vector<float> row = random_row(size);
    std::vector<int64_t> ids, repeated;
    std::vector<uint32_t> mask;
    std::vector<float> values;
    if (pick(0, 1)) {
        mask.resize((size + 31) / 32 + pick(0, 1), pick(0, 3) ? 0 : ~uint32_t{0});
        for (int64_t id = pick(0, size - 1); id < size; id += pick(1, 9)) mask[id / 32] |= uint32_t{1} << id % 32;
    }
    for (int64_t count = pick(0, 1) ? pick(1, 9) : 0; count; --count) {
        ids.push_back(pick(0, size - 1));
        values.push_back(static_cast<float>(20 * part() - 10));
    }
    if (pick(0, 1))
        for (int64_t id = pick(0, size - 1); id < size; id += pick(1, 99)) repeated.push_back(id);
    const float penalty = one_of({0.5f, 1.3f});
    mask.shrink_to_fit(), repeated.shrink_to_fit(), ids.shrink_to_fit(), values.shrink_to_fit();
    const Options options{one_of({0.0, 1e-320, 1e-9, 0.7, 1.0, 2.0, 1e9}), one_of({1e-12, 0.4, 0.9, 1 - 1e-16, 1.0}),
                    one_of({0.0, 0.0, 1e-9, 0.3, 1.0}), one_of({0.0, part(), 1 - 1e-16}),
                    one_of<int64_t>({0, 0, 1, 7, 300, size, size + 1})};
    int64_t before = -2;
    for (const auto& [name, kernels] : sets) {
        Sampler sampler(*kernels);
        const int64_t id = sampler.draw(row, options, {repeated, penalty, ids, values}, mask), count = pick(0, 25);
        const bool exists = id >= 0 && id < size && (mask.empty() || mask[id / 32] >> id % 32 & 1);
        const Logprobs logprobs = sampler.logprobs(row, pick(0, size - 1), count);
        const size_t reported = id == -1 ? 0 : 1 + std::min(count, size);
        if ((exists || id == -1) && (before == -2 || id == before) && logprobs.values.size() == reported) before = id;
        else return std::printf("%s: id %ld, before %ld, %zu logprobs\n", name, id, before, logprobs.values.size()) < 0;
    }
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    const double seconds = count > 1 ? std::atof(arguments[1]) : 1;
    const long seed = count > 2 ? std::atol(arguments[2]) : 0;
    const auto start = std::chrono::steady_clock::now();
    long cases = 0;
    do {
        generator.seed(static_cast<uint64_t>(seed + cases));
        if (!once()) return std::printf("seed %ld\n", seed + cases), 1;
        ++cases;
    } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
    std::printf("%ld rows agree\n", cases);
}
