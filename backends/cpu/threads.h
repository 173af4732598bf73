// Threads that walk a graph together. A job is a row of phases, a phase a number of items that threads claim one by one;
// a phase is over when its items are done, whoever did them.
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
    // f(i) for every i < items, claimed in runs of `run`; returns when all are done, by whomever. What is not a claimed
    // item must not look at what phases write: for a thread that lags behind, that is already something else.
    template <class F>
    void phase(uint32_t number, int64_t items, int64_t run, F f) {
        items = std::max<int64_t>(items, 0);
        const int64_t end = std::max<int64_t>(items, 1);  // a phase without items still is a phase
        for (uint64_t now; (now = claimed_.load(std::memory_order_acquire)) >> 32 == number;) {
            const int64_t first = static_cast<int64_t>(now & UINT32_MAX), last = std::min(first + run, end);
            if (first >= end) break;
            if (!claimed_.compare_exchange_weak(now, uint64_t{number} << 32 | static_cast<uint64_t>(last),
                                                std::memory_order_acq_rel))
                continue;
            for (int64_t i = first; i < last && i < items; i++) f(i);
            if (done_.fetch_add(last - first, std::memory_order_acq_rel) + (last - first) == end) return next_phase(number);
        }
        wait_phase(number);
    }

private:
    explicit Team(int threads) : size_(threads) {}
    void work(int index);
    void next_phase(uint32_t number);
    void wait_phase(uint32_t number);

    const int size_;
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
    alignas(64) std::atomic<uint64_t> claimed_{0};  // phase << 32 | items claimed
    alignas(64) std::atomic<int64_t> done_{0};      // items of the phase; only holders of claimed items add
};

}  // namespace awq::cpu
