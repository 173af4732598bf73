// Tensors of halves as the tensor copy engine reads them, in boxes whose rows of 128 bytes it lays down with the 128-byte
// swizzle: the operands of wgmma (wgmma_sm90.h).
#pragma once
#include <cuda.h>
#include <cuda_fp16.h>
#include <cstdint>

namespace awq::cuda {

// encode: the driver's cuTensorMapEncodeTiled. strides: bytes, of all dimensions but the first. What lies outside of the tensor
// reads as zero.
inline cudaError_t encode_map(void* encode, const half* data, int dimensions, const cuuint64_t* sizes, const cuuint64_t* strides,
                              const cuuint32_t* box, CUtensorMap* map) {
    const cuuint32_t steps[3] = {1, 1, 1};
    using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                                     const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    return reinterpret_cast<EncodeTiled>(encode)(
               map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, static_cast<cuuint32_t>(dimensions), const_cast<half*>(data), sizes, strides,
               box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
               ? cudaSuccess
               : cudaErrorInvalidValue;
}

// One box to shared memory, counted on `bar`; by one lane.
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t bar) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(x), "r"(y), "r"(bar)
        : "memory");
#endif
}
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap* map, int x, int y, int z, uint32_t bar) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(bar)
        : "memory");
#endif
}

}  // namespace awq::cuda
