// Matrix products as rows of the kernel table: the ops linear, norm_linear, norm_gate_up and linear_add on matmul.h.
#include "backends/cuda/cuda.h"
#include "backends/cuda/layout.h"

namespace awq::cuda {

Status multiply(Context& context, const Weight& weight, const MatmulArgs& args) {
    WeightLayout layout = weight_layout(weight.spec);
    context.matmul.stream = context.stream;
    context.matmul.pdl = context.chained && context.compute_major >= 9;
    if (layout.kind == LayoutKind::q4)
        AWQ_CUDA(matmul_q4(context.matmul, q4_weight(weight, layout), args));
    else
        AWQ_CUDA(matmul_dense(context.matmul, dense_weight(weight, layout), args));
    context.chained = true;
    return {};
}

Status multiply_experts(Context& context, const Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    WeightLayout layout = weight_layout(weight.spec);
    context.matmul.stream = context.stream;
    context.matmul.pdl = context.chained && context.compute_major >= 9;
    if (layout.kind == LayoutKind::q4)
        AWQ_CUDA(matmul_q4_experts(context.matmul, q4_weight(weight, layout), args, rows));
    else
        AWQ_CUDA(matmul_dense_experts(context.matmul, dense_weight(weight, layout), args, rows));
    context.chained = true;
    return {};
}

namespace {

__global__ void to_float_kernel(float* to, int64_t ld_to, const __half* from, int64_t cols, int64_t count) {
    let_next_begin();
    wait_for_previous();
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i / cols * ld_to + i % cols] = __half2float(from[i]);
}

__global__ void add_bias_kernel(__half* y, int64_t ldy, const float* bias, int64_t cols, int64_t count) {
    let_next_begin();
    wait_for_previous();
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    __half& element = y[i / cols * ldy + i % cols];
    element = __float2half_rn(__half2float(element) + bias[i % cols]);
}

bool gated(const Weight& weight) {
    WeightLayout layout = weight_layout(weight.spec);
    return layout.kind == LayoutKind::q4 ? layout.q4.gated : layout.dense.gated;
}

// The product of in[0] and in[weight_at], with what the caller has put into `args` around it.
Status product(const KernelCall& call, size_t weight_at, size_t bias_at, MatmulArgs args) {
    Context& ctx = context(call);
    const Weight& weight = *call.weight(weight_at);
    const Weight* bias = call.weight(bias_at);
    args.rows = static_cast<int>(call.out.rows);
    args.x = static_cast<const half*>(call.in[0].data);
    args.ldx = call.in[0].stride;
    args.bias = bias ? static_cast<const float*>(bias->data) : nullptr;
    args.ldy = call.out.stride;
    if (call.out.dtype != DType::f32) {
        args.y = static_cast<half*>(call.out.data);
        if (!bias || !gated(weight)) return multiply(ctx, weight, args);
        args.bias = nullptr;  // gate and up with biases: rare, and no fused place for them
        AWQ_TRY(multiply(ctx, weight, args));
        int64_t count = call.out.rows * call.out.cols;
        return launch(ctx, add_bias_kernel, ceil_div(count, 256), 256, 0, args.y, args.ldy, static_cast<const float*>(bias->data),
                      call.out.cols, count);
    }
    const WeightLayout layout = weight_layout(weight.spec);
    if (layout.kind == LayoutKind::dense || matmul_q4_floats(ctx.matmul.device, q4_weight(weight, layout), args.rows)) {
        args.y32 = static_cast<float*>(call.out.data);
        return multiply(ctx, weight, args);
    }
    // Logits of a quantised output head in larger batches, on Hopper: the kernels write halves, which are widened.
    args.y = reinterpret_cast<half*>(ctx.scratch);
    args.ldy = call.out.cols;
    AWQ_TRY(multiply(ctx, weight, args));
    int64_t count = call.out.rows * call.out.cols;
    return launch(ctx, to_float_kernel, ceil_div(count, 256), 256, 0, static_cast<float*>(call.out.data), call.out.stride, args.y,
                  call.out.cols, count);
}

void fuse_norm(const KernelCall& call, MatmulArgs& args) {
    args.norm_weight = static_cast<const float*>(call.weight(1)->data);
    args.norm_eps = call.node->attrs.eps;
    args.norm_plus_one = call.node->attrs.plus_one;
}

Status linear(const KernelCall& call) { return product(call, 1, 2, {}); }

Status norm_linear(const KernelCall& call) {
    MatmulArgs args;
    fuse_norm(call, args);
    return product(call, 2, 3, args);
}

Status norm_gate_up(const KernelCall& call) {
    MatmulArgs args;
    fuse_norm(call, args);
    args.gate_activation = call.node->attrs.activation;
    return product(call, 2, 3, args);
}

Status linear_add(const KernelCall& call) {
    MatmulArgs args;
    args.residual = static_cast<const half*>(call.in[3].data);
    args.ld_residual = call.in[3].stride;
    return product(call, 1, 2, args);
}

const Weight* weight_of(const Graph& graph, const Node& node, size_t i) {
    return i < node.in.size() && node.in[i] != no_node ? graph.nodes[node.in[i]].weight : nullptr;
}

// The fused prologue norms whole rows by a weight of their length.
bool can_norm(const Graph& graph, const Node& node) {
    const Weight* norm = weight_of(graph, node, 1);
    int64_t cols = graph.nodes[node.in[0]].cols;
    return norm && norm->spec.in == cols && node.attrs.width == cols;
}
bool can_norm_gate_up(const Graph& graph, const Node& node) {
    return can_norm(graph, node) && gated(*weight_of(graph, node, 2)) && !weight_of(graph, node, 3) &&
           node.attrs.activation != Activation::none;
}
bool can_linear_add(const Graph& graph, const Node& node) {
    return !gated(*weight_of(graph, node, 1)) && node.dtype == DType::f16;
}

}  // namespace

const Weight* product_weight(const Graph& graph, const Node& node) {
    const bool normed = node.op == Op::norm_linear || node.op == Op::norm_gate_up;
    return normed || node.op == Op::linear || node.op == Op::linear_add ? weight_of(graph, node, normed ? 2 : 1) : nullptr;
}

// Rows and columns of the largest product of a node (for matmul_scratch_bytes), and scratch for halves to be widened.
void linear_needs(const Graph& graph, const Node& node, const BatchSize& size, int64_t& rows, int64_t& in, size_t& scratch) {
    const Weight* weight = product_weight(graph, node);
    if (!weight) return;
    const WeightLayout layout = weight_layout(weight->spec);
    rows = std::max(rows, node_rows(node, size));
    in = std::max(in, layout.kind == LayoutKind::q4 ? layout.q4.in : weight->spec.in);
    if (node.dtype == DType::f32 && layout.kind == LayoutKind::q4)
        scratch = std::max(scratch, static_cast<size_t>(node_rows(node, size) * node.cols) * sizeof(half));
}

std::span<const Kernel> linear_kernels() {
    static const Kernel rows[] = {
        {Op::linear, "cuda linear", 0, INT32_MAX, always, linear, plain_bytes},
        {Op::norm_linear, "cuda norm_linear", 0, INT32_MAX, can_norm, norm_linear, plain_bytes},
        {Op::norm_gate_up, "cuda norm_gate_up", 0, INT32_MAX, can_norm_gate_up, norm_gate_up, plain_bytes},
        {Op::linear_add, "cuda linear_add", 0, INT32_MAX, can_linear_add, linear_add, plain_bytes},
    };
    return rows;
}

}  // namespace awq::cuda
