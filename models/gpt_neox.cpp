// GPT-NeoX and Pythia: partial rotation, q, k and v of each head together in one Linear, two norms into a parallel block.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    config.vocab_size = reader.integer("vocab_size", 50432, 1, max_vocabulary);
    config.hidden_size = reader.integer("hidden_size", 6144, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer("num_hidden_layers", 44, 1, max_layers));
    config.heads = config.kv_heads = static_cast<int32_t>(reader.integer("num_attention_heads", 64, 1, max_width));
    config.intermediate_size = reader.integer("intermediate_size", 24576, 1, max_width);
    config.max_positions = reader.integer("max_position_embeddings", 2048, 1, max_context);
    config.norm_eps = static_cast<float>(reader.real("layer_norm_eps", 1e-5, 0, 1));
    config.activation = reader.activation("hidden_act", "gelu");
    config.tied = reader.boolean("tie_word_embeddings", false);
    config.parallel = reader.boolean("use_parallel_residual", true);
    config.attention_bias = config.attention_out_bias = reader.boolean("attention_bias", true);
    config.mlp_bias = true;
    check_heads(reader, config, "hidden_size", "num_attention_heads");
    double theta = reader.real("rotary_emb_base", 10000, 1e-3, 1e15);
    double partial = reader.real(reader.any({"rotary_pct", "partial_rotary_factor"}), 0.25, 0, 1);
    if (reader.ok()) config.rope = read_rope(reader, config.head_dim, partial, theta, config.max_positions);
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    int64_t hidden = config.hidden_size;
    tree.embedding("gpt_neox.embed_in", config.vocab_size, hidden);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "gpt_neox.layers." + std::to_string(i);
        tree.norm(path + ".input_layernorm", hidden, true);
        tree.norm(path + ".post_attention_layernorm", hidden, true);
        heads_apart(tree.linear(path + ".attention.query_key_value", hidden, 3 * hidden, config.attention_bias), config.heads, 1,
                    config.head_dim);
        tree.linear(path + ".attention.dense", hidden, hidden, config.attention_out_bias).split = RankSplit::in;
        add_mlp(tree, path + ".mlp", {"dense_h_to_4h", "act", "dense_4h_to_h"}, hidden, config.intermediate_size,
                config.mlp_bias);
    }
    tree.norm("gpt_neox.final_layer_norm", hidden, true);
    add_head(tree, config, "embed_out", "gpt_neox.embed_in");
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.embed("gpt_neox.embed_in"), rope = b.rope_table(c.rope);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "gpt_neox.layers." + std::to_string(i), attn = layer + ".attention", mlp_path = layer + ".mlp";
        AttentionArgs args{.path = attn, .layer = i, .rope_table = rope};
        b.split_qkv(b.linear(b.norm(x, layer + ".input_layernorm", NormKind::layer), attn + ".query_key_value"), args);
        NodeId after = b.linear_add(attention(b, args), attn + ".dense", x);
        NodeId normed = b.norm(c.parallel ? x : after, layer + ".post_attention_layernorm", NormKind::layer);
        x = mlp(b, {normed, mlp_path + ".dense_h_to_4h", mlp_path + ".act", mlp_path + ".dense_4h_to_h", after});
    }
    b.logits(x, "gpt_neox.final_layer_norm", NormKind::layer, "embed_out");
}

}  // namespace

extern const Model model_gpt_neox;
const Model model_gpt_neox = {
    .model_type = "gpt_neox",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
