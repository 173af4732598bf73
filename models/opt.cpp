// OPT: learned positions (two rows are set apart in front), ReLU, LayerNorms before the blocks, or behind them (350M,
// whose embedding is also narrower than the model).
#include "core/decoder.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    config.vocab_size = reader.integer("vocab_size", 50272, 1, max_vocabulary);
    config.hidden_size = reader.integer("hidden_size", 768, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer("num_hidden_layers", 12, 1, max_layers));
    config.heads = config.kv_heads = static_cast<int32_t>(reader.integer("num_attention_heads", 12, 1, max_width));
    config.intermediate_size = reader.integer("ffn_dim", 3072, 1, max_width);
    config.max_positions = reader.integer("max_position_embeddings", 2048, 1, max_context);
    config.embed_size = reader.integer("word_embed_proj_dim", config.hidden_size, 1, max_width);
    config.activation = reader.activation("activation_function", "relu");
    config.tied = reader.boolean("tie_word_embeddings", true);
    config.norm_before = reader.boolean("do_layer_norm_before", true);
    config.final_norm = config.norm_before && !reader.boolean("_remove_final_layer_norm", false);
    config.norm_weight = config.norm_bias = reader.boolean("layer_norm_elementwise_affine", true);
    config.attention_bias = config.attention_out_bias = config.mlp_bias = reader.boolean("enable_bias", true);
    config.norm_eps = 1e-5f;
    check_heads(reader, config, "hidden_size", "num_attention_heads");
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    int64_t hidden = config.hidden_size, embed = config.embed_size;
    auto norm = [&](const std::string& path) {
        Module& module = tree.norm(path, hidden, config.norm_bias);
        module.weight = config.norm_weight;
    };
    tree.embedding("model.decoder.embed_tokens", config.vocab_size, embed);
    tree.embedding("model.decoder.embed_positions", config.max_positions + 2, hidden);
    if (embed != hidden) {
        tree.linear("model.decoder.project_out", hidden, embed);
        tree.linear("model.decoder.project_in", embed, hidden);
    }
    if (config.final_norm) norm("model.decoder.final_layer_norm");
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "model.decoder.layers." + std::to_string(i);
        add_attention(tree, config, path, {.o = "out_proj"});
        norm(path + ".self_attn_layer_norm");
        add_mlp(tree, path, {"fc1", nullptr, "fc2"}, hidden, config.intermediate_size, config.mlp_bias);
        norm(path + ".final_layer_norm");
    }
    add_head(tree, config, "lm_head", "model.decoder.embed_tokens");
}

}  // namespace

extern const Model model_opt;
const Model model_opt = {
    .model_type = "opt",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = nullptr,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
