#include "core/evaluate.h"
#include <charconv>
#include <cmath>
#include "core/generate.h"
#include "core/text/detokenizer.h"

namespace awq {
namespace {

constexpr size_t request_limit = size_t{32} << 20;

Status bad_field(const std::string& key, const Json* found, const char* expected) {
    return Status(Code::invalid_argument, key + ": found " + (found ? quote(dump_json(*found)) : "nothing") + "; expected " + expected);
}

Result<std::vector<int32_t>> read_ids(const Json& list, const std::string& key) {
    if (!list.is_array()) return bad_field(key, &list, "a list of token ids");
    std::vector<int32_t> ids;
    for (const Json& id : list.items()) {
        if (!id.is_integer() || id.type() == Json::Type::unsigned_integer || id.integer() < INT32_MIN || id.integer() > INT32_MAX)
            return bad_field(key, &id, "a token id");
        ids.push_back(static_cast<int32_t>(id.integer()));
    }
    return ids;
}

Result<std::vector<int32_t>> read_ids(const Json& request, const char* key) {
    const Json* list = request.find(key);
    if (!list) return bad_field(key, nullptr, "a list of token ids");
    return read_ids(*list, std::string(key));
}

Result<bool> read_bool(const Json& request, const char* key, bool fallback) {
    const Json* value = request.find(key);
    if (!value || value->is_null()) return fallback;
    if (!value->is_bool()) return bad_field(key, value, "true or false");
    return value->boolean();
}

Result<int64_t> read_count(const Json& request, const char* key, int64_t fallback, int64_t low, int64_t high) {
    const Json* value = request.find(key);
    if (!value || value->is_null()) return fallback;
    if (value->type() != Json::Type::integer || value->integer() < low || value->integer() > high)
        return bad_field(key, value, ("an integer from " + std::to_string(low) + " to " + std::to_string(high)).c_str());
    return value->integer();
}

Result<std::string> read_string(const Json& request, const char* key) {
    const Json* value = request.find(key);
    if (!value || !value->is_string()) return bad_field(key, value, "a string");
    return value->string();
}

std::string ids_text(std::span<const int32_t> ids) {
    std::string out = "[";
    for (size_t i = 0; i < ids.size(); i++) out += (i ? ", " : "") + std::to_string(ids[i]);
    return out + "]";
}

void append_floats(std::string& out, std::span<const float> values) {
    char digits[32];
    out += '[';
    for (size_t i = 0; i < values.size(); i++) {
        if (i) out += ", ";
        if (std::isfinite(values[i])) out.append(digits, std::to_chars(digits, digits + sizeof digits, values[i]).ptr);
        else out += "null";
    }
    out += ']';
}

// Numbers of a nested list in order; recursion is bounded by the request's depth.
Status flatten(const Json& value, std::vector<float>& out) {
    if (value.is_number()) {
        out.push_back(static_cast<float>(value.real()));
        return {};
    }
    if (!value.is_array()) return bad_field("pixel_values", &value, "a nested list of numbers");
    for (const Json& item : value.items()) AWQ_TRY(flatten(item, out));
    return {};
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const std::string& directory) {
    std::string path = directory + "/tokenizer.json";
    if (!entry_exists(path))
        return Status(Code::not_found, path + ": is not there; expected the tokenizer of Hugging Face's fast tokenizers (a model with only "
                                              "tokenizer.model must be converted with transformers first)");
    return Tokenizer::load(path);
}

Result<std::unique_ptr<Evaluator>> Evaluator::open(const EngineOptions& options, const std::string& stage) {
    static const struct {
        const char* name;
        Stage run;
        bool tokenizer, engine;
    } stages[] = {{"tokenize", &Evaluator::tokenize, true, false},     {"detokenize", &Evaluator::detokenize, true, false},
                  {"render", &Evaluator::render, false, false},        {"logits", &Evaluator::logits, false, true},
                  {"generate", &Evaluator::generate, false, true},     {"perplexity", &Evaluator::perplexity, false, true}};
    for (const auto& row : stages) {
        if (stage != row.name) continue;
        auto evaluator = std::make_unique<Evaluator>();
        evaluator->stage_ = row.run;
        AWQ_ASSIGN(evaluator->directory_, resolve_model_directory(options.model));
        if (row.tokenizer) {
            AWQ_ASSIGN(evaluator->tokenizer_, load_tokenizer(evaluator->directory_));
        }
        if (row.engine) {
            AWQ_ASSIGN(evaluator->engine_, Engine::load(options));
        }
        return evaluator;
    }
    return Status(Code::invalid_argument, "stage: \"" + quote(stage) + "\"; expected tokenize, detokenize, render, logits, generate or perplexity");
}

std::string Evaluator::run(std::string_view text) const {
    auto answer = [&]() -> Result<std::string> {
        if (text.size() > request_limit)
            return Status(Code::invalid_argument, "the request has more than " + std::to_string(request_limit) + " bytes");
        AWQ_ASSIGN(Json request, parse_json(text, json_request_depth));
        if (!request.is_object()) return Status(Code::invalid_argument, std::string("the request is ") + request.type_name() + "; expected an object");
        return (this->*stage_)(request);
    }();
    if (answer.ok()) return *answer;
    std::string out = "{\"error\": ";
    append_json_string(out, answer.status().message());
    return out + "}";
}

Result<std::string> Evaluator::tokenize(const Json& request) const {
    AWQ_ASSIGN(std::string text, read_string(request, "text"));
    AWQ_ASSIGN(bool special, read_bool(request, "add_special_tokens", true));
    auto ids = tokenizer_->encode(text, special);
    if (!ids.ok()) return ids.status().in("text");
    return "{\"ids\": " + ids_text(*ids) + "}";
}

Result<std::string> Evaluator::detokenize(const Json& request) const {
    AWQ_ASSIGN(auto ids, read_ids(request, "ids"));
    AWQ_ASSIGN(bool skip, read_bool(request, "skip_special_tokens", false));
    AWQ_ASSIGN(bool stream, read_bool(request, "stream", false));
    std::string out;
    if (!stream) {
        AWQ_ASSIGN(std::string text, tokenizer_->decode(ids, skip));
        out = "{\"text\": ";
        append_json_string(out, text);
        return out + "}";
    }
    Detokenizer detokenizer(tokenizer_, skip);
    out = "{\"pieces\": [";
    for (int32_t id : ids) {
        AWQ_ASSIGN(std::string piece, detokenizer.push(id));
        append_json_string(out, piece);
        out += ", ";
    }
    AWQ_ASSIGN(std::string rest, detokenizer.flush());
    append_json_string(out, rest);
    return out + "]}";
}

Result<std::string> Evaluator::render(const Json& request) const {
    AWQ_ASSIGN(RenderRequest wanted, render_request_from_json(request));
    if (!templates_) {
        AWQ_ASSIGN(ChatTemplates templates, ChatTemplates::load(directory_));
        templates_ = std::make_unique<ChatTemplates>(std::move(templates));
    }
    AWQ_ASSIGN(std::string text, templates_->render(wanted));
    std::string out = "{\"text\": ";
    append_json_string(out, text);
    return out + "}";
}

Result<std::vector<float>> Evaluator::features(const Json& request) const {
    std::vector<float> features;
    const Json* pixels = request.find("pixel_values");
    if (!pixels || pixels->is_null()) return features;
    std::vector<float> values;
    AWQ_TRY(flatten(*pixels, values));
    if (!engine_->has_vision()) return Status(Code::unsupported, "pixel_values: this model takes no images");
    const size_t side = static_cast<size_t>(engine_->config().vision.image_size), image = 3 * side * side;
    if (values.empty() || values.size() % image != 0)
        return Status(Code::invalid_argument, "pixel_values: " + std::to_string(values.size()) + " numbers; expected a multiple of 3 x " +
                                                  std::to_string(side) + " x " + std::to_string(side));
    for (size_t at = 0; at < values.size(); at += image) {
        AWQ_ASSIGN(auto one, engine_->image_features(std::span(values).subspan(at, image)));
        features.insert(features.end(), one.begin(), one.end());
    }
    return features;
}

Result<std::string> Evaluator::logits(const Json& request) const {
    AWQ_ASSIGN(auto ids, read_ids(request, "ids"));
    AWQ_ASSIGN(bool all, read_bool(request, "all", false));
    AWQ_ASSIGN(auto image, features(request));
    AWQ_ASSIGN(auto session, engine_->new_session());
    std::vector<float> rows;
    Feed feed{session.get(), ids, all ? Feed::Logits::all : Feed::Logits::last, &rows, image};
    AWQ_TRY(engine_->run({&feed, 1}));
    std::string out = "{\"logits\": [";
    const size_t vocab = static_cast<size_t>(engine_->vocab_size());
    for (size_t at = 0; at < rows.size(); at += vocab) {
        if (at) out += ", ";
        append_floats(out, std::span(rows).subspan(at, vocab));
    }
    return out + "]}";
}

Result<std::string> Evaluator::generate(const Json& request) const {
    AWQ_ASSIGN(int64_t count, read_count(request, "n", 16, 0, INT32_MAX));
    AWQ_ASSIGN(auto image, features(request));
    std::vector<std::vector<int32_t>> prompts;
    const Json* batch = request.find("batch");
    if (batch) {
        if (!batch->is_array() || batch->items().empty()) return bad_field("batch", batch, "a list of lists of token ids");
        for (const Json& ids : batch->items()) {
            AWQ_ASSIGN(auto prompt, read_ids(ids, std::string("batch")));
            prompts.push_back(std::move(prompt));
        }
    } else {
        AWQ_ASSIGN(auto prompt, read_ids(request, "ids"));
        prompts.push_back(std::move(prompt));
    }
    AWQ_ASSIGN(auto answers, generate_batch(*engine_, prompts, count, image));
    if (!batch) return "{\"ids\": " + ids_text(answers[0]) + "}";
    std::string out = "{\"batch\": [";
    for (size_t i = 0; i < answers.size(); i++) out += (i ? ", " : "") + ids_text(answers[i]);
    return out + "]}";
}

Result<std::string> Evaluator::perplexity(const Json& request) const {
    std::vector<int32_t> ids;
    if (request.has("text_file")) {
        AWQ_ASSIGN(std::string path, read_string(request, "text_file"));
        if (path.empty()) return bad_field("text_file", request.find("text_file"), "the path of a text");
        auto text = read_file(path, size_t{256} << 20);
        if (!text.ok()) return text.status().in("text_file");
        AWQ_ASSIGN(auto tokenizer, load_tokenizer(directory_));
        auto encoded = tokenizer->encode(*text, false);
        if (!encoded.ok()) return encoded.status().in("text_file");
        ids = std::move(*encoded);
    } else {
        AWQ_ASSIGN(ids, read_ids(request, "ids"));
    }
    AWQ_ASSIGN(int64_t ctx, read_count(request, "ctx", 512, 2, engine_->context()));
    int64_t available = static_cast<int64_t>(ids.size()) / ctx;
    AWQ_ASSIGN(int64_t windows, read_count(request, "windows", available, 1, INT32_MAX));
    windows = std::min(windows, available);
    if (windows < 1)
        return Status(Code::invalid_argument, std::string(request.has("text_file") ? "text_file" : "ids") + ": " + std::to_string(ids.size()) + " tokens; expected at least one window of " + std::to_string(ctx));
    double loss = 0;
    const size_t vocab = static_cast<size_t>(engine_->vocab_size());
    AWQ_ASSIGN(auto session, engine_->new_session());
    for (int64_t w = 0; w < windows; w++) {
        session->truncate(0);
        std::vector<float> rows;
        auto window = std::span(ids).subspan(static_cast<size_t>(w * ctx), static_cast<size_t>(ctx));
        Feed feed{session.get(), window, Feed::Logits::all, &rows, {}};
        AWQ_TRY(engine_->run({&feed, 1}));
        for (size_t t = 0; t + 1 < window.size(); t++) {
            const float* row = rows.data() + t * vocab;
            float top = *std::max_element(row, row + vocab);
            double sum = 0;
            for (size_t i = 0; i < vocab; i++) sum += std::exp(static_cast<double>(row[i] - top));
            loss += std::log(sum) + top - row[window[t + 1]];
        }
    }
    int64_t scored = windows * (ctx - 1);
    if (!std::isfinite(loss)) return Status(Code::non_finite, "the model's logits hold NaN or infinity");
    std::string out = "{\"ppl\": ";
    append_json_number(out, std::exp(loss / static_cast<double>(scored)));
    return out + ", \"tokens\": " + std::to_string(scored) + "}";
}

}  // namespace awq
