// Gemma 2: norms before and behind each block, stored as weight - 1; soft caps; a window in every other layer.
#include <cmath>
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 256000,
                  .hidden_size = 2304,
                  .intermediate_size = 9216,
                  .layers = 26,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_dim = 256,
                  .max_positions = 8192,
                  .activation = "gelu_pytorch_tanh",
                  .activation_key = "hidden_activation",
                  .eps = 1e-6,
                  .tied = true},
                 config);
    config.attention_bias = config.attention_out_bias = reader.boolean("attention_bias", false);
    config.attention_scale = static_cast<float>(1 / std::sqrt(reader.real("query_pre_attn_scalar", 256, 1e-6, 1e9)));
    config.attention_softcap =
        static_cast<float>(reader.real("attn_logit_softcapping", reader.is_null("attn_logit_softcapping") ? 0 : 50, 0, 1e9));
    config.final_softcap =
        static_cast<float>(reader.real("final_logit_softcapping", reader.is_null("final_logit_softcapping") ? 0 : 30, 0, 1e9));
    config.embed_scale = std::sqrt(static_cast<float>(config.hidden_size));
    int64_t window = reader.integer("sliding_window", reader.is_null("sliding_window") ? 0 : 4096, 1, max_context);
    read_windows(
        reader, config, window, [](int64_t layer, int64_t period) { return (layer + 1) % period != 0; }, 2);
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    tree.embedding("model.embed_tokens", config.vocab_size, config.hidden_size);
    for (int64_t i = 0; i < config.layers; i++) {
        std::string path = "model.layers." + std::to_string(i);
        add_attention(tree, config, path);
        add_gated_mlp(tree, path + ".mlp", config.hidden_size, config.intermediate_size, false);
        for (const char* norm :
             {".input_layernorm", ".post_attention_layernorm", ".pre_feedforward_layernorm", ".post_feedforward_layernorm"})
            tree.norm(path + norm, config.hidden_size);
    }
    tree.norm("model.norm", config.hidden_size);
    add_head(tree, config, "lm_head", "model.embed_tokens");
}

void graph(const ModelConfig& c, ModelBuilder& b) { gemma_decoder(c, b); }

}  // namespace

extern const Model model_gemma2;
const Model model_gemma2 = {
    .model_type = "gemma2",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
