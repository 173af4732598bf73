// Falcon: 7B (one key/value head, parallel block), 40B and 11B (new_decoder_architecture: grouped q, k, v), RW (ALiBi,
// serial block). All keep q, k and v in one Linear.
#include <cmath>
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    const char* hidden_key = reader.has("hidden_size") ? "hidden_size" : "n_embed";
    std::string_view layers_key = reader.any({"num_hidden_layers", "n_layer"}),
                     heads_key = reader.any({"num_attention_heads", "n_head"});
    config.vocab_size = reader.integer("vocab_size", 65024, 1, max_vocabulary);
    config.hidden_size = reader.integer(hidden_key, 4544, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer(layers_key, 32, 1, max_layers));
    config.heads = static_cast<int32_t>(reader.integer(heads_key, 71, 1, max_width));
    config.new_decoder = reader.boolean("new_decoder_architecture", false);
    config.multi_query = reader.boolean("multi_query", true);
    config.parallel = reader.boolean("parallel_attn", true);
    config.alibi = reader.boolean("alibi", false);
    std::string_view kv_key = reader.any({"num_kv_heads", "n_head_kv"});
    int64_t kv_heads = reader.integer(kv_key, config.heads, 1, max_width);
    config.kv_heads = config.new_decoder ? static_cast<int32_t>(kv_heads) : config.multi_query ? 1 : config.heads;
    config.intermediate_size = reader.integer("ffn_hidden_size", 4 * config.hidden_size, 1, 4 * max_width);
    config.max_positions = reader.integer("max_position_embeddings", 2048, 1, max_context);
    config.norm_eps = static_cast<float>(reader.real("layer_norm_epsilon", 1e-5, 0, 1));
    config.activation = reader.activation("activation", "gelu");
    config.tied = reader.boolean("tie_word_embeddings", true);
    config.attention_bias = config.attention_out_bias = config.mlp_bias = reader.boolean("bias", false);
    if (config.new_decoder && !config.parallel) reader.unexpected("parallel_attn", "true with new_decoder_architecture");
    config.two_norms = config.parallel && reader.integer("num_ln_in_parallel_attn", config.new_decoder ? 2 : 1, 1, 2) == 2;
    check_heads(reader, config, hidden_key, "num_attention_heads");
    if (reader.ok() && !config.alibi) config.rope = read_rope(reader, config.head_dim, 1, 10000, config.max_positions);
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    int64_t hidden = config.hidden_size;
    tree.embedding("transformer.word_embeddings", config.vocab_size, hidden);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "transformer.h." + std::to_string(i);
        size_t first = tree.modules.size();
        int64_t qkv = int64_t{config.heads + 2 * config.kv_heads} * config.head_dim;
        Module& fused = tree.linear(path + ".self_attention.query_key_value", hidden, qkv, config.attention_bias);
        fused.split = RankSplit::out;
        if (config.new_decoder || !config.multi_query)
            heads_apart(fused, config.kv_heads, config.heads / config.kv_heads, config.head_dim);
        tree.linear(path + ".self_attention.dense", hidden, hidden, config.attention_out_bias).split = RankSplit::in;
        add_mlp(tree, path + ".mlp", {"dense_h_to_4h", "act", "dense_4h_to_h"}, hidden, config.intermediate_size,
                config.mlp_bias);
        for (size_t m = first; m < tree.modules.size(); m++)
            tree.modules[m].own_class = tree.modules[m].kind == ModuleKind::linear;
        if (config.two_norms) {
            tree.norm(path + ".ln_attn", hidden, true);
            tree.norm(path + ".ln_mlp", hidden, true);
        } else {
            tree.norm(path + ".input_layernorm", hidden, true);
            if (!config.parallel) tree.norm(path + ".post_attention_layernorm", hidden, true);
        }
    }
    tree.norm("transformer.ln_f", hidden, true);
    add_head(tree, config, "lm_head", "transformer.word_embeddings");
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.embed("transformer.word_embeddings");
    NodeId rope = c.alibi ? no_node : b.rope_table(c.rope);
    // Falcon adds the biases before it scales the scores; transformers' eager attention, the reference for this family, has
    // them in the mask as well, so they count twice (docs/compatibility.md).
    const float* slopes = c.alibi ? alibi_slopes(b, c.heads, 8, 2 / std::sqrt(static_cast<float>(c.head_dim))) : nullptr;
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "transformer.h." + std::to_string(i), attn = layer + ".self_attention", mlp_path = layer + ".mlp";
        NodeId for_attention = b.norm(x, layer + (c.two_norms ? ".ln_attn" : ".input_layernorm"), NormKind::layer);
        AttentionArgs args{.path = attn, .layer = i, .rope_table = rope, .alibi = slopes};
        b.split_qkv(b.linear(for_attention, attn + ".query_key_value"), args);
        NodeId after = b.linear_add(attention(b, args), attn + ".dense", x);
        NodeId for_mlp = !c.parallel   ? b.norm(after, layer + ".post_attention_layernorm", NormKind::layer)
                         : c.two_norms ? b.norm(x, layer + ".ln_mlp", NormKind::layer)
                                       : for_attention;
        x = mlp(b, {for_mlp, mlp_path + ".dense_h_to_4h", mlp_path + ".act", mlp_path + ".dense_4h_to_h", after});
    }
    b.logits(x, "transformer.ln_f", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_falcon;
const Model model_falcon = {
    .model_type = "falcon",
    .aliases = {"RefinedWeb", "RefinedWebModel"},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
