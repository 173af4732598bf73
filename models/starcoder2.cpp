// StarCoder2: rotary attention, a plain MLP, LayerNorms, and biases everywhere unless use_bias is false.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 49152,
                  .hidden_size = 3072,
                  .intermediate_size = 12288,
                  .layers = 30,
                  .heads = 24,
                  .kv_heads = 2,
                  .max_positions = 4096,
                  .activation = "gelu_pytorch_tanh",
                  .eps_key = "norm_epsilon",
                  .eps = 1e-5,
                  .tied = true},
                 config);
    config.attention_bias = config.attention_out_bias = config.mlp_bias = reader.boolean("use_bias", true);
    config.window.assign(config.layers, static_cast<int32_t>(reader.integer("sliding_window", 0, 1, max_context)));
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    tree.embedding("model.embed_tokens", config.vocab_size, config.hidden_size);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "model.layers." + std::to_string(i);
        add_attention(tree, config, path);
        add_mlp(tree, path + ".mlp", {"c_fc", "act", "c_proj"}, config.hidden_size, config.intermediate_size, config.mlp_bias);
        tree.norm(path + ".input_layernorm", config.hidden_size, true);
        tree.norm(path + ".post_attention_layernorm", config.hidden_size, true);
    }
    tree.norm("model.norm", config.hidden_size, true);
    add_head(tree, config, "lm_head", "model.embed_tokens");
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.embed("model.embed_tokens"), rope = b.rope_table(c.rope);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "model.layers." + std::to_string(i), attn = layer + ".self_attn", mlp_path = layer + ".mlp";
        auto qkv = b.norm_linears(x, layer + ".input_layernorm", NormKind::layer, {attn + ".q_proj", attn + ".k_proj", attn + ".v_proj"});
        AttentionArgs args{.path = attn, .layer = i, .q = qkv[0], .k = qkv[1], .v = qkv[2], .rope_table = rope, .window = c.window[i]};
        x = b.linear_add(attention(b, args), attn + ".o_proj", x);
        NodeId normed = b.norm(x, layer + ".post_attention_layernorm", NormKind::layer);
        x = mlp(b, {normed, mlp_path + ".c_fc", mlp_path + ".act", mlp_path + ".c_proj", x});
    }
    b.logits(x, "model.norm", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_starcoder2;
const Model model_starcoder2 = {
    .model_type = "starcoder2",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
