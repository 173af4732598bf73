#include "core/bench.h"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include "core/shapes.h"

namespace awq {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Result<std::vector<int64_t>> read_list(const Json& request, const char* key, std::vector<int64_t> fallback, int64_t low, int64_t high) {
    const Json* value = request.find(key);
    if (!value || value->is_null()) return fallback;
    std::vector<int64_t> list;
    bool sound = value->is_array();
    if (sound)
        for (const Json& item : value->items()) {
            sound = sound && item.type() == Json::Type::integer && item.integer() >= low && item.integer() <= high;
            if (sound) list.push_back(item.integer());
        }
    if (!sound)
        return Status(Code::invalid_argument, std::string(key) + ": found " + quote(dump_json(*value)) + "; expected a list of integers from " +
                                                  std::to_string(low) + " to " + std::to_string(high));
    return list;
}

// Bytes that one run of the graph must move at these sizes.
int64_t graph_bytes(const Engine& engine, const BatchSize& size, int64_t kv_length) {
    int64_t bytes = 0;
    for (const Node& node : engine.graph().nodes) {
        if (node.op == Op::input || node.op == Op::weight || node.op == Op::view) continue;
        int64_t rows = node_rows(node, size);
        const Kernel* kernel = rows > 0 ? engine.backend().kernel(engine.graph(), node, rows) : nullptr;
        if (kernel) bytes += kernel->bytes(engine.graph(), node, size, kv_length);
    }
    return bytes;
}

// Ids spread over the vocabulary, the same in every run.
std::vector<int32_t> some_tokens(const Engine& engine, int64_t count, uint64_t seed) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        ids.push_back(static_cast<int32_t>((seed >> 33) % static_cast<uint64_t>(engine.vocab_size())));
    }
    return ids;
}

struct Sample {
    double mean = 0, deviation = 0;
};
Sample summary(const std::vector<double>& values) {
    Sample s;
    for (double v : values) s.mean += v / static_cast<double>(values.size());
    for (double v : values) s.deviation += (v - s.mean) * (v - s.mean);
    s.deviation = values.size() > 1 ? std::sqrt(s.deviation / static_cast<double>(values.size() - 1)) : 0;
    return s;
}

class Bench {
public:
    Bench(Engine& engine, int64_t repeat) : engine_(engine), repeat_(repeat) {}
    Json rows = Json::array();

    Status prompt(int64_t tokens, int64_t depth) {
        std::vector<double> rates;
        AWQ_ASSIGN(auto session, start(depth));
        for (int64_t r = -1; r < repeat_; r++) {    // the first one warms up
            session->truncate(depth);
            auto ids = some_tokens(engine_, tokens, 7);
            int32_t best = 0;
            Feed feed{.session = session.get(), .tokens = ids, .best = &best};
            double begin = seconds();
            AWQ_TRY(engine_.run({&feed, 1}));
            if (r >= 0) rates.push_back(static_cast<double>(tokens) / (seconds() - begin));
        }
        int64_t bytes = 0;
        const int64_t chunk = engine_.capacity().tokens;
        for (int64_t at = 0; at < tokens; at += chunk) {
            BatchSize size;
            size.tokens = static_cast<int32_t>(std::min<int64_t>(chunk, tokens - at));
            size.sequences = 1;
            size.outputs = at + chunk >= tokens ? 1 : 0;
            bytes += graph_bytes(engine_, size, depth + at + size.tokens);
        }
        report("pp" + std::to_string(tokens) + suffix(depth), rates, static_cast<double>(bytes) / static_cast<double>(tokens));
        return {};
    }

    Status generate(int64_t tokens, int64_t batch, int64_t depth) {
        std::vector<double> rates;
        std::vector<std::unique_ptr<Session>> sessions;
        for (int64_t b = 0; b < batch; b++) {
            AWQ_ASSIGN(auto session, start(depth));
            sessions.push_back(std::move(session));
        }
        const auto ids = some_tokens(engine_, batch, 11);
        for (int64_t r = 0; r < repeat_; r++) {
            std::vector<Continuation> all;
            for (size_t b = 0; b < sessions.size(); b++) {
                sessions[b]->truncate(depth);
                all.push_back({sessions[b].get(), ids[b]});
            }
            double begin = 0;
            AWQ_TRY(engine_.decode(all, tokens + 1, [&](std::span<const int32_t>) -> Result<bool> {
                if (begin == 0) begin = seconds();    // the first step warms up
                return true;
            }));
            rates.push_back(static_cast<double>(tokens * batch) / (seconds() - begin));
        }
        BatchSize size;
        size.tokens = size.sequences = size.outputs = static_cast<int32_t>(batch);
        double bytes = static_cast<double>(graph_bytes(engine_, size, depth + tokens / 2)) / static_cast<double>(batch);
        report("tg" + std::to_string(tokens) + (batch > 1 ? " b" + std::to_string(batch) : "") + suffix(depth), rates, bytes);
        return {};
    }

    // The time of every kind of node in runs of `tokens` tokens for each of `batch` sequences, by kernel and size.
    Result<Json> kernels(int64_t tokens, int64_t batch, int64_t depth) {
        std::vector<std::unique_ptr<Session>> sessions;
        for (int64_t b = 0; b < batch; b++) {
            AWQ_ASSIGN(auto session, start(depth));
            sessions.push_back(std::move(session));
        }
        const auto ids = some_tokens(engine_, tokens * batch, 13);
        std::vector<int32_t> best(static_cast<size_t>(batch));
        std::vector<Feed> feeds(static_cast<size_t>(batch));
        std::vector<double> times;
        for (int64_t r = -1; r < repeat_; r++) {    // the first one warms up
            for (size_t b = 0; b < feeds.size(); b++) {
                sessions[b]->truncate(depth);
                feeds[b] = {.session = sessions[b].get(), .tokens = std::span(ids).subspan(b * static_cast<size_t>(tokens), static_cast<size_t>(tokens)), .best = &best[b]};
            }
            if (r == 0) times.clear();
            AWQ_TRY(engine_.profile(feeds, times));
        }
        BatchSize size;
        size.tokens = static_cast<int32_t>(tokens * batch);
        size.sequences = size.outputs = static_cast<int32_t>(batch);
        struct Group {
            int64_t nodes = 0, bytes = 0;
            double seconds = 0;
        };
        std::map<std::string, Group> groups;
        const Graph& graph = engine_.graph();
        double total = 0;
        for (size_t id = 0; id < graph.nodes.size(); id++) {
            const Node& node = graph.nodes[id];
            int64_t rows = node_rows(node, size);
            if (node.op == Op::input || node.op == Op::weight || node.op == Op::view || rows == 0) continue;
            const Kernel* kernel = engine_.backend().kernel(graph, node, rows);
            if (!kernel || times[id] == 0) continue;    // no time of its own: another node's kernel did it
            std::string sizes = std::to_string(rows) + (rows == 1 ? " row" : " rows");
            for (NodeId in : node.in)
                if (in != no_node && graph.nodes[in].weight && graph.nodes[in].weight->spec.kind != WeightKind::vector)
                    sizes += ", " + std::to_string(graph.nodes[in].weight->spec.out) + " x " + std::to_string(graph.nodes[in].weight->spec.in);
            Group& group = groups[std::string(op_name(node.op)) + " | " + kernel->name + " | " + sizes];
            group.nodes++;
            group.seconds += times[id] / static_cast<double>(repeat_);
            group.bytes += kernel->bytes(graph, node, size, depth + tokens);
            total += times[id] / static_cast<double>(repeat_);
        }
        Json list = Json::array();
        for (const auto& [name, group] : groups) {
            Json row = Json::object();
            row.set("kernel", name);
            row.set("nodes", group.nodes);
            row.set("microseconds", group.seconds * 1e6);
            row.set("percent_of_run", total > 0 ? 100 * group.seconds / total : 0.0);
            row.set("gb_per_second", group.seconds > 0 ? static_cast<double>(group.bytes) / group.seconds / 1e9 : 0.0);
            row.set("percent_of_limit", limit(static_cast<double>(group.bytes) / group.seconds));
            list.push(std::move(row));
        }
        return list;
    }

    static std::string suffix(int64_t depth) { return depth > 0 ? " @ d" + std::to_string(depth) : ""; }

private:
    Json limit(double bytes_per_second) const {
        double bandwidth = engine_.backend().bandwidth();
        return bandwidth > 0 && std::isfinite(bytes_per_second) ? Json(100 * bytes_per_second / bandwidth) : Json();
    }
    Result<std::unique_ptr<Session>> start(int64_t depth) {
        AWQ_ASSIGN(auto session, engine_.new_session());
        if (depth > 0) {
            auto ids = some_tokens(engine_, depth, 3);
            Feed feed{session.get(), ids, Feed::Logits::none, nullptr, {}};
            AWQ_TRY(engine_.run({&feed, 1}));
        }
        return session;
    }
    void report(const std::string& test, const std::vector<double>& rates, double bytes_per_token) {
        Sample s = summary(rates);
        Json row = Json::object();
        row.set("test", test);
        row.set("tokens_per_second", s.mean);
        row.set("sd", s.deviation);
        row.set("gb_per_second", s.mean * bytes_per_token / 1e9);
        row.set("percent_of_limit", limit(s.mean * bytes_per_token));
        rows.push(std::move(row));
    }
    Engine& engine_;
    int64_t repeat_;
};

}  // namespace

Result<Json> bench(EngineOptions options, const Json& request) {
    if (!request.is_object()) return Status(Code::invalid_argument, "the request is no object");
    std::string name = options.model;
    if (const Json* shape = request.find("shape"); shape && shape->is_string()) {
        name = shape->string();
        options.shape_config = shape_config(name);
        if (options.shape_config.empty()) {
            std::string known;
            for (const std::string& each : shape_names()) known += (known.empty() ? "" : ", ") + each;
            return Status(Code::invalid_argument, "--shape: \"" + quote(name) + "\"; expected one of " + known);
        }
    }
    const int64_t most = 1 << 20;
    AWQ_ASSIGN(auto prompts, read_list(request, "prompt", {512}, 0, most));
    AWQ_ASSIGN(auto generates, read_list(request, "generate", {128}, 0, most));
    AWQ_ASSIGN(auto batches, read_list(request, "batch", {1}, 1, 512));
    AWQ_ASSIGN(auto depths, read_list(request, "depth", {0}, 0, most));
    int64_t repeat = 5;
    if (const Json* value = request.find("repeat"); value && !value->is_null()) {
        if (value->type() != Json::Type::integer || value->integer() < 1 || value->integer() > 1000)
            return Status(Code::invalid_argument, "repeat: found " + quote(dump_json(*value)) + "; expected an integer from 1 to 1000");
        repeat = value->integer();
    }
    const Json* kernels = request.find("kernels");
    const bool want_kernels = kernels && kernels->is_bool() && kernels->boolean();
    auto largest = [](const std::vector<int64_t>& list) { return list.empty() ? int64_t{0} : *std::max_element(list.begin(), list.end()); };
    // One sequence reads a prompt, `batch` of them generate, the first step as a warm-up; each has whole pages.
    const int64_t prompt = largest(prompts) + largest(depths), generated = largest(generates) + 1 + largest(depths);
    auto whole_pages = [](int64_t tokens) { return (tokens + page_size - 1) / page_size * page_size; };
    options.context = std::max(prompt, generated);
    options.cache_tokens = std::max(whole_pages(prompt), whole_pages(generated) * std::max<int64_t>(1, largest(batches)));

    const double begin = seconds();
    AWQ_ASSIGN(auto engine, Engine::load(options));
    const double load_seconds = seconds() - begin;
    Bench bench(*engine, repeat);
    Json answer = Json::object();
    while (name.size() > 1 && name.back() == '/') name.pop_back();
    answer.set("model", name.substr(name.rfind('/') + 1));
    int64_t parameters = 0;
    for (const PlanRow& row : engine->plan().rows)
        if (row.module.tied_to.empty()) parameters += row.module.out * row.module.in + (row.module.bias ? row.module.out : 0);
    answer.set("size", static_cast<int64_t>(engine->weight_bytes()));
    answer.set("params", parameters);
    answer.set("backend", engine->backend().name());
    DeviceInfo device = engine->backend().device();
    answer.set("device", device.name);
    answer.set("bandwidth", engine->backend().bandwidth());
    answer.set("load_seconds", load_seconds);
    if (want_kernels) {
        Json lists = Json::object();
        auto add = [&](int64_t tokens, int64_t batch, int64_t depth) -> Status {
            AWQ_ASSIGN(Json list, bench.kernels(tokens, batch, depth));
            const int64_t count = tokens * batch;
            lists.set(std::to_string(count) + (count == 1 ? " token" : " tokens") + (batch > 1 ? " of as many sequences" : "") + bench.suffix(depth), std::move(list));
            return {};
        };
        for (int64_t depth : depths) {
            for (int64_t b : batches) AWQ_TRY(add(1, b, depth));
            for (int64_t n : prompts)    // a longer prompt is runs of so many tokens
                if (n > 1) AWQ_TRY(add(std::min<int64_t>(n, engine->capacity().tokens), 1, depth));
        }
        answer.set("kernels", std::move(lists));
        return answer;
    }
    for (int64_t depth : depths) {
        for (int64_t n : prompts)
            if (n > 0) AWQ_TRY(bench.prompt(n, depth));
        for (int64_t n : generates)
            for (int64_t b : batches)
                if (n > 0) AWQ_TRY(bench.generate(n, b, depth));
    }
    answer.set("rows", std::move(bench.rows));
    return answer;
}

}  // namespace awq
