// Mixture of experts: routing sorts the tokens by expert (moe_route.h), two grouped products compute (matmul.h), one kernel
// joins. For a single token one kernel does what comes after routing, or all of it.
#include <algorithm>
#include "backends/cuda/cuda.h"
#include "backends/cuda/layout.h"
#include "backends/cuda/moe_route.h"

namespace awq::cuda {
namespace {

// out[t] = sum over k of share * y[place], in the order of k, and the residual.
template <int Count>
__global__ void join_kernel(half* out, int64_t stride, const half* y, const half* residual, int64_t ld_residual, int cols,
                            int top_k, const float* share, const int32_t* place, int64_t count) {
    let_next_begin();
    wait_for_previous();
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int pieces = cols / Count;
    const int64_t token = i / pieces, column = i % pieces * Count;
    float sum[Count] = {};
    for (int k = 0; k < top_k; k++) {
        const float s = share[token * top_k + k];
        float v[Count];
        load(y + static_cast<int64_t>(place[token * top_k + k]) * cols + column, v);
#pragma unroll
        for (int c = 0; c < Count; c++) sum[c] += s * v[c];
    }
    if (residual) {
        float v[Count];
        load(residual + token * ld_residual + column, v);
#pragma unroll
        for (int c = 0; c < Count; c++) sum[c] += v[c];
    }
    store(out + token * stride + column, sum);
}

// The operands of both ops. moe: x, logits, gate_up, down. norm_moe: x, norm, router, gate_up, down, residual.
size_t gate_up_at(const Node& node) { return node.op == Op::moe ? 2 : 3; }
const Weight& gate_up_of(const Graph& graph, const Node& node) { return *graph.nodes[node.in[gate_up_at(node)]].weight; }
const Weight& down_of(const Graph& graph, const Node& node) { return *graph.nodes[node.in[gate_up_at(node) + 1]].weight; }

struct Scratch {
    Routing routing;
    half *normed, *hidden, *y;
    size_t bytes;
};
Scratch divide(char* base, const Graph& graph, const Node& node, int64_t tokens) {
    const Weight &gate_up = gate_up_of(graph, node), &down = down_of(graph, node);
    const int64_t choices = tokens * node.attrs.top_k;
    Scratch s = {};
    auto take = [&](size_t bytes) {
        char* at = base + s.bytes;
        s.bytes += (bytes + 255) / 256 * 256;
        return at;
    };
    auto ints = [&](int64_t count) { return reinterpret_cast<int32_t*>(take(count * sizeof(int32_t))); };
    auto halves = [&](int64_t count) { return reinterpret_cast<half*>(take(count * sizeof(half))); };
    s.routing.expert_of = ints(choices);
    s.routing.share = reinterpret_cast<float*>(ints(choices));
    s.routing.place = ints(choices);
    s.routing.begin = ints(gate_up.spec.experts + 1);
    s.routing.expert = ints(choices);
    s.routing.source = ints(choices);
    s.normed = halves(node.op == Op::norm_moe ? tokens * gate_up.spec.in : 0);
    s.hidden = halves(choices * down.spec.in);
    s.y = halves(choices * node.cols);
    return s;
}

Status moe(const KernelCall& call) {
    Context& ctx = context(call);
    const Attrs& attrs = call.node->attrs;
    const bool fused = call.node->op == Op::norm_moe;
    const size_t at = gate_up_at(*call.node);
    const Weight &gate_up = *call.weight(at), &down = *call.weight(at + 1);
    const int64_t size = down.spec.in, cols = call.out.cols;
    const Scratch s = divide(ctx.scratch, *call.run->graph, *call.node, call.out.rows);
    RouteArgs routed;
    routed.tokens = static_cast<int>(call.out.rows);
    routed.experts = static_cast<int>(gate_up.spec.experts);
    routed.top_k = attrs.top_k, routed.renormalize = attrs.renormalize;
    MatmulArgs first;
    first.rows = static_cast<int>(call.out.rows * attrs.top_k);
    first.x = static_cast<const half*>(call.in[0].data);
    first.ldx = call.in[0].stride;
    if (fused) {
        routed.x = first.x, routed.ldx = first.ldx;
        routed.norm = static_cast<const float*>(call.weight(1)->data);
        routed.eps = attrs.eps, routed.plus_one = attrs.plus_one;
        routed.router = static_cast<const half*>(call.weight(2)->data);
        routed.in = static_cast<int>(call.in[0].cols);
        first.x = routed.normed = s.normed;
        first.ldx = routed.in;
    } else {
        routed.logits = static_cast<const half*>(call.in[1].data);
        routed.ld_logits = call.in[1].stride;
    }
    const Tensor residual = fused ? call.in[5] : Tensor();
    const WeightLayout up = weight_layout(gate_up.spec), low = weight_layout(down.spec);
    const bool all_q4 = up.kind == LayoutKind::q4 && low.kind == LayoutKind::q4;
    const Q4Weight first_q4 = q4_weight(gate_up, up), second_q4 = q4_weight(down, low);
    const bool one_kernel =
        call.out.rows == 1 && all_q4 && token_experts_fit(ctx.matmul.device, first_q4, second_q4, attrs.top_k);
    const bool routed_there = one_kernel && fused && token_router_fits(ctx.matmul.device, first_q4, second_q4, routed);
    ctx.matmul.stream = ctx.stream;
    ctx.matmul.pdl = ctx.chained && ctx.compute_major >= 9;
    ctx.chained = true;
    if (!routed_there) {
        AWQ_CUDA(route(ctx.matmul, routed, s.routing));
        ctx.matmul.pdl = ctx.compute_major >= 9;
    }
    if (one_kernel) {
        TokenExperts token;
        token.count = attrs.top_k;
        token.hidden = s.hidden;
        token.y = static_cast<half*>(call.out.data);
        token.residual = static_cast<const half*>(residual.data);
        token.activation = attrs.activation;
        if (!routed_there) token.x = first.x, token.expert = s.routing.expert_of, token.share = s.routing.share;
        AWQ_CUDA(token_experts_q4(ctx.matmul, first_q4, second_q4, token, routed_there ? &routed : nullptr));
        return {};
    }
    ExpertRows rows = {s.routing.begin, s.routing.expert, s.routing.source};
    rows.most = static_cast<int>(call.out.rows);  // a token chooses an expert once
    first.y = s.hidden;
    first.ldy = size;
    first.gate_activation = attrs.activation;
    AWQ_TRY(multiply_experts(ctx, gate_up, first, rows));
    rows.source = nullptr;
    MatmulArgs second;
    second.rows = first.rows;
    second.x = s.hidden;
    second.ldx = size;
    second.y = s.y;
    second.ldy = cols;
    AWQ_TRY(multiply_experts(ctx, down, second, rows));
    const bool wide = cols % 8 == 0 && wide_rows(call.out) && (!fused || wide_rows(residual));
    const int64_t count = call.out.rows * cols / (wide ? 8 : 1);
    return launch(ctx, wide ? join_kernel<8> : join_kernel<1>, ceil_div(count, 256), 256, 0, static_cast<half*>(call.out.data),
                  call.out.stride, s.y, static_cast<const half*>(residual.data), residual.stride, static_cast<int>(cols),
                  attrs.top_k, s.routing.share, s.routing.place, count);
}

bool can_mix(const Graph& graph, const Node& node) {
    const Weight &gate_up = gate_up_of(graph, node), &down = down_of(graph, node);
    WeightLayout layout = weight_layout(gate_up.spec);
    bool gated = layout.kind == LayoutKind::q4 ? layout.q4.gated : layout.dense.gated;
    return gated && node.attrs.activation != Activation::none && gate_up.spec.experts <= max_experts &&
           node.attrs.top_k <= std::min<int64_t>(max_top_k, gate_up.spec.experts) && down.spec.experts == gate_up.spec.experts;
}

// Whole rows are normed; the router is kept as halves, as it is unless the checkpoint has quantised it.
bool can_norm_mix(const Graph& graph, const Node& node) {
    const Weight &norm = *graph.nodes[node.in[1]].weight, &router = *graph.nodes[node.in[2]].weight;
    const int64_t cols = graph.nodes[node.in[0]].cols;
    const WeightLayout layout = weight_layout(router.spec);
    return can_mix(graph, node) && norm.spec.in == cols && node.attrs.width == cols && layout.kind == LayoutKind::dense &&
           layout.dense.dtype == DType::f16 && !layout.dense.gated && route_fits(router.spec.out, cols);
}

// The experts that can be touched at most, not all there are; and the rows between the products.
int64_t moe_bytes(const Graph& graph, const Node& node, const BatchSize& size, int64_t kv_length) {
    const Weight &gate_up = gate_up_of(graph, node), &down = down_of(graph, node);
    int64_t choices = node_rows(node, size) * node.attrs.top_k, experts = gate_up.spec.experts;
    int64_t weights = static_cast<int64_t>(gate_up.bytes + down.bytes);
    int64_t between = int64_t{2} * 2 * choices * (down.spec.in + down.spec.out);
    return plain_bytes(graph, node, size, kv_length) - weights + weights / experts * std::min(choices, experts) + between;
}

}  // namespace

// As linear_needs: the products' rows and columns, and scratch.
void moe_needs(const Graph& graph, const Node& node, const BatchSize& size, int64_t& rows, int64_t& in, size_t& scratch) {
    if (node.op != Op::moe && node.op != Op::norm_moe) return;
    rows = std::max(rows, node_rows(node, size) * node.attrs.top_k);
    in = std::max({in, gate_up_of(graph, node).spec.in, down_of(graph, node).spec.in});
    scratch = std::max(scratch, divide(nullptr, graph, node, node_rows(node, size)).bytes);
}

std::span<const Kernel> moe_kernels() {
    static const Kernel rows[] = {{Op::moe, "cuda moe", 0, INT32_MAX, can_mix, moe, moe_bytes},
                                  {Op::norm_moe, "cuda norm_moe", 0, INT32_MAX, can_norm_mix, moe, moe_bytes}};
    return rows;
}

}  // namespace awq::cuda
