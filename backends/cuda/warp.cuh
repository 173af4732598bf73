// Sum or maximum over a warp, the same in every lane and in every run; and the sum over this lane and those before it.
#pragma once

namespace awq::cuda {

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) x += __shfl_xor_sync(~0u, x, mask);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
    return x;
}

template <class T>
__device__ __forceinline__ T warp_sum_up_to(T x) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const T other = __shfl_up_sync(~0u, x, step);
        if (lane >= step) x += other;
    }
    return x;
}

}  // namespace awq::cuda
