// Matrix products of the CUDA backend: y = x W^T for a few rows of x to a few thousand, W int4 (pack_q4.h) or dense.
//
// The functions choose a kernel and launch it on context.stream; they never synchronise and allocate nothing, so they can
// be captured in a graph. Activations are half, accumulation is float, reductions run in a fixed order: the same
// inputs give the same bits at the same row count, on GPUs with as many multiprocessors.
//
//   rows                    kernel                                         file
//   1..8, int4              ring of bulk copies + mma.sync, sm_90 on       matmul_decode.cu
//   9..32, int4             mma.sync or wgmma, K cut over clusters         matmul_batch_sm90.cu     (sm_90a only)
//   9.., int4               wgmma, weights dequantised in registers        matmul_prefill_sm90.cu   (sm_90a only)
//   1..4, int4              mma.sync, x kept in shared memory if it fits   matmul_mma_few.cu        (before sm_90)
//   any, int4               mma.sync, K cut over CTAs; also by experts     matmul_mma.cu            (sm_80 and later)
//   any, dense              mma.sync; also by experts                      matmul_mma_dense.cu      (sm_80 and later)
//   few, int4, by experts   bulk copies + mma.sync, 8 rows an expert       matmul_experts_decode.cu (sm_90 and later)
//   1 token, its experts    choice, both products and shares, one kernel   matmul_experts_token.cu  (sm_90 and later)
//   many, int4, by experts  wgmma over rows sorted by expert               matmul_experts_sm90.cu   (sm_90a only)
//   9..64, logits, dense    wgmma, both operands in shared memory          matmul_head_sm90.cu      (sm_90a only)
//   1..4, dense             plain 16-byte loads and FMA (output heads)     dense.cu
//
// Programmatic dependent launch: with context.pdl every kernel is launched with the attribute, triggers its dependents as
// it starts, and calls griddepcontrol.wait before it touches anything but weights (x, y, residual, scratch). Kernels of
// other files in the same stream must also wait before they read or write activations; whether they trigger is theirs.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include "backends/cuda/pack_q4.h"
#include "core/graph.h"

namespace awq::cuda {

// What the launch functions know of a device; made once for each by open_matmul (which also raises the kernels' shared
// memory limits) and copied freely.
struct MatmulDevice {
    int ordinal = 0;
    int sm_count = 0;
    int arch = 0;                         // 90 for compute capability 9.0
    int cluster_pairs = 0;                // clusters of two CTAs, one an SM, that run at the same time
    int shared_block = 0, shared_sm = 0;  // bytes of shared memory: of one CTA at most, of an SM
    int l2_bytes = 0;                     // of the second-level cache
    void* encode_tensor_map = nullptr;    // the driver's cuTensorMapEncodeTiled, or null
};
// AWQ_CUDA_ARCH in the environment takes a GPU for another, with no more shared memory than the least of 8.0 and up: what those run is
// proved on others by it. 80: GPUs before Hopper; 120, on a GPU from 9.0 on: those after it.
cudaError_t open_matmul(int ordinal, MatmulDevice* device);
// What a device of this architecture is taken for. known: false where the environment asks for another that is not known.
int taken_arch(int arch, bool* known);

struct MatmulContext {
    MatmulDevice device;
    cudaStream_t stream = nullptr;
    // Device memory for split sums and normalised rows, at least matmul_scratch_bytes() of the largest product. Zeroed once
    // after allocation, then left alone: kernels leave its counters zero. One scratch serves one stream.
    void* scratch = nullptr;
    size_t scratch_bytes = 0;
    bool pdl = true;
    const struct Q4Weight* next = nullptr;  // what the next product in the stream reads, where that is known: a hint
};
size_t matmul_scratch_bytes(int64_t max_rows, int64_t max_in);

struct Q4Weight {
    Q4Layout layout;
    const void* data = nullptr;  // device, 32-byte aligned; experts one behind the other, layout.bytes() each
    int experts = 1;
};

// Row-major [out][pitch], pitch = dense_pitch(in), padding columns zero. `gated`: tile i of 16 rows holds gate rows
// 8i..8i+7, then up rows 8i..8i+7, out / 2 a multiple of 8 or padded to one with zero rows.
struct DenseWeight {
    int64_t out = 0, in = 0;
    DType dtype = DType::f16;  // or bf16
    bool gated = false;
    const void* data = nullptr;  // 16-byte aligned; experts one behind the other, dense_bytes() each
    int experts = 1;
};
inline int64_t dense_pitch(int64_t in) { return (in + 7) / 8 * 8; }
inline int64_t dense_rows(const DenseWeight& w) { return w.gated ? (w.out / 2 + 7) / 8 * 16 : w.out; }
inline int64_t dense_bytes(const DenseWeight& w) { return dense_rows(w) * dense_pitch(w.in) * 2; }

// The product and what is fused around it:  y = epilogue(norm(x) W^T).
struct MatmulArgs {
    int rows = 0;
    const half* x = nullptr;  // [rows][in], row r at x + r * ldx
    int64_t ldx = 0;
    half* y = nullptr;     // [rows][columns], row r at y + r * ldy; or y32
    float* y32 = nullptr;  // the same as float (logits); exactly one of y, y32. Dense weights, and where matmul_q4_floats says so
    int64_t ldy = 0;
    // rms_norm of x before the product: x * rsqrt(mean(x^2) + eps) * weight, rounded to half. Null: none.
    const float* norm_weight = nullptr;  // [in]
    float norm_eps = 0;
    bool norm_plus_one = false;  // times weight + 1
    // After it. For a gated weight with `gate_activation` y = act(gate) * up has out / 2 columns; with Activation::none all
    // out columns are written in source order. bias and residual go with ungated weights.
    Activation gate_activation = Activation::none;
    const float* bias = nullptr;     // [out]
    const half* residual = nullptr;  // [rows][out], row r at residual + r * ld_residual; may be y itself
    int64_t ld_residual = 0;
};
cudaError_t matmul_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
cudaError_t matmul_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args);

// Mixture of experts: rows sorted by expert. Row r of y is made from row source[r] of x (source null: r) with the weight of
// expert[r]. args.rows is the number of sorted rows (tokens * top_k); all arrays are in device memory, written by a
// kernel before this one in the stream. args' norm, bias and residual must be absent.
struct ExpertRows {
    const int32_t* begin = nullptr;   // [experts + 1]: first sorted row of each expert
    const int32_t* expert = nullptr;  // [rows]
    const int32_t* source = nullptr;  // [rows] or null
    int most = INT32_MAX;             // rows of one expert, an upper limit
};
cudaError_t matmul_q4_experts(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args,
                              const ExpertRows& rows);
cudaError_t matmul_dense_experts(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args,
                                 const ExpertRows& rows);

// matmul_q4 can write y32 at these rows.
bool matmul_q4_floats(const MatmulDevice& device, const Q4Weight& weight, int rows);
// The name of the kernel matmul_q4 would choose, for `awq inspect`.
const char* matmul_q4_name(const MatmulDevice& device, const Q4Weight& weight, int rows);

}  // namespace awq::cuda
