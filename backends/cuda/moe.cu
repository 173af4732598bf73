// Mixture of experts: one block routes and sorts the tokens by expert, two grouped products compute, one kernel joins.
#include "backends/cuda/cuda.h"
#include "backends/cuda/layout.h"

namespace awq::cuda {
namespace {

constexpr int route_threads = 1024, route_warps = route_threads / 32;
constexpr int max_experts = 1024, lane_experts = max_experts / 32;
constexpr int max_top_k = 32;

// What the routing writes; all in the call's scratch memory. A choice is a (token, k) pair, number token * top_k + k.
struct Routing {
    int32_t* expert_of;  // [choices]
    float* share;        // [choices]
    int32_t* place;      // [choices]: sorted row of each choice
    int32_t* begin;      // [experts + 1]: first sorted row of each expert
    int32_t* expert;     // [choices]: expert of each sorted row
    int32_t* source;     // [choices]: token of each sorted row
};

// Softmax over all experts, the top_k of them (lowest index first among equals), then a stable counting sort by expert.
__global__ void __launch_bounds__(route_threads)
    route_kernel(const __half* logits, int64_t stride, int tokens, int experts, int top_k, bool renormalize, Routing to) {
    __shared__ int count[max_experts + 1];
    let_next_begin();
    wait_for_previous();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int token = warp; token < tokens; token += route_warps) {
        // Expert i * 32 + lane: its logit, then its exponential; -1 once it is chosen, or where there is no such expert.
        float x[lane_experts];
        float top = -INFINITY, sum = 0;
#pragma unroll
        for (int i = 0; i < lane_experts; i++) {
            x[i] = -1;
            if (i * 32 + lane < experts) top = fmaxf(top, x[i] = __half2float(logits[token * stride + i * 32 + lane]));
        }
        top = warp_max(top);
#pragma unroll
        for (int i = 0; i < lane_experts; i++)
            if (i * 32 + lane < experts) sum += x[i] = expf(x[i] - top);
        sum = warp_sum(sum);
        float chosen = 0, own = 0;
        int own_expert = 0;
        for (int k = 0; k < top_k; k++) {
            float best = -1.0f;
            int at = max_experts;
#pragma unroll
            for (int i = 0; i < lane_experts; i++)
                if (i * 32 < experts && x[i] > best) best = x[i], at = i * 32 + lane;
#pragma unroll
            for (int mask = 16; mask; mask >>= 1) {
                float other = __shfl_xor_sync(~0u, best, mask);
                int other_at = __shfl_xor_sync(~0u, at, mask);
                if (other > best || (other == best && other_at < at)) best = other, at = other_at;
            }
            at = min(at, experts - 1);  // only NaN logits leave no candidate
            best = fmaxf(best, 0.0f);
            chosen += best;
            if (lane == k) own = best, own_expert = at;
#pragma unroll
            for (int i = 0; i < lane_experts; i++)
                if (i * 32 + lane == at) x[i] = -1.0f;
        }
        if (lane < top_k) {
            to.share[token * top_k + lane] = own / (renormalize ? chosen : sum);
            to.expert_of[token * top_k + lane] = own_expert;
        }
    }
    __syncthreads();

    const int choices = tokens * top_k;
    for (int e = warp; e < experts; e += route_warps) {
        int found = 0;
        for (int base = 0; base < choices; base += 32)
            found += __popc(__ballot_sync(~0u, base + lane < choices && to.expert_of[base + lane] == e));
        if (lane == 0) count[e] = found;
    }
    __syncthreads();
    if (warp == 0) {
        int before = 0;
        for (int base = 0; base < experts; base += 32) {
            int own = base + lane < experts ? count[base + lane] : 0, upto = own;
#pragma unroll
            for (int step = 1; step < 32; step <<= 1) {
                int other = __shfl_up_sync(~0u, upto, step);
                if (lane >= step) upto += other;
            }
            if (base + lane < experts) to.begin[base + lane] = count[base + lane] = before + upto - own;
            before += __shfl_sync(~0u, upto, 31);
        }
        if (lane == 0) to.begin[experts] = choices;
    }
    __syncthreads();
    for (int e = warp; e < experts; e += route_warps) {
        int at = count[e];
        for (int base = 0; base < choices; base += 32) {
            bool mine = base + lane < choices && to.expert_of[base + lane] == e;
            unsigned mask = __ballot_sync(~0u, mine);
            if (mine) {
                int row = at + __popc(mask & ((1u << lane) - 1));
                to.place[base + lane] = row;
                to.expert[row] = e;
                to.source[row] = (base + lane) / top_k;
            }
            at += __popc(mask);
        }
    }
}

// out[t] = sum over k of share * y[place], in the order of k.
__global__ void join_kernel(__half* out, int64_t stride, const __half* y, int cols, int top_k, Routing from, int64_t count) {
    let_next_begin();
    wait_for_previous();
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int64_t token = i / cols;
    int c = static_cast<int>(i % cols);
    float sum = 0;
    for (int k = 0; k < top_k; k++)
        sum += from.share[token * top_k + k] * __half2float(y[static_cast<int64_t>(from.place[token * top_k + k]) * cols + c]);
    out[token * stride + c] = __float2half_rn(sum);
}

struct Scratch {
    Routing routing;
    half *hidden, *y;
    size_t bytes;
};
Scratch divide(char* base, int64_t choices, int64_t experts, int64_t size, int64_t cols) {
    Scratch s = {};
    auto take = [&](size_t bytes) {
        char* at = base + s.bytes;
        s.bytes += (bytes + 255) / 256 * 256;
        return at;
    };
    auto ints = [&](int64_t count) { return reinterpret_cast<int32_t*>(take(count * sizeof(int32_t))); };
    s.routing.expert_of = ints(choices);
    s.routing.share = reinterpret_cast<float*>(ints(choices));
    s.routing.place = ints(choices);
    s.routing.begin = ints(experts + 1);
    s.routing.expert = ints(choices);
    s.routing.source = ints(choices);
    s.hidden = reinterpret_cast<half*>(take(choices * size * sizeof(half)));
    s.y = reinterpret_cast<half*>(take(choices * cols * sizeof(half)));
    return s;
}

Status moe(const KernelCall& call) {
    Context& ctx = context(call);
    const Attrs& attrs = call.node->attrs;
    const Weight &gate_up = *call.weight(2), &down = *call.weight(3);
    const int64_t size = down.spec.in, cols = call.out.cols, choices = call.out.rows * attrs.top_k;
    const int experts = static_cast<int>(gate_up.spec.experts);
    Scratch s = divide(ctx.scratch, choices, experts, size, cols);
    AWQ_TRY(launch(ctx, route_kernel, 1, route_threads, 0, static_cast<const __half*>(call.in[1].data), call.in[1].stride,
                   static_cast<int>(call.out.rows), experts, attrs.top_k, attrs.renormalize, s.routing));
    ExpertRows rows = {s.routing.begin, s.routing.expert, s.routing.source};
    MatmulArgs first;
    first.rows = static_cast<int>(choices);
    first.x = static_cast<const half*>(call.in[0].data);
    first.ldx = call.in[0].stride;
    first.y = s.hidden;
    first.ldy = size;
    first.gate_activation = attrs.activation;
    AWQ_TRY(multiply_experts(ctx, gate_up, first, rows));
    rows.source = nullptr;
    MatmulArgs second;
    second.rows = static_cast<int>(choices);
    second.x = s.hidden;
    second.ldx = size;
    second.y = s.y;
    second.ldy = cols;
    AWQ_TRY(multiply_experts(ctx, down, second, rows));
    int64_t count = call.out.rows * cols;
    return launch(ctx, join_kernel, ceil_div(count, 256), 256, 0, static_cast<__half*>(call.out.data), call.out.stride, s.y,
                  static_cast<int>(cols), attrs.top_k, s.routing, count);
}

bool can_mix(const Graph& graph, const Node& node) {
    const Weight *gate_up = graph.nodes[node.in[2]].weight, *down = graph.nodes[node.in[3]].weight;
    WeightLayout layout = weight_layout(gate_up->spec);
    bool gated = layout.kind == LayoutKind::q4 ? layout.q4.gated : layout.dense.gated;
    return gated && node.attrs.activation != Activation::none && gate_up->spec.experts <= max_experts &&
           node.attrs.top_k <= std::min<int64_t>(max_top_k, gate_up->spec.experts) && down->spec.experts == gate_up->spec.experts;
}

// The experts that can be touched at most, not all there are; and the rows between the products.
int64_t moe_bytes(const Graph& graph, const Node& node, const BatchSize& size, int64_t kv_length) {
    const Weight *gate_up = graph.nodes[node.in[2]].weight, *down = graph.nodes[node.in[3]].weight;
    int64_t choices = node_rows(node, size) * node.attrs.top_k, experts = gate_up->spec.experts;
    int64_t weights = static_cast<int64_t>(gate_up->bytes + down->bytes);
    int64_t between = int64_t{2} * 2 * choices * (down->spec.in + down->spec.out);
    return plain_bytes(graph, node, size, kv_length) - weights + weights / experts * std::min(choices, experts) + between;
}

}  // namespace

size_t moe_scratch(const Graph& graph, const Node& node, const BatchSize& size) {
    const Weight &gate_up = *graph.nodes[node.in[2]].weight, &down = *graph.nodes[node.in[3]].weight;
    return divide(nullptr, node_rows(node, size) * node.attrs.top_k, gate_up.spec.experts, down.spec.in, node.cols).bytes;
}

std::span<const Kernel> moe_kernels() {
    static const Kernel rows[] = {{Op::moe, "cuda moe", 0, INT32_MAX, can_mix, moe, moe_bytes}};
    return rows;
}

}  // namespace awq::cuda
