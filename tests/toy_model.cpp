// A family that no one publishes, to show what adding one takes: this file. A decoder whose attention and MLP read the same
// normed input, as some do, with names and configuration keys of its own.
#include "core/decoder.h"
#include "models/blocks.h"

namespace awq {

namespace {

void configure(ConfigReader& reader, ModelConfig& config) {
    config.vocab_size = reader.integer("words", 0, 1, max_vocabulary);
    config.hidden_size = reader.integer("width", 0, 1, max_width);
    config.intermediate_size = 2 * config.hidden_size;
    config.layers = static_cast<int32_t>(reader.integer("depth", 1, 1, max_layers));
    config.heads = config.kv_heads = static_cast<int32_t>(reader.integer("heads", 1, 1, max_width));
    config.max_positions = reader.integer("context", 256, 1, max_context);
    config.activation = Activation::gelu;
    check_heads(reader, config, "width", "heads");
    if (reader.ok()) config.rope = read_rope(reader, config.head_dim, 1, 10000, config.max_positions);
}

void tree(const ModelConfig& config, ModuleTree& tree) {
    tree.embedding("toy.words", config.vocab_size, config.hidden_size);
    for (int32_t i = 0; i < config.layers; i++) {
        const std::string block = "toy.blocks." + std::to_string(i);
        tree.norm(block + ".norm", config.hidden_size);
        add_attention(tree, config, block, {"mixer", "query", "key", "value", "out"});
        add_mlp(tree, block + ".feed", {"wide", nullptr, "narrow"}, config.hidden_size, config.intermediate_size, false);
    }
    tree.norm("toy.norm", config.hidden_size);
    add_head(tree, config, "toy.head", "toy.words");
}

void graph(const ModelConfig& config, ModelBuilder& b) {
    NodeId x = b.embed("toy.words");
    const NodeId rope = b.rope_table(config.rope);
    for (int32_t i = 0; i < config.layers; i++) {
        const std::string block = "toy.blocks." + std::to_string(i), mixer = block + ".mixer", feed = block + ".feed";
        const NodeId normed = b.norm(x, block + ".norm", NormKind::rms);
        auto qkv = b.linears(normed, {mixer + ".query", mixer + ".key", mixer + ".value"});
        const NodeId mixed = attention(b, {.path = mixer, .layer = i, .q = qkv[0], .k = qkv[1], .v = qkv[2], .rope_table = rope});
        x = b.linear_add(mixed, mixer + ".out", x);
        x = mlp(b, {.x = normed, .up = feed + ".wide", .act = feed + ".act", .down = feed + ".narrow", .residual = x});
    }
    b.logits(x, "toy.norm", NormKind::rms, "toy.head");
}

}  // namespace

extern const Model model_toy;
const Model model_toy = {
    .model_type = "toy", .aliases = {}, .configure = configure, .tree = tree, .graph = graph, .vision = nullptr, .fusion = {}};

}  // namespace awq
