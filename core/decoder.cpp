#include "core/decoder.h"

namespace awq {

void read_decoder(ConfigReader& reader, const DecoderDefaults& defaults, ModelConfig& config) {
    config.vocab_size = reader.integer("vocab_size", defaults.vocab_size, 1, max_vocabulary);
    config.hidden_size = reader.integer("hidden_size", defaults.hidden_size, 1, max_width);
    config.intermediate_size = reader.integer("intermediate_size", defaults.intermediate_size, 1, max_width);
    config.layers = static_cast<int32_t>(reader.integer("num_hidden_layers", defaults.layers, 1, max_layers));
    config.heads = static_cast<int32_t>(reader.integer("num_attention_heads", defaults.heads, 1, max_width));
    // absent: the class's default; null: as many as heads
    int64_t kv_heads = defaults.kv_heads && !reader.is_null("num_key_value_heads") ? defaults.kv_heads : config.heads;
    config.kv_heads = static_cast<int32_t>(reader.integer("num_key_value_heads", kv_heads, 1, max_width));
    config.head_dim = static_cast<int32_t>(reader.integer("head_dim", defaults.head_dim, 1, max_width));
    config.max_positions = reader.integer("max_position_embeddings", defaults.max_positions, 1, max_context);
    config.norm_eps = static_cast<float>(reader.real(defaults.eps_key, defaults.eps, 0, 1));
    config.activation = reader.activation(defaults.activation_key, defaults.activation);
    config.tied = reader.boolean("tie_word_embeddings", defaults.tied);
    check_heads(reader, config, "hidden_size", "num_attention_heads");
    if (reader.ok() && !defaults.own_rope)
        config.rope = read_rope(reader, config.head_dim, reader.real("partial_rotary_factor", defaults.partial_rotary, 0, 1),
                                defaults.theta, config.max_positions, defaults.trained_positions);
}

void check_heads(ConfigReader& reader, ModelConfig& config, const char* hidden_key, const char* heads_key) {
    if (!reader.ok()) return;
    if (config.head_dim == 0 && config.hidden_size % config.heads != 0)
        return reader.fail(hidden_key, std::to_string(config.hidden_size) + "; expected a multiple of " + heads_key + " (" +
                                           std::to_string(config.heads) + "), as there is no head_dim");
    if (config.head_dim == 0) config.head_dim = static_cast<int32_t>(config.hidden_size / config.heads);
    if (config.heads % config.kv_heads != 0)
        return reader.fail(heads_key, std::to_string(config.heads) + "; expected a multiple of the key/value heads (" +
                                          std::to_string(config.kv_heads) + ")");
    if (int64_t{config.heads} * config.head_dim > max_width)
        reader.fail("head_dim", std::to_string(config.head_dim) + " x " + std::to_string(config.heads) +
                                    " heads; expected at most " + std::to_string(max_width) + " columns");
}

void read_windows(ConfigReader& reader, ModelConfig& config, int64_t window, bool (*slides)(int64_t layer, int64_t period),
                  int64_t period) {
    config.window.assign(config.layers, 0);
    const Json* types = reader.find("layer_types");
    if (types && (!types->is_array() || types->items().size() != static_cast<size_t>(config.layers)))
        return reader.fail("layer_types", std::string(types->type_name()) + "; expected an array of one name for each of the " +
                                              std::to_string(config.layers) + " layers");
    for (int64_t i = 0; i < config.layers; i++) {
        bool slide = slides(i, period);
        if (types) {
            const Json& type = types->items()[i];
            if (!type.is_string() || (type.string() != "full_attention" && type.string() != "sliding_attention"))
                return reader.fail("layer_types",
                                   quote(dump_json(type)) + "; expected \"full_attention\" or \"sliding_attention\"");
            slide = type.string() == "sliding_attention";
        }
        if (slide) config.window[i] = static_cast<int32_t>(window);
    }
}

std::string add_attention(ModuleTree& tree, const ModelConfig& config, const std::string& layer, const DecoderNames& names) {
    std::string path = layer + "." + names.attention;
    int64_t q = int64_t{config.heads} * config.head_dim, kv = int64_t{config.kv_heads} * config.head_dim;
    FusionGroup group{FusionGroup::Kind::attention,
                      path,
                      {path + "." + names.q, path + "." + names.k, path + "." + names.v, path + "." + names.o},
                      ""};
    tree.linear(group.members[0], config.hidden_size, q, config.attention_bias).split = RankSplit::out;
    tree.linear(group.members[1], config.hidden_size, kv, config.attention_bias).split = RankSplit::out;
    tree.linear(group.members[2], config.hidden_size, kv, config.attention_bias).split = RankSplit::out;
    tree.linear(group.members[3], q, config.hidden_size, config.attention_out_bias).split = RankSplit::in;
    tree.groups.push_back(std::move(group));
    return path;
}

void add_gated_mlp(ModuleTree& tree, const std::string& path, int64_t hidden, int64_t intermediate, bool bias) {
    FusionGroup group{FusionGroup::Kind::mlp, path, {path + ".gate_proj", path + ".up_proj", path + ".down_proj"}, ""};
    tree.linear(group.members[0], hidden, intermediate, bias).split = RankSplit::out;
    tree.linear(group.members[1], hidden, intermediate, bias).split = RankSplit::out;
    tree.linear(group.members[2], intermediate, hidden, bias).split = RankSplit::in;
    tree.groups.push_back(std::move(group));
}

void add_mlp(ModuleTree& tree, const std::string& path, const MlpNames& names, int64_t hidden, int64_t intermediate, bool bias) {
    tree.linear(path + "." + names.up, hidden, intermediate, bias).split = RankSplit::out;
    if (names.act) tree.add(ModuleKind::activation, path + "." + names.act, 1, intermediate);
    tree.linear(path + "." + names.down, intermediate, hidden, bias).split = RankSplit::in;
}

void check_experts(ConfigReader& reader, const ModelConfig& config, const char* experts_key, const char* chosen_key) {
    if (config.experts_per_token > config.experts)
        reader.unexpected(chosen_key, "at most " + std::string(experts_key) + " (" + std::to_string(config.experts) + ")");
    if (int64_t{config.layers} * config.experts > max_experts)
        reader.unexpected(experts_key, "at most " + std::to_string(max_experts) + " experts in all layers together");
}

void add_experts(ModuleTree& tree, const ModelConfig& config, const std::string& block, const ExpertNames& names) {
    for (int32_t e = 0; e < config.experts; e++) {
        std::string path = block + ".experts." + std::to_string(e);
        FusionGroup group{
            FusionGroup::Kind::mlp, path, {path + "." + names.gate, path + "." + names.up, path + "." + names.down}, block};
        tree.linear(group.members[0], config.hidden_size, config.expert_size).split = RankSplit::out;
        tree.linear(group.members[1], config.hidden_size, config.expert_size).split = RankSplit::out;
        tree.linear(group.members[2], config.expert_size, config.hidden_size).split = RankSplit::in;
        tree.groups.push_back(std::move(group));
    }
}

void add_rms_norm(ModuleTree& tree, const std::string& path, int64_t size) {
    tree.norm(path, size);
    tree.groups.push_back({FusionGroup::Kind::layernorm, path, {}, ""});
}

void add_head(ModuleTree& tree, const ModelConfig& config, const std::string& path, const std::string& embedding) {
    Module& head =
        tree.linear(path, config.embed_size ? config.embed_size : config.hidden_size, config.vocab_size, config.head_bias);
    head.split = RankSplit::out;
    if (config.tied) head.tied_to = embedding;
    tree.head = path;
}

void add_decoder_layer(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t) {
    add_attention(tree, config, path);
    add_gated_mlp(tree, path + ".mlp", config.hidden_size, config.intermediate_size, config.mlp_bias);
    add_rms_norm(tree, path + ".input_layernorm", config.hidden_size);
    add_rms_norm(tree, path + ".post_attention_layernorm", config.hidden_size);
}

void add_decoder_frame(ModuleTree& tree, const ModelConfig& config,
                     void (*layer)(ModuleTree& tree, const ModelConfig& config, const std::string& path, int64_t index)) {
    tree.embedding("model.embed_tokens", config.vocab_size, config.hidden_size);
    for (int64_t i = 0; i < config.layers; i++) layer(tree, config, "model.layers." + std::to_string(i), i);
    add_rms_norm(tree, "model.norm", config.hidden_size);
    add_head(tree, config, "lm_head", "model.embed_tokens");
}

void add_text_model(ModuleTree& tree, const ModelConfig& config, const std::string& prefix) {
    ModuleTree text;
    config.text->tree(config, text);
    for (Module& module : text.modules) {
        // the larger model holds the bare text model, without the step that its own class puts in front; the head stays
        size_t step = module.path.find('.');
        module.class_path = step == module.path.npos ? module.path : "model.language_model" + module.path.substr(step);
        module.path = prefix + module.path;
        if (!module.tied_to.empty()) module.tied_to = prefix + module.tied_to;
        tree.modules.push_back(std::move(module));
    }
    for (FusionGroup& group : text.groups) {
        group.target = prefix + group.target;
        for (std::string& member : group.members) member = prefix + member;
        if (!group.block.empty()) group.block = prefix + group.block;
        tree.groups.push_back(std::move(group));
    }
    tree.head = prefix + text.head;
}

}  // namespace awq
