// Rotary frequencies against the published formulas, written out here a second time in double precision.
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <numbers>
#include "core/model.h"

using namespace awq;

namespace {

struct Read {
    RopeParams rope;
    Status status;
};

Read read(const std::string& text, int64_t head_dim = 64, double partial = 1, int64_t positions = 4096) {
    auto json = parse_json(text);
    REQUIRE_MESSAGE(json.ok(), text);
    ConfigReader reader(*json, "config.json");
    RopeParams rope = read_rope(reader, head_dim, partial, 10000, positions);
    return {rope, reader.status()};
}

double plain(double theta, int dim, int i) { return std::pow(theta, -2.0 * i / dim); }

void close(const std::vector<float>& got, const std::vector<double>& want) {
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < want.size(); i++) CHECK(got[i] == doctest::Approx(want[i]).epsilon(1e-6));
}

}  // namespace

TEST_CASE("rope: plain, partial and linear") {
    auto [rope, status] = read(R"({"rope_theta": 500000.0})");
    REQUIRE(status.ok());
    CHECK(rope.rot_dim == 64);
    CHECK(rope.theta == 500000);
    CHECK(rope.inv_freq[0] == 1.0f);
    std::vector<double> want, scaled;
    for (int i = 0; i < 32; i++) want.push_back(plain(500000, 64, i));
    close(rope.inv_freq, want);

    auto quarter = read("{}", 64, 0.25);
    CHECK(quarter.rope.rot_dim == 16);
    want.clear();
    for (int i = 0; i < 8; i++) want.push_back(plain(10000, 16, i)), scaled.push_back(want.back() / 4);
    close(quarter.rope.inv_freq, want);
    close(read(R"({"rope_scaling": {"type": "linear", "factor": 4}})", 16).rope.inv_freq, scaled);
    close(read(R"({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000}})", 16).rope.inv_freq, scaled);
    CHECK(read(R"({"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5}})").rope.rot_dim == 32);
}

TEST_CASE("rope: float32 as transformers computes it") {
    // values printed by a float32 evaluation of 1 / theta ** (arange(0, 128, 2) / 128)
    auto [rope, status] = read(R"({"rope_theta": 10000})", 128);
    REQUIRE(status.ok());
    CHECK(rope.inv_freq[1] == 0.865964353f);
    CHECK(rope.inv_freq[32] == 0.01f);
}

TEST_CASE("rope: llama3 keeps short waves, stretches long ones, blends between") {
    auto [rope, status] = read(R"({"rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})",
                               128, 1, 131072);
    REQUIRE(status.ok());
    std::vector<double> want;
    int kept = 0, stretched = 0, blended = 0;
    for (int i = 0; i < 64; i++) {
        double f = plain(500000, 128, i), wave = 2 * std::numbers::pi / f;
        if (wave < 8192.0 / 4)
            kept++, want.push_back(f);
        else if (wave > 8192.0)
            stretched++, want.push_back(f / 8);
        else {
            double smooth = (8192 / wave - 1) / (4 - 1);
            blended++, want.push_back((1 - smooth) * f / 8 + smooth * f);
        }
    }
    CHECK(kept > 0);
    CHECK(stretched > 0);
    CHECK(blended > 0);
    REQUIRE(rope.inv_freq.size() == 64);
    for (int i = 0; i < 64; i++) CHECK(rope.inv_freq[i] == doctest::Approx(want[i]).epsilon(1e-5));
    CHECK(rope.attention_factor == 1);
    CHECK(rope.kind == RopeParams::Kind::fixed);
}

TEST_CASE("rope: yarn, its ramp, its attention factor, and truncate") {
    auto yarn = [](double factor, double context, int dim, bool truncate) {
        auto column = [&](double turns) {
            return dim * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(10000.0));
        };
        double low = column(32), high = column(1);
        if (truncate) low = std::floor(low), high = std::ceil(high);
        low = std::max(low, 0.0), high = std::min(high, dim - 1.0);
        std::vector<double> want;
        for (int i = 0; i < dim / 2; i++) {
            double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0), f = plain(10000, dim, i);
            want.push_back(f / factor * ramp + f * (1 - ramp));
        }
        return want;
    };
    auto [rope, status] =
        read(R"({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}})", 64, 1, 8192);
    REQUIRE(status.ok());
    close(rope.inv_freq, yarn(4, 2048, 64, true));
    CHECK(rope.attention_factor == doctest::Approx(0.1 * std::log(4.0) + 1));
    close(
        read(R"({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "truncate": false}})")
            .rope.inv_freq,
        yarn(4, 2048, 64, false));
    // without the original length: max_position_embeddings
    close(read(R"({"rope_scaling": {"type": "yarn", "factor": 2.0}})", 64, 1, 1024).rope.inv_freq, yarn(2, 1024, 64, true));
    CHECK(read(R"({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5}})").rope.attention_factor == 1.5f);
    auto deepseek = read(R"({"rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 1.0}})");
    CHECK(deepseek.rope.attention_factor == doctest::Approx((0.1 * 0.707 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1)));
}

TEST_CASE("rope: dynamic and longrope keep what depends on the length") {
    auto dynamic =
        read(R"({"rope_scaling": {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 7}})", 64, 1, 16).rope;
    CHECK(dynamic.kind == RopeParams::Kind::dynamic);
    CHECK(dynamic.factor == 4);
    CHECK(dynamic.original_length == 16);

    const std::string factors = R"("short_factor": [1.0, 1.5], "long_factor": [2.0, 8.0])";
    auto check = [&](const std::string& config, double stretch, int64_t original) {
        const Read result = read(config, 4, 1, 128);
        const RopeParams& rope = result.rope;
        REQUIRE_MESSAGE(result.status.ok(), result.status.message());
        CHECK(rope.kind == RopeParams::Kind::longrope);
        CHECK(rope.original_length == original);
        close(rope.inv_freq, {1.0, 1 / (1.5 * 100)});
        close(rope.long_inv_freq, {0.5, 1 / (8.0 * 100)});
        double want = stretch > 1 ? std::sqrt(1 + std::log(stretch) / std::log(static_cast<double>(original))) : 1;
        CHECK(rope.attention_factor == doctest::Approx(want));
    };
    check(R"({"original_max_position_embeddings": 16, "rope_scaling": {"type": "longrope", )" + factors + "}}", 8, 16);
    check(R"({"original_max_position_embeddings": 16, "rope_scaling": {"type": "su", )" + factors + "}}", 8, 16);
    check(R"({"original_max_position_embeddings": 16, "rope_scaling": {"type": "yarn", )" + factors + "}}", 8, 16);
    check(R"({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32, )" + factors + "}}", 4, 32);
    check(R"({"rope_scaling": {"rope_type": "longrope", "factor": 2.0, )" + factors + "}}", 2, 128);
}

TEST_CASE("rope: what is wrong is named") {
    const std::pair<const char*, const char*> bad[] = {
        {R"({"rope_scaling": {"type": "mrope"}})",
         "config.json: rope_scaling.type: \"mrope\" is not a rope type known here; expected one of "
         "default, linear, dynamic, llama3, yarn, longrope"},
        {R"({"rope_scaling": {"type": "linear"}})",
         "config.json: rope_scaling.factor: nothing; expected a number, which rope type linear needs"},
        {R"({"rope_scaling": {"type": "linear", "factor": "4"}})",
         "config.json: rope_scaling.factor: \"4\"; expected a number from 0.001 to 1e+06"},
        {R"({"rope_scaling": [4]})", "config.json: rope_scaling: an array; expected an object"},
        {R"({"rope_theta": 0})", "config.json: rope_theta: 0; expected a number from 0.001 to 1e+15"},
        {R"({"rope_theta": -1.5})", "config.json: rope_theta: -1.5; expected a number from 0.001 to 1e+15"},
        {R"({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}})",
         "config.json: rope_scaling.short_factor: 1 numbers; expected 32, one for each pair of rotating columns"},
        {R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 9}})",
         "config.json: rope_scaling.high_freq_factor: 4; expected more than low_freq_factor"},
        {R"({"rope_scaling": {"rope_type": "llama3", "factor": 8}})",
         "config.json: rope_scaling.low_freq_factor: nothing; expected a number, which rope type llama3 needs"},
    };
    for (const auto& [config, message] : bad) CHECK(read(config).status.message() == message);
    CHECK(read("{}", 5).status.message() == "config.json: head_dim: 5 rotating columns a head; expected an even number above 0");
    CHECK(!read("{}", 64, 0).status.ok());
}
