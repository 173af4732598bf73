// What a model is: how its config.json reads, which modules it has, how they compute. One constant of type Model a file
// in models/, registered by the file's name.
#pragma once
#include <initializer_list>
#include <span>
#include <string>
#include <vector>
#include "core/graph.h"
#include "core/json.h"
#include "core/module.h"
#include "core/status.h"

namespace awq {

struct Model;

// The numbers of a model, whatever its config.json calls them. A model's configure() fills what it uses.
struct ModelConfig {
    std::string model_type;
    const Model* text = nullptr;            // llava, gemma3: the model that text_config names; it wrote the numbers below
    int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
    int32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
    int64_t max_positions = 0;              // longest context the model is made for
    float norm_eps = 1e-5f;
    Activation activation = Activation::silu;
    bool tied = false;                      // output head shares the embedding table
    bool attention_bias = false;            // q, k, v (or their one fused Linear) have biases
    bool attention_out_bias = false, mlp_bias = false, head_bias = false;
    RopeParams rope, local_rope;            // local: layers with a sliding window of their own base (gemma3)
    std::vector<int32_t> window;            // [layers] keys a token sees, itself included; 0: all
    float attention_scale = 0;              // 0: 1 / sqrt(head_dim)
    float attention_softcap = 0, final_softcap = 0;    // 0: none
    float embed_scale = 1, logit_scale = 1;
    int32_t experts = 0, experts_per_token = 0;
    int64_t expert_size = 0;                // intermediate size of an expert
    bool norm_topk = true;                  // the chosen experts' weights sum to one
    bool norm_before = true;                // opt-350m: false
    int64_t embed_size = 0;                 // opt: word_embed_proj_dim, 0: hidden_size
    bool qk_norm = false, alibi = false, multi_query = false;
    bool parallel = false;                  // attention and MLP read the same residual; their outputs are added together
    bool new_decoder = false;               // falcon: q, k, v of each kv head lie together in the fused Linear
    bool two_norms = false;                 // falcon, in parallel blocks: ln_attn and ln_mlp instead of one norm
    bool residual_after_norm = false;       // bloom: the residual is the normed input
    bool norm_weight = true, norm_bias = true, final_norm = true;
    float alibi_max = 8;                    // mpt: alibi_bias_max
    std::vector<bool> sparse_layer;         // [layers] qwen3_moe: this layer has experts
    // vision tower (llava)
    struct Vision {
        int64_t hidden_size = 0, intermediate_size = 0;
        int32_t layers = 0, heads = 0, image_size = 0, patch_size = 0, feature_layer = -2;
        float norm_eps = 1e-5f;
        Activation activation = Activation::quick_gelu, projector_activation = Activation::gelu;
        bool drop_class_token = true, projector_bias = true;
        int32_t image_token = 0;
        // Layers up to feature_layer (negative: counted from the end, -1 the last layer's output).
        int32_t layers_needed() const { return feature_layer < 0 ? layers + 1 + feature_layer : feature_layer; }
    } vision;
    std::string prefix;                     // llava: "language_model." before the text model's paths
    int64_t rows_per_image() const {
        int64_t n = vision.patch_size ? vision.image_size / vision.patch_size : 0;
        return n * n + (vision.drop_class_token ? 0 : 1);
    }
};

// Typed, ranged reading of a JSON object's members; the first error is kept and names file, field, found and expected.
// A reader refers to the object it reads, which must outlive it.
class ConfigReader {
public:
    // `where` is the file; `path` the field that holds the object: "text_config.", "" for the file's own object.
    ConfigReader(const Json& object, std::string where, std::string path = "")
        : object_(&object), where_(std::move(where)), path_(std::move(path)) {}
    const Json* find(std::string_view key) const;       // null where absent or null
    bool has(std::string_view key) const { return find(key) != nullptr; }
    bool is_null(std::string_view key) const;           // there, and null: "sliding_window": null switches it off
    // `fallback` where absent or null. Integers must be JSON integers within [low, high].
    int64_t integer(std::string_view key, int64_t fallback, int64_t low = 1, int64_t high = int64_t{1} << 31);
    double real(std::string_view key, double fallback, double low, double high);    // integers are reals, too
    bool boolean(std::string_view key, bool fallback);
    std::string string(std::string_view key, const std::string& fallback);
    std::vector<double> reals(std::string_view key, double low, double high);       // empty where absent
    std::vector<int64_t> integers(std::string_view key, int64_t low, int64_t high);
    // A string among these names; unknown ones are an error that lists them.
    Activation activation(std::string_view key, const std::string& fallback);
    // A reader of an object member; of an empty object where absent. Hand its errors back with adopt().
    ConfigReader object(std::string_view key);
    // The first of these keys that is there: old and new names of one field. The first where none is.
    std::string_view any(std::initializer_list<std::string_view> keys) const;
    void fail(std::string_view key, const std::string& what, Code code = Code::bad_file);    // "config.json: KEY: WHAT"
    void unexpected(std::string_view key, const std::string& expected);    // found: the value there
    void adopt(const ConfigReader& inner) {
        if (status_.ok()) status_ = inner.status_;
    }
    bool ok() const { return status_.ok(); }
    const Status& status() const { return status_; }
    const Json& json() const { return *object_; }
    const std::string& where() const { return where_; }

private:
    const Json* object_;
    std::string where_, path_;
    Status status_;
};

// rope_theta, rope_scaling (old writers: type, factor, ...) or rope_parameters (new writers) of a config, for head_dim
// columns of which `partial` rotate. Kinds default, linear, dynamic, llama3, yarn, longrope; others are an error.
// `trained`: the class's default for original_max_position_embeddings, which counts for longrope; 0: it has none.
RopeParams read_rope(ConfigReader& config, int64_t head_dim, double partial, double default_theta, int64_t max_positions, int64_t trained = 0);
// The same where `scaling` holds the rope parameters, whatever the config calls them.
RopeParams read_rope(ConfigReader& config, ConfigReader scaling, int64_t head_dim, double partial, double default_theta,
                     int64_t max_positions, int64_t trained = 0);

class ModelBuilder;    // models/blocks.h

// Names of the submodules that fuse, as transformers' AWQ_FUSED_MAPPINGS has them.
struct FusionMapping {
    std::vector<std::string> attention;    // q, k, v, o
    std::vector<std::string> mlp;          // gate, up, down
    std::vector<std::string> layernorm;
    bool use_alibi = false;
    bool empty() const { return attention.empty() && mlp.empty() && layernorm.empty(); }
};

struct Model {
    const char* model_type;
    // Other spellings: architectures or model types of old files ("RefinedWeb"); may be empty.
    std::vector<std::string> aliases;
    void (*configure)(ConfigReader& reader, ModelConfig& config);
    void (*tree)(const ModelConfig& config, ModuleTree& tree);
    void (*graph)(const ModelConfig& config, ModelBuilder& builder);
    void (*vision)(const ModelConfig& config, ModelBuilder& builder);    // null: no images
    // What transformers fuses for do_fuse: true without modules_to_fuse; empty: it knows no mapping for this model type.
    FusionMapping fusion;
};

std::span<const Model* const> model_table();
const Model* find_model(std::string_view model_type);    // by type or alias; null where there is none
// One more model, beside those of models/: a test's. To be called before anything else runs; null takes it back.
void set_extra_model(const Model* model);
// The model of a config.json and its numbers. Refuses what clashes: each message names the field.
struct ConfiguredModel {
    const Model* model = nullptr;
    ModelConfig config;
};
Result<ConfiguredModel> configure_model(const Json& config_json);

}  // namespace awq
