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

// A logit x temperatures below the largest is in bin 16 x; candidates reach to 60, and where rounding of the limit adds to that,
// not beyond 120.
constexpr int bin_count = 2048;
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

constexpr int threads = 256, choose_threads = 512;
constexpr int digits = 2048;          // of a key, told apart in one pass

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

__global__ void __launch_bounds__(threads) best_kernel(float* logits, int64_t stride, int cols, Best* parts, unsigned* counters, int32_t* index,
                                                       StepInputs next, Choice* choices, RowBins* all_bins) {
    let_next_begin();
    wait_for_previous();
    const int row = blockIdx.y, first = blockIdx.x * threads + threadIdx.x;
    Choice* choice = choices ? choices + row : nullptr;
    float* values = logits + row * stride;
    Best best = {-INFINITY, INT32_MAX};
    const int32_t* seen = choice ? choice->seen : nullptr;
    if (choice && choice->checked) {
        for (int c = first; c < cols; c += best_parts * threads) {
            float value = values[c];
            if (seen && seen[c] > 0) values[c] = value = penalized(*choice, value, seen[c]);
            if (isfinite(value)) take(best, value, c);
            else best = {INFINITY, -1};    // nothing is larger, and no index lower
        }
    } else {
#pragma unroll 4
        for (int c = first; c < cols; c += best_parts * threads) take(best, values[c], c);
    }
    if (choice && choice->draws) {
        RowBins& bins = all_bins[row];
        for (int b = first; b < bin_count; b += best_parts * threads) bins.count[b] = 0, bins.sum[b] = 0, bins.taken[b] = 0;
    }
    best = block_best(best);
    Best* mine = parts + row * best_parts;
    if (threadIdx.x == 0) mine[blockIdx.x] = best;
    if (!last_block(counters + row)) return;
    best = {-INFINITY, INT32_MAX};
    if (threadIdx.x < best_parts) {
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
    static __device__ u64 key(float value, int index) {
        const unsigned bits = __float_as_uint(value + 0.0f);    // -0 is 0
        return static_cast<u64>(bits >> 31 ? bits : 0x7fffffffu - bits) << 32 | static_cast<unsigned>(index);
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

// Sum over the threads before this one; the same in every run. All threads call.
template <int block_threads, class T>
__device__ T sum_before(T own) {
    __shared__ T of_warp[block_threads / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T up_to = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const T other = __shfl_up_sync(~0u, up_to, step);
        if (lane >= step) up_to += other;
    }
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
    // A sum in two halves: the upper one gets the lower one's carries, whoever adds when.
    __shared__ unsigned count[bin_count], low[bin_count], high[bin_count];
    let_next_begin();
    for (int b = threadIdx.x; b < bin_count; b += threads) count[b] = 0, low[b] = 0, high[b] = 0;
    __syncthreads();
    wait_for_previous();
    const Choice& choice = choices[blockIdx.y];
    RowBins& bins = all_bins[blockIdx.y];
    if (!draws(choice, bins)) return;
    const Scale scale = scale_of(choice, bins.best.value, cols);
    const float* values = logits + blockIdx.y * stride;
#pragma unroll 4
    for (int c = blockIdx.x * threads + threadIdx.x; c < cols; c += best_parts * threads) {
        const float value = values[c];
        if (!(value >= scale.floor)) continue;
        const int b = scale.bin(value);
        const u64 weight = scale.weight(value);
        const auto lower = static_cast<unsigned>(weight);
        const unsigned carry = atomicAdd(&low[b], lower) + lower < lower;
        atomicAdd(&count[b], 1);
        if (const unsigned upper = static_cast<unsigned>(weight >> 32) + carry) atomicAdd(&high[b], upper);
    }
    __syncthreads();
    for (int b = threadIdx.x; b < bin_count; b += threads) {
        if (count[b] == 0) continue;
        atomicAdd(&bins.count[b], count[b]);
        atomicAdd(&bins.sum[b], static_cast<u64>(high[b]) << 32 | low[b]);
    }
    if (!last_block(counters + blockIdx.y)) return;

    constexpr int each = bin_count / threads;
    unsigned own_count = 0;
    u64 own_sum = 0;
    for (int i = 0, b = threadIdx.x * each; i < each; i++, b++) own_count += __ldcg(&bins.count[b]), own_sum += __ldcg(&bins.sum[b]);
    unsigned begin = sum_before<threads>(own_count);
    u64 before = sum_before<threads>(own_sum);
    for (int i = 0, b = threadIdx.x * each; i < each; i++, b++) {
        bins.begin[b] = begin, bins.before[b] = before;
        begin += __ldcg(&bins.count[b]), before += __ldcg(&bins.sum[b]);
    }
    if (threadIdx.x == threads - 1) bins.begin[bin_count] = begin, bins.before[bin_count] = before;
    __threadfence_block();
    __syncthreads();

    // What is left once all cuts are made ends in this bin or before. The share of top-p is of what top-k leaves: so where there
    // are both, that must be known exactly, and the keys reach to its end.
    const unsigned all = bins.begin[bin_count];
    const bool cut = choice.top_k > 0 && static_cast<unsigned>(choice.top_k) < all;
    int last = first_bin(bins.begin, (cut ? static_cast<unsigned>(choice.top_k) : all) - 1);
    if (!cut && choice.top_p < 1) last = first_bin(bins.before, below_share(choice.top_p, bins.before[bin_count]));
    if (!cut && choice.min_p > 0) last = min(last, min_p_bin(choice.min_p));
    if (threadIdx.x == 0) bins.last = last;
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
    const int last = bins.last, first = blockIdx.x * threads + threadIdx.x;
    keys += static_cast<int64_t>(blockIdx.y) * cols;
    auto each_candidate = [&](auto body) {
#pragma unroll 4
        for (int c = first; c < cols; c += best_parts * threads) {
            const float value = values[c];
            if (!(value >= scale.floor)) continue;
            if (const int b = scale.bin(value); b <= last) body(b, value, c);
        }
    };
    each_candidate([&](int b, float, int) { atomicAdd(&count[b], 1); });
    __syncthreads();
    for (int b = threadIdx.x; b <= last; b += threads)
        if (count[b] > 0) count[b] = bins.begin[b] + atomicAdd(&bins.taken[b], count[b]);
    __syncthreads();
    each_candidate([&](int b, float value, int c) { keys[atomicAdd(&count[b], 1)] = Scale::key(value, c); });
}

// The first tokens in order: how many they are, the sum of their weights, the key of the last one.
struct Prefix {
    unsigned count;
    u64 sum, key;
};

// The shortest prefix of `n` keys in no order, behind `base`, whose count or sum is more than `target`. All threads call; there is one.
__device__ __noinline__ Prefix shortest_prefix(const u64* keys, unsigned n, Prefix base, bool by_count, u64 target, const Scale& scale) {
    __shared__ unsigned count[digits], low[digits], high[digits];
    __shared__ u64 few[choose_threads], weights[choose_threads], lo, hi;
    __shared__ unsigned few_count;
    __shared__ Prefix result;
    __syncthreads();    // the last call's results have been read
    if (threadIdx.x == 0) lo = ~0ull, hi = 0, few_count = 0, result = base;
    __syncthreads();
    if (n <= choose_threads) {
        if (threadIdx.x == 0) lo = 0, hi = ~0ull;
    } else {
        u64 least = ~0ull, most = 0;
        for (unsigned i = threadIdx.x; i < n; i += choose_threads) least = min(least, keys[i]), most = max(most, keys[i]);
        atomicMin(&lo, least);
        atomicMax(&hi, most);
    }
    __syncthreads();
    // The range of keys shrinks to one digit's, until few are left. Keys differ, so a range of one has one.
    for (unsigned left = n; left > choose_threads;) {
        const u64 from = lo, to = hi;
        const int shift = max(0, 53 - __clzll(static_cast<long long>(to - from)));
        for (int d = threadIdx.x; d < digits; d += choose_threads) count[d] = 0, low[d] = 0, high[d] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < n; i += choose_threads) {
            const u64 key = keys[i];
            if (key < from || key > to) continue;
            const auto d = static_cast<int>((key - from) >> shift);
            const u64 weight = scale.weight(Scale::value(key));
            const auto lower = static_cast<unsigned>(weight);
            const unsigned carry = atomicAdd(&low[d], lower) + lower < lower;
            atomicAdd(&count[d], 1);
            if (const unsigned upper = static_cast<unsigned>(weight >> 32) + carry) atomicAdd(&high[d], upper);
        }
        __syncthreads();
        constexpr int each = digits / choose_threads;
        unsigned own_count = 0;
        u64 own_sum = 0;
        auto sum_of = [&](int d) { return static_cast<u64>(high[d]) << 32 | low[d]; };
        for (int i = 0, d = threadIdx.x * each; i < each; i++, d++) own_count += count[d], own_sum += sum_of(d);
        const Prefix reached = result;
        unsigned counted = reached.count + sum_before<choose_threads>(own_count);
        u64 summed = reached.sum + sum_before<choose_threads>(own_sum);
        for (int i = 0, d = threadIdx.x * each; i < each; i++, d++) {
            const u64 now = by_count ? counted : summed, then = by_count ? counted + count[d] : summed + sum_of(d);
            if (now <= target && then > target) {
                lo = from + (static_cast<u64>(d) << shift);
                hi = min(to, lo + ((1ull << shift) - 1));
                result = {counted, summed, 0};
                few_count = count[d];
            }
            counted += count[d], summed += sum_of(d);
        }
        __syncthreads();
        left = few_count;
        __syncthreads();
        if (threadIdx.x == 0) few_count = 0;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += choose_threads)
        if (const u64 key = keys[i]; key >= lo && key <= hi) {
            const unsigned at = atomicAdd(&few_count, 1);
            few[at] = key;
            weights[at] = scale.weight(Scale::value(key));
        }
    __syncthreads();
    const Prefix reached = result;
    __syncthreads();
    if (const unsigned left = few_count; threadIdx.x < left) {
        const u64 key = few[threadIdx.x], weight = weights[threadIdx.x];
        Prefix mine = {reached.count, reached.sum, key};
        for (unsigned i = 0; i < left; i++)
            if (few[i] <= key) mine.count++, mine.sum += weights[i];
        const u64 then = by_count ? mine.count : mine.sum, now = by_count ? mine.count - 1 : mine.sum - weight;
        if (now <= target && then > target) result = mine;
    }
    __syncthreads();
    return result;
}

// splitmix64, as Sampler::uniform
__device__ double uniform(u64& state) {
    u64 z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

__global__ void __launch_bounds__(choose_threads) draw_kernel(int cols, Choice* choices, const RowBins* all_bins, const u64* keys, StepInputs next) {
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
    auto prefix = [&](bool by_count, u64 target) {
        int from = 0, to = last;    // bins to look in: all, where they hold little
        if (ready > choose_threads) from = to = by_count ? first_bin(bins.begin, target) : first_bin(bins.before, target);
        const unsigned first = bins.begin[from];
        return shortest_prefix(keys + first, bins.begin[to + 1] - first, {first, bins.before[from], 0}, by_count, target, scale);
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
        for (unsigned i = bins.begin[b] + threadIdx.x; i < bins.begin[b + 1]; i += choose_threads)
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
    return launch(context, draw_kernel, rows, choose_threads, 0, cols, choices_, bins_, keys_, next);
}

}  // namespace awq::cuda
