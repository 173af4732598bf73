#include "core/memory_plan.h"
#include <algorithm>

namespace awq {

MemoryPlan plan_memory(const Graph& graph, const BatchSize& capacity) {
    const auto& nodes = graph.nodes;
    const int count = static_cast<int>(nodes.size());
    MemoryPlan plan;
    plan.offset.assign(count, 0);

    std::vector<int> last_use(count);
    for (int id = 0; id < count; id++) {
        last_use[id] = id;
        for (NodeId in : nodes[id].in)
            if (in != no_node) last_use[graph.root(in)] = id;
    }
    if (graph.output != no_node) last_use[graph.root(graph.output)] = count;
    for (int id = 0; id < count; id++)
        if (nodes[id].op == Op::rope_append)
            for (NodeId in : nodes[id].in)
                if (in != no_node) last_use[graph.root(in)] = std::max(last_use[graph.root(in)], last_use[id]);

    struct Block {
        int first, last;
        size_t bytes;
        NodeId id;
    };
    std::vector<Block> blocks;
    for (int id = 0; id < count; id++) {
        const Node& node = nodes[id];
        if (node.op == Op::input || node.op == Op::weight || node.op == Op::view) continue;
        size_t bytes = static_cast<size_t>(node_rows(node, capacity)) * static_cast<size_t>(node.cols) * dtype_bytes(node.dtype);
        if (bytes == 0) continue;
        blocks.push_back({id, last_use[id], (bytes + memory_alignment - 1) / memory_alignment * memory_alignment, id});
    }
    // Largest first, each at the lowest offset free for as long as it lives. Among equals: in run order.
    std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.bytes > b.bytes; });
    std::vector<const Block*> placed;    // ordered by offset
    for (const Block& block : blocks) {
        size_t at = 0;
        for (const Block* other : placed) {
            if (other->last < block.first || block.last < other->first) continue;
            if (plan.offset[other->id] >= at + block.bytes) break;
            at = std::max(at, plan.offset[other->id] + other->bytes);
        }
        plan.offset[block.id] = at;
        plan.peak = std::max(plan.peak, at + block.bytes);
        placed.insert(std::upper_bound(placed.begin(), placed.end(), &block,
                                       [&](const Block* a, const Block* b) { return plan.offset[a->id] < plan.offset[b->id]; }),
                      &block);
    }
    return plan;
}

}  // namespace awq
