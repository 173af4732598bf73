#include <cmath>
#include <doctest/doctest.h>
#include <limits>
#include <map>
#include "core/text/sampler.h"

using namespace awq;

namespace {

std::map<int32_t, int> draw(SamplingOptions options, std::vector<float> logits, int count) {
    std::map<int32_t, int> seen;
    options.sample = true;
    for (int i = 0; i < count; i++) {
        options.seed = static_cast<uint64_t>(i);
        auto copy = logits;
        seen[*Sampler(options).next(copy)]++;
    }
    return seen;
}

const std::vector<float> four = {std::log(0.1f), std::log(0.4f), std::log(0.3f), std::log(0.2f)};

}  // namespace

TEST_CASE("sampler: greedy takes the best, among equals the first") {
    std::vector<float> logits = {1, 3, 3, 2};
    CHECK(*Sampler(SamplingOptions()).next(logits) == 1);
}

TEST_CASE("sampler: draws follow the probabilities; temperature sharpens them") {
    SamplingOptions o;
    o.top_k = 0;
    auto seen = draw(o, four, 20000);
    CHECK(seen[0] == doctest::Approx(2000).epsilon(0.1));
    CHECK(seen[1] == doctest::Approx(8000).epsilon(0.05));
    o.temperature = 0.5f;    // squares: 1 16 9 4 of 30
    seen = draw(o, four, 20000);
    CHECK(seen[1] == doctest::Approx(20000 * 16 / 30.0).epsilon(0.05));
    CHECK(seen[0] == doctest::Approx(20000 / 30.0).epsilon(0.2));
}

TEST_CASE("sampler: top-k, top-p and min-p cut the tail") {
    SamplingOptions o;
    o.top_k = 2;
    CHECK(draw(o, four, 500).size() == 2);
    o.top_k = 0;
    o.top_p = 0.69f;    // 0.4 + 0.3 hold it
    CHECK(draw(o, four, 500).size() == 2);
    o.top_p = 0.71f;
    CHECK(draw(o, four, 500).size() == 3);
    o.top_p = 0;
    CHECK(draw(o, four, 50).size() == 1);
    o.top_p = 1;
    o.min_p = 0.6f;     // of 0.4: 0.24
    CHECK(draw(o, four, 500).size() == 2);
    o.temperature = 0;
    CHECK(draw(o, four, 50).size() == 1);
}

TEST_CASE("sampler: penalties") {
    SamplingOptions o;
    o.repeat_penalty = 2;
    Sampler repeat(o);
    std::vector<int32_t> prompt = {1};
    repeat.prompt(prompt);
    std::vector<float> logits = {1.5f, 2.0f, -1.0f};
    CHECK(*repeat.next(logits) == 0);
    CHECK(logits[1] == 1.0f);
    std::vector<float> again = {1.5f, 2.0f, -1.0f};    // 0 is in the answer now
    CHECK(*repeat.next(again) == 1);
    SamplingOptions p;
    p.presence_penalty = 0.5f;
    p.frequency_penalty = 0.25f;
    Sampler presence(p);
    presence.prompt(prompt);                           // the prompt does not count here
    std::vector<float> first = {1, 2}, second = {1, 2}, third = {1, 2};
    CHECK(*presence.next(first) == 1);
    CHECK(*presence.next(second) == 1);
    CHECK(second[1] == 1.25f);
    CHECK(*presence.next(third) == 0);
    CHECK(third[1] == 1.0f);
}

TEST_CASE("sampler: what is not finite is an error, not a token") {
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        std::vector<float> logits = {1, bad, 2};
        auto next = Sampler(SamplingOptions()).next(logits);
        REQUIRE(!next.ok());
        CHECK(next.status().code() == Code::non_finite);
    }
}

TEST_CASE("sampler: ranges are checked by name") {
    SamplingOptions o;
    o.top_p = 0;  // the likeliest alone, as in transformers
    CHECK(check_sampling(o).ok());
    o.top_p = -0.5f;
    CHECK(check_sampling(o).message() == "top_p: -0.5; expected 0 to 1");
    o = {};
    o.temperature = std::nanf("");
    CHECK(check_sampling(o).message() == "temperature: not finite; expected 0 to 100");
    auto refused = [](auto member, auto value) {
        SamplingOptions options;
        options.*member = value;
        return check_sampling(options).message();
    };
    for (float bad : {-1.0f, 101.0f}) CHECK(refused(&SamplingOptions::temperature, bad).find("expected 0 to 100") != std::string::npos);
    CHECK(refused(&SamplingOptions::top_k, -1) == "top_k: -1.0; expected 0 (off) or more");
    CHECK(refused(&SamplingOptions::top_p, 1.5f) == "top_p: 1.5; expected 0 to 1");
    for (float bad : {-0.5f, 1.5f}) CHECK(refused(&SamplingOptions::min_p, bad).find("min_p: ") == 0);
    for (float bad : {0.0f, 101.0f}) CHECK(refused(&SamplingOptions::repeat_penalty, bad).find("repetition_penalty: ") == 0);
    for (float bad : {-101.0f, 101.0f, std::nanf("")}) {
        CHECK(refused(&SamplingOptions::presence_penalty, bad).find("presence_penalty: ") == 0);
        CHECK(refused(&SamplingOptions::frequency_penalty, bad).find("frequency_penalty: ") == 0);
    }
}

TEST_CASE("sampler: ids that no logit has, equal logits, and cuts that leave everything") {
    SamplingOptions o;
    o.frequency_penalty = 1;
    o.repeat_penalty = 2;
    Sampler penalised(o);
    const std::vector<int32_t> outside = {-1, 7, 0};
    penalised.prompt(outside);
    std::vector<float> logits = {-1, -3};
    CHECK(*penalised.next(logits) == 0);
    CHECK(logits[0] == -2);
    SamplingOptions cut;
    cut.sample = true;
    cut.top_k = 5;
    cut.top_p = 0.999f;
    cut.min_p = 0.001f;
    std::vector<float> equal = {1, 1, 1};
    CHECK(*Sampler(cut).next(equal) < 3);
    cut.top_k = 2;
    cut.seed = 3;
    for (int i = 0; i < 20; i++) {
        std::vector<float> again = {1, 1, 1};
        CHECK(*Sampler(cut).next(again) < 2);    // of equals the first are kept
    }
}

TEST_CASE("generation_config: sampling only where it says so, eos from either file") {
    auto read = [](const char* generation, const char* config) { return read_generation_config(*parse_json(generation), *parse_json(config)); };
    auto none = read("null", "{\"eos_token_id\": 2}");
    REQUIRE(none.ok());
    CHECK(!none->sampling.sample);
    CHECK(none->eos_ids == std::vector<int32_t>{2});
    auto both = read("{\"do_sample\": true, \"temperature\": 0.6, \"top_p\": 0.9, \"eos_token_id\": [5, 7]}", "{\"eos_token_id\": 2}");
    REQUIRE(both.ok());
    CHECK(both->sampling.sample);
    CHECK(both->sampling.temperature == 0.6f);
    CHECK(both->sampling.top_k == 50);
    CHECK(both->eos_ids == std::vector<int32_t>{5, 7});
    CHECK(read("{\"top_p\": 2}", "{}").status().message() == "generation_config.json: top_p: 2.0; expected 0 to 1");
    CHECK(read("{\"do_sample\": null, \"top_k\": null, \"temperature\": null, \"eos_token_id\": null}", "{}").ok());
    auto keys = read("{\"do_sample\": true, \"top_k\": 7, \"min_p\": 0.1, \"repetition_penalty\": 1.5}", "{}");
    REQUIRE(keys.ok());
    CHECK(keys->sampling.top_k == 7);
    CHECK(keys->sampling.min_p == 0.1f);
    CHECK(keys->sampling.repeat_penalty == 1.5f);
    CHECK(read("{\"do_sample\": 5}", "{}").status().message() == "generation_config.json: do_sample: found 5; expected true or false");
    for (const char* top_k : {"-1", "1.5", "2147483648", "\"x\""})
        CHECK(read(("{\"top_k\": " + std::string(top_k) + "}").c_str(), "{}").status().message().find("generation_config.json: top_k: found ") == 0);
    CHECK(read("{\"temperature\": \"x\"}", "{}").status().message().find("generation_config.json: temperature: ") == 0);
    for (const char* id : {"-1", "2147483648", "1.5", "[1, -1]"})
        CHECK(read(("{\"eos_token_id\": " + std::string(id) + "}").c_str(), "{}").status().message().find("generation_config.json: eos_token_id: found ") == 0);
    CHECK(read("{}", "{\"eos_token_id\": []}").ok());
    CHECK(read("{\"eos_token_id\": \"2\"}", "{}").status().message() == "generation_config.json: eos_token_id: found \"2\"; expected token ids");
}
