// Threads that walk a graph together: a team that starts a job at once, barriers between its parts, items claimed one by
// one in between. A team at rest spins for a moment and then sleeps: it costs nothing while a user thinks.
#pragma once
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

    // job(argument, index) on every thread, the caller being number 0; returns when all are done. One at a time.
    void run(void (*job)(void*, int), void* argument);

    // For use within a job. All threads meet here; nothing written before is unseen behind. Then items count from 0 again.
    // With `deciding`, true as soon as any thread has called stop() before the meeting: the same answer for all.
    bool barrier(bool deciding = false);
    int64_t claim(int64_t count) { return next_.fetch_add(count, std::memory_order_relaxed); }
    void stop() { stop_.store(true, std::memory_order_relaxed); }

private:
    explicit Team(int threads) : size_(threads) {}
    void work(int index);

    const int size_;
    std::vector<std::thread> threads_;
    void (*job_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    bool quit_ = false;
    // Each on a cache line of its own: threads spin on one while others count on another.
    alignas(64) std::atomic<uint32_t> job_number_{0};
    alignas(64) std::atomic<uint32_t> meeting_{0};  // counts by 2; bit 0: stopped, at a deciding one
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<bool> stop_{false};
};

}  // namespace awq::cpu
