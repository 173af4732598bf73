// OPT: learned positions (two rows are set apart in front), ReLU, LayerNorms before the blocks, or behind them (350M,
// whose embedding is also narrower than the model).
#include "core/decoder.h"
#include "models/blocks.h"

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

void graph(const ModelConfig& c, ModelBuilder& b) {
    const std::string decoder = "model.decoder.";
    NodeId x = b.embed(decoder + "embed_tokens");
    if (c.embed_size != c.hidden_size) x = b.linear(x, decoder + "project_in");
    x = b.add(x, b.embed_positions(decoder + "embed_positions", 2), decoder + "positions");    // rows 0 and 1 are not used
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = decoder + "layers." + std::to_string(i), attn = layer + ".self_attn";
        // the 350m shape norms after each residual, all others before each block
        auto before = [&](NodeId y, const char* name) { return c.norm_before ? b.norm(y, layer + name, NormKind::layer) : y; };
        auto after = [&](NodeId y, const char* name) { return c.norm_before ? y : b.norm(y, layer + name, NormKind::layer); };
        auto qkv = b.linears(before(x, ".self_attn_layer_norm"), {attn + ".q_proj", attn + ".k_proj", attn + ".v_proj"});
        AttentionArgs args{.path = attn, .layer = i, .q = qkv[0], .k = qkv[1], .v = qkv[2]};
        x = after(b.linear_add(attention(b, args), attn + ".out_proj", x), ".self_attn_layer_norm");
        x = after(mlp(b, {before(x, ".final_layer_norm"), layer + ".fc1", layer + ".activation_fn", layer + ".fc2", x}), ".final_layer_norm");
    }
    if (c.embed_size == c.hidden_size) return b.logits(x, c.final_norm ? decoder + "final_layer_norm" : "", NormKind::layer, "lm_head");
    if (c.final_norm) x = b.norm(x, decoder + "final_layer_norm", NormKind::layer);
    b.logits(b.linear(x, decoder + "project_out"), "", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_opt;
const Model model_opt = {
    .model_type = "opt",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
