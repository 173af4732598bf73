// What models are written with: embedding, projections, attention, feed-forward, output head. Every function takes the
// paths of Hugging Face members; where the plan fused some, one matmul and views come out. Knows no architecture's name.
#pragma once
#include <string>
#include <vector>
#include "core/graph_builder.h"
#include "core/model.h"
#include "core/weight_store.h"

namespace awq {

enum class NormKind : uint8_t { rms, rms_plus_one, layer };    // plus_one: stored as weight - 1 (Gemma)

struct AttentionArgs;

// A GraphBuilder that knows the model's weights and numbers.
class ModelBuilder {
public:
    ModelBuilder(GraphBuilder& graph, const WeightStore& weights, const ModelConfig& config)
        : g(graph), weights(weights), config(config) {}
    GraphBuilder& g;
    const WeightStore& weights;
    const ModelConfig& config;

    // Rows of the table for the batch's tokens (or positions + offset), times scale.
    NodeId embed(const std::string& path, float scale = 1);
    NodeId embed_positions(const std::string& path, int64_t offset = 0);
    NodeId rope_table(const RopeParams& rope);

    // width 0: over the whole row; else over runs of so many columns (per-head norms).
    // eps 0: the model's.
    NodeId norm(NodeId x, const std::string& path, NormKind kind, int64_t width = 0, float eps = 0);
    NodeId linear(NodeId x, const std::string& path);
    // Several Linears of the same input: one matmul and views where the plan fused them.
    std::vector<NodeId> linears(NodeId x, const std::vector<std::string>& paths);
    // linears(norm(x)), as one op where everything allows it.
    std::vector<NodeId> norm_linears(NodeId x, const std::string& norm_path, NormKind kind, const std::vector<std::string>& paths);
    // The columns q | k | v of one projection.
    void split_qkv(NodeId qkv, AttentionArgs& args);
    // activation(gate) * up of the columns gate | up of one projection.
    NodeId gated_act(NodeId both, const std::string& path);
    NodeId linear_add(NodeId x, const std::string& path, NodeId residual);
    NodeId add(NodeId a, NodeId b, const std::string& name);
    // activation(x), divided by the module's scales where the checkpoint has some (AWQ's ScaledActivation).
    NodeId act(NodeId x, Activation activation, const std::string& path);
    // Norm (none where norm_path is empty), head, scale and soft cap over the rows whose logits are wanted; becomes the
    // graph's output.
    void logits(NodeId x, const std::string& norm_path, NormKind kind, const std::string& head_path);

private:
    NodeId vector(const std::string& name) { return g.weight(weights.find(name)); }
    // x as the weight wants it: act-order weights read its columns in an order of their own.
    NodeId ordered(NodeId x, const Weight* weight);
    const Weight* whole(const std::string& path);
    Attrs norm_attrs(NormKind kind, int64_t width) const;
};

struct AttentionArgs {
    std::string path;                  // "model.layers.0.self_attn"
    int32_t layer = 0;
    NodeId q = no_node, k = no_node, v = no_node;
    NodeId rope_table = no_node;       // none: no rotation
    bool interleaved = false;
    std::string q_norm, k_norm;        // paths of per-head norms; empty: none
    NormKind qk_norm_kind = NormKind::rms;
    int32_t window = 0;
    const float* alibi = nullptr;      // slopes of each head, see alibi_slopes()
};
// Norms, rotates and caches keys and values, then attends; the result is what the output projection takes.
NodeId attention(ModelBuilder& b, const AttentionArgs& args);

// Slopes as Press et al. define them for any number of heads: 2^(-max * (i + 1) / n), n the next power of two, odd ones
// filling up. `factor` multiplies each. Owned by the graph.
const float* alibi_slopes(ModelBuilder& b, int32_t heads, double max_bias = 8, float factor = 1);

struct GatedMlpArgs {
    std::string path;                  // "model.layers.0.mlp"
    NodeId x = no_node;                // residual stream, or already normed where norm is empty
    std::string norm;                  // path of the norm before it
    NormKind norm_kind = NormKind::rms;
    std::string gate = "gate_proj", up = "up_proj", down = "down_proj";
    NodeId residual = no_node;         // added to the result; none: not added
};
NodeId gated_mlp(ModelBuilder& b, const GatedMlpArgs& args);

// fc2(act(fc1(x))) with x already normed.
struct MlpArgs {
    NodeId x = no_node;
    std::string up, act, down;         // paths; act: where ScaledActivation's scales lie
    NodeId residual = no_node;
};
NodeId mlp(ModelBuilder& b, const MlpArgs& args);

struct MoeArgs {
    NodeId x = no_node;                // residual stream
    std::string norm, path, router;    // path: the module with ".experts"; router: path of the gate Linear
    NodeId residual = no_node;
};
NodeId moe(ModelBuilder& b, const MoeArgs& args);

// A whole decoder of the Llama kind: pre-norm attention and gated MLP (or experts), RMS norms, rotary embedding.
struct DecoderStyle {
    bool qk_norm = false;              // per-head RMS norms of q and k
    std::string moe_path;              // ".block_sparse_moe", ".mlp": where a sparse layer's experts hang; empty: none
};
// The same with Gemma's habits: norms before and after each block, stored as weight - 1, per-layer windows, and a
// rotary base of their own for windowed layers where the config has one.
void gemma_decoder(const ModelConfig& config, ModelBuilder& b);
void llama_decoder(const ModelConfig& config, ModelBuilder& b, const DecoderStyle& style);

}  // namespace awq
