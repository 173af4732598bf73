// What the two mma.sync kernels of int4 weights share: scales and zeros in a stage, and the way of a tile's sums to y.
#pragma once
#include <algorithm>
#include "backends/cuda/matmul_internal.h"
#include "backends/cuda/work.h"

namespace awq::cuda::mma_sync {

constexpr int static_bytes = 1536;  // of a CTA's shared memory, at most

// Scales and zeros of a tile and so many columns (64, 128), as they lie in a stage. Groups: 2 for 128 columns a group with integer zeros; 8
// serves every size.
template <int Columns, int Groups, bool IntegerZeros>
constexpr int meta_bytes = Groups == 2 ? 48 : Columns / 32 * (IntegerZeros ? 48 : 64);
// A lane's piece of them, 16 bytes.
template <int Columns, int Groups, bool IntegerZeros>
struct MetaPiece {
    int group, step, at;  // columns of a group; bytes from a group's piece to the next one's; the first one's place in a unit
    bool there;
    __device__ MetaPiece(int group_size, int piece) {
        group = Groups == 2 ? 128 : group_size;
        const int here = max(Columns / group, 1), scales = 2 * here, zeros = here * (IntegerZeros ? 1 : 2);
        there = piece < scales + zeros;
        step = piece < scales || !IntegerZeros ? 32 : 16;
        at = 2048 + (piece < scales ? piece * 16 : unit_columns / group * 32 + (piece - scales) * 16);
    }
    // In the unit: of its columns from index * Columns on.
    __device__ int place(int index) const { return at + index * Columns / group * step; }
};
// A tile's scales and zeros in a stage, for its k16 steps.
template <int Columns, int Groups, bool IntegerZeros>
struct StageMeta {
    static constexpr int count = Groups == 2 ? 1 : Columns / 32;
    GroupMeta<IntegerZeros> of[count];
    __device__ __forceinline__ void load(uint32_t at, int group_size, int g) {
        const int here = Groups == 2 ? 1 : max(Columns / group_size, 1);
#pragma unroll
        for (int i = 0; i < count; i++) {
            uint32_t scales, zeros;
            load_group<IntegerZeros>(at - 2048, here, i * here / count, g, scales, zeros);
            of[i].set(scales, zeros);
        }
    }
    __device__ __forceinline__ const GroupMeta<IntegerZeros>& step(int j) const { return of[Groups == 2 ? 0 : j / 2]; }
};
__device__ __forceinline__ uint32_t word_of(const uint4& words, int j) { return j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w; }

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
