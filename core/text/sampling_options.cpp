// Sampling options: their ranges, and what a directory's generation_config.json says of them.
#include <cmath>
#include "core/text/sampler.h"

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

}  // namespace awq
