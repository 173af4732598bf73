// What kernels reach at the sizes of real models, by the harness of the sweep: AWQ_BENCH=1 prints it, with AWQ_TEST_ON=cpu of that
// backend only.
#include <cstdio>
#include <cstdlib>
#include "tests/op_bench.h"

using namespace awq;
using namespace awq::test_ops;

TEST_CASE("ops: speed, with AWQ_BENCH=1") {
    if (!std::getenv("AWQ_BENCH")) return;
    for (Candidate& candidate : candidates()) {
        const double limit = candidate.backend->bandwidth();
        std::printf("%s: a plain read reaches %.1f GB/s\n", candidate.backend->device().name.c_str(), limit * 1e-9);
        auto show = [&](const std::string& what, Bench& b, NodeId y, double seconds, double products, int64_t kv_length) {
            const Graph& graph = b.g().graph();
            const Node& node = graph.nodes[static_cast<size_t>(y)];
            const Kernel* kernel = candidate.backend->kernel(graph, node, node_rows(node, b.last_size));
            const double bytes = static_cast<double>(kernel->bytes(graph, node, b.last_size, kv_length));
            std::printf("  %-58s %9.1f us %7.1f GB/s %4.0f%% %8.1f G multiply-adds/s\n", what.c_str(), seconds * 1e6,
                        bytes / seconds * 1e-9, limit > 0 ? 100 * bytes / seconds / limit : 0, products / seconds * 1e-9);
        };
        struct Shape {
            const char* name;
            WeightCase weight;
            std::vector<int> rows;
        };
        const Shape shapes[] = {
            {"SmolLM2 qkv", {.members = {960}, .in = 576, .group = 32, .zeros = false}, {1, 4, 16, 512}},
            {"SmolLM2 down", {.members = {576}, .in = 1536, .group = 32, .zeros = false}, {1, 4, 16, 512}},
            {"SmolLM2 gate, up",
             {.members = {1536, 1536}, .in = 576, .group = 32, .zeros = false, .stack = Stack::gate_up},
             {1, 4, 16, 512}},
            {"1B down", {.members = {2048}, .in = 8192, .group = 128}, {1, 2, 4, 8, 128}},
            {"1B gate, up", {.members = {8192, 8192}, .in = 2048, .group = 128, .stack = Stack::gate_up}, {1, 128}},
            {"SmolLM2 head", {.members = {49152}, .in = 576}, {1, 4, 64}},
            {"SmolLM2 head, 8 bits", {.members = {49152}, .in = 576, .group = 192, .bits = 8}, {1, 4, 64}},
            {"1B head", {.members = {128256}, .in = 2048}, {1}},
        };
        for (const Shape& shape : shapes)
            for (int rows : shape.rows) {
                Bench b(*candidate.backend);
                int64_t out = 0;
                for (int64_t n : shape.weight.members) out += n;
                const bool gated = shape.weight.stack == Stack::gate_up;
                NodeId x = b.x(shape.weight.in, 1), w = b.w(shape.weight, 2);
                NodeId y = gated ? b.g().op(Op::norm_gate_up, "y", {x, b.vector(shape.weight.in, 3), w},
                                            [&] {
                                                Attrs a = norm_attrs(shape.weight.in);
                                                a.activation = Activation::silu;
                                                return a;
                                            }())
                                 : b.g().op(Op::linear, "y", {x, w, no_node});
                double seconds = 0;
                b.run(y, {.lengths = {rows}}, &seconds);
                show(std::string(shape.name) + ", " + std::to_string(rows) + " tokens", b, y, seconds,
                     static_cast<double>(out * shape.weight.in * rows), 0);
            }
        struct Depth {
            AttentionCase attention;
            int tokens, past;
        };
        const Depth depths[] = {{{.heads = 9, .kv_heads = 3, .dim = 64}, 1, 128},
                                {{.heads = 9, .kv_heads = 3, .dim = 64}, 1, 2047},
                                {{.heads = 32, .kv_heads = 8, .dim = 128}, 1, 2047},
                                {{.heads = 9, .kv_heads = 3, .dim = 64}, 512, 0},
                                {{.heads = 9, .kv_heads = 3, .dim = 64}, 512, 1536}};
        for (const Depth& depth : depths) {
            const AttentionCase& c = depth.attention;
            Bench b(*candidate.backend, {2, c.kv_heads, c.dim});
            std::vector<Batch> runs;
            if (depth.past) runs.push_back({.lengths = {depth.past}});
            runs.push_back({.lengths = {depth.tokens}, .past = {depth.past}});
            double seconds = 0, products = 0;
            attend(b, c, runs, &seconds);
            for (int t = 0; t < depth.tokens; t++) products += 2.0 * (depth.past + t + 1) * c.heads * c.dim;
            show("attention " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " x " + std::to_string(c.dim) +
                     ", " + std::to_string(depth.tokens) + " at " + std::to_string(depth.past),
                 b, b.g().graph().output, seconds, products, depth.past + depth.tokens);
        }
    }
}
