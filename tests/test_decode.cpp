// Steps chained on the backend (Engine::decode) against what they stand for: a run for each token, the host's Sampler for each
// choice. On every backend; the reference computes two steps ahead, as a GPU does, so that what is dropped or kept for later shows.
#include <doctest/doctest.h>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>
#include "core/generate.h"
#include "tests/engines.h"

using namespace awq;

namespace {

std::vector<const char*> backends() {
    std::vector<const char*> names;
    for (const BackendEntry& entry : backend_table())
        if (const char* only = std::getenv("AWQ_TEST_ON"); entry.available() && (!only || std::string(entry.name) == only)) names.push_back(entry.name);
    return names;
}

std::vector<int32_t> some_ids(const Engine& engine, size_t count, uint32_t seed) {
    std::vector<int32_t> ids;
    while (ids.size() < count) {
        seed = seed * 1664525 + 1013904223;
        const auto id = static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(engine.vocab_size()));
        if (id != engine.config().vision.image_token) ids.push_back(id);
    }
    return ids;
}

// A run for each token.
std::vector<int32_t> one_by_one(Engine& engine, const std::vector<int32_t>& prompt, const SamplingOptions& options, int count) {
    auto session = test::open_session(engine);
    Sampler sampler(options);
    sampler.prompt(prompt);
    std::vector<int32_t> ids, fed = prompt;
    std::vector<float> logits;
    for (int i = 0; i < count; i++) {
        Feed feed{.session = session.get(), .tokens = fed, .logits = &logits};
        Status status = engine.run({&feed, 1});
        REQUIRE_MESSAGE(status.ok(), status.message());
        auto next = sampler.next(logits);
        REQUIRE(next.ok());
        ids.push_back(*next);
        fed = {*next};
    }
    return ids;
}

GenerateRequest request_of(std::vector<int32_t> prompt, const SamplingOptions& options, int64_t count) {
    GenerateRequest request;
    request.prompt = std::move(prompt);
    request.sampling = options;
    request.max_tokens = count;
    return request;
}

GenerateResult answer(Session& session, const GenerateRequest& request) {
    auto result = generate(session, nullptr, request);
    REQUIRE_MESSAGE(result.ok(), result.status().message());
    return *result;
}

std::vector<SamplingOptions> all_kinds() {
    SamplingOptions greedy, penalties, plain, cut, everything;
    penalties.repeat_penalty = 1.3f, penalties.presence_penalty = 0.2f, penalties.frequency_penalty = 0.1f;
    plain.sample = true, plain.top_k = 0, plain.seed = 3;
    cut = plain;
    cut.top_k = 20, cut.top_p = 0.9f, cut.min_p = 0.02f, cut.temperature = 0.8f;
    everything = penalties;
    everything.sample = true, everything.top_p = 0.95f, everything.seed = 12345;
    return {greedy, penalties, plain, cut, everything};
}

}  // namespace

TEST_CASE("decode: chained steps give the tokens of runs one by one, over pages and whatever is sampled") {
    for (const char* backend : backends())
        for (const char* model : {"llama-gemm-g32", "qwen2-tied", "mixtral-gemm", "phi3-longrope", "llava-gemm"}) {
            INFO(model << " on " << std::string(backend));
            auto engine = test::load({.model = test::model(model), .backend = backend});
            const int count = std::string(model) == "qwen2-tied" ? 150 : 40;    // the first steps may stand before or at a page's end
            for (const SamplingOptions& options : all_kinds()) {
                INFO("sampled " << options.sample << ", repetition " << options.repeat_penalty << ", top-k " << options.top_k);
                for (size_t length : {5, 63, 64}) {
                    const auto prompt = some_ids(*engine, length, 7);
                    auto session = test::open_session(*engine);
                    const GenerateResult got = answer(*session, request_of(prompt, options, count));
                    CHECK(got.ids == one_by_one(*engine, prompt, options, count));
                    CHECK(got.finish == Finish::length);
                    CHECK(session->length() == static_cast<int64_t>(length) + count);    // the last one has been fed
                    CHECK(std::equal(got.ids.begin(), got.ids.end(), session->tokens().begin() + static_cast<std::ptrdiff_t>(length)));
                }
            }
        }
}

TEST_CASE("decode: an answer that ends leaves the session at what was taken, and good for the next") {
    for (const char* backend : backends()) {
        INFO(std::string(backend));
        auto engine = test::load({.model = test::model("qwen2-tied"), .backend = backend});
        SamplingOptions options;
        options.sample = true, options.top_k = 0, options.temperature = 1.5f, options.seed = 9;
        const auto prompt = some_ids(*engine, 50, 3);
        const auto expected = one_by_one(*engine, prompt, options, 40);
        const int64_t length = static_cast<int64_t>(prompt.size());
        for (int64_t end : {0, 1, 2, 13, 14, 15, 38}) {    // 14: at the end of the first page
            INFO("after " << end);
            const int32_t last = expected[static_cast<size_t>(end)];
            const auto first = std::find(expected.begin(), expected.end(), last) - expected.begin();
            auto check = [&](Session& session, const GenerateResult& got, int64_t count, Finish finish) {
                CHECK(got.finish == finish);
                CHECK(got.ids == std::vector<int32_t>(expected.begin(), expected.begin() + count));
                // On from there: what was computed ahead has left nothing.
                auto longer = prompt;
                longer.insert(longer.end(), got.ids.begin(), got.ids.end());
                longer.push_back(1);
                auto fresh = test::open_session(*engine);
                CHECK(answer(session, request_of(longer, {}, 20)).ids == answer(*fresh, request_of(longer, {}, 20)).ids);
            };
            {
                auto session = test::open_session(*engine);
                GenerateRequest request = request_of(prompt, options, -1);
                request.eos_ids = {last};
                const GenerateResult got = answer(*session, request);
                CHECK(session->length() == length + first);
                check(*session, got, first, Finish::eos);
            }
            {
                auto session = test::open_session(*engine);
                GenerateRequest request = request_of(prompt, options, -1);
                int64_t seen = 0;
                request.on_text = [&](std::string_view, int32_t token) { return token < 0 || ++seen <= end; };
                const GenerateResult got = answer(*session, request);
                CHECK(session->length() == length + end);
                check(*session, got, end + 1, Finish::cancelled);
            }
            {
                auto session = test::open_session(*engine);
                std::atomic<bool> cancel = false;
                GenerateRequest request = request_of(prompt, options, -1);
                request.cancel = &cancel;
                int64_t seen = 0;
                request.on_text = [&](std::string_view, int32_t token) {
                    if (token >= 0 && ++seen > end) cancel = true;
                    return true;
                };
                const GenerateResult got = answer(*session, request);
                CHECK(session->length() >= length + end);
                CHECK(session->length() <= length + end + 1);
                check(*session, got, end + 1, Finish::cancelled);
            }
        }
        // The end of the context, within a page and at its end.
        for (int64_t context : {64, 70, 128}) {
            auto small = test::load({.model = test::model("qwen2-tied"), .backend = backend, .context = context, .cache_tokens = 3 * 64});
            auto session = test::open_session(*small);
            const GenerateResult got = answer(*session, request_of(prompt, options, -1));
            CHECK(got.finish == Finish::context);
            CHECK(static_cast<int64_t>(got.ids.size()) == context - length + 1);
            CHECK(session->length() == context);
        }
    }
}

TEST_CASE("decode: no pages left is an error at the token that needs one, and no page is taken from others early") {
    for (const char* backend : backends()) {
        INFO(std::string(backend));
        auto engine = test::load({.model = test::model("qwen2-tied"), .backend = backend, .context = 256, .cache_tokens = 4 * 64});
        auto first = test::open_session(*engine), second = test::open_session(*engine);
        const auto prompt = some_ids(*engine, 60, 3);
        // Both pages that two more sessions need are there while the first one decodes to its page's end.
        const auto expected = one_by_one(*engine, prompt, {}, 4);
        GenerateRequest request = request_of(prompt, {}, 4);
        request.on_text = [&](std::string_view, int32_t token) {
            if (token < 0) return true;
            auto other = test::open_session(*engine);
            const auto three_pages = some_ids(*engine, 192, 5);
            Feed feed{.session = other.get(), .tokens = three_pages, .want = Feed::Logits::none};
            CHECK(engine->run({&feed, 1}).ok());
            return true;
        };
        CHECK(answer(*first, request).ids == expected);
        CHECK(answer(*second, request_of(some_ids(*engine, 100, 3), {}, 20)).ids.size() == 20);    // three pages are in use
        auto third = test::open_session(*engine);
        std::vector<int32_t> seen;
        request = request_of(some_ids(*engine, 50, 4), {}, -1);
        request.on_text = [&](std::string_view, int32_t token) {
            if (token >= 0) seen.push_back(token);
            return true;
        };
        auto full = generate(*third, nullptr, request);
        CHECK(full.status().code() == Code::context_full);
        CHECK(full.status().message().find("all 4 pages") != std::string::npos);
        CHECK(seen.size() == 15);    // 14 of them fed
        CHECK(third->length() == 64);
        first.reset();
        second.reset();
        CHECK(answer(*third, request_of(some_ids(*engine, 50, 4), {}, 30)).ids.size() == 30);
        // Several at once run into it together, with what was there taken in turns.
        third.reset();
        auto together = generate_batch(*engine, {some_ids(*engine, 50, 1), some_ids(*engine, 60, 2), some_ids(*engine, 3, 3)}, 60);
        CHECK(together.status().code() == Code::context_full);
        together = generate_batch(*engine, {some_ids(*engine, 50, 1), some_ids(*engine, 60, 2)}, 60);
        CHECK(together.ok());
    }
}

TEST_CASE("decode: whoever needs the backend between two tokens has it, and both answers are as if alone") {
    for (const char* backend : backends())
        for (bool check_finite : {false, true}) {
            INFO(std::string(backend) << ", looking for what is not finite: " << check_finite);
            auto engine = test::load({.model = test::model("llama-gemm-g32"), .backend = backend, .check_finite = check_finite});
            const auto kinds = all_kinds();
            const auto one = some_ids(*engine, 20, 1), two = some_ids(*engine, 30, 2);
            const auto expected = one_by_one(*engine, one, kinds[4], 24), other = one_by_one(*engine, two, kinds[3], 24);
            auto outer = test::open_session(*engine), inner = test::open_session(*engine);
            GenerateRequest request = request_of(one, kinds[4], 24);
            std::vector<int32_t> longer = two;
            int calls = 0;
            request.on_text = [&](std::string_view, int32_t token) {
                if (token < 0 || ++calls % 3 == 0) return true;
                inner->truncate(0);
                CHECK(answer(*inner, request_of(two, kinds[3], calls)).ids == std::vector<int32_t>(other.begin(), other.begin() + calls));
                return true;
            };
            CHECK(answer(*outer, request).ids == expected);
            CHECK(calls == 24);
        }
}

TEST_CASE("decode: sessions on several threads take turns, each with the answer it has alone (threads)") {
    for (const char* backend : backends()) {
        if (std::string(backend) == "reference" && std::getenv("AWQ_TEST_ON")) continue;
        INFO(std::string(backend));
        auto engine = test::load({.model = test::model("llama-gemm-g32"), .backend = backend});
        const auto kinds = all_kinds();
        std::vector<std::vector<int32_t>> expected(kinds.size()), got(kinds.size());
        for (size_t i = 0; i < kinds.size(); i++) expected[i] = one_by_one(*engine, some_ids(*engine, 20 + i, 1), kinds[i], 60);
        std::vector<std::thread> threads;
        for (size_t i = 0; i < kinds.size(); i++)
            threads.emplace_back([&, i] {
                auto session = engine->new_session();
                if (!session.ok()) return;
                auto result = generate(**session, nullptr, request_of(some_ids(*engine, 20 + i, 1), kinds[i], 60));
                if (result.ok()) got[i] = result->ids;
            });
        for (std::thread& thread : threads) thread.join();
        for (size_t i = 0; i < kinds.size(); i++) CHECK(got[i] == expected[i]);
    }
}

TEST_CASE("decode: sequences of a batch are sampled each by its own options; more than a chain may have go one by one") {
    for (const char* backend : backends()) {
        INFO(std::string(backend));
        auto engine = test::load({.model = test::model("llama-gemm-g32"), .backend = backend});
        const auto kinds = all_kinds();
        auto together = [&](size_t count, int steps) {
            std::vector<std::unique_ptr<Session>> sessions;
            std::vector<Sampler> samplers;
            std::vector<Continuation> all;
            for (size_t i = 0; i < count; i++) {
                sessions.push_back(test::open_session(*engine));
                samplers.emplace_back(kinds[i % kinds.size()]);
            }
            for (size_t i = 0; i < count; i++) all.push_back({sessions[i].get(), static_cast<int32_t>(10 + i), i % kinds.size() ? &samplers[i] : nullptr});
            std::vector<std::vector<int32_t>> tokens;
            Status status = engine->decode(all, steps, [&](std::span<const int32_t> chosen) -> Result<bool> {
                tokens.emplace_back(chosen.begin(), chosen.end());
                return true;
            });
            REQUIRE_MESSAGE(status.ok(), status.message());
            REQUIRE(tokens.size() == static_cast<size_t>(steps));
            for (size_t i = 0; i < count; i++) CHECK(all[i].token == tokens.back()[i]);
            return tokens;
        };
        const auto five = together(5, 70), again = together(5, 70);
        CHECK(five == again);
        if (std::string(backend) == "cuda") return;    // other row counts are other kernels there, which round otherwise
        const auto many = together(70, 3);
        for (size_t step = 0; step < 3; step++) CHECK(std::equal(five[step].begin(), five[step].end(), many[step].begin()));
    }
}
