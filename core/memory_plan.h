// Where each activation lies: a pure function from a graph to offsets. No device, no malloc of what it plans.
#pragma once
#include <cstddef>
#include <vector>
#include "core/graph.h"

namespace awq {

struct MemoryPlan {
    std::vector<size_t> offset;    // of each node's memory; views and sources: 0, unused
    size_t peak = 0;               // bytes that must be allocated, once
};

inline constexpr size_t memory_alignment = 256;

// Nodes that are alive together (from where a node is computed to the last node that reads it, itself or through a view)
// never overlap, at the row counts of `capacity`. The graph's output stays alive to the end. What a rope_append reads stays
// alive as long as its result: a backend may do its work along with the attention behind it.
MemoryPlan plan_memory(const Graph& graph, const BatchSize& capacity);

}  // namespace awq
