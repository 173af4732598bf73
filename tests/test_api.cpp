// The C API as a program meets it: arguments that are missing, statuses that are documented, callbacks that say no, other
// threads, engines that come and go.
#include <doctest/doctest.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include "core/awq.h"
#include "tests/support.h"

namespace {

awq_options options_of(const std::string& directory, int threads = 2) {
    static std::string kept;
    kept = directory;
    awq_options options = awq_default_options();
    options.model = kept.c_str();
    options.backend = "cpu";
    options.threads = threads;
    return options;
}

struct Engine {
    awq_engine* engine = nullptr;
    explicit Engine(int threads = 2, int64_t context = 0, int64_t cache_tokens = 0) {
        awq_options options = options_of(test::model("qwen2-tied"), threads);
        options.context = context;
        options.cache_tokens = cache_tokens;
        REQUIRE_MESSAGE(awq_engine_load(&options, &engine) == AWQ_OK, awq_last_error());
    }
    Engine(const Engine&) = delete;
    ~Engine() { awq_engine_free(engine); }
};

struct Session {
    awq_session* session = nullptr;
    explicit Session(awq_engine* engine) { REQUIRE(awq_session_create(engine, &session) == AWQ_OK); }
    Session(const Session&) = delete;
    ~Session() { awq_session_free(session); }
};

const int32_t prompt[] = {1, 5, 9, 7};

// Ids of a generation; its status in `status`, how it ended in `stats`.
std::vector<int32_t> generated(awq_session* session, const awq_generation& generation, awq_stats& stats,
                               awq_status expected = AWQ_OK) {
    std::vector<int32_t> ids;
    awq_status status = awq_generate(
        session, prompt, 4, &generation,
        [](const char*, size_t, int32_t token, void* user) {
            if (token >= 0) static_cast<std::vector<int32_t>*>(user)->push_back(token);
            return true;
        },
        &ids, &stats);
    CHECK_MESSAGE(status == expected, awq_last_error());
    return ids;
}

awq_generation endless(const awq_engine* engine) {
    awq_generation generation = awq_default_generation(engine);
    generation.ignore_eos = true;
    return generation;
}

size_t resident_kib() {
    size_t total = 0, resident = 0;
    if (FILE* file = std::fopen("/proc/self/statm", "re")) {
        if (std::fscanf(file, "%zu %zu", &total, &resident) != 2) resident = 0;
        std::fclose(file);
    }
    return resident * 4;
}

int from_environment(const char* name, int fallback) {
    const char* value = std::getenv(name);
    return value ? std::atoi(value) : fallback;
}

}  // namespace

TEST_CASE("api: null arguments are refused with a message, frees take null") {
    awq_engine_free(nullptr);
    awq_session_free(nullptr);
    awq_evaluator_free(nullptr);
    awq_free(nullptr);
    awq_cancel(nullptr);
    awq_session_truncate(nullptr, 3);
    CHECK(awq_session_length(nullptr) == 0);
    CHECK(awq_default_generation(nullptr).max_tokens == -1);

    Engine e;
    Session s(e.engine);
    awq_options empty = awq_default_options(), good = options_of(test::model("qwen2-tied"));
    awq_engine* engine = nullptr;
    awq_session* session = nullptr;
    awq_evaluator* evaluator = nullptr;
    awq_evaluator* open = nullptr;
    REQUIRE(awq_evaluator_open(&good, "logits", &open) == AWQ_OK);
    char* text = nullptr;
    int32_t id = 0;
    size_t count = 0;
    const std::function<awq_status()> calls[] = {
        [&] { return awq_engine_load(nullptr, &engine); },
        [&] { return awq_engine_load(&empty, &engine); },
        [&] { return awq_engine_load(&good, nullptr); },
        [&] { return awq_engine_info(nullptr, &text); },
        [&] { return awq_engine_info(e.engine, nullptr); },
        [&] { return awq_tokenize(nullptr, "x", 1, true, &id, 1, &count); },
        [&] { return awq_tokenize(e.engine, nullptr, 1, true, &id, 1, &count); },
        [&] { return awq_tokenize(e.engine, "x", 1, true, nullptr, 1, &count); },
        [&] { return awq_tokenize(e.engine, "x", 1, true, &id, 1, nullptr); },
        [&] { return awq_detokenize(nullptr, &id, 1, true, &text); },
        [&] { return awq_detokenize(e.engine, nullptr, 1, true, &text); },
        [&] { return awq_detokenize(e.engine, &id, 1, true, nullptr); },
        [&] { return awq_render(nullptr, "{}", &text); },
        [&] { return awq_render(e.engine, nullptr, &text); },
        [&] { return awq_render(e.engine, "{}", nullptr); },
        [&] { return awq_session_create(nullptr, &session); },
        [&] { return awq_session_create(e.engine, nullptr); },
        [&] { return awq_chat(nullptr, "[]", nullptr, nullptr, nullptr, nullptr); },
        [&] { return awq_chat(s.session, nullptr, nullptr, nullptr, nullptr, nullptr); },
        [&] { return awq_complete(nullptr, "x", 1, nullptr, nullptr, nullptr, nullptr); },
        [&] { return awq_complete(s.session, nullptr, 1, nullptr, nullptr, nullptr, nullptr); },
        [&] { return awq_generate(nullptr, prompt, 4, nullptr, nullptr, nullptr, nullptr); },
        [&] { return awq_generate(s.session, nullptr, 4, nullptr, nullptr, nullptr, nullptr); },
        [&] { return awq_feed(nullptr, prompt, 4, nullptr); },
        [&] { return awq_feed(s.session, nullptr, 4, nullptr); },
        [&] { return awq_inspect(nullptr, true, nullptr, &text); },
        [&] { return awq_inspect(&empty, true, nullptr, &text); },
        [&] { return awq_inspect(&good, true, nullptr, nullptr); },
        [&] { return awq_evaluator_open(nullptr, "logits", &evaluator); },
        [&] { return awq_evaluator_open(&good, nullptr, &evaluator); },
        [&] { return awq_evaluator_open(&good, "logits", nullptr); },
        [&] { return awq_evaluator_open(&good, "nonsense", &evaluator); },
        [&] { return awq_evaluator_run(nullptr, "{}", 2, &text); },
        [&] { return awq_evaluator_run(open, nullptr, 2, &text); },
        [&] { return awq_evaluator_run(open, "{}", 2, nullptr); },
        [&] { return awq_bench(nullptr, "{}", &text); },
        [&] { return awq_bench(&good, nullptr, &text); },
        [&] { return awq_bench(&good, "{}", nullptr); },
        [&] { return awq_verify(nullptr, false, nullptr, nullptr, &text); },
        [&] { return awq_verify("x", false, nullptr, nullptr, nullptr); },
        [&] { return awq_import_gguf(nullptr, "x", false, nullptr, nullptr); },
        [&] { return awq_import_gguf("x", nullptr, false, nullptr, nullptr); },
    };
    for (size_t i = 0; i < std::size(calls); i++) {
        INFO("call " << i);
        CHECK(calls[i]() == AWQ_INVALID_ARGUMENT);
        CHECK(std::strlen(awq_last_error()) > 5);
    }
    awq_evaluator_free(open);
    CHECK(engine == nullptr);
    CHECK(session == nullptr);
    CHECK(evaluator == nullptr);
}

TEST_CASE("api: options out of range") {
    const std::function<void(awq_options&)> changes[] = {
        [](awq_options& o) { o.threads = -1; },
        [](awq_options& o) { o.threads = 5000; },
        [](awq_options& o) { o.device = -1; },
        [](awq_options& o) { o.context = -1; },
        [](awq_options& o) { o.context = INT64_MAX; },
        [](awq_options& o) { o.cache_tokens = -1; },
        [](awq_options& o) { o.skip_rule = 3; },
        [](awq_options& o) { o.backend = "abacus"; },
        [](awq_options& o) { o.awq_config = "[1]"; },
        [](awq_options& o) { o.awq_config = "{\"version\": 3}"; },
    };
    for (const auto& change : changes) {
        awq_options options = options_of(test::model("qwen2-tied"));
        change(options);
        awq_engine* engine = nullptr;
        awq_status status = awq_engine_load(&options, &engine);
        CHECK_MESSAGE((status == AWQ_INVALID_ARGUMENT || status == AWQ_BAD_FILE), status << " " << awq_last_error());
        CHECK(engine == nullptr);
        CHECK(std::string(awq_last_error()).find(": ") != std::string::npos);
    }
}

TEST_CASE("api: documented statuses") {
    Engine e(2, 64, 128);  // two pages for all sessions
    Session a(e.engine), b(e.engine), c(e.engine);
    const std::vector<int32_t> full(64, 3), more(65, 3);
    CHECK(awq_feed(a.session, prompt, 0, nullptr) == AWQ_INVALID_ARGUMENT);  // an empty prompt
    CHECK(awq_generate(a.session, prompt, 0, nullptr, nullptr, nullptr, nullptr) == AWQ_INVALID_ARGUMENT);
    for (int32_t bad : {-1, 1 << 30, INT32_MAX, INT32_MIN}) {
        CHECK(awq_feed(a.session, &bad, 1, nullptr) == AWQ_INVALID_ARGUMENT);
        CHECK(std::string(awq_last_error()).find("out of range") != std::string::npos);
    }
    CHECK(awq_feed(a.session, more.data(), more.size(), nullptr) == AWQ_CONTEXT_FULL);
    CHECK(awq_session_length(a.session) == 0);
    CHECK(awq_feed(a.session, full.data(), full.size(), nullptr) == AWQ_OK);
    CHECK(awq_feed(a.session, prompt, 1, nullptr) == AWQ_CONTEXT_FULL);
    CHECK(awq_session_length(a.session) == 64);
    CHECK(awq_feed(b.session, prompt, 4, nullptr) == AWQ_OK);
    CHECK(awq_feed(c.session, prompt, 4, nullptr) == AWQ_CONTEXT_FULL);  // no page is left
    CHECK(std::string(awq_last_error()).find("pages") != std::string::npos);
    awq_session_truncate(a.session, -5);
    CHECK(awq_session_length(a.session) == 0);
    CHECK(awq_feed(c.session, prompt, 4, nullptr) == AWQ_OK);

    // Generation ends well at the end of the context, and where the callback says so.
    awq_generation generation = endless(e.engine);
    awq_stats stats = {};
    generated(b.session, generation, stats);
    CHECK(stats.finish == AWQ_FINISH_CONTEXT);
    CHECK(awq_session_length(b.session) == 64);
    generation.max_tokens = 3;
    CHECK(generated(b.session, generation, stats).size() == 3);
    CHECK(stats.finish == AWQ_FINISH_LENGTH);
    CHECK(awq_generate(
              b.session, prompt, 4, &generation, [](const char*, size_t, int32_t, void*) { return false; }, nullptr, &stats) ==
          AWQ_OK);
    CHECK(stats.finish == AWQ_FINISH_CANCELLED);
    generation.sampling.sample = true;
    generation.sampling.temperature = -1;
    generated(b.session, generation, stats, AWQ_INVALID_ARGUMENT);
    CHECK(awq_chat(b.session, "[]", nullptr, nullptr, nullptr, nullptr) == AWQ_NOT_FOUND);  // this model has no tokenizer
    CHECK(awq_complete(b.session, "x", 1, nullptr, nullptr, nullptr, nullptr) == AWQ_NOT_FOUND);

    awq_options missing = options_of("/nonexistent/model");
    awq_engine* engine = nullptr;
    CHECK(awq_engine_load(&missing, &engine) == AWQ_NOT_FOUND);
    awq_options stopped = options_of(test::model("qwen2-tied"));
    stopped.progress = [](double, const char*, void*) { return false; };
    CHECK(awq_engine_load(&stopped, &engine) == AWQ_CANCELLED);
}

TEST_CASE("api: cancelled from another thread, the call ends within a few steps (threads)") {
    Engine e(2, 8192);
    Session s(e.engine);
    awq_generation generation = endless(e.engine);
    struct State {
        std::atomic<int> tokens{0};
        std::atomic<bool> asked{false};
        std::atomic<int> late{0};  // tokens that came after
    } state;
    std::thread other([&] {
        while (state.tokens < 5) std::this_thread::yield();
        awq_cancel(s.session);
        state.asked = true;
    });
    awq_stats stats = {};
    awq_status status = awq_generate(
        s.session, prompt, 4, &generation,
        [](const char*, size_t, int32_t token, void* user) {
            State& seen = *static_cast<State*>(user);
            if (token < 0) return true;
            if (seen.asked) seen.late++;
            seen.tokens++;
            return true;
        },
        &state, &stats);
    other.join();
    CHECK(status == AWQ_OK);
    CHECK(stats.finish == AWQ_FINISH_CANCELLED);
    CHECK(state.late <= 1);
    // asked before the call: the next one ends at once
    awq_cancel(s.session);
    CHECK(awq_feed(s.session, prompt, 4, nullptr) == AWQ_CANCELLED);
    CHECK(awq_feed(s.session, prompt, 4, nullptr) == AWQ_OK);
}

TEST_CASE("api: the same seed gives the same text, whatever the number of threads") {
    std::vector<int32_t> first;
    for (int threads : {1, 2, 3, 7}) {
        Engine e(threads);
        Session s(e.engine);
        awq_generation generation = endless(e.engine);
        generation.max_tokens = 40;
        generation.sampling.sample = true;
        generation.sampling.temperature = 1.0f;
        generation.sampling.seed = 1234;
        awq_stats stats = {};
        auto ids = generated(s.session, generation, stats);
        CHECK(ids.size() == 40);
        if (first.empty()) first = ids;
        CHECK_MESSAGE(ids == first, threads << " threads");
        awq_session_truncate(s.session, 0);
        generation.sampling.seed = 1235;
        CHECK(generated(s.session, generation, stats) != first);
    }
}

TEST_CASE("api: 64 sessions of one engine on 8 threads, beside a second engine (threads)") {
    Engine one(2), two(1);
    awq_generation generation = endless(one.engine);
    generation.max_tokens = 6;
    std::vector<int32_t> expected;
    {
        Session alone(one.engine);
        awq_stats stats = {};
        expected = generated(alone.session, generation, stats);
    }
    const int rounds = from_environment("AWQ_SOAK", 1);
    std::atomic<int> wrong{0}, done{0};
    auto answer = [&](awq_session* session) {
        std::vector<int32_t> ids;
        awq_session_truncate(session, 0);
        awq_status status = awq_generate(
            session, prompt, 4, &generation,
            [](const char*, size_t, int32_t token, void* user) {
                if (token >= 0) static_cast<std::vector<int32_t>*>(user)->push_back(token);
                return true;
            },
            &ids, nullptr);
        if (status != AWQ_OK || ids != expected) wrong++;
        done++;
    };
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; t++)
        threads.emplace_back([&, t] {
            awq_session* sessions[8] = {};
            for (awq_session*& session : sessions)
                if (awq_session_create(t == 7 ? two.engine : one.engine, &session) != AWQ_OK) wrong++;
            for (int round = 0; round < rounds; round++)
                for (awq_session* session : sessions)
                    if (session) answer(session);
            for (awq_session* session : sessions) awq_session_free(session);
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(done == 64 * rounds);
}

TEST_CASE("api: loaded and freed again and again, memory does not grow") {
    auto cycle = [] {
        Engine e(2, 64);
        Session s(e.engine);
        CHECK(awq_feed(s.session, prompt, 4, nullptr) == AWQ_OK);
    };
    for (int i = 0; i < 10; i++) cycle();
    const size_t before = resident_kib();
    const int cycles = from_environment("AWQ_SOAK", 1) > 1 ? 1000 : 50;
    for (int i = 0; i < cycles; i++) cycle();
    const size_t after = resident_kib();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep what was freed
    CHECK_MESSAGE(after < before + 4096, before << " KiB, then " << after << " KiB after " << cycles << " cycles");
#endif
}
