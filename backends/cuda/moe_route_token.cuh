// The norm, the router's product and the choice of experts for a single token, as every CTA of matmul_experts_token.cu makes it
// for itself. All come to the same: they do the same in the same order.
#pragma once
#include "backends/cuda/matmul_experts_decode.cuh"
#include "backends/cuda/moe_route.h"
#include "backends/cuda/warp.cuh"

namespace awq::cuda::few {

constexpr int most_router_experts = 8;  // half of an mma's rows
constexpr int router_gap = 64;  // bytes between two experts' router in shared memory: reads of 8 experts meet no bank twice
constexpr int x_unit_bytes = unit_columns * 2;  // of x

// By the warps that multiply: each takes columns of its own, and nothing but its sums depends on other warps.
struct RouterSums {
    float squares[warps],
        logits[most_router_experts][warps + 1];  // of each warp's columns, x not yet multiplied by the norm's scale
    __device__ __forceinline__ float scale(const RouteArgs& args) const {
        float total = 0;
#pragma unroll
        for (int i = 0; i < warps; i++) total += squares[i];
        return rsqrtf(total / static_cast<float>(args.in) + args.eps);
    }
    __device__ __forceinline__ float logit(int expert) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < warps; i++) sum += logits[expert][i];
        return sum;
    }
};

// A lane's eight columns of the norm's weight. Not as a constant (__ldg): the compiler would put that off until after the wait
// for the kernel before.
__device__ __forceinline__ void load_norm(const RouteArgs& args, int column, float (&w)[8]) {
    const bool there = column < args.in;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float4 v = there ? reinterpret_cast<const float4*>(args.norm + column)[i] : make_float4(0, 0, 0, 0);
        w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
    }
}
__device__ __forceinline__ uint4 load_x(const RouteArgs& args, int column) {
    return column < args.in ? __ldcg(reinterpret_cast<const uint4*>(args.x + column)) : make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ void to_floats(uint4 v, float (&f)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __half22float2(as_half2(words[i]));
        f[2 * i] = pair.x, f[2 * i + 1] = pair.y;
    }
}
__device__ __forceinline__ uint4 to_halves(const float (&f)[8]) {
    return make_uint4(pack_half2(f[0], f[1]), pack_half2(f[2], f[3]), pack_half2(f[4], f[5]), pack_half2(f[6], f[7]));
}

__host__ __device__ inline int router_pitch(const RouteArgs& args) { return args.in * 2 + router_gap; }
// Into the ring, which is not used yet. By one lane.
__device__ __forceinline__ void ask_for_router(const RouteArgs& args, uint32_t to, uint32_t bar) {
    barrier_expect(bar, static_cast<uint32_t>(args.experts * args.in * 2));
    for (int e = 0; e < args.experts; e++)
        bulk_copy(to + e * router_pitch(args), args.router + static_cast<int64_t>(e) * args.in,
                  static_cast<uint32_t>(args.in * 2), bar);
}
// 256 columns from `base` on of router times x with mma.sync, experts as rows, in an order that lets a lane load 8 neighbours at
// once. x: of these columns. Lanes 4 g: expert g's product.
__device__ __forceinline__ float multiply_router(const RouteArgs& args, const uint8_t* router, int base, const uint8_t* x) {
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const uint8_t* row = router + min(g, args.experts - 1) * router_pitch(args);  // past the last expert nobody looks
    float d[4][4] = {};  // several accumulators, to shorten the chain of dependent products
#pragma unroll
    for (int i = 0; i < unit_columns / 32; i++) {
        const int column = min(base + i * 32 + t * 8, args.in - 8);  // past the last one x is zero
        const uint4 w = *reinterpret_cast<const uint4*>(row + column * 2),
                    v = *reinterpret_cast<const uint4*>(x + i * 64 + t * 16);
        const uint32_t first[4] = {w.x, 0, w.y, 0}, second[4] = {w.z, 0, w.w, 0};
        mma(d[i % 2], first, v.x, v.y);
        mma(d[2 + i % 2], second, v.z, v.w);
    }
    return (d[0][0] + d[1][0]) + (d[2][0] + d[3][0]);
}

// Waits for x; leaves each warp's sums. x_shared: room for x. there: the router's barrier.
__device__ __forceinline__ void find_logits(const RouteArgs& args, const uint8_t* router, uint32_t there, uint8_t* x_shared,
                                            RouterSums& sums) {
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
    int base = warp * unit_columns;
    float norm[8], squares = 0, logit = 0;
    load_norm(args, base + lane * 8, norm);  // on its way while the kernel before finishes
    pdl_wait();
    const float one = args.plus_one ? 1.0f : 0.0f;
#pragma unroll 1
    while (true) {
        float f[8], most = 0;
        to_floats(load_x(args, base + lane * 8), f);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            squares += f[i] * f[i];
            f[i] *= norm[i] + one;
            most = fmaxf(most, fabsf(f[i]));
        }
        float down;
        const float up = into_half_range(most, down);
#pragma unroll
        for (int i = 0; i < 8; i++) f[i] *= up;
        uint8_t* at = x_shared + base * 2;
        *reinterpret_cast<uint4*>(at + lane * 16) = to_halves(f);
        barrier_wait(there, 0);
        __syncwarp();
        logit += down * multiply_router(args, router, base, at);
        base += warps * unit_columns;
        if (base >= args.in) break;
        load_norm(args, base + lane * 8, norm);
    }
    squares = warp_sum(squares);
    if (lane == 0) sums.squares[warp] = squares;
    if (lane % 4 == 0) sums.logits[lane / 4][warp] = logit;
}
// By a whole warp: lane k < top_k gets the k-th largest logit's expert, the lowest index first among equals, and its share.
__device__ __forceinline__ void choose(const RouteArgs& args, const RouterSums& sums, int& expert, float& share) {
    constexpr uint32_t all = ~0u;
    const int lane = static_cast<int>(threadIdx.x) & 31, own = lane % most_router_experts;
    const float logit = own < args.experts ? sums.logit(own) : -INFINITY;
    int rank = 0;
#pragma unroll
    for (int e = 0; e < most_router_experts; e++) {
        const float other = __shfl_sync(all, logit, e);
        rank += other > logit || (other == logit && e < own);
    }
    expert = 0;
    for (int k = 0; k < args.top_k; k++) {
        const int at = __ffs(__ballot_sync(all, rank == k)) - 1;  // there is none only among NaN
        if (lane == k) expert = min(max(at, 0), args.experts - 1);
    }
    const float top = __shfl_sync(all, logit, __shfl_sync(all, expert, 0));
    const float x = own < args.experts ? expf(sums.scale(args) * (logit - top)) : 0.0f;
    share = __shfl_sync(all, x, expert);
    const float chosen = warp_sum(lane < args.top_k ? share : 0.0f), whole = warp_sum(lane < most_router_experts ? x : 0.0f);
    share /= args.renormalize ? chosen : whole;
}

// x, normed, to shared memory, with zeros up to `columns`.
__device__ __forceinline__ void norm_x(const RouteArgs& args, uint8_t* x_shared, int columns, const RouterSums& sums) {
    const float scale = sums.scale(args), one = args.plus_one ? 1.0f : 0.0f;
#pragma unroll 1
    for (int column = static_cast<int>(threadIdx.x) * 8; column < columns; column += threads * 8) {
        float f[8], norm[8];
        to_floats(load_x(args, column), f);
        load_norm(args, column, norm);
#pragma unroll
        for (int i = 0; i < 8; i++) f[i] = f[i] * scale * (norm[i] + one);
        *reinterpret_cast<uint4*>(x_shared + column * 2) = to_halves(f);
    }
}

}  // namespace awq::cuda::few
