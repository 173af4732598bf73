// Which matrix kernel runs: the choice behind matmul.h, and the separate norm of products that have no fused one.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {

MatmulTuning tuning;

namespace {

// rows of x, normalised (weight null: as they are), to `to` [rows][pitch]; columns past `in` zero. One CTA a row; a thread takes 8 columns
// at a time and keeps the first `keep` pieces in registers. twice: `in`, a multiple of 8, columns once more behind the first.
constexpr int norm_threads = 256, keep = 4;  // at 64 registers a block fits beside one of matmul_batch_sm90.cu
__global__ void __launch_bounds__(norm_threads, 4)
    norm_rows_kernel(const half* x, int64_t ldx, int in, const float* weight, float eps, bool plus_one, bool aligned, bool twice,
                     half* to, int64_t pitch) {
    __shared__ float squares[norm_threads / 32];
    pdl_trigger();
    const half* row = x + blockIdx.x * ldx;
    const float one = plus_one || !weight ? 1.0f : 0.0f;
    const int columns = twice ? in : static_cast<int>(pitch);
    auto load_weight = [&](int column, float(&w)[8]) {
        if (!weight) {
            for (int i = 0; i < 8; i++) w[i] = 0;
        } else if (aligned && column + 8 <= in) {
            const float4 a = __ldg(reinterpret_cast<const float4*>(weight + column)),
                         b = __ldg(reinterpret_cast<const float4*>(weight + column) + 1);
            w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
        } else {
            for (int i = 0; i < 8; i++) w[i] = column + i < in ? __ldg(weight + column + i) : 0.0f;
        }
    };
    auto load_row = [&](int column, half2(&v)[4]) {
        if (aligned && column + 8 <= in) {
            const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(row + column));
            v[0] = as_half2(bits.x), v[1] = as_half2(bits.y), v[2] = as_half2(bits.z), v[3] = as_half2(bits.w);
        } else {
            auto at = [&](int c) { return c < in ? load_activation(row + c) : __float2half(0.0f); };
            for (int i = 0; i < 4; i++) v[i] = __halves2half2(at(column + 2 * i), at(column + 2 * i + 1));
        }
    };
    auto put = [&](int column, const half2(&v)[4], const float(&w)[8], float scale) {
        uint32_t bits[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 f = __half22float2(v[i]);
            bits[i] = pack_half2(f.x * scale * (w[2 * i] + one), f.y * scale * (w[2 * i + 1] + one));
        }
        half* at = to + blockIdx.x * pitch + column;
        *reinterpret_cast<uint4*>(at) = make_uint4(bits[0], bits[1], bits[2], bits[3]);
        if (twice) *reinterpret_cast<uint4*>(at + in) = make_uint4(bits[0], bits[1], bits[2], bits[3]);
    };
    const int first = static_cast<int>(threadIdx.x) * 8, step = norm_threads * 8;
    float weights[keep][8];  // on their way while the kernel before finishes
#pragma unroll
    for (int i = 0; i < keep; i++)
        if (first + i * step < columns) load_weight(first + i * step, weights[i]);
    pdl_wait();
    half2 kept[keep][4];
    float sum = 0;
    auto add = [&](const half2(&v)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 f = __half22float2(v[i]);
            sum += f.x * f.x + f.y * f.y;
        }
    };
#pragma unroll
    for (int i = 0; i < keep; i++)
        if (first + i * step < columns) load_row(first + i * step, kept[i]);
#pragma unroll
    for (int i = 0; i < keep; i++)
        if (first + i * step < columns) add(kept[i]);
    for (int column = first + keep * step; column < columns; column += step) {
        half2 v[4];
        load_row(column, v);
        add(v);
    }
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (float s : squares) sum += s;
    const float scale = weight ? rsqrtf(sum / static_cast<float>(in) + eps) : 1.0f;
#pragma unroll
    for (int i = 0; i < keep; i++)
        if (first + i * step < columns) put(first + i * step, kept[i], weights[i], scale);
    for (int column = first + keep * step; column < columns; column += step) {
        half2 v[4];
        float w[8];
        load_row(column, v);
        load_weight(column, w);
        put(column, v, w, scale);
    }
}

// Rows in scratch take the place of x: normalised where there is a norm, and for values of 8 bits twice beside themselves.
cudaError_t prepare_rows(const MatmulContext& context, int64_t in, bool twice, MatmulArgs& args) {
    half* rows = scratch_of(context).rows;
    const int64_t pitch = dense_pitch(twice ? 2 * in : in);
    const bool aligned = rows_aligned(args.x, args.ldx) && reinterpret_cast<uintptr_t>(args.norm_weight) % 16 == 0;
    cudaError_t error =
        launch(context, norm_rows_kernel, dim3(static_cast<unsigned>(args.rows)), norm_threads, 0, args.x, args.ldx,
               static_cast<int>(in), args.norm_weight, args.norm_eps, args.norm_plus_one, aligned, twice, rows, pitch);
    args.x = rows, args.ldx = pitch, args.norm_weight = nullptr;
    return error;
}

enum class Choice { decode, batch, prefill, mma };
Choice choose(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args) {
    if (tuning.kernel) {
        constexpr Choice forced[] = {Choice::decode, Choice::prefill, Choice::mma, Choice::batch};
        return forced[tuning.kernel - 1];
    }
    if (tuning.decode && args.rows <= 16) return Choice::decode;
    if (decode_fits(device, layout, args.rows)) return Choice::decode;
    if (batch_fits(device, layout, args)) return Choice::batch;
    return prefill_fits(device, layout, args) ? Choice::prefill : Choice::mma;
}

Choice choose_experts(const MatmulDevice& device, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    if (tuning.kernel == 3) return Choice::mma;
    if (tuning.kernel != 2 && few_fit(device, weight, args, rows)) return Choice::decode;
    return experts_fit(device, weight, args, rows) ? Choice::prefill : Choice::mma;
}

}  // namespace

int taken_arch(int arch, bool* known) {
    const char* asked = std::getenv("AWQ_CUDA_ARCH");
    const int taken = !asked ? arch : !std::strcmp(asked, "80") ? 80 : !std::strcmp(asked, "120") && arch >= 90 ? 120 : 0;
    *known = taken != 0;
    return *known ? taken : arch;
}

cudaError_t open_matmul(int ordinal, MatmulDevice* device) {
    MatmulDevice d;
    d.ordinal = ordinal;
    int major = 0, minor = 0;
    if (cudaError_t error = cudaSetDevice(ordinal)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&d.sm_count, cudaDevAttrMultiProcessorCount, ordinal)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&d.shared_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal))
        return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&d.shared_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, ordinal))
        return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&d.l2_bytes, cudaDevAttrL2CacheSize, ordinal)) return error;
    d.arch = major * 10 + minor;
    bool known = false;
    d.arch = taken_arch(d.arch, &known);
    if (!known) return cudaErrorInvalidValue;
    if (std::getenv("AWQ_CUDA_ARCH")) {
        d.shared_block = std::min(d.shared_block, least_shared_block), d.shared_sm = std::min(d.shared_sm, least_shared_block + 1024);
    }
    cudaDriverEntryPointQueryResult found;
    void* encode = nullptr;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found) == cudaSuccess &&
        found == cudaDriverEntryPointSuccess)
        d.encode_tensor_map = encode;
    cudaGetLastError();  // a driver without it is no error: the check of a later launch must not report it
    if (cudaError_t error = open_decode(d)) return error;
    if (cudaError_t error = open_head(d)) return error;
    if (cudaError_t error = open_batch(d)) return error;
    if (cudaError_t error = open_prefill(&d)) return error;
    if (cudaError_t error = open_few(d)) return error;
    if (cudaError_t error = open_token(d)) return error;
    if (cudaError_t error = open_experts(d)) return error;
    if (cudaError_t error = open_mma_few(d)) return error;
    if (cudaError_t error = open_mma(d)) return error;
    if (cudaError_t error = open_mma_dense(d)) return error;
    if (cudaError_t error = allow_shared(norm_rows_kernel, 0)) return error;
    *device = d;
    return cudaSuccess;
}

size_t matmul_scratch_bytes(int64_t max_rows, int64_t max_in) {
    return static_cast<size_t>(counter_count * 4 + partial_bytes + max_rows * dense_pitch(max_in) * 2);
}

cudaError_t matmul_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    if (args.rows <= 0) return cudaSuccess;
    MatmulArgs plain = args;
    const Q4Layout& layout = weight.layout;
    if (layout.eight)
        if (cudaError_t error = prepare_rows(context, layout.source_in(), true, plain)) return error;
    const Choice choice = choose(context.device, layout, plain);
    const bool direct = rows_aligned(args.x, args.ldx) && reinterpret_cast<uintptr_t>(args.norm_weight) % 16 == 0 && layout.in % 8 == 0;
    if (choice == Choice::decode && !direct && !layout.eight)
        if (cudaError_t error = prepare_rows(context, layout.in, false, plain)) return error;
    if (choice == Choice::decode) return (tuning.decode ? tuning.decode : decode_q4)(context, weight, plain);
    if (choice == Choice::mma && !tuning.kernel && mma_few_fits(context.device, layout, plain)) return mma_few_q4(context, weight, plain);
    if (plain.norm_weight)
        if (cudaError_t error = prepare_rows(context, layout.in, false, plain)) return error;
    if (choice == Choice::batch) return batch_q4(context, weight, plain);
    if (choice == Choice::prefill) return prefill_q4(context, weight, plain);
    return mma_q4(context, weight, plain, nullptr);
}

bool matmul_q4_floats(const MatmulDevice& device, const Q4Weight& weight, int rows) {
    MatmulArgs args;
    args.rows = rows;
    if (weight.layout.gated) return false;
    const Choice choice = choose(device, weight.layout, args);
    return choice == Choice::decode || choice == Choice::mma;
}

const char* matmul_q4_name(const MatmulDevice& device, const Q4Weight& weight, int rows) {
    MatmulArgs args;  // taken as aligned
    args.rows = rows;
    if (weight.layout.gated) args.gate_activation = Activation::silu;
    switch (choose(device, weight.layout, args)) {
        case Choice::decode: return "q4 ring mma.sync";
        case Choice::batch: return "q4 clusters";
        case Choice::prefill: return "q4 wgmma";
        default: return mma_few_fits(device, weight.layout, args) ? "q4 mma.sync, few rows" : "q4 mma.sync";
    }
}

cudaError_t matmul_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args) {
    if (args.rows <= 0) return cudaSuccess;
    MatmulArgs plain = args;
    if (plain.norm_weight)
        if (cudaError_t error = prepare_rows(context, weight.in, false, plain)) return error;
    if (gemv_fits(weight, plain)) return gemv_dense(context, weight, plain);
    if (!tuning.kernel && head_fits(context.device, weight, plain)) return head_dense(context, weight, plain);
    return mma_dense(context, weight, plain, nullptr);
}

cudaError_t matmul_q4_experts(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args,
                              const ExpertRows& rows) {
    if (args.rows <= 0) return cudaSuccess;
    switch (choose_experts(context.device, weight, args, rows)) {
        case Choice::decode: return few_q4(context, weight, args, rows);
        case Choice::prefill: return experts_q4(context, weight, args, rows);
        default: return mma_q4(context, weight, args, &rows);
    }
}
cudaError_t matmul_dense_experts(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args,
                                 const ExpertRows& rows) {
    return args.rows <= 0 ? cudaSuccess : mma_dense(context, weight, args, &rows);
}

}  // namespace awq::cuda
