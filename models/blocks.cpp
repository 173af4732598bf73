#include "models/blocks.h"
#include <cmath>

namespace awq {

// ---- ModelBuilder

NodeId ModelBuilder::embed(const std::string& path, float scale) {
    Attrs attrs;
    attrs.scale = scale;
    return g.op(Op::embed, path, {g.batch_input(Input::tokens), g.weight(whole(path))}, attrs);
}

NodeId ModelBuilder::embed_positions(const std::string& path, int64_t offset) {
    Attrs attrs;
    attrs.offset = offset;
    return g.op(Op::embed, path, {g.batch_input(Input::positions), g.weight(whole(path))}, attrs);
}

NodeId ModelBuilder::rope_table(const RopeParams& rope) {
    g.graph().ropes.push_back(rope);
    Attrs attrs;
    attrs.rope = &g.graph().ropes.back();
    attrs.rot_dim = rope.rot_dim;
    return g.op(Op::rope_table, "rotary_emb", {g.batch_input(Input::positions), g.batch_input(Input::sequence), g.batch_input(Input::rope_len)}, attrs);
}

const Weight* ModelBuilder::whole(const std::string& path) {
    auto slice = weights.slice(path);
    if (!slice.weight) g.fail(Status(Code::internal, path + ": the plan holds no weight for it"));
    return slice.weight;
}

Attrs ModelBuilder::norm_attrs(NormKind kind, int64_t width) const {
    Attrs attrs;
    attrs.eps = config.norm_eps;
    attrs.width = width;
    attrs.plus_one = kind == NormKind::rms_plus_one;
    return attrs;
}

NodeId ModelBuilder::norm(NodeId x, const std::string& path, NormKind kind, int64_t width, float eps) {
    Attrs attrs = norm_attrs(kind, width ? width : g.node(x).cols);
    if (eps > 0) attrs.eps = eps;
    NodeId weight = vector(path + ".weight");
    if (kind == NormKind::layer) return g.op(Op::layer_norm, path, {x, weight, vector(path + ".bias")}, attrs);
    return g.op(Op::rms_norm, path, {x, weight}, attrs);
}

NodeId ModelBuilder::ordered(NodeId x, const Weight* weight) {
    NodeId order = weight ? vector(weight->spec.name + ".input_order") : no_node;
    return order == no_node ? x : g.op(Op::gather_cols, weight->spec.name + ".input_order", {x, order});
}

NodeId ModelBuilder::linear(NodeId x, const std::string& path) { return linears(x, {path})[0]; }

std::vector<NodeId> ModelBuilder::linears(NodeId x, const std::vector<std::string>& paths) {
    std::vector<NodeId> results;
    const Weight* last = nullptr;
    NodeId product = no_node;
    for (const std::string& path : paths) {
        auto slice = weights.slice(path);
        if (!slice.weight) {
            whole(path);
            return std::vector<NodeId>(paths.size(), x);
        }
        if (slice.weight != last) {
            last = slice.weight;
            product = g.op(Op::linear, last->spec.name, {ordered(x, last), g.weight(last), vector(last->spec.name + ".bias")});
        }
        bool all = slice.rows == last->spec.out;
        results.push_back(all ? product : g.view(product, slice.first_row, slice.rows, path));
    }
    return results;
}

std::vector<NodeId> ModelBuilder::norm_linears(NodeId x, const std::string& norm_path, NormKind kind, const std::vector<std::string>& paths) {
    const Weight* weight = weights.slice(paths[0]).weight;
    bool one = weight && kind != NormKind::layer && !weights.find(weight->spec.name + ".input_order");
    for (const std::string& path : paths) one = one && weights.slice(path).weight == weight;
    if (!one) return linears(norm(x, norm_path, kind), paths);
    NodeId product = g.op(Op::norm_linear, weight->spec.name,
                          {x, vector(norm_path + ".weight"), g.weight(weight), vector(weight->spec.name + ".bias")},
                          norm_attrs(kind, g.node(x).cols));
    std::vector<NodeId> results;
    for (const std::string& path : paths) {
        auto slice = weights.slice(path);
        results.push_back(slice.rows == weight->spec.out ? product : g.view(product, slice.first_row, slice.rows, path));
    }
    return results;
}

void ModelBuilder::split_qkv(NodeId qkv, AttentionArgs& args) {
    const int64_t q = int64_t{config.heads} * config.head_dim, kv = int64_t{config.kv_heads} * config.head_dim;
    args.q = g.view(qkv, 0, q, args.path + ".q");
    args.k = g.view(qkv, q, kv, args.path + ".k");
    args.v = g.view(qkv, q + kv, kv, args.path + ".v");
}

NodeId ModelBuilder::gated_act(NodeId both, const std::string& path) {
    const int64_t half = g.node(both).cols / 2;
    Attrs attrs;
    attrs.activation = config.activation;
    return g.op(Op::gated_act, path + ".act_fn", {g.view(both, 0, half, path + ".gate"), g.view(both, half, half, path + ".up")}, attrs);
}

NodeId ModelBuilder::linear_add(NodeId x, const std::string& path, NodeId residual) {
    const Weight* weight = whole(path);
    if (!weight) return x;
    return g.op(Op::linear_add, path, {ordered(x, weight), g.weight(weight), vector(path + ".bias"), residual});
}

NodeId ModelBuilder::add(NodeId a, NodeId b, const std::string& name) { return g.op(Op::add, name, {a, b}); }

NodeId ModelBuilder::act(NodeId x, Activation activation, const std::string& path) {
    Attrs attrs;
    attrs.activation = activation;
    return g.op(Op::act, path, {x, vector(path + ".scales")}, attrs);
}

void ModelBuilder::logits(NodeId x, const std::string& norm_path, NormKind kind, const std::string& head_path) {
    NodeId rows = g.op(Op::select_rows, "output_rows", {x, g.batch_input(Input::output_rows)});
    NodeId y = norm_path.empty() ? linear(rows, head_path) : norm_linears(rows, norm_path, kind, {head_path})[0];
    if (config.logit_scale != 1) {
        Attrs attrs;
        attrs.scale = config.logit_scale;
        y = g.op(Op::scale, "logit_scale", {y}, attrs);
    }
    if (config.final_softcap > 0) {
        Attrs attrs;
        attrs.softcap = config.final_softcap;
        y = g.op(Op::softcap, "final_logit_softcapping", {y}, attrs);
    }
    g.graph().output = y;
}

// ---- blocks

NodeId attention(ModelBuilder& b, const AttentionArgs& args) {
    const ModelConfig& c = b.config;
    NodeId q = args.q, k = args.k;
    if (!args.q_norm.empty()) q = b.norm(q, args.q_norm, args.qk_norm_kind, c.head_dim);
    if (!args.k_norm.empty()) k = b.norm(k, args.k_norm, args.qk_norm_kind, c.head_dim);
    Attrs attrs;
    attrs.layer = args.layer;
    attrs.heads = c.heads;
    attrs.kv_heads = c.kv_heads;
    attrs.head_dim = c.head_dim;
    attrs.interleaved = args.interleaved;
    NodeId positions = b.g.batch_input(Input::positions), sequence = b.g.batch_input(Input::sequence);
    NodeId page_table = b.g.batch_input(Input::page_table);
    if (args.rope_table != no_node) {
        attrs.rot_dim = static_cast<int32_t>(b.g.node(args.rope_table).cols);
        q = b.g.op(Op::rope_append, args.path, {q, k, args.v, args.rope_table, positions, sequence, page_table}, attrs);
    } else {
        b.g.op(Op::kv_append, args.path + ".kv_append", {k, args.v, positions, sequence, page_table}, attrs);
    }
    attrs.window = args.window;
    attrs.scale = c.attention_scale > 0 ? c.attention_scale : 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    attrs.softcap = c.attention_softcap;
    attrs.alibi = args.alibi;
    return b.g.op(Op::attention, args.path + ".attention", {q, positions, sequence, b.g.batch_input(Input::seq_begin), page_table}, attrs);
}

const float* alibi_slopes(ModelBuilder& b, int32_t heads, double max_bias, float factor) {
    int32_t power = 1;
    while (power * 2 <= heads) power *= 2;
    std::vector<float> slopes;
    for (int32_t i = 0; i < heads; i++) {
        double exponent = i < power ? max_bias * (i + 1) / power : max_bias * (2 * (i - power) + 1) / (2 * power);
        slopes.push_back(static_cast<float>(std::exp2(-exponent)) * factor);
    }
    b.g.graph().constants.push_back(std::move(slopes));
    return b.g.graph().constants.back().data();
}

NodeId gated_mlp(ModelBuilder& b, const GatedMlpArgs& args) {
    const std::string gate = args.path + "." + args.gate, up = args.path + "." + args.up, down = args.path + "." + args.down;
    const Weight* both = b.weights.slice(gate).weight;
    bool one = both && both == b.weights.slice(up).weight && both->spec.stack == Stack::gate_up && !args.norm.empty() &&
               args.norm_kind != NormKind::layer && !b.weights.find(both->spec.name + ".bias") && !b.weights.find(both->spec.name + ".input_order");
    Attrs attrs;
    attrs.activation = b.config.activation;
    NodeId hidden;
    if (one) {
        attrs.eps = b.config.norm_eps;
        attrs.width = b.g.node(args.x).cols;
        attrs.plus_one = args.norm_kind == NormKind::rms_plus_one;
        hidden = b.g.op(Op::norm_gate_up, both->spec.name,
                        {args.x, b.g.weight(b.weights.find(args.norm + ".weight")), b.g.weight(both)}, attrs);
    } else {
        auto parts = args.norm.empty() ? b.linears(args.x, {gate, up}) : b.norm_linears(args.x, args.norm, args.norm_kind, {gate, up});
        hidden = b.g.op(Op::gated_act, args.path + ".act_fn", {parts[0], parts[1]}, attrs);
    }
    return args.residual == no_node ? b.linear(hidden, down) : b.linear_add(hidden, down, args.residual);
}

NodeId mlp(ModelBuilder& b, const MlpArgs& args) {
    NodeId hidden = b.act(b.linear(args.x, args.up), b.config.activation, args.act);
    return args.residual == no_node ? b.linear(hidden, args.down) : b.linear_add(hidden, args.down, args.residual);
}

NodeId moe(ModelBuilder& b, const MoeArgs& args) {
    Attrs attrs;
    attrs.activation = b.config.activation;
    attrs.top_k = b.config.experts_per_token;
    attrs.renormalize = b.config.norm_topk;
    const Weight *gate_up = b.weights.find(args.path + ".experts.gate_up_proj"), *down = b.weights.find(args.path + ".experts.down_proj");
    if (!gate_up || !down) b.g.fail(Status(Code::internal, args.path + ".experts: the plan holds no weights for them"));
    auto router = b.weights.slice(args.router);
    if (router.weight && router.rows == router.weight->spec.out && args.residual != no_node &&
        !b.weights.find(router.weight->spec.name + ".bias") && !b.weights.find(router.weight->spec.name + ".input_order")) {
        attrs.eps = b.config.norm_eps;
        attrs.width = b.g.node(args.x).cols;
        return b.g.op(Op::norm_moe, args.path + ".experts",
                      {args.x, b.g.weight(b.weights.find(args.norm + ".weight")), b.g.weight(router.weight), b.g.weight(gate_up),
                       b.g.weight(down), args.residual},
                      attrs);
    }
    NodeId x = b.norm(args.x, args.norm, NormKind::rms), logits = b.linear(x, args.router);
    NodeId y = b.g.op(Op::moe, args.path + ".experts", {x, logits, b.g.weight(gate_up), b.g.weight(down)}, attrs);
    return args.residual == no_node ? y : b.add(y, args.residual, args.path + ".add");
}

void llama_decoder(const ModelConfig& c, ModelBuilder& b, const DecoderStyle& style) {
    const std::string model = c.prefix + "model.";
    NodeId x = b.embed(model + "embed_tokens", c.embed_scale);
    if (c.vision.layers > 0) {
        NodeId features = b.g.input(Input::features, Rows::fixed, c.hidden_size, DType::f32, 1);
        x = b.g.op(Op::put_rows, "image_features", {x, features, b.g.batch_input(Input::image_rows)});
    }
    NodeId rope = b.rope_table(c.rope);
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = model + "layers." + std::to_string(i), attn = layer + ".self_attn";
        auto qkv = b.norm_linears(x, layer + ".input_layernorm", NormKind::rms, {attn + ".q_proj", attn + ".k_proj", attn + ".v_proj"});
        AttentionArgs args;
        args.path = attn;
        args.layer = i;
        args.q = qkv[0];
        args.k = qkv[1];
        args.v = qkv[2];
        args.rope_table = rope;
        args.window = c.window.empty() ? 0 : c.window[i];
        if (style.qk_norm) {
            args.q_norm = attn + ".q_norm";
            args.k_norm = attn + ".k_norm";
        }
        x = b.linear_add(attention(b, args), attn + ".o_proj", x);
        const std::string norm = layer + ".post_attention_layernorm";
        if (!style.moe_path.empty() && (c.sparse_layer.empty() || c.sparse_layer[i])) {
            const std::string path = layer + style.moe_path;
            x = moe(b, {.x = x, .norm = norm, .path = path, .router = path + ".gate", .residual = x});
        } else {
            x = gated_mlp(b, {.path = layer + ".mlp", .x = x, .norm = norm, .residual = x});
        }
    }
    b.logits(x, model + "norm", NormKind::rms, c.prefix + "lm_head");
}

void gemma_decoder(const ModelConfig& c, ModelBuilder& b) {
    const std::string model = c.prefix + "model.";
    NodeId x = b.embed(model + "embed_tokens", c.embed_scale);
    NodeId rope = b.rope_table(c.rope), local_rope = c.local_rope.rot_dim > 0 ? b.rope_table(c.local_rope) : rope;
    for (int32_t i = 0; i < c.layers; i++) {
        const std::string layer = model + "layers." + std::to_string(i), attn = layer + ".self_attn";
        const NormKind kind = NormKind::rms_plus_one;
        auto qkv = b.norm_linears(x, layer + ".input_layernorm", kind, {attn + ".q_proj", attn + ".k_proj", attn + ".v_proj"});
        AttentionArgs args{.path = attn, .layer = i, .q = qkv[0], .k = qkv[1], .v = qkv[2]};
        args.window = c.window[i];
        args.rope_table = args.window > 0 ? local_rope : rope;
        if (c.qk_norm) {
            args.q_norm = attn + ".q_norm";
            args.k_norm = attn + ".k_norm";
            args.qk_norm_kind = kind;
        }
        NodeId y = b.norm(b.linear(attention(b, args), attn + ".o_proj"), layer + ".post_attention_layernorm", kind);
        x = b.add(y, x, attn + ".add");
        y = gated_mlp(b, {.path = layer + ".mlp", .x = x, .norm = layer + ".pre_feedforward_layernorm", .norm_kind = kind});
        x = b.add(b.norm(y, layer + ".post_feedforward_layernorm", kind), x, layer + ".mlp.add");
    }
    b.logits(x, model + "norm", NormKind::rms_plus_one, c.prefix + "lm_head");
}

}  // namespace awq
