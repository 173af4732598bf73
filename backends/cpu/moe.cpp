// Mixture of experts: each token's chosen experts, tokens of one expert together, so that its weights are read once.
//
// A "slot" is one (token, expert) choice; slots are ordered by expert. Gate and up run over the slots of each expert, then
// down, then each token adds its slots up in the order of their weights: the same sum whatever the threads did.
#include <algorithm>
#include <cmath>
#include "backends/cpu/ops.h"

namespace awq::cpu {

namespace {

struct Sizes {
    const Weight *gate_up, *down;
    Layout gate_up_layout, down_layout;
    int64_t tokens, experts, top_k, slots;
};

Sizes sizes_of(const Graph& graph, const Node& node, int64_t tokens) {
    Sizes s;
    s.gate_up = graph.nodes[node.in[2]].weight;
    s.down = graph.nodes[node.in[3]].weight;
    s.gate_up_layout = layout_of(s.gate_up->spec);
    s.down_layout = layout_of(s.down->spec);
    s.tokens = tokens;
    s.experts = s.gate_up->spec.experts;
    s.top_k = std::min<int64_t>(node.attrs.top_k, s.experts);
    s.slots = tokens * s.top_k;
    return s;
}

// Slots of one expert that are multiplied at once.
struct Part {
    int32_t expert, first, last;
};

// Shared scratch of a node.
struct Memory {
    Part* parts;
    int32_t* first;      // [experts + 1] first slot of each expert
    int32_t* next;       // [experts]
    int32_t* expert_of;  // [slots], by token and then by falling weight
    int32_t* slot_of;    // likewise
    int32_t* token_of;   // [slots], by slot
    float* share;        // as expert_of
    Packed x, hidden_packed;
    float *hidden, *y;  // [slots][expert size], [slots][columns]
    size_t bytes;
};

Memory carve_memory(const Isa& isa, const Sizes& s, char* scratch) {
    char* at = scratch;
    Memory m;
    m.parts = carve<Part>(at, std::min(s.experts, s.slots) + s.slots / isa.large_tokens + 1);
    m.first = carve<int32_t>(at, s.experts + 1);
    m.next = carve<int32_t>(at, s.experts);
    m.expert_of = carve<int32_t>(at, s.slots);
    m.slot_of = carve<int32_t>(at, s.slots);
    m.token_of = carve<int32_t>(at, s.slots);
    m.share = carve<float>(at, s.slots);
    m.x = carve_packed(isa, s.gate_up_layout, s.slots, s.gate_up->spec.in, at);
    m.hidden_packed = carve_packed(isa, s.down_layout, s.slots, s.down->spec.in, at);
    m.hidden = carve<float>(at, s.slots * s.down->spec.in);
    m.y = carve<float>(at, s.slots * s.down->spec.out);
    m.bytes = static_cast<size_t>(at - scratch);
    return m;
}

// Softmax over all experts, the top_k of them (lowest index first among equals), renormalised if asked. Number of parts.
int64_t choose(const Attrs& attrs, const Sizes& s, const Tensor& logits, const Memory& m, int64_t most, float* weights) {
    std::fill_n(m.first, s.experts + 1, 0);
    for (int64_t t = 0; t < s.tokens; t++) {
        const float* row = logits.row<float>(t);
        const float top = *std::max_element(row, row + s.experts);
        float sum = 0, chosen = 0;
        for (int64_t e = 0; e < s.experts; e++) sum += weights[e] = std::exp(row[e] - top);
        int32_t* experts = m.expert_of + t * s.top_k;
        float* share = m.share + t * s.top_k;
        for (int64_t k = 0; k < s.top_k; k++) {
            int64_t best = -1;
            for (int64_t e = 0; e < s.experts; e++)
                if (std::find(experts, experts + k, e) == experts + k && (best < 0 || weights[e] > weights[best])) best = e;
            experts[k] = static_cast<int32_t>(best);
            chosen += share[k] = weights[best];
            m.first[best + 1]++;
        }
        for (int64_t k = 0; k < s.top_k; k++) share[k] /= attrs.renormalize ? chosen : sum;
    }
    for (int64_t e = 0; e < s.experts; e++) {
        m.first[e + 1] += m.first[e];
        m.next[e] = m.first[e];
    }
    for (int64_t i = 0; i < s.slots; i++) {
        const int32_t slot = m.next[m.expert_of[i]]++;
        m.slot_of[i] = slot;
        m.token_of[slot] = static_cast<int32_t>(i / s.top_k);
    }
    int64_t parts = 0;
    for (int64_t e = 0; e < s.experts; e++)
        for (int64_t first = m.first[e], last = m.first[e + 1]; first < last; first += most)
            m.parts[parts++] = {static_cast<int32_t>(e), static_cast<int32_t>(first),
                                static_cast<int32_t>(std::min(first + most, last))};
    return parts;
}

// task(expert) over every pair of blocks and its experts' slots
template <class MakeTask>
void multiply(const Worker& worker, const Memory& m, const Layout& layout, MakeTask make_task) {
    const Isa& isa = *worker.isa;
    constexpr int32_t most_small = 6;
    worker.share(worker.count->load(std::memory_order_relaxed) * layout.pairs, 1, [&](int64_t i) {
        const Part part = m.parts[i / layout.pairs];
        const LinearTask task = make_task(part.expert);
        if (part.last - part.first <= most_small)
            isa.linear_small(task, i % layout.pairs, part.first, part.last);
        else
            isa.linear_large(task, i % layout.pairs, part.first, part.last, worker.own);
    });
}

}  // namespace

Scratch moe_scratch(const Isa& isa, const RunArgs& args, const Node& node) {
    const Sizes s = sizes_of(*args.graph, node, node_rows(node, args.size));
    return {carve_memory(isa, s, nullptr).bytes, std::max(isa.linear_scratch, static_cast<size_t>(s.experts) * 4) + 256};
}

Status moe(const KernelCall& call) {
    const Worker& worker = worker_of(call);
    const Isa& isa = *worker.isa;
    const Attrs& attrs = call.node->attrs;
    const Sizes s = sizes_of(*call.run->graph, *call.node, call.out.rows);
    const Memory m = carve_memory(isa, s, worker.shared);
    const int64_t in = s.gate_up->spec.in, size = s.down->spec.in, out = s.down->spec.out;
    worker.share(1, 1, [&](int64_t) {
        *worker.count = choose(attrs, s, call.in[1], m, isa.large_tokens, reinterpret_cast<float*>(worker.own));
    });
    worker.share(s.slots, 4,
                 [&](int64_t slot) { pack_row(isa, s.gate_up_layout, in, call.in[0].row<float>(m.token_of[slot]), m.x, slot); });
    multiply(worker, m, s.gate_up_layout, [&](int64_t expert) {
        LinearTask task = linear_task(*s.gate_up, s.gate_up_layout, expert, m.x);
        task.y = m.hidden;
        task.y_stride = size;
        task.gated = true;
        task.activation = static_cast<int32_t>(attrs.activation);
        return task;
    });
    worker.share(s.slots, 4,
                 [&](int64_t slot) { pack_row(isa, s.down_layout, size, m.hidden + slot * size, m.hidden_packed, slot); });
    multiply(worker, m, s.down_layout, [&](int64_t expert) {
        LinearTask task = linear_task(*s.down, s.down_layout, expert, m.hidden_packed);
        task.y = m.y;
        task.y_stride = out;
        return task;
    });
    worker.share(s.tokens, 1, [&](int64_t t) {
        float* to = call.out.row<float>(t);
        std::fill_n(to, out, 0.0f);
        for (int64_t i = t * s.top_k; i < (t + 1) * s.top_k; i++) isa.mix(to, m.y + m.slot_of[i] * out, m.share[i], out);
    });
    return {};
}

int64_t moe_bytes(const Graph& graph, const Node& node, const BatchSize& size, int64_t kv_length) {
    // Each choice may be an expert of its own, up to all there are.
    const Weight *gate_up = graph.nodes[node.in[2]].weight, *down = graph.nodes[node.in[3]].weight;
    const int64_t experts = gate_up->spec.experts, used = std::min<int64_t>(experts, node_rows(node, size) * node.attrs.top_k);
    const int64_t weights = static_cast<int64_t>(gate_up->bytes + down->bytes);
    return plain_bytes(graph, node, size, kv_length) - weights + weights / experts * used;
}

}  // namespace awq::cpu
