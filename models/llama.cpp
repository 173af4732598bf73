// Llama 1 to 3 and the many that use its classes.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 32000,
                  .hidden_size = 4096,
                  .intermediate_size = 11008,
                  .layers = 32,
                  .heads = 32,
                  .max_positions = 2048,
                  .eps = 1e-6},
                 config);
    config.attention_bias = config.attention_out_bias = reader.boolean("attention_bias", false);
    config.mlp_bias = reader.boolean("mlp_bias", false);
}

void tree(const ModelConfig& config, ModuleTree& tree) { add_decoder_frame(tree, config, add_decoder_layer); }

void graph(const ModelConfig& config, ModelBuilder& builder) { llama_decoder(config, builder, {}); }

}  // namespace

extern const Model model_llama;
const Model model_llama = {
    .model_type = "llama",
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
