#include "core/text/sampler.h"
#include <algorithm>
#include <cmath>

namespace awq {

Status check_sampling(const SamplingOptions& o) {
    auto bad = [](const char* name, double value, const char* expected) {
        std::string text;
        append_json_number(text, value);
        return Status(Code::invalid_argument, std::string(name) + ": " + (std::isfinite(value) ? text : "not finite") + "; expected " + expected);
    };
    if (!(o.temperature >= 0 && o.temperature <= 100)) return bad("temperature", o.temperature, "0 to 100");
    if (o.top_k < 0) return bad("top_k", o.top_k, "0 (off) or more");
    if (!(o.top_p >= 0 && o.top_p <= 1)) return bad("top_p", o.top_p, "0 to 1");
    if (!(o.min_p >= 0 && o.min_p <= 1)) return bad("min_p", o.min_p, "0 to 1");
    if (!(o.repeat_penalty > 0 && o.repeat_penalty <= 100)) return bad("repetition_penalty", o.repeat_penalty, "more than 0, at most 100");
    if (!(std::fabs(o.presence_penalty) <= 100)) return bad("presence_penalty", o.presence_penalty, "-100 to 100");
    if (!(std::fabs(o.frequency_penalty) <= 100)) return bad("frequency_penalty", o.frequency_penalty, "-100 to 100");
    return {};
}

Result<GenerationDefaults> read_generation_config(const Json& json, const Json& config) {
    GenerationDefaults defaults;
    auto bad = [](const char* file, const char* key, const Json& found, const char* expected) {
        return Status(Code::bad_file, std::string(file) + ": " + key + ": found " + quote(dump_json(found)) + "; expected " + expected);
    };
    auto eos = [&](const Json& from, const char* file) -> Status {
        const Json* value = from.find("eos_token_id");
        if (!value || value->is_null()) return {};
        auto add = [&](const Json& id) -> Status {
            if (!id.is_integer() || id.integer() < 0 || id.integer() > INT32_MAX) return bad(file, "eos_token_id", *value, "token ids");
            defaults.eos_ids.push_back(static_cast<int32_t>(id.integer()));
            return {};
        };
        if (!value->is_array()) return add(*value);
        for (const Json& id : value->items()) AWQ_TRY(add(id));
        return {};
    };
    AWQ_TRY(eos(json, "generation_config.json"));
    if (defaults.eos_ids.empty()) AWQ_TRY(eos(config, "config.json"));

    SamplingOptions& o = defaults.sampling;
    const char* file = "generation_config.json";
    auto number = [&](const char* key, float& into) -> Status {
        const Json* value = json.find(key);
        if (!value || value->is_null()) return {};
        if (!value->is_number()) return bad(file, key, *value, "a number");
        into = static_cast<float>(value->real());
        return {};
    };
    if (const Json* value = json.find("do_sample"); value && !value->is_null()) {
        if (!value->is_bool()) return bad(file, "do_sample", *value, "true or false");
        o.sample = value->boolean();
    }
    if (const Json* value = json.find("top_k"); value && !value->is_null()) {
        if (!value->is_integer() || value->integer() < 0 || value->integer() > INT32_MAX) return bad(file, "top_k", *value, "an integer of 0 or more");
        o.top_k = static_cast<int>(value->integer());
    }
    AWQ_TRY(number("temperature", o.temperature));
    AWQ_TRY(number("top_p", o.top_p));
    AWQ_TRY(number("min_p", o.min_p));
    AWQ_TRY(number("repetition_penalty", o.repeat_penalty));
    AWQ_TRY(check_sampling(o).in(file));
    return defaults;
}

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
