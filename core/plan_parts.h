// The steps make_plan() takes, and what they hand on to each other. Internal to core/plan*.cpp.
#pragma once
#include <string>
#include <vector>
#include "core/plan.h"

namespace awq {

// What is known of a Linear's numbers, beside its row: from its tensors, or without any what the configuration promises.
struct LinearFacts {
    DType dtype = DType::f16;  // dense: of the weight; quantised: of the scales
    bool integer_zeros = false;
    std::vector<int32_t> input_order;  // act-order files
};

// A plan in the making.
struct PlanWork {
    const Checkpoint& checkpoint;
    const ConfiguredModel& model;
    const PlanOptions& options;
    Plan plan;
    ModuleTree tree;
    std::vector<LinearFacts> facts;  // one a row
    bool has_weights() const { return checkpoint.has_weights(); }
    PlanRow* row(const std::string& path) {
        auto at = plan.index.find(path);
        return at == plan.index.end() ? nullptr : &plan.rows[at->second];
    }
    LinearFacts& facts_of(const PlanRow& row) { return facts[&row - plan.rows.data()]; }
};

// plan_rows.cpp: rows with action, rule, format and group size for every module of the tree.
Status plan_rows(PlanWork& work);
// plan_fusion.cpp: the fusion table and fused_into of the members.
Status plan_fusion(PlanWork& work);
// plan_weights.cpp: what the backend is to hold; layouts, kernels and bytes where there is a backend.
Status plan_weights(PlanWork& work, const Backend* backend);

// Bytes of the scratch buffer that ExLlama v2 would allocate for the converted Linears of this plan.
size_t exllama_scratch(const Plan& plan);
// Puts a rope_theta in the place where this config.json keeps its own.
void set_rope_theta(Json& config, const Json& theta);
// Name of the fused weight of a group.
std::string fused_name(const FusionGroup& group);

}  // namespace awq
