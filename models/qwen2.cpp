// Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a window that use_sliding_window must switch on.
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
                  .max_positions = 32768,
                  .eps = 1e-6},
                 config);
    config.attention_bias = true;
    bool slides = reader.boolean("use_sliding_window", false);
    int64_t window = reader.integer("sliding_window", reader.is_null("sliding_window") ? 0 : 4096, 1, max_context);
    int64_t first = reader.integer("max_window_layers", 28, 0, max_layers);
    if (slides)
        read_windows(
            reader, config, window, [](int64_t layer, int64_t first) { return layer >= first; }, first);
}

void tree(const ModelConfig& config, ModuleTree& tree) { add_decoder_frame(tree, config, add_decoder_layer); }

void graph(const ModelConfig& config, ModelBuilder& builder) { llama_decoder(config, builder, {}); }

}  // namespace

extern const Model model_qwen2;
const Model model_qwen2 = {
    .model_type = "qwen2",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
