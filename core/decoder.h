// What the config.json and the module trees of most decoder families share, so that a file in models/ says only what is
// its own. Nothing here knows a family: names and defaults come from the caller.
#pragma once
#include <string>
#include "core/model.h"

namespace awq {

// Largest sizes taken from a config.json: far above any model there is, low enough that a hostile file costs little.
inline constexpr int64_t max_layers = 1024, max_width = int64_t{1} << 20, max_vocabulary = int64_t{1} << 24;
inline constexpr int64_t max_experts = int64_t{1} << 15;  // in all layers together
inline constexpr int64_t max_context = (int64_t{1} << 31) - 1;

// Defaults of transformers' config class for a model type.
struct DecoderDefaults {
    int64_t vocab_size, hidden_size, intermediate_size;
    int64_t layers, heads;
    int64_t kv_heads = 0;  // 0: as many as heads
    int64_t head_dim = 0;  // 0: hidden size / heads
    int64_t max_positions;
    const char* activation = "silu";
    const char* activation_key = "hidden_act";
    const char* eps_key = "rms_norm_eps";
    double eps, theta = 10000, partial_rotary = 1;
    int64_t trained_positions = 0;  // original_max_position_embeddings; 0: the class has none
    bool tied = false;
    bool own_rope = false;  // the caller reads the rope parameters itself
};
// Reads the fields that go by their common names: sizes, heads, activation, eps, tying and rope.
void read_decoder(ConfigReader& reader, const DecoderDefaults& defaults, ModelConfig& config);
// hidden size, heads, kv heads and head_dim are set: what must divide, divides. Otherwise an error at these fields.
void check_heads(ConfigReader& reader, ModelConfig& config, const char* hidden_key, const char* heads_key);
// The window of each layer: `window` where layer_types (if there) or else `slides` says so.
void read_windows(ConfigReader& reader, ModelConfig& config, int64_t window, bool (*slides)(int64_t layer, int64_t period),
                  int64_t period);

struct DecoderNames {
    const char* attention = "self_attn";
    const char *q = "q_proj", *k = "k_proj", *v = "v_proj", *o = "o_proj";
};
// q, k, v, o with their biases and the fusion group of `layer`; the path of the attention module is returned.
std::string add_attention(ModuleTree& tree, const ModelConfig& config, const std::string& layer, const DecoderNames& names = {});
// gate, up, down and their fusion group.
void add_gated_mlp(ModuleTree& tree, const std::string& path, int64_t hidden, int64_t intermediate, bool bias);
// up, activation (with AWQ's scales), down.
struct MlpNames {
    const char *up, *act, *down;
};
void add_mlp(ModuleTree& tree, const std::string& path, const MlpNames& names, int64_t hidden, int64_t intermediate, bool bias);
// One gated MLP for each expert below `block`, grouped so that the block's experts are stacked.
struct ExpertNames {
    const char *gate, *up, *down;
};
void add_experts(ModuleTree& tree, const ModelConfig& config, const std::string& block, const ExpertNames& names);
// layers x experts within what a plan may have.
void check_experts(ConfigReader& reader, const ModelConfig& config, const char* experts_key, const char* chosen_key);
// A norm that stands alone as a fusion group of its own: one kernel computes it.
void add_rms_norm(ModuleTree& tree, const std::string& path, int64_t size);
// The output head, tied to `embedding` or with a weight of its own.
void add_head(ModuleTree& tree, const ModelConfig& config, const std::string& path, const std::string& embedding);
// The plain layer for add_decoder_frame(): attention, gated MLP, a norm before each.
void add_decoder_layer(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t index);
// Embedding, layers (`layer` adds one at its path), final RMS norm and head, by the names of the Llama family.
void add_decoder_frame(ModuleTree& tree, const ModelConfig& config,
                     void (*layer)(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t index));
// A text model's modules as part of a larger model: in files below `prefix`, in transformers' class below model.language_model.
void add_text_model(ModuleTree& tree, const ModelConfig& config, const std::string& prefix);

}  // namespace awq
