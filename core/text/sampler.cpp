#include "core/text/sampler.h"
#include <algorithm>
#include <cmath>

namespace awq {

void Sampler::prompt(std::span<const int32_t> ids) {
    for (int32_t id : ids) seen_.emplace(id, 0);
}

void Sampler::accept(int32_t token) {
    if (draws()) uniform();
    seen_[token]++;
}

// splitmix64
double Sampler::uniform() {
    uint64_t z = random_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

Result<int32_t> Sampler::next(std::span<float> logits) {
    const SamplingOptions& o = options_;
    if (penalizes())
        for (auto [id, count] : seen_) {
            if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
            float& logit = logits[static_cast<size_t>(id)];
            logit = logit > 0 ? logit / o.repeat_penalty : logit * o.repeat_penalty;
            if (count > 0) logit -= o.presence_penalty + o.frequency_penalty * static_cast<float>(count);
        }
    int32_t best = 0;
    bool finite = true;
    for (size_t i = 0; i < logits.size(); i++) {
        finite = finite && std::isfinite(logits[i]);
        if (logits[i] > logits[static_cast<size_t>(best)]) best = static_cast<int32_t>(i);
    }
    if (!finite) return Status(Code::non_finite, "the model's logits hold NaN or infinity; --check-finite names the layer where it began");
    int32_t chosen = best;
    if (draws()) {
        auto order = [](const auto& a, const auto& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); };
        // Only logits near the best can be drawn: exp(-60) is below what a double's sum would notice.
        float floor = logits[static_cast<size_t>(best)] - 60 * o.temperature;
        candidates_.clear();
        for (size_t i = 0; i < logits.size(); i++)
            if (logits[i] >= floor) candidates_.emplace_back(logits[i], static_cast<int32_t>(i));
        if (o.top_k > 0 && candidates_.size() > static_cast<size_t>(o.top_k)) {
            std::nth_element(candidates_.begin(), candidates_.begin() + o.top_k - 1, candidates_.end(), order);
            candidates_.resize(static_cast<size_t>(o.top_k));
        }
        std::sort(candidates_.begin(), candidates_.end(), order);
        std::vector<double> weights;
        double sum = 0;
        for (auto& [logit, id] : candidates_) {
            weights.push_back(std::exp((static_cast<double>(logit) - candidates_[0].first) / o.temperature));
            sum += weights.back();
        }
        size_t keep = weights.size();
        if (o.top_p < 1) {    // the smallest set of the likeliest tokens that holds top_p of the probability
            double held = 0;
            for (keep = 0; keep < weights.size() && (keep == 0 || held < o.top_p * sum);) held += weights[keep++];
        }
        while (keep > 1 && weights[keep - 1] < o.min_p) keep--;    // weights[0] is 1
        double total = 0;
        for (size_t i = 0; i < keep; i++) total += weights[i];
        double at = uniform() * total;
        size_t pick = 0;
        while (pick + 1 < keep && at >= weights[pick]) at -= weights[pick++];
        chosen = candidates_[pick].second;
    }
    seen_[chosen]++;
    return chosen;
}

}  // namespace awq
