// LLaVA 1.5: a CLIP vision tower, a two-layer projector, and any text model that has a file here.
#include <cmath>
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure_vision(ConfigReader& reader, ModelConfig& config) {
    auto& vision = config.vision;
    // a config without vision_config means CLIP ViT-L/14 at 336 pixels; one with it, CLIPVisionConfig's own defaults
    bool given = reader.has("vision_config");
    ConfigReader tower = reader.object("vision_config");
    if (tower.string("model_type", "clip_vision_model") != "clip_vision_model")
        tower.unexpected("model_type", "\"clip_vision_model\"");
    vision.hidden_size = tower.integer("hidden_size", given ? 768 : 1024, 1, max_width);
    vision.intermediate_size = tower.integer("intermediate_size", given ? 3072 : 4096, 1, max_width);
    vision.layers = static_cast<int32_t>(tower.integer("num_hidden_layers", given ? 12 : 24, 1, max_layers));
    vision.heads = static_cast<int32_t>(tower.integer("num_attention_heads", given ? 12 : 16, 1, max_width));
    vision.image_size = static_cast<int32_t>(tower.integer("image_size", given ? 224 : 336, 1, 4096));
    vision.patch_size = static_cast<int32_t>(tower.integer("patch_size", given ? 32 : 14, 1, 1024));
    vision.norm_eps = static_cast<float>(tower.real("layer_norm_eps", 1e-5, 0, 1));
    vision.activation = tower.activation("hidden_act", "quick_gelu");
    if (tower.integer("num_channels", 3, 1, 1024) != 3) tower.unexpected("num_channels", "3");
    if (vision.hidden_size % vision.heads != 0)
        tower.unexpected("hidden_size", "a multiple of num_attention_heads (" + std::to_string(vision.heads) + ")");
    if (vision.patch_size > vision.image_size)
        tower.unexpected("patch_size", "at most image_size (" + std::to_string(vision.image_size) + ")");
    reader.adopt(tower);

    vision.feature_layer =
        static_cast<int32_t>(reader.integer("vision_feature_layer", -2, -int64_t{vision.layers} - 1, vision.layers));
    std::string select = reader.string("vision_feature_select_strategy", "default");
    if (select != "default" && select != "full") reader.unexpected("vision_feature_select_strategy", "\"default\" or \"full\"");
    vision.drop_class_token = select == "default";
    vision.projector_activation = reader.activation("projector_hidden_act", "gelu");
    vision.projector_bias = reader.boolean("multimodal_projector_bias", true);
    vision.image_token =
        static_cast<int32_t>(reader.integer(reader.any({"image_token_index", "image_token_id"}), 32000, 0, max_vocabulary));
}

void configure(ConfigReader& reader, ModelConfig& config) {
    ConfigReader text = reader.object("text_config");
    std::string type = text.string("model_type", "llama");
    const Model* model = find_model(type);
    if (!model || model->vision || type == "llava" || type == "gemma3") {
        std::string known;
        for (const Model* m : model_table())
            if (!m->vision) known += std::string(known.empty() ? "" : ", ") + m->model_type + (std::string_view(m->model_type) == "gemma3" ? "_text" : "");
        text.fail("model_type", "\"" + quote(type) + "\" is not a text model known here; expected one of " + known, Code::unsupported);
    } else {
        config.text = model;
        model->configure(text, config);
    }
    reader.adopt(text);
    config.prefix = "language_model.";
    configure_vision(reader, config);
}

void add_tower(ModuleTree& tree, const ModelConfig::Vision& vision) {
    const std::string tower = "vision_tower.vision_model";
    int64_t side = vision.image_size / vision.patch_size, hidden = vision.hidden_size;
    tree.add(ModuleKind::parameter, tower + ".embeddings.class_embedding", 1, hidden);
    tree.add(ModuleKind::conv, tower + ".embeddings.patch_embedding", hidden, 3 * int64_t{vision.patch_size} * vision.patch_size);
    tree.embedding(tower + ".embeddings.position_embedding", side * side + 1, hidden);
    tree.norm(tower + ".pre_layrnorm", hidden, true);  // transformers spells it so
    for (int32_t i = 0; i < vision.layers; i++) {
        size_t first = tree.modules.size();
        std::string path = tower + ".encoder.layers." + std::to_string(i), attention = path + ".self_attn";
        for (const char* name : {".k_proj", ".v_proj", ".q_proj", ".out_proj"})
            tree.linear(attention + name, hidden, hidden, true);
        tree.groups.push_back({FusionGroup::Kind::attention,
                               attention,
                               {attention + ".q_proj", attention + ".k_proj", attention + ".v_proj", attention + ".out_proj"},
                               ""});
        tree.norm(path + ".layer_norm1", hidden, true);
        add_mlp(tree, path + ".mlp", {"fc1", nullptr, "fc2"}, hidden, vision.intermediate_size, true);
        tree.norm(path + ".layer_norm2", hidden, true);
        for (size_t m = first; m < tree.modules.size(); m++) tree.modules[m].needed = i < vision.layers_needed();
    }
    tree.norm(tower + ".post_layernorm", hidden, true).needed = false;
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    add_tower(tree, config.vision);
    tree.linear("multi_modal_projector.linear_1", config.vision.hidden_size, config.hidden_size, config.vision.projector_bias);
    tree.linear("multi_modal_projector.linear_2", config.hidden_size, config.hidden_size, config.vision.projector_bias);
    for (Module& module : tree.modules) module.class_path = "model." + module.path;
    add_text_model(tree, config, config.prefix);
}

void graph(const ModelConfig& config, ModelBuilder& builder) { config.text->graph(config, builder); }

// CLIP's tower up to the layer whose output is taken, then the projector: pixels to features.
void vision(const ModelConfig& config, ModelBuilder& b) {
    const auto& v = config.vision;
    const std::string tower = "vision_tower.vision_model", embeddings = tower + ".embeddings";
    Attrs patch;
    patch.patch = v.patch_size;
    patch.image = v.image_size;
    NodeId pixels = b.g.input(Input::pixels, Rows::fixed, v.image_size, DType::f32, int64_t{3} * v.image_size);
    NodeId x = b.linear(b.g.op(Op::patches, embeddings + ".patches", {pixels}, patch), embeddings + ".patch_embedding");
    x = b.g.op(Op::prepend_row, embeddings + ".class_embedding", {x, b.g.weight(b.weights.find(embeddings + ".class_embedding"))});
    x = b.g.op(Op::add_table, embeddings + ".position_embedding", {x, b.g.weight(b.weights.find(embeddings + ".position_embedding"))});
    auto norm = [&](NodeId y, const std::string& path) { return b.norm(y, path, NormKind::layer, 0, v.norm_eps); };
    x = norm(x, tower + ".pre_layrnorm");
    Attrs attend;
    attend.heads = attend.kv_heads = v.heads;
    attend.head_dim = static_cast<int32_t>(v.hidden_size / v.heads);
    attend.scale = 1 / std::sqrt(static_cast<float>(attend.head_dim));
    for (int32_t i = 0; i < v.layers_needed(); i++) {
        const std::string layer = tower + ".encoder.layers." + std::to_string(i), attn = layer + ".self_attn";
        auto qkv = b.linears(norm(x, layer + ".layer_norm1"), {attn + ".q_proj", attn + ".k_proj", attn + ".v_proj"});
        x = b.linear_add(b.g.op(Op::attention_full, attn, {qkv[0], qkv[1], qkv[2]}, attend), attn + ".out_proj", x);
        NodeId hidden = b.act(b.linear(norm(x, layer + ".layer_norm2"), layer + ".mlp.fc1"), v.activation, layer + ".mlp.activation_fn");
        x = b.linear_add(hidden, layer + ".mlp.fc2", x);
    }
    if (v.drop_class_token) x = b.g.op(Op::drop_first_row, "vision_tower.features", {x});
    x = b.act(b.linear(x, "multi_modal_projector.linear_1"), v.projector_activation, "multi_modal_projector.act");
    b.g.graph().output = b.linear(x, "multi_modal_projector.linear_2");
}

}  // namespace

extern const Model model_llava;
const Model model_llava = {
    .model_type = "llava",
    .aliases = {},
    .configure = configure,
    .tree = tree,
    .graph = graph,
    .vision = vision,
    .fusion = {{"q_proj", "k_proj", "v_proj", "o_proj"},
               {"gate_proj", "up_proj", "down_proj"},
               {"input_layernorm", "post_attention_layernorm", "norm"},
               false},
};

}  // namespace awq
