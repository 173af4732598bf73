// What the files of the matrix kernels share on the host: the launch helper, the scratch's parts, and the choices a lab
// program may force. Not included from outside backends/cuda/matmul*, dense.cu and lab/.
#pragma once
#include "backends/cuda/matmul.h"
#include "backends/cuda/matmul_device.cuh"

namespace awq::cuda {

// Scratch: counters (zero between kernels), partial sums, normalised rows of x.
inline constexpr int64_t counter_count = 32768;
inline constexpr int64_t partial_bytes = int64_t{48} << 20;
struct Scratch {
    uint32_t* counters;
    float4* partials;
    half* rows;
};
inline Scratch scratch_of(const MatmulContext& context) {
    char* base = static_cast<char*>(context.scratch);
    return {reinterpret_cast<uint32_t*>(base), reinterpret_cast<float4*>(base + counter_count * 4),
            reinterpret_cast<half*>(base + counter_count * 4 + partial_bytes)};
}

// For the lab: forced choices; zero (or -1) means that the library decides.
struct MatmulTuning {
    int kernel = 0;                                              // 1: decode, 2: prefill (wgmma), 3: mma.sync, 4: batch
    int slots = 0, window = 0, first_window = 0;  // decode: of the ring; parts (batch: KB) on their way, and until x is there
    int tokens = 0;                                              // prefill, mma.sync: tokens of a CTA
    int schedule = -1;                                           // prefill: see choose_schedule
    int cluster = 0;                                             // prefill: CTAs that share what they load of x; batch: that cut K
    // An attempt of the lab that takes the place of the decode kernel, up to 16 rows.
    cudaError_t (*decode)(const MatmulContext&, const Q4Weight&, const MatmulArgs&) = nullptr;
};
extern MatmulTuning tuning;

inline Output output_of(const MatmulArgs& args, int64_t out, bool gated) {
    Output o;
    o.y = args.y, o.y32 = args.y32, o.ldy = args.ldy;
    o.residual = args.residual, o.ld_residual = args.ld_residual;
    o.bias = args.bias;
    o.rows = args.rows, o.out = static_cast<int>(out);
    o.gated = gated, o.activation = args.gate_activation;
    auto aligned = [](const void* p, int64_t stride, int bytes) {
        return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0 && stride * 2 % bytes == 0;
    };
    int bytes = gated ? 4 : 8;
    o.wide = aligned(args.y, args.ldy, bytes) && (!args.residual || aligned(args.residual, args.ld_residual, bytes)) &&
             (!gated || args.gate_activation != Activation::none || out / 2 % 2 == 0);
    return o;
}
// W, x and y of a product, plain or by experts.
struct Operands {
    const uint8_t* w;
    const half* x;
    Output output;
    ExpertRows experts;  // begin null: one matrix
    int64_t ldx, expert_bytes;
};
// matrix: the weight's layout, or a dense weight itself; bytes: of one expert; experts: null for a plain product.
template <class Weight, class Matrix>
Operands operands_of(const Weight& weight, const Matrix& matrix, int64_t bytes, const MatmulArgs& args, const ExpertRows* experts) {
    return {static_cast<const uint8_t*>(weight.data), args.x, output_of(args, matrix.out, matrix.gated), experts ? *experts : ExpertRows{},
            args.ldx, bytes};
}
// The variants of a kernel that a weight takes: 2 groups a unit have one of their own, 8 serves every size.
inline int variant_groups(const Q4Layout& layout) { return layout.group == 128 && layout.integer_zeros ? 2 : 8; }
inline bool rows_aligned(const half* x, int64_t ldx) { return reinterpret_cast<uintptr_t>(x) % 16 == 0 && ldx % 8 == 0; }

// cluster: CTAs of one; 0: not as clusters.
template <class... Params, class... Args>
cudaError_t launch_clusters(const MatmulContext& context, void (*kernel)(Params...), int cluster, dim3 grid, int threads,
                            int shared_bytes, Args... args) {
    if (shared_bytes > context.device.shared_block) return cudaErrorInvalidValue;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = context.stream;
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (context.pdl && context.device.arch >= 90) {
        attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 0) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}
template <class... Params, class... Args>
cudaError_t launch(const MatmulContext& context, void (*kernel)(Params...), dim3 grid, int threads, int shared_bytes,
                   Args... args) {
    return launch_clusters(context, kernel, 0, grid, threads, shared_bytes, args...);
}
// What a CTA may have on every GPU from sm_80 on (8.6, 8.9 and 12.0 have no more).
inline constexpr int least_shared_block = 99 * 1024;
// Raises a kernel's dynamic shared memory limit. All matrix kernels ask for the largest carve-out: two kernels of different
// carve-outs cannot share an SM, and dependent launch lives from sharing.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, int bytes) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
    return error;
}

// matmul_decode.cu: up to 8 rows, sm_90 and later
cudaError_t open_decode(const MatmulDevice& device);
bool decode_fits(const MatmulDevice& device, const Q4Layout& layout, int rows);
cudaError_t decode_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
// matmul_head_sm90.cu: logits of 9 to 64 rows
cudaError_t open_head(const MatmulDevice& device);
bool head_fits(const MatmulDevice& device, const DenseWeight& weight, const MatmulArgs& args);
cudaError_t head_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args);
// matmul_batch_sm90.cu: up to 32 rows
cudaError_t open_batch(const MatmulDevice& device);
bool batch_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args);
cudaError_t batch_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
// matmul_prefill_sm90.cu
cudaError_t open_prefill(MatmulDevice* device);
bool prefill_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args);
cudaError_t prefill_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
// matmul_experts_decode.cu
cudaError_t open_few(const MatmulDevice& device);
bool few_fit(const MatmulDevice& device, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows);
cudaError_t few_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows);
// matmul_experts_token.cu
cudaError_t open_token(const MatmulDevice& device);
// matmul_experts_sm90.cu
cudaError_t open_experts(const MatmulDevice& device);
bool experts_fit(const MatmulDevice& device, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows);
cudaError_t experts_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows);
// matmul_mma_few.cu: up to 4 rows, a norm too, before sm_90
cudaError_t open_mma_few(const MatmulDevice& device);
bool mma_few_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args);
cudaError_t mma_few_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
// matmul_mma.cu, matmul_mma_dense.cu: everything; `experts` null for plain products
cudaError_t open_mma(const MatmulDevice& device);
cudaError_t mma_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows* experts);
cudaError_t open_mma_dense(const MatmulDevice& device);
cudaError_t mma_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args, const ExpertRows* experts);
// dense.cu: up to 4 rows
bool gemv_fits(const DenseWeight& weight, const MatmulArgs& args);
cudaError_t gemv_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args);

}  // namespace awq::cuda
