// What the sweep of ops (test_ops.cpp) does not reach of the CUDA backend: runs replayed from captured graphs, batches that
// mix prompts and single tokens over one cache, keys split over blocks, experts chained, packing on the device, the largest logit found there.
// Without a device the tests say so and pass.
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include "backends/backend.h"
#include "backends/cuda/pack_q4.h"
#include "core/graph_builder.h"

using namespace awq;

namespace {

Backend* gpu() {
    static std::unique_ptr<Backend> backend = [] {
        for (const BackendEntry& entry : backend_table())
            if (std::string(entry.name) == "cuda" && entry.available())
                if (auto made = entry.create({}); made.ok()) return std::move(*made);
        MESSAGE("no CUDA device: tests of the CUDA backend are skipped");
        return std::unique_ptr<Backend>();
    }();
    return backend.get();
}
Backend& reference() {
    static std::unique_ptr<Backend> backend = std::move(*create_backend("reference", {}));
    return *backend;
}

// Random rows; dense values and scales are exact in float16, so both backends hold the same numbers.
class RandomRows : public WeightRows {
public:
    RandomRows(int64_t rows, int64_t columns, int64_t group, bool zeros, uint32_t seed, float spread)
        : seed_(seed), spread_(spread) {
        out = rows, in = columns, group_size = group, integer_zeros = zeros;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        const int64_t groups = in / group_size;
        for (int64_t r = first; r < first + count; r++) {
            for (int64_t k = 0; k < in; k++) *q++ = random(r, k) & 15;
            for (int64_t g = 0; g < groups; g++) {
                *scale = exact(spread_ * (0.1f + 0.1f * unit(r, -1 - g)));
                *offset++ = integer_zeros ? -static_cast<float>(random(r, -1000 - g) % 17) * *scale : exact(-8 * *scale);
                scale++;
            }
        }
    }
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        if (group_size == 0) {
            for (int64_t r = first; r < first + count; r++)
                for (int64_t k = 0; k < in; k++) *rows++ = exact(spread_ * (2 * unit(r, k) - 1));
            return;
        }
        std::vector<uint8_t> q(static_cast<size_t>(in));
        std::vector<float> scale(static_cast<size_t>(in / group_size)), offset(scale.size());
        for (int64_t r = first; r < first + count; r++) {
            read_quantized(r, 1, q.data(), scale.data(), offset.data());
            for (int64_t k = 0; k < in; k++) {
                auto g = static_cast<size_t>(k / group_size);
                *rows++ = static_cast<float>(q[static_cast<size_t>(k)]) * scale[g] + offset[g];
            }
        }
    }

private:
    static float exact(float value) { return half_to_float(float_to_half(value)); }
    uint32_t random(int64_t r, int64_t k) const {
        uint64_t x = seed_ + static_cast<uint64_t>(r) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(k) * 0xd1b54a32d192ed03u;
        x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9u;
        return static_cast<uint32_t>(x >> 33);
    }
    float unit(int64_t r, int64_t k) const { return static_cast<float>(random(r, k) % 4096) / 4096; }
    uint64_t seed_;
    float spread_;
};

struct Sequence {
    int32_t tokens, past;
};

// One graph over one cache on one backend, run batch after batch as an engine does.
class Model {
public:
    explicit Model(Backend& b) : backend(b), g(graph, b, true) {}

    const Weight* weight(WeightSpec spec, uint32_t seed, float spread) {
        for (int64_t rows : spec.member_rows) spec.out += rows;
        auto w = std::make_unique<Held>();
        w->weight.spec = spec;
        backend.lay_out(w->weight);
        auto buffer = backend.allocate(w->weight.bytes);
        REQUIRE(buffer.ok());
        w->buffer = std::move(*buffer);
        w->weight.data = w->buffer->data;
        std::vector<const WeightRows*> sources;
        for (int64_t e = 0; e < spec.experts; e++)
            for (int64_t rows : spec.member_rows) {
                w->rows.push_back(
                    std::make_unique<RandomRows>(rows, spec.in, spec.group_size, spec.integer_zeros, seed++, spread));
                sources.push_back(w->rows.back().get());
            }
        Status packed = backend.pack(w->weight, sources);
        INFO(packed.message());
        REQUIRE(packed.ok());
        held.push_back(std::move(w));
        return &held.back()->weight;
    }
    NodeId table(int64_t rows, int64_t cols, uint32_t seed) {
        WeightSpec spec;
        spec.kind = WeightKind::table;
        spec.member_rows = {rows};
        spec.in = cols;
        return g.weight(weight(spec, seed, 1));
    }

    // Plans memory and fills the cache with NaN, so that reading what was never written shows.
    void finish(NodeId output, KvShape shape, const BatchSize& capacity, int32_t page_count) {
        INFO(g.status().message());
        REQUIRE(g.status().ok());
        graph.output = output;
        kv = shape;
        pages = page_count;
        plan = plan_memory(graph, capacity);
        activations = std::move(*backend.allocate(std::max<size_t>(plan.peak, 256)));
        cache = std::move(*backend.allocate(backend.kv_page_bytes(kv) * static_cast<size_t>(pages)));
        std::vector<uint8_t> nan(cache->bytes, 0xff);
        REQUIRE(backend.upload(*cache, 0, nan.data(), nan.size()).ok());
    }

    Status run(const std::vector<Sequence>& batch, std::vector<float>* result, std::vector<int32_t>* argmax = nullptr,
               bool check_finite = false, const std::atomic<bool>* cancel = nullptr) {
        std::vector<int32_t> tokens, positions, sequence, seq_begin{0}, rope_len, page_table, output_rows;
        int32_t most = 1;
        for (const Sequence& s : batch) most = std::max(most, (s.past + s.tokens + page_size - 1) / page_size);
        for (size_t s = 0; s < batch.size(); s++) {
            for (int32_t i = 0; i < batch[s].tokens; i++) {
                tokens.push_back((batch[s].past + i + static_cast<int32_t>(s) * 131) % vocabulary);
                positions.push_back(batch[s].past + i);
                sequence.push_back(static_cast<int32_t>(s));
            }
            seq_begin.push_back(static_cast<int32_t>(tokens.size()));
            rope_len.push_back(batch[s].past + batch[s].tokens);
            output_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
            for (int32_t p = 0; p < most; p++)  // pages in no order
                page_table.push_back((p * 4 + static_cast<int32_t>(s)) * 37 % pages);
        }
        RunArgs args;
        args.graph = &graph;
        args.plan = &plan;
        args.activations = activations.get();
        args.kv_cache = cache.get();
        args.kv = kv;
        args.kv_pages = pages;
        args.size = {static_cast<int32_t>(tokens.size()), static_cast<int32_t>(batch.size()),
                     static_cast<int32_t>(output_rows.size()), most};
        auto input = [&](Input kind, const std::vector<int32_t>& values) { args.inputs[static_cast<int>(kind)] = values.data(); };
        input(Input::tokens, tokens), input(Input::positions, positions), input(Input::sequence, sequence),
            input(Input::seq_begin, seq_begin);
        input(Input::rope_len, rope_len), input(Input::page_table, page_table), input(Input::output_rows, output_rows);
        const Node& out = graph.nodes[static_cast<size_t>(graph.output)];
        if (result) result->assign(static_cast<size_t>(node_rows(out, args.size) * out.cols), 0.0f);
        if (argmax) argmax->assign(static_cast<size_t>(node_rows(out, args.size)), -1);
        args.result = result ? result->data() : nullptr;
        args.argmax = argmax ? argmax->data() : nullptr;
        args.check_finite = check_finite;
        args.cancel = cancel;
        return backend.run(args);
    }

    static constexpr int32_t vocabulary = 601;
    Backend& backend;
    Graph graph;
    GraphBuilder g;
    MemoryPlan plan;
    KvShape kv;
    int32_t pages = 0;
    struct Held {
        Weight weight;
        std::unique_ptr<Buffer> buffer;
        std::vector<std::unique_ptr<RandomRows>> rows;
    };
    std::vector<std::unique_ptr<Held>> held;
    std::unique_ptr<Buffer> activations, cache;
};

double off(const std::vector<float>& got, const std::vector<float>& want) {
    REQUIRE(got.size() == want.size());
    double square = 0, worst = 0;
    for (size_t i = 0; i < want.size(); i++) {
        double d = std::fabs(static_cast<double>(got[i]) - want[i]);
        worst = std::max(worst, std::isfinite(d) ? d : 1e30);
        square += static_cast<double>(want[i]) * want[i];
    }
    return worst / (std::sqrt(square / std::max<double>(1, static_cast<double>(want.size()))) + 1e-20);
}

struct Heads {
    int heads, kv_heads, dim;
    int window = 0;
    float softcap = 0;
    bool alibi = false;
    int rot_dim = 0;  // 0: all
    bool interleaved = false;
};

// Embedded tokens as q, k, v; rope, cache, attention.
void build_attention(Model& m, const Heads& h, int32_t pages) {
    Attrs attrs;
    attrs.heads = h.heads, attrs.kv_heads = h.kv_heads, attrs.head_dim = h.dim;
    attrs.rot_dim = h.rot_dim ? h.rot_dim : h.dim;
    attrs.interleaved = h.interleaved;
    attrs.window = h.window, attrs.softcap = h.softcap;
    attrs.layer = 1;
    attrs.scale = 3 / std::sqrt(static_cast<float>(h.dim));
    if (h.alibi) {
        m.graph.constants.emplace_back();
        for (int i = 0; i < h.heads; i++) m.graph.constants.back().push_back(std::pow(0.7f, static_cast<float>(i + 1)));
        attrs.alibi = m.graph.constants.back().data();
    }
    RopeParams rope;
    rope.rot_dim = attrs.rot_dim;
    rope.interleaved = h.interleaved;
    rope.attention_factor = 1.1f;
    for (int i = 0; i < rope.rot_dim / 2; i++)
        rope.inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(rope.rot_dim)));
    m.graph.ropes.push_back(rope);
    Attrs table_attrs;
    table_attrs.rope = &m.graph.ropes.back();
    auto in = [&](Input kind) { return m.g.batch_input(kind); };
    const int64_t q_cols = h.heads * h.dim, kv_cols = h.kv_heads * h.dim;
    NodeId x = m.g.op(Op::embed, "x", {in(Input::tokens), m.table(Model::vocabulary, q_cols + 2 * kv_cols, 7)});
    NodeId q = m.g.view(x, 0, q_cols, "q"), k = m.g.view(x, q_cols, kv_cols, "k"),
           v = m.g.view(x, q_cols + kv_cols, kv_cols, "v");
    NodeId table = m.g.op(Op::rope_table, "table", {in(Input::positions), in(Input::sequence), in(Input::rope_len)}, table_attrs);
    q = m.g.op(Op::rope_append, "append", {q, k, v, table, in(Input::positions), in(Input::sequence), in(Input::page_table)},
               attrs);
    NodeId y = m.g.op(Op::attention, "y",
                      {q, in(Input::positions), in(Input::sequence), in(Input::seq_begin), in(Input::page_table)}, attrs);
    m.finish(y, {3, h.kv_heads, h.dim}, {600, 4, 4, 64}, pages);
}

}  // namespace

TEST_CASE("cuda: attention of prompts, tokens and both, over one cache") {
    if (!gpu()) return;
    const Heads cases[] = {
        {8, 2, 64}, {4, 1, 128}, {8, 8, 96, 8},    {4, 2, 256, 0, 20},
        {5, 1, 80}, {12, 1, 40}, {40, 2, 64, 150}, {6, 3, 48, 0, 0, true},
        {3, 3, 20}, {2, 1, 160}, {2, 2, 224},
    };
    for (const Heads& h : cases) {
        Model got(*gpu()), want(reference());
        build_attention(got, h, 256);
        build_attention(want, h, 256);
        const std::vector<std::vector<Sequence>> batches = {
            {{130, 0}, {1, 0}},
            {{1, 130}, {70, 1}, {5, 0}},
            {{1, 131}, {1, 71}, {1, 5}},
            {{1, 132}, {1, 72}, {1, 6}},
            {{1, 133}, {1, 73}, {1, 7}},
            {{3, 134}, {2, 74}, {4, 8}},
            {{60, 137}, {64, 76}, {1, 12}},
            {{400, 197}, {1, 140}, {1, 13}},
            {{1, 597}, {1, 141}, {1, 14}},
            {{1, 598}, {1, 142}, {1, 15}},
            {{1, 599}, {1, 143}, {1, 16}},
        };
        for (size_t i = 0; i < batches.size(); i++) {
            std::vector<float> a, b;
            Status status = got.run(batches[i], &a);
            INFO(h.heads << "/" << h.kv_heads << " heads of " << h.dim << ", window " << h.window << ", batch " << i << ": "
                         << status.message());
            REQUIRE(status.ok());
            REQUIRE(want.run(batches[i], &b).ok());
            CHECK(off(a, b) < 1e-2);
        }
    }
}

// Where every sequence has one token, rope_append and attention are one kernel: its output, and by what later runs read from
// the cache also the keys and values that it puts there. The last tokens come as a prompt, which other kernels read.
TEST_CASE("cuda: rope, cache and attention of single tokens") {
    if (!gpu()) return;
    const Heads cases[] = {
        {4, 1, 128},
        {4, 4, 32},
        {8, 1, 64, 0, 0, false, 32},
        {16, 1, 96},
        {8, 1, 128, 0, 0, false, 64},
        {2, 1, 256, 0, 30},
        {1, 1, 256, 0, 0, false, 64},
        {2, 1, 128, 100},
        {4, 1, 64, 33, 10},
        {2, 2, 64, 0, 0, false, 0, true},
        {4, 1, 96, 0, 0, false, 24, true},
        {4, 2, 80},
        {2, 1, 192, 0, 0, false, 36},
        {24, 1, 32, 65, 0, false, 16},
        {3, 1, 64, 0, 0, false, 62},  // an odd number of pairs: two kernels
        {2, 1, 20},                   // rows of 40 bytes: two kernels
    };
    for (const Heads& h : cases) {
        Model got(*gpu()), want(reference());
        build_attention(got, h, 256);
        build_attention(want, h, 256);
        std::vector<std::vector<Sequence>> batches = {{{1, 0}}, {{1, 1}}};
        for (int32_t past = 2; past < 5; past++) batches.push_back({{1, past}, {1, past - 2}});
        batches.push_back({{56, 5}, {27, 3}, {280, 0}, {230, 0}});
        batches.push_back({{1, 61}, {1, 30}, {300, 280}, {24, 230}});
        for (int32_t i = 0; i < 5; i++) batches.push_back({{1, 62 + i}, {1, 31 + i}, {1, 580 + i}, {1, 254 + i}});
        batches.push_back({{3, 67}, {2, 36}, {30, 585}, {1, 259}});
        batches.push_back({{1, 70}, {1, 38}, {1, 615}, {1, 260}});
        for (size_t i = 0; i < batches.size(); i++) {
            std::vector<float> a, b;
            Status status = got.run(batches[i], &a);
            INFO(h.heads << "/" << h.kv_heads << " heads of " << h.dim << ", " << h.rot_dim << " turned, window " << h.window
                         << ", batch " << i << ": " << status.message());
            REQUIRE(status.ok());
            REQUIRE(want.run(batches[i], &b).ok());
            CHECK(off(a, b) < 1e-2);
        }
    }
}

// A sequence is cut by its own length alone, so that what it shares a batch with changes nothing.
TEST_CASE("cuda: attention of a sequence gives the same bits in a batch and alone") {
    if (!gpu()) return;
    Model m(*gpu());
    build_attention(m, {8, 2, 128}, 256);
    std::vector<float> together, alone;
    REQUIRE(m.run({{310, 0}, {200, 0}}, nullptr).ok());
    REQUIRE(m.run({{1, 310}, {500, 200}, {40, 0}}, nullptr).ok());
    REQUIRE(m.run({{1, 311}, {590, 700}, {1, 40}}, nullptr).ok());
    for (int32_t past : {312, 313}) {
        REQUIRE(m.run({{1, past}, {1, past + 978}, {1, past - 271}}, &together).ok());
        REQUIRE(m.run({{1, past}}, &alone).ok());
        CHECK(std::equal(alone.begin(), alone.end(), together.begin()));
    }
}

// Splits of one chunk of keys and of three; the last token is a run's only one, and is joined from its splits.
TEST_CASE("cuda: a long cache is read in splits, and a replayed run gives the same bits") {
    if (!gpu()) return;
    struct Case {
        Heads heads;
        int32_t length, pages;  // a quarter of the pages is this sequence's
    };
    const Case cases[] = {{{4, 1, 128}, 2564, 256}, {{2, 2, 64, 1000}, 2564, 256}, {{66, 66, 32}, 1092, 128}};
    for (const Case& c : cases) {
        Model got(*gpu()), want(reference());
        build_attention(got, c.heads, c.pages);
        build_attention(want, c.heads, c.pages);
        std::vector<float> a, b;
        for (int32_t past = 0; past < c.length; past += 500) {
            const int32_t tokens = std::min(500, c.length - past);
            REQUIRE(got.run({{tokens, past}}, &a).ok());
            REQUIRE(want.run({{tokens, past}}, &b).ok());
            CHECK(off(a, b) < 1e-2);
        }
        REQUIRE(want.run({{1, c.length}}, &b).ok());
        std::vector<float> runs[4];
        for (auto& run : runs) {  // launched, captured, replayed
            REQUIRE(got.run({{1, c.length}}, &run).ok());
            CHECK(off(run, b) < 1e-2);
            CHECK(run == runs[0]);
        }
    }
}

// A token's experts are one kernel, in which blocks meet and share out work as they go; the next begins while it ends.
TEST_CASE("cuda: mixtures of experts for one token, one behind another, give the same bits in every run") {
    if (!gpu()) return;
    struct Case {
        int64_t in, size;
    };
    for (const Case& c : {Case{4096, 640}, {384, 1408}}) {
        constexpr int experts = 4;
        Attrs attrs;
        attrs.width = c.in, attrs.eps = 1e-5f;
        attrs.top_k = 2, attrs.renormalize = true;
        attrs.activation = Activation::silu;
        auto build = [&](Model& m) {
            auto spec = [&](std::vector<int64_t> rows, int64_t in, int64_t group, int64_t count) {
                WeightSpec made;
                made.kind = WeightKind::linear;
                made.member_rows = std::move(rows), made.in = in, made.group_size = group, made.experts = count;
                made.integer_zeros = true;
                return made;
            };
            WeightSpec up = spec({c.size, c.size}, c.in, 128, experts), norm = spec({1}, c.in, 0, 1);
            up.stack = Stack::gate_up;
            norm.kind = WeightKind::vector, norm.dtype = DType::f32;
            const float spread = 1.2f / std::sqrt(static_cast<float>(c.in));
            NodeId weights[] = {m.g.weight(m.weight(norm, 2, 1)), m.g.weight(m.weight(spec({experts}, c.in, 0, 1), 3, 0.1f)),
                                m.g.weight(m.weight(up, 40, spread)), m.g.weight(m.weight(spec({c.in}, c.size, 128, experts), 400, spread))};
            NodeId x = m.g.op(Op::embed, "x", {m.g.batch_input(Input::tokens), m.table(Model::vocabulary, c.in, 7)});
            for (int i = 0; i < 4; i++)
                x = m.g.op(Op::norm_moe, "layer" + std::to_string(i), {x, weights[0], weights[1], weights[2], weights[3], x}, attrs);
            m.finish(x, {1, 1, 16}, {1, 1, 1, 1}, 4);
        };
        Model got(*gpu()), want(reference());
        build(got), build(want);
        std::vector<float> expected, runs[8];
        REQUIRE(want.run({{1, 5}}, &expected).ok());
        for (auto& run : runs) {
            REQUIRE(got.run({{1, 5}}, &run).ok());
            CHECK(off(run, expected) < 2e-2);
            CHECK(run == runs[0]);
        }
    }
}

TEST_CASE("cuda: packing on the device gives the bytes of packing on the host") {
    if (!gpu()) return;
    struct Case {
        std::vector<int64_t> members;
        int64_t in, group;
        bool zeros;
        Stack stack;
        int64_t experts;
    };
    const Case cases[] = {{{300}, 256, 128, true, Stack::single, 1},      {{128, 40, 40}, 576, 64, true, Stack::concat, 1},
                          {{200, 200}, 320, 32, true, Stack::gate_up, 1}, {{100, 100}, 512, 128, false, Stack::gate_up, 3},
                          {{1000}, 4096, 4096, false, Stack::single, 1},  {{24, 24}, 96, 96, true, Stack::concat, 2}};
    for (const Case& c : cases) {
        Model m(*gpu());
        WeightSpec spec;
        spec.member_rows = c.members, spec.in = c.in, spec.group_size = c.group, spec.integer_zeros = c.zeros,
        spec.stack = c.stack, spec.experts = c.experts;
        const Weight* weight = m.weight(spec, 11, 1);
        const cuda::Q4Layout layout = cuda::q4_layout(weight->spec);
        REQUIRE(layout.valid());
        std::vector<uint8_t> got(weight->bytes), want(weight->bytes);
        REQUIRE(gpu()->download(*m.held[0]->buffer, 0, got.data(), got.size()).ok());
        std::vector<float> rows(static_cast<size_t>(c.experts * weight->spec.out * c.in)), dense(rows.size());
        size_t source = 0;
        float* at = dense.data();
        for (int64_t e = 0; e < c.experts; e++) {
            std::vector<const WeightRows*> members;
            for (size_t i = 0; i < c.members.size(); i++) {
                members.push_back(m.held[0]->rows[source++].get());
                members.back()->read_dense(0, members.back()->out, at);
                at += members.back()->out * c.in;
            }
            cuda::q4_pack(layout, members, 0, layout.tiles(), want.data() + e * layout.bytes());
        }
        CHECK(got == want);
        REQUIRE(gpu()->unpack(*weight, rows.data()).ok());
        CHECK(off(rows, dense) < 1e-3);
    }
    // Dense, gated and not: what was packed comes back, exactly.
    for (Stack stack : {Stack::concat, Stack::gate_up}) {
        Model m(*gpu());
        WeightSpec spec;
        spec.member_rows = {77, 77}, spec.in = 101, spec.stack = stack, spec.experts = 2;
        const Weight* weight = m.weight(spec, 5, 1);
        std::vector<float> rows(static_cast<size_t>(2 * 154 * 101)), dense(rows.size());
        for (size_t i = 0; i < 4; i++) m.held[0]->rows[i]->read_dense(0, 77, dense.data() + i * 77 * 101);
        REQUIRE(gpu()->unpack(*weight, rows.data()).ok());
        CHECK(rows == dense);
    }
}

TEST_CASE("every backend: argmax beside the result or alone, cancelling") {
    for (const BackendEntry& entry : backend_table()) {
        if (!entry.available()) continue;
        auto backend = entry.create({});
        REQUIRE(backend.ok());
        Model m(**backend);
        NodeId table = m.table(Model::vocabulary, 96, 3);
        NodeId x = m.g.op(Op::embed, "x", {m.g.batch_input(Input::tokens), table});
        NodeId rows = m.g.op(Op::select_rows, "rows", {x, m.g.batch_input(Input::output_rows)});
        NodeId logits = m.g.op(Op::linear, "head", {rows, table, no_node});
        m.finish(logits, {1, 1, 16}, {64, 8, 8, 8}, 8);
        for (int i = 0; i < 4; i++) {
            std::vector<float> result;
            std::vector<int32_t> argmax, alone;
            REQUIRE(m.run({{4, 0}, {1, 0}, {2, 0}}, &result, &argmax).ok());
            REQUIRE(m.run({{4, 0}, {1, 0}, {2, 0}}, nullptr, &alone).ok());
            CHECK(alone == argmax);
            for (size_t r = 0; r < 3; r++) {
                auto row = result.begin() + static_cast<int64_t>(r) * Model::vocabulary;
                CHECK(argmax[r] == std::max_element(row, row + Model::vocabulary) - row);
            }
        }
        std::atomic<bool> stop = true;
        CHECK(m.run({{1, 0}}, nullptr, nullptr, false, &stop).code() == Code::cancelled);
    }
}

TEST_CASE("cuda: a node that overflows is named, memory there is not is an error") {
    if (!gpu()) return;
    Model m(*gpu());
    Attrs huge;
    huge.scale = 1e6f;
    NodeId x = m.g.op(Op::embed, "x", {m.g.batch_input(Input::tokens), m.table(Model::vocabulary, 96, 3)});
    NodeId y = m.g.op(Op::scale, "layers.0.too_large", {x}, huge);
    m.finish(m.g.op(Op::add, "sum", {y, y}), {1, 1, 16}, {64, 8, 8, 8}, 8);
    Status status = m.run({{3, 0}}, nullptr, nullptr, true);
    CHECK(status.code() == Code::non_finite);
    CHECK(status.message().find("layers.0.too_large") != std::string::npos);
    // Memory there is not is an error, and the backend goes on working.
    auto none = gpu()->allocate(size_t{1} << 50);
    CHECK(!none.ok());
    CHECK(none.status().code() == Code::out_of_memory);
    CHECK(m.run({{3, 0}}, nullptr).ok());
}
