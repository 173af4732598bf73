// Attention of a few rows (one token's query heads of a kv head) over the paged cache: bound by reading the cache, and by
// latency where the cache is short. Of single tokens it also does what comes before, if asked to: rotary embedding, and
// putting the new keys and values in the cache.
//
// A warp takes 32 keys at a time and reads them straight into tensor core operands: scores are K Q^T, outputs V^T P^T, with
// keys and columns in the place of an mma's 16 rows and the tile's 8 rows as its columns. The keys of a tile are spread over
// the block's warps and over `splits` blocks; each warp keeps its own running softmax, joined at the end.
//
// Between two matrix products what counts is the time from the end of the one before. All that does not depend on it comes
// first: the cache of earlier runs is on its way to registers and to the second-level cache by then.
#include <algorithm>
#include "backends/cuda/attention_decode.cuh"
#include "backends/cuda/bulk_copy.cuh"

namespace awq::cuda {
namespace {

constexpr int step_keys = 32;
// Warps that share a block's keys: few where there is little to share, since staging and joining take them all.
constexpr int few_warps = 4, many_warps = 8, few_warps_keys = 1024;

// Shared memory of a block, from its beginning; behind it the warps' sums, [warps][rows of the tile][width + 4] (the padding
// spreads a warp's writes over the banks).
template <int blocks, int warps>
struct Shared {
    static constexpr int sums_pitch = blocks * 32 + 4;
    float2 state[warps][decode_tile];  // maximum, sum of exponentials
    float newest[decode_tile];         // exponentials of the token's own key
    Staged<blocks> staged;
};

// Keys and values of a page for each lane, half of the lanes the one, half the other: to the second-level cache.
__device__ __forceinline__ void prefetch_pages(const AttentionCall& call, const Tile& tile, int first_key, int end_key) {
    const int lane = threadIdx.x % 32, key = (first_key / page_size + lane / 2) * page_size;
    if (lane >= 16 || key >= end_key) return;
    const int64_t page = call.cache.page_of(tile.sequence, key);
    const __half* from = lane % 2 ? call.cache.values(page, tile.kv_head) : call.cache.keys(page, tile.kv_head);
    bulk_prefetch(from, page_size * call.cache.head_dim * 2);
}

// blocks: 32-column blocks of a head. fast: no soft cap, no bias, and heads of exactly that many columns. append: rope_append's
// work too. Block (split, kv_head and row tile, sequence). Registers for 16 warps a multiprocessor.
template <int blocks, int warps, bool fast, bool append>
__global__ void __launch_bounds__(warps * 32, (blocks <= 4 ? 16 : 8) / warps) decode_kernel(const __grid_constant__ AttentionCall call) {
    using Shared = cuda::Shared<blocks, warps>;
    constexpr int width = blocks * 32, threads = warps * 32, pitch = Shared::sums_pitch;
    constexpr bool early = blocks <= 4;  // registers hold a step's keys or values: their loads come long before their use
    extern __shared__ __align__(16) char dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    float* sums = reinterpret_cast<float*>(dynamic + sizeof(Shared));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int dim = fast ? width : call.cache.head_dim;

    let_next_begin();
    Tile tile;
    bool work = find_tile<append>(call, blockIdx.z, blockIdx.y / call.row_tiles, blockIdx.y % call.row_tiles, decode_tile, tile);
    int low = 0, high = 0, first = 0, last = 0, used = 1, end = 0;
    if (work) {
        position_range(call, tile, low, high);
        const int begin = call.window > 0 ? max(0, low - call.window + 1) / step_keys : 0;
        end = high / step_keys + 1;
        const int share = max(many_warps, (end - begin + call.most_splits - 1) / call.most_splits);  // a step for each warp at least
        used = (end - begin + share - 1) / share;
        first = begin + blockIdx.x * share;
        last = min(first + share, end);
        work = first < last;
    }
    if (!work) {
        wait_for_previous();
        return;
    }

    // Score tile u: its row g is key 8 (g / 2) + 2 u + g % 2 of the step, so that once transposed a lane's probabilities belong
    // to 8 neighbouring keys 8 t .. 8 t + 7, the ones in its 16 bytes of each value row. Columns beyond the head meet zeros
    // of Q, rows of values beyond it are dropped: there any address will do that holds numbers.
    const int lane_key = 8 * (g / 2) + g % 2;
    uint4 k_bits[early ? blocks : 1][4], v_bits[early ? blocks * 4 : 1];
    auto key_column = [&](int i) {
        const int column = i * 32 + 8 * t;
        return fast || column < dim ? column : 0;
    };
    // k and v: where the lane's part of a step begins.
    auto key_bits = [&](const __half* k, int i, int u) {
        return __ldcg(reinterpret_cast<const uint4*>(k + 2 * u * dim + (fast ? i * 32 : key_column(i) - 8 * t)));
    };
    auto value_bits = [&](const __half* v, int j) {
        return __ldcg(reinterpret_cast<const uint4*>(v + (fast ? 8 * j : min(8 * j, dim - 1 - g)) * page_size));
    };
    // The head's keys in a step's page; its values lie `to_values` further.
    auto page_of = [&](int key) { return call.cache.keys(call.cache.page_of(tile.sequence, key), tile.kv_head); };
    const int64_t to_values = static_cast<int64_t>(call.cache.kv_heads) * page_size * dim;
    auto keys_of = [&](const __half* page, int step) {
        return page + (step * step_keys % page_size + lane_key) * dim + 8 * t;
    };
    auto load_keys = [&](const __half* page, int step) {
        const __half* k = keys_of(page, step);
#pragma unroll
        for (int i = 0; i < (early ? blocks : 0); i++)
#pragma unroll
            for (int u = 0; u < 4; u++) k_bits[i][u] = key_bits(k, i, u);
    };

    // What earlier runs left in the cache may be read while the previous kernel still works. This run's keys may not, unless it
    // is this block that puts them there.
    // How many warps share them depends on the sequence's own length, not on the kernel that the longest one calls for.
    const int sharing = warps == few_warps || high < few_warps_keys ? few_warps : warps;
    int step = first + warp;
    const bool busy = warp < sharing && step < last, settled = append || (step + 1) * step_keys <= call.cache.positions[tile.first_token];
    const __half* page = busy ? page_of(step * step_keys) : nullptr;
    if (early && busy && settled) load_keys(page, step);
    if (call.prefetch && warp == warps - 1) prefetch_pages(call, tile, first * step_keys, min(last * step_keys, high + 1));
    const int newest = append && last == end ? high : -1;
    int position[2];
    float slope[2] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int row = min(2 * t + e, tile.rows - 1);
        position[e] = append ? high : tile.position(call, row);
        if (!fast && call.alibi) slope[e] = call.alibi[tile.head(call, row)];
    }
    const bool puts = newest >= 0 && warp == warps - 1 && tile.first_row == 0;  // once for the tiles that share the keys
    __half* newest_page = puts ? page_of(newest) : nullptr;
    stage_rows<blocks, warps, fast, append>(call, tile, newest >= 0, shared.staged);
    __syncthreads();
    if (puts) put_newest<blocks, fast>(call, tile, newest, newest_page, shared.staged);
    if (early && busy && !settled) load_keys(page, step);

    const auto reach = static_cast<unsigned>(call.window > 0 ? call.window : INT32_MAX);
    while (busy) {
        const int key = step * step_keys + lane_key;  // of score tile 0; tile u's is 2 u further
        float score[2][2][4] = {};                    // two sums each, for a shorter chain of products
        const __half *k = keys_of(page, step), *v = page + to_values + step * step_keys % page_size + g * page_size + 8 * t;
#pragma unroll
        for (int i = 0; i < blocks; i++) {
            const uint4 q = *reinterpret_cast<const uint4*>(&shared.staged.q[g][i * 32 + 8 * t]);
#pragma unroll
            for (int u = 0; u < 4; u++) {
                uint4& bits = k_bits[early ? i : 0][u];
                if constexpr (!early) bits = key_bits(k, i, u);
                if (append && key + 2 * u == newest) bits = *reinterpret_cast<const uint4*>(&shared.staged.q[tile.rows][key_column(i)]);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const uint4 a = k_bits[early ? i : 0][2 * m], b = k_bits[early ? i : 0][2 * m + 1];
                mma_f16(score[m][0], a.x, b.x, a.y, b.y, q.x, q.y);
                mma_f16(score[m][1], a.z, b.z, a.w, b.w, q.z, q.w);
            }
        }
        if constexpr (early)
#pragma unroll
            for (int j = 0; j < blocks * 4; j++) v_bits[j] = value_bits(v, j);

        float highest[2] = {top[0], top[1]}, keep[2], p[4][2];
#pragma unroll
        for (int u = 0; u < 4; u++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int at = u % 2 * 2 + e;
                const float x = finish_score<fast>(call, score[u / 2][0][at] + score[u / 2][1][at], slope[e], key + 2 * u, position[e]);
                p[u][e] = static_cast<unsigned>(position[e] - key - 2 * u) < reach ? x : -INFINITY;
                highest[e] = fmaxf(highest[e], p[u][e]);
            }
#pragma unroll
        for (int e = 0; e < 2; e++) {
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) highest[e] = fmaxf(highest[e], __shfl_xor_sync(~0u, highest[e], lanes));
            const float base = highest[e] == -INFINITY ? 0.0f : highest[e];  // nothing seen yet: all exponentials are 0
            keep[e] = fast_exp2(top[e] - base);
            top[e] = highest[e];
            sum[e] *= keep[e];
#pragma unroll
            for (int u = 0; u < 4; u++) {
                p[u][e] = fast_exp2(p[u][e] - base);
                sum[e] += p[u][e];
            }
        }
        uint32_t p_bits[4];
#pragma unroll
        for (int u = 0; u < 4; u++) p_bits[u] = transpose_8x8(pack_half2(p[u][0], p[u][1]));

        // From the first position that is not in the cache on lies memory nobody wrote: zeros instead, since 0 * NaN is not 0.
        const int there = (append ? high : high + 1) - step * step_keys;
        const bool tail = there < step_keys;
        uint32_t written[4];  // of the lane's 8 keys
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const int left = there - 8 * t - 2 * w;
            written[w] = left >= 2 ? ~0u : left == 1 ? 0xffff : 0;
        }
        auto blank = [&](uint4& bits) {
            bits = make_uint4(bits.x & written[0], bits.y & written[1], bits.z & written[2], bits.w & written[3]);
        };
        if (tail) {
#pragma unroll
            for (int j = 0; j < (early ? blocks * 4 : 0); j++) blank(v_bits[j]);
            if (append)
#pragma unroll
                for (int u = 0; u < 4; u++)
                    if (key + 2 * u == newest) *reinterpret_cast<float2*>(&shared.newest[2 * t]) = make_float2(p[u][0], p[u][1]);
        }
        float out[blocks * 2][4] = {};  // columns 16 j + g and + 8, rows 2 t and 2 t + 1
#pragma unroll
        for (int j = 0; j < blocks * 2; j++) {
            uint4 a = early ? v_bits[early ? 2 * j : 0] : value_bits(v, 2 * j);
            uint4 b = early ? v_bits[early ? 2 * j + 1 : 0] : value_bits(v, 2 * j + 1);
            if (!early && tail) blank(a), blank(b);
            mma_f16(out[j], a.x, b.x, a.y, b.y, p_bits[0], p_bits[1]);
            mma_f16(out[j], a.z, b.z, a.w, b.w, p_bits[2], p_bits[3]);
        }
        // The sums so far are in shared memory: registers have no room for them beside a step's keys.
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (2 * t + e >= tile.rows) continue;
            float* to = sums + (warp * tile.rows + 2 * t + e) * pitch + g;
            if (step >= first + sharing)
#pragma unroll
                for (int j = 0; j < blocks * 4; j++) out[j / 2][j % 2 * 2 + e] += keep[e] * to[8 * j];
#pragma unroll
            for (int j = 0; j < blocks * 4; j++) to[8 * j] = out[j / 2][j % 2 * 2 + e];
        }
        step += sharing;
        if (step >= last) break;
        page = page_of(step * step_keys);
        load_keys(page, step);
    }

    // ---- the warps' sums into one
#pragma unroll
    for (int e = 0; e < 2; e++) {
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) sum[e] += __shfl_xor_sync(~0u, sum[e], lanes);
        if (g == 0) shared.state[warp][2 * t + e] = make_float2(top[e], sum[e]);
    }
    __syncthreads();
    const int64_t split_floats = decode_tile * (width + 2);
    float* partials = call.partial + static_cast<int64_t>(tile.id) * call.splits * split_floats;
    float* partial = partials + blockIdx.x * split_floats;
    for (int e = threadIdx.x * 4; e < tile.rows * width; e += threads * 4) {
        const int row = e / width, d = e % width;
        if (!fast && d >= dim) continue;
        float most = -INFINITY, total = 0;
#pragma unroll
        for (int w = 0; w < warps; w++) most = fmaxf(most, shared.state[w][row].x);
        const float base = most == -INFINITY ? 0.0f : most;
        float4 x = make_float4(0, 0, 0, 0);
        auto add = [&](float factor, float a, float b, float c, float d) {
            x.x += factor * a, x.y += factor * b, x.z += factor * c, x.w += factor * d;
        };
#pragma unroll
        for (int w = 0; w < warps; w++) {
            if (w >= sharing || first + w >= last) break;  // had no step
            const float2 state = shared.state[w][row];
            const float weight = fast_exp2(state.x - base);
            total += weight * state.y;
            const float4 y = *reinterpret_cast<const float4*>(sums + (w * tile.rows + row) * pitch + d);
            add(weight, y.x, y.y, y.z, y.w);
        }
        if (append && newest >= 0) {
            // Relative to the maximum of the warp that took the last step.
            const float factor = shared.newest[row] * fast_exp2(shared.state[(end - 1 - first) % sharing][row].x - base);
            const float2 v01 = unpack_half2(*reinterpret_cast<const uint32_t*>(&shared.staged.v[d])),
                         v23 = unpack_half2(*reinterpret_cast<const uint32_t*>(&shared.staged.v[d + 2]));
            add(factor, v01.x, v01.y, v23.x, v23.y);
        }
        if (used == 1) {
            __half* to = call.out + row_token<append>(call, tile, row) * call.out_stride + row_head<append>(call, tile, row) * dim + d;
            const float inverse = __fdividef(1.0f, total);
            *reinterpret_cast<uint2*>(to) =
                make_uint2(pack_half2(x.x * inverse, x.y * inverse), pack_half2(x.z * inverse, x.w * inverse));
        } else {
            __stcg(reinterpret_cast<float4*>(partial + row * width + d), x);
            if (d == 0) {
                __stcg(partial + decode_tile * width + row, most);
                __stcg(partial + decode_tile * (width + 1) + row, total);
            }
        }
    }
    auto sync = [] { __syncthreads(); };
    if (used > 1 && last_to_arrive(call.counters + tile.id, used, threadIdx.x, sync))
        join_splits<width>(call, tile, partials, used, decode_tile, sums, threadIdx.x, blockDim.x, sync);
}

template <int blocks, int warps>
Status launch_warps(Context& context, const AttentionCall& call, int max_rows, int sequences) {
    using Shared = cuda::Shared<blocks, warps>;
    const size_t shared = sizeof(Shared) + sizeof(float) * warps * std::min(max_rows, decode_tile) * Shared::sums_pitch;
    const dim3 grid(call.splits, call.cache.kv_heads * call.row_tiles, sequences);
    const bool fast = call.softcap == 0 && !call.alibi && call.cache.head_dim == blocks * 32;
    auto* kernel = call.append.k ? fast ? decode_kernel<blocks, warps, true, true> : decode_kernel<blocks, warps, false, true>
                   : fast        ? decode_kernel<blocks, warps, true, false>
                                 : decode_kernel<blocks, warps, false, false>;
    return launch(context, kernel, grid, warps * 32, shared, call);
}
template <int blocks>
Status launch_decode(Context& context, const AttentionCall& call, int max_rows, int sequences) {
    return context.max_keys <= few_warps_keys ? launch_warps<blocks, few_warps>(context, call, max_rows, sequences)
                                              : launch_warps<blocks, many_warps>(context, call, max_rows, sequences);
}

}  // namespace

Status attention_decode(Context& context, const AttentionCall& call, int max_rows, int sequences) {
    switch (head_blocks(call.cache.head_dim)) {
        case 1: return launch_decode<1>(context, call, max_rows, sequences);
        case 2: return launch_decode<2>(context, call, max_rows, sequences);
        case 3: return launch_decode<3>(context, call, max_rows, sequences);
        case 4: return launch_decode<4>(context, call, max_rows, sequences);
        case 6: return launch_decode<6>(context, call, max_rows, sequences);
        default: return launch_decode<8>(context, call, max_rows, sequences);
    }
}

}  // namespace awq::cuda
