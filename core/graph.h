// The graph: named nodes in run order. Built once for an engine, immutable while it runs, free of device memory.
//
// Every activation is a matrix. Its row count is not a number but a kind (tokens of the batch, rows wanted as output,
// or fixed), so that one graph serves every batch up to the capacity the memory plan was made for.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <vector>
#include "core/status.h"
#include "core/tensor.h"
#include "core/weight.h"

namespace awq {

enum class Op : uint8_t {
#define OP(name) name,
#include "core/ops.def"
#undef OP
};
inline constexpr int op_count = 0
#define OP(name) +1
#include "core/ops.def"
#undef OP
    ;
const char* op_name(Op op);

using NodeId = int32_t;
inline constexpr NodeId no_node = -1;

enum class Rows : uint8_t { tokens, outputs, fixed };

// What a batch brings along. All i32 but pixels and features (float32).
enum class Input : uint8_t {
    tokens,         // [T] ids
    positions,      // [T] position of each token in its own sequence
    sequence,       // [T] which of the batch's sequences each token belongs to; tokens of one sequence are adjacent
    seq_begin,      // [S + 1] first token of each sequence in the batch
    rope_len,       // [S] length the sequence has once all of its pending prompt is in (for length-dependent rope)
    page_table,     // [S][max_pages] cache page of positions 0..63, 64..127, ...
    output_rows,    // [O] tokens whose logits are wanted
    image_rows,     // [T] row of the image features to put there, or -1
    pixels,         // float32, vision graphs only
    features,       // float32 [n][hidden] projected image features; no data where the batch has no image
};
inline constexpr int input_count = 10;

enum class Activation : uint8_t { none, silu, gelu, gelu_tanh, quick_gelu, relu };

// Rotary embedding of one kind of layer; the inverse frequencies are weights made from these at load (core/rope.h).
struct RopeParams {
    int rot_dim = 0;                  // columns of each head that rotate; even
    bool interleaved = false;         // pairs (0,1), (2,3), ... instead of (0, rot_dim/2), ...
    double theta = 10000;
    float attention_factor = 1;       // multiplies cosines and sines
    std::vector<float> inv_freq;      // [rot_dim / 2]
    // Length-dependent kinds. dynamic: beyond original_length theta grows with the length. longrope: beyond it
    // long_inv_freq counts.
    enum class Kind : uint8_t { fixed, dynamic, longrope } kind = Kind::fixed;
    double factor = 1;
    int64_t original_length = 0;
    std::vector<float> long_inv_freq;
};

// One flat set of attributes; which op reads which is said in ops.def.
struct Attrs {
    Input input = Input::tokens;
    Activation activation = Activation::none;
    bool plus_one = false;          // rms_norm: weight + 1 (Gemma)
    bool interleaved = false;       // rope
    bool renormalize = false;       // moe: the chosen experts' weights sum to one
    float eps = 0, scale = 1, softcap = 0;    // softcap 0: none
    int64_t width = 0;              // norms: columns normed together
    int64_t offset = 0;             // view: first column; embed: added to ids
    int32_t layer = 0;              // index in the KV cache
    int32_t heads = 0, kv_heads = 0, head_dim = 0, rot_dim = 0;
    int32_t window = 0;             // attention: keys seen, own token included; 0: all
    int32_t top_k = 0;              // moe
    int32_t patch = 0, image = 0;   // vision: sizes in pixels
    const float* alibi = nullptr;   // attention: slope of each head, or null; owned by the graph
    const RopeParams* rope = nullptr;    // rope_table; owned by the graph
};

struct Node {
    Op op = Op::input;
    std::string name;               // "layers.0.self_attn.q_proj"
    std::vector<NodeId> in;         // no_node where an optional input is absent
    Rows rows = Rows::tokens;
    int64_t fixed_rows = 0;         // Rows::fixed
    int64_t cols = 0;
    DType dtype = DType::f32;
    const Weight* weight = nullptr; // Op::weight
    Attrs attrs;
};

// A number no other graph has, whatever memory it lies in: what backends key things by that they prepare for a graph.
struct GraphSerial {
    uint64_t value = next();
    GraphSerial() = default;
    GraphSerial(const GraphSerial&) {}    // a copy is another graph
    GraphSerial& operator=(const GraphSerial&) {
        value = next();
        return *this;
    }
    static uint64_t next();
};

class Graph {
public:
    GraphSerial serial;
    std::vector<Node> nodes;        // in run order: a node's inputs stand before it
    NodeId output = no_node;        // logits f32 [O][vocab], or image features
    std::deque<std::vector<float>> constants;    // alibi slopes
    std::deque<RopeParams> ropes;

    // The node that owns a view's memory.
    NodeId root(NodeId id) const {
        while (nodes[id].op == Op::view) id = nodes[id].in[0];
        return id;
    }
    // First column of a view in its root.
    int64_t root_offset(NodeId id) const {
        int64_t at = 0;
        for (; nodes[id].op == Op::view; id = nodes[id].in[0]) at += nodes[id].attrs.offset;
        return at;
    }
};

// Sizes of one run, or the largest a memory plan allows for.
struct BatchSize {
    int32_t tokens = 0, sequences = 0, outputs = 0;
    int32_t max_pages = 0;          // row length of the page table
};
inline int64_t node_rows(const Node& node, const BatchSize& size) {
    return node.rows == Rows::tokens ? size.tokens : node.rows == Rows::outputs ? size.outputs : node.fixed_rows;
}

}  // namespace awq
