// MPT: ALiBi, one Linear for q, k and v in three blocks, no bias anywhere, LayerNorms without one. What transformers'
// class leaves out of the original (learned positions, clipping, q/k norms) is refused.
#include "core/decoder.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    config.vocab_size = reader.integer("vocab_size", 50368, 1, max_vocabulary);
    config.hidden_size = reader.integer(reader.any({"d_model", "hidden_size"}), 2048, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer(reader.any({"n_layers", "num_hidden_layers"}), 24, 1, max_layers));
    config.heads = config.kv_heads =
        static_cast<int32_t>(reader.integer(reader.any({"n_heads", "num_attention_heads"}), 16, 1, max_width));
    config.intermediate_size = 4 * config.hidden_size;
    config.max_positions = reader.integer("max_seq_len", 2048, 1, max_context);
    config.norm_eps = static_cast<float>(reader.real("layer_norm_epsilon", 1e-5, 0, 1));
    config.activation = Activation::gelu;
    config.tied = reader.boolean("tie_word_embeddings", true);
    config.norm_bias = false;
    config.alibi = true;
    if (reader.real("expansion_ratio", 4, 0, 1e6) != 4) reader.unexpected("expansion_ratio", "4");
    if (!reader.boolean("no_bias", true)) reader.unexpected("no_bias", "true");
    if (reader.has("logit_scale")) reader.unexpected("logit_scale", "null");
    ConfigReader attention = reader.object("attn_config");
    if (attention.string("attn_type", "multihead_attention") != "multihead_attention")
        attention.unexpected("attn_type", "\"multihead_attention\"");
    if (!attention.boolean("alibi", true)) attention.unexpected("alibi", "true");
    if (attention.boolean("qk_ln", false)) attention.unexpected("qk_ln", "false");
    if (attention.boolean("prefix_lm", false)) attention.unexpected("prefix_lm", "false");
    if (attention.has("clip_qkv")) attention.unexpected("clip_qkv", "null");
    config.alibi_max = static_cast<float>(attention.real("alibi_bias_max", 8, 1e-3, 1e6));
    config.attention_scale = static_cast<float>(attention.real("softmax_scale", 0, 1e-6, 1e6));
    reader.adopt(attention);
    check_heads(reader, config, "d_model", "n_heads");
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    int64_t hidden = config.hidden_size;
    tree.embedding("transformer.wte", config.vocab_size, hidden);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "transformer.blocks." + std::to_string(i);
        tree.norm(path + ".norm_1", hidden);
        tree.linear(path + ".attn.Wqkv", hidden, 3 * hidden);
        tree.linear(path + ".attn.out_proj", hidden, hidden);
        tree.norm(path + ".norm_2", hidden);
        add_mlp(tree, path + ".ffn", {"up_proj", "act", "down_proj"}, hidden, config.intermediate_size, false);
    }
    tree.norm("transformer.norm_f", hidden);
    add_head(tree, config, "lm_head", "transformer.wte");
}

}  // namespace

extern const Model model_mpt;
const Model model_mpt = {
    .model_type = "mpt",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = nullptr,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
