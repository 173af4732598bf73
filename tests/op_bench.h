// What the sweep of ops (test_ops.cpp) and its performance mode (test_ops_speed.cpp) share: weights made of random numbers, one
// small graph on one backend with guard bytes around what kernels write, the backends held against the reference.
//
// A case builds a graph whose operands come from embed() of random tables, so that they have the backend's own activation
// type, and are views of something wider. A new backend joins by standing in backend_table().
#pragma once
#include <doctest/doctest.h>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <tuple>
#include "backends/backend.h"
#include "core/graph_builder.h"

namespace awq::test_ops {

// ---- weights made of random numbers

class RandomRows : public WeightRows {
public:
    RandomRows(int64_t rows, int64_t columns, int64_t group, int width, DType type, bool zeros, uint32_t seed, float spread = 1) {
        out = rows, in = columns, group_size = group, bits = width, dtype = type, integer_zeros = zeros;
        std::mt19937 random(seed);
        std::normal_distribution<float> normal(0, spread);
        auto round = [&](float value) {
            return type == DType::f16    ? half_to_float(float_to_half(value))
                   : type == DType::bf16 ? bf16_to_float(float_to_bf16(value))
                                         : value;
        };
        if (group == 0) {
            for (int64_t i = 0; i < rows * columns; i++) values_.push_back(round(normal(random)));
            return;
        }
        const uint32_t most = (1u << bits) - 1;
        for (int64_t i = 0; i < rows * columns; i++) q_.push_back(static_cast<uint8_t>(random() & most));
        for (int64_t i = 0; i < rows * columns / group; i++) {
            float scale = round((0.5f + 0.001f * static_cast<float>(random() % 1000)) * spread / (bits == 8 ? 64 : 4));
            if (random() % 64 == 0) scale = 0;
            scale_.push_back(scale);
            const uint32_t zero = bits == 8 ? 128 : random() % 17;
            offset_.push_back(zeros ? -static_cast<float>(zero) * scale : round(normal(random) * 2));
        }
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        const int64_t groups = in / group_size;
        std::copy_n(q_.begin() + first * in, count * in, q);
        std::copy_n(scale_.begin() + first * groups, count * groups, scale);
        std::copy_n(offset_.begin() + first * groups, count * groups, offset);
    }
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        for (int64_t i = first * in; i < (first + count) * in; i++)
            *rows++ = group_size == 0
                          ? values_[static_cast<size_t>(i)]
                          : static_cast<float>(q_[static_cast<size_t>(i)]) * scale_[static_cast<size_t>(i / group_size)] +
                                offset_[static_cast<size_t>(i / group_size)];
    }

private:
    std::vector<float> values_, scale_, offset_;
    std::vector<uint8_t> q_;
};

// Made once for all backends: normal deviates are slow to come by.
inline std::shared_ptr<RandomRows> random_rows(int64_t rows, int64_t columns, int64_t group, int bits, DType type, bool zeros,
                                        uint32_t seed, float spread) {
    static std::map<std::tuple<int64_t, int64_t, int64_t, int, DType, bool, uint32_t, float>, std::shared_ptr<RandomRows>> made;
    auto& entry = made[{rows, columns, group, bits, type, zeros, seed, spread}];
    if (!entry) entry = std::make_shared<RandomRows>(rows, columns, group, bits, type, zeros, seed, spread);
    return entry;
}

struct WeightCase {
    std::vector<int64_t> members;  // rows of each
    int64_t in;
    int64_t group = 0;
    DType dtype = DType::f16;
    bool zeros = true;
    Stack stack = Stack::single;
    int64_t experts = 1;
    WeightKind kind = WeightKind::linear;
    float spread = 0;  // 0: so that outputs are about as large as inputs
    int bits = 4;      // of a quantised value
};

// ---- one graph on one backend

inline constexpr uint8_t guard_byte = 0xa5;
inline constexpr size_t guard_bytes = 512;

struct Batch {
    std::vector<int32_t> lengths{1};  // tokens of each sequence in this run
    std::vector<int32_t> past;        // positions already in the cache (none: 0)
    int32_t outputs = 0;
    int32_t tokens() const {
        int32_t sum = 0;
        for (int32_t n : lengths) sum += n;
        return sum;
    }
};

class Bench {
public:
    Bench(Backend& backend, KvShape kv = {}) : backend_(backend), kv_(kv) { clear(); }

    GraphBuilder& g() { return *builder_; }
    Backend& backend() { return backend_; }
    void clear() {
        graph_ = std::make_unique<Graph>();
        builder_ = std::make_unique<GraphBuilder>(*graph_, backend_, true);
    }

    const Weight* weight(const WeightCase& c, uint32_t seed) {
        auto owned = std::make_unique<Owned>();
        WeightSpec& spec = owned->weight.spec;
        spec.name = "w" + std::to_string(weights_.size());
        spec.kind = c.kind;
        spec.in = c.in;
        spec.group_size = c.group;
        spec.bits = c.bits;
        spec.integer_zeros = c.zeros;
        spec.dtype = c.dtype;
        spec.stack = c.stack;
        spec.experts = c.experts;
        spec.member_rows = c.members;
        const float spread = c.spread != 0 ? c.spread : 1 / std::sqrt(static_cast<float>(c.in));
        std::vector<const WeightRows*> sources;
        for (int64_t e = 0; e < c.experts; e++)
            for (int64_t rows : c.members) {
                owned->rows.push_back(random_rows(rows, c.in, c.group, c.bits, c.dtype, c.zeros, seed++ * 7919 + 1, spread));
                sources.push_back(owned->rows.back().get());
                if (e == 0) spec.out += rows;
            }
        backend_.lay_out(owned->weight);
        // Kernels must not read outside of a weight either: what lies there is not a number.
        std::vector<uint8_t> fill(owned->weight.bytes + 2 * guard_bytes, 0xff);
        owned->buffer = std::move(*backend_.allocate(fill.size()));
        REQUIRE(backend_.upload(*owned->buffer, 0, fill.data(), fill.size()).ok());
        owned->weight.data = static_cast<char*>(owned->buffer->data) + guard_bytes;
        REQUIRE(backend_.pack(owned->weight, sources).ok());
        weights_.push_back(std::move(owned));
        return &weights_.back()->weight;
    }
    NodeId w(const WeightCase& c, uint32_t seed) { return g().weight(weight(c, seed)); }
    NodeId vector(int64_t size, uint32_t seed, float spread = 1) {
        return w({.members = {1}, .in = size, .dtype = DType::f32, .kind = WeightKind::vector, .spread = spread}, seed);
    }
    // A vector of just these values: a random vector's weight, packed anew.
    NodeId indices(const std::vector<float>& values) {
        class Given : public WeightRows {
        public:
            explicit Given(const std::vector<float>& values) : values_(values) {
                out = 1, in = static_cast<int64_t>(values.size()), dtype = DType::f32;
            }
            void read_quantized(int64_t, int64_t, uint8_t*, float*, float*) const override {}
            void read_dense(int64_t, int64_t, float* rows) const override { std::copy(values_.begin(), values_.end(), rows); }

        private:
            const std::vector<float>& values_;
        };
        const Weight* given = weight(
            {.members = {1}, .in = static_cast<int64_t>(values.size()), .dtype = DType::f32, .kind = WeightKind::vector}, 1);
        Given source(values);
        const WeightRows* sources[] = {&source};
        REQUIRE(backend_.pack(*given, sources).ok());
        return g().weight(given);
    }
    // Random activations [tokens][cols], a view into something wider.
    NodeId x(int64_t cols, uint32_t seed, float spread = 1) {
        constexpr int64_t before = 16, behind = 24;
        NodeId table = w({.members = {400}, .in = cols + before + behind, .kind = WeightKind::table, .spread = spread}, seed);
        NodeId wide = g().op(Op::embed, "x" + std::to_string(seed), {g().batch_input(Input::tokens), table});
        return g().view(wide, before, cols, "view");
    }

    // The output's rows. `seconds`: what the output's node took (the least of several runs).
    std::vector<float> run(NodeId output, const Batch& batch, double* seconds = nullptr) {
        std::vector<float> result;
        Status status = try_run(output, batch, result, seconds);
        INFO(status.message());
        REQUIRE(status.ok());
        return result;
    }
    Status try_run(NodeId output, const Batch& batch, std::vector<float>& rows_out, double* seconds = nullptr) {
        graph_->output = output;
        Graph& graph = *graph_;
        AWQ_TRY(g().status());
        // The batch.
        RunArgs args;
        std::vector<int32_t> tokens, positions, sequence, seq_begin{0}, rope_len, rows;
        int32_t pages = 1;
        for (size_t s = 0; s < batch.lengths.size(); s++) {
            const int32_t past = batch.past.empty() ? 0 : batch.past[s];
            for (int32_t i = 0; i < batch.lengths[s]; i++) {
                tokens.push_back(static_cast<int32_t>((tokens.size() * 7 + static_cast<size_t>(past)) % 400));
                positions.push_back(past + i);
                sequence.push_back(static_cast<int32_t>(s));
            }
            seq_begin.push_back(static_cast<int32_t>(tokens.size()));
            rope_len.push_back(past + batch.lengths[s]);
            pages = std::max(pages, (past + batch.lengths[s] - 1) / page_size + 1);
        }
        for (int32_t i = 0; i < batch.outputs; i++) rows.push_back((i * 5 + 1) % batch.tokens());
        args.size = {batch.tokens(), static_cast<int32_t>(batch.lengths.size()), batch.outputs, pages};
        std::vector<int32_t> table;  // pages in no particular order, page 0 unused
        for (int32_t i = 0; i < pages * args.size.sequences; i++) table.push_back(1 + (i * 7 % (pages_each * most_sequences)));
        for (int32_t s = 0; s < args.size.sequences; s++)
            for (int32_t p = 0; p < pages; p++)
                table[static_cast<size_t>(s * pages + p)] = 1 + (s * pages_each + p) * 7 % (pages_each * most_sequences);
        auto input = [&](Input kind, const std::vector<int32_t>& values) { args.inputs[static_cast<int>(kind)] = values.data(); };
        input(Input::tokens, tokens), input(Input::positions, positions), input(Input::sequence, sequence),
            input(Input::seq_begin, seq_begin);
        input(Input::rope_len, rope_len), input(Input::page_table, table), input(Input::output_rows, rows);
        for (auto& [kind, values] : extra_ints) input(kind, values);
        for (auto& [kind, values] : extra_floats) args.inputs[static_cast<int>(kind)] = values.data();
        args.feature_rows = feature_rows;
        // Memory: every node by itself between guards.
        MemoryPlan plan;
        std::vector<std::pair<size_t, size_t>> guards;
        size_t at = 0;
        plan.offset.assign(graph.nodes.size(), 0);
        for (size_t id = 0; id < graph.nodes.size(); id++) {
            const Node& node = graph.nodes[id];
            if (node.op == Op::input || node.op == Op::weight || node.op == Op::view) continue;
            guards.emplace_back(at, guard_bytes);
            plan.offset[id] = at + guard_bytes;
            const size_t bytes = static_cast<size_t>(node_rows(node, args.size) * node.cols) * dtype_bytes(node.dtype),
                         whole = (bytes + 255) / 256 * 256;
            guards.emplace_back(plan.offset[id] + bytes, whole - bytes + guard_bytes);
            at = plan.offset[id] + whole + guard_bytes;
        }
        plan.peak = at;
        auto activations = std::move(*backend_.allocate(at));
        std::vector<uint8_t> memory(at, guard_byte);
        REQUIRE(backend_.upload(*activations, 0, memory.data(), at).ok());
        if (!cache_ && kv_.layers > 0) {
            kv_pages_ = pages_each * most_sequences + 1;
            cache_ = std::move(*backend_.allocate(static_cast<size_t>(kv_pages_) * backend_.kv_page_bytes(kv_)));
        }
        const Node& out = graph.nodes[static_cast<size_t>(output)];
        const size_t count = static_cast<size_t>(node_rows(out, args.size) * out.cols), edge = guard_bytes / 4;
        std::vector<float> result(count + 2 * edge, -77);
        args.graph = &graph, args.plan = &plan, args.activations = activations.get(), args.kv_cache = cache_.get(), args.kv = kv_,
        args.kv_pages = kv_pages_;
        args.result = result.data() + edge;
        args.check_finite = !seconds;
        AWQ_TRY(backend_.run(args));
        REQUIRE(backend_.download(*activations, 0, memory.data(), at).ok());
        for (auto [first, bytes] : guards)
            for (size_t i = first; i < first + bytes; i++)
                if (memory[i] != guard_byte) {
                    FAIL("byte " << i << " outside of a node's memory was written");
                    break;
                }
        for (size_t i = 0; i < edge; i++) REQUIRE((result[i] == -77 && result[edge + count + i] == -77));
        if (seconds) {
            *seconds = 1e9;
            args.check_finite = false;
            for (int i = 0; i < 12; i++) {
                std::vector<double> taken(graph.nodes.size(), 0.0);
                args.node_seconds = taken.data();
                REQUIRE(backend_.run(args).ok());
                *seconds = std::min(*seconds, taken[static_cast<size_t>(output)]);
            }
        }
        last_size = args.size;
        rows_out.assign(result.begin() + static_cast<int64_t>(edge), result.begin() + static_cast<int64_t>(edge + count));
        return {};
    }

    static constexpr int32_t pages_each = 40, most_sequences = 8;
    std::vector<std::pair<Input, std::vector<int32_t>>> extra_ints;
    std::vector<std::pair<Input, std::vector<float>>> extra_floats;
    int32_t feature_rows = 0;
    BatchSize last_size;

private:
    struct Owned {
        Weight weight;
        std::unique_ptr<Buffer> buffer;
        std::vector<std::shared_ptr<RandomRows>> rows;
    };
    Backend& backend_;
    KvShape kv_;
    std::unique_ptr<Graph> graph_;
    std::unique_ptr<GraphBuilder> builder_;
    std::vector<std::unique_ptr<Owned>> weights_;
    std::unique_ptr<Buffer> cache_;
    int32_t kv_pages_ = 0;
};

// ---- the backends held against the reference

struct Candidate {
    std::string name;
    std::unique_ptr<Backend> backend;
    double tolerance;  // of the outputs' root mean square
};

inline std::vector<Candidate>& candidates() {
    static std::vector<Candidate> all = [] {
        std::vector<Candidate> list;
        for (const BackendEntry& entry : backend_table()) {
            if (std::string(entry.name) == "reference" || !entry.available()) continue;
            if (const char* only = std::getenv("AWQ_TEST_ON"); only && std::string(entry.name) != only) continue;
            const bool cpu = std::string(entry.name) == "cpu";
            for (const char* isa :
                 cpu ? std::vector<const char*>{"scalar", "avx2", "avx512", "avx512vnni", "neon"} : std::vector<const char*>{""})
                for (int threads : cpu ? std::vector<int>{1, 2} : std::vector<int>{0}) {
                    BackendOptions options;
                    options.isa = isa;
                    options.threads = threads;
                    auto backend = entry.create(options);
                    if (!backend.ok()) continue;  // this machine lacks it
                    const bool wide = (*backend)->activation_type() == DType::f32;
                    list.push_back({std::string(entry.name) + (cpu ? std::string(" ") + isa + " " + std::to_string(threads) : ""),
                                    std::move(*backend), wide ? 2e-3 : 2e-2});
                }
        }
        return list;
    }();
    return all;
}

inline Backend& reference() {
    static std::unique_ptr<Backend> backend = std::move(*create_backend("reference", {}));
    return *backend;
}

// Largest difference in units of the root mean square of what is wanted.
inline double difference(const std::vector<float>& got, const std::vector<float>& want) {
    REQUIRE(got.size() == want.size());
    double square = 0, worst = 0;
    for (float v : want) square += static_cast<double>(v) * v;
    const double rms = std::sqrt(square / std::max<double>(1, static_cast<double>(want.size()))) + 1e-20;
    for (size_t i = 0; i < want.size(); i++) {
        const double d = std::fabs(static_cast<double>(got[i]) - want[i]);
        worst = std::max(worst, std::isfinite(d) ? d : 1e30);
    }
    return worst / rms;
}

using Body = std::function<std::vector<float>(Bench&)>;

// Runs the body on the reference and on every candidate; compares; threads must not change a bit.
inline void sweep(const std::string& name, const Body& body, KvShape kv = {}, double factor = 1) {
    Bench expected(reference(), kv);
    const std::vector<float> want = body(expected);
    std::vector<float> one_thread;
    for (Candidate& candidate : candidates()) {
        INFO(name << " on " << candidate.name);
        Bench bench(*candidate.backend, kv);
        const std::vector<float> got = body(bench);
        const double off = difference(got, want);
        CHECK(off <= candidate.tolerance * factor);
        if (candidate.name.ends_with(" 1")) one_thread = got;
        if (candidate.name.ends_with(" 2")) CHECK(one_thread == got);
    }
}

inline Attrs norm_attrs(int64_t width, bool plus_one = false) {
    Attrs attrs;
    attrs.width = width;
    attrs.eps = 1e-5f;
    attrs.plus_one = plus_one;
    return attrs;
}

struct AttentionCase {
    int heads, kv_heads, dim;
    int window = 0;
    float softcap = 0;
    bool alibi = false, interleaved = false, fused = true;
    int rot_dim = 0;  // 0: all
    RopeParams::Kind kind = RopeParams::Kind::fixed;
};

// One layer's worth: rope, append, attention; several runs over one cache (a prompt, then tokens). The last run's output.
inline std::vector<float> attend(Bench& b, const AttentionCase& c, const std::vector<Batch>& runs, double* seconds = nullptr) {
    std::vector<float> result;
    for (size_t i = 0; i < runs.size(); i++) {
        b.clear();
        GraphBuilder& g = b.g();
        Attrs attrs;
        attrs.heads = c.heads, attrs.kv_heads = c.kv_heads, attrs.head_dim = c.dim, attrs.layer = 1, attrs.window = c.window,
        attrs.softcap = c.softcap;
        attrs.rot_dim = c.rot_dim ? c.rot_dim : c.dim;
        attrs.interleaved = c.interleaved;
        attrs.scale = 1 / std::sqrt(static_cast<float>(c.dim));
        RopeParams rope;
        rope.rot_dim = attrs.rot_dim;
        rope.interleaved = c.interleaved;
        rope.kind = c.kind;
        rope.factor = 2;
        rope.original_length = 20;
        rope.attention_factor = 1.1f;
        for (int j = 0; j < rope.rot_dim / 2; j++) {
            rope.inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(j) / static_cast<float>(rope.rot_dim)));
            rope.long_inv_freq.push_back(rope.inv_freq.back() / 3);
        }
        g.graph().ropes.push_back(rope);
        Attrs table_attrs;
        table_attrs.rope = &g.graph().ropes.back();
        if (c.alibi) {
            g.graph().constants.emplace_back();
            for (int h = 0; h < c.heads; h++) g.graph().constants.back().push_back(std::pow(0.5f, static_cast<float>(h + 1)));
            attrs.alibi = g.graph().constants.back().data();
        }
        auto in = [&](Input kind) { return g.batch_input(kind); };
        NodeId q = b.x(c.heads * c.dim, 1), k = b.x(c.kv_heads * c.dim, 2), v = b.x(c.kv_heads * c.dim, 3);
        NodeId table =
            g.op(Op::rope_table, "table", {in(Input::positions), in(Input::sequence), in(Input::rope_len)}, table_attrs);
        if (c.fused) {
            q = g.op(Op::rope_append, "rope", {q, k, v, table, in(Input::positions), in(Input::sequence), in(Input::page_table)},
                     attrs);
        } else {
            Attrs key = attrs;
            key.heads = c.kv_heads;
            q = g.op(Op::rope, "q", {q, table}, attrs);
            k = g.op(Op::rope, "k", {k, table}, key);
            g.op(Op::kv_append, "append", {k, v, in(Input::positions), in(Input::sequence), in(Input::page_table)}, attrs);
        }
        NodeId y = g.op(Op::attention, "y",
                        {q, in(Input::positions), in(Input::sequence), in(Input::seq_begin), in(Input::page_table)}, attrs);
        result = b.run(y, runs[i], seconds && i + 1 == runs.size() ? seconds : nullptr);
    }
    return result;
}

}  // namespace awq::test_ops
