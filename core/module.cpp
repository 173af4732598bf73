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

}  // namespace awq
