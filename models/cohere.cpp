// Cohere Command R and Aya: attention and MLP side by side behind one mean-subtracting norm without bias, interleaved
// rotation, scaled logits.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 256000,
                  .hidden_size = 8192,
                  .intermediate_size = 22528,
                  .layers = 40,
                  .heads = 64,
                  .max_positions = 8192,
                  .eps_key = "layer_norm_eps",
                  .eps = 1e-5,
                  .tied = true},
                 config);
    config.rope.interleaved = true;
    config.attention_bias = config.attention_out_bias = reader.boolean("attention_bias", false);
    config.qk_norm = reader.boolean("use_qk_norm", false);
    config.logit_scale = static_cast<float>(reader.real("logit_scale", 0.0625, -1e6, 1e6));
    config.norm_bias = false;
    config.parallel = true;
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    tree.embedding("model.embed_tokens", config.vocab_size, config.hidden_size);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "model.layers." + std::to_string(i), attention = add_attention(tree, config, path);
        if (config.qk_norm) {  // a weight for each column of each head
            tree.add(ModuleKind::norm, attention + ".q_norm", config.heads, config.head_dim);
            tree.add(ModuleKind::norm, attention + ".k_norm", config.kv_heads, config.head_dim);
        }
        add_gated_mlp(tree, path + ".mlp", config.hidden_size, config.intermediate_size, false);
        tree.norm(path + ".input_layernorm", config.hidden_size);
    }
    tree.norm("model.norm", config.hidden_size);
    add_head(tree, config, "lm_head", "model.embed_tokens");
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.embed("model.embed_tokens"), rope = b.rope_table(c.rope);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "model.layers." + std::to_string(i), attn = layer + ".self_attn";
        NodeId normed = b.norm(x, layer + ".input_layernorm", NormKind::layer);
        auto qkv = b.linears(normed, {attn + ".q_proj", attn + ".k_proj", attn + ".v_proj"});
        AttentionArgs args{.path = attn, .layer = i, .q = qkv[0], .k = qkv[1], .v = qkv[2], .rope_table = rope, .interleaved = true};
        if (c.qk_norm) {
            args.q_norm = attn + ".q_norm";
            args.k_norm = attn + ".k_norm";
            args.qk_norm_kind = NormKind::layer;
        }
        NodeId after = b.linear_add(attention(b, args), attn + ".o_proj", x);
        x = gated_mlp(b, {.path = layer + ".mlp", .x = normed, .residual = after});
    }
    b.logits(x, "model.norm", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_cohere;
const Model model_cohere = {
    .model_type = "cohere",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
