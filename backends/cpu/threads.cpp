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
static uint32_t wait_change(std::atomic<uint32_t>& word, uint32_t old, int spins) {
    for (int i = 0; i < spins; i++) {
        uint32_t now = word.load(std::memory_order_acquire);
        if (now != old) return now;
        pause();
    }
    uint32_t now;
    while ((now = word.load(std::memory_order_acquire)) == old) word.wait(old, std::memory_order_acquire);
    return now;
}
static constexpr int barrier_spins = 4000, job_spins = 8000;

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
    job_number_.fetch_add(1, std::memory_order_release);
    job_number_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::work(int index) {
    for (uint32_t seen = 0;;) {
        seen = wait_change(job_number_, seen, job_spins);
        if (quit_) return;
        job_(argument_, index);
        barrier();
    }
}

void Team::run(void (*job)(void*, int), void* argument) {
    job_ = job;
    argument_ = argument;
    stop_.store(false, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    if (size_ > 1) {
        job_number_.fetch_add(1, std::memory_order_release);
        job_number_.notify_all();
    }
    job(argument, 0);
    barrier();
}

bool Team::barrier(bool deciding) {
    const uint32_t now = meeting_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) return wait_change(meeting_, now, barrier_spins) & 1;
    // The last one in: no one else is running.
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    const uint32_t next = (now & ~1u) + 2 + (deciding && stop_.load(std::memory_order_relaxed) ? 1 : 0);
    meeting_.store(next, std::memory_order_release);
    if (size_ > 1) meeting_.notify_all();
    return next & 1;
}

}  // namespace awq::cpu
