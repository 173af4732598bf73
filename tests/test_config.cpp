// config.json of every family: what is read, which defaults stand in, what is refused and in which words.
#include <doctest/doctest.h>
#include "core/model.h"
#include "tests/support.h"

using namespace awq;

namespace {

Result<ConfiguredModel> configure(const std::string& text) {
    auto json = parse_json(text);
    REQUIRE_MESSAGE(json.ok(), text);
    return configure_model(*json);
}

ModelConfig config_of(const std::string& text) {
    auto model = configure(text);
    REQUIRE_MESSAGE(model.ok(), model.status().message());
    return model->config;
}

std::string error(const std::string& text) {
    auto model = configure(text);
    return model.ok() ? "accepted" : model.status().message();
}

size_t count(const ModuleTree& tree, ModuleKind kind) {
    size_t n = 0;
    for (const Module& module : tree.modules) n += module.kind == kind;
    return n;
}

}  // namespace

TEST_CASE("config: each family is there, configures from nothing but its name, and has a sound tree") {
    for (const char* name :
         {"llama", "mistral", "mixtral", "llava", "qwen2",    "qwen3",       "qwen3_moe", "phi3",   "starcoder2",  "falcon",
          "mpt",   "bloom",   "opt",     "gptj",  "gpt_neox", "gpt_bigcode", "gemma2",    "gemma3", "gemma3_text", "cohere"}) {
        CAPTURE(name);
        auto model = configure(std::string("{\"model_type\": \"") + name + "\"}");
        REQUIRE_MESSAGE(model.ok(), model.status().message());
        const ModelConfig& c = model->config;
        CHECK(c.hidden_size > 0);
        CHECK(c.head_dim > 0);
        CHECK(c.window.size() == static_cast<size_t>(c.layers));
        ModuleTree tree;
        model->model->tree(c, tree);
        REQUIRE(tree.find(tree.head) != nullptr);
        CHECK(tree.find(tree.head)->out == c.vocab_size);
        for (const FusionGroup& group : tree.groups)
            for (const std::string& member : group.members) CHECK_MESSAGE(tree.find(member), member);
    }
}

TEST_CASE("config: defaults of transformers' classes") {
    ModelConfig c = config_of(R"({"model_type": "llama"})");
    CHECK(c.hidden_size == 4096);
    CHECK(c.intermediate_size == 11008);
    CHECK(c.layers == 32);
    CHECK(c.kv_heads == 32);
    CHECK(c.max_positions == 2048);
    CHECK(c.norm_eps == 1e-6f);
    CHECK_FALSE(c.tied);
    c = config_of(R"({"model_type": "mistral"})");
    CHECK(c.kv_heads == 8);
    CHECK(c.window[0] == 4096);
    CHECK(config_of(R"({"model_type": "mistral", "sliding_window": null, "num_key_value_heads": null})").window[0] == 0);
    CHECK(config_of(R"({"model_type": "mistral", "num_key_value_heads": null})").kv_heads == 32);
    CHECK(config_of(R"({"model_type": "mixtral"})").rope.theta == 1e6);
    CHECK(config_of(R"({"model_type": "qwen3"})").head_dim == 128);
    CHECK(config_of(R"({"model_type": "gemma2"})").tied);
    CHECK(config_of(R"({"model_type": "gemma2"})").attention_softcap == 50);
    CHECK(config_of(R"({"model_type": "gemma2", "attn_logit_softcapping": null})").attention_softcap == 0);
    CHECK(config_of(R"({"model_type": "starcoder2"})").tied);
    CHECK(config_of(R"({"model_type": "gptj"})").rope.interleaved);
    CHECK(config_of(R"({"model_type": "gptj"})").rope.rot_dim == 64);
    CHECK(config_of(R"({"model_type": "gpt_neox"})").rope.rot_dim == 24);
    CHECK(config_of(R"({"model_type": "cohere"})").logit_scale == 0.0625f);
    CHECK(config_of(R"({"model_type": "qwen3_moe"})").norm_topk == false);
}

TEST_CASE("config: windows by layer") {
    ModelConfig c = config_of(R"({"model_type": "gemma2", "num_hidden_layers": 4})");
    CHECK(c.window == std::vector<int32_t>{4096, 0, 4096, 0});
    c = config_of(R"({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 8})");
    CHECK(c.window == std::vector<int32_t>{8, 8, 8, 8, 8, 0, 8});
    CHECK(c.rope.theta == 1e6);
    CHECK(c.local_rope.theta == 10000);
    c = config_of(R"({"model_type": "gemma3_text", "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}, "sliding_attention": {"rope_theta": 123}}})");
    CHECK(c.window == std::vector<int32_t>{0, 4096});
    CHECK(c.rope.theta == 5e5);
    CHECK(c.rope.inv_freq[0] == 0.125f);
    CHECK(c.local_rope.theta == 123);
    c = config_of(
        R"({"model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1})");
    CHECK(c.window == std::vector<int32_t>{0, 16, 16});
    CHECK(config_of(R"({"model_type": "qwen2", "num_hidden_layers": 1, "sliding_window": 16})").window[0] == 0);
}

TEST_CASE("config: old names of fields and of model types") {
    ModelConfig c = config_of(R"({"model_type": "RefinedWebModel", "n_embed": 128, "n_head": 4, "n_layer": 3})");
    CHECK(c.hidden_size == 128);
    CHECK(c.heads == 4);
    CHECK(c.layers == 3);
    CHECK(c.kv_heads == 1);
    c = config_of(R"({"model_type": "bloom", "n_embed": 96, "num_attention_heads": 6, "num_hidden_layers": 5})");
    CHECK(c.head_dim == 16);
    CHECK(c.layers == 5);
}

TEST_CASE("config: llava") {
    auto json = test::read_bytes("tests/data/plan/configs/llava-1.5-7b.json");
    auto model = configure(json);
    REQUIRE(model.ok());
    const ModelConfig& c = model->config;
    CHECK(c.hidden_size == 4096);  // text_config names no sizes: Llama's
    CHECK(c.intermediate_size == 11008);
    CHECK(c.layers == 32);
    CHECK(c.vocab_size == 32064);
    CHECK(c.vision.layers == 24);
    CHECK(c.vision.layers_needed() == 23);
    CHECK(c.rows_per_image() == 576);
    ModuleTree tree;
    model->model->tree(c, tree);
    CHECK(tree.head == "language_model.lm_head");
    const Module* q = tree.find("language_model.model.layers.0.self_attn.q_proj");
    REQUIRE(q);
    CHECK(q->rule_path() == "model.language_model.layers.0.self_attn.q_proj");
    CHECK(tree.find("language_model.lm_head")->rule_path() == "lm_head");
    CHECK(tree.find("vision_tower.vision_model.encoder.layers.22.mlp.fc1")->needed);
    CHECK_FALSE(tree.find("vision_tower.vision_model.encoder.layers.23.mlp.fc1")->needed);
    CHECK(tree.find("vision_tower.vision_model.encoder.layers.0.mlp.fc1")->rule_path() ==
          "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1");

    CHECK(error(R"({"model_type": "llava", "text_config": {"model_type": "llava"}})") ==
          "config.json: text_config.model_type: \"llava\" is not a text model known here; expected one of bloom, cohere, falcon, gemma2, "
          "gemma3_text, gpt_bigcode, gpt_neox, gptj, llama, mistral, mixtral, mpt, opt, phi3, qwen2, qwen3, qwen3_moe, starcoder2");
    CHECK(error(R"({"model_type": "llava", "text_config": {"num_attention_heads": 0}})") ==
          "config.json: text_config.num_attention_heads: 0; expected an integer from 1 to 1048576");
    CHECK(error(R"({"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}})") ==
          "config.json: vision_config.model_type: \"siglip_vision_model\"; expected \"clip_vision_model\"");
    CHECK(error(R"({"model_type": "llava", "vision_feature_layer": [-2, -5]})")
              .find("vision_feature_layer: an array; expected an integer") != std::string::npos);
    CHECK(error(R"({"model_type": "llava", "vision_feature_select_strategy": "cls"})") ==
          "config.json: vision_feature_select_strategy: \"cls\"; expected \"default\" or \"full\"");
}

TEST_CASE("config: experts") {
    ModelConfig c =
        config_of(R"({"model_type": "qwen3_moe", "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]})");
    CHECK(c.sparse_layer == std::vector<bool>{false, true, false, false});
    auto model = configure(R"({"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 2})");
    REQUIRE(model.ok());
    ModuleTree tree;
    model->model->tree(model->config, tree);
    CHECK(count(tree, ModuleKind::linear) == 4 + 1 + 6 + 1);
    CHECK(tree.groups[1].members == std::vector<std::string>{"model.layers.0.block_sparse_moe.experts.0.w1",
                                                             "model.layers.0.block_sparse_moe.experts.0.w3",
                                                             "model.layers.0.block_sparse_moe.experts.0.w2"});
    CHECK(error(R"({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3})") ==
          "config.json: num_experts_per_tok: 3; expected at most num_local_experts (2)");
    CHECK(error(R"({"model_type": "mixtral", "num_local_experts": 32000})") ==
          "config.json: num_local_experts: 32000; expected at most 32768 experts in all layers together");
}

TEST_CASE("config: every refusal names field, found and expected") {
    const std::pair<const char*, const char*> refusals[] = {
        {R"([])", "config.json: an array; expected an object"},
        {R"({"model_type": 4})", "config.json: model_type: 4; expected a string"},
        {R"({"model_type": "llama", "hidden_size": 4096.0})",
         "config.json: hidden_size: 4096.0; expected an integer from 1 to 1048576"},
        {R"({"model_type": "llama", "hidden_size": "4096"})",
         "config.json: hidden_size: \"4096\"; expected an integer from 1 to 1048576"},
        {R"({"model_type": "llama", "num_hidden_layers": true})",
         "config.json: num_hidden_layers: true; expected an integer from 1 to 1024"},
        {R"({"model_type": "llama", "num_hidden_layers": 0})",
         "config.json: num_hidden_layers: 0; expected an integer from 1 to 1024"},
        {R"({"model_type": "llama", "num_hidden_layers": 18446744073709551615})",
         "config.json: num_hidden_layers: 18446744073709551615; expected an integer from 1 to 1024"},
        {R"({"model_type": "llama", "hidden_size": 4097})",
         "config.json: hidden_size: 4097; expected a multiple of num_attention_heads (32), as there is no head_dim"},
        {R"({"model_type": "llama", "num_key_value_heads": 5})",
         "config.json: num_attention_heads: 32; expected a multiple of the key/value heads (5)"},
        {R"({"model_type": "llama", "head_dim": 65})",
         "config.json: head_dim: 65 rotating columns a head; expected an even number above 0"},
        {R"({"model_type": "llama", "rms_norm_eps": -1e-5})", "config.json: rms_norm_eps: -1e-05; expected a number from 0 to 1"},
        {R"({"model_type": "llama", "hidden_act": "tanhshrink"})",
         "config.json: hidden_act: \"tanhshrink\" is not an activation known here; expected one of silu, swish, gelu, "
         "gelu_python, gelu_new, "
         "gelu_fast, gelu_pytorch_tanh, gelu_accurate, quick_gelu, relu"},
        {R"({"model_type": "llama", "tie_word_embeddings": "yes"})",
         "config.json: tie_word_embeddings: \"yes\"; expected true or false"},
        {R"({"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": ["full_attention"]})",
         "config.json: layer_types: an array; expected an array of one name for each of the 2 layers"},
        {R"({"model_type": "gemma2", "num_hidden_layers": 1, "layer_types": ["chunked_attention"]})",
         "config.json: layer_types: \"chunked_attention\"; expected \"full_attention\" or \"sliding_attention\""},
        {R"({"model_type": "falcon", "new_decoder_architecture": true, "num_attention_heads": 2, "hidden_size": 8, "parallel_attn": false})",
         "config.json: parallel_attn: false; expected true with new_decoder_architecture"},
        {R"({"model_type": "mpt", "attn_config": {"clip_qkv": 6}})", "config.json: attn_config.clip_qkv: 6; expected null"},
        {R"({"model_type": "mpt", "attn_config": {"alibi": false}})", "config.json: attn_config.alibi: false; expected true"},
        {R"({"model_type": "mpt", "no_bias": false})", "config.json: no_bias: false; expected true"},
        {R"({"model_type": "qwen3_moe", "mlp_only_layers": 5})",
         "config.json: mlp_only_layers: 5; expected an array of integers from 0 to 1024"},
        {R"({"model_type": "qwen3_moe", "mlp_only_layers": [1, 2.0, 3]})",
         "config.json: mlp_only_layers: an array; expected an array of integers from 0 to 1024"},
        {R"({"model_type": "qwen3_moe", "mlp_only_layers": [1, -1]})",
         "config.json: mlp_only_layers: an array; expected an array of integers from 0 to 1024"},
        {R"({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": 5, "long_factor": [1]}})",
         "config.json: rope_scaling.short_factor: 5; expected an array of numbers from 1e-06 to 1e+06"},
        {R"({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1, 1e7, 1], "long_factor": [1]}})",
         "config.json: rope_scaling.short_factor: an array; expected an array of numbers from 1e-06 to 1e+06"},
        {R"({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1, "1"], "long_factor": [1]}})",
         "config.json: rope_scaling.short_factor: an array; expected an array of numbers from 1e-06 to 1e+06"},
        {R"({"model_type": "gptj", "rotary_dim": 512})",
         "config.json: rotary_dim: 512; expected at most the width of a head (256)"},
    };
    for (const auto& [config, message] : refusals) {
        std::string got = error(config);
        CHECK(got == message);
    }
    CHECK(error(R"({"model_type": "t5"})")
              .starts_with("config.json: model_type: \"t5\" is not a model known here; expected one of bloom, cohere, "));
    CHECK(error("{}").starts_with("config.json: model_type: nothing; expected one of bloom"));
    CHECK(error(R"({"model_type": "llama", "unknown_field": {"a": [1]}})") == "accepted");
    CHECK(error(R"({"model_type": "qwen3_moe", "mlp_only_layers": [0, 5, 1000]})") == "accepted");
}
