// Which experts a token goes to, and the order by expert: the kernels before a mixture's products.
//
// route_kernel takes 8 tokens a CTA: it norms them, multiplies them with the router and chooses; or it chooses by logits that are
// there. Up to 8 tokens it sorts as well; for more, sort_kernel does, one CTA an expert.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"
#include "backends/cuda/moe_route.h"
#include "backends/cuda/warp.cuh"

namespace awq::cuda {
namespace {

constexpr int route_tokens = 8, route_warps = 16, route_threads = route_warps * 32;
constexpr int most_routed_columns = 5120;  // 8 rows of which every GPU from sm_80 on has shared memory for
static_assert(max_routed == route_warps * 16);

// dense_pitch() for the device.
__device__ __forceinline__ int64_t router_pitch(int in) { return (in + 7) / 8 * 8; }
// Bytes of a normed row in shared memory: a warp's reads of 8 rows meet no bank twice.
__host__ __device__ constexpr int route_pitch(int in) { return (in + 63) / 64 * 128 + 64; }

// One warp's choice for a token: softmax over all experts, the top_k of them, the lowest index first among equals.
// logit(e): expert e's. Lane k < top_k returns the k-th expert and its share.
template <int PerLane, class Logit>
__device__ __forceinline__ void choose(const RouteArgs& args, Logit logit, int& expert, float& share) {
    const int lane = threadIdx.x % 32;
    // Expert i * 32 + lane: its logit, then its exponential; -1 once it is chosen, or where there is no such expert.
    float x[PerLane];
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < PerLane; i++) {
        x[i] = -1;
        if (i * 32 + lane < args.experts) top = fmaxf(top, x[i] = logit(i * 32 + lane));
    }
    top = warp_max(top);
#pragma unroll
    for (int i = 0; i < PerLane; i++)
        if (i * 32 + lane < args.experts) sum += x[i] = expf(x[i] - top);
    sum = warp_sum(sum);
    float chosen = 0, own = 0;
    expert = 0;
    for (int k = 0; k < args.top_k; k++) {
        float best = -1.0f;
        int at = max_experts;
#pragma unroll
        for (int i = 0; i < PerLane; i++)
            if (i * 32 < args.experts && x[i] > best) best = x[i], at = i * 32 + lane;
#pragma unroll
        for (int mask = 16; mask; mask >>= 1) {
            float other = __shfl_xor_sync(~0u, best, mask);
            int other_at = __shfl_xor_sync(~0u, at, mask);
            if (other > best || (other == best && other_at < at)) best = other, at = other_at;
        }
        at = min(at, args.experts - 1);  // only NaN logits leave no candidate
        best = fmaxf(best, 0.0f);
        chosen += best;
        if (lane == k) own = best, expert = at;
#pragma unroll
        for (int i = 0; i < PerLane; i++)
            if (i * 32 + lane == at) x[i] = -1.0f;
    }
    share = own / (args.renormalize ? chosen : sum);
}

// Norms this CTA's `count` tokens, first the first of them, into shared memory and to args.normed. With barriers.
__device__ __forceinline__ void norm_tokens(const RouteArgs& args, bool wide, int first, int count, uint8_t* rows) {
    __shared__ float squares[route_tokens][route_warps];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pitch = route_pitch(args.in);
    float sum[route_tokens] = {};
    for (int column = threadIdx.x * 8; column < pitch / 2 - 32; column += route_threads * 8) {
        uint4 v[route_tokens];
#pragma unroll
        for (int m = 0; m < route_tokens; m++) {
            v[m] = make_uint4(0, 0, 0, 0);
            const half* from = args.x + (first + m) * args.ldx + column;
            if (m >= count || column >= args.in) continue;
            if (wide) {
                v[m] = __ldcg(reinterpret_cast<const uint4*>(from));
            } else {
                __align__(16) half h[8];
                for (int i = 0; i < 8; i++) h[i] = column + i < args.in ? load_activation(from + i) : __float2half(0.0f);
                v[m] = *reinterpret_cast<uint4*>(h);
            }
        }
#pragma unroll
        for (int m = 0; m < route_tokens; m++) {
            if (m >= count) continue;
            *reinterpret_cast<uint4*>(rows + m * pitch + column * 2) = v[m];
            for (uint32_t word : {v[m].x, v[m].y, v[m].z, v[m].w}) {
                const float2 f = __half22float2(as_half2(word));
                sum[m] += f.x * f.x + f.y * f.y;
            }
        }
    }
#pragma unroll
    for (int m = 0; m < route_tokens; m++) {
        if (m >= count) continue;
        sum[m] = warp_sum(sum[m]);
        if (lane == 0) squares[m][warp] = sum[m];
    }
    __syncthreads();
    const float one = args.plus_one ? 1.0f : 0.0f;
    for (int column = threadIdx.x * 8; column < args.in; column += route_threads * 8) {
        float weight[8];
#pragma unroll
        for (int i = 0; i < 8; i++) weight[i] = (column + i < args.in ? __ldg(args.norm + column + i) : 0.0f) + one;
        for (int m = 0; m < count; m++) {
            float total = 0;
#pragma unroll
            for (int i = 0; i < route_warps; i++) total += squares[m][i];
            const float scale = rsqrtf(total / static_cast<float>(args.in) + args.eps);
            uint4* at = reinterpret_cast<uint4*>(rows + m * pitch + column * 2);
            const uint4 v = *at;
            auto pair = [&](uint32_t word, int i) {
                const float2 f = __half22float2(as_half2(word));
                return pack_half2(f.x * scale * weight[i], f.y * scale * weight[i + 1]);
            };
            *at = make_uint4(pair(v.x, 0), pair(v.y, 2), pair(v.z, 4), pair(v.w, 6));
            half* to = args.normed + static_cast<int64_t>(first + m) * args.in + column;
            if (args.in % 8 == 0)
                *reinterpret_cast<uint4*>(to) = *at;
            else
                for (int i = 0; i < 8 && column + i < args.in; i++) to[i] = reinterpret_cast<const half*>(at)[i];
        }
    }
    __syncthreads();
}

// Router times tokens with mma.sync: a warp takes 16 experts (as rows) and a part of the columns. `sums` [warp][16][8]
// receives expert's and token's part. The columns are taken in an order that lets a lane load 8 neighbours at once.
__device__ __forceinline__ void multiply_router(const RouteArgs& args, int count, const uint8_t* rows, float* sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane >> 2, t = lane & 3, pitch = route_pitch(args.in);
    const int tiles = (args.experts + 15) / 16, parts = route_warps / tiles, tile = warp % tiles, part = warp / tiles;
    if (part >= parts) return;
    const int64_t pitch_of_router = router_pitch(args.in);
    const int steps = (args.in + 31) / 32, end = steps * (part + 1) / parts;
    const half* w = args.router + (tile * 16 + g) * pitch_of_router + t * 8;
    const bool low = tile * 16 + g < args.experts, high = tile * 16 + g + 8 < args.experts;
    const uint8_t* x = rows + min(g, count - 1) * pitch + t * 16;
    float d[4] = {};
    constexpr int depth = 8;
    for (int step = steps * part / parts; step < end; step += depth) {
        uint4 a[depth], b[depth];
        const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < depth; i++) {
            const int column = (step + i) * 32 + t * 8;
            const bool there = step + i < end && column < pitch_of_router;
            const half* from = w + (step + i) * 32;
            a[i] = there && low ? __ldg(reinterpret_cast<const uint4*>(from)) : none;
            b[i] = there && high ? __ldg(reinterpret_cast<const uint4*>(from + 8 * pitch_of_router)) : none;
        }
#pragma unroll
        for (int i = 0; i < depth; i++) {
            if (step + i >= end) break;
            const uint4 v = *reinterpret_cast<const uint4*>(x + (step + i) * 64);
            const uint32_t first[4] = {a[i].x, b[i].x, a[i].y, b[i].y}, second[4] = {a[i].z, b[i].z, a[i].w, b[i].w};
            mma(d, first, v.x, v.y);
            mma(d, second, v.z, v.w);
        }
    }
    float2* to = reinterpret_cast<float2*>(sums + warp * 128 + g * 8 + 2 * t);
    to[0] = make_float2(d[0], d[1]);
    to[32] = make_float2(d[2], d[3]);
}

template <bool Multiply>
__global__ void __launch_bounds__(route_threads)
    route_kernel(const __grid_constant__ RouteArgs args, bool wide, const __grid_constant__ Routing to) {
    extern __shared__ __align__(16) uint8_t rows[];
    __shared__ float sums[Multiply ? route_warps * 128 : 1];
    __shared__ int chosen[route_tokens * max_top_k];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = blockIdx.x * route_tokens, count = min(route_tokens, args.tokens - first);
    pdl_trigger();
    if constexpr (Multiply) {  // weights need not wait: into L2
        auto fetch = [&](const void* base, int64_t bytes) {
            for (int64_t at = threadIdx.x * 128; at < bytes; at += route_threads * 128)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(base) + at));
        };
        if (blockIdx.x == 0) {
            fetch(args.router, args.experts * router_pitch(args.in) * 2);
            fetch(args.norm, args.in * 4);
        }
    }
    pdl_wait();
    if constexpr (Multiply) {
        norm_tokens(args, wide, first, count, rows);
        multiply_router(args, count, rows, sums);
        __syncthreads();
    }
    if (warp < count) {
        int expert;
        float share;
        if constexpr (Multiply) {
            const int tiles = (args.experts + 15) / 16, parts = route_warps / tiles;
            choose<max_routed / 32>(
                args,
                [&](int e) {
                    float sum = 0;
                    for (int part = 0; part < parts; part++) sum += sums[(part * tiles + e / 16) * 128 + e % 16 * 8 + warp];
                    return sum;
                },
                expert, share);
        } else {
            const half* logits = args.logits + (first + warp) * args.ld_logits;
            choose<max_experts / 32>(
                args, [&](int e) { return __half2float(load_activation(logits + e)); }, expert, share);
        }
        if (lane < args.top_k) {
            chosen[warp * args.top_k + lane] = expert;
            const int choice = (first + warp) * args.top_k + lane;
            to.share[choice] = share;
            to.expert_of[choice] = expert;
        }
    }
    if (gridDim.x > 1) return;
    // Few choices: each looks at all the others.
    __syncthreads();
    const int choices = count * args.top_k;
    for (int c = threadIdx.x; c < choices; c += route_threads) {
        const int e = chosen[c];
        int place = 0;
        for (int i = 0; i < choices; i++) place += chosen[i] < e || (chosen[i] == e && i < c);
        to.place[c] = place;
        to.expert[place] = e;
        to.source[place] = c / args.top_k;
    }
    for (int e = threadIdx.x; e <= args.experts; e += route_threads) {
        int before = 0;
        for (int i = 0; i < choices; i++) before += chosen[i] < e;
        to.begin[e] = before;
    }
}

constexpr int sort_threads = 256;

// A stable counting sort by expert; this CTA's is blockIdx.x. Each thread has a run of neighbouring choices.
__global__ void __launch_bounds__(sort_threads) sort_kernel(const __grid_constant__ Routing to, int choices, int top_k) {
    __shared__ int owns[sort_threads / 32], befores[sort_threads / 32];
    pdl_trigger();
    pdl_wait();
    const int e = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int each = (choices + sort_threads - 1) / sort_threads, first = threadIdx.x * each, end = min(first + each, choices);
    int before = 0, own = 0;
    for (int i = first; i < end; i++) {
        const int other = __ldcg(to.expert_of + i);
        before += other < e, own += other == e;
    }
    const int upto = warp_sum_up_to(own);  // of this expert's choices, those of this warp's threads up to this one
    before = __reduce_add_sync(~0u, before);
    if (lane == 31) owns[warp] = upto, befores[warp] = before;
    __syncthreads();
    int row = upto - own;
    for (int i = 0; i < sort_threads / 32; i++) row += befores[i] + (i < warp ? owns[i] : 0);
    if (threadIdx.x == 0) {
        to.begin[e] = row;
        if (e + 1 == static_cast<int>(gridDim.x)) to.begin[e + 1] = choices;
    }
    for (int i = first; i < end; i++) {
        if (__ldcg(to.expert_of + i) != e) continue;
        to.place[i] = row;
        to.expert[row] = e;
        to.source[row] = i / top_k;
        row++;
    }
}

}  // namespace

bool route_fits(int64_t experts, int64_t in) { return experts <= max_routed && in <= most_routed_columns; }

cudaError_t route(const MatmulContext& context, const RouteArgs& args, const Routing& to) {
    const auto ctas = static_cast<unsigned>((args.tokens + route_tokens - 1) / route_tokens);
    const int choices = args.tokens * args.top_k;
    cudaError_t error;
    if (args.logits) {
        error = launch(context, route_kernel<false>, dim3(ctas), route_threads, 0, args, false, to);
    } else {
        const int shared = std::min(args.tokens, route_tokens) * route_pitch(args.in);
        if ((error = allow_shared(route_kernel<true>, shared))) return error;
        error = launch(context, route_kernel<true>, dim3(ctas), route_threads, shared, args,
                       rows_aligned(args.x, args.ldx) && args.in % 8 == 0, to);
    }
    if (error || ctas == 1) return error;
    return launch(context, sort_kernel, dim3(static_cast<unsigned>(args.experts)), sort_threads, 0, to, choices, args.top_k);
}

}  // namespace awq::cuda
