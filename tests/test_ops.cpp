// Every op on every backend, at many shapes, against the reference backend. Guard bytes surround what a kernel writes.
// AWQ_TEST_ON=cuda leaves the other backends out (which is what a sanitizer of one of them wants).
#include "tests/op_bench.h"

using namespace awq;
using namespace awq::test_ops;

namespace {

const int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 33, 64, 197};

std::vector<WeightCase> weight_cases() {
    return {
        {.members = {48}, .in = 128, .group = 32},
        {.members = {100}, .in = 576, .group = 64},
        {.members = {33}, .in = 256, .group = 128, .zeros = false},
        {.members = {16}, .in = 384, .group = 384},
        {.members = {7}, .in = 640, .group = 640},  // longer than one header serves
        {.members = {70}, .in = 2304, .group = 128, .dtype = DType::bf16},
        {.members = {40}, .in = 96, .group = 32, .dtype = DType::bf16, .zeros = false},
        {.members = {40}, .in = 192, .group = 64, .dtype = DType::f32, .zeros = false},
        {.members = {20}, .in = 48, .group = 24},  // no kernel likes such groups
        {.members = {100}, .in = 576, .group = 192, .bits = 8},
        {.members = {37}, .in = 512, .group = 512, .zeros = false, .bits = 8},
        {.members = {33}, .in = 128, .group = 32, .dtype = DType::bf16, .bits = 8},
        {.members = {24, 24}, .in = 96, .group = 96, .dtype = DType::f32, .zeros = false, .stack = Stack::gate_up, .bits = 8},
        {.members = {40, 24, 24}, .in = 128, .group = 64, .stack = Stack::concat},
        {.members = {20, 20}, .in = 128, .group = 32, .stack = Stack::gate_up},
        {.members = {64, 64}, .in = 1536, .group = 32, .stack = Stack::gate_up},
        {.members = {17}, .in = 33},
        {.members = {70}, .in = 320, .dtype = DType::bf16},
        {.members = {50}, .in = 97, .dtype = DType::f32},
        {.members = {21, 21}, .in = 80, .stack = Stack::gate_up},
        {.members = {30, 12, 12}, .in = 64, .stack = Stack::concat},
    };
}
std::string describe(const WeightCase& c) {
    std::string text = std::to_string(c.members[0]) + " x " + std::to_string(c.members.size()) + " rows of " +
                       std::to_string(c.in) + ", group " + std::to_string(c.group) + (c.bits == 8 ? ", 8 bits" : "");
    return text + " " + dtype_name(c.dtype) + (c.stack == Stack::gate_up ? " gate_up" : "");
}

}  // namespace

TEST_CASE("ops: unpack is the inverse of pack") {
    std::vector<WeightCase> cases = weight_cases();
    cases.push_back({.members = {24, 24}, .in = 64, .group = 32, .stack = Stack::gate_up, .experts = 3});
    cases.push_back({.members = {200}, .in = 72, .kind = WeightKind::table});
    cases.push_back({.members = {50}, .in = 64, .group = 32, .kind = WeightKind::table, .bits = 8});
    cases.push_back({.members = {1}, .in = 71, .dtype = DType::f32, .kind = WeightKind::vector});
    for (const WeightCase& c : cases)
        for (Candidate& candidate : candidates()) {
            INFO(describe(c) << " on " << candidate.name);
            Bench bench(*candidate.backend), expected(reference());
            const Weight *got = bench.weight(c, 11), *want = expected.weight(c, 11);
            const size_t count = static_cast<size_t>(want->spec.experts * want->spec.out * want->spec.in);
            std::vector<float> a(count), b(count);
            REQUIRE(candidate.backend->unpack(*got, a.data()).ok());
            REQUIRE(reference().unpack(*want, b.data()).ok());
            CHECK(difference(a, b) <= (candidate.tolerance < 1e-2 ? 1e-6 : candidate.tolerance));
        }
}

TEST_CASE("ops: linear, norm_linear, linear_add, norm_gate_up") {
    for (const WeightCase& c : weight_cases())
        for (int rows : row_counts) {
            const Batch batch{.lengths = {rows}};
            int64_t out = 0;
            for (int64_t n : c.members) out += n;
            const std::string what = describe(c) + ", " + std::to_string(rows) + " tokens";
            sweep("linear " + what, [&](Bench& b) {
                return b.run(b.g().op(Op::linear, "y", {b.x(c.in, 1), b.w(c, 2), rows % 2 ? b.vector(out, 3) : no_node}), batch);
            });
            if (rows % 3 == 0) continue;
            sweep("norm_linear " + what, [&](Bench& b) {
                return b.run(b.g().op(Op::norm_linear, "y", {b.x(c.in, 1), b.vector(c.in, 4), b.w(c, 2), no_node},
                                      norm_attrs(c.in, rows % 2)),
                             batch);
            });
            sweep("linear_add " + what, [&](Bench& b) {
                return b.run(b.g().op(Op::linear_add, "y", {b.x(c.in, 1), b.w(c, 2), no_node, b.x(out, 5)}), batch);
            });
            if (c.stack != Stack::gate_up) continue;
            sweep(
                "norm_gate_up " + what,
                [&](Bench& b) {
                    Attrs attrs = norm_attrs(c.in);
                    attrs.activation = rows % 2 ? Activation::silu : Activation::gelu_tanh;
                    return b.run(b.g().op(Op::norm_gate_up, "y", {b.x(c.in, 1), b.vector(c.in, 4), b.w(c, 2)}, attrs), batch);
                },
                {}, 2);
        }
}

TEST_CASE("ops: moe") {
    for (auto [experts, top_k, group] : {std::tuple{4, 2, 32}, {8, 3, 64}, {5, 5, 0}})
        for (int rows : {1, 2, 7, 33, 150}) {
            sweep(
                "moe of " + std::to_string(experts) + ", " + std::to_string(rows) + " tokens",
                [&, experts = experts, top_k = top_k, group = group](Bench& b) {
                    Attrs attrs;
                    attrs.top_k = top_k;
                    attrs.renormalize = rows % 2;
                    attrs.activation = Activation::silu;
                    NodeId up =
                        b.w({.members = {96, 96}, .in = 128, .group = group, .stack = Stack::gate_up, .experts = experts}, 2);
                    NodeId down = b.w({.members = {40}, .in = 192 / 2, .group = group ? 32 : 0, .experts = experts}, 40);
                    return b.run(b.g().op(Op::moe, "y", {b.x(128, 1), b.x(experts, 5), up, down}, attrs), {.lengths = {rows}});
                },
                {}, 2);
        }
    // One token, with more weights for each multiprocessor than it has shared memory for.
    sweep(
        "moe of many outputs",
        [&](Bench& b) {
            Attrs attrs;
            attrs.top_k = 2;
            attrs.activation = Activation::silu;
            NodeId up = b.w({.members = {32, 32}, .in = 128, .group = 32, .stack = Stack::gate_up, .experts = 3}, 2);
            NodeId down = b.w({.members = {118784}, .in = 32, .group = 32, .experts = 3}, 40);
            return b.run(b.g().op(Op::moe, "y", {b.x(128, 1), b.x(3, 5), up, down}, attrs), {});
        },
        {}, 2);
    // Many tokens and large experts. Logits that are copies of others tie, so that a few experts get most of the tokens
    // and some none: `distinct` of them are different.
    struct Case {
        int experts, top_k, distinct, tokens;
        int64_t in, size, group;
    };
    for (const Case& c : {Case{8, 2, 8, 300, 512, 320, 128}, {8, 2, 3, 450, 256, 384, 128}, {6, 1, 1, 420, 384, 128, 128},
                          {64, 8, 64, 130, 256, 128, 128}, {64, 8, 20, 20, 256, 192, 64}, {8, 2, 8, 9, 1024, 256, 128},
                          {8, 2, 8, 460, 256, 1536, 128}})  // the last: blocks of many tokens and of few, more than there are multiprocessors
        sweep(
            "moe of " + std::to_string(c.experts) + " x " + std::to_string(c.size) + ", " + std::to_string(c.tokens) + " tokens",
            [&](Bench& b) {
                Attrs attrs;
                attrs.top_k = c.top_k;
                attrs.renormalize = c.tokens % 2;
                attrs.activation = Activation::silu;
                NodeId up = b.w({.members = {c.size, c.size}, .in = c.in, .group = c.group, .stack = Stack::gate_up, .experts = c.experts}, 2);
                NodeId down = b.w({.members = {c.in}, .in = c.size, .group = c.group / 2, .experts = c.experts}, 400);
                std::vector<float> order;
                for (int e = 0; e < c.experts; e++) order.push_back(static_cast<float>(e % c.distinct));
                NodeId logits = b.g().op(Op::gather_cols, "logits", {b.x(c.experts, 5), b.indices(order)});
                return b.run(b.g().op(Op::moe, "y", {b.x(c.in, 1), logits, up, down}, attrs), {.lengths = {c.tokens}});
            },
            {}, 2);
}

// All experts are chosen where there are many tokens: a choice that hangs on the last bit of a logit is no error.
TEST_CASE("ops: norm_moe") {
    auto norm_moe = [](int experts, int top_k, int64_t in, int64_t size, int64_t group, bool zeros, int rows) {
        sweep(
            "norm_moe of " + std::to_string(experts) + " x " + std::to_string(size) + ", " + std::to_string(rows) + " tokens of " + std::to_string(in),
            [&](Bench& b) {
                Attrs attrs = norm_attrs(in, rows % 2 && zeros);
                attrs.top_k = top_k;
                attrs.renormalize = rows % 2;
                attrs.activation = Activation::silu;
                NodeId router = b.w({.members = {experts}, .in = in}, 3);
                NodeId up = b.w({.members = {size, size}, .in = in, .group = in % 32 ? 0 : group, .zeros = zeros, .stack = Stack::gate_up, .experts = experts}, 40);
                NodeId down = b.w({.members = {in}, .in = size, .group = group, .zeros = zeros, .experts = experts}, 400);
                return b.run(b.g().op(Op::norm_moe, "y", {b.x(in, 1, 2), b.vector(in, 4, zeros ? 1 : 0.1f), router, up, down, b.x(in, 6)}, attrs),
                             {.lengths = {rows}});
            },
            {}, 2);
    };
    for (auto [experts, top_k, in] : {std::tuple{8, 2, 256}, {8, 8, 1056}, {40, 2, 100}, {20, 20, 128}, {130, 3, 64}})
        for (int rows : {1, 3, 8, 9, 70})
            if (rows <= 9 || top_k == experts) norm_moe(experts, top_k, in, 64, rows % 2 || in % 64 ? 32 : 64, true, rows);
    // Of one token, by a kernel that routes as well: more columns than its threads hold at once; tiles of several experts in one
    // piece of its stream.
    for (auto [experts, top_k, in, size, group, zeros] :
         {std::tuple{8, 2, 4352, 64, 64, true}, {4, 2, 4096, 384, 128, true}, {5, 3, 512, 128, 128, true}, {4, 4, 1056, 640, 32, true}, {8, 2, 1024, 1152, 128, true}, {6, 3, 384, 256, 128, false}})
        norm_moe(experts, top_k, in, size, group, zeros, 1);
}

TEST_CASE("ops: norms, activations, sums") {
    for (int rows : {1, 3, 16, 130})
        for (int64_t cols : {4, 33, 64, 576}) {
            const Batch batch{.lengths = {rows}};
            const std::string what = std::to_string(rows) + " x " + std::to_string(cols);
            sweep("add " + what, [&](Bench& b) { return b.run(b.g().op(Op::add, "y", {b.x(cols, 1), b.x(cols, 2)}), batch); });
            Attrs attrs;
            attrs.scale = 0.37f;
            attrs.softcap = 1.5f;
            sweep("scale " + what, [&](Bench& b) { return b.run(b.g().op(Op::scale, "y", {b.x(cols, 1)}, attrs), batch); });
            sweep("softcap " + what,
                  [&](Bench& b) { return b.run(b.g().op(Op::softcap, "y", {b.x(cols, 1, 2)}, attrs), batch); });
            for (int64_t width : {cols, cols % 4 ? cols : cols / 4})
                for (bool each : {false, true}) {
                    const int64_t size = each ? cols : width;
                    sweep("rms_norm " + what, [&](Bench& b) {
                        return b.run(b.g().op(Op::rms_norm, "y", {b.x(cols, 1), b.vector(size, 3)}, norm_attrs(width, rows % 2)),
                                     batch);
                    });
                    sweep("layer_norm " + what, [&](Bench& b) {
                        return b.run(
                            b.g().op(Op::layer_norm, "y",
                                     {b.x(cols, 1), each ? b.vector(size, 3) : no_node, rows % 2 ? b.vector(size, 4) : no_node},
                                     norm_attrs(width)),
                            batch);
                    });
                }
            for (Activation kind : {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh,
                                    Activation::quick_gelu, Activation::relu}) {
                Attrs act;
                act.activation = kind;
                sweep("act " + what, [&](Bench& b) {
                    return b.run(b.g().op(Op::act, "y", {b.x(cols, 1, 3), no_node}, act), batch);
                });
                sweep("gated_act " + what, [&](Bench& b) {
                    return b.run(b.g().op(Op::gated_act, "y", {b.x(cols, 1, 3), b.x(cols, 2)}, act), batch);
                });
            }
            Attrs scaled;
            scaled.activation = Activation::gelu;
            sweep(
                "act with scales " + what,
                [&](Bench& b) {
                    return b.run(b.g().op(Op::act, "y", {b.x(cols, 1), b.vector(cols, 8, 100)}, scaled), batch);
                },
                {}, 50);
        }
}

TEST_CASE("ops: lookups and rows") {
    for (int rows : {1, 5, 70}) {
        for (DType type : {DType::f16, DType::bf16, DType::f32})
            sweep("embed", [&](Bench& b) {
                Attrs attrs;
                attrs.scale = 3;
                attrs.offset = 2;
                NodeId table = b.w({.members = {410}, .in = 37, .dtype = type, .kind = WeightKind::table}, 1);
                return b.run(b.g().op(Op::embed, "y", {b.g().batch_input(Input::tokens), table}, attrs), {.lengths = {rows}});
            });
        sweep("embed, 8 bits", [&](Bench& b) {
            Attrs attrs;
            attrs.scale = 3;
            NodeId table = b.w({.members = {401}, .in = 64, .group = 64, .kind = WeightKind::table, .bits = 8}, 1);
            return b.run(b.g().op(Op::embed, "y", {b.g().batch_input(Input::tokens), table}, attrs), {.lengths = {rows}});
        });
        sweep("select_rows", [&](Bench& b) {
            return b.run(b.g().op(Op::select_rows, "y", {b.x(50, 1), b.g().batch_input(Input::output_rows)}),
                         {.lengths = {rows}, .outputs = (rows + 1) / 2});
        });
        sweep("logits", [&](Bench& b) {
            NodeId x = b.g().op(Op::select_rows, "last", {b.x(96, 1), b.g().batch_input(Input::output_rows)});
            return b.run(b.g().op(Op::linear, "y", {x, b.w({.members = {300}, .in = 96, .kind = WeightKind::table}, 2), no_node}),
                         {.lengths = {rows}, .outputs = (rows + 1) / 2});
        });
        sweep("put_rows", [&](Bench& b) {
            std::vector<int32_t> which;
            std::vector<float> features;
            for (int i = 0; i < rows; i++) which.push_back(i % 3 == 1 ? i % 5 : -1);
            for (int i = 0; i < 5 * 48; i++) features.push_back(static_cast<float>(i % 97) / 16);
            b.extra_ints = {{Input::image_rows, which}};
            b.extra_floats = {{Input::features, features}};
            b.feature_rows = 5;
            NodeId from = b.g().input(Input::features, Rows::fixed, 48, DType::f32, 5);
            return b.run(b.g().op(Op::put_rows, "y", {b.x(48, 1), from, b.g().batch_input(Input::image_rows)}),
                         {.lengths = {rows}});
        });
        sweep("gather_cols", [&](Bench& b) {
            std::vector<float> order;
            for (int i = 0; i < 40; i++) order.push_back(static_cast<float>(i * 7 % 40));
            return b.run(b.g().op(Op::gather_cols, "y", {b.x(40, 1), b.indices(order)}), {.lengths = {rows}});
        });
    }
}

TEST_CASE("ops: vision") {
    sweep("patches to rows", [&](Bench& b) {
        std::vector<float> pixels;
        for (int i = 0; i < 3 * 28 * 28; i++) pixels.push_back(std::sin(static_cast<float>(i)));
        b.extra_floats = {{Input::pixels, pixels}};
        Attrs attrs;
        attrs.patch = 7;
        attrs.image = 28;
        NodeId patches =
            b.g().op(Op::patches, "patches", {b.g().input(Input::pixels, Rows::fixed, 28, DType::f32, 3 * 28)}, attrs);
        NodeId hidden = b.g().op(Op::linear, "embed", {patches, b.w({.members = {48}, .in = 147}, 2), no_node});
        NodeId with_class = b.g().op(Op::prepend_row, "class", {hidden, b.vector(48, 3)});
        NodeId placed =
            b.g().op(Op::add_table, "positions", {with_class, b.w({.members = {17}, .in = 48, .kind = WeightKind::table}, 4)});
        return b.run(b.g().op(Op::drop_first_row, "y", {placed}), {});
    });
    for (int dim : {8, 20, 64})
        sweep("attention_full", [&](Bench& b) {
            const int heads = 3;
            std::vector<float> pixels;  // 144 patches
            std::mt19937 random(5);
            std::normal_distribution<float> normal;
            for (int i = 0; i < 3 * 48 * 48; i++) pixels.push_back(half_to_float(float_to_half(normal(random))));
            b.extra_floats = {{Input::pixels, pixels}};
            Attrs picture;
            picture.patch = 4;
            picture.image = 48;
            NodeId x =
                b.g().op(Op::patches, "patches", {b.g().input(Input::pixels, Rows::fixed, 48, DType::f32, 3 * 48)}, picture);
            Attrs attrs;
            attrs.heads = attrs.kv_heads = heads;
            attrs.head_dim = dim;
            attrs.scale = 1 / std::sqrt(static_cast<float>(dim));
            NodeId qkv = b.g().op(Op::linear, "qkv", {x, b.w({.members = {3 * heads * dim}, .in = 48}, 2), no_node});
            auto part = [&](int i) { return b.g().view(qkv, i * heads * dim, heads * dim, "part"); };
            return b.run(b.g().op(Op::attention_full, "y", {part(0), part(1), part(2)}, attrs), {});
        });
}

TEST_CASE("ops: rope, cache, attention") {
    const AttentionCase cases[] = {
        {.heads = 9, .kv_heads = 3, .dim = 64},
        {.heads = 4, .kv_heads = 4, .dim = 48, .window = 8},
        {.heads = 4, .kv_heads = 1, .dim = 80, .window = 100, .fused = false},
        {.heads = 8, .kv_heads = 1, .dim = 96, .softcap = 3},
        {.heads = 6, .kv_heads = 2, .dim = 20, .alibi = true},
        {.heads = 10, .kv_heads = 1, .dim = 32, .interleaved = true, .rot_dim = 16},
        {.heads = 2, .kv_heads = 2, .dim = 256, .fused = false, .rot_dim = 64},
        {.heads = 2, .kv_heads = 1, .dim = 128, .kind = RopeParams::Kind::dynamic},
        {.heads = 2, .kv_heads = 1, .dim = 128, .kind = RopeParams::Kind::longrope},
    };
    for (const AttentionCase& c : cases) {
        const KvShape kv{2, c.kv_heads, c.dim};
        const std::string what = std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " heads of " +
                                 std::to_string(c.dim) + ", window " + std::to_string(c.window);
        const std::vector<std::vector<Batch>> plans = {
            {{.lengths = {1}}},
            {{.lengths = {2}}},
            {{.lengths = {33}}},
            {{.lengths = {200}}},
            {{.lengths = {64}}, {.lengths = {1}, .past = {64}}},
            {{.lengths = {100}}, {.lengths = {70}, .past = {100}}, {.lengths = {1}, .past = {170}}},
            // several sequences, prompts and tokens mixed
            {{.lengths = {90, 3, 130, 1}}, {.lengths = {1, 40, 2, 1}, .past = {90, 3, 130, 1}}},
        };
        for (size_t i = 0; i < plans.size(); i++)
            sweep(
                "attention " + what + ", plan " + std::to_string(i), [&](Bench& b) { return attend(b, c, plans[i]); }, kv, 2);
    }
    // Long enough that keys are split among items and joined.
    const AttentionCase c{.heads = 6, .kv_heads = 2, .dim = 32};
    for (int window : {0, 600})
        sweep(
            "attention, long",
            [&](Bench& b) {
                AttentionCase windowed = c;
                windowed.window = window;
                return attend(b, windowed,
                              {{.lengths = {1300, 10}},
                               {.lengths = {700, 5}, .past = {1300, 10}},
                               {.lengths = {1, 1}, .past = {2000, 15}},
                               // a prompt whose last block is one token, behind more pages than go together
                               {.lengths = {17, 17}, .past = {2001, 16}}});
            },
            {2, 2, 32}, 2);
}

TEST_CASE("ops: a value that is not finite is found and named") {
    for (Candidate& candidate : candidates()) {
        INFO(candidate.name);
        Bench b(*candidate.backend);
        NodeId x = b.x(64, 1);
        NodeId poisoned = b.g().op(Op::scale, "poison", {x}, [] {
            Attrs a;
            a.scale = INFINITY;
            return a;
        }());
        NodeId y = b.g().op(Op::linear, "y", {poisoned, b.w({.members = {32}, .in = 64, .group = 32}, 2), no_node});
        std::vector<float> result;
        Status status = b.try_run(y, {.lengths = {3}}, result);
        CHECK(status.code() == Code::non_finite);
        CHECK(status.message().find("poison") != std::string::npos);
    }
}
