// GPT-BigCode (SantaCoder, StarCoder): learned positions, one key/value head, q, k and v in one Linear.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    config.vocab_size = reader.integer("vocab_size", 50257, 1, max_vocabulary);
    config.hidden_size = reader.integer(reader.any({"n_embd", "hidden_size"}), 768, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer(reader.any({"n_layer", "num_hidden_layers"}), 12, 1, max_layers));
    config.heads = static_cast<int32_t>(reader.integer(reader.any({"n_head", "num_attention_heads"}), 12, 1, max_width));
    config.multi_query = reader.boolean("multi_query", true);
    config.kv_heads = config.multi_query ? 1 : config.heads;
    config.intermediate_size = reader.integer("n_inner", 4 * config.hidden_size, 1, 4 * max_width);
    config.max_positions = reader.integer(reader.any({"n_positions", "max_position_embeddings"}), 1024, 1, max_context);
    config.norm_eps = static_cast<float>(reader.real("layer_norm_epsilon", 1e-5, 0, 1));
    config.activation = reader.activation("activation_function", "gelu_pytorch_tanh");
    config.tied = reader.boolean("tie_word_embeddings", true);
    config.attention_bias = config.attention_out_bias = config.mlp_bias = true;
    if (!reader.boolean("scale_attn_weights", true)) config.attention_scale = 1;
    check_heads(reader, config, "n_embd", "n_head");
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    int64_t hidden = config.hidden_size;
    tree.embedding("transformer.wte", config.vocab_size, hidden);
    tree.embedding("transformer.wpe", config.max_positions, hidden);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "transformer.h." + std::to_string(i);
        tree.norm(path + ".ln_1", hidden, true);
        Module& fused = tree.linear(path + ".attn.c_attn", hidden, hidden + 2 * int64_t{config.kv_heads} * config.head_dim, true);
        fused.split = RankSplit::out;
        if (!config.multi_query) heads_apart(fused, config.heads, 1, config.head_dim);
        tree.linear(path + ".attn.c_proj", hidden, hidden, true).split = RankSplit::in;
        tree.norm(path + ".ln_2", hidden, true);
        add_mlp(tree, path + ".mlp", {"c_fc", "act", "c_proj"}, hidden, config.intermediate_size, true);
    }
    tree.norm("transformer.ln_f", hidden, true);
    add_head(tree, config, "lm_head", "transformer.wte");
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.add(b.embed("transformer.wte"), b.embed_positions("transformer.wpe"), "transformer.positions");
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "transformer.h." + std::to_string(i), attn = layer + ".attn", mlp_path = layer + ".mlp";
        AttentionArgs args{.path = attn, .layer = i};
        b.split_qkv(b.linear(b.norm(x, layer + ".ln_1", NormKind::layer), attn + ".c_attn"), args);
        x = b.linear_add(attention(b, args), attn + ".c_proj", x);
        x = mlp(b, {b.norm(x, layer + ".ln_2", NormKind::layer), mlp_path + ".c_fc", mlp_path + ".act", mlp_path + ".c_proj", x});
    }
    b.logits(x, "transformer.ln_f", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_gpt_bigcode;
const Model model_gpt_bigcode = {
    .model_type = "gpt_bigcode",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
