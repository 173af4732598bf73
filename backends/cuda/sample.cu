#include "backends/cuda/sample.h"

namespace awq::cuda {

using u64 = unsigned long long;

struct Choice {
    int32_t* seen;    // of each token: 0, or 1 + its occurrences in the answer; null: no penalties
    u64 random;
    float temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    int top_k;
    bool draws;
    bool checked;     // logits that are not finite are an error
};

// A logit x temperatures below the largest is in bin 16 x, candidates up to 60 and what rounding of that limit adds: the last bin
// takes all that is left.
constexpr int bin_count = 1024;
struct RowBins {
    Best best;
    int last;                         // no token of a later bin can be drawn
    unsigned count[bin_count];        // candidates
    u64 sum[bin_count];               // of their weights
    unsigned begin[bin_count + 1];    // count, summed up to the bin
    u64 before[bin_count + 1];        // sum, likewise
    unsigned taken[bin_count];        // keys put in place
};

namespace {

constexpr int threads = 256, draw_threads = 512;
constexpr int few_keys = 256;         // that are put in order, each compared with all
constexpr int digit_bits = 10, digits = 1 << digit_bits;    // of a key, told apart in one pass

__device__ void take(Best& best, float value, int32_t index) {
    if (value > best.value || (value == best.value && index < best.index)) best = {value, index};
}

__device__ Best block_best(Best best) {
    __shared__ Best of_warp[threads / 32];
    auto join = [](Best& b) {
#pragma unroll
        for (int mask = 16; mask; mask >>= 1) {
            const float value = __shfl_xor_sync(~0u, b.value, mask);
            take(b, value, __shfl_xor_sync(~0u, b.index, mask));
        }
    };
    join(best);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    best = of_warp[threadIdx.x % (threads / 32)];
    join(best);
    __syncthreads();
    return best;
}

// True in the last of a row's blocks to arrive, which then sees what the others wrote. All threads call.
__device__ bool last_block(unsigned* counter) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1) == gridDim.x - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// A token is found: for who asked, for the next step, for the penalties. One thread calls.
__device__ void settle(int32_t token, int32_t* index, const StepInputs& next, Choice* choice) {
    const int row = blockIdx.y, rows = gridDim.y;
    if (index) index[row] = token;
    if (choice && choice->seen && token >= 0) choice->seen[token] = max(choice->seen[token], 1) + 1;
    if (!next.tokens) return;
    const int position = next.positions[row];
    next.chosen[position % step_slots * rows + row] = token;
    next.tokens[row] = max(token, 0);
    next.positions[row] = position + 1;
    next.rope_len[row]++;
}

// As Sampler::next, rounding included.
__device__ float penalized(const Choice& choice, float logit, int seen) {
    if (seen == 0) return logit;
    logit = logit > 0 ? __fdiv_rn(logit, choice.repeat_penalty) : __fmul_rn(logit, choice.repeat_penalty);
    if (seen == 1) return logit;
    return __fsub_rn(logit, __fadd_rn(choice.presence_penalty, __fmul_rn(choice.frequency_penalty, static_cast<float>(seen - 1))));
}

// Every `step`-th element from `first` on, and its index; some are loaded before the first one is looked at.
template <class T, class Body>
__device__ void each(const T* data, unsigned first, unsigned step, unsigned count, Body body) {
    constexpr int together = 8;
    for (unsigned at = first; at < count; at += together * step) {
        T loaded[together];
#pragma unroll
        for (int i = 0; i < together; i++)
            if (at + i * step < count) loaded[i] = data[at + i * step];
#pragma unroll
        for (int i = 0; i < together; i++)
            if (at + i * step < count) body(loaded[i], at + i * step);
    }
}
// The values of a row, shared out to its blocks.
template <class Body>
__device__ void each_value(const float* values, int cols, Body body) {
    each(values, blockIdx.x * threads + threadIdx.x, gridDim.x * threads, static_cast<unsigned>(cols), body);
}

__global__ void __launch_bounds__(threads) best_kernel(float* logits, int64_t stride, int cols, Best* parts, unsigned* counters, int32_t* index,
                                                       StepInputs next, Choice* choices, RowBins* all_bins) {
    let_next_begin();
    wait_for_previous();
    const int row = blockIdx.y;
    Choice* choice = choices ? choices + row : nullptr;
    float* values = logits + row * stride;
    Best best = {-INFINITY, INT32_MAX};
    const int32_t* seen = choice ? choice->seen : nullptr;
    const bool checked = choice && choice->checked;
    each_value(values, cols, [&](float value, unsigned c) {
        if (seen && seen[c] > 0) values[c] = value = penalized(*choice, value, seen[c]);
        if (checked && !isfinite(value)) best = {INFINITY, -1};    // nothing is larger, and no index lower
        else take(best, value, static_cast<int32_t>(c));
    });
    if (choice && choice->draws) {
        RowBins& bins = all_bins[row];
        for (int b = blockIdx.x * threads + threadIdx.x; b < bin_count; b += gridDim.x * threads) bins.count[b] = 0, bins.sum[b] = 0, bins.taken[b] = 0;
    }
    best = block_best(best);
    Best* mine = parts + row * gridDim.x;
    if (threadIdx.x == 0) mine[blockIdx.x] = best;
    if (!last_block(counters + row)) return;
    best = {-INFINITY, INT32_MAX};
    if (threadIdx.x < gridDim.x) {
        const volatile Best* part = mine + threadIdx.x;
        best = {part->value, part->index};
    }
    best = block_best(best);
    if (threadIdx.x != 0) return;
    if (best.index == INT32_MAX) best.index = -1;    // nothing but NaN
    if (choice && choice->draws) all_bins[row].best = best;
    if (!choice || !choice->draws || best.index < 0) settle(best.index, index, next, choice);
}

// How a row's logits are weighed, and put in order: larger ones first, among equals the lower index.
struct Scale {
    float best, floor;
    double rate, unit;
    __device__ double distance(float value) const { return (static_cast<double>(best) - static_cast<double>(value)) * rate; }
    __device__ int bin(float value) const { return min(static_cast<int>(distance(value) * 16), bin_count - 1); }
    __device__ u64 weight(float value) const { return max(1ull, __double2ull_rn(exp(-distance(value)) * unit)); }
    static __device__ u64 key(float value, unsigned index) {
        const unsigned bits = __float_as_uint(value + 0.0f);    // -0 is 0
        return static_cast<u64>(bits >> 31 ? bits : 0x7fffffffu - bits) << 32 | index;
    }
    static __device__ float value(u64 key) {
        const auto bits = static_cast<unsigned>(key >> 32);
        return __uint_as_float(bits >> 31 ? bits : 0x7fffffffu - bits);
    }
};
__device__ Scale scale_of(const Choice& choice, float best, int cols) {
    return {best, __fsub_rn(best, __fmul_rn(60.0f, choice.temperature)), 1 / static_cast<double>(choice.temperature),
            static_cast<double>(1ull << (30 + __clz(cols)))};
}

// Whether a block has anything to do in a row: it draws, and its logits were finite.
__device__ bool draws(const Choice& choice, const RowBins& bins) { return choice.draws && bins.best.index >= 0; }

// Sums in shared memory in two halves, as no 64-bit addition is there: the upper one gets the lower one's carries, whoever adds when.
__device__ void add(unsigned* count, unsigned* low, unsigned* high, int at, u64 weight) {
    const auto lower = static_cast<unsigned>(weight);
    const unsigned carry = atomicAdd(&low[at], lower) + lower < lower;
    atomicAdd(&count[at], 1);
    if (const unsigned upper = static_cast<unsigned>(weight >> 32) + carry) atomicAdd(&high[at], upper);
}
__device__ u64 both(unsigned low, unsigned high) { return static_cast<u64>(high) << 32 | low; }

// Sum over the threads before this one; the same in every run. All threads call.
template <int block_threads, class T>
__device__ T sum_before(T own) {
    __shared__ T of_warp[block_threads / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const T up_to = warp_sum_up_to(own);
    if (lane == 31) of_warp[warp] = up_to;
    __syncthreads();
    T before = 0;
    for (int w = 0; w < warp; w++) before += of_warp[w];
    __syncthreads();
    return before + up_to - own;
}

// The first of the bins behind which more than `target` has been summed up. All threads call; there is one.
template <class T>
__device__ int first_bin(const T* before, u64 target) {
    __shared__ int found;
    for (int b = threadIdx.x; b < bin_count; b += blockDim.x)
        if (before[b + 1] > target && before[b] <= target) found = b;
    __syncthreads();
    const int bin = found;
    __syncthreads();
    return bin;
}

// The smallest sum that holds a share of another, less one: what a sum must exceed.
__device__ u64 below_share(float share, u64 sum) {
    return static_cast<u64>(max(1.0, ceil(static_cast<double>(share) * static_cast<double>(sum)))) - 1;
}
__device__ int min_p_bin(float min_p) { return min(static_cast<int>(-log(static_cast<double>(min_p)) * 16), bin_count - 1); }

__global__ void __launch_bounds__(threads) bins_kernel(const float* logits, int64_t stride, int cols, unsigned* counters, const Choice* choices,
                                                       RowBins* all_bins) {
    __shared__ unsigned count[bin_count], low[bin_count], high[bin_count], all;
    __shared__ u64 all_sum;
    let_next_begin();
    for (int b = threadIdx.x; b < bin_count; b += threads) count[b] = 0, low[b] = 0, high[b] = 0;
    __syncthreads();
    wait_for_previous();
    const Choice& choice = choices[blockIdx.y];
    RowBins& bins = all_bins[blockIdx.y];
    if (!draws(choice, bins)) return;
    const Scale scale = scale_of(choice, bins.best.value, cols);
    each_value(logits + blockIdx.y * stride, cols, [&](float value, unsigned) {
        if (!(value >= scale.floor)) return;
        add(count, low, high, scale.bin(value), scale.weight(value));
    });
    __syncthreads();
    for (int b = threadIdx.x; b < bin_count; b += threads) {
        if (count[b] == 0) continue;
        atomicAdd(&bins.count[b], count[b]);
        atomicAdd(&bins.sum[b], both(low[b], high[b]));
    }
    if (!last_block(counters + blockIdx.y)) return;

    for (int b = threadIdx.x; b < bin_count; b += threads) {
        const u64 sum = __ldcg(&bins.sum[b]);
        count[b] = __ldcg(&bins.count[b]), low[b] = static_cast<unsigned>(sum), high[b] = static_cast<unsigned>(sum >> 32);
    }
    __syncthreads();
    constexpr int own = bin_count / threads;
    const int first = threadIdx.x * own;
    unsigned own_count = 0;
    u64 own_sum = 0;
    for (int b = first; b < first + own; b++) own_count += count[b], own_sum += both(low[b], high[b]);
    unsigned begin = sum_before<threads>(own_count);
    u64 before = sum_before<threads>(own_sum);
    if (threadIdx.x == threads - 1) {
        bins.begin[bin_count] = all = begin + own_count;
        bins.before[bin_count] = all_sum = before + own_sum;
    }
    __syncthreads();
    // What is left once all cuts are made ends in this bin or before. The share of top-p is of what top-k leaves: so where there
    // are both, that must be known exactly, and the keys reach to its end.
    const bool cut = choice.top_k > 0 && static_cast<unsigned>(choice.top_k) < all, share = !cut && choice.top_p < 1;
    const u64 target = share ? below_share(choice.top_p, all_sum) : (cut ? static_cast<unsigned>(choice.top_k) : all) - 1;
    for (int b = first; b < first + own; b++) {
        const u64 sum = both(low[b], high[b]), from = share ? before : begin, to = from + (share ? sum : count[b]);
        if (from <= target && to > target) bins.last = !cut && choice.min_p > 0 ? min(b, min_p_bin(choice.min_p)) : b;
        bins.begin[b] = begin, bins.before[b] = before;
        begin += count[b], before += sum;
    }
}

// The keys of all candidates up to the last bin, by bin.
__global__ void __launch_bounds__(threads) keys_kernel(const float* logits, int64_t stride, int cols, const Choice* choices, RowBins* all_bins, u64* keys) {
    __shared__ unsigned count[bin_count];    // then where the block's next key of the bin goes
    let_next_begin();
    for (int b = threadIdx.x; b < bin_count; b += threads) count[b] = 0;
    __syncthreads();
    wait_for_previous();
    const Choice& choice = choices[blockIdx.y];
    RowBins& bins = all_bins[blockIdx.y];
    if (!draws(choice, bins)) return;
    const Scale scale = scale_of(choice, bins.best.value, cols);
    const float* values = logits + blockIdx.y * stride;
    const int last = bins.last;
    keys += static_cast<int64_t>(blockIdx.y) * cols;
    auto each_candidate = [&](auto body) {
        each_value(values, cols, [&](float value, unsigned c) {
            if (!(value >= scale.floor)) return;
            if (const int b = scale.bin(value); b <= last) body(b, value, c);
        });
    };
    each_candidate([&](int b, float, unsigned) { atomicAdd(&count[b], 1); });
    __syncthreads();
    for (int b = threadIdx.x; b <= last; b += threads)
        if (count[b] > 0) count[b] = bins.begin[b] + atomicAdd(&bins.taken[b], count[b]);
    __syncthreads();
    each_candidate([&](int b, float value, unsigned c) { keys[atomicAdd(&count[b], 1)] = Scale::key(value, c); });
}

// The first tokens in order: how many they are, the sum of their weights, the key of the last one.
struct Prefix {
    unsigned count;
    u64 sum, key;
};

// Few keys, each with its place among them: a thread has one at most.
struct Ranked {
    Prefix upto;       // its own and all before; count 0: none
    u64 weight;        // its own
};
struct Few {
    u64 keys[few_keys], weights[few_keys];
    unsigned count;
};
// Of `n` keys those from `lo` to `hi`, few_keys at most, behind `base`. All threads call, as for the next two.
__device__ Ranked rank(const u64* keys, unsigned n, u64 lo, u64 hi, const Prefix& base, const Scale& scale) {
    __shared__ Few few;
    if (threadIdx.x == 0) few.count = 0;
    __syncthreads();
    each(keys, threadIdx.x, draw_threads, n, [&](u64 key, unsigned) {
        if (key < lo || key > hi) return;
        const unsigned at = atomicAdd(&few.count, 1);
        few.keys[at] = key;
        few.weights[at] = scale.weight(Scale::value(key));
    });
    __syncthreads();
    const unsigned count = few.count;
    Ranked mine = {};
    if (threadIdx.x < count) {
        mine = {{base.count, base.sum, few.keys[threadIdx.x]}, few.weights[threadIdx.x]};
#pragma unroll 4
        for (unsigned i = 0; i < count; i++)
            if (few.keys[i] <= mine.upto.key) mine.upto.count++, mine.upto.sum += few.weights[i];
    }
    __syncthreads();
    return mine;
}
// The shortest prefix that ends with a ranked key and whose count or sum is more than `target`; there is one.
__device__ Prefix find(const Ranked& mine, bool by_count, u64 target) {
    __shared__ Prefix found;
    const u64 upto = by_count ? mine.upto.count : mine.upto.sum, before = upto - (by_count ? 1 : mine.weight);
    if (mine.upto.count > 0 && before <= target && upto > target) found = mine.upto;
    __syncthreads();
    const Prefix result = found;
    __syncthreads();
    return result;
}
// The same among any number of keys in no order.
__device__ __noinline__ Prefix find_among(const u64* keys, unsigned n, Prefix base, bool by_count, u64 target, const Scale& scale) {
    __shared__ unsigned count[digits], low[digits], high[digits], left;
    __shared__ u64 lo, hi;
    __shared__ Prefix reached;
    if (threadIdx.x == 0) lo = ~0ull, hi = 0, reached = base;
    __syncthreads();
    u64 least = ~0ull, most = 0;
    each(keys, threadIdx.x, draw_threads, n, [&](u64 key, unsigned) { least = min(least, key), most = max(most, key); });
    atomicMin(&lo, least);
    atomicMax(&hi, most);
    __syncthreads();
    // The range of keys shrinks to one digit's, until few are left. Keys differ, so a range of one has one.
    for (unsigned remaining = n; remaining > few_keys; remaining = left) {
        const u64 from = lo, to = hi;
        const Prefix start = reached;
        const int shift = max(0, 64 - digit_bits - __clzll(static_cast<long long>(to - from)));
        for (int d = threadIdx.x; d < digits; d += draw_threads) count[d] = 0, low[d] = 0, high[d] = 0;
        __syncthreads();
        each(keys, threadIdx.x, draw_threads, n, [&](u64 key, unsigned) {
            if (key >= from && key <= to) add(count, low, high, static_cast<int>((key - from) >> shift), scale.weight(Scale::value(key)));
        });
        __syncthreads();
        constexpr int own = digits / draw_threads;
        unsigned own_count = 0;
        u64 own_sum = 0;
        for (int i = 0, d = threadIdx.x * own; i < own; i++, d++) own_count += count[d], own_sum += both(low[d], high[d]);
        unsigned counted = start.count + sum_before<draw_threads>(own_count);
        u64 summed = start.sum + sum_before<draw_threads>(own_sum);
        for (int i = 0, d = threadIdx.x * own; i < own; i++, d++) {
            const u64 sum = both(low[d], high[d]), before = by_count ? counted : summed, upto = before + (by_count ? count[d] : sum);
            if (before <= target && upto > target) {
                lo = from + (static_cast<u64>(d) << shift);
                hi = min(to, lo + ((1ull << shift) - 1));
                reached = {counted, summed, 0};
                left = count[d];
            }
            counted += count[d], summed += sum;
        }
        __syncthreads();
    }
    return find(rank(keys, n, lo, hi, reached, scale), by_count, target);
}

// splitmix64, as Sampler::uniform
__device__ double uniform(u64& state) {
    u64 z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

__global__ void __launch_bounds__(draw_threads) draw_kernel(int cols, Choice* choices, const RowBins* all_bins, const u64* keys, StepInputs next) {
    __shared__ unsigned likely;
    __shared__ u64 likely_sum, at;
    let_next_begin();
    wait_for_previous();
    Choice& choice = choices[blockIdx.y];
    const RowBins& bins = all_bins[blockIdx.y];
    if (!draws(choice, bins)) return;
    const Scale scale = scale_of(choice, bins.best.value, cols);
    keys += static_cast<int64_t>(blockIdx.y) * cols;
    const int last = bins.last;
    const unsigned ready = bins.begin[last + 1];
    const bool few = ready <= few_keys;
    Ranked mine = {};
    if (few) mine = rank(keys, ready, 0, ~0ull, {0, 0, 0}, scale);
    auto prefix = [&](bool by_count, u64 target) {
        if (few) return find(mine, by_count, target);
        const int b = by_count ? first_bin(bins.begin, target) : first_bin(bins.before, target);
        return find_among(keys + bins.begin[b], bins.count[b], {bins.begin[b], bins.before[b], 0}, by_count, target, scale);
    };

    // As Sampler::next: top-k, top-p of what that leaves, min-p, and a draw from what that leaves.
    Prefix kept = {bins.begin[bin_count], bins.before[bin_count], 0};
    if (choice.top_k > 0 && static_cast<unsigned>(choice.top_k) < kept.count) kept = prefix(true, static_cast<u64>(choice.top_k) - 1);
    if (choice.top_p < 1)
        if (const u64 target = below_share(choice.top_p, kept.sum); target < bins.before[last + 1])    // else min-p leaves less
            if (const Prefix nucleus = prefix(false, target); nucleus.count < kept.count) kept = nucleus;
    if (const int b = choice.min_p > 0 ? min_p_bin(choice.min_p) : bin_count; b <= last) {
        if (threadIdx.x == 0) likely = bins.begin[b], likely_sum = bins.before[b];
        __syncthreads();
        for (unsigned i = bins.begin[b] + threadIdx.x; i < bins.begin[b + 1]; i += draw_threads)
            if (const float value = Scale::value(keys[i]); exp(-scale.distance(value)) >= static_cast<double>(choice.min_p)) {
                atomicAdd(&likely, 1);
                atomicAdd(&likely_sum, scale.weight(value));
            }
        __syncthreads();
        if (likely < kept.count) kept = {likely, likely_sum, 0};
    }
    if (threadIdx.x == 0) at = min(static_cast<u64>(uniform(choice.random) * static_cast<double>(kept.sum)), kept.sum - 1);
    __syncthreads();
    const Prefix drawn = prefix(false, at);
    if (threadIdx.x == 0) settle(static_cast<int32_t>(drawn.key & 0xffffffffu), nullptr, next, &choice);
}

// Tokens that penalties count from the start.
struct Seen {
    int32_t token, count;
};
__global__ void seen_kernel(int32_t* seen, const Seen* tokens, int count) {
    wait_for_previous();
    const int i = blockIdx.x * threads + threadIdx.x;
    if (i < count) seen[tokens[i].token] = 1 + tokens[i].count;
}

}  // namespace

Status choose_best(Context& context, const Tensor& logits, Best* parts, int32_t* index, const StepInputs& next) {
    return launch(context, best_kernel, dim3(best_parts, static_cast<unsigned>(logits.rows)), threads, 0, static_cast<float*>(logits.data),
                  logits.stride, static_cast<int>(logits.cols), parts, context.counters, index, next, nullptr, nullptr);
}

size_t DeviceSampler::bytes(int64_t rows, int64_t vocab) {
    const auto tokens = static_cast<size_t>(rows * vocab);
    return aligned(static_cast<size_t>(rows) * sizeof(Choice)) + aligned(static_cast<size_t>(rows) * sizeof(RowBins)) +
           aligned(tokens * sizeof(u64)) + aligned(tokens * sizeof(int32_t));
}

Status DeviceSampler::reserve(int64_t rows, int64_t vocab, bool& moved) {
    return memory_.grow(bytes(rows, vocab), moved).in("memory of the sampler");
}

Status DeviceSampler::begin(Context& context, std::span<const Sampler* const> samplers, int64_t vocab, bool& moved) {
    const auto rows = static_cast<int64_t>(samplers.size());
    AWQ_TRY(reserve(rows, vocab, moved));
    size_t at = 0;
    auto piece = [&](size_t count, size_t bytes) { return memory_.data() + std::exchange(at, at + aligned(count * bytes)); };
    const size_t tokens = static_cast<size_t>(rows * vocab);
    choices_ = reinterpret_cast<Choice*>(piece(samplers.size(), sizeof(Choice)));
    bins_ = reinterpret_cast<RowBins*>(piece(samplers.size(), sizeof(RowBins)));
    keys_ = reinterpret_cast<u64*>(piece(tokens, sizeof(u64)));
    auto* seen = reinterpret_cast<int32_t*>(piece(tokens, sizeof(int32_t)));

    size_t seen_count = 0;
    for (const Sampler* sampler : samplers)
        if (sampler && sampler->penalizes()) seen_count += sampler->seen().size();
    const size_t choice_bytes = aligned(samplers.size() * sizeof(Choice));
    AWQ_TRY(host_.grow(choice_bytes + seen_count * sizeof(Seen)));
    auto* choice = reinterpret_cast<Choice*>(host_.data());
    auto* list = reinterpret_cast<Seen*>(host_.data() + choice_bytes);
    for (const Sampler* sampler : samplers) {
        *choice = {};
        if (sampler) {
            const SamplingOptions& o = sampler->options();
            *choice = {nullptr, sampler->random(), o.temperature, o.top_p, o.min_p, o.repeat_penalty, o.presence_penalty, o.frequency_penalty,
                       o.top_k, sampler->draws(), true};
        }
        if (sampler && sampler->penalizes()) {
            choice->seen = seen;
            const Seen* first = list;
            for (const auto& [token, count] : sampler->seen())
                if (token >= 0 && token < vocab) *list++ = {token, count};
            AWQ_CUDA(cudaMemsetAsync(seen, 0, static_cast<size_t>(vocab) * sizeof(int32_t), context.stream));
            context.chained = false;
            // The device reads the host's memory: it is read once, and nothing else is under way.
            if (const auto count = list - first; count > 0)
                AWQ_TRY(launch(context, seen_kernel, ceil_div(count, threads), threads, 0, seen, first, static_cast<int>(count)));
        }
        seen += vocab;
        choice++;
    }
    AWQ_CUDA(cudaMemcpyAsync(choices_, host_.data(), samplers.size() * sizeof(Choice), cudaMemcpyHostToDevice, context.stream));
    return {};
}

Status DeviceSampler::choose(Context& context, const Tensor& logits, Best* parts, const StepInputs& next) {
    const dim3 blocks(best_parts, static_cast<unsigned>(logits.rows)), rows(1, blocks.y);
    auto* values = static_cast<float*>(logits.data);
    const auto cols = static_cast<int>(logits.cols);
    AWQ_TRY(launch(context, best_kernel, blocks, threads, 0, values, logits.stride, cols, parts, context.counters, nullptr, next, choices_, bins_));
    AWQ_TRY(launch(context, bins_kernel, blocks, threads, 0, values, logits.stride, cols, context.counters, choices_, bins_));
    AWQ_TRY(launch(context, keys_kernel, blocks, threads, 0, values, logits.stride, cols, choices_, bins_, keys_));
    return launch(context, draw_kernel, rows, draw_threads, 0, cols, choices_, bins_, keys_, next);
}

}  // namespace awq::cuda
