// The CPU backend's team of threads: every item done once, in phase order, with more threads than cores and threads asleep.
#include <doctest/doctest.h>
#include <time.h>
#include "backends/cpu/threads.h"

using namespace awq;

namespace {

void rest(long microseconds) {
    timespec time{0, microseconds * 1000};
    nanosleep(&time, nullptr);
}

constexpr int phases = 40, items = 23;

struct Job {
    cpu::Team* team;
    int pauses;                     // some items take longer than others wait awake
    int64_t values[phases][items];  // plain memory: a phase sees what the one before wrote
};

void work(void* argument, int index) {
    Job& job = *static_cast<Job*>(argument);
    uint32_t number = job.team->first_phase();
    for (int p = 0; p < phases; p++)
        job.team->phase(number++, index, p % 5 == 4 ? 0 : items, p % 3 + 1, [&](int64_t i) {
            const int before = p % 5 == 0 ? p - 2 : p - 1;  // the last phase that had items
            int64_t sum = 1;
            for (int j = 0; before >= 0 && j < items; j++) sum += job.values[before][j] % 1000;
            job.values[p][i] += sum + i;
            if (job.pauses && (p * items + i) % 97 == 0) rest(150);
        });
}

}  // namespace

TEST_CASE("cpu threads: every item of every phase is done once") {
    Job want{};
    auto alone = cpu::Team::create(1);
    REQUIRE(alone.ok());
    want.team = alone->get();
    (*alone)->run(work, &want);
    for (int threads : {2, 3, 8}) {
        auto team = cpu::Team::create(threads);
        REQUIRE(team.ok());
        for (int round = 0; round < 60; round++) {
            Job job{team->get(), round % 2, {}};
            (*team)->run(work, &job);
            bool same = true;
            for (int p = 0; p < phases; p++)
                for (int i = 0; i < items; i++) same &= job.values[p][i] == want.values[p][i];
            REQUIRE(same);
            if (round % 7 == 0) rest(1500);  // long enough for the others to fall asleep
        }
    }
}
