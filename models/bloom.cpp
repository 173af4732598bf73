// BLOOM: ALiBi, a norm after the embedding, q, k and v of each head together in one Linear.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    config.vocab_size = reader.integer("vocab_size", 250880, 1, max_vocabulary);
    const char* hidden_key = reader.has("n_embed") ? "n_embed" : "hidden_size";
    config.hidden_size = reader.integer(hidden_key, 64, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer(reader.any({"n_layer", "num_hidden_layers"}), 2, 1, max_layers));
    config.heads = config.kv_heads =
        static_cast<int32_t>(reader.integer(reader.any({"n_head", "num_attention_heads"}), 8, 1, max_width));
    config.intermediate_size = 4 * config.hidden_size;
    config.max_positions = reader.integer("seq_length", 2048, 1, max_context);
    config.norm_eps = static_cast<float>(reader.real("layer_norm_epsilon", 1e-5, 0, 1));
    config.activation = Activation::gelu_tanh;
    config.tied = reader.boolean("tie_word_embeddings", true);
    config.residual_after_norm = reader.boolean("apply_residual_connection_post_layernorm", false);
    config.attention_bias = config.attention_out_bias = config.mlp_bias = true;
    config.alibi = true;
    check_heads(reader, config, hidden_key, "n_head");
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    int64_t hidden = config.hidden_size;
    tree.embedding("transformer.word_embeddings", config.vocab_size, hidden);
    tree.norm("transformer.word_embeddings_layernorm", hidden, true);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "transformer.h." + std::to_string(i);
        tree.norm(path + ".input_layernorm", hidden, true);
        heads_apart(tree.linear(path + ".self_attention.query_key_value", hidden, 3 * hidden, true), config.heads, 1, config.head_dim);
        tree.linear(path + ".self_attention.dense", hidden, hidden, true).split = RankSplit::in;
        tree.norm(path + ".post_attention_layernorm", hidden, true);
        add_mlp(tree, path + ".mlp", {"dense_h_to_4h", "gelu_impl", "dense_4h_to_h"}, hidden, config.intermediate_size, true);
    }
    tree.norm("transformer.ln_f", hidden, true);
    add_head(tree, config, "lm_head", "transformer.word_embeddings");
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.norm(b.embed("transformer.word_embeddings"), "transformer.word_embeddings_layernorm", NormKind::layer);
    const float* slopes = alibi_slopes(b, c.heads);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "transformer.h." + std::to_string(i), attn = layer + ".self_attention", mlp_path = layer + ".mlp";
        NodeId normed = b.norm(x, layer + ".input_layernorm", NormKind::layer);
        AttentionArgs args{.path = attn, .layer = i, .alibi = slopes};
        b.split_qkv(b.linear(normed, attn + ".query_key_value"), args);
        x = b.linear_add(attention(b, args), attn + ".dense", c.residual_after_norm ? normed : x);
        normed = b.norm(x, layer + ".post_attention_layernorm", NormKind::layer);
        x = mlp(b, {normed, mlp_path + ".dense_h_to_4h", mlp_path + ".gelu_impl", mlp_path + ".dense_4h_to_h", c.residual_after_norm ? normed : x});
    }
    b.logits(x, "transformer.ln_f", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_bloom;
const Model model_bloom = {
    .model_type = "bloom",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
