// Rotary embedding and the writing of the KV cache (how that lies: attention.h).
#include <algorithm>
#include "backends/cuda/attention.h"

namespace awq::cuda {
namespace {

// ---- rope_table

constexpr int max_half = 128;  // pairs of a head: head_dim up to 256

struct Frequencies {
    float inv_freq[max_half];
};
struct RopeTableCall {
    float* out;
    int64_t stride;
    const int32_t *positions, *sequence, *rope_len;
    int64_t rows;
    int half;
    float attention_factor;
    RopeParams::Kind kind;
    double theta, factor;
    int64_t original_length;
    int rot_dim;
};

__global__ void rope_table_kernel(RopeTableCall call, const __grid_constant__ Frequencies near,
                                  const __grid_constant__ Frequencies far) {
    let_next_begin();
    wait_for_previous();
    int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, r = at / call.half;
    int i = static_cast<int>(at % call.half);
    if (r >= call.rows) return;
    float frequency = near.inv_freq[i];
    if (call.kind != RopeParams::Kind::fixed) {
        int64_t length = call.rope_len[call.sequence[r]];
        if (length > call.original_length) {
            if (call.kind == RopeParams::Kind::longrope) {
                frequency = far.inv_freq[i];
            } else {
                double growth =
                    call.factor * static_cast<double>(length) / static_cast<double>(call.original_length) - (call.factor - 1);
                double theta = call.theta * pow(growth, call.rot_dim / (call.rot_dim - 2.0));
                frequency = static_cast<float>(1 / pow(theta, 2.0 * i / call.rot_dim));
            }
        }
    }
    float sine, cosine;
    sincosf(static_cast<float>(call.positions[r]) * frequency, &sine, &cosine);
    float* out = call.out + r * call.stride;
    out[i] = cosine * call.attention_factor;
    out[call.half + i] = sine * call.attention_factor;
}

Status rope_table(const KernelCall& call) {
    const RopeParams& rope = *call.node->attrs.rope;
    RopeTableCall args = {};
    args.out = static_cast<float*>(call.out.data);
    args.stride = call.out.stride;
    args.positions = call.batch(Input::positions);
    args.sequence = call.batch(Input::sequence);
    args.rope_len = call.batch(Input::rope_len);
    args.rows = call.out.rows;
    args.half = rope.rot_dim / 2;
    args.attention_factor = rope.attention_factor;
    args.kind = rope.kind;
    args.theta = rope.theta;
    args.factor = rope.factor;
    args.original_length = rope.original_length;
    args.rot_dim = rope.rot_dim;
    Frequencies near = {}, far = {};
    std::copy_n(rope.inv_freq.begin(), std::min<size_t>(rope.inv_freq.size(), max_half), near.inv_freq);
    std::copy_n(rope.long_inv_freq.begin(), std::min<size_t>(rope.long_inv_freq.size(), max_half), far.inv_freq);
    return launch(context(call), rope_table_kernel, ceil_div(args.rows * args.half, 128), 128, 0, args, near, far);
}

bool can_table(const Graph&, const Node& node) { return node.attrs.rope && node.attrs.rope->rot_dim <= 2 * max_half; }

// ---- rope, kv_append, rope_append: one kernel. A block takes one head of up to 32 tokens; blockIdx.y counts the query
// heads, then the key heads, then the value heads; those a call does not have are counted as none.

struct RopeCall {
    const __half *q, *k, *v;
    __half* q_out;
    const float* table;  // [rows][2 * half]
    int64_t q_stride, k_stride, v_stride, q_out_stride, table_stride;
    int64_t rows;
    int q_heads, kv_heads, head_dim, half;
    bool interleaved;
    KvCache cache;
};
constexpr int rope_tokens = 32, rope_threads = 256;

// Rotates a head of x into y; the lanes of a warp take its pairs side by side.
__device__ void rotate_head(__half* y, const __half* x, int dim, const float* cosines, int half, bool interleaved) {
    const int lane = threadIdx.x % 32;
    for (int i = lane; i < half; i += 32) {
        int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : half + i;
        float first = __half2float(x[a]), second = __half2float(x[b]), cosine = cosines[i], sine = cosines[half + i];
        y[a] = __float2half_rn(first * cosine - second * sine);
        y[b] = __float2half_rn(second * cosine + first * sine);
    }
    for (int c = 2 * half + lane; c < dim; c += 32) y[c] = x[c];
}

__global__ void __launch_bounds__(rope_threads) rope_kernel(const __grid_constant__ RopeCall call) {
    extern __shared__ __half tile[];  // values of the tokens, [tokens][head_dim + 2]
    let_next_begin();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = call.head_dim;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * rope_tokens;
    const int tokens = static_cast<int>(min(call.rows - first, int64_t{rope_tokens}));
    const int role = blockIdx.y < call.q_heads ? 0 : blockIdx.y < call.q_heads + call.kv_heads ? 1 : 2;
    const int head = blockIdx.y - (role == 0 ? 0 : role == 1 ? call.q_heads : call.q_heads + call.kv_heads);
    wait_for_previous();
    if (role < 2) {
        for (int64_t r = first + warp; r < first + tokens; r += rope_threads / 32) {
            const float* cosines = call.table + r * call.table_stride;
            if (role == 0) {
                rotate_head(call.q_out + r * call.q_out_stride + head * dim, call.q + r * call.q_stride + head * dim, dim,
                            cosines, call.half, call.interleaved);
            } else {
                int position = call.cache.position(r);
                __half* to = call.cache.keys(call.cache.page(r, position), head) + position % page_size * dim;
                rotate_head(to, call.k + r * call.k_stride + head * dim, dim, cosines, call.half, call.interleaved);
            }
        }
        return;
    }
    if (tokens < 8) {
        for (int t = 0; t < tokens; t++) {
            int position = call.cache.position(first + t);
            __half* to = call.cache.values(call.cache.page(first + t, position), head) + position % page_size;
            const __half* v = call.v + (first + t) * call.v_stride + head * dim;
            for (int d = threadIdx.x; d < dim; d += rope_threads) to[d * page_size] = v[d];
        }
        return;
    }
    // Transposed through shared memory: neighbouring lanes write neighbouring positions.
    const int pitch = dim + 2;
    for (int t = warp; t < tokens; t += rope_threads / 32)
        for (int d = lane; d < dim; d += 32) tile[t * pitch + d] = call.v[(first + t) * call.v_stride + head * dim + d];
    __syncthreads();
    if (lane >= tokens) return;
    int position = call.cache.position(first + lane);
    __half* to = call.cache.values(call.cache.page(first + lane, position), head) + position % page_size;
    for (int d = warp; d < dim; d += rope_threads / 32) to[d * page_size] = tile[lane * pitch + d];
}

Status launch_rope(const KernelCall& call, const RopeCall& args) {
    dim3 grid(ceil_div(args.rows, rope_tokens), args.q_heads + 2 * args.kv_heads);
    size_t shared = args.kv_heads ? sizeof(__half) * std::min<int64_t>(args.rows, rope_tokens) * (args.head_dim + 2) : 0;
    return launch(context(call), rope_kernel, grid, rope_threads, shared, args);
}

Status rope(const KernelCall& call) {
    const Tensor &x = call.in[0], &table = call.in[1];
    RopeCall args = {};
    args.q = static_cast<const __half*>(x.data);
    args.q_stride = x.stride;
    args.q_out = static_cast<__half*>(call.out.data);
    args.q_out_stride = call.out.stride;
    args.table = static_cast<const float*>(table.data);
    args.table_stride = table.stride;
    args.half = static_cast<int>(table.cols / 2);
    args.interleaved = call.node->attrs.interleaved;
    args.rows = call.out.rows;
    args.q_heads = call.node->attrs.heads;
    args.head_dim = call.node->attrs.head_dim;
    return launch_rope(call, args);
}

Status kv_append(const KernelCall& call) {
    const Tensor &k = call.in[0], &v = call.in[1];
    RopeCall args = {};
    args.k = static_cast<const __half*>(k.data);
    args.k_stride = k.stride;
    args.v = static_cast<const __half*>(v.data);
    args.v_stride = v.stride;
    args.rows = k.rows;
    args.cache = paged_cache(call);
    args.kv_heads = args.cache.kv_heads;
    args.head_dim = args.cache.head_dim;
    return launch_rope(call, args);
}

Status rope_append(const KernelCall& call) {
    const Tensor &q = call.in[0], &k = call.in[1], &v = call.in[2], &table = call.in[3];
    RopeCall args = {};
    args.q = static_cast<const __half*>(q.data);
    args.q_stride = q.stride;
    args.q_out = static_cast<__half*>(call.out.data);
    args.q_out_stride = call.out.stride;
    args.k = static_cast<const __half*>(k.data);
    args.k_stride = k.stride;
    args.v = static_cast<const __half*>(v.data);
    args.v_stride = v.stride;
    args.table = static_cast<const float*>(table.data);
    args.table_stride = table.stride;
    args.half = static_cast<int>(table.cols / 2);
    args.interleaved = call.node->attrs.interleaved;
    args.rows = call.out.rows;
    args.cache = paged_cache(call);
    args.q_heads = call.node->attrs.heads;
    args.kv_heads = args.cache.kv_heads;
    args.head_dim = args.cache.head_dim;
    return launch_rope(call, args);
}

// Keys and values go to the cache, as many bytes as they come with.
int64_t append_bytes(const Graph& graph, const Node& node, const BatchSize& size, int64_t kv_length) {
    int64_t bytes = plain_bytes(graph, node, size, kv_length);
    for (int i = node.op == Op::rope_append ? 1 : 0, last = i + 2; i < last; i++)
        bytes += 2 * size.tokens * graph.nodes[node.in[i]].cols;
    return bytes;
}

bool can_append(const Graph& graph, const Node& node) {
    return graph.nodes[node.in[0]].cols > 0 && node.attrs.head_dim <= 700;  // 32 tokens of a head in 48 KB
}

}  // namespace

// attention.cu puts the keys and values of attention_full into a cache of its own.
Status append_plain(Context& context, const Tensor& k, const Tensor& v, const KvCache& cache) {
    RopeCall args = {};
    args.k = static_cast<const __half*>(k.data);
    args.k_stride = k.stride;
    args.v = static_cast<const __half*>(v.data);
    args.v_stride = v.stride;
    args.rows = k.rows;
    args.cache = cache;
    args.kv_heads = cache.kv_heads;
    args.head_dim = cache.head_dim;
    dim3 grid(ceil_div(args.rows, rope_tokens), 2 * args.kv_heads);
    return launch(context, rope_kernel, grid, rope_threads,
                  sizeof(__half) * std::min<int64_t>(args.rows, rope_tokens) * (args.head_dim + 2), args);
}

std::span<const Kernel> rope_kernels() {
    static const Kernel rows[] = {
        {Op::rope_table, "cuda rope_table", 0, INT32_MAX, can_table, rope_table, plain_bytes},
        {Op::rope, "cuda rope", 0, INT32_MAX, always, rope, plain_bytes},
        {Op::kv_append, "cuda kv_append", 0, INT32_MAX, can_append, kv_append, append_bytes},
        {Op::rope_append, "cuda rope_append", 0, INT32_MAX, can_append, rope_append, append_bytes},
    };
    return rows;
}

}  // namespace awq::cuda
