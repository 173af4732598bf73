// Gemma 3, the text model: alone (gemma3_text) or as the language model of the multimodal files (gemma3), whose vision
// tower is left aside. Windowed layers have a rotary base of their own; q and k are normed head by head.
#include <cmath>
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure_text(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 262208,
                  .hidden_size = 2304,
                  .intermediate_size = 9216,
                  .layers = 26,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_dim = 256,
                  .max_positions = 131072,
                  .activation = "gelu_pytorch_tanh",
                  .activation_key = "hidden_activation",
                  .eps = 1e-6,
                  .theta = 1e6,
                  .tied = true,
                  .own_rope = true},
                 config);
    config.attention_bias = config.attention_out_bias = reader.boolean("attention_bias", false);
    config.qk_norm = true;
    config.attention_scale = static_cast<float>(1 / std::sqrt(reader.real("query_pre_attn_scalar", 256, 1e-6, 1e9)));
    config.attention_softcap = static_cast<float>(reader.real("attn_logit_softcapping", 0, 0, 1e9));
    config.final_softcap = static_cast<float>(reader.real("final_logit_softcapping", 0, 0, 1e9));
    config.embed_scale = std::sqrt(static_cast<float>(config.hidden_size));
    if (reader.boolean("use_bidirectional_attention", false)) reader.unexpected("use_bidirectional_attention", "false");
    int64_t window = reader.integer("sliding_window", reader.is_null("sliding_window") ? 0 : 4096, 1, max_context);
    int64_t period = reader.integer(reader.any({"sliding_window_pattern", "_sliding_window_pattern"}), 6, 1, max_layers);
    read_windows(
        reader, config, window, [](int64_t layer, int64_t period) { return (layer + 1) % period != 0; }, period);
    if (!reader.ok()) return;
    // newer writers keep both kinds of layers' rotary parameters by name; older ones scale only the global one
    double local_base = reader.real("rope_local_base_freq", 10000, 1e-3, 1e15);
    static const Json nothing = Json::object();
    ConfigReader by_kind = reader.object("rope_parameters");
    if (by_kind.has("full_attention") || by_kind.has("sliding_attention")) {
        config.rope = read_rope(reader, by_kind.object("full_attention"), config.head_dim, 1, 1e6, config.max_positions);
        config.local_rope =
            read_rope(reader, by_kind.object("sliding_attention"), config.head_dim, 1, local_base, config.max_positions);
    } else {
        ConfigReader unscaled(nothing, reader.where());
        config.rope = read_rope(reader, config.head_dim, 1, 1e6, config.max_positions);
        config.local_rope = read_rope(unscaled, unscaled, config.head_dim, 1, local_base, config.max_positions);
    }
}

void text_tree(const ModelConfig& config, ModuleTree& tree) {
    tree.embedding("model.embed_tokens", config.vocab_size, config.hidden_size);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "model.layers." + std::to_string(i), attention = add_attention(tree, config, path);
        tree.norm(attention + ".q_norm", config.head_dim);
        tree.norm(attention + ".k_norm", config.head_dim);
        add_gated_mlp(tree, path + ".mlp", config.hidden_size, config.intermediate_size, false);
        for (const char* norm :
             {".input_layernorm", ".post_attention_layernorm", ".pre_feedforward_layernorm", ".post_feedforward_layernorm"})
            tree.norm(path + norm, config.hidden_size);
    }
    tree.norm("model.norm", config.hidden_size);
    add_head(tree, config, "lm_head", "model.embed_tokens");
}

void graph(const ModelConfig& c, ModelBuilder& b) { gemma_decoder(c, b); }

const Model text_model = {.model_type = "gemma3_text",
                          .aliases = {},
                          .configure = configure_text,
                          .tree = text_tree,
                          .graph = graph,
                          .vision = nullptr,
                          .fusion = {}};

void configure(ConfigReader& reader, ModelConfig& config) {
    config.text = &text_model;
    if (config.model_type == "gemma3_text") return configure_text(reader, config);
    config.prefix = "language_model.";
    ConfigReader text = reader.object("text_config");
    configure_text(text, config);
    reader.adopt(text);
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    if (config.prefix.empty()) return text_tree(config, tree);
    add_text_model(tree, config, config.prefix);
}

}  // namespace

extern const Model model_gemma3;
const Model model_gemma3 = {
    .model_type = "gemma3",
    .aliases = {"gemma3_text"},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
