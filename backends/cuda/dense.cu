// y = x W^T for up to 4 rows of x and a dense W: the output head of every decode step, at the speed of memory.
//
// A warp takes a pair of W's rows at a time and holds no state between pairs: 16-byte loads of both rows, x from shared memory
// (as halves), float FMA, one reduction across the lanes at the end. x is staged once a CTA; CTAs stride over the rows.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {
namespace {

constexpr int warps = 8;
constexpr int shared_limit = 96 * 1024;
constexpr int max_rows = 4;

struct Params {
    const uint8_t* w;
    const half* x;
    const float* bias;
    const half* residual;
    half* y;
    float* y32;
    int64_t ldx, ldy, ld_residual;
    int out, in, pitch, x_pitch;  // x_pitch: elements of a row of x in shared memory
    bool x_aligned;
};

__device__ __forceinline__ float2 widen_half(uint32_t v) { return __half22float2(as_half2(v)); }
__device__ __forceinline__ float2 widen_bf16(uint32_t v) {
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

template <int Rows, bool Bf16>
__global__ void __launch_bounds__(warps * 32, 2) gemv_kernel(const __grid_constant__ Params p) {
    constexpr int depth = 4;  // 16-byte loads of each row in flight
    extern __shared__ __align__(16) uint8_t shared[];
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    const int stride = static_cast<int>(gridDim.x) * warps * 2, pieces = p.pitch / 8;
    const uint64_t policy = stream_policy();
    auto row_at = [&](int row) {
        return reinterpret_cast<const uint4*>(p.w) + static_cast<int64_t>(min(row, p.out - 1)) * pieces;
    };
    pdl_trigger();
    int row = (static_cast<int>(blockIdx.x) * warps + warp) * 2;
    uint4 a[depth], b[depth];
    auto load = [&](const uint4* r0, const uint4* r1, int piece) {
#pragma unroll
        for (int i = 0; i < depth; i++) {
            bool there = piece + i * 32 < pieces;
            a[i] = there ? load_stream(r0 + piece + i * 32, policy) : make_uint4(0, 0, 0, 0);
            b[i] = there ? load_stream(r1 + piece + i * 32, policy) : make_uint4(0, 0, 0, 0);
        }
    };
    if (row < p.out) load(row_at(row), row_at(row + 1), lane);
    pdl_wait();
    half* x = reinterpret_cast<half*>(shared);
    for (int i = static_cast<int>(threadIdx.x); i < Rows * (p.x_pitch / 8); i += warps * 32) {
        int m = i / (p.x_pitch / 8), column = i % (p.x_pitch / 8) * 8, left = min(max(p.in - column, 0), 8);
        const half* from = p.x + m * p.ldx + (left ? column : 0);
        half* to = x + m * p.x_pitch + column;
        if (p.x_aligned) {
            copy16(shared_address(to), from, left * 2);
        } else {
            for (int k = 0; k < 8; k++) to[k] = k < left ? load_activation(from + k) : __float2half(0.0f);
        }
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    for (; row < p.out; row += stride) {
        const uint4 *r0 = row_at(row), *r1 = row_at(row + 1);
        float sum[Rows][2] = {};
        for (int piece = lane; piece - lane < pieces; piece += depth * 32) {
            uint4 va[depth], vb[depth];
#pragma unroll
            for (int i = 0; i < depth; i++) va[i] = a[i], vb[i] = b[i];
            // the next loads: further along these rows, or the beginning of the next pair
            if (piece - lane + depth * 32 < pieces)
                load(r0, r1, piece + depth * 32);
            else if (row + stride < p.out)
                load(row_at(row + stride), row_at(row + stride + 1), lane);
#pragma unroll
            for (int i = 0; i < depth; i++) {
                int column = min(piece + i * 32, p.x_pitch / 8 - 1) * 8;  // past the end the weights are zero
                uint32_t wa[4] = {va[i].x, va[i].y, va[i].z, va[i].w}, wb[4] = {vb[i].x, vb[i].y, vb[i].z, vb[i].w};
                float2 fa[4], fb[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    fa[k] = Bf16 ? widen_bf16(wa[k]) : widen_half(wa[k]);
                    fb[k] = Bf16 ? widen_bf16(wb[k]) : widen_half(wb[k]);
                }
#pragma unroll
                for (int m = 0; m < Rows; m++) {
                    uint4 xv = *reinterpret_cast<const uint4*>(x + m * p.x_pitch + column);
                    uint32_t xw[4] = {xv.x, xv.y, xv.z, xv.w};
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        float2 f = widen_half(xw[k]);
                        sum[m][0] += fa[k].x * f.x + fa[k].y * f.y;
                        sum[m][1] += fb[k].x * f.x + fb[k].y * f.y;
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < Rows; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float v = sum[m][i];
#pragma unroll
                for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
                if (lane != 0 || row + i >= p.out) continue;
                if (p.bias) v += __ldg(p.bias + row + i);
                if (p.residual) v += __half2float(load_activation(p.residual + m * p.ld_residual + row + i));
                if (p.y32)
                    p.y32[m * p.ldy + row + i] = v;
                else
                    p.y[m * p.ldy + row + i] = __float2half(v);
            }
        }
    }
}

using Kernel = void (*)(Params);
template <bool Bf16>
Kernel pick(int rows) {
    constexpr Kernel kernels[max_rows] = {gemv_kernel<1, Bf16>, gemv_kernel<2, Bf16>, gemv_kernel<3, Bf16>, gemv_kernel<4, Bf16>};
    return kernels[rows - 1];
}
int shared_bytes(const DenseWeight& weight, int rows) {
    return static_cast<int>(std::min<int64_t>(dense_pitch(weight.in) * rows * 2, 1 << 30));
}

}  // namespace

bool gemv_fits(const DenseWeight& weight, const MatmulArgs& args) {
    return !weight.gated && args.rows <= max_rows && shared_bytes(weight, args.rows) <= shared_limit;
}

cudaError_t gemv_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args) {
    Params p;
    p.w = static_cast<const uint8_t*>(weight.data);
    p.x = args.x, p.ldx = args.ldx, p.bias = args.bias, p.residual = args.residual, p.ld_residual = args.ld_residual;
    p.y = args.y, p.y32 = args.y32, p.ldy = args.ldy;
    p.out = static_cast<int>(weight.out), p.in = static_cast<int>(weight.in);
    p.pitch = static_cast<int>(dense_pitch(weight.in)), p.x_pitch = p.pitch;
    p.x_aligned = rows_aligned(args.x, args.ldx);
    Kernel kernel = weight.dtype == DType::bf16 ? pick<true>(args.rows) : pick<false>(args.rows);
    if (cudaError_t error = allow_shared(kernel, shared_limit)) return error;
    int grid = std::min((p.out + 2 * warps - 1) / (2 * warps), context.device.sm_count * 2);
    return launch(context, kernel, dim3(static_cast<unsigned>(grid)), warps * 32, shared_bytes(weight, args.rows), p);
}

}  // namespace awq::cuda
