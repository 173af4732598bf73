// quantization_config: every recorded case of transformers' AwqConfig, then this project's own rules. Where the two part
// on purpose the case is listed here with its reason; docs/compatibility.md says the same in words.
#include <doctest/doctest.h>
#include <map>
#include "core/checkpoint/awq_config.h"
#include "tests/support.h"

using namespace awq;

namespace {

Json parsed(const std::string& text) {
    auto json = parse_json(text);
    REQUIRE_MESSAGE(json.ok(), text);
    return std::move(*json);
}

std::vector<Json> cases(const std::string& op) {
    std::vector<Json> all;
    for (const std::string& line : test::lines(test::read_gzip("tests/data/plan/awq_config.jsonl.gz")))
        if (Json json = parsed(line); json.find("op")->string() == op) all.push_back(std::move(json));
    REQUIRE(!all.empty());
    return all;
}

Result<AwqConfig> read(const std::string& json, const AwqOverrides& overrides = {}, const std::string& file = "config.json") {
    return read_awq_config(parsed(json), file, overrides);
}

std::string error(const std::string& json, const AwqOverrides& overrides = {}, const std::string& file = "config.json") {
    auto config = read(json, overrides, file);
    return config.ok() ? "accepted" : config.status().message();
}

// Where the verdict or the outcome differs from the record: the differing keys as JSON -> what happens here instead.
const std::map<std::string, std::string> mended = {
    {R"({"version": "gemv_fast"})", "accepted"},  // formats of other releases (quirk 34)
    {R"({"version": "marlin"})", "accepted"},
    {R"({"bits": 8})", "refused"},  // the reference refuses later (quirk 22)
    {R"({"bits": "4"})", "refused"},
    {R"({"bits": null})", "refused"},
    {R"({"bits": 4.0})", "refused"},
    {R"({"group_size": 0})", "refused"},
    {R"({"group_size": "128"})", "refused"},
    {R"({"zero_point": "yes"})", "refused"},
    {R"({"do_fuse": "true", "fuse_max_seq_len": 128})", "refused"},
    {R"({"do_fuse": 0})", "refused"},
    {R"({"exllama_config": {"version": 2.0}, "version": "exllama"})", "refused"},  // quirk 28
    {R"({"exllama_config": {"version": true}, "version": "exllama"})", "refused"},
    {R"({"exllama_config": {"version": 2}, "version": "exllama"})", "completed"},
    {R"({"q_group_size": 64, "w_bit": 3})", "refused"},    // quirk 21: these names count here
    {R"({"modules_to_not_convert": "gate"})", "letters"},  // kept as the list that it is read as
    {R"({"quant_method": "gptq", "unknown_key": 1})", "another method"},
};

}  // namespace

TEST_CASE("awq config: AwqConfig as transformers builds it") {
    size_t compared = 0, differing = 0;
    for (const Json& c : cases("init")) {
        if (c.has("device") || c.has("autoawq")) continue;  // refusals for want of a GPU or a package: not ours
        const Json& given = *c.find("kwargs");
        Json json = given;
        if (json.is_null()) json = Json::object();
        if (!json.has("quant_method")) json.set("quant_method", "awq");
        std::string key = dump_json(given);
        auto config = read_awq_config(json, "config.json", {});
        auto deviation = mended.find(key);
        const Json& expected = *c.find("expected");
        bool refused = expected.has("error");
        if (deviation == mended.end()) {
            CHECK_MESSAGE(config.ok() == !refused, key);
            if (config.ok() && !refused) CHECK(dump_json(config->to_json()) == dump_json(expected));
        } else {
            differing++;
            bool same = config.ok() == !refused && config.ok() && dump_json(config->to_json()) == dump_json(expected);
            CHECK_MESSAGE(!same, key);  // a deviation that is none any more must leave the list
            CHECK_MESSAGE(config.ok() == (deviation->second != "refused"), key);
        }
        compared++;
    }
    CHECK(compared > 60);
    CHECK(differing == mended.size());
}

TEST_CASE("awq config: quantization_config as it stands in a checkpoint") {
    for (const Json& c : cases("from_dict")) {
        const Json& expected = *c.find("expected");
        std::string given = dump_json(*c.find("dict"));
        auto config = read_awq_config(*c.find("dict"), "config.json", {});
        if (expected.has("not_quantized")) {
            REQUIRE_MESSAGE(config.ok(), given);
            CHECK_FALSE(config->quantized());
            CHECK(config->warnings.size() == 1);
        } else if (given.find("q_group_size") != given.npos && c.find("dict")->has("quant_method")) {
            REQUIRE(config.ok());
            CHECK(config->group_size == 64);  // quirk 21: the alias counts
        } else if (given.find("\"4\"") != given.npos) {
            CHECK_FALSE(config.ok());  // the reference refuses when it builds the Linears
        } else {
            CHECK_MESSAGE(config.ok() == !expected.has("error"), given);
            if (config.ok()) CHECK(dump_json(config->to_json()) == dump_json(expected));
        }
    }
}

TEST_CASE("awq config: the stored form is the full dictionary, sorted") {
    for (const Json& c : cases("json")) {
        const Json* text = c.find("expected")->find("json");
        if (!text) continue;
        Json json = *c.find("kwargs");
        json.set("quant_method", "awq");
        auto config = read_awq_config(json, "config.json", {});
        REQUIRE(config.ok());
        CHECK(dump_json(config->to_json(), 2) + "\n" == text->string());
    }
}

TEST_CASE("awq config: version and backend stay what they are without a GPU") {
    for (const Json& c : cases("environment")) {
        Json json = *c.find("kwargs");
        json.set("quant_method", "awq");
        auto config = read_awq_config(json, "config.json", {});
        REQUIRE(config.ok());
        const Json* version = c.find("kwargs")->find("version");
        CHECK(config->version == (version ? version->string() : "gemm"));
    }
}

TEST_CASE("awq config: options override only what they give, and all is validated after the merge") {
    AwqOverrides fuse;
    fuse.do_fuse = true;
    fuse.fuse_max_seq_len = 512;
    auto config = read(R"({"quant_method": "awq", "version": "gemv", "exllama_config": {"version": 1}})", fuse);
    REQUIRE(config.ok());
    CHECK(config->version == "gemv");  // the reference would turn it into gemm (quirk 20)
    CHECK(config->do_fuse);
    CHECK(*config->fuse_max_seq_len == 512);
    CHECK(dump_json(config->exllama_config) == "{\"version\": 1}");

    AwqOverrides none;
    config = read(R"({"quant_method": "awq", "do_fuse": true, "fuse_max_seq_len": 64})", none);
    REQUIRE(config.ok());
    CHECK(config->do_fuse);  // the reference would switch it off

    AwqOverrides version;
    version.version = "GEMV_Fast";
    version.group_size = 64;
    version.modules_to_not_convert = {{"a", "b"}};
    config = read(R"({"quant_method": "awq", "modules_to_not_convert": ["gate"]})", version);
    REQUIRE(config.ok());
    CHECK(config->version == "gemv_fast");
    CHECK(config->group_size == 64);
    CHECK(*config->modules_to_not_convert == std::vector<std::string>{"a", "b"});

    AwqOverrides exllama;
    exllama.version = "exllama";
    exllama.max_input_len = 64;
    config = read(R"({"quant_method": "awq"})", exllama);
    REQUIRE(config.ok());
    CHECK(config->exllama_version == 2);
    CHECK(dump_json(config->exllama_config) == R"({"version": 2, "max_input_len": 64, "max_batch_size": 8})");

    AwqOverrides bad;
    bad.version = "gem";
    CHECK(error(R"({"quant_method": "awq"})", bad) ==
          "config.json with the options given: quantization_config.version: \"gem\"; expected one of gemm, gemv, gemv_fast, "
          "exllama, marlin, ipex, llm-awq");
    AwqOverrides only_fuse;
    only_fuse.do_fuse = true;
    CHECK(error(R"({"quant_method": "awq"})", only_fuse).find("fuse_max_seq_len: nothing; expected a number of positions") !=
          std::string::npos);
    AwqOverrides off;
    off.do_fuse = false;  // what is switched off is not looked at
    CHECK(read(R"({"quant_method": "awq", "do_fuse": true, "modules_to_fuse": {"mlp": 3}})", off).ok());
}

TEST_CASE("awq config: every refusal names the field and what was expected") {
    const std::pair<const char*, const char*> refusals[] = {
        {R"({"bits": 4})",
         "config.json: quantization_config.quant_method: nothing; expected \"awq\", \"gptq\" or "
         "\"compressed-tensors\""},
        {R"([1])", "config.json: quantization_config: an array; expected an object"},
        {R"({"quant_method": 4})", "config.json: quantization_config.quant_method: 4; expected a string"},
        {R"({"quant_method": "awq", "bits": 8})",
         "config.json: quantization_config.bits: 8; expected 4, the only width this program runs"},
        {R"({"quant_method": "awq", "w_bit": 3})",
         "config.json: quantization_config.w_bit: 3; expected 4, the only width this program runs"},
        {R"({"quant_method": "awq", "group_size": 0})",
         "config.json: quantization_config.group_size: 0; expected -1 or a number of columns above 0"},
        {R"({"quant_method": "awq", "group_size": -2})",
         "config.json: quantization_config.group_size: -2; expected an integer from -1 to 2147483648"},
        {R"({"quant_method": "awq", "zero_point": "yes"})",
         "config.json: quantization_config.zero_point: \"yes\"; expected true or false"},
        {R"({"quant_method": "awq", "version": null})",
         "config.json: quantization_config.version: null; expected one of gemm, gemv, gemv_fast, exllama, marlin, ipex, llm-awq"},
        {R"({"quant_method": "awq", "backend": null})",
         "config.json: quantization_config.backend: null; expected one of autoawq, llm-awq, auto"},
        {R"({"quant_method": "awq", "backend": "AutoAWQ"})",
         "config.json: quantization_config.backend: \"AutoAWQ\"; expected one of autoawq, llm-awq, auto"},
        {R"({"quant_method": "awq", "modules_to_not_convert": [1]})",
         "config.json: quantization_config.modules_to_not_convert: an array; expected an array of strings"},
        {R"({"quant_method": "awq", "version": "exllama", "exllama_config": {"version": 3}})",
         "config.json: quantization_config.exllama_config.version: 3; expected an integer from 1 to 2"},
        {R"({"quant_method": "awq", "version": "exllama", "exllama_config": {}})",
         "config.json: quantization_config.exllama_config.version: nothing; expected 1 or 2"},
        {R"({"quant_method": "awq", "fuse_max_seq_len": 8, "modules_to_fuse": {"attention": []}})",
         "config.json: quantization_config.modules_to_fuse: lacks hidden_size, num_attention_heads, num_key_value_heads, mlp, "
         "layernorm, use_alibi; expected all of hidden_size, num_attention_heads, num_key_value_heads, mlp, attention, "
         "layernorm, "
         "use_alibi"},
        {R"({"quant_method": "awq", "fuse_max_seq_len": 8, "modules_to_fuse": {"hidden_size": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "mlp": ["a"], "attention": [], "layernorm": [], "use_alibi": false}})",
         "config.json: quantization_config.modules_to_fuse.mlp: an array; expected an array of 3 names, or none"},
        {R"({"quant_method": "awq", "fuse_max_seq_len": 8, "modules_to_fuse": {"hidden_size": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "mlp": "abc", "attention": [], "layernorm": [], "use_alibi": false}})",
         "config.json: quantization_config.modules_to_fuse.mlp: \"abc\"; expected an array of 3 names, or none"},
        {R"({"quant_method": "awq", "fuse_max_seq_len": 8, "modules_to_fuse": {"hidden_size": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "mlp": [], "attention": ["q", "k", "v", 4], "layernorm": [], "use_alibi": false}})",
         "config.json: quantization_config.modules_to_fuse.attention: an array; expected an array of 4 names, or none"},
        {R"({"quant_method": "awq", "fuse_max_seq_len": 8, "modules_to_fuse": {"hidden_size": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "mlp": [], "attention": [], "layernorm": [1], "use_alibi": false}})",
         "config.json: quantization_config.modules_to_fuse.layernorm: an array; expected an array of names"},
        {R"({"quant_method": "awq", "modules_to_not_convert": ["a", 1, "b"]})",
         "config.json: quantization_config.modules_to_not_convert: an array; expected an array of strings"},
        {R"({"quant_method": "gptq", "do_fuse": "yes"})", "config.json: quantization_config.do_fuse: \"yes\"; expected true or false"},
        {R"({"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {"g": {"targets": ["Linear"], "weights": {"group_size": 32}}}})",
         "config.json: quantization_config.config_groups.g.format: \"marlin-24\"; expected \"pack-quantized\""},
        {R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "input_activations": {"num_bits": 8}, "weights": {"group_size": 32}}}})",
         "config.json: quantization_config.config_groups.g.input_activations: an object; expected null: only weights quantised"},
        {R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Conv2d"], "weights": {"group_size": 32}}}})",
         "config.json: quantization_config.config_groups.g.targets: does not name it; expected \"Linear\""},
        {R"({"quant_method": "gptq", "bits": 3})",
         "config.json: quantization_config.bits: 3; expected 4, the only width this program runs"},
        {R"({"quant_method": "gptq", "checkpoint_format": "marlin"})",
         "config.json: quantization_config.checkpoint_format: \"marlin\"; expected one of gptq, gptq_v2"},
        {R"({"quant_method": "compressed-tensors"})", "config.json: quantization_config.config_groups: 0 groups; expected one"},
        {R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": {"strategy": "group"}}}})",
         "config.json: quantization_config.config_groups.g.weights.group_size: nothing; expected a number of columns above 0 for strategy group"},
        {R"({"quant_method": "awq", "bits": "4"})", "config.json: quantization_config.bits: \"4\"; expected 4, the only width this program runs"},
        {R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8}}}})",
         "config.json: quantization_config.config_groups.g.weights.num_bits: 8; expected 4, the only width this "
         "program runs"},
    };
    for (const auto& [json, message] : refusals) CHECK(error(json) == message);
}

TEST_CASE("awq config: the neighbours, and files of their own") {
    auto gptq = read(R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true, "sym": false})");
    REQUIRE(gptq.ok());
    CHECK(gptq->checkpoint_format == "gptq");
    CHECK(gptq->desc_act);
    CHECK_FALSE(gptq->sym);
    CHECK(
        dump_json(gptq->to_json()) ==
        R"({"bits": 4, "checkpoint_format": "gptq", "desc_act": true, "group_size": 32, "lm_head": false, "quant_method": "gptq", "sym": false})");

    auto packed = read(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*gate"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": false,
        "strategy": "channel", "group_size": null}}}})");
    REQUIRE(packed.ok());
    CHECK(packed->group_size == -1);
    CHECK(packed->zero_point);
    CHECK(packed->ignore == std::vector<std::string>{"lm_head", "re:.*gate"});

    auto own = read(R"({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})", {}, "quant_config.json");
    REQUIRE(own.ok());
    CHECK(own->quant_method == "awq");
    CHECK(own->group_size == 64);
    CHECK(own->version == "gemm");
    auto with_version = read(R"({"bits": 4, "desc_act": false, "version": "gemv"})", {}, "quantize_config.json");
    REQUIRE(with_version.ok());
    CHECK(with_version->quant_method == "awq");  // AutoGPTQ's files have no version
    CHECK(error("[1]", {}, "quantize_config.json") == "quantize_config.json: an array; expected an object");
    CHECK(read(R"({"quant_method": "awq", "backend": "auto"})")->backend == "autoawq");
    CHECK(*read(R"({"quant_method": "awq", "modules_to_not_convert": "hé"})")->modules_to_not_convert == std::vector<std::string>{"h", "é"});
    auto auto_gptq = read(R"({"bits": 4, "group_size": 128, "desc_act": false, "sym": true})", {}, "quantize_config.json");
    REQUIRE(auto_gptq.ok());
    CHECK(auto_gptq->quant_method == "gptq");
    CHECK(error(R"({"w_bit": 8})", {}, "quant_config.json") ==
          "quant_config.json: w_bit: 8; expected 4, the only width this program runs");

    auto none = read_awq_config(Json(), "config.json", {});
    REQUIRE(none.ok());
    CHECK_FALSE(none->quantized());
    CHECK(none->to_json().is_null());
}

TEST_CASE("awq config: what a program overrides") {
    auto overrides = [](const char* text) { return read_awq_overrides(*parse_json(text)); };
    auto all = overrides(R"({"version": "gemv", "backend": "autoawq", "do_fuse": true, "fuse_max_seq_len": 5, "group_size": 64,
        "modules_to_not_convert": ["a", "b"], "modules_to_fuse": {"mlp": []}, "exllama_config": {"version": 2, "max_input_len": 7, "max_batch_size": 8}})");
    REQUIRE_MESSAGE(all.ok(), all.status().message());
    CHECK(*all->version == "gemv");
    CHECK(*all->backend == "autoawq");
    CHECK(*all->do_fuse);
    CHECK(*all->fuse_max_seq_len == 5);
    CHECK(*all->group_size == 64);
    CHECK(*all->modules_to_not_convert == std::vector<std::string>{"a", "b"});
    CHECK(all->modules_to_fuse.has("mlp"));
    CHECK(*all->exllama_version == 2);
    CHECK(*all->max_input_len == 7);
    CHECK(*all->max_batch_size == 8);
    const std::string fused = R"("fuse_max_seq_len": 5, "modules_to_fuse": {"hidden_size": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "mlp": [],
        "attention": [], "layernorm": [], "use_alibi": false})";
    auto merged = read(R"({"quant_method": "awq", "version": "gemm", "exllama_config": {"version": 1, "max_batch_size": 3}})",
                       *overrides((R"({"version": "exllama", "exllama_config": {"max_input_len": 7}, )" + fused + "}").c_str()));
    REQUIRE_MESSAGE(merged.ok(), merged.status().message());
    CHECK(merged->exllama_version == 1);
    CHECK(merged->exllama_max_input_len == 7);
    CHECK(merged->exllama_max_batch_size == 3);
    CHECK(merged->modules_to_fuse.find("hidden_size")->integer() == 1);
    merged = read(R"({"quant_method": "awq", "version": "exllama", "exllama_config": {"version": 1}})",
                  *overrides(R"({"exllama_config": {"version": 2, "max_batch_size": 9}})"));
    REQUIRE_MESSAGE(merged.ok(), merged.status().message());
    CHECK(merged->exllama_version == 2);
    CHECK(merged->exllama_max_batch_size == 9);
    merged = read(R"({"quant_method": "awq", "version": "exllama", "exllama_config": 5})", *overrides(R"({"exllama_config": {"max_batch_size": 9}})"));
    REQUIRE_MESSAGE(merged.ok(), merged.status().message());  // an option takes the place of what is no object
    CHECK(merged->exllama_version == 2);
    auto none = overrides(R"({"exllama_config": {}})");
    REQUIRE(none.ok());
    CHECK_FALSE(none->exllama_version.has_value());
    CHECK_FALSE(none->version.has_value());
    const std::pair<const char*, const char*> bad[] = {
        {"[]", "awq_config: an array found; an object expected"},
        {R"({"bits": 4})", "awq_config: \"bits\" is no option of AwqConfig that can be overridden"},
        {R"({"version": 5})", "awq_config: version: "},
        {R"({"do_fuse": 5})", "awq_config: do_fuse: "},
        {R"({"fuse_max_seq_len": 0})", "awq_config: fuse_max_seq_len: "},
        {R"({"group_size": -2})", "awq_config: group_size: "},
        {R"({"modules_to_not_convert": "a"})", "awq_config: modules_to_not_convert: "},
        {R"({"modules_to_not_convert": ["a", 5, "b"]})", "awq_config: modules_to_not_convert: "},
        {R"({"modules_to_fuse": 5})", "awq_config: modules_to_fuse: "},
        {R"({"exllama_config": 5})", "awq_config: exllama_config: "},
        {R"({"exllama_config": {"version": 3}})", "awq_config: exllama_config.version: "},
    };
    for (const auto& one : bad) {
        const std::string message = overrides(one.first).status().message();
        CHECK_MESSAGE(message.find(one.second) == 0, message);
    }
}
