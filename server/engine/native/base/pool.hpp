// A thread pool for short parallel loops.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace secateur {

// The caller of `run` is one of the `threads`; the others sleep between runs. One `run` at a time.
//
// A run waits only for threads that hold a part, so a thread that lost its core delays it by at most one part.
class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls function(part) once for each part in 0 .. parts - 1, in any order, and returns when all have returned.
    // `function` must not throw.
    void run(int64_t parts, const std::function<void(int64_t)>& function);

private:
    void work(uint32_t round);
    void serve();

    // The round in the upper half, its untaken parts in the lower. A thread that takes a part by compare-and-exchange
    // knows that the round has not ended, so the `function_` and `parts_` that it read belong to it.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<const std::function<void(int64_t)>*> function_{nullptr};
    std::atomic<uint32_t> parts_{0};
    std::atomic<uint32_t> left_{0};   // unfinished parts of this round
    std::atomic<uint32_t> round_{0};  // workers wait for its change
    std::atomic<bool> ended_{false};
    std::vector<std::thread> workers_;
};

}  // namespace secateur
