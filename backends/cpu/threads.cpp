#include "backends/cpu/threads.h"
#include <sched.h>
#include <cstdio>
#include <set>
#include <string>
#include <system_error>

namespace awq::cpu {

// ---- how many

static std::string first_line(const std::string& path) {
    std::string line;
    if (FILE* file = std::fopen(path.c_str(), "re")) {
        char text[256];
        if (std::fgets(text, sizeof text, file)) line = text;
        std::fclose(file);
    }
    return line;
}

int physical_cores() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    int count = 0;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::set<std::string> cores;  // a core is known by the list of its hardware threads
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            std::string siblings =
                first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
            cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
        }
        count = static_cast<int>(cores.size());
    }
    if (count == 0) count = static_cast<int>(std::thread::hardware_concurrency());
    long quota = 0, period = 0;  // "max 100000" where there is none
    if (std::sscanf(first_line("/sys/fs/cgroup/cpu.max").c_str(), "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0)
        count = std::min<int>(count, static_cast<int>((quota + period - 1) / period));
    return std::max(count, 1);
}

// ---- waiting

static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Until `word` is no longer `old`: spins for some tens of microseconds, then sleeps.
template <class T>
static T wait_change(std::atomic<T>& word, T old, int spins) {
    for (int i = 0; i < spins; i++) {
        T now = word.load(std::memory_order_acquire);
        if (now != old) return now;
        pause();
    }
    T now;
    while ((now = word.load(std::memory_order_acquire)) == old) word.wait(old, std::memory_order_acquire);
    return now;
}
static constexpr int phase_spins = 4000, job_spins = 8000;

// ---- the team

Result<std::unique_ptr<Team>> Team::create(int threads) {
    std::unique_ptr<Team> team(new Team(threads));
    for (int i = 1; i < threads; i++) {
        try {
            team->threads_.emplace_back([t = team.get(), i] { t->work(i); });
        } catch (const std::system_error& error) {
            return Status(Code::out_of_memory,
                          "cannot start thread " + std::to_string(i) + " of " + std::to_string(threads) + ": " + error.what());
        }
    }
    return team;
}

Team::~Team() {
    quit_ = true;
    job_number_.fetch_add(1);
    job_number_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::work(int index) {
    for (uint32_t seen = 0;;) {
        seen = wait_change(job_number_, seen, job_spins);
        if (quit_) return;
        // Inside first, then a look whether the job is still open; the caller closes it first and then looks who is inside.
        // One of the two sees the other.
        inside_.fetch_add(1);
        if (open_.load()) job_(argument_, index);
        if (inside_.fetch_sub(1) == 1) inside_.notify_all();
    }
}

void Team::run(void (*job)(void*, int), void* argument) {
    job_ = job;
    argument_ = argument;
    first_phase_ = phase_.load(std::memory_order_relaxed);
    for (Slice& slice : slices_) slice.claimed.store(uint64_t{first_phase_} << 32, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    if (size_ > 1) {
        open_.store(true);
        job_number_.fetch_add(1);
        job_number_.notify_all();
    }
    job(argument, 0);
    if (size_ == 1) return;
    open_.store(false);
    for (int32_t others; (others = inside_.load()) != 0;) wait_change(inside_, others, phase_spins);
}

void Team::next_phase(uint32_t number) {
    // All items are claimed, done and counted: nobody else touches this.
    done_.store(0, std::memory_order_relaxed);
    // In one order with notify_all's look for sleepers: libstdc++ 12 looks without a fence of its own, and a store that
    // only releases could still be on its way then. The sleeper would never wake.
    phase_.store(number + 1, std::memory_order_seq_cst);
    phase_.notify_all();
}

void Team::wait_phase(uint32_t number) { wait_change(phase_, number, phase_spins); }

}  // namespace awq::cpu
