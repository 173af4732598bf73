// How the blocks of a product are given to CTAs, and cut along K where there are too few of them (matmul_mma.cu, matmul_mma_few.cu).
//
// Plain C++ without CUDA headers: a test goes through all divisions on machines that have no GPU.
#pragma once

#ifdef __CUDACC__
#define AWQ_HOST_DEVICE __host__ __device__
#else
#define AWQ_HOST_DEVICE
#endif

namespace awq::cuda {

// How blocks are given to workers: `waves` whole ones each (nearly all workers have the last), then the rest in equally many parts each, or (parts 0) in
// shares: of `share` steps, and of one more for the first `longer` of the `sharers`. No share is shorter than least_steps, which would not be worth
// the meeting of CTAs, unless a block is. A block has at most 9 sharers.
struct Division {
    int waves, rest, parts, sharers, share, longer;
};
constexpr int most_parts = 8;
AWQ_HOST_DEVICE inline Division divide(int blocks, int steps, int workers, int least_steps) {
    Division d = {blocks / workers, blocks % workers, 0, 0, 0, 0};
    if (d.rest * 16 >= workers * 15) d.waves++, d.rest = 0;  // nearly a wave
    if (d.rest == 0) return d;
    int parts = workers / d.rest < steps / least_steps ? workers / d.rest : steps / least_steps;
    parts = parts < most_parts ? parts : most_parts;
    if (parts >= 2 && (d.rest * parts * 7 >= workers * 6 || parts == most_parts || parts == steps / least_steps)) {
        d.parts = parts, d.sharers = d.rest * parts;
        return d;
    }
    const int most = d.rest * steps / least_steps;
    d.sharers = most < d.rest ? d.rest : most < workers ? most : workers;
    d.share = d.rest * steps / d.sharers, d.longer = d.rest * steps % d.sharers;
    return d;
}

// A worker's way through its blocks, a range of steps in each.
struct Work {
    Division d;
    int worker, workers, blocks, steps, wave = 0, at = 0, end = 0;  // at, end: in the steps of the rest
    int block = 0, first = 0, last = 0;
    AWQ_HOST_DEVICE Work(const Division& d, int worker, int workers, int blocks, int steps) : d(d), worker(worker), workers(workers), blocks(blocks), steps(steps) {
        if (worker >= d.sharers) return;
        if (d.parts > 0) {
            const int index = worker / d.parts, part = worker - index * d.parts;
            at = index * steps + part * steps / d.parts, end = index * steps + (part + 1) * steps / d.parts;
        } else {
            at = begin_of(worker), end = begin_of(worker + 1);
        }
    }
    AWQ_HOST_DEVICE int begin_of(int w) const { return w * d.share + (w < d.longer ? w : d.longer); }
    // The sharer that has this step.
    AWQ_HOST_DEVICE int worker_at(int step) const {
        const int longer = d.longer * (d.share + 1);
        return step < longer ? step / (d.share + 1) : d.longer + (step - longer) / d.share;
    }
    AWQ_HOST_DEVICE bool next() {
        while (wave < d.waves) {
            block = wave++ * workers + worker;
            if (block < blocks) {
                first = 0, last = steps;
                return true;
            }
        }
        if (at >= end) return false;
        const int index = at / steps;
        block = d.waves * workers + index;
        first = at - index * steps;
        last = first + end - at < steps ? first + end - at : steps;
        at += last - first;
        return true;
    }
    AWQ_HOST_DEVICE int local() const { return block - d.waves * workers; }  // of the rest's blocks
};

}  // namespace awq::cuda

#undef AWQ_HOST_DEVICE
