// Chains of backends that choose nothing themselves: every step is a run, every token the host's Sampler's.
#include <algorithm>
#include "backends/backend.h"
#include "core/text/sampler.h"

namespace awq {
namespace {

class HostChain : public Chain {
public:
    HostChain(Backend& backend, const ChainArgs& args, int32_t depth) : backend_(backend), run_(args.run), depth_(depth), left_(args.steps) {
        for (const Sampler* sampler : args.samplers) samplers_.push_back(sampler ? std::make_unique<Sampler>(*sampler) : nullptr);
        const auto count = static_cast<size_t>(run_.size.sequences);
        auto own = [&](Input input, std::vector<int32_t>& copy) {
            const void*& data = run_.inputs[static_cast<int>(input)];
            copy.assign(static_cast<const int32_t*>(data), static_cast<const int32_t*>(data) + count);
            data = copy.data();
        };
        own(Input::tokens, tokens_);
        own(Input::positions, positions_);
        own(Input::rope_len, rope_len_);
    }
    int32_t depth() const override { return depth_; }

    Status launch() override {
        if (left_-- <= 0) return Status(Code::internal, "a chain has no steps left");
        return {};
    }

    Status wait(int32_t* tokens) override {
        const size_t count = tokens_.size(), vocab = static_cast<size_t>(run_.graph->nodes[run_.graph->output].cols);
        bool likeliest = false, sampled = false;
        for (const auto& sampler : samplers_) (sampler ? sampled : likeliest) = true;
        logits_.resize(sampled ? count * vocab : 0);
        run_.result = sampled ? logits_.data() : nullptr;
        run_.argmax = likeliest ? tokens : nullptr;
        AWQ_TRY(backend_.run(run_));
        for (size_t i = 0; i < count; i++) {
            if (samplers_[i]) {
                Result<int32_t> chosen = samplers_[i]->next(std::span(logits_).subspan(i * vocab, vocab));
                tokens[i] = chosen.ok() ? *chosen : -1;
            }
            if (tokens[i] < 0 || static_cast<size_t>(tokens[i]) >= vocab) tokens[i] = -1;
            tokens_[i] = std::max(tokens[i], 0);
            positions_[i]++;
            rope_len_[i]++;
        }
        return {};
    }

private:
    Backend& backend_;
    RunArgs run_;
    int32_t depth_, left_;
    std::vector<std::unique_ptr<Sampler>> samplers_;    // null: the likeliest
    std::vector<int32_t> tokens_, positions_, rope_len_;
    std::vector<float> logits_;
};

}  // namespace

std::unique_ptr<Chain> host_chain(Backend& backend, const ChainArgs& args, int32_t depth) {
    return std::make_unique<HostChain>(backend, args, depth);
}

Result<std::unique_ptr<Chain>> Backend::begin_chain(const ChainArgs& args) { return host_chain(*this, args, 1); }

}  // namespace awq
