// The declared module tree of a model: every module with parameters, by the checkpoint's own names.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace awq {

enum class ModuleKind : uint8_t {
    linear,        // y = x W^T + b; a candidate for int4
    norm,
    embedding,
    activation,    // ScaledActivation's scales, [in]; the checkpoint may lack them: ones
    conv,          // the vision tower's patch embedding, as a matrix [out][in]
    parameter,     // a bare vector (class embedding)
};

// The dimension that ranks of a machine with several GPUs would share out: rows of W (each computes some outputs: q, k, v, gate, up, the
// head), columns (each has some inputs and their outputs are summed: o, down), or none (every rank has all of it).
enum class RankSplit : uint8_t { none, out, in };

struct Module {
    std::string path;            // as in the checkpoint: "model.layers.0.self_attn.q_proj"
    std::string class_path;      // in transformers 4.57's model class, where it differs (llava); the skip rule reads this
    ModuleKind kind = ModuleKind::linear;
    int64_t out = 0, in = 0;     // embedding: rows, columns; norm: out = 1
    bool bias = false;
    RankSplit split = RankSplit::none;
    bool weight = true;          // false: a norm without a weight of its own
    // A class of the model's own in place of nn.Linear (FalconLinear): converted like any other, but where the list leaves
    // it out, transformers' record of skipped Linears does not count it, so the plan says `keep`.
    bool own_class = false;
    bool needed = true;          // false: listed, but no graph reads it (vision layers past the one that is used)
    // The file's rows come in blocks of block_rows in another order than the graph wants them: block i of the packed weight
    // is the file's block block_order[i]. Empty: as in the file. See heads_apart().
    int64_t block_rows = 0;
    std::vector<int32_t> block_order;
    std::string tied_to;         // this Linear has no tensor of its own: it is that embedding
    const std::string& rule_path() const { return class_path.empty() ? path : class_path; }
};

// Modules that can run as one: q, k, v (one matmul), gate and up (one matmul), a norm.
struct FusionGroup {
    enum class Kind : uint8_t { attention, mlp, layernorm } kind;
    std::string target;                  // the attention, MLP or norm module
    std::vector<std::string> members;    // paths; attention: q, k, v and then o; mlp: gate, up and then down
    // Mixture of experts: the block whose experts lie in one stacked weight, this group being one of them, in order.
    std::string block;
};

struct ModuleTree {
    std::vector<Module> modules;         // in the order of transformers' named_modules()
    std::vector<FusionGroup> groups;     // everything that could be fused, by the model's own structure
    std::string head;                    // path of the output head: never converted unless the file says otherwise

    Module& add(ModuleKind kind, std::string path, int64_t out, int64_t in, bool bias = false);
    Module& linear(std::string path, int64_t in, int64_t out, bool bias = false) { return add(ModuleKind::linear, std::move(path), out, in, bias); }
    Module& norm(std::string path, int64_t size, bool bias = false) { return add(ModuleKind::norm, std::move(path), 1, size, bias); }
    Module& embedding(std::string path, int64_t rows, int64_t cols) { return add(ModuleKind::embedding, std::move(path), rows, cols); }
    const Module* find(const std::string& path) const;
};

// A fused q, k, v projection whose heads lie together: `groups` times (queries_per_group q heads, a k head, a v head) of
// head_dim rows each. Declares that it is to be packed as all q, all k, all v.
void heads_apart(Module& module, int64_t groups, int64_t queries_per_group, int64_t head_dim);

}  // namespace awq
