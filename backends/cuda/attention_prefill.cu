// Attention of many rows (a prompt's tokens, an image's patches) by mma.sync: what attention_prefill_sm90.cu does not take.
//
// A block takes 128 rows (64 of wide heads) of one sequence and kv head, each warp its own 16, and walks over the cache page
// by page; pages arrive in stages of shared memory.
#include <algorithm>
#include "backends/cuda/attention.h"

namespace awq::cuda {
namespace {

__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// blocks: 32-column blocks of a head. plain: no soft cap, no bias. Block (row tile and split, kv_head, sequence).
template <int blocks>
struct Prefill {
    static constexpr int width = blocks * 32, warps = blocks <= 4 ? 8 : 4, threads = warps * 32, tile_rows = warps * 16;
    static constexpr int stages = blocks <= 4 ? 3 : 2;
    static constexpr bool q_in_registers = blocks <= 4;
    static constexpr int chunks = blocks * 4;  // 16-byte chunks of a key
    static constexpr int q_bytes = q_in_registers ? 0 : tile_rows * width * 2;
    static constexpr int stage_bytes = 2 * page_size * width * 2;  // keys, values
    static constexpr int shared_bytes = q_bytes + stages * stage_bytes;
    // Lanes of two neighbouring rows read together: odd rows have the halves of each 128 bytes exchanged, unless the row
    // length does that by itself.
    __device__ static int key_chunk(int row, int chunk) {
        return row * chunks + (blocks % 2 == 0 ? chunk ^ (row & 1) << 2 : chunk);
    }
    __device__ static int value_chunk(int row, int chunk) { return row * 8 + (chunk ^ (row & 1) << 2); }
};

template <int blocks, bool plain>
__global__ void __launch_bounds__(Prefill<blocks>::threads) prefill_kernel(const __grid_constant__ AttentionCall call) {
    using P = Prefill<blocks>;
    constexpr int width = P::width;
    extern __shared__ __align__(128) char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int dim = call.cache.head_dim;
    let_next_begin();
    wait_for_previous();

    Tile tile;
    TilePages pages;
    if (!find_pages(call, P::tile_rows, tile, pages)) return;
    const int first = pages.first, last = pages.last, low = pages.low, high = pages.high;

    auto stage_of = [&](int page) {
        return reinterpret_cast<uint4*>(shared + P::q_bytes + (page - first) % P::stages * P::stage_bytes);
    };
    auto fetch = [&](int page) {
        const int64_t at = call.cache.page_of(tile.sequence, page * page_size);
        const __half *k = call.cache.keys(at, tile.kv_head), *v = call.cache.values(at, tile.kv_head);
        uint4* stage = stage_of(page);
#pragma unroll 4
        for (int e = threadIdx.x; e < page_size * P::chunks; e += P::threads) {
            int row = e / P::chunks, chunk = e % P::chunks;
            bool inside = chunk * 8 < dim;
            copy_async(stage + P::key_chunk(row, chunk), k + (inside ? row * dim + chunk * 8 : 0), inside ? 16 : 0);
        }
        stage += page_size * P::chunks;
#pragma unroll 4
        for (int e = threadIdx.x; e < width * 8; e += P::threads) {
            int row = e / 8, chunk = e % 8;
            // Positions past the last one hold what was never written: zeros instead, since 0 * NaN is not 0.
            int written = row < dim ? max(0, min(8, high + 1 - (page * page_size + chunk * 8))) : 0;
            copy_async(stage + P::value_chunk(row, chunk), v + (written ? row * page_size + chunk * 8 : 0), written * 2);
        }
    };
    for (int ahead = 0; ahead < P::stages - 1; ahead++) {
        if (first + ahead < last) fetch(first + ahead);
        commit_copies();
    }

    // Q as A operands (attention_decode.cu), in registers or, for wide heads, the warp's own part of shared memory.
    uint4 q_bits[P::q_in_registers ? blocks : 1][2];
    uint4* q_shared = reinterpret_cast<uint4*>(shared) + warp * (blocks * 64);  // [blocks][2][32]
    int position[2];
    float slope[2], top[2], sum[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = warp * 16 + g + 8 * i, real = min(row, tile.rows - 1);
        position[i] = tile.position(call, real);
        slope[i] = !plain && call.alibi ? call.alibi[tile.head(call, real)] : 0;
        top[i] = -INFINITY;
        sum[i] = 0;
        const __half* q = call.q + tile.token(call, real) * call.q_stride + static_cast<int64_t>(tile.head(call, real)) * dim;
#pragma unroll
        for (int b = 0; b < blocks; b++) {
            bool inside = row < tile.rows && b * 32 + 8 * t < dim;
            uint4 bits = inside ? *reinterpret_cast<const uint4*>(q + b * 32 + 8 * t) : make_uint4(0, 0, 0, 0);
            if constexpr (P::q_in_registers)
                q_bits[b][i] = bits;
            else
                q_shared[b * 64 + i * 32 + lane] = bits;
        }
    }
    float out[blocks * 4][4] = {};

    for (int page = first; page < last; page++) {
        await_copies<P::stages - 2>();
        __syncthreads();  // the page is there, and everybody has done with the one before
        if (page + P::stages - 1 < last) fetch(page + P::stages - 1);
        commit_copies();
        const uint4 *keys = stage_of(page), *values = keys + page_size * P::chunks;
        // Inside the triangle and the window no score needs a mask.
        const bool masked = page * page_size + page_size - 1 > low || (call.window > 0 && page * page_size <= high - call.window);
#pragma unroll 1
        for (int half = 0; half < 2; half++) {
            // Which key a score belongs to: as in attention_decode.cu.
            float score[4][4] = {};
#pragma unroll(blocks <= 4 ? blocks : 1)
            for (int b = 0; b < blocks; b++) {
                uint4 q0 = P::q_in_registers ? q_bits[P::q_in_registers ? b : 0][0] : q_shared[b * 64 + lane];
                uint4 q1 = P::q_in_registers ? q_bits[P::q_in_registers ? b : 0][1] : q_shared[b * 64 + 32 + lane];
#pragma unroll
                for (int u = 0; u < 4; u++) {
                    uint4 k = keys[P::key_chunk(half * 32 + 8 * (g / 2) + 2 * u + g % 2, b * 4 + t)];
                    mma_f16(score[u], q0.x, q1.x, q0.y, q1.y, k.x, k.y);
                    mma_f16(score[u], q0.z, q1.z, q0.w, q1.w, k.z, k.w);
                }
            }
            const int key = page * page_size + half * 32 + 8 * t;
            float highest[2] = {top[0], top[1]};
#pragma unroll
            for (int u = 0; u < 4; u++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int at = key + 2 * u + e % 2, i = e / 2;
                    float s = finish_score<plain>(call, score[u][e], slope[i], at, position[i]);
                    if (masked && !sees(call, at, position[i])) s = -INFINITY;
                    score[u][e] = s;
                    highest[i] = fmaxf(highest[i], s);
                }
            uint32_t p[4][2];
            float keep[2];
            bool risen = false;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                highest[i] = fmaxf(highest[i], __shfl_xor_sync(~0u, highest[i], 1));
                highest[i] = fmaxf(highest[i], __shfl_xor_sync(~0u, highest[i], 2));
                risen |= highest[i] > top[i];
                float base = highest[i] == -INFINITY ? 0.0f : highest[i];  // nothing seen yet: all exponentials are 0
                keep[i] = fast_exp2(top[i] - base);
                top[i] = highest[i];
                sum[i] *= keep[i];
#pragma unroll
                for (int u = 0; u < 4; u++) {
                    float x = fast_exp2(score[u][2 * i] - base), y = fast_exp2(score[u][2 * i + 1] - base);
                    sum[i] += x + y;
                    p[u][i] = pack_half2(x, y);
                }
            }
            if (__any_sync(~0u, risen))
#pragma unroll
                for (int j = 0; j < blocks * 4; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) out[j][e] *= keep[e / 2];
#pragma unroll
            for (int j = 0; j < blocks * 4; j++) {
                uint4 v = values[P::value_chunk(8 * j + g, half * 4 + t)];
                mma_f16(out[j], p[0][0], p[0][1], p[1][0], p[1][1], v.x, v.y);
                mma_f16(out[j], p[2][0], p[2][1], p[3][0], p[3][1], v.z, v.w);
            }
        }
    }

    // The stages are free by now: every copy has been awaited but empty ones, and the barriers wait for all threads.
    finish_rows<width, P::tile_rows>(
        call, tile, pages, dim, warp * 16 + g, top, sum, [&](int j, int i) { return make_float2(out[j][2 * i], out[j][2 * i + 1]); },
        reinterpret_cast<float*>(shared + P::q_bytes), threadIdx.x, P::threads, [] { __syncthreads(); });
}

template <int blocks>
Status launch_prefill(Context& context, const AttentionCall& call, int sequences) {
    using P = Prefill<blocks>;
    dim3 grid(call.row_tiles * call.splits, call.cache.kv_heads, sequences);
    bool plain = call.softcap == 0 && !call.alibi;
    return launch(context, plain ? prefill_kernel<blocks, true> : prefill_kernel<blocks, false>, grid, P::threads,
                  P::shared_bytes, call);
}

}  // namespace

// Rows of a tile: prefill_rows(head_dim).
Status attention_prefill(Context& context, const AttentionCall& call, int sequences) {
    switch (head_blocks(call.cache.head_dim)) {
        case 1: return launch_prefill<1>(context, call, sequences);
        case 2: return launch_prefill<2>(context, call, sequences);
        case 3: return launch_prefill<3>(context, call, sequences);
        case 4: return launch_prefill<4>(context, call, sequences);
        case 6: return launch_prefill<6>(context, call, sequences);
        default: return launch_prefill<8>(context, call, sequences);
    }
}

}  // namespace awq::cuda
