// The same input gives the same bits, run after run and engine after engine; a batch gives each of its sequences the tokens
// it gets alone. On every backend there is. On a GPU other row counts are other kernels, whose half precision rounds otherwise: there
// a token may differ where its logit and the other's are closer than what that makes of them: some thousandths of the largest.
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include "core/generate.h"
#include "tests/engines.h"

using namespace awq;

namespace {

std::vector<int32_t> prompt(const Engine& engine, size_t length, uint32_t seed) {
    std::vector<int32_t> ids;
    while (ids.size() < length) {
        seed = seed * 1664525 + 1013904223;
        if (auto id = static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(engine.vocab_size())); id != engine.config().vision.image_token) ids.push_back(id);
    }
    return ids;
}

// Logits of a prompt, then of tokens fed one by one.
std::vector<float> logits_of(Engine& engine) {
    auto session = test::open_session(engine);
    const std::vector<int32_t> ids = prompt(engine, 40, 1);
    std::vector<float> all, rows;
    for (size_t at = 0; at < ids.size(); at += at ? 1 : 33) {
        Feed feed{.session = session.get(), .tokens = std::span(ids).subspan(at, at ? 1 : 33), .logits = &rows};
        REQUIRE(engine.run({&feed, 1}).ok());
        all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
}

// How far the logits of two tokens lie apart behind these ids, as a part of the largest.
float distance(Engine& engine, std::span<const int32_t> ids, int32_t a, int32_t b) {
    auto session = test::open_session(engine);
    std::vector<float> row;
    Feed feed{.session = session.get(), .tokens = ids, .logits = &row};
    REQUIRE(engine.run({&feed, 1}).ok());
    float largest = 0;
    for (float x : row) largest = std::max(largest, std::abs(x));
    return std::abs(row[static_cast<size_t>(a)] - row[static_cast<size_t>(b)]) / largest;
}

}  // namespace

TEST_CASE("determinism: the same bits from run to run and from engine to engine") {
    for (const BackendEntry& entry : backend_table()) {
        if (!entry.available() || std::string(entry.name) == "reference") continue;
        for (const std::string& name : test::model_names()) {
            INFO(name << " on " << std::string(entry.name));
            auto engine = test::load({.model = test::model(name), .backend = entry.name});
            const std::vector<float> first = logits_of(*engine);
            for (int i = 0; i < 3; i++) CHECK(logits_of(*engine) == first);    // on a GPU: launched, captured, replayed
            CHECK(logits_of(*test::load({.model = test::model(name), .backend = entry.name})) == first);
        }
    }
}

TEST_CASE("determinism: a batch generates for each prompt what it gets alone") {
    for (const BackendEntry& entry : backend_table()) {
        if (!entry.available() || std::string(entry.name) == "reference") continue;
        for (const std::string& name : test::model_names()) {
            INFO(name << " on " << std::string(entry.name));
            auto engine = test::load({.model = test::model(name), .backend = entry.name});
            std::vector<std::vector<int32_t>> prompts;
            for (size_t length : {7, 1, 30, 40, 12}) prompts.push_back(prompt(*engine, length, static_cast<uint32_t>(length)));
            auto together = generate_batch(*engine, prompts, 16);
            REQUIRE_MESSAGE(together.ok(), together.status().message());
            for (size_t i = 0; i < prompts.size(); i++) {
                auto alone = generate_batch(*engine, {prompts[i]}, 16);
                REQUIRE(alone.ok());
                const std::vector<int32_t>&one = (*alone)[0], &beside = (*together)[i];
                REQUIRE(one.size() == beside.size());
                const auto same = static_cast<size_t>(std::mismatch(one.begin(), one.end(), beside.begin()).first - one.begin());
                if (same == one.size()) continue;
                INFO("prompt " << i << ", token " << same << ": " << one[same] << " alone, " << beside[same] << " in the batch");
                REQUIRE(std::string(entry.name) == "cuda");
                std::vector<int32_t> until = prompts[i];
                until.insert(until.end(), one.begin(), one.begin() + static_cast<std::ptrdiff_t>(same));
                CHECK(distance(*engine, until, one[same], beside[same]) < 5e-3f);
            }
        }
    }
}
