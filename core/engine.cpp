#include "core/engine.h"
#include <algorithm>
#include <numeric>
#include "models/blocks.h"

namespace awq {

// ---- pages

PagePool::PagePool(int32_t count) : free_(count), count_(count) {
    std::iota(free_.rbegin(), free_.rend(), 0);    // page 0 is taken first
}

std::optional<int32_t> PagePool::take() {
    std::lock_guard lock(mutex_);
    if (free_.empty()) return std::nullopt;
    int32_t page = free_.back();
    free_.pop_back();
    return page;
}

void PagePool::give_back(std::span<const int32_t> pages) {
    std::lock_guard lock(mutex_);
    free_.insert(free_.end(), pages.rbegin(), pages.rend());
}

// ---- session

Session::~Session() { engine_->pages_->give_back(pages_); }

void Session::truncate(int64_t length) {
    tokens_.resize(static_cast<size_t>(std::clamp<int64_t>(length, 0, this->length())));
    size_t keep = (tokens_.size() + page_size - 1) / page_size;
    engine_->pages_->give_back(std::span(pages_).subspan(keep));
    pages_.resize(keep);
}

Status Session::reserve(int64_t length) {
    if (length > engine_->context_)
        return Status(Code::context_full, "the context is full: " + std::to_string(length) + " tokens, but the context holds " +
                                              std::to_string(engine_->context_));
    while (static_cast<int64_t>(pages_.size()) * page_size < length) {
        auto page = engine_->pages_->take();
        if (!page)
            return Status(Code::context_full, "the KV cache is full: all " + std::to_string(engine_->pages_->count()) +
                                                  " pages of 64 tokens are in use by this and other sessions");
        pages_.push_back(*page);
    }
    return {};
}

// ---- loading

int64_t context_by_default(const ModelConfig& config) {
    const bool stretches = config.rope.kind == RopeParams::Kind::dynamic;    // beyond max_positions by design
    return stretches ? default_context : std::min(config.max_positions, default_context);
}

Engine::~Engine() = default;

Result<std::shared_ptr<Engine>> Engine::load(const EngineOptions& options) {
    std::shared_ptr<Engine> engine(new Engine());
    AWQ_TRY(engine->build(options));
    return engine;
}

Status Engine::build(const EngineOptions& options) {
    check_finite_ = options.check_finite;
    PlanOptions plan_options = options.plan;
    if (options.shape_config.empty()) {
        AWQ_ASSIGN(std::string directory, resolve_model_directory(options.model));
        AWQ_ASSIGN(checkpoint_, Checkpoint::open(directory));
        if (!checkpoint_->has_weights()) return checkpoint_->missing_weights();
        AWQ_ASSIGN(generation_defaults_, read_generation_config(checkpoint_->generation_config(), checkpoint_->config()));
    } else {
        AWQ_ASSIGN(checkpoint_, Checkpoint::from_config(options.shape_config));
    }
    AWQ_ASSIGN(model_, configure_model(checkpoint_->config()));
    if (!model_.model->graph) return Status(Code::unsupported, "config.json: model_type: " + quote(model_.config.model_type) + " has a plan but no graph");
    context_ = options.context > 0 ? options.context : context_by_default(model_.config);
    plan_options.context = context_;
    AWQ_ASSIGN(backend_, create_backend(options.backend, options.backend_options));
    AWQ_ASSIGN(plan_, make_plan(*checkpoint_, model_, plan_options, backend_.get()));
    if (options.backend == "auto")
        for (std::string& reason : backends_passed_over(options.backend_options)) plan_.warnings.push_back(std::move(reason));
    if (plan_.rope) model_.config.rope = *plan_.rope;    // modules_to_fuse brought a rope_theta of its own

    weights_ = std::make_unique<WeightStore>(plan_, *backend_);
    AWQ_TRY(build_graphs(plan_options.fuse));
    AWQ_TRY(fit_positions(options.context > 0));
    AWQ_TRY(allocate(options));    // what does not fit is said before gigabytes are read
    if (options.shape_config.empty()) AWQ_TRY(weights_->load(*checkpoint_, plan_, *backend_, options.progress));
    else AWQ_TRY(weights_->load_random(plan_, *backend_, options.progress));
    for (PlanRow& row : plan_.rows) row.opened.reset();
    return backend_->prepare(graph_, capacity(), context_);
}

MemoryNeeds Engine::memory_needs() const {
    MemoryNeeds needs;
    needs.weights = weights_->bytes();
    size_t own = backend_->scratch_bytes(graph_, capacity(), context_);
    if (has_vision()) own = std::max(own, backend_->scratch_bytes(vision_graph_, capacity(), context_));
    needs.scratch = std::max(memory_plan_.peak, vision_plan_.peak) + own;
    needs.page_bytes = backend_->kv_page_bytes(kv_);
    return needs;
}

Status Engine::allocate(const EngineOptions& options) {
    kv_ = {model_.config.layers, model_.config.kv_heads, model_.config.head_dim};
    const MemoryNeeds needs = memory_needs();
    const DeviceInfo device = backend_->device();
    MemoryBudget budget{device.memory_free, "free memory of " + device.name, device.own_memory, false};
    if (options.memory > 0) budget = {options.memory, "--memory", true, true};
    const int64_t per_context = (context_ + page_size - 1) / page_size, asked = (options.cache_tokens + page_size - 1) / page_size;
    AWQ_ASSIGN(int64_t pages, plan_pages(needs, budget, per_context, asked));
    AWQ_TRY(weights_->allocate(*backend_));
    auto cache = backend_->allocate(needs.page_bytes * static_cast<size_t>(pages));
    // Address space may be scarcer than memory (a limit of the system): fewer sessions then, as long as one finds room.
    while (!cache.ok() && asked <= 0 && pages > per_context) {
        pages = std::max(per_context, pages / 2);
        cache = backend_->allocate(needs.page_bytes * static_cast<size_t>(pages));
    }
    if (!cache.ok()) return cache.status().in("the KV cache of " + std::to_string(pages * page_size) + " tokens");
    kv_cache_ = std::move(*cache);
    pages_ = std::make_unique<PagePool>(static_cast<int32_t>(pages));
    AWQ_ASSIGN(activations_, backend_->allocate(std::max(memory_plan_.peak, vision_plan_.peak)));
    return {};
}

Status Engine::measure(Plan& plan, const ConfiguredModel& model, std::unique_ptr<Backend> backend, bool fuse) {
    if (!model.model->graph) return {};
    Engine engine;
    engine.model_ = model;
    if (plan.rope) engine.model_.config.rope = *plan.rope;
    engine.context_ = plan.context;
    engine.backend_ = std::move(backend);
    engine.weights_ = std::make_unique<WeightStore>(plan, *engine.backend_);
    AWQ_TRY(engine.build_graphs(fuse));
    const MemoryNeeds needs = engine.memory_needs();
    plan.weight_bytes = needs.weights;
    plan.scratch_bytes = std::max(plan.scratch_bytes, needs.scratch);
    plan.total_at_context = plan.weight_bytes + plan.scratch_bytes + plan.kv_bytes_per_token * static_cast<size_t>(plan.context);
    return {};
}

Status Engine::build_graphs(bool fuse) {
    {
        GraphBuilder graph(graph_, *backend_, fuse);
        ModelBuilder builder(graph, *weights_, model_.config);
        model_.model->graph(model_.config, builder);
        AWQ_TRY(graph.status());
    }
    memory_plan_ = plan_memory(graph_, capacity());
    if (has_vision()) {
        GraphBuilder graph(vision_graph_, *backend_, fuse);
        ModelBuilder builder(graph, *weights_, model_.config);
        model_.model->vision(model_.config, builder);
        AWQ_TRY(graph.status());
        vision_plan_ = plan_memory(vision_graph_, capacity());
    }
    return {};
}

// Models that look positions up in a table have no row for those beyond it.
Status Engine::fit_positions(bool asked) {
    for (const Node& node : graph_.nodes) {
        if (node.op != Op::embed || graph_.nodes[node.in[0]].attrs.input != Input::positions) continue;
        int64_t most = graph_.nodes[node.in[1]].weight->spec.out - node.attrs.offset;
        if (context_ > most && asked)
            return Status(Code::invalid_argument, "context: " + std::to_string(context_) + "; expected at most " + std::to_string(most) +
                                                      ", the positions of " + node.name);
        context_ = std::min(context_, most);
    }
    return {};
}

Result<std::unique_ptr<Session>> Engine::new_session() {
    return std::unique_ptr<Session>(new Session(shared_from_this()));
}

// ---- running

bool Engine::Pending::wants_row(size_t token) const {
    return token >= repeated && (feed.want == Feed::Logits::all || (feed.want == Feed::Logits::last && token + 1 == feed.tokens.size()));
}

// longrope has one set of frequencies up to the original length and another beyond. Where a sequence passes from one to the
// other, what its cache holds is rotated by the wrong ones: then it is fed whole, as transformers does.
bool Engine::rope_is_stale(const Session& session, int64_t length) const {
    const RopeParams& rope = model_.config.rope;
    auto beyond = [&](int64_t tokens) { return rope.kind == RopeParams::Kind::longrope && tokens > rope.original_length; };
    return session.rope_length_ < 0 || beyond(session.rope_length_) != beyond(length);
}

void Engine::repeat_history(Pending& pending) const {
    Session& session = *pending.feed.session;
    const int64_t length = session.length() + static_cast<int64_t>(pending.feed.tokens.size());
    if (session.length() == 0 || !rope_is_stale(session, length)) {
        session.rope_length_ = length;
        return;
    }
    pending.repeated = session.tokens_.size();
    pending.history = std::move(session.tokens_);
    pending.history.insert(pending.history.end(), pending.feed.tokens.begin(), pending.feed.tokens.end());
    pending.feed.tokens = pending.history;
    session.tokens_.clear();
    session.rope_length_ = length;
}

Status Engine::run(std::span<Feed> feeds, const std::atomic<bool>* cancel) {
    std::vector<int64_t> before;
    int with_images = 0;
    for (Feed& feed : feeds) {
        for (int32_t token : feed.tokens)
            if (token < 0 || token >= vocab_size())
                return Status(Code::invalid_argument, "token id " + std::to_string(token) + " is out of range; expected 0 to " +
                                                          std::to_string(vocab_size() - 1));
        if (feed.tokens.empty()) return Status(Code::invalid_argument, "the prompt is empty; expected at least one token");
        int64_t image_tokens = std::count(feed.tokens.begin(), feed.tokens.end(), config().vision.image_token);
        if (!feed.features.empty() && image_tokens * config().hidden_size != static_cast<int64_t>(feed.features.size()))
            return Status(Code::invalid_argument, "the prompt has the image token " + std::to_string(image_tokens) + " times; expected " +
                                                      std::to_string(static_cast<int64_t>(feed.features.size()) / config().hidden_size) +
                                                      ", one for each row of the images");
        if (!feed.features.empty() && with_images++ > 0)
            return Status(Code::invalid_argument, "two sequences of one batch bring images; expected one at most");
        before.push_back(feed.session->length());
    }
    std::vector<Pending> all;
    auto undo = [&](Status status) {
        for (size_t i = 0; i < feeds.size(); i++) {
            Session& session = *feeds[i].session;
            if (i < all.size() && all[i].repeated > 0) {    // its cache is written over in part: the next run does it again
                session.tokens_.assign(all[i].history.begin(), all[i].history.begin() + before[i]);
                session.rope_length_ = -1;
            }
            session.truncate(before[i]);
        }
        return status;
    };
    for (Feed& feed : feeds) {
        if (Status room = feed.session->reserve(feed.session->length() + static_cast<int64_t>(feed.tokens.size())); !room.ok()) return undo(room);
        if (feed.logits) feed.logits->clear();
    }
    for (const Feed& feed : feeds) {
        all.push_back({feed, {}});
        repeat_history(all.back());
    }

    // Chunks: as many tokens of each feed, in order, as fit beside the others'.
    for (;;) {
        int32_t tokens = 0, outputs = 0;
        for (Pending& p : all) {
            const size_t left = p.feed.tokens.size() - p.done, room = static_cast<size_t>(chunk_outputs - outputs);
            p.count = std::min<size_t>(left, static_cast<size_t>(capacity().tokens - tokens));
            if (p.feed.want == Feed::Logits::all) p.count = std::min(p.count, room + (p.repeated > p.done ? p.repeated - p.done : 0));
            if (p.count == left && p.count > 0 && p.feed.want == Feed::Logits::last && room == 0) p.count = 0;
            p.rows = 0;
            for (size_t t = p.done; t < p.done + p.count; t++) p.rows += p.wants_row(t);
            outputs += static_cast<int32_t>(p.rows);
            tokens += static_cast<int32_t>(p.count);
        }
        if (tokens == 0) return {};
        if (Status status = run_chunk(all, cancel); !status.ok()) return undo(status);
        for (Pending& p : all) p.done += p.count;
    }
}

RunArgs Engine::run_args() const {
    RunArgs args;
    args.graph = &graph_;
    args.plan = &memory_plan_;
    args.activations = activations_.get();
    args.kv_cache = kv_cache_.get();
    args.kv = kv_;
    args.kv_pages = pages_->count();
    args.check_finite = check_finite_;
    return args;
}

Status Engine::run_chunk(std::span<Pending> all, const std::atomic<bool>* cancel) {
    std::vector<int32_t> tokens, positions, sequence, seq_begin, rope_len, page_table, output_rows, image_rows;
    std::vector<Pending*> active;
    BatchSize size;
    for (Pending& p : all)
        if (p.count > 0) {
            active.push_back(&p);
            size.max_pages = std::max(size.max_pages, static_cast<int32_t>(p.feed.session->pages_.size()));
        }
    size.sequences = static_cast<int32_t>(active.size());
    std::span<const float> features;
    for (int32_t s = 0; s < size.sequences; s++) {
        const Feed& feed = active[s]->feed;
        const Session& session = *feed.session;
        size_t begin = active[s]->done, end = begin + active[s]->count;
        seq_begin.push_back(static_cast<int32_t>(tokens.size()));
        rope_len.push_back(static_cast<int32_t>(session.length() + static_cast<int64_t>(feed.tokens.size() - begin)));
        int32_t image_row = static_cast<int32_t>(std::count(feed.tokens.begin(), feed.tokens.begin() + begin, config().vision.image_token));
        for (size_t t = begin; t < end; t++) {
            bool image = !feed.features.empty() && feed.tokens[t] == config().vision.image_token;
            image_rows.push_back(image ? image_row++ : -1);
            if (active[s]->wants_row(t))
                output_rows.push_back(static_cast<int32_t>(tokens.size()));
            tokens.push_back(feed.tokens[t]);
            positions.push_back(static_cast<int32_t>(session.length() + static_cast<int64_t>(t - begin)));
            sequence.push_back(s);
        }
        if (!feed.features.empty()) features = feed.features;
        page_table.insert(page_table.end(), session.pages_.begin(), session.pages_.end());
        page_table.resize(static_cast<size_t>(size.max_pages) * (s + 1), 0);
    }
    seq_begin.push_back(static_cast<int32_t>(tokens.size()));
    size.tokens = static_cast<int32_t>(tokens.size());
    size.outputs = static_cast<int32_t>(output_rows.size());
    // One feed alone has its logits put where it wants them; several share a buffer.
    const size_t vocab = static_cast<size_t>(vocab_size()), outputs = static_cast<size_t>(size.outputs);
    bool want_logits = false, want_best = false;
    for (const Pending* p : active) {
        want_logits = want_logits || p->feed.logits;
        want_best = want_best || p->feed.best;
    }
    std::vector<float> shared;
    std::vector<int32_t> best(want_best ? outputs : 0);
    float* result = nullptr;
    if (want_logits && outputs > 0) {
        std::vector<float>& rows = active.size() == 1 ? *active[0]->feed.logits : shared;
        rows.resize(rows.size() + outputs * vocab);
        result = rows.data() + rows.size() - outputs * vocab;
    }

    RunArgs args = run_args();
    args.size = size;
    args.result = result;
    args.argmax = best.empty() ? nullptr : best.data();
    args.cancel = cancel;
    auto input = [&](Input kind, const auto& values) { args.inputs[static_cast<int>(kind)] = values.data(); };
    input(Input::tokens, tokens);
    input(Input::positions, positions);
    input(Input::sequence, sequence);
    input(Input::seq_begin, seq_begin);
    input(Input::rope_len, rope_len);
    input(Input::page_table, page_table);
    input(Input::output_rows, output_rows);
    input(Input::image_rows, image_rows);
    input(Input::features, features);
    args.feature_rows = config().hidden_size > 0 ? static_cast<int32_t>(features.size() / static_cast<size_t>(config().hidden_size)) : 0;
    {
        std::lock_guard lock(run_mutex_);
        land();
        args.node_seconds = node_seconds_;
        AWQ_TRY(backend_->run(args));
    }
    size_t row = 0;
    for (int32_t s = 0; s < size.sequences; s++) {
        Feed& feed = active[s]->feed;
        const size_t begin = active[s]->done, end = begin + active[s]->count, rows = active[s]->rows;
        if (feed.logits && active.size() > 1) feed.logits->insert(feed.logits->end(), result + row * vocab, result + (row + rows) * vocab);
        if (feed.best && rows > 0) *feed.best = best[row + rows - 1];
        row += rows;
        feed.session->tokens_.insert(feed.session->tokens_.end(), feed.tokens.begin() + static_cast<int64_t>(begin), feed.tokens.begin() + static_cast<int64_t>(end));
    }
    return {};
}

Status Engine::profile(std::span<Feed> feeds, std::vector<double>& node_seconds) {
    node_seconds.resize(graph_.nodes.size());
    auto set = [&](double* to) {
        std::lock_guard lock(run_mutex_);
        node_seconds_ = to;
    };
    set(node_seconds.data());
    Status status = run(feeds);
    set(nullptr);
    return status;
}

Result<std::vector<float>> Engine::image_features(std::span<const float> pixels) {
    if (!has_vision()) return Status(Code::unsupported, "this model takes no images");
    size_t side = static_cast<size_t>(config().vision.image_size);
    if (pixels.size() != 3 * side * side)
        return Status(Code::invalid_argument, "pixel_values: " + std::to_string(pixels.size()) + " numbers; expected 3 x " + std::to_string(side) +
                                                  " x " + std::to_string(side));
    std::vector<float> features(static_cast<size_t>(config().rows_per_image() * config().hidden_size));
    RunArgs args;
    args.graph = &vision_graph_;
    args.plan = &vision_plan_;
    args.activations = activations_.get();
    args.inputs[static_cast<int>(Input::pixels)] = pixels.data();
    args.result = features.data();
    args.check_finite = check_finite_;
    std::lock_guard lock(run_mutex_);
    land();
    AWQ_TRY(backend_->run(args));
    return features;
}

}  // namespace awq
