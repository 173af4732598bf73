// A loaded model, and what runs on it.
//
// Engine: weights, graphs, tokenizer, templates: immutable once loaded, shared by any number of Sessions on any number of
// threads. What a run needs for itself (activations, the thread pool) is guarded inside: runs take turns.
// Session: one mutable timeline of tokens with its pages of the KV cache. One thread at a time may use it.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>
#include "backends/backend.h"
#include "core/checkpoint/checkpoint.h"
#include "core/memory_budget.h"
#include "core/plan.h"
#include "core/text/sampler.h"
#include "core/weight_store.h"

namespace awq {

class Tokenizer;
class Session;

struct EngineOptions {
    std::string model;                    // directory, or org/name[@revision] in the Hugging Face cache
    std::string backend = "auto";
    BackendOptions backend_options;
    PlanOptions plan;
    int64_t context = 0;                  // positions of one session; 0: the model's, at most default_context
    int64_t cache_tokens = 0;             // positions of all sessions together; 0: what memory allows (memory_budget.h)
    size_t memory = 0;                    // bytes of weights, cache and scratch at most; 0: what a device has free, on a CPU no limit
    bool check_finite = false;
    std::string shape_config;             // a config.json as text: no checkpoint, random weights
    LoadProgress progress;
};
inline constexpr int64_t default_context = 8192;
// The positions of one session where nobody says how many.
int64_t context_by_default(const ModelConfig& config);
inline constexpr int32_t chunk_outputs = 64;     // most rows of logits of one run

// The cache's pages and who has them. Thread-safe.
class PagePool {
public:
    explicit PagePool(int32_t count);
    std::optional<int32_t> take();        // nothing: all pages are in use
    void give_back(std::span<const int32_t> pages);
    int32_t count() const { return count_; }

private:
    std::mutex mutex_;
    std::vector<int32_t> free_;
    int32_t count_;
};

// A mutex that is had in the order in which it was asked for: who takes it again and again keeps nobody out.
class FairMutex {
public:
    void lock() {
        std::unique_lock lock(mutex_);
        const uint64_t mine = asked_++;
        turn_.wait(lock, [&] { return mine == served_; });
    }
    void unlock() {
        {
            std::lock_guard lock(mutex_);
            served_++;
        }
        turn_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable turn_;
    uint64_t asked_ = 0, served_ = 0;
};

// Tokens that a session is to be fed in one call of Engine::run.
struct Feed {
    Session* session = nullptr;
    std::span<const int32_t> tokens;
    enum class Logits : uint8_t { none, last, all } want = Logits::last;
    std::vector<float>* logits = nullptr;           // receives [1 or tokens][vocab] float32
    // Images in `tokens`: projected features [n][hidden] put, in order, where the image token stands.
    std::span<const float> features;
    int32_t* best = nullptr;                        // receives the likeliest id after the last token: all that greedy needs
};

// A sequence that Engine::decode goes on with.
struct Continuation {
    Session* session = nullptr;
    int32_t token = 0;             // fed next; in the end the last one chosen
    Sampler* sampler = nullptr;    // null: the likeliest token
};

class Engine : public std::enable_shared_from_this<Engine> {
public:
    static Result<std::shared_ptr<Engine>> load(const EngineOptions& options);
    // Adds to a plan what running it takes beside the weights: scratch_bytes, total_at_context. Nothing is loaded.
    static Status measure(Plan& plan, const ConfiguredModel& model, std::unique_ptr<Backend> backend, bool fuse);
    ~Engine();

    const ModelConfig& config() const { return model_.config; }
    const Model& model() const { return *model_.model; }
    const Plan& plan() const { return plan_; }
    const Backend& backend() const { return *backend_; }
    BatchSize capacity() const { return {.tokens = backend_->run_tokens(), .sequences = backend_->run_tokens(), .outputs = chunk_outputs}; }    // of one run
    const Checkpoint* checkpoint() const { return checkpoint_.get(); }    // null for random weights
    const GenerationDefaults& generation_defaults() const { return generation_defaults_; }
    const Graph& graph() const { return graph_; }
    size_t weight_bytes() const { return weights_->bytes(); }
    size_t activation_bytes() const { return memory_plan_.peak; }
    size_t cache_bytes() const { return kv_cache_->bytes; }
    int64_t context() const { return context_; }
    int64_t vocab_size() const { return model_.config.vocab_size; }
    bool has_vision() const { return model_.model->vision != nullptr && model_.config.vision.layers > 0; }

    Result<std::unique_ptr<Session>> new_session();

    // Feeds every session its tokens, all sessions' in one batch where they fit, long ones in chunks. On an error the
    // sessions that were not completed are as they were before. `cancel`, where given, ends the run early.
    Status run(std::span<Feed> feeds, const std::atomic<bool>* cancel = nullptr);
    // Step after step: every sequence is fed its token, the next one is chosen, `take` gets them all and says whether to go on; at
    // most `steps` steps. A token is -1 where logits are not finite: an error, if `take` wants to go on. Each session holds what was
    // fed. Steps may be computed ahead; those that `take` did not ask for are dropped. No lock is held while `take` runs. An error
    // leaves the sessions at the last step taken.
    using Take = std::function<Result<bool>(std::span<const int32_t> tokens)>;
    Status decode(std::span<Continuation> all, int64_t steps, const Take& take, const std::atomic<bool>* cancel = nullptr);
    // As run(), with the time of each node of graph() added to node_seconds.
    Status profile(std::span<Feed> feeds, std::vector<double>& node_seconds);
    // Pixels [3 * size][size] (channels R, G, B, normalised) of one image to projected features [rows_per_image][hidden].
    Result<std::vector<float>> image_features(std::span<const float> pixels);

private:
    friend class Session;
    Engine() = default;
    Status build(const EngineOptions& options);
    Status build_graphs(bool fuse);
    Status fit_positions(bool asked);
    MemoryNeeds memory_needs() const;
    Status allocate(const EngineOptions& options);
    // A feed on its way: `repeated` of its tokens were in the cache before and bring no logits.
    struct Pending {
        Feed feed;
        std::vector<int32_t> history;    // what feed.tokens points to where tokens are repeated
        size_t repeated = 0, done = 0, count = 0, rows = 0;    // count, rows of logits: of the next chunk
        bool wants_row(size_t token) const;
    };
    void repeat_history(Pending& pending) const;
    Status run_chunk(std::span<Pending> all, const std::atomic<bool>* cancel);
    bool rope_is_stale(const Session& session, int64_t length) const;
    RunArgs run_args() const;
    // Steps of a decode() that the backend has or may have under way (engine_decode.cpp).
    struct Flight;
    class InFlight;
    int64_t steps_ahead(std::span<Continuation> all, int64_t steps) const;
    Status decode_alone(std::span<Continuation> all, const std::atomic<bool>* cancel);
    void land();

    ConfiguredModel model_;
    std::shared_ptr<const Checkpoint> checkpoint_;
    GenerationDefaults generation_defaults_;
    Plan plan_;
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<WeightStore> weights_;
    Graph graph_, vision_graph_;
    MemoryPlan memory_plan_, vision_plan_;
    std::unique_ptr<Buffer> activations_, kv_cache_;
    KvShape kv_;
    std::unique_ptr<PagePool> pages_;
    int64_t context_ = 0;
    bool check_finite_ = false;
    double* node_seconds_ = nullptr;    // while profile() runs; guarded by run_mutex_
    FairMutex run_mutex_;     // the activations and the backend's threads serve one run at a time
    Flight* flight_ = nullptr;    // guarded by run_mutex_; whoever needs the backend otherwise lands it first
};

class Session {
public:
    ~Session();
    Engine& engine() const { return *engine_; }
    std::span<const int32_t> tokens() const { return tokens_; }     // what the cache holds
    int64_t length() const { return static_cast<int64_t>(tokens_.size()); }
    void truncate(int64_t length);    // forgets all tokens from `length` on, and gives back pages that no token needs

private:
    friend class Engine;
    explicit Session(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
    Status reserve(int64_t length);    // pages for so many tokens
    std::shared_ptr<Engine> engine_;
    std::vector<int32_t> tokens_, pages_;
    int64_t rope_length_ = 0;          // rope_len of the run that wrote the cache; -1: the cache is to be written anew
};

}  // namespace awq
