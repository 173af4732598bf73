// config.json to the plan of a model without weights, printed both ways; the sampling defaults with it.
#include "core/checkpoint/checkpoint.h"
#include "core/plan.h"
#include "core/text/sampler.h"
#include "tests/fuzz/target.h"

FUZZ_TARGET(config) {
    auto checkpoint = awq::Checkpoint::from_config(std::string(input));
    if (!checkpoint.ok()) return;
    (void)awq::read_generation_config((*checkpoint)->config(), (*checkpoint)->config());
    auto model = awq::configure_model((*checkpoint)->config());
    if (!model.ok()) return;
    if (model->config.layers > 8 || model->config.experts > 64) return;  // large plans are slow, not new
    for (bool fuse : {true, false}) {
        awq::PlanOptions options;
        options.fuse = fuse;
        options.skip_rule = fuse ? 4 : 5;
        auto plan = awq::make_plan(**checkpoint, *model, options, nullptr);
        if (!plan.ok()) continue;
        (void)awq::dump_json(awq::plan_to_json(*plan, *model));
        (void)awq::plan_to_table(*plan, *model);
    }
}
