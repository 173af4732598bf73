// What the kernels of a mixture of experts for few tokens share (matmul_experts_decode.cu, matmul_experts_token.cu): sixteen
// warps a CTA that multiply int4 units with x in shared memory; and the former's stream of units for each warp. sm_90 and later.
#pragma once
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda::few {

constexpr int warps = 16, threads = warps * 32;
constexpr int most_slots = 6;
constexpr int spare = 3072;  // of shared memory, for what is not dynamic

__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory"); }

// Bytes of a row of x in shared memory: ldmatrix meets no bank twice.
inline int x_pitch_of(const Q4Layout& layout) { return static_cast<int>(layout.units()) * unit_columns * 2 + 16; }

// Eight columns of a row of x to shared memory, zero past `in`. To be waited for with copy_wait().
__device__ __forceinline__ void stage_piece(uint8_t* to, const half* from, int in, int piece, bool aligned) {
    const int left = min(max(in - piece * 8, 0), 8);
    if (aligned) {
        copy16(shared_address(to), from + (left ? piece * 8 : 0), left * 2);
    } else {
        half* h = reinterpret_cast<half*>(to);
        for (int c = 0; c < 8; c++) h[c] = c < left ? load_activation(from + piece * 8 + c) : __float2half(0.0f);
    }
}
// A row, by all threads. To be waited for with copy_wait<0>() and meet().
__device__ __forceinline__ void stage_row(uint8_t* to, const half* from, int in, int units, bool aligned) {
    for (int i = static_cast<int>(threadIdx.x); i < units * 32; i += threads) stage_piece(to + i * 16, from, in, i, aligned);
}

// A warp's ring of units: bulk copies that it waits for and asks for itself.
struct Stream {
    uint32_t full, ring;  // barriers, units
    int slots, unit_bytes, slot = 0, phase = 0;
    __device__ __forceinline__ Stream(const uint64_t* barriers, const uint8_t* shared, int slots, int unit_bytes)
        : slots(slots), unit_bytes(unit_bytes) {
        const int warp = static_cast<int>(threadIdx.x) >> 5;
        full = shared_address(barriers + warp * most_slots);
        ring = shared_address(shared) + warp * slots * unit_bytes;
    }
    __device__ __forceinline__ void init() const {  // by one lane; then the CTA meets
        for (int i = 0; i < slots; i++) barrier_init(full + 8 * i, 1);
        barrier_init_done();
    }
    __device__ __forceinline__ void ask(int slot, const uint8_t* from, uint64_t policy) const {  // by one lane
        barrier_expect(full + 8 * slot, static_cast<uint32_t>(unit_bytes));
        bulk_copy(ring + slot * unit_bytes, from, static_cast<uint32_t>(unit_bytes), full + 8 * slot, policy);
    }
};

// One unit, 16 rows x 256 columns, in a warp's registers. Groups: of a unit; 8 serves every size.
template <int Groups, bool IntegerZeros>
struct Unit {
    uint4 words[4];
    uint32_t scales[Groups], zeros[Groups];

    // from: in shared memory
    __device__ __forceinline__ void load(uint32_t from, int group_columns) {
        const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2;
        const int groups = Groups == 2 ? 2 : unit_columns / group_columns;
        const int group_shift = group_columns == 128 ? 2 : group_columns == 64 ? 1 : 0;  // of 32-column pieces
#pragma unroll
        for (int span = 0; span < 4; span++) words[span] = load_shared16(from + span * 512 + lane * 16);
#pragma unroll
        for (int piece = 0; piece < Groups; piece++) {
            const int group = Groups == 2 ? piece : piece >> group_shift;
            load_group<IntegerZeros>(from + unit_scales, groups, group, g, scales[piece], zeros[piece]);
        }
    }
    // The next one of the stream; then `ask(slot)` by one lane for what comes into its slot.
    template <class Ask>
    __device__ __forceinline__ void take(Stream& stream, int group_columns, Ask ask) {
        barrier_wait(stream.full + 8 * stream.slot, stream.phase);
        load(stream.ring + stream.slot * stream.unit_bytes, group_columns);
        __syncwarp();
        if ((threadIdx.x & 31) == 0) ask(stream.slot);
        if (++stream.slot == stream.slots) stream.slot = 0, stream.phase ^= 1;
    }

    // Two accumulators, to shorten the chain of dependent products. x: this lane's ldmatrix row of the unit's columns.
    __device__ __forceinline__ void multiply(float (&d)[2][4], uint32_t x) const {
        GroupMeta<IntegerZeros> meta;
#pragma unroll
        for (int pair = 0; pair < 8; pair++) {  // of k16 steps
            uint32_t b[4], a[4];
            ldmatrix4(b, x + pair * 64);
            if (pair * Groups % 8 == 0) meta.set(scales[pair * Groups / 8], zeros[pair * Groups / 8]);
            const uint4& span = words[pair / 2];
            dequantize<IntegerZeros>(a, pair % 2 ? span.z : span.x, meta);
            mma(d[0], a, b[0], b[1]);
            dequantize<IntegerZeros>(a, pair % 2 ? span.w : span.y, meta);
            mma(d[1], a, b[2], b[3]);
        }
    }
};
// One of a tile's outputs: the sums of sixteen warps, `stride` floats apart, added up by four neighbouring lanes.
__device__ __forceinline__ float total_of(const float* sums, int stride) {
    const float* from = sums + (static_cast<int>(threadIdx.x) & 3) * 4 * stride;
    float v = 0;
#pragma unroll
    for (int w = 0; w < 4; w++) v += from[w * stride];
    v += __shfl_xor_sync(~0u, v, 1);
    return v + __shfl_xor_sync(~0u, v, 2);
}

}  // namespace awq::cuda::few
