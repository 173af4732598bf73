// modules_to_not_convert against every recorded answer of both transformers generations.
#include <doctest/doctest.h>
#include "core/json.h"
#include "core/skip_rule.h"
#include "tests/support.h"

using namespace awq;

namespace {

std::string outcome(const std::vector<std::string>& entries, SkipRule::Reading reading, const std::string& path) {
    auto rule = SkipRule::create(entries, reading, "modules_to_not_convert");
    if (!rule.ok()) return "error";
    auto match = rule->match(path);
    return !match.ok() ? "error" : match->empty() ? "false" : "true";
}

}  // namespace

TEST_CASE("skip rule: as transformers 4.57 and 5.23 decide") {
    size_t count = 0;
    for (const std::string& line : test::lines(test::read_gzip("tests/data/plan/match.jsonl.gz"))) {
        auto c = parse_json(line);
        REQUIRE(c.ok());
        std::vector<std::string> entries;
        for (const Json& entry : c->find("keys")->items()) entries.push_back(entry.string());
        const std::string& path = c->find("path")->string();
        for (SkipRule::Reading reading : {SkipRule::Reading::substring, SkipRule::Reading::boundary_pattern}) {
            const char* key = reading == SkipRule::Reading::substring ? "skip_4_57" : "skip_5_23";
            const Json& expected = *c->find(key);
            std::string want = expected.is_object() ? "error" : expected.boolean() ? "true" : "false";
            CHECK_MESSAGE(outcome(entries, reading, path) == want, key << " " << line);
            count++;
        }
    }
    CHECK(count == 1830);
}

TEST_CASE("skip rule: reasons, and compressed-tensors' list") {
    auto rule = SkipRule::create({"mlp.gate", "q_proj"}, SkipRule::Reading::substring, "modules_to_not_convert");
    REQUIRE(rule.ok());
    CHECK(*rule->match("model.layers.0.mlp.gate_proj") == "modules_to_not_convert: \"mlp.gate\" (part of the path)");
    CHECK(*rule->match("model.layers.0.self_attn.q_proj") == "modules_to_not_convert: \"q_proj\" (leaf name)");
    CHECK(*rule->match("lm_head") == "");
    auto list = SkipRule::create({"re:.*head", "model.layers.1.mlp.down_proj", "gate"}, SkipRule::Reading::ignore_list, "ignore");
    REQUIRE(list.ok());
    CHECK(*list->match("lm_head.more") == "ignore: \"re:.*head\" (pattern)");  // re.match: the end is free
    CHECK(*list->match("model.layers.1.mlp.down_proj") == "ignore: \"model.layers.1.mlp.down_proj\" (the path)");
    CHECK(*list->match("model.layers.11.mlp.down_proj") == "");
    CHECK(*list->match("model.layers.1.gate") == "");
}

TEST_CASE("skip rule: hostile patterns cost little") {
    std::string path = "model.layers.0." + std::string(60, 'a');
    auto slow = SkipRule::create({"(a+)+$|(.*.*)*b"}, SkipRule::Reading::boundary_pattern, "modules_to_not_convert");
    REQUIRE(slow.ok());
    auto match = slow->match(path);
    if (!match.ok()) CHECK(match.status().message().find("gave up on") != std::string::npos);
    for (const char* foreign : {"(*ACCEPT)", "(?C1)a", "(?R)", "(?i)a", "\\K", "(?<n>a)", "(?|a|b)", "\\Qa\\E"})
        CHECK_MESSAGE(!SkipRule::create({foreign}, SkipRule::Reading::boundary_pattern, "x").ok(), foreign);
    for (const char* python : {"(?i:a)", "(?P<n>a)(?P=n)", "[]()*?]", "\\(*", "a(?=b)", "(?<!c)d"})
        CHECK_MESSAGE(SkipRule::create({python}, SkipRule::Reading::boundary_pattern, "x").ok(), python);
    CHECK(!SkipRule::create(std::vector<std::string>(2000, "a"), SkipRule::Reading::substring, "x").ok());
    auto deep = SkipRule::create({std::string(3000, '(')}, SkipRule::Reading::boundary_pattern, "x");
    CHECK(!deep.ok());
}
