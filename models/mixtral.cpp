// Mixtral: Mistral with a mixture of experts in place of the MLP.
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
                  .eps = 1e-5,
                  .theta = 1e6},
                 config);
    config.window.assign(config.layers, static_cast<int32_t>(reader.integer("sliding_window", 0, 1, max_context)));
    config.experts = static_cast<int32_t>(reader.integer("num_local_experts", 8, 1, max_experts));
    config.experts_per_token = static_cast<int32_t>(reader.integer("num_experts_per_tok", 2, 1, max_experts));
    config.expert_size = config.intermediate_size;
    check_experts(reader, config, "num_local_experts", "num_experts_per_tok");
}

void add_layer(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t) {
    add_attention(tree, config, path);
    tree.linear(path + ".block_sparse_moe.gate", config.hidden_size, config.experts);
    add_experts(tree, config, path + ".block_sparse_moe", {"w1", "w3", "w2"});
    add_rms_norm(tree, path + ".input_layernorm", config.hidden_size);
    add_rms_norm(tree, path + ".post_attention_layernorm", config.hidden_size);
}

void tree(const ModelConfig& config, ModuleTree& tree) { add_decoder_frame(tree, config, add_layer); }

void graph(const ModelConfig& config, ModelBuilder& builder) { llama_decoder(config, builder, {.moe_path = ".block_sparse_moe"}); }

}  // namespace

extern const Model model_mixtral;
const Model model_mixtral = {
    .model_type = "mixtral",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {{"q_proj", "k_proj", "v_proj", "o_proj"},
               {"w1", "w3", "w2"},
               {"input_layernorm", "post_attention_layernorm", "norm"},
               false},
};

}  // namespace awq
