// How models write graphs: each call appends a named node and checks its shape. A fused op for which the backend has no
// kernel is appended in its unfused spelling (core/lowering.cpp), so a finished graph holds only what the backend runs.
#pragma once
#include <string>
#include <vector>
#include "core/graph.h"

namespace awq {

class Backend;

class GraphBuilder {
public:
    // `fuse` off: every fused op takes its unfused spelling.
    GraphBuilder(Graph& graph, const Backend& backend, bool fuse) : graph_(graph), backend_(backend), fuse_(fuse) {}

    NodeId input(Input kind, Rows rows, int64_t cols, DType dtype, int64_t fixed_rows = 0);
    NodeId batch_input(Input kind);                 // the i32 inputs of a text graph, made on first use
    NodeId weight(const Weight* weight);            // made once for each weight
    NodeId view(NodeId from, int64_t first_col, int64_t cols, const std::string& name);
    // Any other op. `name` is the module's path and shows up in profiles and errors. Errors are kept: see status().
    NodeId op(Op op, const std::string& name, std::vector<NodeId> in, const Attrs& attrs = {});

    const Graph& graph() const { return graph_; }
    Graph& graph() { return graph_; }
    const Node& node(NodeId id) const { return graph_.nodes[id]; }
    Status status() const { return status_; }       // the first error
    void fail(Status status) {
        if (status_.ok()) status_ = std::move(status);
    }

private:
    NodeId append(Node node);
    Graph& graph_;
    const Backend& backend_;
    bool fuse_;
    Status status_;
    std::vector<std::pair<const Weight*, NodeId>> weights_;
    NodeId batch_inputs_[input_count] = {no_node, no_node, no_node, no_node, no_node, no_node, no_node, no_node, no_node, no_node};
};

// Output rows, columns and type of `node` from its op, inputs and attributes; an error names the node and what clashes.
Status infer_shape(const Graph& graph, DType activation_type, Node& node);

// Appends the unfused spelling of a fused op; false if the op has none.
bool lower(GraphBuilder& builder, Op op, const std::string& name, const std::vector<NodeId>& in, const Attrs& attrs, NodeId& result);

}  // namespace awq
