// Threads that walk a graph together. A job is a row of phases, a phase a number of items; a phase is over when its items are
// done, whoever did them. Each thread claims items of its own slice first, one behind the other, so that it reads one stream
// of memory and shares no cache line with the others; then it helps out in theirs.
//
// Nobody ever waits for a thread that is not there: one that the system has put aside, or that wakes late, finds phases
// over that it had no part in and goes on to the next. So a busy machine costs its share of the speed and no more. A team
// at rest spins for a moment and then sleeps: it costs nothing while a user thinks.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>
#include "core/status.h"

namespace awq::cpu {

int physical_cores();  // that this process may use: affinity and cgroup quota counted

class Team {
public:
    static Result<std::unique_ptr<Team>> create(int threads);
    ~Team();
    int size() const { return size_; }

    // job(argument, index) on this thread, number 0, and on those of the others that come in time; returns when the caller's
    // is done and no other is inside. One at a time.
    void run(void (*job)(void*, int), void* argument);

    // Within a job: the number of its first phase. Each thread counts on from there by itself, through the same phases.
    uint32_t first_phase() const { return first_phase_; }
    // First of the items that are thread `index`'s own.
    int64_t slice(int index, int64_t items) const { return items * index / size_; }
    // f(i) for every i < items, claimed in runs of `run`; returns when all are done, by whomever. `index` is the thread's. What
    // is not a claimed item must not look at what phases write: for a thread that lags behind, that is already something else.
    template <class F>
    void phase(uint32_t number, int index, int64_t items, int64_t run, F f) {
        items = std::max<int64_t>(items, 0);
        const int64_t all = std::max<int64_t>(items, 1);  // a phase without items still is a phase
        int64_t mine = 0;
        for (int i = 0; i < size_; i++) {
            const int owner = index + i < size_ ? index + i : index + i - size_;
            const int64_t begin = slice(owner, all), end = slice(owner + 1, all);
            if (begin == end) continue;
            std::atomic<uint64_t>& claimed = slices_[static_cast<size_t>(owner)].claimed;
            uint64_t now = claimed.load(std::memory_order_acquire);
            for (;;) {
                // What an earlier phase left there counts nothing; of a later one this thread has come too late.
                const int32_t age = static_cast<int32_t>(number - static_cast<uint32_t>(now >> 32));
                const int64_t first = begin + (age > 0 ? 0 : static_cast<int64_t>(now & UINT32_MAX)), last = std::min(first + run, end);
                if (age < 0 || first >= end) break;
                if (!claimed.compare_exchange_weak(now, uint64_t{number} << 32 | static_cast<uint64_t>(last - begin),
                                                   std::memory_order_acq_rel))
                    continue;
                for (int64_t item = first; item < last && item < items; item++) f(item);
                mine += last - first;
                now = claimed.load(std::memory_order_acquire);
            }
        }
        if (mine > 0 && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == all) return next_phase(number);
        wait_phase(number);
    }

private:
    explicit Team(int threads) : size_(threads), slices_(static_cast<size_t>(threads)) {}
    void work(int index);
    void next_phase(uint32_t number);
    void wait_phase(uint32_t number);

    struct alignas(64) Slice {
        std::atomic<uint64_t> claimed{0};  // phase << 32 | items of the slice claimed in it
    };

    const int size_;
    std::vector<Slice> slices_;
    std::vector<std::thread> threads_;
    // Of the job; written while it is closed and nobody is inside.
    void (*job_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    uint32_t first_phase_ = 0;
    std::atomic<bool> quit_{false};
    // Each on a cache line of its own: threads spin on one while others count on another.
    alignas(64) std::atomic<uint32_t> job_number_{0};
    alignas(64) std::atomic<bool> open_{false};  // who comes now may take part
    std::atomic<int32_t> inside_{0};             // threads that take part, the caller not counted
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int64_t> done_{0};  // items of the phase; only who did some adds
};

}  // namespace awq::cpu
