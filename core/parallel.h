// A loop over a few large pieces on several threads, for work at load time. Not for kernels: those have a pool.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace awq {

// Calls body(i) once for every i < count, from at most `threads` threads, this one among them. Where a call throws (for
// want of memory), the first exception leaves here once all threads have ended, and not every i has been called.
template <class Body>
void parallel_for(size_t count, size_t threads, const Body& body) {
    std::atomic<size_t> next = 0;
    std::atomic<bool> failed = false;
    std::exception_ptr thrown;
    auto work = [&] {
        try {
            for (size_t i; (i = next.fetch_add(1)) < count;) body(i);
        } catch (...) {
            if (!failed.exchange(true)) thrown = std::current_exception();
            next.store(count);
        }
    };
    std::vector<std::thread> helpers;
    threads = std::min({threads, count, size_t{256}});
    try {
        helpers.reserve(threads);
        while (helpers.size() + 1 < threads) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // the system gives no more threads: those there are do the work
    } catch (const std::bad_alloc&) {
        // nor memory for them
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    if (thrown) std::rethrow_exception(thrown);
}

inline size_t hardware_threads() { return std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace awq
