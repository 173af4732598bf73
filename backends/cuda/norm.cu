// RMS norm and layer norm over runs of `width` columns: a warp for a narrow run (q and k norms), a block for a wide one.
#include "backends/cuda/cuda.h"

namespace awq::cuda {
namespace {

struct NormCall {
    const __half* x;
    __half* out;
    int64_t x_stride, out_stride;
    int64_t runs;  // rows * runs_per_row
    int runs_per_row, width;
    const float *weight, *bias;  // null: ones, zeros
    bool weight_per_column;      // one element for every column of the row, not for every column of the run
    bool bias_per_column;
    bool plus_one;
    float eps;
};

// Sum over the threads of one run; `shared` has room for a float of each warp.
template <bool whole_block>
__device__ float run_sum(float x, float* shared) {
    x = warp_sum(x);
    if constexpr (!whole_block) return x;
    __syncthreads();  // the previous sum has been read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

// The run is read once and kept in registers: `keep` pieces of `wide` columns a thread; what does not fit is read again.
template <bool centered, bool whole_block, int wide, int keep>
__global__ void __launch_bounds__(whole_block ? 512 : 256) norm_kernel(NormCall call) {
    __shared__ float shared[32];
    let_next_begin();
    wait_for_previous();
    const int threads = whole_block ? blockDim.x : 32, lane = whole_block ? threadIdx.x : threadIdx.x % 32;
    const int64_t run = whole_block ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (run >= call.runs) return;
    const int64_t row = run / call.runs_per_row;
    const int first = static_cast<int>(run % call.runs_per_row) * call.width;
    const __half* x = call.x + row * call.x_stride + first;
    __half* out = call.out + row * call.out_stride + first;
    const int step = threads * wide;

    float kept[keep][wide];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < keep; i++) {
        int c = (i * threads + lane) * wide;
        if (c < call.width)
            load(x + c, kept[i]);
        else
#pragma unroll
            for (int j = 0; j < wide; j++) kept[i][j] = 0;
#pragma unroll
        for (int j = 0; j < wide; j++) sum += centered ? kept[i][j] : kept[i][j] * kept[i][j];
    }
    for (int c = keep * step + lane * wide; c < call.width; c += step) {
        float more[wide];
        load(x + c, more);
#pragma unroll
        for (int j = 0; j < wide; j++) sum += centered ? more[j] : more[j] * more[j];
    }
    float mean = 0, square = run_sum<whole_block>(sum, shared);
    if constexpr (centered) {
        mean = square / static_cast<float>(call.width);
        sum = 0;
#pragma unroll
        for (int i = 0; i < keep; i++)
#pragma unroll
            for (int j = 0; j < wide; j++)
                if ((i * threads + lane) * wide < call.width) sum += (kept[i][j] - mean) * (kept[i][j] - mean);
        for (int c = keep * step + lane * wide; c < call.width; c += step) {
            float more[wide];
            load(x + c, more);
#pragma unroll
            for (int j = 0; j < wide; j++) sum += (more[j] - mean) * (more[j] - mean);
        }
        square = run_sum<whole_block>(sum, shared);
    }
    const float factor = 1.0f / sqrtf(square / static_cast<float>(call.width) + call.eps);

    auto finish = [&](float(&v)[wide], int c) {
#pragma unroll
        for (int j = 0; j < wide; j++) {
            v[j] = (v[j] - mean) * factor;
            if (call.weight) v[j] *= call.weight[c + j + (call.weight_per_column ? first : 0)] + (call.plus_one ? 1.0f : 0.0f);
            if (call.bias) v[j] += call.bias[c + j + (call.bias_per_column ? first : 0)];
        }
        store(out + c, v);
    };
#pragma unroll
    for (int i = 0; i < keep; i++)
        if (int c = (i * threads + lane) * wide; c < call.width) finish(kept[i], c);
    for (int c = keep * step + lane * wide; c < call.width; c += step) {
        float more[wide];
        load(x + c, more);
        finish(more, c);
    }
}

template <bool centered>
Status norm(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    const Tensor &x = call.in[0], &out = call.out;
    const Weight *weight = call.weight(1), *bias = centered ? call.weight(2) : nullptr;
    NormCall norm = {};
    norm.x = static_cast<const __half*>(x.data);
    norm.out = static_cast<__half*>(out.data);
    norm.x_stride = x.stride;
    norm.out_stride = out.stride;
    norm.runs_per_row = static_cast<int>(out.cols / attrs.width);
    norm.runs = out.rows * norm.runs_per_row;
    norm.width = static_cast<int>(attrs.width);
    norm.eps = attrs.eps;
    norm.plus_one = attrs.plus_one;
    if (weight) {
        norm.weight = static_cast<const float*>(weight->data);
        norm.weight_per_column = weight->spec.in != attrs.width;
    }
    if (bias) {
        norm.bias = static_cast<const float*>(bias->data);
        norm.bias_per_column = bias->spec.in != attrs.width;
    }
    const bool wide = attrs.width % 8 == 0 && wide_rows(x) && wide_rows(out);
    if (attrs.width <= 256) {  // a warp a run
        int blocks = ceil_div(norm.runs, 8);
        if (wide) return launch(context(call), norm_kernel<centered, false, 8, 1>, blocks, 256, 0, norm);
        return launch(context(call), norm_kernel<centered, false, 1, 8>, blocks, 256, 0, norm);
    }
    if (norm.runs > INT32_MAX) return Status(Code::unsupported, call.node->name + ": too many rows for one launch");
    int pieces = ceil_div(attrs.width, wide ? 8 : 1), threads = std::min(512, ceil_div(pieces, 32) * 32);
    if (wide) return launch(context(call), norm_kernel<centered, true, 8, 2>, static_cast<unsigned>(norm.runs), threads, 0, norm);
    return launch(context(call), norm_kernel<centered, true, 1, 8>, static_cast<unsigned>(norm.runs), threads, 0, norm);
}

}  // namespace

std::span<const Kernel> norm_kernels() {
    static const Kernel rows[] = {
        {Op::rms_norm, "cuda rms_norm", 0, INT32_MAX, always, norm<false>, plain_bytes},
        {Op::layer_norm, "cuda layer_norm", 0, INT32_MAX, always, norm<true>, plain_bytes},
    };
    return rows;
}

}  // namespace awq::cuda
