// Phi-3 and Phi-4: Llama whose files hold q, k, v and gate, up as one Linear each; LongRoPE for long contexts.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 32064,
                  .hidden_size = 3072,
                  .intermediate_size = 8192,
                  .layers = 32,
                  .heads = 32,
                  .max_positions = 4096,
                  .eps = 1e-5,
                  .trained_positions = 4096},
                 config);
    config.window.assign(config.layers, static_cast<int32_t>(reader.integer("sliding_window", 0, 1, max_context)));
}

void add_layer(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t) {
    int64_t q = int64_t{config.heads} * config.head_dim, kv = int64_t{config.kv_heads} * config.head_dim;
    tree.linear(path + ".self_attn.o_proj", q, config.hidden_size).split = RankSplit::in;
    tree.linear(path + ".self_attn.qkv_proj", config.hidden_size, q + 2 * kv).split = RankSplit::out;
    tree.linear(path + ".mlp.gate_up_proj", config.hidden_size, 2 * config.intermediate_size).split = RankSplit::out;
    tree.linear(path + ".mlp.down_proj", config.intermediate_size, config.hidden_size).split = RankSplit::in;
    add_rms_norm(tree, path + ".input_layernorm", config.hidden_size);
    add_rms_norm(tree, path + ".post_attention_layernorm", config.hidden_size);
}

void tree(const ModelConfig& config, ModuleTree& tree) { add_decoder_frame(tree, config, add_layer); }

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.embed("model.embed_tokens"), rope = b.rope_table(c.rope);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "model.layers." + std::to_string(i);
        NodeId qkv = b.norm_linears(x, layer + ".input_layernorm", NormKind::rms, {layer + ".self_attn.qkv_proj"})[0];
        AttentionArgs args{.path = layer + ".self_attn", .layer = i, .rope_table = rope, .window = c.window[i]};
        b.split_qkv(qkv, args);
        x = b.linear_add(attention(b, args), layer + ".self_attn.o_proj", x);
        NodeId both = b.norm_linears(x, layer + ".post_attention_layernorm", NormKind::rms, {layer + ".mlp.gate_up_proj"})[0];
        x = b.linear_add(b.gated_act(both, layer + ".mlp"), layer + ".mlp.down_proj", x);
    }
    b.logits(x, "model.norm", NormKind::rms, "lm_head");
}

}  // namespace

extern const Model model_phi3;
const Model model_phi3 = {
    .model_type = "phi3",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
