#include "core/generate.h"
#include <algorithm>
#include <chrono>
#include "core/text/detokenizer.h"

namespace awq {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Text on its way out: what could be the beginning of a stop string is held back until it is known not to be one.
class StopFilter {
public:
    explicit StopFilter(const std::vector<std::string>& stops) : stops_(stops) {}
    // What may be shown now. `stopped` is set once a stop string has come up; nothing after it is ever shown.
    std::string push(std::string_view piece, bool& stopped) {
        held_ += piece;
        size_t cut = std::string::npos;
        for (const std::string& stop : stops_)
            if (!stop.empty()) cut = std::min(cut, held_.find(stop));
        if (cut != std::string::npos) {
            stopped = true;
            return take(cut);
        }
        size_t keep = 0;
        for (const std::string& stop : stops_)
            for (size_t n = std::min(stop.size(), held_.size()); n > keep; n--)
                if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
        return take(held_.size() - keep);
    }
    std::string rest() { return take(held_.size()); }

private:
    std::string take(size_t count) {
        std::string shown = held_.substr(0, count);
        held_.erase(0, count);
        return shown;
    }
    const std::vector<std::string>& stops_;
    std::string held_;
};

Status check_token(const Engine& engine, int32_t token) {
    if (token >= 0 && token < engine.vocab_size()) return {};
    return Status(Code::non_finite, "the model's logits are NaN; --check-finite names the layer where it began");
}

}  // namespace

Result<GenerateResult> generate(Session& session, const std::shared_ptr<const Tokenizer>& tokenizer, const GenerateRequest& request) {
    AWQ_TRY(check_sampling(request.sampling));
    GenerateResult result;
    const std::vector<int32_t>& prompt = request.prompt;
    if (prompt.empty()) return Status(Code::invalid_argument, "the prompt is empty; expected at least one token");
    Engine& engine = session.engine();

    // The cache keeps what it shares with the prompt, but the last token is fed anyway: its logits are needed. Image tokens
    // look alike whatever the image: they are kept as far as the caller knows the images to be the same.
    const int64_t known_rows = static_cast<int64_t>(request.known_images) * engine.config().rows_per_image();
    size_t shared = 0;
    int64_t shared_rows = 0;
    while (shared < prompt.size() - 1 && shared < session.tokens().size() && session.tokens()[shared] == prompt[shared]) {
        if (!request.features.empty() && prompt[shared] == engine.config().vision.image_token && shared_rows++ == known_rows) break;
        shared++;
    }
    const std::span<const float> features = std::span(request.features).subspan(
        std::min(request.features.size(), static_cast<size_t>(std::min(shared_rows, known_rows) * engine.config().hidden_size)));
    session.truncate(static_cast<int64_t>(shared));
    result.prompt_tokens = static_cast<int64_t>(prompt.size());
    result.cached_tokens = static_cast<int64_t>(shared);

    const double begin = seconds();
    auto cancelled = [&] { return request.cancel && request.cancel->load(std::memory_order_relaxed); };
    // Greedy without penalties needs the likeliest id only, which spares the copy of the logits.
    Sampler sampler(request.sampling);
    sampler.prompt(prompt);
    const bool greedy = !sampler.draws() && !sampler.penalizes();
    std::vector<float> logits;
    int32_t best = -1;
    Feed feed{.session = &session, .tokens = std::span(prompt).subspan(shared), .logits = greedy ? nullptr : &logits, .features = features, .best = greedy ? &best : nullptr};
    if (Status fed = engine.run({&feed, 1}, request.cancel); !fed.ok()) {
        if (fed.code() != Code::cancelled) return fed;
        result.finish = Finish::cancelled;
        return result;
    }
    result.prompt_seconds = seconds() - begin;

    StopFilter filter(request.stop);
    std::unique_ptr<Detokenizer> detokenizer;
    if (tokenizer) detokenizer = std::make_unique<Detokenizer>(tokenizer, true);
    auto emit = [&](const std::string& text, int32_t token) {
        result.text += text;
        return !request.on_text || request.on_text(text, token);
    };
    bool stopped = false;
    auto ends = [&](Finish finish) {
        result.finish = finish;
        return false;
    };
    // Whether the answer may go on before its next token is looked at, and behind it.
    auto before = [&] {
        if (cancelled()) return ends(Finish::cancelled);
        if (request.max_tokens >= 0 && result.new_tokens >= request.max_tokens) return ends(Finish::length);
        return true;
    };
    auto behind = [&](int32_t token) -> Result<bool> {
        if (std::find(request.eos_ids.begin(), request.eos_ids.end(), token) != request.eos_ids.end()) return ends(Finish::eos);
        result.ids.push_back(token);
        result.new_tokens++;
        std::string piece;
        if (detokenizer) {
            AWQ_ASSIGN(piece, detokenizer->push(token));
        }
        bool go_on = emit(filter.push(piece, stopped), token);
        if (stopped || !go_on) return ends(stopped ? Finish::stop : Finish::cancelled);
        if (session.length() + 1 > engine.context()) return ends(Finish::context);
        return true;
    };
    bool go_on = before();
    if (go_on) {
        Continuation next{&session, best, greedy ? nullptr : &sampler};
        if (greedy) {
            AWQ_TRY(check_token(engine, best));
        } else {
            AWQ_ASSIGN(next.token, sampler.next(logits));
        }
        AWQ_ASSIGN(go_on, behind(next.token));
        // The last token of an answer is fed as well, for one that goes on from there.
        const int64_t steps = request.max_tokens >= 0 ? request.max_tokens - result.new_tokens + 1 : engine.context();
        if (go_on) {
            Status decoded = engine.decode({&next, 1}, steps, [&](std::span<const int32_t> tokens) -> Result<bool> {
                if (!before()) return false;
                if (tokens[0] < 0) return true;    // decode() tells
                return behind(tokens[0]);
            }, request.cancel);
            if (decoded.code() == Code::cancelled) result.finish = Finish::cancelled;
            else AWQ_TRY(decoded);
        }
    }
    if (!stopped) {
        std::string tail;
        if (detokenizer) {
            AWQ_ASSIGN(tail, detokenizer->flush());
        }
        std::string shown = filter.push(tail, stopped);
        if (!stopped) shown += filter.rest();
        else if (result.finish != Finish::cancelled) result.finish = Finish::stop;
        if (!shown.empty()) emit(shown, -1);
    }
    result.generate_seconds = seconds() - begin - result.prompt_seconds;
    return result;
}

Result<std::vector<std::vector<int32_t>>> generate_batch(Engine& engine, const std::vector<std::vector<int32_t>>& prompts, int64_t count,
                                                         const std::vector<float>& features) {
    std::vector<std::unique_ptr<Session>> sessions;
    std::vector<int32_t> best(prompts.size());
    std::vector<Feed> feeds;
    for (size_t i = 0; i < prompts.size(); i++) {
        AWQ_ASSIGN(auto session, engine.new_session());
        feeds.push_back({.session = session.get(), .tokens = prompts[i], .best = &best[i]});
        if (i == 0) feeds[0].features = features;
        sessions.push_back(std::move(session));
    }
    std::vector<std::vector<int32_t>> answers(prompts.size());
    if (count <= 0) return answers;
    AWQ_TRY(engine.run(feeds));
    std::vector<Continuation> all;
    for (size_t i = 0; i < prompts.size(); i++) {
        AWQ_TRY(check_token(engine, best[i]));
        answers[i].push_back(best[i]);
        all.push_back({sessions[i].get(), best[i]});
    }
    AWQ_TRY(engine.decode(all, count - 1, [&](std::span<const int32_t> tokens) -> Result<bool> {
        for (size_t i = 0; i < tokens.size(); i++) answers[i].push_back(tokens[i]);
        return true;
    }));
    return answers;
}

}  // namespace awq
