// What the kernels of a few rows share: the tile's rows of q on their way to shared memory, rotated where the block does
// rope_append's work too, and the token's own key and value.
#pragma once
#include "backends/cuda/attention.h"

namespace awq::cuda {

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t fragment) {
    uint32_t result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(fragment));
    return result;
}

// A tile's rows of q in shared memory, and the token's own key and value where the block appends.
template <int blocks>
struct Staged {
    static constexpr int width = blocks * 32;
    // 64 bytes more or less than a multiple of 128: two rows' 64 neighbouring bytes are then in different banks.
    static constexpr int q_pitch = width + (blocks % 2 ? 0 : 32);
    __align__(16) __half q[decode_tile + 1][q_pitch];  // behind the last row: the token's own key
    __align__(16) __half v[width];                     // its own value
};

// Has the address at hand, and translated, once the previous kernel is done. (The memory holds what comes of it only then.)
__device__ __forceinline__ void prepare_to_read(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// The token and the head of a tile's row. Where a block appends there is one token to a sequence.
template <bool append>
__device__ __forceinline__ int row_token(const AttentionCall& call, const Tile& tile, int row) {
    return append ? tile.first_token : tile.token(call, row);
}
template <bool append>
__device__ __forceinline__ int row_head(const AttentionCall& call, const Tile& tile, int row) {
    return append ? tile.kv_head * call.group + tile.first_row + row : tile.head(call, row);
}

// The tile's rows of q to shared memory once they are there. Where the block appends they are rotated, and so is the token's own
// key if the block takes it (has_newest), which stands behind them; its value is beside. A barrier is still to come.
template <int blocks, int warps, bool fast, bool append>
__device__ __forceinline__ void stage_rows(const AttentionCall& call, const Tile& tile, bool has_newest, Staged<blocks>& staged) {
    constexpr int threads = warps * 32;
    constexpr int row_rounds = (decode_tile + append + warps - 1) / warps, column_rounds = (blocks * 8 + 31) / 32,
                  value_rounds = (blocks * 32 + threads - 1) / threads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = fast ? blocks * 32 : call.cache.head_dim;
    const auto& a = call.append;
    const int rows = tile.rows + has_newest;
    const __half *from[row_rounds], *values = nullptr;
    const float* table = nullptr;
    int x[column_rounds], y[column_rounds];  // a lane has columns x, x + 1, y, y + 1: two pairs, or none
    bool turned[column_rounds];
#pragma unroll
    for (int c = 0; c < column_rounds; c++) {
        const int u = lane + c * 32;
        x[c] = 4 * u, y[c] = 4 * u + 2;
        turned[c] = append && x[c] < 2 * a.half;
        if (turned[c] && !a.interleaved) x[c] = 2 * u, y[c] = a.half + 2 * u;
    }
#pragma unroll
    for (int i = 0; i < row_rounds; i++) {
        const int row = warp + i * warps;
        if (row >= rows) break;
        from[i] = call.q + row_token<append>(call, tile, row) * call.q_stride + row_head<append>(call, tile, row) * dim;
        if (append && row == tile.rows) from[i] = a.k + tile.first_token * a.k_stride + tile.kv_head * dim;
        prepare_to_read(from[i]);
    }
    if (append) {
        values = a.v + tile.first_token * a.v_stride + tile.kv_head * dim;
        table = a.table + tile.first_token * a.table_stride + 2 * lane;
        prepare_to_read(values);
        prepare_to_read(table);
    }

    wait_for_previous();
    __half value[value_rounds];
    if (has_newest)
#pragma unroll
        for (int i = 0; i < value_rounds; i++)
            if (int d = threadIdx.x + i * threads; d < dim) value[i] = __ldcg(values + d);
#pragma unroll
    for (int c = 0; c < column_rounds; c++) {
        const int u = lane + c * 32;
        const bool inside = fast ? u < blocks * 8 : 4 * u < dim;
        float2 cosine = make_float2(1, 1), sine = make_float2(0, 0);
        if (turned[c]) {
            cosine = __ldcg(reinterpret_cast<const float2*>(table + 64 * c));
            sine = __ldcg(reinterpret_cast<const float2*>(table + 64 * c + a.half));
        }
        uint32_t x_bits[row_rounds], y_bits[row_rounds];
#pragma unroll
        for (int i = 0; i < row_rounds; i++) {
            x_bits[i] = y_bits[i] = 0;
            if (warp + i * warps >= rows || !inside) continue;
            x_bits[i] = __ldcg(reinterpret_cast<const uint32_t*>(from[i] + x[c]));
            y_bits[i] = __ldcg(reinterpret_cast<const uint32_t*>(from[i] + y[c]));
        }
        // Pairs are made of x and y column by column; interleaved ones lie in x and in y, and are brought apart and back.
        const unsigned low_halves = a.interleaved ? 0x5410 : 0x3210, high_halves = a.interleaved ? 0x7632 : 0x7654;
#pragma unroll
        for (int i = 0; i < row_rounds; i++) {
            const int row = warp + i * warps;
            if (row >= rows || u >= blocks * 8) break;
            if (append) {
                const float2 p = unpack_half2(__byte_perm(x_bits[i], y_bits[i], low_halves)),
                             q = unpack_half2(__byte_perm(x_bits[i], y_bits[i], high_halves));
                const uint32_t p_bits = pack_half2(p.x * cosine.x - q.x * sine.x, p.y * cosine.y - q.y * sine.y),
                               q_bits = pack_half2(q.x * cosine.x + p.x * sine.x, q.y * cosine.y + p.y * sine.y);
                x_bits[i] = __byte_perm(p_bits, q_bits, low_halves);
                y_bits[i] = __byte_perm(p_bits, q_bits, high_halves);
            }
            *reinterpret_cast<uint32_t*>(&staged.q[row][x[c]]) = x_bits[i];
            *reinterpret_cast<uint32_t*>(&staged.q[row][y[c]]) = y_bits[i];
        }
    }
    if (has_newest)
#pragma unroll
        for (int i = 0; i < value_rounds; i++)
            if (int d = threadIdx.x + i * threads; d < dim) staged.v[d] = value[i];
}

// A warp puts the token's own key and value into the cache, from shared memory. page: the head's keys in the position's page.
template <int blocks, bool fast>
__device__ __forceinline__ void put_newest(const AttentionCall& call, const Tile& tile, int newest, __half* page,
                                           const Staged<blocks>& staged) {
    const int lane = threadIdx.x % 32, dim = fast ? blocks * 32 : call.cache.head_dim;
    __half *key = page + newest % page_size * dim,
           *value = page + static_cast<int64_t>(call.cache.kv_heads) * page_size * dim + newest % page_size;
    if (lane * 8 < dim) reinterpret_cast<uint4*>(key)[lane] = reinterpret_cast<const uint4*>(staged.q[tile.rows])[lane];
    for (int d = lane; d < dim; d += 32) value[d * page_size] = staged.v[d];
}

}  // namespace awq::cuda
