// Rotary embedding, the cache, attention. Pages of the cache lie as kernels.h says: [page][layer][kv head]{K, V}.
#include <algorithm>
#include <cmath>
#include "backends/cpu/ops.h"

namespace awq::cpu {

static_assert(page_keys == page_size);

static int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
static size_t head_elements(const KvShape& kv) {
    return static_cast<size_t>(page_size) * static_cast<size_t>(kv.head_dim + padded(kv.head_dim));
}
size_t page_elements(const KvShape& kv) {
    return static_cast<size_t>(kv.layers) * static_cast<size_t>(kv.kv_heads) * head_elements(kv);
}

// K of kv head 0 of a layer in a page
static uint16_t* cache_at(const RunArgs& run, int32_t layer, int32_t page) {
    return static_cast<uint16_t*>(run.kv_cache->data) + static_cast<size_t>(page) * page_elements(run.kv) +
           static_cast<size_t>(layer) * static_cast<size_t>(run.kv.kv_heads) * head_elements(run.kv);
}

// ---- rotary embedding

Status rope_table(const KernelCall& call) {
    const RopeParams& rope = *call.node->attrs.rope;
    const int64_t half = rope.rot_dim / 2;
    worker_of(call).share(call.out.rows, 4, [&](int64_t r) {
        const int64_t length = call.batch(Input::rope_len)[call.batch(Input::sequence)[r]];
        const float position = static_cast<float>(call.batch(Input::positions)[r]);
        const bool longer = length > rope.original_length;
        double theta = rope.theta;
        if (rope.kind == RopeParams::Kind::dynamic && longer)
            theta *= std::pow(
                rope.factor * static_cast<double>(length) / static_cast<double>(rope.original_length) - (rope.factor - 1),
                rope.rot_dim / (rope.rot_dim - 2.0));
        float *cosine = call.out.row<float>(r), *sine = cosine + half;
        for (int64_t i = 0; i < half; i++) {
            float frequency = rope.inv_freq[static_cast<size_t>(i)];
            if (rope.kind == RopeParams::Kind::dynamic && longer)
                frequency = static_cast<float>(1 / std::pow(theta, 2.0 * static_cast<double>(i) / rope.rot_dim));
            if (rope.kind == RopeParams::Kind::longrope && longer) frequency = rope.long_inv_freq[static_cast<size_t>(i)];
            const float angle = position * frequency;
            cosine[i] = std::cos(angle) * rope.attention_factor;
            sine[i] = std::sin(angle) * rope.attention_factor;
        }
    });
    return {};
}

static void rope_row(const KernelCall& call, const float* x, const float* table, int32_t heads, float* out) {
    const Attrs& attrs = call.node->attrs;
    const Graph& graph = *call.run->graph;
    const int64_t rot_dim = graph.nodes[call.node->in[call.node->op == Op::rope ? 1 : 3]].cols;
    worker_of(call).isa->rope(x, table, heads, attrs.head_dim, static_cast<int32_t>(rot_dim), attrs.interleaved, out);
}

Status rope(const KernelCall& call) {
    worker_of(call).share(call.out.rows, 4, [&](int64_t r) {
        rope_row(call, call.in[0].row<float>(r), call.in[1].row<float>(r), call.node->attrs.heads, call.out.row<float>(r));
    });
    return {};
}

// ---- the cache

static void append_row(const KernelCall& call, int64_t r, const float* k, const float* v) {
    const RunArgs& run = *call.run;
    const int32_t position = call.batch(Input::positions)[r], sequence = call.batch(Input::sequence)[r];
    const int32_t page =
        call.batch(Input::page_table)[static_cast<int64_t>(sequence) * run.size.max_pages + position / page_size];
    worker_of(call).isa->kv_store(k, v, run.kv.kv_heads, run.kv.head_dim, static_cast<int32_t>(padded(run.kv.head_dim)),
                                  cache_at(run, call.node->attrs.layer, page), head_elements(run.kv), position % page_size);
}

Status kv_append(const KernelCall& call) {
    worker_of(call).share(call.in[0].rows, 16,
                          [&](int64_t r) { append_row(call, r, call.in[0].row<float>(r), call.in[1].row<float>(r)); });
    return {};
}

Scratch rope_append_scratch(const Isa&, const RunArgs& args, const Node& node) {
    return {0, aligned(static_cast<size_t>(args.graph->nodes[node.in[1]].cols) * 4)};
}

Status rope_append(const KernelCall& call) {
    const Worker& worker = worker_of(call);
    const Attrs& attrs = call.node->attrs;
    worker.share(call.out.rows, 16, [&](int64_t r) {
        const float* table = call.in[3].row<float>(r);
        rope_row(call, call.in[0].row<float>(r), table, attrs.heads, call.out.row<float>(r));
        float* k = reinterpret_cast<float*>(worker.own);
        rope_row(call, call.in[1].row<float>(r), table, attrs.kv_heads, k);
        append_row(call, r, k, call.in[2].row<float>(r));
    });
    return {};
}

// ---- attention

namespace {

// Few rows of a sequence against its keys: keys go in parts of this many pages, joined afterwards, so that one long
// sequence keeps all threads busy. Fixed, and so is the order of the sums.
constexpr int32_t part_pages = 8;
constexpr int32_t most_split_rows = 8;
constexpr int32_t block_target_rows = 48;  // rows of one item in a prompt: queries x heads that share a page

struct Plan {
    int32_t heads, kv_heads, group, block_tokens;
    int64_t state;      // floats of one partial state
    int32_t max_parts;  // of any sequence; 1: nothing to join
};

int32_t first_page(const Attrs& attrs, int32_t position) {
    return attrs.window > 0 && position >= attrs.window ? (position - attrs.window + 1) / page_size : 0;
}

struct Sequence {
    int32_t first, tokens, first_page, last_page;  // pages that any of its tokens sees
    bool split;
    int32_t parts() const { return split ? (last_page - 1) / part_pages - first_page / part_pages + 1 : 1; }
};

Sequence sequence_at(const RunArgs& run, const Attrs& attrs, int32_t s) {
    const int32_t* begin = static_cast<const int32_t*>(run.inputs[static_cast<int>(Input::seq_begin)]);
    const int32_t* positions = static_cast<const int32_t*>(run.inputs[static_cast<int>(Input::positions)]);
    Sequence q{begin[s], begin[s + 1] - begin[s], 0, 0, false};
    if (q.tokens <= 0) return q;
    q.first_page = first_page(attrs, positions[q.first]);
    q.last_page = positions[q.first + q.tokens - 1] / page_size + 1;
    q.split = q.tokens * (attrs.heads / attrs.kv_heads) <= most_split_rows;
    return q;
}

Plan plan_of(const RunArgs& run, const Node& node) {
    const Attrs& attrs = node.attrs;
    Plan plan;
    plan.heads = attrs.heads;
    plan.kv_heads = attrs.kv_heads;
    plan.group = attrs.heads / attrs.kv_heads;
    plan.block_tokens = std::max(1, block_target_rows / plan.group);
    plan.state = padded(attrs.head_dim) + 16;
    plan.max_parts = 1;
    for (int32_t s = 0; node.op == Op::attention && s < run.size.sequences; s++) {
        Sequence q = sequence_at(run, attrs, s);
        if (q.tokens > 0) plan.max_parts = std::max(plan.max_parts, q.parts());
    }
    return plan;
}

}  // namespace

Scratch attention_scratch_of(const Isa&, const RunArgs& args, const Node& node) {
    const Plan plan = plan_of(args, node);
    const int64_t rows = std::max<int64_t>(plan.block_tokens * plan.group, most_split_rows), pad = padded(node.attrs.head_dim);
    Scratch need;
    need.own = aligned(attention_scratch(rows, node.attrs.head_dim, static_cast<int32_t>(pad)));
    if (plan.max_parts > 1)
        need.shared = static_cast<size_t>(args.size.tokens) * static_cast<size_t>(plan.heads) *
                      static_cast<size_t>(plan.max_parts * plan.state) * 4;
    return need;
}

static AttentionTask attention_task(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    AttentionTask task{};
    task.q = static_cast<const float*>(call.in[0].data);
    task.q_stride = call.in[0].stride;
    task.out = static_cast<float*>(call.out.data);
    task.out_stride = call.out.stride;
    task.group_heads = attrs.heads / attrs.kv_heads;
    task.head_dim = attrs.head_dim;
    task.head_pad = static_cast<int32_t>(padded(attrs.head_dim));
    task.scale = attrs.scale;
    task.softcap = attrs.softcap;
    return task;
}

Status attention(const KernelCall& call) {
    const Worker& worker = worker_of(call);
    const RunArgs& run = *call.run;
    const Attrs& attrs = call.node->attrs;
    const Plan plan = plan_of(run, *call.node);
    AttentionTask task = attention_task(call);
    task.alibi = attrs.alibi;
    task.window = attrs.window;
    task.positions = call.batch(Input::positions);
    task.cache = cache_at(run, attrs.layer, 0);
    task.page_stride = page_elements(run.kv);
    task.head_stride = head_elements(run.kv);
    float* partial = reinterpret_cast<float*>(worker.shared);
    const int64_t row_states = plan.max_parts * plan.state;
    // States lie [kv head][token][head of the group][part].
    auto state_at = [&](int32_t kv_head, int64_t token) {
        return partial + (kv_head * int64_t{run.size.tokens} + token) * plan.group * row_states;
    };

    // Items: of each sequence, either parts of the keys or blocks of the tokens, times kv heads.
    auto units = [&](const Sequence& q) { return q.split ? q.parts() : (q.tokens + plan.block_tokens - 1) / plan.block_tokens; };
    int64_t items = 0;
    for (int32_t s = 0; s < run.size.sequences; s++) items += int64_t{units(sequence_at(run, attrs, s))} * plan.kv_heads;
    auto item_at = [&](int64_t item) {
        int32_t s = 0;
        Sequence q = sequence_at(run, attrs, s);
        for (; item >= int64_t{units(q)} * plan.kv_heads; q = sequence_at(run, attrs, ++s))
            item -= int64_t{units(q)} * plan.kv_heads;
        const int32_t unit = static_cast<int32_t>(item / plan.kv_heads);
        AttentionItem work{};
        work.pages = call.batch(Input::page_table) + static_cast<int64_t>(s) * run.size.max_pages;
        work.kv_head = static_cast<int32_t>(item % plan.kv_heads);
        if (q.split) {
            const int32_t part = q.first_page / part_pages + unit;
            work.token = q.first;
            work.tokens = q.tokens;
            work.first_page = std::max(q.first_page, part * part_pages);
            work.last_page = std::min(q.last_page, (part + 1) * part_pages);
            work.partial = q.parts() > 1 ? state_at(work.kv_head, q.first) + unit * plan.state : nullptr;
            work.partial_stride = row_states;
        } else {
            // The longest blocks first: those are the last ones, which see the most keys.
            const int32_t block = units(q) - 1 - unit;
            work.token = q.first + int64_t{block} * plan.block_tokens;
            work.tokens = std::min(plan.block_tokens, q.tokens - block * plan.block_tokens);
            work.first_page = first_page(attrs, task.positions[work.token]);
            work.last_page = task.positions[work.token + work.tokens - 1] / page_size + 1;
        }
        return work;
    };
    auto first_keys = [&](const AttentionItem& item) {
        return task.cache + static_cast<size_t>(item.pages[item.first_page]) * task.page_stride +
               static_cast<size_t>(item.kv_head) * task.head_stride;
    };
    // The beginning of this thread's stream of memory, asked for while it waits for the queries.
    if (worker.team && items > 0) {
        const uint16_t* keys = first_keys(item_at(std::min(worker.team->slice(worker.index, items), items - 1)));
        for (int64_t at = 0; at < int64_t{page_size} * attrs.head_dim; at += 32) __builtin_prefetch(keys + at, 0, 2);
    }
    worker.share(items, 1, [&](int64_t i) {
        AttentionItem item = item_at(i);
        item.next = first_keys(i + 1 < items ? item_at(i + 1) : item);
        worker.isa->attention(task, item, worker.own);
    });
    if (plan.max_parts == 1) return {};
    worker.share(run.size.tokens, 1, [&](int64_t token) {
        const Sequence q = sequence_at(run, attrs, call.batch(Input::sequence)[token]);
        if (q.parts() == 1) return;
        for (int32_t head = 0; head < plan.heads; head++)
            worker.isa->attention_join(state_at(head / plan.group, token) + head % plan.group * row_states, plan.state, q.parts(),
                                       task.head_dim, task.head_pad,
                                       call.out.row<float>(token) + static_cast<int64_t>(head) * task.head_dim);
    });
    return {};
}

// No cache, no mask: every row sees every key.
Status attention_full(const KernelCall& call) {
    const Worker& worker = worker_of(call);
    const Attrs& attrs = call.node->attrs;
    AttentionTask task = attention_task(call);
    task.k = static_cast<const float*>(call.in[1].data);
    task.v = static_cast<const float*>(call.in[2].data);
    task.k_stride = call.in[1].stride;
    task.v_stride = call.in[2].stride;
    task.keys = call.in[1].rows;
    const Plan plan = plan_of(*call.run, *call.node);
    const int64_t blocks = (call.out.rows + plan.block_tokens - 1) / plan.block_tokens;
    worker.share(blocks * attrs.kv_heads, 1, [&](int64_t i) {
        AttentionItem work{};
        work.kv_head = static_cast<int32_t>(i % attrs.kv_heads);
        work.token = i / attrs.kv_heads * plan.block_tokens;
        work.tokens = static_cast<int32_t>(std::min<int64_t>(plan.block_tokens, call.out.rows - work.token));
        work.last_page = static_cast<int32_t>((task.keys + page_size - 1) / page_size);
        worker.isa->attention(task, work, worker.own);
    });
    return {};
}

}  // namespace awq::cpu
