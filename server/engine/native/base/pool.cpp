// Rounds are announced by an atomic counter, on which idle threads spin briefly before they sleep.
#include "base/pool.hpp"

namespace secateur {
namespace {

constexpr int SPINS = 2000;  // tens of microseconds: longer than the gap between two products of a step

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Waits until `value` differs from `old`, and returns it: spins, then sleeps.
uint32_t await(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int spin = 0; spin < SPINS; ++spin) {
        uint32_t now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
}

Pool::~Pool() {
    ended_.store(true);
    round_.fetch_add(1);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int64_t parts, const std::function<void(int64_t)>& function) {
    if (workers_.empty() || parts <= 1) {
        for (int64_t part = 0; part < parts; ++part) function(part);
        return;
    }
    uint32_t round = round_.load() + 1;
    function_.store(&function);
    parts_.store(static_cast<uint32_t>(parts));
    left_.store(static_cast<uint32_t>(parts));
    ticket_.store(static_cast<uint64_t>(round) << 32 | static_cast<uint32_t>(parts));
    round_.store(round);
    round_.notify_all();
    work(round);
    for (uint32_t left = left_.load(); left; left = await(left_, left)) {
    }
}

void Pool::work(uint32_t round) {
    uint64_t ticket = ticket_.load();
    while (static_cast<uint32_t>(ticket >> 32) == round) {
        const auto free = static_cast<uint32_t>(ticket);
        if (free == 0) return;
        const std::function<void(int64_t)>* function = function_.load();
        const uint32_t parts = parts_.load();
        if (!ticket_.compare_exchange_weak(ticket, ticket - 1)) continue;
        (*function)(parts - free);
        if (left_.fetch_sub(1) == 1) left_.notify_all();
        ticket = ticket_.load();
    }
}

void Pool::serve() {
    uint32_t seen = 0;
    while (true) {
        seen = await(round_, seen);
        if (ended_.load()) return;
        work(seen);
    }
}

}  // namespace secateur
