// A loop over a few large pieces on several threads, for work at load time. Not for kernels: those have a pool.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace awq {

// Calls body(i) once for every i < count, from at most `threads` threads, this one among them. The body must not throw.
template <class Body>
void parallel_for(size_t count, size_t threads, const Body& body) {
    std::atomic<size_t> next = 0;
    auto work = [&] {
        for (size_t i; (i = next.fetch_add(1)) < count;) body(i);
    };
    std::vector<std::thread> helpers;
    threads = std::min({threads, count, size_t{256}});
    helpers.reserve(threads);
    try {
        while (helpers.size() + 1 < threads) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // the system gives no more threads: those there are do the work
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

inline size_t hardware_threads() { return std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace awq
