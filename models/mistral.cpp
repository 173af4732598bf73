// Mistral 7B, Nemo and Small: Llama with a sliding window and heads of any width.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 32000,
                  .hidden_size = 4096,
                  .intermediate_size = 14336,
                  .layers = 32,
                  .heads = 32,
                  .kv_heads = 8,
                  .max_positions = 131072,
                  .eps = 1e-6},
                 config);
    int64_t window = reader.integer("sliding_window", reader.is_null("sliding_window") ? 0 : 4096, 1, max_context);
    config.window.assign(config.layers, static_cast<int32_t>(window));
}

void tree(const ModelConfig& config, ModuleTree& tree) { add_decoder_frame(tree, config, add_decoder_layer); }

void graph(const ModelConfig& config, ModelBuilder& builder) { llama_decoder(config, builder, {}); }

}  // namespace

extern const Model model_mistral;
const Model model_mistral = {
    .model_type = "mistral",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {{"q_proj", "k_proj", "v_proj", "o_proj"},
               {"gate_proj", "up_proj", "down_proj"},
               {"input_layernorm", "post_attention_layernorm", "norm"},
               false},
};

}  // namespace awq
