// Qwen3 with a mixture of experts: in every decoder_sparse_step-th layer, save those that mlp_only_layers names.
#include <algorithm>
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    read_decoder(reader,
                 {.vocab_size = 151936,
                  .hidden_size = 2048,
                  .intermediate_size = 6144,
                  .layers = 24,
                  .heads = 32,
                  .kv_heads = 4,
                  .max_positions = 32768,
                  .eps = 1e-6},
                 config);
    config.attention_bias = config.attention_out_bias = reader.boolean("attention_bias", false);
    config.qk_norm = true;
    bool slides = reader.boolean("use_sliding_window", false);
    int64_t window = reader.integer("sliding_window", reader.is_null("sliding_window") ? 0 : 4096, 1, max_context);
    config.window.assign(config.layers, slides ? static_cast<int32_t>(window) : 0);
    config.experts = static_cast<int32_t>(reader.integer("num_experts", 128, 0, max_experts));
    config.experts_per_token = static_cast<int32_t>(reader.integer("num_experts_per_tok", 8, 1, max_experts));
    config.expert_size = reader.integer("moe_intermediate_size", 768, 1, max_width);
    config.norm_topk = reader.boolean("norm_topk_prob", false);
    int64_t step = reader.integer("decoder_sparse_step", 1, 1, max_layers);
    std::vector<int64_t> dense = reader.integers("mlp_only_layers", 0, max_layers);
    for (int64_t i = 0; i < config.layers; i++)
        config.sparse_layer.push_back(config.experts > 0 && (i + 1) % step == 0 && std::ranges::find(dense, i) == dense.end());
    if (config.experts > 0) check_experts(reader, config, "num_experts", "num_experts_per_tok");
}

void add_layer(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t index) {
    std::string attention = add_attention(tree, config, path), mlp = path + ".mlp";
    add_rms_norm(tree, attention + ".q_norm", config.head_dim);
    add_rms_norm(tree, attention + ".k_norm", config.head_dim);
    if (config.sparse_layer[index]) {
        tree.linear(mlp + ".gate", config.hidden_size, config.experts);
        add_experts(tree, config, mlp, {"gate_proj", "up_proj", "down_proj"});
    } else {
        add_gated_mlp(tree, mlp, config.hidden_size, config.intermediate_size, false);
    }
    add_rms_norm(tree, path + ".input_layernorm", config.hidden_size);
    add_rms_norm(tree, path + ".post_attention_layernorm", config.hidden_size);
}

void tree(const ModelConfig& config, ModuleTree& tree) { add_decoder_frame(tree, config, add_layer); }

void graph(const ModelConfig& config, ModelBuilder& builder) { llama_decoder(config, builder, {.qk_norm = true, .moe_path = ".mlp"}); }

}  // namespace

extern const Model model_qwen3_moe;
const Model model_qwen3_moe = {
    .model_type = "qwen3_moe",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = nullptr,
    .fusion = {},
};

}  // namespace awq
