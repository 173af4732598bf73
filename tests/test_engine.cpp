// Whole models against what transformers computed: tests/data/models holds tiny checkpoints with their float32 logits.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <doctest/doctest.h>
#include <filesystem>
#include <thread>
#include <tuple>
#include "core/engine.h"
#include "tests/engines.h"

using namespace awq;

namespace {

struct Golden {
    std::vector<int32_t> ids;
    std::vector<float> logits, margin, pixels;
    std::vector<int64_t> greedy, greedy_cached;
    double deviation = 0;
    bool bfloat = false;
};

template <class T>
std::vector<T> values(const InputFile& file, const TensorInfo& tensor) {
    std::vector<T> out(tensor.bytes / sizeof(T));
    REQUIRE(file.read(tensor.offset, out.data(), tensor.bytes).ok());
    return out;
}

Golden read_golden(const std::string& directory) {
    auto file = InputFile::open(directory + "/golden.safetensors");
    REQUIRE(file.ok());
    auto tensors = read_safetensors(*file);
    REQUIRE(tensors.ok());
    Golden golden;
    for (const TensorInfo& tensor : *tensors) {
        if (tensor.name == "input_ids")
            for (int64_t id : values<int64_t>(*file, tensor)) golden.ids.push_back(static_cast<int32_t>(id));
        if (tensor.name == "logits") golden.logits = values<float>(*file, tensor);
        if (tensor.name == "pixel_values") golden.pixels = values<float>(*file, tensor);
        if (tensor.name == "greedy_margin") golden.margin = values<float>(*file, tensor);
        if (tensor.name == "greedy_ids") golden.greedy = values<int64_t>(*file, tensor);
        if (tensor.name == "greedy_ids_cached") golden.greedy_cached = values<int64_t>(*file, tensor);
    }
    double mean = 0;
    for (float x : golden.logits) mean += x / static_cast<double>(golden.logits.size());
    for (float x : golden.logits) golden.deviation += (x - mean) * (x - mean) / static_cast<double>(golden.logits.size());
    golden.deviation = std::sqrt(golden.deviation);
    golden.bfloat = test::read_bytes(directory + "/config.json").find("bfloat16") != std::string::npos;
    return golden;
}

std::vector<float> all_logits(Engine& engine, const Golden& golden) {
    auto session = test::open_session(engine);
    std::vector<float> features, logits;
    if (!golden.pixels.empty()) {
        auto image = engine.image_features(golden.pixels);
        REQUIRE_MESSAGE(image.ok(), image.status().message());
        features = *image;
    }
    Feed feed{session.get(), golden.ids, Feed::Logits::all, &logits, features};
    Status status = engine.run({&feed, 1});
    REQUIRE_MESSAGE(status.ok(), status.message());
    return logits;
}

// Largest and root-mean-square difference, in units of the golden logits' standard deviation.
std::pair<double, double> difference(const std::vector<float>& got, const std::vector<float>& want, double deviation) {
    REQUIRE(got.size() == want.size());
    double worst = 0, square = 0;
    for (size_t i = 0; i < want.size(); i++) {
        double d = std::isfinite(got[i]) ? std::fabs(got[i] - want[i]) : INFINITY;
        worst = std::max(worst, d);
        square += d * d;
    }
    return {worst / deviation, std::sqrt(square / static_cast<double>(want.size())) / deviation};
}

void check_model(const std::string& directory, const std::string& backend) {
    Golden golden = read_golden(directory);
    auto engine = test::load({.model = directory, .backend = backend});
    double most = 1e-3, rms_most = 1e-3;
    if (backend == "cpu") most = 1.5e-1, rms_most = 2e-2;
    if (backend == "cuda") most = 8e-2, rms_most = 1e-2;
    if (backend != "reference" && golden.bfloat) most = 6e-1, rms_most = 6e-2;
    double worst, rms;
    std::tie(worst, rms) = difference(all_logits(*engine, golden), golden.logits, golden.deviation);
    CHECK_MESSAGE(worst <= most, directory << " on " << backend << ": max " << worst);
    CHECK_MESSAGE(rms <= rms_most, directory << " on " << backend << ": rms " << rms);

    // The greedy continuation, fed token by token through the cache.
    auto session = test::open_session(*engine);
    std::vector<float> logits, features;
    if (!golden.pixels.empty()) features = *engine->image_features(golden.pixels);
    Feed feed{session.get(), golden.ids, Feed::Logits::last, &logits, features};
    REQUIRE(engine->run({&feed, 1}).ok());
    const auto& want = golden.greedy_cached.empty() ? golden.greedy : golden.greedy_cached;
    for (size_t i = 0; i < want.size(); i++) {
        int32_t best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
        if (best != want[i]) {
            bool near = i < golden.margin.size() && golden.margin[i] < most * golden.deviation;
            CHECK_MESSAGE(near, directory << " on " << backend << ": greedy id " << i << " is " << best << ", not " << want[i]);
            break;
        }
        Feed next{session.get(), {&best, 1}, Feed::Logits::last, &logits, {}};
        REQUIRE(engine->run({&next, 1}).ok());
    }
}

}  // namespace

TEST_CASE("engine: every model and backend computes what transformers does") {
    for (const BackendEntry& backend : backend_table()) {
        if (!backend.available()) continue;
        for (const std::string& name : test::model_names()) {
            SUBCASE((std::string(backend.name) + " " + name).c_str()) { check_model(test::model(name), backend.name); }
        }
    }
}

TEST_CASE("engine: all golden models, where AWQ_GOLDEN names their folder") {
    const char* golden = std::getenv("AWQ_GOLDEN");
    if (!golden) return;
    for (const auto& entry : std::filesystem::directory_iterator(std::string(golden) + "/models"))
        if (entry.is_directory())
            for (const BackendEntry& backend : backend_table())
                if (backend.available()) check_model(entry.path().string(), backend.name);
}

TEST_CASE("engine: fused and unfused give the same logits") {
    for (const BackendEntry& backend : backend_table()) {
        if (!backend.available()) continue;
        for (const std::string& name : test::model_names()) {
            std::string directory = test::model(name);
            Golden golden = read_golden(directory);
            auto fused = all_logits(*test::load({.model = directory, .backend = backend.name}), golden);
            auto unfused = all_logits(*test::load({.model = directory, .backend = backend.name, .plan = {.fuse = false}}), golden);
            double most = std::string(backend.name) == "reference" ? 1e-4 : 5e-2;
            const double worst = difference(fused, unfused, golden.deviation).first;
            CHECK_MESSAGE(worst < most, name << " on " << backend.name << ": " << worst);
        }
    }
}

TEST_CASE("engine: a head of 8 bits gives nearly the same logits, the same on every backend that has it") {
    for (const char* name : {"llama-gemm-g32", "qwen2-tied", "gemma3-gemm"}) {    // apart, tied, tied and scaled
        const std::string directory = test::model(name);
        const Golden golden = read_golden(directory);
        std::vector<std::vector<float>> all;
        for (const char* backend : {"reference", "cpu"})
            for (int bits : {16, 8}) {
                EngineOptions options;
                options.model = directory;
                options.backend = backend;
                options.plan.head_bits = bits;
                auto engine = Engine::load(options);
                REQUIRE_MESSAGE(engine.ok(), engine.status().message());
                all.push_back(all_logits(**engine, golden));
            }
        auto distance = [&](size_t a, size_t b) {    // root mean square, in units of the logits' deviation
            double sum = 0;
            for (size_t i = 0; i < all[a].size(); i++) sum += std::pow(all[a][i] - all[b][i], 2);
            return std::sqrt(sum / static_cast<double>(all[a].size())) / golden.deviation;
        };
        CAPTURE(name);
        CHECK(distance(1, 0) > 1e-5);    // it is another head
        CHECK(distance(1, 0) < 0.02);
        CHECK(distance(3, 1) < 0.002);
    }
}

TEST_CASE("engine: a long prompt in chunks, in pieces, or beside others gives the same answer") {
    EngineOptions options;
    options.model = test::model("llama-gemm-g32");
    options.backend = "reference";
    options.context = 1024;
    auto engine = *Engine::load(options);
    std::vector<int32_t> ids;
    for (int i = 0; i < 700; i++) ids.push_back((i * 37 + i / 7) % static_cast<int>(engine->vocab_size()));
    auto whole = test::open_session(*engine);
    std::vector<float> at_once, in_pieces, beside;
    Feed feed{whole.get(), ids, Feed::Logits::last, &at_once, {}};
    REQUIRE(engine->run({&feed, 1}).ok());
    CHECK(whole->length() == 700);

    auto pieces = test::open_session(*engine);
    for (size_t at = 0; at < ids.size();) {
        size_t count = std::min<size_t>(ids.size() - at, 1 + at / 3);
        Feed part{pieces.get(), std::span(ids).subspan(at, count), Feed::Logits::last, &in_pieces, {}};
        REQUIRE(engine->run({&part, 1}).ok());
        at += count;
    }
    CHECK(difference(in_pieces, at_once, 1).first < 1e-4);

    std::vector<std::unique_ptr<Session>> others;
    std::vector<std::vector<float>> rows(9);
    std::vector<Feed> feeds;
    for (size_t i = 0; i < 9; i++) {
        others.push_back(test::open_session(*engine));
        size_t length = i == 4 ? 700 : 1 + i * 53;
        feeds.push_back({others.back().get(), std::span(ids).first(length), Feed::Logits::last, &rows[i], {}});
    }
    REQUIRE(engine->run(feeds).ok());
    CHECK(difference(rows[4], at_once, 1).first < 1e-4);
}

TEST_CASE("session: truncated and fed again, it is as if nothing had happened") {
    auto engine = test::load({.model = test::model("qwen2-tied"), .backend = "reference"});
    std::vector<int32_t> ids(100, 5);
    for (int i = 0; i < 100; i++) ids[i] = i % 97;
    std::vector<float> first, second;
    auto session = test::open_session(*engine);
    Feed feed{session.get(), ids, Feed::Logits::last, &first, {}};
    REQUIRE(engine->run({&feed, 1}).ok());
    session->truncate(63);
    CHECK(session->length() == 63);
    Feed rest{session.get(), std::span(ids).subspan(63), Feed::Logits::last, &second, {}};
    REQUIRE(engine->run({&rest, 1}).ok());
    CHECK(first == second);
    session->truncate(0);
    CHECK(session->tokens().empty());
}

TEST_CASE("session: longrope, where a sequence passes the original length in either direction, is as if fed at once") {
    auto engine = test::load({.model = test::model("phi3-longrope"), .backend = "reference"});    // its original length is 16
    std::vector<int32_t> ids;
    for (int i = 0; i < 40; i++) ids.push_back((i * 29 + 5) % static_cast<int>(engine->vocab_size()));
    auto at_once = [&](size_t count, Feed::Logits want) {
        auto session = test::open_session(*engine);
        std::vector<float> logits;
        Feed feed{session.get(), std::span(ids).first(count), want, &logits, {}};
        REQUIRE(engine->run({&feed, 1}).ok());
        return logits;
    };
    auto session = test::open_session(*engine);
    auto feed_to = [&](size_t count, Feed::Logits want, const std::atomic<bool>* cancel = nullptr) {
        std::vector<float> logits;
        auto begin = static_cast<size_t>(session->length());
        Feed feed{session.get(), std::span(ids).subspan(begin, count - begin), want, &logits, {}};
        CHECK(engine->run({&feed, 1}, cancel).ok() == (cancel == nullptr));
        CHECK(session->length() == static_cast<int64_t>(cancel ? begin : count));
        return logits;
    };
    CHECK(difference(feed_to(14, Feed::Logits::last), at_once(14, Feed::Logits::last), 1).first < 1e-4);
    CHECK(difference(feed_to(16, Feed::Logits::last), at_once(16, Feed::Logits::last), 1).first < 1e-4);
    CHECK(difference(feed_to(17, Feed::Logits::last), at_once(17, Feed::Logits::last), 1).first < 1e-4);
    CHECK(difference(feed_to(30, Feed::Logits::last), at_once(30, Feed::Logits::last), 1).first < 1e-4);
    session->truncate(9);
    CHECK(difference(feed_to(10, Feed::Logits::last), at_once(10, Feed::Logits::last), 1).first < 1e-4);
    // all logits: of the new tokens only
    auto all = feed_to(40, Feed::Logits::all), whole = at_once(40, Feed::Logits::all);
    REQUIRE(all.size() == 30 * static_cast<size_t>(engine->vocab_size()));
    CHECK(difference(all, std::vector<float>(whole.end() - static_cast<int64_t>(all.size()), whole.end()), 1).first < 1e-4);
    // what is broken off in the middle of it is done again by the next run
    session->truncate(12);
    std::atomic<bool> cancel = true;
    feed_to(13, Feed::Logits::last, &cancel);
    CHECK(std::equal(ids.begin(), ids.begin() + 12, session->tokens().begin()));
    CHECK(difference(feed_to(13, Feed::Logits::last), at_once(13, Feed::Logits::last), 1).first < 1e-4);
}

TEST_CASE("engine: what cannot be run is a status, and the session is as it was") {
    EngineOptions options;
    options.model = test::model("qwen2-tied");
    options.backend = "reference";
    options.context = 100;
    options.cache_tokens = 192;    // three pages for all sessions
    auto engine = *Engine::load(options);
    auto session = test::open_session(*engine), other = test::open_session(*engine);
    auto run = [&](Session& s, std::vector<int32_t> ids) {
        Feed feed{&s, ids, Feed::Logits::none, nullptr, {}};
        return engine->run({&feed, 1});
    };
    CHECK(run(*session, {}).code() == Code::invalid_argument);
    CHECK(run(*session, {-1}).code() == Code::invalid_argument);
    CHECK(run(*session, {static_cast<int32_t>(engine->vocab_size())}).code() == Code::invalid_argument);
    CHECK(run(*session, std::vector<int32_t>(101, 1)).code() == Code::context_full);
    CHECK(session->length() == 0);
    REQUIRE(run(*session, std::vector<int32_t>(100, 1)).ok());
    CHECK(run(*session, {1}).code() == Code::context_full);
    CHECK(session->length() == 100);
    CHECK(run(*other, std::vector<int32_t>(65, 1)).code() == Code::context_full);    // two pages wanted, one free
    {
        auto third = test::open_session(*engine);    // what a failed run had reserved is free again
        CHECK(run(*third, std::vector<int32_t>(64, 1)).ok());
    }
    REQUIRE(run(*other, std::vector<int32_t>(64, 1)).ok());
    session.reset();                                                                  // its pages come back
    REQUIRE(run(*other, {1}).ok());
    std::atomic<bool> cancel{true};
    std::vector<int32_t> one = {1};
    Feed feed{other.get(), one, Feed::Logits::none, nullptr, {}};
    CHECK(engine->run({&feed, 1}, &cancel).code() == Code::cancelled);
    CHECK(other->length() == 65);
}

TEST_CASE("engine: sessions on several threads at once (threads)") {
    auto engine = test::load({.model = test::model("qwen2-tied"), .backend = "auto"});
    std::vector<int32_t> ids(40);
    for (int i = 0; i < 40; i++) ids[static_cast<size_t>(i)] = i;
    auto answer = [&] {
        auto session = test::open_session(*engine);
        std::vector<float> logits;
        Feed feed{session.get(), ids, Feed::Logits::last, &logits, {}};
        for (int i = 0; i < 10; i++) {
            if (!engine->run({&feed, 1}).ok()) return std::vector<float>();
            int32_t next = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
            Feed step{session.get(), {&next, 1}, Feed::Logits::last, &logits, {}};
            if (!engine->run({&step, 1}).ok()) return std::vector<float>();
            session->truncate(0);
        }
        return logits;
    };
    auto alone = answer();
    std::vector<std::vector<float>> results(8);
    std::vector<std::thread> threads;
    for (auto& result : results) threads.emplace_back([&] { result = answer(); });
    for (auto& thread : threads) thread.join();
    for (const auto& result : results) CHECK(result == alone);
}
