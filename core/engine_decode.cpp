// Engine::decode: one token a step, steps chained on the backend (backend.h) so that it need not wait for the host.
//
// A chain under way is a Flight. Its own thread puts steps on their way and waits for tokens with run_mutex_ held, but not while
// the caller looks at a token: another thread, or the caller itself, may then want the backend. Whoever does lands the flight: what
// is under way is waited for, its tokens are kept, and the flight's thread takes those before it begins another.
#include <algorithm>
#include <deque>
#include "core/engine.h"

namespace awq {

struct Engine::Flight {
    std::unique_ptr<Chain> chain;               // null: landed
    int64_t under_way = 0, to_launch = 0;
    std::deque<std::vector<int32_t>> landed;    // tokens of steps that somebody has waited for
    Status status;                              // of the step after these
    // The batch of the first step: the chain reads it.
    std::vector<int32_t> tokens, positions, sequence, seq_begin{0}, rope_len, page_table, output_rows, image_rows;

    void wait(Chain& from) {
        std::vector<int32_t> chosen(tokens.size());
        status = from.wait(chosen.data());
        under_way--;
        if (status.ok()) landed.push_back(std::move(chosen));
    }
};

// With run_mutex_ held.
void Engine::land() {
    if (!flight_) return;
    Flight& flight = *std::exchange(flight_, nullptr);
    const std::unique_ptr<Chain> chain = std::move(flight.chain);
    while (flight.under_way > 0 && flight.status.ok()) flight.wait(*chain);
}

// A flight that is over when the object goes; what was under way is dropped.
class Engine::InFlight {
public:
    explicit InFlight(Engine& engine) : engine_(engine) {}
    ~InFlight() {
        std::lock_guard lock(engine_.run_mutex_);
        if (engine_.flight_ == &flight_) engine_.flight_ = nullptr;
        flight_.chain.reset();
    }
    InFlight(const InFlight&) = delete;

    Status begin(std::span<Continuation> all, int64_t steps, const std::atomic<bool>* cancel);
    // The tokens of the next step; none: all steps are done, or the backend was needed by others.
    Result<std::vector<int32_t>> next();

private:
    Engine& engine_;
    Flight flight_;
};

Status Engine::InFlight::begin(std::span<Continuation> all, int64_t steps, const std::atomic<bool>* cancel) {
    Flight& f = flight_;
    const auto count = static_cast<int32_t>(all.size());
    ChainArgs args;
    args.steps = static_cast<int32_t>(steps);
    args.run = engine_.run_args();
    args.run.cancel = cancel;
    args.run.size = {.tokens = count, .sequences = count, .outputs = count};
    for (const Continuation& each : all) args.run.size.max_pages = std::max(args.run.size.max_pages, static_cast<int32_t>(each.session->pages_.size()));
    std::vector<const Sampler*> samplers;
    for (int32_t s = 0; s < count; s++) {
        const Session& session = *all[s].session;
        f.tokens.push_back(all[s].token);
        f.positions.push_back(static_cast<int32_t>(session.length()));
        f.sequence.push_back(s);
        f.seq_begin.push_back(s + 1);
        f.rope_len.push_back(static_cast<int32_t>(session.length()) + 1);
        f.output_rows.push_back(s);
        f.image_rows.push_back(-1);
        f.page_table.insert(f.page_table.end(), session.pages_.begin(), session.pages_.end());
        f.page_table.resize(static_cast<size_t>(args.run.size.max_pages) * (s + 1), 0);
        samplers.push_back(all[s].sampler);
    }
    auto input = [&](Input kind, const std::vector<int32_t>& values) { args.run.inputs[static_cast<int>(kind)] = values.data(); };
    input(Input::tokens, f.tokens);
    input(Input::positions, f.positions);
    input(Input::sequence, f.sequence);
    input(Input::seq_begin, f.seq_begin);
    input(Input::rope_len, f.rope_len);
    input(Input::page_table, f.page_table);
    input(Input::output_rows, f.output_rows);
    input(Input::image_rows, f.image_rows);
    args.samplers = samplers;
    f.to_launch = steps;

    std::lock_guard lock(engine_.run_mutex_);
    engine_.land();
    AWQ_ASSIGN(f.chain, engine_.backend_->begin_chain(args));
    engine_.flight_ = &f;
    return {};
}

Result<std::vector<int32_t>> Engine::InFlight::next() {
    Flight& f = flight_;
    std::lock_guard lock(engine_.run_mutex_);
    if (f.chain) {
        for (; f.to_launch > 0 && f.under_way < f.chain->depth() && f.status.ok(); f.to_launch--, f.under_way++) f.status = f.chain->launch();
        if (f.landed.empty() && f.under_way > 0 && f.status.ok()) f.wait(*f.chain);
    }
    if (f.landed.empty()) {
        AWQ_TRY(f.status);
        return std::vector<int32_t>();
    }
    std::vector<int32_t> chosen = std::move(f.landed.front());
    f.landed.pop_front();
    return chosen;
}

// Steps for which every sequence has pages, the first of which is reserved. A sequence alone goes to the end of its last page:
// what another session may need is not taken early. Several seldom reach the ends of theirs together, and take what is free.
int64_t Engine::steps_ahead(std::span<Continuation> all, int64_t steps) const {
    steps = std::min<int64_t>(steps, page_size);
    for (Continuation& each : all) {
        Session& session = *each.session;
        const int64_t length = session.length();
        steps = std::min(steps, context_ - length);
        if (const RopeParams& rope = model_.config.rope; rope.kind == RopeParams::Kind::longrope && length < rope.original_length)
            steps = std::min(steps, rope.original_length - length);
        if (all.size() > 1) (void)session.reserve(length + steps);
        steps = std::min(steps, static_cast<int64_t>(session.pages_.size()) * page_size - length);
    }
    return steps;
}

// One step as a run: where a cache must be written anew, or with more sequences than a chain may have.
Status Engine::decode_alone(std::span<Continuation> all, const std::atomic<bool>* cancel) {
    std::vector<Feed> feeds;
    std::vector<std::vector<float>> logits(all.size());
    std::vector<int32_t> best(all.size());
    for (size_t i = 0; i < all.size(); i++)
        feeds.push_back({.session = all[i].session, .tokens = {&all[i].token, 1}, .logits = all[i].sampler ? &logits[i] : nullptr, .best = all[i].sampler ? nullptr : &best[i]});
    AWQ_TRY(run(feeds, cancel));
    for (size_t i = 0; i < all.size(); i++) {
        if (!all[i].sampler) {
            all[i].token = best[i] < vocab_size() ? best[i] : -1;
            continue;
        }
        Result<int32_t> chosen = all[i].sampler->next(logits[i]);
        all[i].token = chosen.ok() ? *chosen : -1;
    }
    return {};
}

Status Engine::decode(std::span<Continuation> all, int64_t steps, const Take& take, const std::atomic<bool>* cancel) {
    bool go_on = true;
    auto taken = [&](std::span<const int32_t> tokens) -> Status {
        steps--;
        AWQ_ASSIGN(go_on, take(tokens));
        for (size_t i = 0; go_on && i < all.size(); i++)
            if (tokens[i] < 0)
                return Status(Code::non_finite, std::string("the model's logits ") + (all[i].sampler ? "hold NaN or infinity" : "are NaN") +
                                                    "; --check-finite names the layer where it began");
        return {};
    };
    auto some_steps = [&]() -> Status {
        bool alone = all.size() > chunk_outputs;
        for (Continuation& each : all) {
            AWQ_TRY(each.session->reserve(each.session->length() + 1));
            alone = alone || rope_is_stale(*each.session, each.session->length() + 1);
        }
        if (alone) {
            std::vector<int32_t> chosen;
            AWQ_TRY(decode_alone(all, cancel));
            for (const Continuation& each : all) chosen.push_back(each.token);
            return taken(chosen);
        }
        InFlight flight(*this);
        AWQ_TRY(flight.begin(all, steps_ahead(all, steps), cancel));
        while (go_on) {
            AWQ_ASSIGN(std::vector<int32_t> chosen, flight.next());
            if (chosen.empty()) break;
            for (size_t i = 0; i < all.size(); i++) {
                Continuation& each = all[i];
                each.session->tokens_.push_back(each.token);
                each.session->rope_length_ = each.session->length();
                each.token = chosen[i];
                if (each.sampler && each.token >= 0) each.sampler->accept(each.token);
            }
            AWQ_TRY(taken(chosen));
        }
        return {};
    };
    Status status;
    while (go_on && steps > 0 && status.ok()) {
        status = some_steps();
        for (Continuation& each : all) each.session->truncate(each.session->length());    // pages taken ahead go back
    }
    return status;
}

}  // namespace awq
