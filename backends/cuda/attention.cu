// Which attention kernel takes which sequence, how far keys are split, and a plain kernel for heads of odd sizes.
#include <algorithm>
#include "backends/cuda/attention.h"

namespace awq::cuda {

KvCache paged_cache(const KernelCall& call) {
    const KvShape& kv = call.run->kv;
    KvCache cache = {};
    int64_t layer = int64_t{2} * page_size * kv.kv_heads * kv.head_dim;
    cache.data = static_cast<__half*>(call.run->kv_cache->data) + call.node->attrs.layer * layer;
    cache.page_stride = layer * kv.layers;
    cache.kv_heads = kv.kv_heads;
    cache.head_dim = kv.head_dim;
    cache.page_table = call.batch(Input::page_table);
    cache.positions = call.batch(Input::positions);
    cache.sequence = call.batch(Input::sequence);
    cache.max_pages = call.run->size.max_pages;
    return cache;
}

namespace {

constexpr int any_max_dim = 512;

// Any head_dim, any alignment: a warp a row. A lane scores one key of 32 and sums up every 32nd column.
__global__ void __launch_bounds__(128) attention_any_kernel(const __grid_constant__ AttentionCall call) {
    let_next_begin();
    wait_for_previous();
    const int lane = threadIdx.x % 32, dim = call.cache.head_dim;
    const int64_t task = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
    if (task >= static_cast<int64_t>(call.tokens) * call.heads) return;
    const int64_t token = task / call.heads;
    const int head = static_cast<int>(task % call.heads), kv_head = head / call.group;
    const int sequence = call.full_keys > 0 ? 0 : call.cache.sequence[token];
    const int position = call.full_keys > 0 ? call.full_keys - 1 : call.cache.positions[token];
    const __half* q = call.q + token * call.q_stride + static_cast<int64_t>(head) * dim;
    const float slope = call.alibi ? call.alibi[head] : 0;
    float out[any_max_dim / 32] = {}, top = -INFINITY, sum = 0;
    const int begin = call.window > 0 ? max(0, position - call.window + 1) / 32 * 32 : 0;
    for (int base = begin; base <= position; base += 32) {
        const int64_t page = call.cache.page_of(sequence, base);
        const __half* k = call.cache.keys(page, kv_head) + (base + lane) % page_size * dim;
        const __half* v = call.cache.values(page, kv_head) + base % page_size;
        float score = -INFINITY;
        if (sees(call, base + lane, position)) {
            float dot = 0;
            for (int d = 0; d < dim; d++) dot += __half2float(q[d]) * __half2float(k[d]);
            score = finish_score<false>(call, dot, slope, base + lane, position);
        }
        const float highest = fmaxf(top, warp_max(score));  // the first key of a step may be outside the window, not all
        const float keep = highest == -INFINITY ? 1.0f : exp2f(top - highest),
                    p = score == -INFINITY ? 0.0f : exp2f(score - highest);
        top = highest;
        sum = sum * keep + warp_sum(p);
        const int keys = min(32, position + 1 - base);
#pragma unroll
        for (int i = 0; i < any_max_dim / 32; i++) {
            int d = i * 32 + lane;
            if (i * 32 >= dim) break;
            out[i] *= keep;
            for (int key = 0; key < keys; key++) {
                float weight = __shfl_sync(~0u, p, key);
                if (d < dim && weight != 0) out[i] += weight * __half2float(v[d * page_size + key]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < any_max_dim / 32; i++)
        if (int d = i * 32 + lane; d < dim)
            call.out[token * call.out_stride + static_cast<int64_t>(head) * dim + d] = __float2half_rn(out[i] / sum);
}

// Splits of the keys that give each multiprocessor a block when tiles are few; each split has at least `least` keys.
int choose_splits(const Context& context, int64_t tiles, int keys, int least) {
    int64_t wanted = tiles > 0 ? context.multiprocessors / tiles : 1;
    return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(wanted, keys / least), 1, 32));
}

constexpr int prefill_split_keys = 4 * page_size;
struct Shape {
    int row_tiles, splits;
    int64_t tiles;  // of all sequences and kv heads
};
// Splits of a sequence in decode, when it is alone. Blocks for three quarters of the multiprocessors read as fast as more of them, and the
// next product begins on the others, where it can.
int decode_splits(const Context& context, int group, int kv_heads) {
    const int tiles = kv_heads * ceil_div(group, decode_tile);
    if (context.compute_major < 9) return std::clamp(context.multiprocessors / tiles, 1, 32);
    return std::clamp((context.multiprocessors * 3 / 4 + tiles / 2) / tiles, 1, 32);
}
// Of the splits' sums, where there are several.
size_t partial_bytes(int64_t tiles, int splits, int rows, int head_dim) {
    return splits > 1 ? static_cast<size_t>(tiles * splits * partial_floats(rows, head_dim)) * sizeof(float) : 0;
}
Status check_scratch(const Context& context, size_t bytes) {
    if (bytes <= context.scratch_bytes) return {};
    return Status(Code::internal, "attention takes " + std::to_string(bytes) + " bytes of scratch memory; there are " +
                                      std::to_string(context.scratch_bytes));
}
// Tiles whose keys can be cut: a counter for each 16 columns.
int64_t most_cut_tiles(int head_dim) { return Context::counter_count / (2 * head_blocks(head_dim)); }
// Splits of the longest sequence, where its keys can be cut.
int longest_splits(const Context& context, int group, int kv_heads) {
    if (context.max_keys <= 2 * split_keys) return 1;
    return std::min(decode_splits(context, group, kv_heads), ceil_div(context.max_keys, split_keys));
}
Shape shape_of(int64_t rows, int tile_rows, int kv_heads, int sequences) {
    const int row_tiles = ceil_div(rows, tile_rows);
    return {row_tiles, 1, int64_t{row_tiles} * kv_heads * sequences};
}
Shape decode_shape(const Context& context, int group, int kv_heads, int head_dim, int sequences) {
    const int64_t rows = std::min<int64_t>(decode_rows(group), int64_t{context.max_query} * group);
    Shape shape = shape_of(rows, decode_tile, kv_heads, sequences);
    if (shape.tiles <= most_cut_tiles(head_dim)) shape.splits = longest_splits(context, group, kv_heads);
    return shape;
}
Shape prefill_shape(const Context& context, int group, int kv_heads, int head_dim, int sequences) {
    Shape shape = shape_of(int64_t{context.max_query} * group, prefill_rows(head_dim), kv_heads, sequences);
    if (shape.tiles <= Context::counter_count)
        shape.splits = choose_splits(context, shape.tiles, context.max_keys, prefill_split_keys);
    return shape;
}

// The tensor core kernels' conditions on a head: 16-byte rows, and room in shared memory for two pages of it.
bool wide_head(const Context& context, const Tensor& q, int head_dim) {
    bool fits = head_dim <= 128 || context.shared_limit >= 164 * 1000;
    return head_dim % 8 == 0 && head_dim <= 256 && wide_rows(q) && fits;
}

Status launch_any(Context& context, const AttentionCall& call) {
    return launch(context, attention_any_kernel, ceil_div(static_cast<int64_t>(call.tokens) * call.heads, 4), 128, 0, call);
}

Status many_rows(Context& context, const AttentionCall& call, int sequences) {
    return (can_prefill_wgmma(context, call) ? attention_prefill_wgmma : attention_prefill)(context, call, sequences);
}

AttentionCall attention_call(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    AttentionCall a = {};
    a.q = static_cast<const __half*>(call.in[0].data);
    a.q_stride = call.in[0].stride;
    a.out = static_cast<__half*>(call.out.data);
    a.out_stride = call.out.stride;
    a.tokens = static_cast<int>(call.out.rows);
    a.heads = attrs.heads;
    a.scale = attrs.scale;
    a.counters = context(call).counters;
    return a;
}

Status paged_attention(const KernelCall& call, const AttentionCall::Append& append) {
    Context& ctx = context(call);
    const Attrs& attrs = call.node->attrs;
    AttentionCall a = attention_call(call);
    a.append = append;
    a.cache = paged_cache(call);
    a.seq_begin = call.batch(Input::seq_begin);
    a.group = attrs.heads / attrs.kv_heads;
    a.window = attrs.window;
    a.softcap = attrs.softcap;
    a.alibi = ctx.device_constant(attrs.alibi);
    if (!wide_head(ctx, call.in[0], attrs.head_dim)) return launch_any(ctx, a);

    const int sequences = call.run->size.sequences, limit = decode_rows(a.group);
    auto take = [&](const Shape& shape, int tile_rows) {
        a.splits = shape.splits;
        a.row_tiles = shape.row_tiles;
        a.partial = reinterpret_cast<float*>(ctx.scratch);
        return check_scratch(ctx, partial_bytes(shape.tiles, shape.splits, tile_rows, attrs.head_dim));
    };
    if (ctx.min_query * a.group <= limit) {
        const Shape shape = decode_shape(ctx, a.group, attrs.kv_heads, attrs.head_dim, sequences);
        AWQ_TRY(take(shape, decode_tile));
        a.min_rows = 1;
        a.max_rows = limit;
        a.most_splits = shape.splits == 1 ? 1 : decode_splits(ctx, a.group, attrs.kv_heads);
        a.prefetch = shape.splits * shape.tiles <= 2 * ctx.multiprocessors;
        if (can_decode_pages(ctx, a)) return attention_decode_pages(ctx, a, sequences);
        AWQ_TRY(attention_decode(ctx, a, std::min(ctx.max_query * a.group, limit), sequences));
    }
    if (ctx.max_query * a.group > limit) {
        AWQ_TRY(take(prefill_shape(ctx, a.group, attrs.kv_heads, attrs.head_dim, sequences), prefill_rows(attrs.head_dim)));
        a.min_rows = limit + 1;
        a.max_rows = INT32_MAX;
        AWQ_TRY(many_rows(ctx, a, sequences));
    }
    return {};
}

Status attention(const KernelCall& call) { return paged_attention(call, {}); }

// Keys and values go into a cache of their own first: behind the split sums in the scratch memory.
size_t full_cache_bytes(const Attrs& attrs, int64_t keys) {
    return size_t{2} * 2 * page_size * attrs.kv_heads * attrs.head_dim * ceil_div(keys, page_size);
}

Status attention_full(const KernelCall& call) {
    Context& ctx = context(call);
    const Attrs& attrs = call.node->attrs;
    AttentionCall a = attention_call(call);
    a.cache.data = reinterpret_cast<__half*>(ctx.scratch);
    a.cache.page_stride = int64_t{2} * page_size * attrs.heads * attrs.head_dim;
    a.cache.kv_heads = attrs.heads;
    a.cache.head_dim = attrs.head_dim;
    a.full_keys = static_cast<int>(call.in[1].rows);
    a.group = 1;
    AWQ_TRY(append_plain(ctx, call.in[1], call.in[2], a.cache));
    if (!wide_head(ctx, call.in[0], attrs.head_dim)) return launch_any(ctx, a);
    a.min_rows = 1;
    a.max_rows = INT32_MAX;
    a.splits = 1;
    a.row_tiles = ceil_div(a.tokens, prefill_rows(attrs.head_dim));
    return many_rows(ctx, a, 1);
}

// Two pairs of columns at a time: 4 bytes of q and k, 8 of the table.
bool whole_pairs(const Tensor& k, const Tensor& table) {
    return wide_rows(k) && table.cols % 4 == 0 && table.stride % 2 == 0 && reinterpret_cast<uintptr_t>(table.data) % 8 == 0;
}

bool can_attend(const Graph&, const Node& node) { return node.attrs.head_dim > 0 && node.attrs.head_dim <= any_max_dim; }
}  // namespace

bool can_attend_appending(const KernelCall& append, const Node& attention) {
    const Context& ctx = context(append);
    const Tensor &q = append.in[0], &k = append.in[1], &table = append.in[3];
    return ctx.min_query == 1 && ctx.max_query == 1 && append.node->attrs.layer == attention.attrs.layer &&
           wide_head(ctx, q, attention.attrs.head_dim) && whole_pairs(k, table);
}

Status attention_appending(const KernelCall& append, const KernelCall& attention) {
    const Tensor in[] = {append.in[0]};  // in place of the rotated one
    KernelCall call = attention;
    call.in = in;
    const Tensor &k = append.in[1], &v = append.in[2], &table = append.in[3];
    AttentionCall::Append a = {};
    a.k = static_cast<const __half*>(k.data);
    a.k_stride = k.stride;
    a.v = static_cast<const __half*>(v.data);
    a.v_stride = v.stride;
    a.table = static_cast<const float*>(table.data);
    a.table_stride = table.stride;
    a.half = static_cast<int>(table.cols / 2);
    a.interleaved = append.node->attrs.interleaved;
    return paged_attention(call, a);
}

// No less for more sequences, tokens or keys: what the largest batch may take is enough for every other.
size_t attention_scratch(const Graph& graph, const Node& node, const BatchSize& size, const Context& context) {
    const Attrs& attrs = node.attrs;
    if (node.op == Op::attention_full) {
        Attrs full = attrs;
        full.kv_heads = attrs.heads;
        return full_cache_bytes(full, node_rows(graph.nodes[node.in[1]], size));
    }
    const int group = attrs.heads / attrs.kv_heads;
    const int64_t tiles = decode_shape(context, group, attrs.kv_heads, attrs.head_dim, size.sequences).tiles;
    // In prefill a cut leaves no more blocks than there are multiprocessors.
    const int splits = choose_splits(context, 1, context.max_keys, prefill_split_keys);
    return std::max(partial_bytes(std::min(tiles, most_cut_tiles(attrs.head_dim)), longest_splits(context, group, attrs.kv_heads),
                                  decode_tile, attrs.head_dim),
                    partial_bytes(ceil_div(context.multiprocessors, splits), splits, prefill_rows(attrs.head_dim), attrs.head_dim));
}

std::span<const Kernel> attention_kernels() {
    static const Kernel rows[] = {
        {Op::attention, "cuda paged attention", 0, INT32_MAX, can_attend, attention, plain_bytes},
        {Op::attention_full, "cuda attention", 0, INT32_MAX, can_attend, attention_full, plain_bytes},
    };
    return rows;
}

}  // namespace awq::cuda
