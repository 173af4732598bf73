// Matrix products: linear, and the fused ops around it.
//
// Two steps, both shared out among the threads: the input's rows are normed and packed as the weight's kernels want them,
// then pairs of row blocks of the weight are multiplied with them. A small input each thread packs for itself: that is
// faster than meeting.
#include <algorithm>
#include "backends/cpu/ops.h"

namespace awq::cpu {

static_assert(static_cast<int>(Activation::silu) == 1 && static_cast<int>(Activation::gelu) == 2 &&
                  static_cast<int>(Activation::gelu_tanh) == 3 && static_cast<int>(Activation::quick_gelu) == 4 &&
                  static_cast<int>(Activation::relu) == 5,
              "kernels/activation.h has the same numbers");

static constexpr int64_t pack_alone = 8192;  // values that a thread packs in about the time of a barrier
static constexpr int64_t most_small = 6;     // tokens up to which weights are unpacked in registers

// ---- packed rows

static int64_t sums_of(const Layout& layout, int64_t in) { return layout.packed() ? in / layout.group : 0; }
// Not a power of two: rows that many bytes apart would fall into the same few cache lines.
static int64_t stride_of(const Isa& isa, const Layout& layout, int64_t in) {
    return layout.packed() ? in + 64 / isa.value_bytes : in;
}

size_t packed_bytes(const Isa& isa, const Layout& layout, int64_t rows, int64_t in) {
    const size_t value = layout.packed() ? static_cast<size_t>(isa.value_bytes) : 4;
    return aligned(static_cast<size_t>(rows * stride_of(isa, layout, in)) * value) + aligned(static_cast<size_t>(rows) * 4) +
           aligned(static_cast<size_t>(rows * sums_of(layout, in)) * 4);
}

Packed carve_packed(const Isa& isa, const Layout& layout, int64_t rows, int64_t in, char*& scratch) {
    Packed packed;
    packed.stride = stride_of(isa, layout, in);
    if (layout.packed() && isa.value_bytes == 2)
        packed.values = carve<int16_t>(scratch, rows * packed.stride);
    else
        packed.values = carve<float>(scratch, rows * packed.stride);
    packed.scale = carve<float>(scratch, rows);
    packed.sums = carve<float>(scratch, rows * sums_of(layout, in));
    return packed;
}

void pack_row(const Isa& isa, const Layout& layout, int64_t in, const float* x, const Packed& packed, int64_t row) {
    if (layout.packed()) {
        char* values = static_cast<char*>(packed.values) + row * packed.stride * isa.value_bytes;
        isa.pack_row(x, in, layout.group, values, packed.scale + row, packed.sums + row * sums_of(layout, in));
    } else {
        std::copy_n(x, in, static_cast<float*>(packed.values) + row * packed.stride);
    }
}

LinearTask linear_task(const Weight& weight, const Layout& layout, int64_t expert, const Packed& x) {
    LinearTask task{};
    task.type = layout.type;
    task.weight = static_cast<const char*>(weight.data) + static_cast<size_t>(expert) * layout.expert_bytes;
    task.out = weight.spec.out;
    task.in = weight.spec.in;
    task.group = layout.group;
    task.scales = layout.scales;
    task.gate_up = weight.spec.stack == Stack::gate_up;
    task.x = x.values;
    task.x_stride = x.stride;
    task.x_scale = x.scale;
    task.x_sums = x.sums;
    return task;
}

void norm_row(const Isa& isa, const Attrs& attrs, const Weight* weight, const Weight* bias, bool mean, const float* x,
              int64_t cols, float* out) {
    const int64_t width = attrs.width;
    auto part = [&](const Weight* w, int64_t first) {  // one element for each of `width` columns, or one for every column
        return !w ? nullptr : static_cast<const float*>(w->data) + (w->spec.in == width ? 0 : first);
    };
    for (int64_t first = 0; first < cols; first += width) {
        if (mean)
            isa.layer_norm(x + first, part(weight, first), part(bias, first), width, attrs.eps, out + first);
        else
            isa.rms_norm(x + first, part(weight, first), width, attrs.eps, attrs.plus_one, out + first);
    }
}

// ---- the product

namespace {

struct Form {
    const Weight *norm = nullptr, *weight = nullptr, *bias = nullptr;
    const Tensor* residual = nullptr;
    bool gated = false;
};

}  // namespace

static const Weight* weight_of(const Graph& graph, const Node& node) {
    return graph.nodes[node.in[node.op == Op::linear || node.op == Op::linear_add ? 1 : 2]].weight;
}

Scratch linear_scratch(const Isa& isa, const RunArgs& args, const Node& node) {
    const Weight& weight = *weight_of(*args.graph, node);
    const Layout layout = layout_of(weight.spec);
    const int64_t rows = node_rows(node, args.size), in = weight.spec.in;
    const size_t packed = packed_bytes(isa, layout, rows, in), row = aligned(static_cast<size_t>(in) * 4);
    const bool alone = rows * in <= pack_alone;
    return {alone ? 0 : packed, row + isa.linear_scratch + 256 + (alone ? packed : 0)};
}

static Status product(const KernelCall& call, const Form& form) {
    const Worker& worker = worker_of(call);
    const Isa& isa = *worker.isa;
    const Tensor& x = call.in[0];
    const Layout layout = layout_of(form.weight->spec);
    const int64_t tokens = call.out.rows, in = form.weight->spec.in;

    // pack: shared out, or, where it is little, by each thread before its first item (not earlier: see Worker::share)
    char *own = worker.own, *shared = worker.shared;
    float* row = carve<float>(own, in);
    const bool alone = tokens * in <= pack_alone, direct = !layout.packed() && !form.norm;
    Packed packed{x.data, nullptr, nullptr, x.stride};
    if (!direct) packed = carve_packed(isa, layout, tokens, in, alone ? own : shared);
    auto pack = [&](int64_t t) {
        const float* from = x.row<float>(t);
        if (form.norm) {
            norm_row(isa, call.node->attrs, form.norm, nullptr, false, from, in, row);
            from = row;
        }
        pack_row(isa, layout, in, from, packed, t);
    };
    if (!direct && !alone) worker.share(tokens, 4, pack);
    int64_t packed_here = direct || !alone ? tokens : 0;
    auto ready = [&] {
        while (packed_here < tokens) pack(packed_here++);
    };

    // multiply
    LinearTask task = linear_task(*form.weight, layout, 0, packed);
    task.y = static_cast<float*>(call.out.data);
    task.y_stride = call.out.stride;
    task.bias = form.bias ? static_cast<const float*>(form.bias->data) : nullptr;
    task.residual = form.residual ? static_cast<const float*>(form.residual->data) : nullptr;
    task.residual_stride = form.residual ? form.residual->stride : 0;
    task.gated = form.gated;
    task.activation = static_cast<int32_t>(call.node->attrs.activation);
    const size_t weight_bytes = layout.expert_bytes;
    if (tokens <= most_small) {
        // Runs of several pairs keep a thread on one stream of memory.
        const int64_t run = std::clamp<int64_t>(layout.pairs / (8 * worker.threads), 1, 8);
        // The beginning of this thread's stream, while it waits for the input.
        if (worker.team) {
            const size_t first = static_cast<size_t>(worker.team->slice(worker.index, layout.pairs)) * weight_bytes / static_cast<size_t>(layout.pairs);
            for (size_t at = 0; at < 4096 && first + at < weight_bytes; at += 64)
                __builtin_prefetch(static_cast<const char*>(form.weight->data) + first + at);
        }
        worker.share(layout.pairs, run, [&](int64_t pair) {
            ready();
            isa.linear_small(task, pair, 0, tokens);
        });
        return {};
    }
    // Tokens in even parts of whole tiles; more parts than needed where else there would be too few items for the threads.
    int64_t parts = (tokens + isa.large_tokens - 1) / isa.large_tokens;
    while (parts * layout.pairs < 4 * worker.threads && tokens / (parts + 1) >= 8 * isa.tile_tokens) parts++;
    const int64_t part = ((tokens + parts - 1) / parts + isa.tile_tokens - 1) / isa.tile_tokens * isa.tile_tokens;
    worker.share(parts * layout.pairs, 1, [&](int64_t i) {
        ready();
        const int64_t first = i / layout.pairs * part, last = std::min(first + part, tokens);
        if (first < last) isa.linear_large(task, i % layout.pairs, first, last, own);
    });
    return {};
}

Status linear(const KernelCall& call) { return product(call, {.weight = call.weight(1), .bias = call.weight(2)}); }
Status norm_linear(const KernelCall& call) {
    return product(call, {.norm = call.weight(1), .weight = call.weight(2), .bias = call.weight(3)});
}
Status norm_gate_up(const KernelCall& call) {
    return product(call, {.norm = call.weight(1), .weight = call.weight(2), .gated = true});
}
Status linear_add(const KernelCall& call) {
    return product(call, {.weight = call.weight(1), .bias = call.weight(2), .residual = &call.in[3]});
}

}  // namespace awq::cpu
