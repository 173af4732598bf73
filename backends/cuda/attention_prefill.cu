// Attention of many rows (a prompt's tokens, an image's patches): bound by the tensor cores.
//
// A block takes 64 or 128 rows of one sequence and kv head, each warp its own 16 or 32, and walks over the cache page by
// page through two stages of shared memory.
#include <algorithm>
#include "backends/cuda/attention.h"

namespace awq::cuda {
namespace {

constexpr int warps = 4, threads = warps * 32;

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

// blocks: 32-column blocks of a head; sixteens: 16-row tiles of a warp. Block (row tile and split, kv_head, sequence).
template <int blocks, int sixteens>
struct Prefill {
    static constexpr int width = blocks * 32, tile_rows = warps * 16 * sixteens;
    static constexpr int chunks = blocks * 4;  // 16-byte chunks of a key
    static constexpr int q_bytes = tile_rows * width * 2;
    static constexpr int stage_bytes = 2 * page_size * width * 2;  // keys, values
    static constexpr int shared_bytes = q_bytes + 2 * stage_bytes;
    // Lanes of two neighbouring rows read together: odd rows have the halves of each 128 bytes exchanged, unless the row
    // length does that by itself.
    __device__ static int key_chunk(int row, int chunk) {
        return row * chunks + (blocks % 2 == 0 ? chunk ^ (row & 1) << 2 : chunk);
    }
    __device__ static int value_chunk(int row, int chunk) { return row * 8 + (chunk ^ (row & 1) << 2); }
};

template <int blocks, int sixteens>
__global__ void __launch_bounds__(threads) prefill_kernel(const __grid_constant__ AttentionCall call) {
    using P = Prefill<blocks, sixteens>;
    constexpr int width = P::width;
    extern __shared__ __align__(128) char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int dim = call.cache.head_dim;
    let_next_begin();
    wait_for_previous();

    // The last rows have the most keys: they begin first.
    const int row_tile = call.row_tiles - 1 - static_cast<int>(blockIdx.x) / call.splits, split = blockIdx.x % call.splits;
    Tile tile;
    if (!find_tile(call, blockIdx.z, blockIdx.y, row_tile, P::tile_rows, tile)) return;
    int low, high;
    position_range(call, tile, low, high);
    const int begin = call.window > 0 && call.full_keys == 0 ? max(0, low - call.window + 1) / page_size : 0;
    const int pages = high / page_size + 1 - begin, share = (pages + call.splits - 1) / call.splits;
    const int used = (pages + share - 1) / share;
    const int first = begin + split * share, last = min(first + share, begin + pages);
    if (first >= last) return;

    uint4* q_fragments = reinterpret_cast<uint4*>(shared) + warp * (sixteens * blocks * 64);  // [sixteens][blocks][2][32]
    auto stage_of = [&](int page) { return reinterpret_cast<uint4*>(shared + P::q_bytes + (page & 1) * P::stage_bytes); };
    auto fetch = [&](int page) {
        const int64_t at = call.cache.page_of(tile.sequence, page * page_size);
        const __half *k = call.cache.keys(at, tile.kv_head), *v = call.cache.values(at, tile.kv_head);
        uint4* stage = stage_of(page);
        for (int e = threadIdx.x; e < page_size * P::chunks; e += threads) {
            int row = e / P::chunks, chunk = e % P::chunks;
            bool inside = chunk * 8 < dim;
            copy_async(stage + P::key_chunk(row, chunk), k + (inside ? row * dim + chunk * 8 : 0), inside ? 16 : 0);
        }
        stage += page_size * P::chunks;
        for (int e = threadIdx.x; e < width * 8; e += threads) {
            int row = e / 8, chunk = e % 8;
            // Positions past the last one hold what was never written: zeros instead, since 0 * NaN is not 0.
            int written = row < dim ? max(0, min(8, high + 1 - (page * page_size + chunk * 8))) : 0;
            copy_async(stage + P::value_chunk(row, chunk), v + (written ? row * page_size + chunk * 8 : 0), written * 2);
        }
    };
    fetch(first);
    commit_copies();

    int position[sixteens][2];
    float slope[sixteens][2], top[sixteens][2], sum[sixteens][2];
#pragma unroll
    for (int m = 0; m < sixteens; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = (warp * sixteens + m) * 16 + g + 8 * i, real = min(row, tile.rows - 1);
            position[m][i] = tile.position(call, real);
            slope[m][i] = call.alibi ? call.alibi[tile.head(call, real)] : 0;
            top[m][i] = -INFINITY;
            sum[m][i] = 0;
            const __half* q = call.q + tile.token(call, real) * call.q_stride + static_cast<int64_t>(tile.head(call, real)) * dim;
#pragma unroll
            for (int b = 0; b < blocks; b++) {
                bool inside = row < tile.rows && b * 32 + 8 * t < dim;
                q_fragments[(m * blocks + b) * 64 + i * 32 + lane] =
                    inside ? *reinterpret_cast<const uint4*>(q + b * 32 + 8 * t) : make_uint4(0, 0, 0, 0);
            }
        }
    float out[sixteens][blocks * 4][4] = {};

    for (int page = first; page < last; page++) {
        if (page + 1 < last) fetch(page + 1);
        commit_copies();
        await_copies<1>();
        __syncthreads();
        const uint4 *keys = stage_of(page), *values = keys + page_size * P::chunks;
        // Inside the triangle and the window no score needs a mask.
        const bool masked = page * page_size + page_size - 1 > low || (call.window > 0 && page * page_size <= high - call.window);
#pragma unroll 1
        for (int half = 0; half < 2; half++) {
            // Which key a score belongs to: as in attention_decode.cu.
            float score[sixteens][4][4] = {};
#pragma unroll
            for (int b = 0; b < blocks; b++) {
                uint4 q[sixteens][2];
#pragma unroll
                for (int m = 0; m < sixteens; m++)
#pragma unroll
                    for (int i = 0; i < 2; i++) q[m][i] = q_fragments[(m * blocks + b) * 64 + i * 32 + lane];
#pragma unroll
                for (int u = 0; u < 4; u++) {
                    uint4 k = keys[P::key_chunk(half * 32 + 8 * (g / 2) + 2 * u + g % 2, b * 4 + t)];
#pragma unroll
                    for (int m = 0; m < sixteens; m++) {
                        mma_f16(score[m][u], q[m][0].x, q[m][1].x, q[m][0].y, q[m][1].y, k.x, k.y);
                        mma_f16(score[m][u], q[m][0].z, q[m][1].z, q[m][0].w, q[m][1].w, k.z, k.w);
                    }
                }
            }
            const int key = page * page_size + half * 32 + 8 * t;
            const bool plain = call.softcap == 0 && call.alibi == nullptr;
            const float plain_scale = call.scale * log2_e;
            uint32_t p[sixteens][4][2];
            bool risen = false;
            float keep[sixteens][2];
#pragma unroll
            for (int m = 0; m < sixteens; m++) {
                float highest[2] = {top[m][0], top[m][1]};
#pragma unroll
                for (int u = 0; u < 4; u++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int at = key + 2 * u + e % 2, i = e / 2;
                        float& s = score[m][u][e];
                        s = plain ? s * plain_scale : finish_score(call, s, slope[m][i], at, position[m][i]);
                        if (masked && !sees(call, at, position[m][i])) s = -INFINITY;
                        highest[i] = fmaxf(highest[i], s);
                    }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    highest[i] = fmaxf(highest[i], __shfl_xor_sync(~0u, highest[i], 1));
                    highest[i] = fmaxf(highest[i], __shfl_xor_sync(~0u, highest[i], 2));
                    risen |= highest[i] > top[m][i];
                    float base = highest[i] == -INFINITY ? 0.0f : highest[i];  // nothing seen yet: all exponentials are 0
                    keep[m][i] = exp2f(top[m][i] - base);
                    top[m][i] = highest[i];
                    sum[m][i] *= keep[m][i];
#pragma unroll
                    for (int u = 0; u < 4; u++) {
                        float x = exp2f(score[m][u][2 * i] - base), y = exp2f(score[m][u][2 * i + 1] - base);
                        sum[m][i] += x + y;
                        p[m][u][i] = pack_half2(x, y);
                    }
                }
            }
            if (__any_sync(~0u, risen))
#pragma unroll
                for (int m = 0; m < sixteens; m++)
#pragma unroll
                    for (int j = 0; j < blocks * 4; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++) out[m][j][e] *= keep[m][e / 2];
#pragma unroll
            for (int j = 0; j < blocks * 4; j++) {
                uint4 v = values[P::value_chunk(8 * j + g, half * 4 + t)];
#pragma unroll
                for (int m = 0; m < sixteens; m++) {
                    mma_f16(out[m][j], p[m][0][0], p[m][0][1], p[m][1][0], p[m][1][1], v.x, v.y);
                    mma_f16(out[m][j], p[m][2][0], p[m][2][1], p[m][3][0], p[m][3][1], v.z, v.w);
                }
            }
        }
        __syncthreads();  // the stage may be filled again
    }

    float* partial = call.partial + (static_cast<int64_t>(tile.id) * call.splits + split) * (P::tile_rows * (width + 2));
#pragma unroll
    for (int m = 0; m < sixteens; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[m][i] += __shfl_xor_sync(~0u, sum[m][i], 1);
            sum[m][i] += __shfl_xor_sync(~0u, sum[m][i], 2);
            int row = (warp * sixteens + m) * 16 + g + 8 * i;
            if (row >= tile.rows) continue;
            __half* to = call.out + tile.token(call, row) * call.out_stride + static_cast<int64_t>(tile.head(call, row)) * dim;
            float inverse = 1.0f / sum[m][i];
#pragma unroll
            for (int j = 0; j < blocks * 4; j++) {
                int d = 8 * j + 2 * t;
                if (d >= dim) continue;
                float x = out[m][j][2 * i], y = out[m][j][2 * i + 1];
                if (used == 1)
                    *reinterpret_cast<__half2*>(to + d) = __floats2half2_rn(x * inverse, y * inverse);
                else
                    __stcg(reinterpret_cast<float2*>(partial + row * width + d), make_float2(x, y));
            }
            if (used > 1 && t == 0) {
                __stcg(partial + P::tile_rows * width + row, top[m][i]);
                __stcg(partial + P::tile_rows * (width + 1) + row, sum[m][i]);
            }
        }
    if (used > 1 && last_to_arrive(call.counters + tile.id, used))
        join_splits<width>(call, tile, call.partial + static_cast<int64_t>(tile.id) * call.splits * (P::tile_rows * (width + 2)),
                           used, P::tile_rows);
}

template <int blocks, int sixteens>
Status launch_prefill(Context& context, const AttentionCall& call, int sequences) {
    dim3 grid(call.row_tiles * call.splits, call.cache.kv_heads, sequences);
    return launch(context, prefill_kernel<blocks, sixteens>, grid, threads, Prefill<blocks, sixteens>::shared_bytes, call);
}

}  // namespace

// Rows of a tile: prefill_rows(head_dim).
Status attention_prefill(Context& context, const AttentionCall& call, int sequences) {
    switch (head_blocks(call.cache.head_dim)) {
        case 1: return launch_prefill<1, 2>(context, call, sequences);
        case 2: return launch_prefill<2, 2>(context, call, sequences);
        case 3: return launch_prefill<3, 2>(context, call, sequences);
        case 4: return launch_prefill<4, 2>(context, call, sequences);
        case 5: return launch_prefill<5, 1>(context, call, sequences);
        case 6: return launch_prefill<6, 1>(context, call, sequences);
        case 7: return launch_prefill<7, 1>(context, call, sequences);
        default: return launch_prefill<8, 1>(context, call, sequences);
    }
}

}  // namespace awq::cuda
