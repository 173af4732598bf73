// GPT-J: interleaved rotation of the first rotary_dim columns, attention and MLP side by side, an output head with bias.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    config.vocab_size = reader.integer("vocab_size", 50400, 1, max_vocabulary);
    config.hidden_size = reader.integer(reader.any({"n_embd", "hidden_size"}), 4096, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer(reader.any({"n_layer", "num_hidden_layers"}), 28, 1, max_layers));
    config.heads = config.kv_heads =
        static_cast<int32_t>(reader.integer(reader.any({"n_head", "num_attention_heads"}), 16, 1, max_width));
    config.intermediate_size = reader.integer("n_inner", 4 * config.hidden_size, 1, 4 * max_width);
    config.max_positions = reader.integer(reader.any({"n_positions", "max_position_embeddings"}), 2048, 1, max_context);
    config.norm_eps = static_cast<float>(reader.real("layer_norm_epsilon", 1e-5, 0, 1));
    config.activation = reader.activation("activation_function", "gelu_new");
    config.tied = reader.boolean("tie_word_embeddings", false);
    config.mlp_bias = config.head_bias = true;
    config.parallel = true;
    check_heads(reader, config, "n_embd", "n_head");
    if (reader.is_null("rotary_dim")) reader.unexpected("rotary_dim", "a number of columns");
    int64_t columns = reader.integer("rotary_dim", 64, 2, max_width);
    if (columns > config.head_dim)
        reader.unexpected("rotary_dim", "at most the width of a head (" + std::to_string(config.head_dim) + ")");
    if (reader.ok()) config.rope = read_rope(reader, columns, 1, 10000, config.max_positions);
    config.rope.interleaved = true;
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    int64_t hidden = config.hidden_size;
    tree.embedding("transformer.wte", config.vocab_size, hidden);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "transformer.h." + std::to_string(i);
        tree.norm(path + ".ln_1", hidden, true);
        add_attention(tree, config, path, {.attention = "attn", .o = "out_proj"});
        add_mlp(tree, path + ".mlp", {"fc_in", "act", "fc_out"}, hidden, config.intermediate_size, config.mlp_bias);
    }
    tree.norm("transformer.ln_f", hidden, true);
    add_head(tree, config, "lm_head", "transformer.wte");
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.embed("transformer.wte"), rope = b.rope_table(c.rope);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "transformer.h." + std::to_string(i), attn = layer + ".attn", mlp_path = layer + ".mlp";
        NodeId normed = b.norm(x, layer + ".ln_1", NormKind::layer);
        auto qkv = b.linears(normed, {attn + ".q_proj", attn + ".k_proj", attn + ".v_proj"});
        AttentionArgs args{.path = attn, .layer = i, .q = qkv[0], .k = qkv[1], .v = qkv[2], .rope_table = rope, .interleaved = true};
        NodeId after = b.linear_add(attention(b, args), attn + ".out_proj", x);
        x = mlp(b, {normed, mlp_path + ".fc_in", mlp_path + ".act", mlp_path + ".fc_out", after});
    }
    b.logits(x, "transformer.ln_f", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_gptj;
const Model model_gptj = {
    .model_type = "gptj",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
