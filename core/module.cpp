#include "core/module.h"

namespace awq {

Module& ModuleTree::add(ModuleKind kind, std::string path, int64_t out, int64_t in, bool bias) {
    Module module;
    module.path = std::move(path);
    module.kind = kind;
    module.out = out;
    module.in = in;
    module.bias = bias;
    modules.push_back(std::move(module));
    return modules.back();
}

const Module* ModuleTree::find(const std::string& path) const {
    for (const Module& module : modules)
        if (module.path == path) return &module;
    return nullptr;
}

void heads_apart(Module& module, int64_t groups, int64_t queries_per_group, int64_t head_dim) {
    module.split = RankSplit::out;
    module.block_rows = head_dim;
    const int64_t blocks = queries_per_group + 2;
    auto add = [&](int64_t group, int64_t block) { module.block_order.push_back(static_cast<int32_t>(group * blocks + block)); };
    for (int64_t g = 0; g < groups; g++)
        for (int64_t q = 0; q < queries_per_group; q++) add(g, q);
    for (int64_t g = 0; g < groups; g++) add(g, queries_per_group);
    for (int64_t g = 0; g < groups; g++) add(g, queries_per_group + 1);
}

}  // namespace awq
