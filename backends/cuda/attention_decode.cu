// Attention of a few rows (one token's query heads of a kv head) over the paged cache: bound by reading the cache, and by
// latency where the cache is short.
//
// A warp takes 32 keys at a time and reads them straight into tensor core operands: scores are K Q^T, outputs V^T P^T, with
// keys and columns in the place of an mma's 16 rows and the tile's 8 rows as its columns. The keys of a tile are spread over
// the block's warps and over `splits` blocks; each warp keeps its own running softmax, joined at the end.
#include "backends/cuda/attention.h"

namespace awq::cuda {
namespace {

constexpr int warps = 4, threads = warps * 32;
constexpr int step_keys = 32;

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t fragment) {
    uint32_t result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(fragment));
    return result;
}

// blocks: 32-column blocks of a head. fast: no soft cap, no bias, and heads of exactly that many columns.
// Block (split, kv_head and row tile, sequence).
template <int blocks, bool fast>
__global__ void __launch_bounds__(threads) decode_kernel(const __grid_constant__ AttentionCall call) {
    constexpr int width = blocks * 32, pitch = width + 4;  // the padding spreads a warp's writes over the banks
    constexpr bool early = blocks <= 4;                    // registers hold a whole step: its loads come long before their use
    extern __shared__ __align__(16) char shared[];
    float* sums = reinterpret_cast<float*>(shared);    // [warps][8][pitch]
    float* tops = sums + warps * decode_tile * pitch;  // [warps][8]
    float* shares = tops + warps * decode_tile;        // [warps][8]: denominators
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int dim = fast ? width : call.cache.head_dim;

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
    if (!work) {
        wait_for_previous();
        return;
    }

    // Score tile u: its row g is key 8 (g / 2) + 2 u + g % 2 of the step, so that once transposed a lane's probabilities belong
    // to 8 neighbouring keys 8 t .. 8 t + 7, the ones in its 16 bytes of each value row. Columns beyond the head meet zeros
    // of Q, rows of values beyond it are dropped: there any address will do that holds numbers.
    uint4 k_bits[early ? blocks : 1][4], v_bits[early ? blocks * 4 : 1];
    auto key_bits = [&](const __half* k, int i, int u) {
        int column = i * 32 + 8 * t;
        if (!fast && column >= dim) column = 0;
        return __ldcg(reinterpret_cast<const uint4*>(k + (8 * (g / 2) + 2 * u + g % 2) * dim + column));
    };
    auto value_bits = [&](const __half* v, int j) {
        int row = fast ? 8 * j + g : min(8 * j + g, dim - 1);
        return __ldcg(reinterpret_cast<const uint4*>(v + row * page_size + 8 * t));
    };
    auto keys_of = [&](int step) {
        return call.cache.keys(call.cache.page_of(tile.sequence, step * step_keys), tile.kv_head) +
               step * step_keys % page_size * dim;
    };
    auto values_of = [&](int step) {
        return call.cache.values(call.cache.page_of(tile.sequence, step * step_keys), tile.kv_head) +
               step * step_keys % page_size;
    };
    auto load_keys = [&](int step) {
        const __half* k = keys_of(step);
#pragma unroll
        for (int i = 0; i < (early ? blocks : 0); i++)
#pragma unroll
            for (int u = 0; u < 4; u++) k_bits[i][u] = key_bits(k, i, u);
    };
    auto load_values = [&](int step) {
        const __half* v = values_of(step);
#pragma unroll
        for (int j = 0; j < (early ? blocks * 4 : 0); j++) v_bits[j] = value_bits(v, j);
    };

    // What earlier runs left in the cache may be read while the previous kernel still works; this run's own keys may not.
    int step = first + warp;
    const bool settled = (step + 1) * step_keys <= call.cache.positions[tile.first_token];
    if (early && step < last && settled) {
        load_keys(step);
        load_values(step);
    }
    const __half* q_row = nullptr;
    if (g < tile.rows)
        q_row = call.q + tile.token(call, g) * call.q_stride + static_cast<int64_t>(tile.head(call, g)) * dim + 8 * t;
    int position[2];
    float slope[2] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int row = min(2 * t + e, tile.rows - 1);
        position[e] = tile.position(call, row);
        if (!fast && call.alibi) slope[e] = call.alibi[tile.head(call, row)];
    }
    wait_for_previous();

    uint4 q_bits[blocks];
#pragma unroll
    for (int i = 0; i < blocks; i++)
        q_bits[i] = q_row && (fast || i * 32 + 8 * t < dim) ? __ldcg(reinterpret_cast<const uint4*>(q_row + i * 32))
                                                            : make_uint4(0, 0, 0, 0);
    if (early && step < last && !settled) {
        load_keys(step);
        load_values(step);
    }

    float out[blocks * 2][4] = {};  // columns 16 j + g and + 8, rows 2 t and 2 t + 1
    for (; step < last; step += warps) {
        float score[2][4] = {};
        const __half* k = early ? nullptr : keys_of(step);
#pragma unroll
        for (int i = 0; i < blocks; i++) {
            if constexpr (!early)
#pragma unroll
                for (int u = 0; u < 4; u++) k_bits[0][u] = key_bits(k, i, u);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const uint4 a = k_bits[early ? i : 0][2 * m], b = k_bits[early ? i : 0][2 * m + 1];
                mma_f16(score[m], a.x, b.x, a.y, b.y, q_bits[i].x, q_bits[i].y);
                mma_f16(score[m], a.z, b.z, a.w, b.w, q_bits[i].z, q_bits[i].w);
            }
        }
        const int next = step + warps;
        if (next < last) load_keys(next);

        // Only the first and the last steps hold keys that a row does not see.
        const bool masked = step * step_keys + step_keys - 1 > low || (call.window > 0 && step * step_keys <= high - call.window);
        float highest[2] = {top[0], top[1]};
#pragma unroll
        for (int u = 0; u < 4; u++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float& s = score[u / 2][u % 2 * 2 + e];
                int key = step * step_keys + 8 * (g / 2) + 2 * u + g % 2;
                s = finish_score<fast>(call, s, slope[e], key, position[e]);
                if (masked && !sees(call, key, position[e])) s = -INFINITY;
                highest[e] = fmaxf(highest[e], s);
            }
        float keep[2];
        uint32_t p[4];
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
                float& s = score[u / 2][u % 2 * 2 + e];
                s = fast_exp2(s - base);
                sum[e] += s;
            }
        }
#pragma unroll
        for (int u = 0; u < 4; u++) p[u] = transpose_8x8(pack_half2(score[u / 2][u % 2 * 2], score[u / 2][u % 2 * 2 + 1]));

        // Past the last position lies memory nobody wrote: zeros instead, since 0 * NaN is not 0.
        const int unseen = step * step_keys + 8 * t + 7 - high;  // of the lane's 8 keys
        auto blank = [&](uint4& bits) {
            uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int w = 0; w < 4; w++)
                words[w] = 2 * w + unseen >= 8 ? 0 : 2 * w + 1 + unseen >= 8 ? words[w] & 0xffff : words[w];
            bits = make_uint4(words[0], words[1], words[2], words[3]);
        };
        const bool tail = step * step_keys + step_keys - 1 > high;
        if constexpr (early)
            if (tail)
#pragma unroll
                for (int j = 0; j < blocks * 4; j++) blank(v_bits[j]);
        const __half* v = early ? nullptr : values_of(step);
#pragma unroll
        for (int j = 0; j < blocks * 2; j++) {
            uint4 a = early ? v_bits[early ? 2 * j : 0] : value_bits(v, 2 * j);
            uint4 b = early ? v_bits[early ? 2 * j + 1 : 0] : value_bits(v, 2 * j + 1);
            if (!early && tail) blank(a), blank(b);
#pragma unroll
            for (int e = 0; e < 4; e++) out[j][e] *= keep[e % 2];
            mma_f16(out[j], a.x, b.x, a.y, b.y, p[0], p[1]);
            mma_f16(out[j], a.z, b.z, a.w, b.w, p[2], p[3]);
        }
        if (next < last) load_values(next);
    }

    // ---- the warps' sums into one
#pragma unroll
    for (int e = 0; e < 2; e++) {
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) sum[e] += __shfl_xor_sync(~0u, sum[e], lanes);
        if (g == 0) {
            tops[warp * decode_tile + 2 * t + e] = top[e];
            shares[warp * decode_tile + 2 * t + e] = sum[e];
        }
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float most = -INFINITY;
#pragma unroll
        for (int w = 0; w < warps; w++) most = fmaxf(most, tops[w * decode_tile + 2 * t + e]);
        const float share = most == -INFINITY ? 0.0f : fast_exp2(top[e] - most);
        float* to = sums + (warp * decode_tile + 2 * t + e) * pitch + g;
#pragma unroll
        for (int j = 0; j < blocks * 2; j++) {
            to[16 * j] = out[j][e] * share;
            to[16 * j + 8] = out[j][2 + e] * share;
        }
    }
    __syncthreads();
    const int64_t split_floats = decode_tile * (width + 2);
    float* partials = call.partial + static_cast<int64_t>(tile.id) * call.splits * split_floats;
    float* partial = partials + blockIdx.x * split_floats;
    for (int e = threadIdx.x * 4; e < tile.rows * width; e += threads * 4) {
        int row = e / width, d = e % width;
        if (!fast && d >= dim) continue;
        float most = -INFINITY, total = 0;
        float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < warps; w++) {
            float4 y = *reinterpret_cast<const float4*>(sums + (w * decode_tile + row) * pitch + d);
            x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
            most = fmaxf(most, tops[w * decode_tile + row]);
        }
#pragma unroll
        for (int w = 0; w < warps; w++)
            if (most != -INFINITY) total += fast_exp2(tops[w * decode_tile + row] - most) * shares[w * decode_tile + row];
        if (used == 1) {
            __half* to =
                call.out + tile.token(call, row) * call.out_stride + static_cast<int64_t>(tile.head(call, row)) * dim + d;
            const float inverse = 1.0f / total;
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
    if (used > 1 && last_to_arrive(call.counters + tile.id, used))
        join_splits<width>(call, tile, partials, used, decode_tile, sums);
}

template <int blocks>
Status launch_decode(Context& context, const AttentionCall& call, int sequences) {
    size_t shared = sizeof(float) * warps * decode_tile * (blocks * 32 + 4 + 2);
    dim3 grid(call.splits, call.cache.kv_heads * call.row_tiles, sequences);
    bool fast = call.softcap == 0 && !call.alibi && call.cache.head_dim == blocks * 32;
    return launch(context, fast ? decode_kernel<blocks, true> : decode_kernel<blocks, false>, grid, threads, shared, call);
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
