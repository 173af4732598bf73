// Qwen3 (dense): q and k normed head by head before the rotation.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 151936,
                  .hidden_size = 4096,
                  .intermediate_size = 22016,
                  .layers = 32,
                  .heads = 32,
                  .kv_heads = 32,
                  .head_dim = 128,
                  .max_positions = 32768,
                  .eps = 1e-6},
                 config);
    config.attention_bias = config.attention_out_bias = reader.boolean("attention_bias", false);
    config.qk_norm = true;
    bool slides = reader.boolean("use_sliding_window", false);
    int64_t window = reader.integer("sliding_window", reader.is_null("sliding_window") ? 0 : 4096, 1, max_context);
    int64_t first = reader.integer("max_window_layers", 28, 0, max_layers);
    if (slides)
        read_windows(
            reader, config, window, [](int64_t layer, int64_t first) { return layer >= first; }, first);
}

void add_layer(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t) {
    std::string attention = add_attention(tree, config, path);
    add_rms_norm(tree, attention + ".q_norm", config.head_dim);
    add_rms_norm(tree, attention + ".k_norm", config.head_dim);
    add_gated_mlp(tree, path + ".mlp", config.hidden_size, config.intermediate_size, false);
    add_rms_norm(tree, path + ".input_layernorm", config.hidden_size);
    add_rms_norm(tree, path + ".post_attention_layernorm", config.hidden_size);
}

void tree(const ModelConfig& config, ModuleTree& tree) { add_decoder_frame(tree, config, add_layer); }

void graph(const ModelConfig& config, ModelBuilder& builder) { llama_decoder(config, builder, {.qk_norm = true}); }

}  // namespace

extern const Model model_qwen3;
const Model model_qwen3 = {
    .model_type = "qwen3",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
