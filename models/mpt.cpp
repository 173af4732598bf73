// MPT: ALiBi, one Linear for q, k and v in three blocks, no bias anywhere, LayerNorms without one. What transformers'
// class leaves out of the original (learned positions, clipping, q/k norms) is refused.
#include <cmath>
#include "core/decoder.h"
#include "models/blocks.h"

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
        tree.linear(path + ".attn.Wqkv", hidden, 3 * hidden).split = RankSplit::out;
        tree.linear(path + ".attn.out_proj", hidden, hidden).split = RankSplit::in;
        tree.norm(path + ".norm_2", hidden);
        add_mlp(tree, path + ".ffn", {"up_proj", "act", "down_proj"}, hidden, config.intermediate_size, false);
    }
    tree.norm("transformer.norm_f", hidden);
    add_head(tree, config, "lm_head", "transformer.wte");
}

// MPT's slopes for heads that are no power of two are not those of ALiBi's paper: every second one of the next power's
// comes first.
const float* mpt_slopes(ModelBuilder& b, int32_t heads, double max_bias) {
    int32_t power = 1;
    while (power < heads) power *= 2;
    std::vector<float> all, slopes;
    for (int32_t i = 1; i <= power; i++) all.push_back(static_cast<float>(std::exp2(-max_bias * i / power)));
    if (power == heads) slopes = all;
    for (int32_t first = 1; first >= 0; first--)
        for (int32_t i = first; i < power && static_cast<int32_t>(slopes.size()) < heads; i += 2) slopes.push_back(all[i]);
    b.g.graph().constants.push_back(std::move(slopes));
    return b.g.graph().constants.back().data();
}

void graph(const ModelConfig& c, ModelBuilder& b) {
    NodeId x = b.embed("transformer.wte");
    const float* slopes = mpt_slopes(b, c.heads, c.alibi_max);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = "transformer.blocks." + std::to_string(i);
        AttentionArgs args{.path = layer + ".attn", .layer = i, .alibi = slopes};
        b.split_qkv(b.linear(b.norm(x, layer + ".norm_1", NormKind::layer), layer + ".attn.Wqkv"), args);
        x = b.linear_add(attention(b, args), layer + ".attn.out_proj", x);
        NodeId normed = b.norm(x, layer + ".norm_2", NormKind::layer);
        x = mlp(b, {normed, layer + ".ffn.up_proj", layer + ".ffn.act", layer + ".ffn.down_proj", x});
    }
    b.logits(x, "transformer.norm_f", NormKind::layer, "lm_head");
}

}  // namespace

extern const Model model_mpt;
const Model model_mpt = {
    .model_type = "mpt",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
