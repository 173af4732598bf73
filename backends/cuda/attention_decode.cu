// Attention of a few rows (one token's query heads of a kv head) over the paged cache: bound by reading the cache.
//
// A warp takes 32 keys at a time and reads them straight into tensor core operands. The keys of a tile are spread over the
// block's warps and over `splits` blocks; each warp keeps its own running softmax, joined at the end.
#include "backends/cuda/attention.h"

namespace awq::cuda {
namespace {

constexpr int warps = 4, threads = warps * 32;
constexpr int step_keys = 32;

// blocks: 32-column blocks of a head. Block (split, kv_head and row tile, sequence).
template <int blocks, bool plain>
__global__ void __launch_bounds__(threads) decode_kernel(const __grid_constant__ AttentionCall call) {
    constexpr int width = blocks * 32;
    extern __shared__ __align__(16) char shared[];
    uint4* q_fragments = reinterpret_cast<uint4*>(shared);                             // [blocks][2][32]
    float* sums = reinterpret_cast<float*>(shared + blocks * 2 * 32 * sizeof(uint4));  // [warps][16][width]
    float* tops = sums + warps * decode_tile * width;                                  // [warps][16], then denominators
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int dim = call.cache.head_dim;

    let_next_begin();
    Tile tile;
    bool work = find_tile(call, blockIdx.z, blockIdx.y / call.row_tiles, blockIdx.y % call.row_tiles, decode_tile, tile);
    int low = 0, high = 0, first = 0, last = 0, used = 1;
    if (work) {
        position_range(call, tile, low, high);
        int begin = call.window > 0 ? max(0, low - call.window + 1) / step_keys : 0;
        int steps = high / step_keys + 1 - begin, share = (steps + call.splits - 1) / call.splits;
        used = (steps + share - 1) / share;
        first = begin + blockIdx.x * share;
        last = min(first + share, begin + steps);
        work = first < last;
    }
    // The cache of earlier tokens may come nearer while the previous kernel still runs: into L2, where it is coherent.
    if (work && first + warp < last) {
        int key = (first + warp) * step_keys;
        int64_t page = call.cache.page_of(tile.sequence, key);
        const __half* k = call.cache.keys(page, tile.kv_head) + key % page_size * dim;
        const __half* v = call.cache.values(page, tile.kv_head) + key % page_size;
        for (int line = lane; line < step_keys * dim / 64; line += 32)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(k + line * 64));
        for (int d = lane; d < dim; d += 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(v + d * page_size));
    }
    wait_for_previous();
    if (!work) return;

    // Q as A operands: the lane's 16 bytes of 32 columns make two k16 steps, keys below use the same order of columns.
    for (int e = threadIdx.x; e < blocks * 64; e += threads) {
        int block = e / 64, row = e % 32 / 4 + (e % 64 >= 32 ? 8 : 0), column = block * 32 + e % 4 * 8;
        uint4 bits = make_uint4(0, 0, 0, 0);
        if (row < tile.rows && column < dim)
            bits = *reinterpret_cast<const uint4*>(call.q + tile.token(call, row) * call.q_stride +
                                                   static_cast<int64_t>(tile.head(call, row)) * dim + column);
        q_fragments[e] = bits;
    }
    int position[2];
    float slope[2] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = min(g + 8 * i, tile.rows - 1);
        position[i] = tile.position(call, row);
        if (call.alibi) slope[i] = call.alibi[tile.head(call, row)];
    }
    __syncthreads();

    float out[blocks * 4][4] = {};
    for (int step = first + warp; step < last; step += warps) {
        const int64_t page = call.cache.page_of(tile.sequence, step * step_keys);
        const int slot = step * step_keys % page_size;
        const __half* k = call.cache.keys(page, tile.kv_head) + slot * dim;
        const __half* v = call.cache.values(page, tile.kv_head) + slot;
        // Score tile u, column n: key 8 (n / 2) + 2 u + n % 2, so that a lane's probabilities belong to 8 neighbouring
        // keys 8 t .. 8 t + 7, the ones in its 16 bytes of each value row.
        // All loads that registers hold come first: latency is what a step costs.
        const int key = step * step_keys + 8 * t;
        const int unseen = key + 7 - high;  // of the lane's 8 keys: past the last position, memory nobody wrote
        constexpr bool early = blocks <= 4;
        uint4 k_bits[early ? blocks : 1][4], v_bits[early ? blocks * 4 : 1];
        auto load_keys = [&](int i, int u) {
            uint4 bits = make_uint4(0, 0, 0, 0);
            if (i * 32 + 8 * t < dim)
                bits = __ldcg(reinterpret_cast<const uint4*>(k + (8 * (g / 2) + 2 * u + g % 2) * dim + i * 32 + 8 * t));
            return bits;
        };
        auto load_values = [&](int j) {
            uint4 bits = make_uint4(0, 0, 0, 0);
            if (8 * j + g < dim && unseen < 8) bits = __ldcg(reinterpret_cast<const uint4*>(v + (8 * j + g) * page_size + 8 * t));
            return bits;
        };
        if constexpr (early) {
#pragma unroll
            for (int i = 0; i < blocks; i++)
#pragma unroll
                for (int u = 0; u < 4; u++) k_bits[i][u] = load_keys(i, u);
#pragma unroll
            for (int j = 0; j < blocks * 4; j++) v_bits[j] = load_values(j);
        }
        float score[4][4] = {};
#pragma unroll(early ? blocks : 2)
        for (int i = 0; i < blocks; i++) {
            if constexpr (!early)
#pragma unroll
                for (int u = 0; u < 4; u++) k_bits[0][u] = load_keys(i, u);
            uint4 low_rows = q_fragments[i * 64 + lane], high_rows = q_fragments[i * 64 + 32 + lane];
#pragma unroll
            for (int u = 0; u < 4; u++) {
                const uint4 b = k_bits[early ? i : 0][u];
                mma_f16(score[u], low_rows.x, high_rows.x, low_rows.y, high_rows.y, b.x, b.y);
                mma_f16(score[u], low_rows.z, high_rows.z, low_rows.w, high_rows.w, b.z, b.w);
            }
        }
        float highest[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int u = 0; u < 4; u++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at = key + 2 * u + e % 2, i = e / 2;
                score[u][e] =
                    sees(call, at, position[i]) ? finish_score<plain>(call, score[u][e], slope[i], at, position[i]) : -INFINITY;
                highest[i] = fmaxf(highest[i], score[u][e]);
            }
        float keep[2], base[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            highest[i] = fmaxf(highest[i], __shfl_xor_sync(~0u, highest[i], 1));
            highest[i] = fmaxf(highest[i], __shfl_xor_sync(~0u, highest[i], 2));
            highest[i] = fmaxf(highest[i], top[i]);
            base[i] = highest[i] == -INFINITY ? 0.0f : highest[i];  // nothing seen yet: all exponentials are 0
            keep[i] = fast_exp2(top[i] - base[i]);
            top[i] = highest[i];
            sum[i] *= keep[i];
        }
        uint32_t p[4][2];
#pragma unroll
        for (int u = 0; u < 4; u++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                score[u][e] = fast_exp2(score[u][e] - base[e / 2]);
                sum[e / 2] += score[u][e];
            }
            p[u][0] = pack_half2(score[u][0], score[u][1]);
            p[u][1] = pack_half2(score[u][2], score[u][3]);
        }
#pragma unroll
        for (int j = 0; j < blocks * 4; j++) {
            uint4 b = early ? v_bits[early ? j : 0] : load_values(j);
            if (unseen > 0) {
                uint32_t words[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
                for (int w = 0; w < 4; w++)
                    words[w] = 2 * w + unseen >= 8 ? 0 : 2 * w + 1 + unseen >= 8 ? words[w] & 0xffff : words[w];
                b = make_uint4(words[0], words[1], words[2], words[3]);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) out[j][e] *= keep[e / 2];
            mma_f16(out[j], p[0][0], p[0][1], p[1][0], p[1][1], b.x, b.y);
            mma_f16(out[j], p[2][0], p[2][1], p[3][0], p[3][1], b.z, b.w);
        }
    }

    // ---- the warps' sums into one
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        if (t == 0) {
            tops[warp * decode_tile + g + 8 * i] = top[i];
            tops[(warps + warp) * decode_tile + g + 8 * i] = sum[i];
        }
#pragma unroll
        for (int j = 0; j < blocks * 4; j++)
            *reinterpret_cast<float2*>(sums + (warp * decode_tile + g + 8 * i) * width + 8 * j + 2 * t) =
                make_float2(out[j][2 * i], out[j][2 * i + 1]);
    }
    __syncthreads();
    float* partial = call.partial + (static_cast<int64_t>(tile.id) * call.splits + blockIdx.x) * (decode_tile * (width + 2));
    for (int e = threadIdx.x * 2; e < tile.rows * width; e += threads * 2) {
        int row = e / width, d = e % width;
        if (d >= dim) continue;
        float most = -INFINITY;
#pragma unroll
        for (int w = 0; w < warps; w++) most = fmaxf(most, tops[w * decode_tile + row]);
        float base = most == -INFINITY ? 0.0f : most, total = 0, x = 0, y = 0;
#pragma unroll
        for (int w = 0; w < warps; w++) {
            float share = fast_exp2(tops[w * decode_tile + row] - base);
            float2 value = *reinterpret_cast<const float2*>(sums + (w * decode_tile + row) * width + d);
            total += share * tops[(warps + w) * decode_tile + row];
            x += share * value.x;
            y += share * value.y;
        }
        if (used == 1) {
            __half* to =
                call.out + tile.token(call, row) * call.out_stride + static_cast<int64_t>(tile.head(call, row)) * dim + d;
            *reinterpret_cast<__half2*>(to) = __floats2half2_rn(x / total, y / total);
        } else {
            __stcg(reinterpret_cast<float2*>(partial + row * width + d), make_float2(x, y));
            if (d == 0) {
                __stcg(partial + decode_tile * width + row, most);
                __stcg(partial + decode_tile * (width + 1) + row, total);
            }
        }
    }
    if (used > 1 && last_to_arrive(call.counters + tile.id, used))
        join_splits<width>(call, tile, call.partial + static_cast<int64_t>(tile.id) * call.splits * (decode_tile * (width + 2)),
                           used, decode_tile, sums);
}

template <int blocks>
Status launch_decode(Context& context, const AttentionCall& call, int sequences) {
    size_t shared = blocks * 2 * 32 * sizeof(uint4) + sizeof(float) * warps * decode_tile * (blocks * 32 + 2);
    dim3 grid(call.splits, call.cache.kv_heads * call.row_tiles, sequences);
    bool plain = call.softcap == 0 && !call.alibi;
    return launch(context, plain ? decode_kernel<blocks, true> : decode_kernel<blocks, false>, grid, threads, shared, call);
}

}  // namespace

Status attention_decode(Context& context, const AttentionCall& call, int sequences) {
    switch (head_blocks(call.cache.head_dim)) {
        case 1: return launch_decode<1>(context, call, sequences);
        case 2: return launch_decode<2>(context, call, sequences);
        case 3: return launch_decode<3>(context, call, sequences);
        case 4: return launch_decode<4>(context, call, sequences);
        case 6: return launch_decode<6>(context, call, sequences);
        default: return launch_decode<8>(context, call, sequences);
    }
}

}  // namespace awq::cuda
