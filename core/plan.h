// The plan: tree x checkpoint x backend as one table. What becomes int4, what stays, by which rule; which file format;
// what is fused into what; how it lies in memory; which kernel runs at which batch; how many bytes. Data, no behaviour:
// `awq inspect` prints it, tests compare it, the loader follows it.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
#include "core/checkpoint/awq_config.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/weight_format.h"
#include "core/model.h"
#include "core/weight.h"

namespace awq {

class Backend;

enum class Action : uint8_t { convert, skip, keep };

struct PlanRow {
    Module module;
    Action action = Action::keep;
    std::string rule;                       // why, in words: "modules_to_not_convert: \"lm_head\" (leaf name)"
    const WeightFormat* format = nullptr;   // null: not a Linear, or no weights at hand
    std::string format_name;                // "gemm", "dense f16", "" where not known
    int64_t group_size = 0;                 // in force; 0: dense
    std::string fused_into;                 // path of the fused weight, "" where it stands alone
    std::string layout, kernels;            // the backend's; "" without a backend
    size_t bytes = 0;                       // in the backend's memory (a fused weight's bytes are shared out by rows)
    // A packed Linear's tensors, checked: opened once, here, and read by the loader. Null: plain, or no weights at hand.
    std::shared_ptr<const WeightRows> opened;
};

struct FusionRow {
    FusionGroup::Kind kind;
    std::string target;
    std::vector<std::string> members;
    bool fused = false;
    std::string reason;                     // why not, or by which mapping
};

// A weight the backend is to hold: one module's, or several fused ones' side by side.
struct PlannedWeight {
    WeightSpec spec;                        // name: the module's path (+ ".bias", ".weight", ".scales" for vectors)
    std::vector<std::string> modules;       // members, experts outermost, in the order of pack()'s sources
};

struct Plan {
    AwqConfig awq;
    std::vector<PlanRow> rows;              // one a module, in the tree's order
    std::vector<FusionRow> fusion;
    Json fusion_mapping;                    // hidden_size, num_attention_heads, ... (contract.md); null: none in force
    bool replaced = false;                  // anything converted
    std::vector<std::string> warnings;
    std::vector<PlannedWeight> weights;     // in load order
    // Where modules_to_fuse brings a rope_theta of its own, it counts: the frequencies made from it.
    std::optional<RopeParams> rope;
    size_t weight_bytes = 0, kv_bytes_per_token = 0, scratch_bytes = 0, total_at_context = 0;
    int64_t context = 0;

    std::unordered_map<std::string, size_t> index;    // of rows, by path
    const PlanRow* find(const std::string& path) const;
};

struct PlanOptions {
    AwqOverrides awq;
    int skip_rule = 4;                      // 4: transformers 4.57's reading of modules_to_not_convert, 5: 5.23's
    bool fuse = true;                       // --no-fuse
    int head_bits = 16;                     // 8: a plain output head is packed to 8 bits at load
    int64_t context = 0;                    // for the memory figures; 0: the model's
};

// `checkpoint` has been opened and may have no weights (then formats are what the configuration says). `backend` may be
// null: layouts, kernels and bytes stay empty.
Result<Plan> make_plan(const Checkpoint& checkpoint, const ConfiguredModel& model, const PlanOptions& options, const Backend* backend);

Json plan_to_json(const Plan& plan, const ConfiguredModel& model);           // contract.md: inspect --json
std::string plan_to_table(const Plan& plan, const ConfiguredModel& model);   // for people; repeating layers grouped
Result<std::string> explain_module(const Plan& plan, const Checkpoint& checkpoint, const Backend* backend, const std::string& path);

}  // namespace awq
