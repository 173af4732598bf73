// How the mma.sync kernels' blocks are given to CTAs: every step of every block exactly once, and whoever adds up sums knows whose.
#include <doctest/doctest.h>
#include <string>
#include <vector>
#include "backends/cuda/work.h"

using awq::cuda::divide;
using awq::cuda::Division;
using awq::cuda::Work;

namespace {

// Empty where the division is right, else what is wrong with it.
std::string fault_of(int blocks, int steps, int workers, int least_steps) {
    const Division d = divide(blocks, steps, workers, least_steps);
    const int grid = d.waves > 0 ? workers : d.sharers;
    if (grid < 1 || grid > workers || d.sharers > grid) return "more workers than there are";
    std::vector<int> done(static_cast<size_t>(blocks) * static_cast<size_t>(steps)), first_sharer(static_cast<size_t>(blocks), -1),
        last_sharer(static_cast<size_t>(blocks), -1), sharers(static_cast<size_t>(blocks));
    for (int w = 0; w < grid; w++) {
        int left = 0;       // sums that this worker leaves for others: there is room for one block's
        bool owns = false;  // it waits for others' sums
        for (Work work(d, w, grid, blocks, steps); work.next();) {
            if (work.block < 0 || work.block >= blocks || work.first < 0 || work.first >= work.last || work.last > steps) return "a step that is not there";
            const auto block = static_cast<size_t>(work.block);
            for (int s = work.first; s < work.last; s++) done[block * static_cast<size_t>(steps) + static_cast<size_t>(s)]++;
            if (work.last - work.first == steps) continue;
            sharers[block]++;
            if (d.parts > 0) {
                if (w / d.parts != work.local()) return "a part of another worker's";
                left++;
            } else if (work.first == 0) {
                owns = true;
                first_sharer[block] = w, last_sharer[block] = work.worker_at((work.local() + 1) * steps - 1);
            } else {
                if (owns) return "a worker waits before it has left its own";
                if (w != first_sharer[block] + sharers[block] - 1) return "sharers out of order";
                left++;
            }
        }
        if (left > 1) return "a worker leaves two sums";
    }
    for (int times : done)
        if (times != 1) return "a step not exactly once";
    for (size_t b = 0; b < first_sharer.size(); b++) {
        if (sharers[b] > 9) return "more sharers of a block than one warp waits for";
        if (sharers[b] > 0 && (d.parts > 0 ? sharers[b] != d.parts : last_sharer[b] - first_sharer[b] + 1 != sharers[b])) return "sharers that are not known";
    }
    return "";
}

}  // namespace

TEST_CASE("cuda work: every step of every block is given out exactly once") {
    for (int workers : {1, 2, 6, 17, 46, 82, 108, 132, 264, 340})
        for (int steps : {1, 2, 3, 4, 7, 11, 16, 17, 23, 32, 112})
            for (int least_steps : {2, 4})
                for (int blocks = 1; blocks < 600; blocks += blocks < 60 ? 1 : 13) {
                    CAPTURE(workers);
                    CAPTURE(steps);
                    CAPTURE(least_steps);
                    CAPTURE(blocks);
                    REQUIRE(fault_of(blocks, steps, workers, least_steps) == "");
                }
}
