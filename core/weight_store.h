// The weights of a plan in a backend's memory: one allocation, laid out, packed once straight from the files.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include "backends/backend.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan.h"

namespace awq {

// Told now and then while a model loads: bytes packed so far of all. Return false to stop.
using LoadProgress = std::function<bool(size_t done, size_t total)>;

class WeightStore {
public:
    // Every planned weight has its layout and its place, but no memory yet: graphs can be built over it.
    WeightStore(const Plan& plan, const Backend& backend);

    Status allocate(Backend& backend);    // in one piece

    // Once there is memory: every planned weight from the checkpoint's tensors, one after the other: there are
    // never two copies of all of the weights in memory.
    Status load(const Checkpoint& checkpoint, const Plan& plan, Backend& backend, const LoadProgress& progress);
    // The same weights filled with random numbers of a plausible size (benchmarks without a checkpoint).
    Status load_random(const Plan& plan, Backend& backend, const LoadProgress& progress);

    // A weight by its planned name ("...self_attn.qkv_proj", "...input_layernorm.weight"); null where there is none.
    const Weight* find(const std::string& name) const;
    // The weight that holds a module's rows, and where in it they begin; null where the module has none.
    struct Slice {
        const Weight* weight = nullptr;
        int64_t first_row = 0, rows = 0;
    };
    Slice slice(const std::string& module) const;
    size_t bytes() const { return bytes_; }

private:
    template <class Open>
    Status fill(const Plan& plan, Backend& backend, const LoadProgress& progress, Open open);
    size_t bytes_ = 0;
    std::vector<Weight> weights_;
    std::map<std::string, size_t> by_name_;
    std::map<std::string, Slice> by_module_;
    std::unique_ptr<Buffer> buffer_;
};

}  // namespace awq
