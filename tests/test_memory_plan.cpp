#include <doctest/doctest.h>
#include <random>
#include "core/memory_plan.h"

using namespace awq;

namespace {

Node make(Op op, std::vector<NodeId> in, int64_t cols) {
    Node node;
    node.op = op;
    node.in = std::move(in);
    node.cols = cols;
    return node;
}

// Every pair of nodes that are alive together must lie apart.
void check_disjoint(const Graph& graph, const MemoryPlan& plan, const BatchSize& size) {
    int count = static_cast<int>(graph.nodes.size());
    std::vector<int> last(count);
    for (int id = 0; id < count; id++) {
        last[id] = id;
        for (NodeId in : graph.nodes[id].in) last[graph.root(in)] = id;
    }
    if (graph.output != no_node) last[graph.root(graph.output)] = count;
    auto bytes = [&](int id) { return static_cast<size_t>(node_rows(graph.nodes[id], size) * graph.nodes[id].cols) * 4; };
    auto has_memory = [&](int id) { return graph.nodes[id].op != Op::input && graph.nodes[id].op != Op::view; };
    for (int a = 0; a < count; a++)
        for (int b = a + 1; b < count; b++) {
            if (!has_memory(a) || !has_memory(b) || b > last[a]) continue;
            bool apart = plan.offset[a] + bytes(a) <= plan.offset[b] || plan.offset[b] + bytes(b) <= plan.offset[a];
            CHECK_MESSAGE(apart, "nodes " << a << " and " << b);
        }
    for (int id = 0; id < count; id++)
        if (has_memory(id)) {
            CHECK(plan.offset[id] % memory_alignment == 0);
            CHECK(plan.offset[id] + bytes(id) <= plan.peak);
        }
}

}  // namespace

TEST_CASE("memory plan: a chain needs two buffers, a residual keeps its own") {
    Graph graph;
    graph.nodes.push_back(make(Op::input, {}, 64));
    for (int i = 0; i < 10; i++) graph.nodes.push_back(make(Op::scale, {i}, 64));
    graph.output = 10;
    BatchSize size;
    size.tokens = 4;
    MemoryPlan chain = plan_memory(graph, size);
    CHECK(chain.peak == 2 * 4 * 64 * 4);
    graph.nodes.push_back(make(Op::add, {10, 1}, 64));
    graph.output = 11;
    CHECK(plan_memory(graph, size).peak == 3 * 4 * 64 * 4);
}

TEST_CASE("memory plan: a view keeps its root alive; the output lives to the end") {
    Graph graph;
    graph.nodes.push_back(make(Op::input, {}, 64));
    graph.nodes.push_back(make(Op::scale, {0}, 128));
    graph.nodes.push_back(make(Op::view, {1}, 64));
    graph.nodes.push_back(make(Op::scale, {0}, 64));
    graph.nodes.push_back(make(Op::scale, {3}, 64));
    graph.nodes.push_back(make(Op::add, {4, 2}, 64));
    graph.output = 3;
    BatchSize size;
    size.tokens = 3;
    check_disjoint(graph, plan_memory(graph, size), size);
}

TEST_CASE("memory plan: what a rope_append reads lives as long as its result") {
    Graph graph;
    graph.nodes.push_back(make(Op::input, {}, 64));
    graph.nodes.push_back(make(Op::scale, {0}, 192));
    for (int i = 0; i < 3; i++) graph.nodes.push_back(make(Op::view, {1}, 64));
    graph.nodes.push_back(make(Op::scale, {0}, 64));
    graph.nodes.push_back(make(Op::rope_append, {2, 3, 4, 5, no_node, no_node, no_node}, 64));
    graph.nodes.push_back(make(Op::attention, {6, no_node, no_node, no_node, no_node}, 64));
    graph.nodes.push_back(make(Op::scale, {7}, 64));
    graph.output = 8;
    BatchSize size;
    size.tokens = 5;
    const MemoryPlan plan = plan_memory(graph, size);
    const size_t token = 5 * 64 * 4, attention = plan.offset[7];
    for (auto [id, bytes] : {std::pair{1, 3 * token}, {5, token}, {6, token}})
        CHECK((attention + token <= plan.offset[id] || plan.offset[id] + bytes <= attention));
    CHECK(plan.peak == 6 * token);
}

TEST_CASE("memory plan: random graphs never overlap, and never need more than all nodes side by side") {
    std::mt19937 random(1);
    for (int round = 0; round < 200; round++) {
        Graph graph;
        graph.nodes.push_back(make(Op::input, {}, 32));
        int count = 2 + static_cast<int>(random() % 40);
        for (int i = 1; i < count; i++) {
            NodeId a = static_cast<NodeId>(random() % i), b = static_cast<NodeId>(random() % i);
            if (random() % 5 == 0) graph.nodes.push_back(make(Op::view, {a}, 16));
            else graph.nodes.push_back(make(Op::add, {a, b}, 16 + static_cast<int64_t>(random() % 200)));
            if (random() % 4 == 0) {
                graph.nodes.back().rows = Rows::fixed;
                graph.nodes.back().fixed_rows = static_cast<int64_t>(random() % 9);
            }
        }
        graph.output = count - 1;
        BatchSize size;
        size.tokens = 1 + static_cast<int32_t>(random() % 8);
        MemoryPlan plan = plan_memory(graph, size);
        check_disjoint(graph, plan, size);
        size_t all = 0;
        for (const Node& node : graph.nodes) all += (static_cast<size_t>(node_rows(node, size) * node.cols) * 4 + 255) / 256 * 256;
        CHECK(plan.peak <= all);
    }
}
