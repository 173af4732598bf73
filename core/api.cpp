// The C API: checks arguments, calls the library, turns statuses into codes and messages. Nothing else lives here. No
// exception leaves: the only ones there can be are the standard library's for want of memory.
#include <algorithm>
#include <cstring>
#include <new>
#include "core/awq.h"
#include "core/bench.h"
#include "core/chat_prompt.h"
#include "core/checkpoint/gguf_import.h"
#include "core/evaluate.h"
#include "core/generate.h"
#include "core/image.h"
#include "core/verify.h"

using namespace awq;

struct awq_engine {
    std::shared_ptr<Engine> engine;
    std::shared_ptr<const Tokenizer> tokenizer;
    Status tokenizer_status;    // why there is none: a model can be run on ids alone
    std::vector<std::string> warnings;    // of the tokenizer; the plan has its own
    ChatTemplates templates;
    Result<ImageProcessor> images = Status(Code::unsupported, "this model takes no images");
    ImageTokens image_tokens() const {
        if (!engine->has_vision()) return {};
        return {engine->config().vision.image_token, engine->config().rows_per_image()};
    }
};

// An image that a session has seen: not computed again, and its rows in the cache are kept.
struct SeenImage {
    std::vector<float> pixels, features;
};

struct awq_session {
    awq_engine* engine = nullptr;
    std::unique_ptr<Session> session;
    std::vector<SeenImage> images;    // of the last prompt, in order
    std::atomic<bool> cancel{false};
};

struct awq_evaluator {
    std::unique_ptr<Evaluator> evaluator;
};

namespace {

thread_local std::string last_error;

awq_status report(const Status& status) {
    if (!status.ok()) last_error = status.message();
    return static_cast<awq_status>(status.code());
}

// Runs a function that returns a Status, exceptions of the standard library included.
template <class F>
awq_status guard(F body) noexcept {
    try {
        try {
            return report(body());
        } catch (const std::bad_alloc&) {
            return report(Status(Code::out_of_memory, "out of memory"));
        } catch (const std::exception& error) {
            return report(Status(Code::internal, std::string("unexpected: ") + error.what()));
        }
    } catch (...) {    // no memory for the message either
        return AWQ_OUT_OF_MEMORY;
    }
}

Status missing(const char* what) { return Status(Code::invalid_argument, std::string(what) + ": is null"); }

Status give(const std::string& text, char** out) {
    *out = static_cast<char*>(std::malloc(text.size() + 1));
    if (!*out) return Status(Code::out_of_memory, "out of memory");
    std::memcpy(*out, text.c_str(), text.size() + 1);
    return {};
}

// The library's progress by a done and a total count, as the caller's by fraction.
std::function<bool(uint64_t, uint64_t)> counted(awq_progress progress, const char* what, void* user) {
    if (!progress) return nullptr;
    return [=](uint64_t done, uint64_t total) { return progress(total ? static_cast<double>(done) / static_cast<double>(total) : 1, what, user); };
}

Result<EngineOptions> engine_options(const awq_options& o) {
    EngineOptions options;
    options.model = o.model ? o.model : "";
    options.backend = o.backend && *o.backend ? o.backend : "auto";
    options.backend_options.device = o.device;
    options.backend_options.threads = o.threads;
    if (o.threads < 0 || o.threads > 1024) return Status(Code::invalid_argument, "threads: " + std::to_string(o.threads) + "; expected 0 to 1024");
    if (o.device < 0) return Status(Code::invalid_argument, "device: " + std::to_string(o.device) + "; expected 0 or more");
    if (o.context < 0 || o.context > INT32_MAX) return Status(Code::invalid_argument, "context: " + std::to_string(o.context) + "; expected 0 to 2147483647");
    if (o.cache_tokens < 0) return Status(Code::invalid_argument, "cache_tokens: " + std::to_string(o.cache_tokens) + "; expected 0 or more");
    if (o.skip_rule != 4 && o.skip_rule != 5) return Status(Code::invalid_argument, "skip_rule: " + std::to_string(o.skip_rule) + "; expected 4 or 5");
    options.context = o.context;
    options.cache_tokens = o.cache_tokens;
    if (o.memory < 0) return Status(Code::invalid_argument, "memory: " + std::to_string(o.memory) + "; expected 0 or more");
    options.memory = static_cast<size_t>(o.memory);
    if (o.head_bits != 8 && o.head_bits != 16) return Status(Code::invalid_argument, "head_bits: " + std::to_string(o.head_bits) + "; expected 8 or 16");
    options.plan.head_bits = o.head_bits;
    options.plan.skip_rule = o.skip_rule;
    options.plan.fuse = !o.no_fuse;
    options.check_finite = o.check_finite;
    if (o.awq_config && *o.awq_config) {
        AWQ_ASSIGN(Json json, parse_json(o.awq_config, json_request_depth));
        AWQ_ASSIGN(options.plan.awq, read_awq_overrides(json));
    }
    options.progress = counted(o.progress, "loading weights", o.user);
    return options;
}

SamplingOptions sampling_options(const awq_sampling& s) {
    SamplingOptions o;
    o.sample = s.sample;
    o.temperature = s.temperature;
    o.top_k = s.top_k;
    o.top_p = s.top_p;
    o.min_p = s.min_p;
    o.repeat_penalty = s.repeat_penalty;
    o.presence_penalty = s.presence_penalty;
    o.frequency_penalty = s.frequency_penalty;
    o.seed = s.seed;
    return o;
}

// Everything between a prompt in ids and the stats: what chat, complete and generate share.
Status answer(awq_session* session, std::vector<int32_t> prompt, const awq_generation* given, awq_on_text on_text, void* user, awq_stats* stats) {
    Engine& engine = *session->engine->engine;
    awq_generation generation = given ? *given : awq_default_generation(session->engine);
    GenerateRequest request;
    request.prompt = std::move(prompt);
    request.sampling = sampling_options(generation.sampling);
    request.max_tokens = generation.max_tokens;
    if (!generation.ignore_eos) request.eos_ids = session->engine->engine->generation_defaults().eos_ids;
    if (generation.stop_count > 0 && !generation.stop) return missing("stop");
    for (size_t i = 0; i < generation.stop_count; i++) {
        if (!generation.stop[i]) return missing("stop");
        request.stop.emplace_back(generation.stop[i]);
    }
    if (generation.image_count > 0 && !generation.pixels) return missing("pixels");
    if (generation.image_count > 0) AWQ_TRY(expand_images(request.prompt, session->engine->image_tokens(), generation.image_count));
    const size_t side = static_cast<size_t>(engine.config().vision.image_size), size = 3 * side * side;
    std::vector<SeenImage> images;
    for (size_t i = 0; i < generation.image_count; i++) {
        const auto pixels = std::span(generation.pixels + i * size, size);
        const bool seen = i < session->images.size() && std::ranges::equal(session->images[i].pixels, pixels);
        if (seen && request.known_images == i) request.known_images++;
        if (seen) {
            images.push_back(session->images[i]);
        } else {
            AWQ_ASSIGN(auto features, engine.image_features(pixels));
            images.push_back({{pixels.begin(), pixels.end()}, std::move(features)});
        }
        request.features.insert(request.features.end(), images.back().features.begin(), images.back().features.end());
    }
    session->images = std::move(images);
    if (on_text) request.on_text = [&](std::string_view text, int32_t token) { return on_text(text.data(), text.size(), token, user); };
    request.cancel = &session->cancel;
    auto result = generate(*session->session, session->engine->tokenizer, request);
    session->cancel.store(false);
    if (!result.ok()) return result.status();
    if (stats)
        *stats = {result->prompt_tokens,  result->cached_tokens,    result->new_tokens,
                  result->prompt_seconds, result->generate_seconds, static_cast<awq_finish>(result->finish)};
    return {};
}

}  // namespace

extern "C" {

const char* awq_last_error(void) { return last_error.c_str(); }
const char* awq_version(void) { return AWQ_VERSION; }
void awq_free(char* text) { std::free(text); }

awq_options awq_default_options(void) {
    awq_options options = {};
    options.backend = "auto";
    options.skip_rule = 4;
    options.head_bits = 16;
    return options;
}

awq_status awq_engine_load(const awq_options* options, awq_engine** out) {
    return guard([&]() -> Status {
        if (!options || !options->model) return missing("options.model");
        if (!out) return missing("engine");
        *out = nullptr;
        AWQ_ASSIGN(EngineOptions engine_opts, engine_options(*options));
        auto engine = std::make_unique<awq_engine>();
        // The small files first: a broken template should not wait for gigabytes of weights.
        AWQ_ASSIGN(std::string directory, resolve_model_directory(engine_opts.model));
        auto tokenizer = load_tokenizer(directory);
        if (tokenizer.ok()) engine->tokenizer = *tokenizer;
        else if (tokenizer.status().code() == Code::not_found) engine->tokenizer_status = tokenizer.status();
        else return tokenizer.status();
        AWQ_ASSIGN(engine->templates, ChatTemplates::load(directory));
        AWQ_ASSIGN(engine->engine, Engine::load(engine_opts));
        if (engine->tokenizer) {
            const int64_t rows = engine->engine->vocab_size();
            const Tokenizer::Beyond beyond = engine->tokenizer->beyond(rows);
            const std::string expected = "expected ids below " + std::to_string(rows) + ", the rows of the embedding";
            if (beyond.own)
                return Status(Code::bad_file, quote(directory, 300) + "/tokenizer.json: model.vocab: \"" + quote(engine->tokenizer->id_to_token(*beyond.own)) + "\" has the id " +
                                                  std::to_string(*beyond.own) + "; " + expected);
            if (beyond.added)
                engine->warnings.push_back("tokenizer.json: added_tokens: \"" + quote(engine->tokenizer->id_to_token(*beyond.added)) + "\" has the id " +
                                           std::to_string(*beyond.added) + "; " + expected + ": the model cannot be given it");
        }
        if (engine->engine->has_vision()) engine->images = load_image_processor(directory, engine->engine->config().vision.image_size);
        *out = engine.release();
        return {};
    });
}

void awq_engine_free(awq_engine* engine) { delete engine; }

awq_status awq_engine_info(const awq_engine* engine, char** json) {
    return guard([&]() -> Status {
        if (!engine) return missing("engine");
        if (!json) return missing("json");
        const Engine& e = *engine->engine;
        Json info = Json::object();
        info.set("model_type", e.config().model_type);
        info.set("backend", e.backend().name());
        info.set("device", e.backend().device().name);
        info.set("context", e.context());
        info.set("vocab_size", e.vocab_size());
        info.set("weight_bytes", static_cast<int64_t>(e.weight_bytes()));
        info.set("activation_bytes", static_cast<int64_t>(e.activation_bytes()));
        info.set("cache_bytes", static_cast<int64_t>(e.cache_bytes()));
        info.set("has_tokenizer", engine->tokenizer != nullptr);
        info.set("has_chat_template", !engine->templates.empty());
        info.set("has_vision", e.has_vision());
        info.set("image_size", e.has_vision() ? e.config().vision.image_size : 0);
        info.set("image_tokens", e.has_vision() ? e.config().rows_per_image() : int64_t{0});
        info.set("image_token_id", e.has_vision() ? e.config().vision.image_token : -1);
        Json warnings = Json::array();
        for (const std::string& warning : e.plan().warnings) warnings.push(warning);
        for (const std::string& warning : engine->warnings) warnings.push(warning);
        info.set("warnings", std::move(warnings));
        return give(dump_json(info), json);
    });
}

awq_status awq_tokenize(const awq_engine* engine, const char* text, size_t length, bool add_special_tokens, int32_t* ids, size_t capacity,
                        size_t* count) {
    return guard([&]() -> Status {
        if (!engine) return missing("engine");
        if ((!text && length) || !count || (!ids && capacity)) return missing("text, ids or count");
        if (!engine->tokenizer) return engine->tokenizer_status;
        AWQ_ASSIGN(auto encoded, engine->tokenizer->encode({text, length}, add_special_tokens));
        *count = encoded.size();
        if (ids) std::copy_n(encoded.begin(), std::min(capacity, encoded.size()), ids);
        return {};
    });
}

awq_status awq_detokenize(const awq_engine* engine, const int32_t* ids, size_t count, bool skip_special_tokens, char** text) {
    return guard([&]() -> Status {
        if (!engine) return missing("engine");
        if ((!ids && count) || !text) return missing("ids or text");
        if (!engine->tokenizer) return engine->tokenizer_status;
        AWQ_ASSIGN(std::string decoded, engine->tokenizer->decode({ids, count}, skip_special_tokens));
        return give(decoded, text);
    });
}

awq_status awq_render(const awq_engine* engine, const char* request, char** text) {
    return guard([&]() -> Status {
        if (!engine) return missing("engine");
        if (!request || !text) return missing("request or text");
        AWQ_ASSIGN(Json json, parse_json(request, json_request_depth));
        AWQ_ASSIGN(RenderRequest wanted, render_request_from_json(json));
        AWQ_ASSIGN(std::string rendered, engine->templates.render(wanted));
        return give(rendered, text);
    });
}

awq_status awq_image_pixels(const awq_engine* engine, const void* file, size_t size, float* pixels, size_t capacity) {
    return guard([&]() -> Status {
        if (!engine) return missing("engine");
        if (!file || !pixels) return missing("file or pixels");
        if (!engine->images.ok()) return engine->images.status();
        const int64_t side = engine->engine->config().vision.image_size;
        if (capacity < static_cast<size_t>(3 * side * side))
            return Status(Code::invalid_argument, "capacity: " + std::to_string(capacity) + "; expected " + std::to_string(3 * side * side));
        AWQ_ASSIGN(Picture picture, decode_picture({static_cast<const uint8_t*>(file), size}));
        AWQ_ASSIGN(auto values, picture_pixels(picture, *engine->images, side));
        std::ranges::copy(values, pixels);
        return {};
    });
}

awq_generation awq_default_generation(const awq_engine* engine) {
    awq_generation generation = {};
    SamplingOptions o = engine ? engine->engine->generation_defaults().sampling : SamplingOptions();
    generation.sampling = {o.sample,         o.temperature,      o.top_k,             o.top_p, o.min_p,
                           o.repeat_penalty, o.presence_penalty, o.frequency_penalty, o.seed};
    generation.max_tokens = -1;
    return generation;
}

awq_status awq_session_create(awq_engine* engine, awq_session** out) {
    return guard([&]() -> Status {
        if (!engine) return missing("engine");
        if (!out) return missing("session");
        *out = nullptr;
        auto session = std::make_unique<awq_session>();
        session->engine = engine;
        AWQ_ASSIGN(session->session, engine->engine->new_session());
        *out = session.release();
        return {};
    });
}

void awq_session_free(awq_session* session) { delete session; }
int64_t awq_session_length(const awq_session* session) { return session ? session->session->length() : 0; }
void awq_session_truncate(awq_session* session, int64_t length) {
    if (session) session->session->truncate(length);
}

awq_status awq_chat(awq_session* session, const char* messages, const awq_generation* generation, awq_on_text on_text, void* user, awq_stats* stats) {
    return guard([&]() -> Status {
        if (!session) return missing("session");
        if (!messages) return missing("messages");
        const awq_engine& engine = *session->engine;
        if (!engine.tokenizer) return engine.tokenizer_status;
        AWQ_ASSIGN(Json request, parse_json(messages, json_request_depth));
        if (request.is_array()) {
            Json list = std::move(request);
            request = Json::object();
            request.set("messages", std::move(list));
        }
        if (request.is_object() && !request.has("add_generation_prompt")) request.set("add_generation_prompt", true);
        AWQ_ASSIGN(RenderRequest wanted, render_request_from_json(request));
        AWQ_ASSIGN(auto ids, chat_prompt(engine.templates, *engine.tokenizer, engine.image_tokens(), std::move(wanted), generation ? generation->image_count : 0));
        return answer(session, std::move(ids), generation, on_text, user, stats);
    });
}

awq_status awq_complete(awq_session* session, const char* text, size_t length, const awq_generation* generation, awq_on_text on_text, void* user,
                        awq_stats* stats) {
    return guard([&]() -> Status {
        if (!session) return missing("session");
        if (!text) return missing("text");
        if (!session->engine->tokenizer) return session->engine->tokenizer_status;
        AWQ_ASSIGN(auto ids, session->engine->tokenizer->encode({text, length}, true));
        return answer(session, std::move(ids), generation, on_text, user, stats);
    });
}

awq_status awq_generate(awq_session* session, const int32_t* ids, size_t count, const awq_generation* generation, awq_on_text on_text, void* user,
                        awq_stats* stats) {
    return guard([&]() -> Status {
        if (!session) return missing("session");
        if (!ids) return missing("ids");
        return answer(session, std::vector<int32_t>(ids, ids + count), generation, on_text, user, stats);
    });
}

awq_status awq_feed(awq_session* session, const int32_t* ids, size_t count, float* logits) {
    return guard([&]() -> Status {
        if (!session) return missing("session");
        if (!ids) return missing("ids");
        std::vector<float> row;
        Feed feed{session->session.get(), {ids, count}, logits ? Feed::Logits::last : Feed::Logits::none, &row, {}};
        session->images.clear();
        Status fed = session->engine->engine->run({&feed, 1}, &session->cancel);
        session->cancel.store(false);
        AWQ_TRY(fed);
        if (logits) std::memcpy(logits, row.data(), row.size() * sizeof(float));
        return {};
    });
}

void awq_cancel(awq_session* session) {
    if (session) session->cancel.store(true);
}
void awq_uncancel(awq_session* session) {
    if (session) session->cancel.store(false);
}

awq_status awq_inspect(const awq_options* options, bool json, const char* explain, char** text) {
    return guard([&]() -> Status {
        if (!options || !options->model) return missing("options.model");
        if (!text) return missing("text");
        *text = nullptr;
        auto inspect = [&]() -> Result<std::string> {
            AWQ_ASSIGN(EngineOptions engine_opts, engine_options(*options));
            AWQ_ASSIGN(std::string directory, resolve_model_directory(engine_opts.model));
            AWQ_ASSIGN(auto checkpoint, Checkpoint::open(directory));
            AWQ_ASSIGN(auto model, configure_model(checkpoint->config()));
            AWQ_TRY(read_generation_config(checkpoint->generation_config(), checkpoint->config()).status());
            AWQ_ASSIGN(auto backend, create_backend(engine_opts.backend, engine_opts.backend_options));
            engine_opts.plan.context = engine_opts.context > 0 ? engine_opts.context : context_by_default(model.config);
            AWQ_ASSIGN(Plan plan, make_plan(*checkpoint, model, engine_opts.plan, backend.get()));
            if (explain) return explain_module(plan, *checkpoint, backend.get(), explain);
            // A model whose graph cannot be built still has a plan to look at.
            if (Status measured = Engine::measure(plan, model, std::move(backend), engine_opts.plan.fuse); !measured.ok())
                plan.warnings.push_back(measured.message());
            return json ? dump_json(plan_to_json(plan, model), 1) + "\n" : plan_to_table(plan, model);
        }();
        if (inspect.ok()) return give(*inspect, text);
        if (json) {
            std::string refused = "{\"error\": ";
            append_json_string(refused, inspect.status().message());
            AWQ_TRY(give(refused + "}\n", text));
        }
        return inspect.status();
    });
}

awq_status awq_evaluator_open(const awq_options* options, const char* stage, awq_evaluator** out) {
    return guard([&]() -> Status {
        if (!options || !options->model) return missing("options.model");
        if (!stage || !out) return missing("stage or evaluator");
        *out = nullptr;
        AWQ_ASSIGN(EngineOptions engine_opts, engine_options(*options));
        auto evaluator = std::make_unique<awq_evaluator>();
        AWQ_ASSIGN(evaluator->evaluator, Evaluator::open(engine_opts, stage));
        *out = evaluator.release();
        return {};
    });
}

awq_status awq_evaluator_run(awq_evaluator* evaluator, const char* request, size_t length, char** answer_json) {
    return guard([&]() -> Status {
        if (!evaluator) return missing("evaluator");
        if (!request || !answer_json) return missing("request or answer");
        return give(evaluator->evaluator->run({request, length}), answer_json);
    });
}

void awq_evaluator_free(awq_evaluator* evaluator) { delete evaluator; }

awq_status awq_bench(const awq_options* options, const char* request, char** json) {
    return guard([&]() -> Status {
        if (!options) return missing("options");
        if (!request || !json) return missing("request or json");
        AWQ_ASSIGN(EngineOptions engine_opts, engine_options(*options));
        AWQ_ASSIGN(Json wanted, parse_json(request, json_request_depth));
        AWQ_ASSIGN(Json measured, bench(std::move(engine_opts), wanted));
        return give(dump_json(measured), json);
    });
}

awq_status awq_verify(const char* model, bool write, awq_progress progress, void* user, char** json) {
    return guard([&]() -> Status {
        if (!model || !json) return missing("model or json");
        AWQ_ASSIGN(std::string directory, resolve_model_directory(model));
        AWQ_ASSIGN(Json report_json, verify_checkpoint(directory, write, counted(progress, "reading weights", user)));
        return give(dump_json(report_json, 1), json);
    });
}

awq_status awq_import_gguf(const char* gguf, const char* directory, bool overwrite, awq_progress progress, void* user) {
    return guard([&]() -> Status {
        if (!gguf || !directory) return missing("gguf or directory");
        ImportOptions options;
        options.overwrite = overwrite;
        if (progress) options.progress = [=](double fraction, const char* what) { return progress(fraction, what, user); };
        return import_gguf(gguf, directory, options);
    });
}

}  // extern "C"
