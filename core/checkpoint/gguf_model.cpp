#include "core/checkpoint/gguf_model.h"
#include <algorithm>
#include <cmath>
#include <set>

namespace awq {
namespace {

struct Family {
    const char* architecture;  // in the file, and model_type in config.json
    const char* class_name;
    bool interleaved;  // q and k rows permuted for a rotation of neighbouring pairs
    bool qkv_bias;     // the class always has biases for q, k, v
    bool qk_norm;
    bool mlp_bias;  // the class can have biases in its MLP
};
constexpr Family families[] = {
    {"llama", "LlamaForCausalLM", true, false, false, true},
    {"qwen2", "Qwen2ForCausalLM", false, true, false, false},
    {"qwen3", "Qwen3ForCausalLM", false, false, true, false},
};

// One reading of a file; the members are what its methods share.
class ModelReader {
public:
    explicit ModelReader(const Gguf& gguf) : gguf_(gguf) {}
    Result<GgufModel> read();

private:
    Status unsupported(const Status& status) const { return Status(Code::unsupported, status.message()); }
    std::string key(const char* name) const { return std::string(family_->architecture) + "." + name; }
    Result<uint64_t> needed(const char* name, uint64_t least, uint64_t most) const;
    Result<std::optional<uint64_t>> per_layer(const char* name, uint64_t least, uint64_t most) const;
    Status refuse_unlike_keys() const;
    Status read_sizes();
    Status read_rope();
    Status read_rope_factors(const GgufTensor& tensor);
    Status read_modules();
    Status add(GgufModule::Kind kind, const std::string& tensor, const std::string& name, int64_t rows, int64_t cols,
               int64_t interleaved_head = 0, const char* suffix = "weight");
    Status add_linear(const std::string& tensor, const std::string& name, int64_t rows, int64_t cols, bool bias,
                      int64_t interleaved_head = 0);
    bool any_bias(std::initializer_list<const char*> members) const;

    const Gguf& gguf_;
    const Family* family_ = nullptr;
    GgufModel model_;
    std::set<std::string_view> used_;
    uint64_t layers_ = 0, hidden_ = 0, intermediate_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0;
    double theta_ = 10000;
};

Result<uint64_t> ModelReader::needed(const char* name, uint64_t least, uint64_t most) const {
    AWQ_ASSIGN(auto value, gguf_.integer(key(name), least, most));
    if (!value) return gguf_.key_error(key(name), "is missing; an integer expected");
    return *value;
}

// A number that a file may give once or once a layer; layers that differ are another kind of model.
Result<std::optional<uint64_t>> ModelReader::per_layer(const char* name, uint64_t least, uint64_t most) const {
    const GgufValue* value = gguf_.find(key(name));
    if (!value || value->kind != GgufKind::array) return gguf_.integer(key(name), least, most);
    AWQ_ASSIGN(std::vector<int64_t> numbers, gguf_.integers(key(name), 4096));
    if (numbers.empty()) return gguf_.key_error(key(name), "is an empty array; an integer expected");
    for (int64_t number : numbers) {
        if (number != numbers[0])
            return unsupported(gguf_.key_error(key(name), "differs between layers; one number for all expected"));
        if (number < 0 || static_cast<uint64_t>(number) < least || static_cast<uint64_t>(number) > most)
            return gguf_.key_error(key(name), "is " + std::to_string(number) + "; an integer from " + std::to_string(least) +
                                                  " to " + std::to_string(most) + " expected");
    }
    return std::optional<uint64_t>(static_cast<uint64_t>(numbers[0]));
}

// Keys that change what the model computes and that these three classes have no field for.
Status ModelReader::refuse_unlike_keys() const {
    AWQ_ASSIGN(auto parts, gguf_.integer("split.count", 0, 65535));
    if (parts.value_or(1) > 1)
        return unsupported(gguf_.key_error("split.count", "the file is one of " + std::to_string(*parts) +
                                                              " parts; one file expected (llama-gguf-split --merge makes it)"));
    AWQ_ASSIGN(auto experts, gguf_.integer(key("expert_count"), 0, UINT32_MAX));
    if (experts.value_or(0) > 0)
        return unsupported(
            gguf_.key_error(key("expert_count"), "is " + std::to_string(*experts) + "; a model without experts expected"));
    AWQ_ASSIGN(auto causal, gguf_.boolean(key("attention.causal")));
    if (!causal.value_or(true)) return unsupported(gguf_.key_error(key("attention.causal"), "is false; a causal model expected"));
    for (const char* scale :
         {"attention.scale", "logit_scale", "residual_scale", "embedding_scale", "rope.scaling.attn_factor"}) {
        AWQ_ASSIGN(auto value, gguf_.real(key(scale)));
        if (value && *value != 0 && *value != 1)
            return unsupported(
                gguf_.key_error(key(scale), "is " + std::to_string(*value) + "; none expected in this architecture"));
    }
    return {};
}

Status ModelReader::read_sizes() {
    constexpr uint64_t most = 1 << 24;
    AWQ_ASSIGN(layers_, needed("block_count", 1, 4096));
    AWQ_ASSIGN(hidden_, needed("embedding_length", 1, most));
    AWQ_ASSIGN(model_.context_length, needed("context_length", 1, INT32_MAX));
    AWQ_ASSIGN(auto intermediate, per_layer("feed_forward_length", 1, most));
    AWQ_ASSIGN(auto heads, per_layer("attention.head_count", 1, 65536));
    AWQ_ASSIGN(auto kv_heads, per_layer("attention.head_count_kv", 1, 65536));
    if (!intermediate) return gguf_.key_error(key("feed_forward_length"), "is missing; an integer expected");
    if (!heads) return gguf_.key_error(key("attention.head_count"), "is missing; an integer expected");
    intermediate_ = *intermediate, heads_ = *heads, kv_heads_ = kv_heads.value_or(heads_);
    if (heads_ % kv_heads_ != 0)
        return gguf_.key_error(key("attention.head_count_kv"), "is " + std::to_string(kv_heads_) + "; a divisor of the " +
                                                                   std::to_string(heads_) + " heads expected");
    AWQ_ASSIGN(auto key_length, gguf_.integer(key("attention.key_length"), 1, 65536));
    AWQ_ASSIGN(auto value_length, gguf_.integer(key("attention.value_length"), 1, 65536));
    if (!key_length && hidden_ % heads_ != 0)
        return gguf_.key_error(key("embedding_length"), "is " + std::to_string(hidden_) + "; a multiple of the " +
                                                            std::to_string(heads_) + " heads expected");
    head_dim_ = key_length.value_or(hidden_ / heads_);
    if (value_length.value_or(head_dim_) != head_dim_)
        return unsupported(gguf_.key_error(
            key("attention.value_length"),
            "is " + std::to_string(*value_length) + "; " + std::to_string(head_dim_) + ", as of the keys, expected"));
    if (head_dim_ % 2 != 0)
        return gguf_.key_error(key("attention.key_length"), "heads of " + std::to_string(head_dim_) + "; an even size expected");

    const GgufTensor* embedding = gguf_.find_tensor("token_embd.weight");
    if (!embedding) return gguf_.tensor_error("token_embd.weight", "is missing");
    model_.vocab_rows = embedding->shape[1];
    if (model_.vocab_rows < 1 || model_.vocab_rows > most)
        return gguf_.tensor_error("token_embd.weight", "has " + std::to_string(model_.vocab_rows) + " rows; 1 to " +
                                                           std::to_string(most) + " expected");
    AWQ_ASSIGN(auto eps, gguf_.real(key("attention.layer_norm_rms_epsilon")));
    if (!eps || *eps < 0)
        return gguf_.key_error(key("attention.layer_norm_rms_epsilon"), "is missing or negative; a small number expected");

    bool tied = !gguf_.find_tensor("output.weight");
    Json& config = model_.config;
    config = Json::object();
    Json classes = Json::array();
    classes.push(family_->class_name);
    config.set("architectures", std::move(classes));
    config.set("model_type", family_->architecture);
    config.set("hidden_act", "silu");
    config.set("hidden_size", hidden_);
    config.set("intermediate_size", intermediate_);
    config.set("num_hidden_layers", layers_);
    config.set("num_attention_heads", heads_);
    config.set("num_key_value_heads", kv_heads_);
    config.set("head_dim", head_dim_);
    config.set("max_position_embeddings", model_.context_length);
    config.set("rms_norm_eps", *eps);
    config.set("tie_word_embeddings", tied);
    config.set("vocab_size", model_.vocab_rows);
    return {};
}

Status ModelReader::read_rope() {
    AWQ_ASSIGN(auto theta, gguf_.real(key("rope.freq_base")));
    theta_ = theta.value_or(10000);
    if (theta_ <= 0)
        return gguf_.key_error(key("rope.freq_base"), "is " + std::to_string(theta_) + "; a positive number expected");
    AWQ_ASSIGN(auto rotated, gguf_.integer(key("rope.dimension_count"), 1, 65536));
    if (rotated.value_or(head_dim_) != head_dim_)
        return unsupported(
            gguf_.key_error(key("rope.dimension_count"),
                            "is " + std::to_string(*rotated) + "; " + std::to_string(head_dim_) + ", the whole head, expected"));
    model_.config.set("rope_theta", theta_);
    model_.config.set("rope_scaling", Json());

    AWQ_ASSIGN(auto type_key, gguf_.text(key("rope.scaling.type")));
    AWQ_ASSIGN(auto factor, gguf_.real(key("rope.scaling.factor")));
    if (!factor) {  // its older name
        AWQ_ASSIGN(factor, gguf_.real(key("rope.scale_linear")));
    }
    std::string type(type_key.value_or(factor ? "linear" : "none"));
    const GgufTensor* factors = gguf_.find_tensor("rope_freqs.weight");
    if (factors) used_.insert(factors->name);
    if (type == "none" || (type == "linear" && factor.value_or(1) == 1)) return factors ? read_rope_factors(*factors) : Status();
    if (factors)
        return unsupported(
            gguf_.tensor_error(factors->name, "stands beside a rope scaling of type " + quote(type) + "; one of them expected"));
    if (type != "linear" && type != "yarn")
        return unsupported(
            gguf_.key_error(key("rope.scaling.type"), "is \"" + quote(type) + "\"; none, linear or yarn expected"));
    if (!factor || *factor < 1)
        return gguf_.key_error(key("rope.scaling.factor"), "is missing or below 1; a number from 1 expected");
    Json scaling = Json::object();
    scaling.set("rope_type", type);
    scaling.set("factor", *factor);
    if (type == "yarn") {
        AWQ_ASSIGN(auto original, gguf_.integer(key("rope.scaling.original_context_length"), 1, INT32_MAX));
        scaling.set("original_max_position_embeddings", original.value_or(model_.context_length));
        const char* numbers[][2] = {
            {"yarn_attn_factor", "attention_factor"}, {"yarn_beta_fast", "beta_fast"}, {"yarn_beta_slow", "beta_slow"}};
        for (auto& [name, field] : numbers) {
            AWQ_ASSIGN(auto number, gguf_.real(key("rope.scaling.") + name));
            if (number) scaling.set(field, *number);
        }
    }
    model_.config.set("rope_scaling", std::move(scaling));
    return {};
}

// Llama 3's scaling lies in the file as what each frequency is divided by. The four numbers behind that: the largest
// divisor is the factor, and only the ratios original / low and original / high matter, so low is 1 as in every
// published model; the other two are powers of two there, found by trying.
Status ModelReader::read_rope_factors(const GgufTensor& tensor) {
    size_t half = head_dim_ / 2;
    if (tensor.type != gguf_type::f32 || tensor.dimensions != 1 || tensor.shape[0] != half)
        return gguf_.tensor_error(tensor.name, "is no F32 vector of " + std::to_string(half) + ", half a head");
    std::vector<float> found(half);
    AWQ_TRY(gguf_.file().read(tensor.offset, found.data(), half * sizeof(float)));
    float factor = 1, least = found[0];
    for (float value : found) {
        if (!(value >= 1 && value <= 1e6f))
            return gguf_.tensor_error(tensor.name, "holds " + std::to_string(value) + "; 1 or more expected");
        factor = std::max(factor, value);
        least = std::min(least, value);
    }
    if (factor == 1) return {};
    Json scaling = Json::object();
    if (least == factor) {
        scaling.set("rope_type", "linear");
        scaling.set("factor", static_cast<double>(factor));
        model_.config.set("rope_scaling", std::move(scaling));
        return {};
    }
    auto explains = [&](double original, double high) {
        for (size_t i = 0; i < half; i++) {
            double wavelength = 2 * M_PI * std::pow(theta_, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim_));
            double smooth = std::clamp((original / wavelength - 1) / (high - 1), 0.0, 1.0);
            double expected = 1 / ((1 - smooth) / factor + smooth);
            if (std::fabs(found[i] - expected) > 1e-4 * expected) return false;
        }
        return true;
    };
    double original = 8192, high = 4;
    bool known = explains(original, high);
    for (int o = 4; o <= 24 && !known; o++)
        for (int h = 1; h <= 6 && !known; h++) known = explains(original = 1 << o, high = 1 << h);
    if (!known) return unsupported(gguf_.tensor_error(tensor.name, "holds rope factors that are not of Llama 3's kind"));
    scaling.set("rope_type", "llama3");
    scaling.set("factor", static_cast<double>(factor));
    scaling.set("low_freq_factor", 1.0);
    scaling.set("high_freq_factor", high);
    scaling.set("original_max_position_embeddings", static_cast<int64_t>(original));
    model_.config.set("rope_scaling", std::move(scaling));
    return {};
}

Status ModelReader::add(GgufModule::Kind kind, const std::string& tensor_name, const std::string& name, int64_t rows,
                        int64_t cols, int64_t interleaved_head, const char* suffix) {
    const GgufTensor* tensor = gguf_.find_tensor(tensor_name);
    if (!tensor) return gguf_.tensor_error(tensor_name, "is missing");
    used_.insert(tensor->name);
    bool vector = kind == GgufModule::Kind::vector;
    std::array<uint64_t, 4> shape = {static_cast<uint64_t>(vector ? rows * cols : cols), static_cast<uint64_t>(vector ? 1 : rows),
                                     1, 1};
    if (tensor->shape != shape) {
        std::string found;
        for (int d = 0; d < tensor->dimensions; d++) found += (d ? " x " : "") + std::to_string(tensor->shape[d]);
        return gguf_.tensor_error(tensor_name, "is " + found + "; " + std::to_string(shape[0]) +
                                                   (vector ? "" : " x " + std::to_string(shape[1])) + " expected");
    }
    bool plain = tensor->type == gguf_type::f32 || tensor->type == gguf_type::f16 || tensor->type == gguf_type::bf16;
    if (!gguf_dequantisable(tensor->type) || (vector && !plain))
        return unsupported(gguf_.tensor_error(tensor_name, std::string("has type ") + gguf_type_name(tensor->type) + "; " +
                                                               (vector ? "" : "Q4_0, Q4_1, Q8_0, Q6_K, ") +
                                                               "F16, BF16 or F32 expected"));
    uint64_t row_bytes = tensor->row_bytes / (vector ? shape[0] : 1) * (vector ? static_cast<uint64_t>(cols) : 1);
    model_.modules.push_back({kind, name, suffix, {&gguf_, tensor, rows, cols, row_bytes, interleaved_head}});
    return {};
}

Status ModelReader::add_linear(const std::string& tensor, const std::string& name, int64_t rows, int64_t cols, bool bias,
                               int64_t interleaved_head) {
    AWQ_TRY(add(GgufModule::Kind::linear, tensor + ".weight", name, rows, cols, interleaved_head));
    if (!bias) return {};
    // a column, so that its elements are in the order of the rows of the weight
    if (gguf_.find_tensor(tensor + ".bias"))
        return add(GgufModule::Kind::vector, tensor + ".bias", name, rows, 1, interleaved_head, "bias");
    model_.modules.push_back({GgufModule::Kind::vector, name, "bias", {&gguf_, nullptr, rows, 1, 0, 0}});
    return {};
}

bool ModelReader::any_bias(std::initializer_list<const char*> members) const {
    for (uint64_t layer = 0; layer < layers_; layer++)
        for (const char* member : members)
            if (gguf_.find_tensor("blk." + std::to_string(layer) + "." + member + ".bias")) return true;
    return false;
}

Status ModelReader::read_modules() {
    auto size = [](uint64_t n) { return static_cast<int64_t>(n); };
    int64_t hidden = size(hidden_), q_rows = size(heads_ * head_dim_), kv_rows = size(kv_heads_ * head_dim_);
    int64_t interleaved = family_->interleaved ? size(head_dim_) : 0;
    using Kind = GgufModule::Kind;
    bool attention_bias = !family_->qkv_bias && any_bias({"attn_q", "attn_k", "attn_v", "attn_output"});
    bool mlp_bias = family_->mlp_bias && any_bias({"ffn_gate", "ffn_up", "ffn_down"});
    if (!family_->qkv_bias) model_.config.set("attention_bias", attention_bias);
    if (family_->mlp_bias) model_.config.set("mlp_bias", mlp_bias);
    bool qkv_bias = attention_bias || family_->qkv_bias;

    AWQ_TRY(add(Kind::table, "token_embd.weight", "model.embed_tokens", size(model_.vocab_rows), hidden));
    for (uint64_t layer = 0; layer < layers_; layer++) {
        std::string from = "blk." + std::to_string(layer) + ".", to = "model.layers." + std::to_string(layer) + ".";
        AWQ_TRY(add(Kind::vector, from + "attn_norm.weight", to + "input_layernorm", 1, hidden));
        AWQ_TRY(add_linear(from + "attn_q", to + "self_attn.q_proj", q_rows, hidden, qkv_bias, interleaved));
        AWQ_TRY(add_linear(from + "attn_k", to + "self_attn.k_proj", kv_rows, hidden, qkv_bias, interleaved));
        AWQ_TRY(add_linear(from + "attn_v", to + "self_attn.v_proj", kv_rows, hidden, qkv_bias));
        if (family_->qk_norm) {
            AWQ_TRY(add(Kind::vector, from + "attn_q_norm.weight", to + "self_attn.q_norm", 1, size(head_dim_)));
            AWQ_TRY(add(Kind::vector, from + "attn_k_norm.weight", to + "self_attn.k_norm", 1, size(head_dim_)));
        }
        AWQ_TRY(add_linear(from + "attn_output", to + "self_attn.o_proj", hidden, q_rows, attention_bias));
        AWQ_TRY(add(Kind::vector, from + "ffn_norm.weight", to + "post_attention_layernorm", 1, hidden));
        AWQ_TRY(add_linear(from + "ffn_gate", to + "mlp.gate_proj", size(intermediate_), hidden, mlp_bias));
        AWQ_TRY(add_linear(from + "ffn_up", to + "mlp.up_proj", size(intermediate_), hidden, mlp_bias));
        AWQ_TRY(add_linear(from + "ffn_down", to + "mlp.down_proj", hidden, size(intermediate_), mlp_bias));
    }
    AWQ_TRY(add(Kind::vector, "output_norm.weight", "model.norm", 1, hidden));
    if (gguf_.find_tensor("output.weight"))
        AWQ_TRY(add(Kind::linear, "output.weight", "lm_head", size(model_.vocab_rows), hidden));

    for (const GgufTensor& tensor : gguf_.tensors()) {
        // tables of rotation frequencies that old files carry and nothing reads
        bool ignored = tensor.name.ends_with(".attn_rot_embd.weight") || tensor.name.ends_with(".attn_rot_embd");
        if (!ignored && !used_.count(tensor.name))
            return unsupported(gguf_.tensor_error(tensor.name, std::string("of type ") + gguf_type_name(tensor.type) +
                                                                   " has no place in a model of architecture " +
                                                                   family_->architecture));
    }
    return {};
}

Result<GgufModel> ModelReader::read() {
    AWQ_ASSIGN(auto architecture, gguf_.text("general.architecture"));
    if (!architecture) return gguf_.key_error("general.architecture", "is missing; \"llama\", \"qwen2\" or \"qwen3\" expected");
    for (const Family& family : families)
        if (*architecture == family.architecture) family_ = &family;
    if (!family_)
        return unsupported(gguf_.key_error("general.architecture",
                                           "is \"" + quote(*architecture) + "\"; \"llama\", \"qwen2\" or \"qwen3\" expected"));
    AWQ_TRY(refuse_unlike_keys());
    AWQ_TRY(read_sizes());
    AWQ_TRY(read_rope());
    AWQ_TRY(read_modules());
    return std::move(model_);
}

}  // namespace

Result<GgufModel> read_gguf_model(const Gguf& gguf) { return ModelReader(gguf).read(); }

}  // namespace awq
