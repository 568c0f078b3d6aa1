// Rounds of few tiny parts in quick succession, so that late threads meet the next round: every part runs once, and no
// run hangs.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "base/pool.hpp"

int main(int count, char** arguments) {
    const double seconds = count > 1 ? std::atof(arguments[1]) : 1;
    std::mt19937_64 generator(count > 2 ? std::atoll(arguments[2]) : 0);
    alarm(static_cast<unsigned>(seconds) + 60);  // a hang ends here
    secateur::Pool pool(4);
    constexpr int64_t MOST = 9;
    std::atomic<int> done[MOST];
    const auto start = std::chrono::steady_clock::now();
    long rounds = 0;
    do {
        for (int i = 0; i < 1000; ++i, ++rounds) {
            const auto parts = static_cast<int64_t>(generator() % MOST + 1);
            for (auto& times : done) times.store(0);
            pool.run(parts, [&](int64_t part) { done[part].fetch_add(1); });
            for (int64_t part = 0; part < MOST; ++part)
                if (done[part].load() != (part < parts))
                    return std::printf("round %ld: part %ld of %ld was done %d times\n", rounds, long(part), long(parts),
                                       done[part].load()), 1;
        }
    } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
    std::printf("%ld rounds were whole\n", rounds);
}
