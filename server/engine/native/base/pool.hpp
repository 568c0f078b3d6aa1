// Threads that share out the parts of one piece of work.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace secateur {

// The caller of `run` is one of the `threads`; the others sleep between pieces of work. One `run` at a time.
//
// Nobody waits for a thread that has no part: one whose core is taken by another process delays a piece of work by at
// most the part that it holds, and a late one finds that there is nothing left to do.
class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls function(part) once for each part in 0 .. parts - 1, in no order, and returns when all have returned.
    // `function` must not throw, since nobody could catch it.
    void run(int64_t parts, const std::function<void(int64_t)>& function);

private:
    void work(uint32_t round);
    void serve();

    // The round in the upper half, the parts that nobody has taken in the lower: who takes one of a round by
    // compare-and-exchange knows that the round has not ended, and so that `function_` and `parts_` are its own.
    // An ended round has none left, whatever `parts_` says of the next.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<const std::function<void(int64_t)>*> function_{nullptr};
    std::atomic<uint32_t> parts_{0};
    std::atomic<uint32_t> left_{0};   // parts of this round that have not returned
    std::atomic<uint32_t> round_{0};  // what workers wait for
    std::atomic<bool> ended_{false};
    std::vector<std::thread> workers_;
};

}  // namespace secateur
