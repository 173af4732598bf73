// Every op on every backend, at many shapes, against the reference backend. Guard bytes surround what a kernel writes.
// With AWQ_BENCH=1 the same harness prints what kernels reach at the sizes of real models. AWQ_TEST_ON=cuda leaves the other
// backends out (which is what a sanitizer of one of them wants).
//
// A case builds a small graph whose operands come from embed() of random tables, so that they have the backend's own
// activation type, and are views of something wider. A new backend joins by standing in backend_table().
#include <doctest/doctest.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <tuple>
#include "backends/backend.h"
#include "core/graph_builder.h"

using namespace awq;

namespace {

// ---- weights made of random numbers

class RandomRows : public WeightRows {
public:
    RandomRows(int64_t rows, int64_t columns, int64_t group, DType type, bool zeros, uint32_t seed, float spread = 1) {
        out = rows, in = columns, group_size = group, dtype = type, integer_zeros = zeros;
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
        for (int64_t i = 0; i < rows * columns; i++) q_.push_back(static_cast<uint8_t>(random() & 15));
        for (int64_t i = 0; i < rows * columns / group; i++) {
            float scale = round((0.5f + 0.001f * static_cast<float>(random() % 1000)) * spread / 4);
            if (random() % 64 == 0) scale = 0;
            scale_.push_back(scale);
            offset_.push_back(zeros ? -static_cast<float>(random() % 17) * scale : round(normal(random) * 2));
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
std::shared_ptr<RandomRows> random_rows(int64_t rows, int64_t columns, int64_t group, DType type, bool zeros, uint32_t seed,
                                        float spread) {
    static std::map<std::tuple<int64_t, int64_t, int64_t, DType, bool, uint32_t, float>, std::shared_ptr<RandomRows>> made;
    auto& entry = made[{rows, columns, group, type, zeros, seed, spread}];
    if (!entry) entry = std::make_shared<RandomRows>(rows, columns, group, type, zeros, seed, spread);
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
};

// ---- one graph on one backend

constexpr uint8_t guard_byte = 0xa5;
constexpr size_t guard_bytes = 512;

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
        spec.integer_zeros = c.zeros;
        spec.dtype = c.dtype;
        spec.stack = c.stack;
        spec.experts = c.experts;
        spec.member_rows = c.members;
        const float spread = c.spread != 0 ? c.spread : 1 / std::sqrt(static_cast<float>(c.in));
        std::vector<const WeightRows*> sources;
        for (int64_t e = 0; e < c.experts; e++)
            for (int64_t rows : c.members) {
                owned->rows.push_back(random_rows(rows, c.in, c.group, c.dtype, c.zeros, seed++ * 7919 + 1, spread));
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

std::vector<Candidate>& candidates() {
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

Backend& reference() {
    static std::unique_ptr<Backend> backend = std::move(*create_backend("reference", {}));
    return *backend;
}

// Largest difference in units of the root mean square of what is wanted.
double difference(const std::vector<float>& got, const std::vector<float>& want) {
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
void sweep(const std::string& name, const Body& body, KvShape kv = {}, double factor = 1) {
    Bench expected(reference(), kv);
    const std::vector<float> want = body(expected);
    std::vector<float> one_thread;
    for (Candidate& candidate : candidates()) {
        Bench bench(*candidate.backend, kv);
        const std::vector<float> got = body(bench);
        const double off = difference(got, want);
        INFO(name << " on " << candidate.name);
        CHECK(off <= candidate.tolerance * factor);
        if (candidate.name.ends_with(" 1")) one_thread = got;
        if (candidate.name.ends_with(" 2")) CHECK(one_thread == got);
    }
}

const int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 33, 64, 197};

Attrs norm_attrs(int64_t width, bool plus_one = false) {
    Attrs attrs;
    attrs.width = width;
    attrs.eps = 1e-5f;
    attrs.plus_one = plus_one;
    return attrs;
}

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
                       std::to_string(c.in) + ", group " + std::to_string(c.group);
    return text + " " + dtype_name(c.dtype) + (c.stack == Stack::gate_up ? " gate_up" : "");
}

}  // namespace

TEST_CASE("ops: unpack is the inverse of pack") {
    std::vector<WeightCase> cases = weight_cases();
    cases.push_back({.members = {24, 24}, .in = 64, .group = 32, .stack = Stack::gate_up, .experts = 3});
    cases.push_back({.members = {200}, .in = 72, .kind = WeightKind::table});
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
            class Order : public WeightRows {
            public:
                Order() { out = 1, in = 40, dtype = DType::f32; }
                void read_quantized(int64_t, int64_t, uint8_t*, float*, float*) const override {}
                void read_dense(int64_t, int64_t, float* rows) const override {
                    for (int i = 0; i < 40; i++) rows[i] = static_cast<float>(i * 7 % 40);
                }
            };
            // The random vector's weight is packed anew with an order.
            const Weight* order = b.weight({.members = {1}, .in = 40, .dtype = DType::f32, .kind = WeightKind::vector}, 1);
            Order source;
            const WeightRows* sources[] = {&source};
            REQUIRE(b.backend().pack(*order, sources).ok());
            return b.run(b.g().op(Op::gather_cols, "y", {b.x(40, 1), b.g().weight(order)}), {.lengths = {rows}});
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

namespace {

struct AttentionCase {
    int heads, kv_heads, dim;
    int window = 0;
    float softcap = 0;
    bool alibi = false, interleaved = false, fused = true;
    int rot_dim = 0;  // 0: all
    RopeParams::Kind kind = RopeParams::Kind::fixed;
};

// One layer's worth: rope, append, attention; several runs over one cache (a prompt, then tokens). The last run's output.
std::vector<float> attend(Bench& b, const AttentionCase& c, const std::vector<Batch>& runs, double* seconds = nullptr) {
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

}  // namespace

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
                               {.lengths = {1, 1}, .past = {2000, 15}}});
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

// ---- performance mode

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
