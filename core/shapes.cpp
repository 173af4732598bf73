#include "core/shapes.h"

namespace awq {
namespace {

struct Shape {
    const char* name;
    const char* config;    // config.json but for quantization_config
    int group_size = 128;
    const char* skip = "null";    // modules_to_not_convert
};

const Shape shapes[] = {
    {"llama3-8b", R"("model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5)"},
    {"llama2-7b", R"("model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5)"},
    {"llama-1b", R"("model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5)"},
    {"smollm2-135m", R"("model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true)", 64},    // 576 columns are no multiple of 128
    {"mistral-7b", R"("model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
        "sliding_window": 4096, "rms_norm_eps": 1e-5)"},
    {"mixtral-8x7b", R"("model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-5)", 128, "[\"gate\"]"},
    {"qwen2-7b", R"("model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6)"},
};

}  // namespace

std::vector<std::string> shape_names() {
    std::vector<std::string> names;
    for (const Shape& shape : shapes) names.push_back(shape.name);
    return names;
}

std::string shape_config(const std::string& name) {
    for (const Shape& shape : shapes) {
        if (name != shape.name) continue;
        return std::string("{") + shape.config + R"(, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": )" +
               std::to_string(shape.group_size) + R"(, "zero_point": true, "version": "gemm", "modules_to_not_convert": )" + shape.skip + "}}";
    }
    return "";
}

}  // namespace awq
