#include "core/plan_parts.h"

namespace awq {

const PlanRow* Plan::find(const std::string& path) const {
    auto at = index.find(path);
    return at == index.end() ? nullptr : &rows[at->second];
}

Result<Plan> make_plan(const Checkpoint& checkpoint, const ConfiguredModel& model, const PlanOptions& options,
                       const Backend* backend) {
    PlanWork work{checkpoint, model, options, {}, {}, {}};
    if (options.skip_rule != 4 && options.skip_rule != 5)
        return Status(Code::invalid_argument, "--skip-rule: " + std::to_string(options.skip_rule) + "; expected 4 or 5");
    if (options.head_bits != 8 && options.head_bits != 16)
        return Status(Code::invalid_argument, "--head-bits: " + std::to_string(options.head_bits) + "; expected 8 or 16");
    AwqOverrides overrides = options.awq;
    if (!options.fuse) overrides.do_fuse = false;
    AWQ_ASSIGN(work.plan.awq, read_awq_config(checkpoint.quantization(), checkpoint.quantization_file(), overrides));
    work.plan.warnings = work.plan.awq.warnings;
    model.model->tree(model.config, work.tree);
    AWQ_TRY(plan_rows(work));
    AWQ_TRY(plan_fusion(work));
    AWQ_TRY(plan_weights(work, backend));
    return std::move(work.plan);
}

}  // namespace awq
