// What the mma.sync kernels share: where an expert's rows lie, scales and zeros in a stage, and the way of a tile's sums to y.
#pragma once
#include <algorithm>
#include "backends/cuda/matmul_internal.h"
#include "backends/cuda/work.h"

namespace awq::cuda::mma_sync {

constexpr int static_bytes = 1536;  // of a CTA's shared memory, at most

// The first sorted row of each expert, and of the one behind the last.
struct Begins {
    const int32_t* memory;
    const int32_t* kept;  // in shared memory, or null
    __device__ __forceinline__ int operator[](int expert) const { return kept ? kept[expert] : __ldcg(memory + expert); }
};
// Every lane of a warp has an expert, from `from` on: its rows first .. end, and how many blocks of TN of them there are.
template <int TN>
__device__ __forceinline__ int blocks_of(const Begins& begins, int from, int count, int& first, int& end) {
    const int expert = min(from + (static_cast<int>(threadIdx.x) & 31), count);  // behind the last one: no rows
    first = begins[expert], end = begins[min(expert + 1, count)];
    return (end - first + TN - 1) / TN;
}
template <int TN>
__device__ __forceinline__ int token_blocks_of(const Begins& begins, int count) {
    int blocks = 0, first, end;
    for (int from = 0; from < count; from += 32) blocks += __reduce_add_sync(~0u, blocks_of<TN>(begins, from, count, first, end));
    return blocks;
}
// Block `index` of all experts' blocks of TN rows: whose it is (-1: there are not so many), its first row, and the end of the expert's rows. The lanes of
// a warp look for it together, and all have the answer.
struct ExpertBlock {
    int expert, first, end;
};
template <int TN>
__device__ __forceinline__ ExpertBlock expert_block(Begins begins, int count, int index) {
    for (int from = 0; from < count; from += 32) {
        int first, end;
        const int blocks = blocks_of<TN>(begins, from, count, first, end);
        const int behind = warp_sum_up_to(blocks);
        if (const unsigned hit = __ballot_sync(~0u, behind > index)) {
            const int lane = __ffs(static_cast<int>(hit)) - 1;
            return {from + lane, __shfl_sync(~0u, first + (index - behind + blocks) * TN, lane), __shfl_sync(~0u, end, lane)};
        }
        index -= __shfl_sync(~0u, behind, 31);
    }
    return {-1, 0, 0};
}

// Scales and zeros of a tile and so many columns (64, 128), as they lie in a stage. Groups: 2 for 128 columns a group with integer zeros; 8
// serves every size.
template <int Columns, int Groups, bool IntegerZeros>
constexpr int meta_bytes = Groups == 2 ? 48 : Columns / 32 * (IntegerZeros ? 48 : 64);
// A lane's piece of them, 16 bytes.
template <int Columns, int Groups, bool IntegerZeros>
struct MetaPiece {
    int shift, step, at;  // 2^shift columns are a group; bytes from a group's piece to the next one's; the first one's place in a unit
    bool there;
    __device__ MetaPiece(int group_size, int piece) {
        const int group = Groups == 2 ? 128 : group_size, here = max(Columns / group, 1), scales = 2 * here, zeros = here * (IntegerZeros ? 1 : 2);
        shift = 31 - __clz(group);
        there = piece < scales + zeros;
        step = piece < scales || !IntegerZeros ? 32 : 16;
        at = unit_scales + (piece < scales ? piece * 16 : unit_columns / group * 32 + (piece - scales) * 16);
    }
    // In the unit: of its columns from index * Columns on.
    __device__ int place(int index) const { return at + (index * Columns >> shift) * step; }
};
// A tile's scales and zeros in a stage, for its k16 steps.
template <int Columns, int Groups, bool IntegerZeros>
struct StageMeta {
    static constexpr int count = Groups == 2 ? 1 : Columns / 32;
    GroupMeta<IntegerZeros> of[count];
    static __device__ int groups_of(int group_size) { return Groups == 2 ? 1 : max(Columns / group_size, 1); }
    // groups: that the columns have.
    __device__ __forceinline__ void load(uint32_t at, int groups, int g) {
#pragma unroll
        for (int i = 0; i < count; i++) {
            uint32_t scales, zeros;
            load_group<IntegerZeros>(at, groups, i * groups / count, g, scales, zeros);
            of[i].set(scales, zeros);
        }
    }
    __device__ __forceinline__ const GroupMeta<IntegerZeros>& step(int j) const { return of[Groups == 2 ? 0 : j / 2]; }
};

inline __device__ __noinline__ void store_slowly(const Output& output, int rows, int tile, int token, float d0, float d1, float d2, float d3) {
    const float d[4] = {d0, d1, d2, d3};
    Output o = output;
    o.rows = rows;
    store_fragment(o, tile, token, d);
}

// A warp's sums of one tile to y, `rows` of which there are. Most outputs go in whole words; the code of the others is not repeated for every octet.
template <int TN>
__device__ __forceinline__ void store_tile(const Output& o, int rows, int tile, int token, const float (&d)[TN / 8][4]) {
    constexpr int octets = TN / 8, batch = TN <= 16 ? 1 : 4;
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    if (!o.wide || o.y32 || o.out % 4 || (o.gated && o.activation != Activation::silu)) {
#pragma unroll
        for (int j = 0; j < octets; j++)
            if (token + j * 8 < rows) store_slowly(o, rows, tile, token + j * 8, d[j][0], d[j][1], d[j][2], d[j][3]);
        return;
    }
    if (o.gated) {
        const int channel = tile * 8 + 2 * t;
        half* y = o.y + (token + g) * o.ldy + channel;
        auto silu = [](float v) { return __fdividef(v, 1.0f + __expf(-v)); };
#pragma unroll
        for (int j = 0; j < octets; j++, y += 8 * o.ldy) {
            const uint32_t v = transpose8x8(pack_half2(silu(d[j][0]) * d[j][2], silu(d[j][1]) * d[j][3]));
            if (channel < o.out / 2 && token + j * 8 + g < rows) *reinterpret_cast<uint32_t*>(y) = v;
        }
        return;
    }
    const int row = tile * tile_rows + 4 * (g >> 1) + (g & 1), column = tile * tile_rows + 4 * t;
    const float bias0 = o.bias && row < o.out ? __ldg(o.bias + row) : 0.0f,
                bias1 = o.bias && row + 2 < o.out ? __ldg(o.bias + row + 2) : 0.0f;
    const half* residual = o.residual ? o.residual + (token + g) * o.ld_residual + column : nullptr;
    half* y = o.y + (token + g) * o.ldy + column;
#pragma unroll
    for (int from = 0; from < octets; from += batch) {
        uint2 r[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            const bool there = residual && column < o.out && token + (from + i) * 8 + g < rows;
            r[i] = there ? __ldcg(reinterpret_cast<const uint2*>(residual + (from + i) * 8 * o.ld_residual)) : make_uint2(0, 0);
        }
#pragma unroll
        for (int i = 0; i < batch; i++) {
            const float* v = d[from + i];
            uint32_t low = transpose8x8(pack_half2(v[0] + bias0, v[1] + bias0)), high = transpose8x8(pack_half2(v[2] + bias1, v[3] + bias1));
            if (residual) {
                low = as_bits(__hadd2(as_half2(low), as_half2(r[i].x)));
                high = as_bits(__hadd2(as_half2(high), as_half2(r[i].y)));
            }
            if (column < o.out && token + (from + i) * 8 + g < rows)
                *reinterpret_cast<uint2*>(y + (from + i) * 8 * o.ldy) = make_uint2(low, high);
        }
    }
}

}  // namespace awq::cuda::mma_sync
