// What the files of the CUDA backend share: errors as Status, launching with programmatic dependence, device helpers.
//
// Activations are float16, accumulation is float32. A kernel starts with wait_for_previous(): launches of one run overlap
// (each may begin while the one before it drains), so nothing a previous kernel wrote may be read, and nothing it reads
// may be overwritten, before that call. Batch inputs are the exception: they are copied before the first launch.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <span>
#include <utility>
#include <vector>
#include "backends/backend.h"
#include "backends/cuda/matmul.h"
#ifdef __CUDACC__
#include "backends/cuda/warp.cuh"
#endif

namespace awq::cuda {

// cudaErrorMemoryAllocation becomes out_of_memory, all others internal; clears the sticky "last error".
Status cuda_error(cudaError_t error, const char* what);

#define AWQ_CUDA(call)                                                                                        \
    do {                                                                                                      \
        if (cudaError_t awq_error_ = (call); awq_error_ != cudaSuccess) return cuda_error(awq_error_, #call); \
    } while (0)

// One run on its way through the device: KernelCall::context of every kernel.
struct Context {
    cudaStream_t stream = nullptr;
    int multiprocessors = 0;
    int compute_major = 0;    // 9: Hopper
    size_t shared_limit = 0;  // bytes of shared memory one block may have
    bool chained = false;     // the stream's last operation is one of our kernels
    // Memory of one kernel call, undefined on entry; as large as the row's scratch function asked for.
    char* scratch = nullptr;
    size_t scratch_bytes = 0;
    MatmulContext matmul;  // has scratch memory of its own
    // Arrival counters of kernels whose last block does the rest; zero on entry, left zero.
    unsigned* counters = nullptr;
    static constexpr int counter_count = 1 << 16;
    // Facts about the batch that decide launch shapes; known on the host, part of a captured graph's key.
    int32_t min_query = 1, max_query = 1;  // fewest and most tokens of one sequence in this run
    int32_t max_keys = 1;                  // an upper limit of the cache length of any sequence, rounded up coarsely
    // Device copies of the graph's constant vectors (alibi slopes), sent along with the batch.
    std::vector<std::pair<const float*, const float*>> constants;
    const float* device_constant(const float* host) const {
        for (auto& [from, to] : constants)
            if (from == host) return to;
        return nullptr;
    }
};
inline Context& context(const KernelCall& call) { return *static_cast<Context*>(call.context); }

// Launches with the attribute that lets the kernel begin while the previous one still runs, where the device can.
template <class... Parameters, class... Arguments>
Status launch(Context& context, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Arguments&&... arguments) {
    if (shared > context.shared_limit)
        return Status(Code::internal, "a kernel asks for " + std::to_string(shared) + " bytes of shared memory; the GPU has " + std::to_string(context.shared_limit));
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = context.stream;
    cudaLaunchAttribute attribute = {};
    if (context.chained && context.compute_major >= 9) {
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    // All kernels ask for the same division of an SM between cache and shared memory, the matrix kernels' one: a multiprocessor
    // changes it only while it is idle, which would keep a kernel from beginning beside the one before it.
    AWQ_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    if (shared > 32 * 1024)  // beyond 48 KB, static shared memory included, only on request
        AWQ_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    AWQ_CUDA(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...));
    context.chained = true;
    return {};
}

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
// 16-byte accesses are sound for every row of the matrix.
inline bool wide_rows(const Tensor& t) {
    int64_t row = t.stride * static_cast<int64_t>(dtype_bytes(t.dtype));
    return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows <= 1 || row % 16 == 0);
}

// The tables of the families; backend.cu strings them together.
std::span<const Kernel> elementwise_kernels();
std::span<const Kernel> norm_kernels();
std::span<const Kernel> rope_kernels();
std::span<const Kernel> attention_kernels();
std::span<const Kernel> linear_kernels();
std::span<const Kernel> moe_kernels();

inline bool always(const Graph&, const Node&) { return true; }

// Scratch a node's kernel needs at these sizes (attention.cu, moe.cu, linear.cu); max_keys as in Context.
size_t attention_scratch(const Graph& graph, const Node& node, const BatchSize& size, const Context& context);
void moe_needs(const Graph& graph, const Node& node, const BatchSize& size, int64_t& rows, int64_t& in, size_t& scratch);
void linear_needs(const Graph& graph, const Node& node, const BatchSize& size, int64_t& rows, int64_t& in, size_t& scratch);

// The weight of a node that is a matrix product (not a mixture's), or null (linear.cu).
const Weight* product_weight(const Graph& graph, const Node& node);
// matmul.h's products in the run's stream (linear.cu).
Status multiply(Context& context, const Weight& weight, const MatmulArgs& args);
Status multiply_experts(Context& context, const Weight& weight, const MatmulArgs& args, const ExpertRows& rows);

#ifdef __CUDACC__
// ---- device helpers

// Until the kernel before has completed and what it wrote can be seen. Since that one waited as well before it ended, the same
// then holds of all kernels of the run before it. It holds of none earlier: several kernels may be on the device at once,
// each waiting for the one before.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may be scheduled "as soon as all other CTAs in the grid issue the same instruction or have completed" (PTX
// ISA, griddepcontrol.launch_dependents). All have begun by then: said first thing, it cannot let a block of the next kernel
// take the place of one of this kernel.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A float as float16. Beyond its range: infinity, which check_finite finds.
__device__ __forceinline__ uint32_t pack_half2(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&both);
}
__device__ __forceinline__ float2 unpack_half2(uint32_t bits) { return __half22float2(*reinterpret_cast<const __half2*>(&bits)); }

// `count` (1 or 8) neighbouring elements as floats.
template <int count>
__device__ __forceinline__ void load(const __half* from, float (&to)[count]) {
    if constexpr (count == 1) {
        to[0] = __half2float(*from);
    } else {
        static_assert(count == 8);
        uint4 bits = *reinterpret_cast<const uint4*>(from);
        float2 pair[4] = {unpack_half2(bits.x), unpack_half2(bits.y), unpack_half2(bits.z), unpack_half2(bits.w)};
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = i & 1 ? pair[i / 2].y : pair[i / 2].x;
    }
}
template <int count>
__device__ __forceinline__ void load(const float* from, float (&to)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) to[i] = from[i];
}
template <int count>
__device__ __forceinline__ void store(__half* to, const float (&from)[count]) {
    if constexpr (count == 1) {
        *to = __float2half_rn(from[0]);
    } else {
        static_assert(count == 8);
        *reinterpret_cast<uint4*>(to) = make_uint4(pack_half2(from[0], from[1]), pack_half2(from[2], from[3]),
                                                   pack_half2(from[4], from[5]), pack_half2(from[6], from[7]));
    }
}
template <int count>
__device__ __forceinline__ void store(float* to, const float (&from)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) to[i] = from[i];
}

__device__ __forceinline__ float activate(Activation activation, float x) {
    switch (activation) {
        case Activation::none: return x;
        case Activation::silu: return x / (1.0f + __expf(-x));
        case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case Activation::gelu_tanh: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        case Activation::quick_gelu: return x / (1.0f + __expf(-1.702f * x));
        case Activation::relu: return fmaxf(x, 0.0f);
    }
    return x;
}
#endif

}  // namespace awq::cuda
