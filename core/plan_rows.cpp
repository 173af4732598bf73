// Which Linear becomes int4, and why: first by the configuration's rule, then, where there are weights, by the tensors,
// which have the last word.
#include <algorithm>
#include "core/plan_parts.h"
#include "core/skip_rule.h"

namespace awq {

namespace {

std::string lower(std::string text) {
    std::ranges::transform(text, text.begin(),
                           [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    return text;
}

std::string dense_name(DType dtype) { return "dense " + lower(dtype_name(dtype)); }

// How files with this configuration are packed: exllama and ipex name kernels, their files are GEMM's.
std::string configured_format(const AwqConfig& awq) {
    if (awq.quant_method == "gptq") return "gptq";
    if (awq.quant_method == "compressed-tensors") return "compressed-tensors";
    if (awq.backend == "llm-awq" || awq.version == "llm-awq") return "llm-awq";
    return awq.version == "exllama" || awq.version == "ipex" ? "gemm" : awq.version;
}

const WeightFormat* format_named(const std::string& name) {
    for (const WeightFormat* format : weight_formats())
        if (name == format->name) return format;
    return nullptr;
}

// The type plain tensors have where no file says so.
DType configured_dtype(const Json& config) {
    for (const char* key : {"torch_dtype", "dtype"})
        if (const Json* value = config.find(key); value && value->is_string()) {
            if (value->string() == "bfloat16") return DType::bf16;
            if (value->string() == "float32") return DType::f32;
        }
    return DType::f16;
}

constexpr size_t match_work = size_t{1} << 25;

struct Verdict {
    Action action;
    std::string rule;
};

// The configuration's word on a Linear.
class Rules {
public:
    static Result<Rules> create(PlanWork& work) {
        Rules rules(work);
        const AwqConfig& awq = work.plan.awq;
        std::string field = "modules_to_not_convert";
        std::vector<std::string> entries = awq.modules_to_not_convert.value_or(std::vector<std::string>());
        SkipRule::Reading reading = SkipRule::Reading::substring;
        if (work.options.skip_rule == 5) {
            // published lists of vision models ("vision_tower") skip nothing under the newer reading: the older counts
            if (work.model.config.vision.layers > 0 && !entries.empty())
                work.plan.warnings.push_back(
                    "--skip-rule 5: lists of vision models are written for the older reading, which counts");
            else
                reading = SkipRule::Reading::boundary_pattern;
        }
        if (awq.quant_method == "compressed-tensors") {
            field = "ignore";
            entries = awq.ignore;
            reading = SkipRule::Reading::ignore_list;
        }
        // hostile lists: entries x modules is the work to do
        if (entries.size() * work.tree.modules.size() > match_work)
            return Status(Code::bad_file, work.checkpoint.quantization_file() + ": " + field + ": " + std::to_string(entries.size()) +
                                              " entries for " + std::to_string(work.tree.modules.size()) + " modules; expected fewer");
        auto list = SkipRule::create(std::move(entries), reading, field);
        if (!list.ok()) return list.status().in(work.checkpoint.quantization_file());
        rules.list_ = std::move(*list);
        return rules;
    }

    Result<Verdict> judge(const Module& module) const {
        const AwqConfig& awq = work_.plan.awq;
        if (!awq.quantized()) return Verdict{Action::keep, "the checkpoint is not quantised"};
        AWQ_ASSIGN(std::string listed, list_.match(module.rule_path()));
        if (listed.empty() && module.path != module.rule_path() && awq.quant_method == "compressed-tensors") {
            AWQ_ASSIGN(listed, list_.match(module.path));
        }
        if (!listed.empty() && module.own_class) return Verdict{Action::keep, listed + "; of a class of its own, no nn.Linear"};
        if (!listed.empty()) return Verdict{Action::skip, listed};
        if (!module.tied_to.empty()) return Verdict{Action::skip, "default: shares the weights of " + module.tied_to};
        bool head = module.path == work_.tree.head;
        if (head && awq.quant_method == "awq") return Verdict{Action::skip, "default: the output head"};
        if (head && awq.quant_method == "gptq" && !awq.quantized_head)
            return Verdict{Action::skip, "default: the output head, as lm_head is not true"};
        return Verdict{Action::convert, awq.quant_method + ": every Linear not left out"};
    }

private:
    explicit Rules(const PlanWork& work) : work_(work) {}
    const PlanWork& work_;
    SkipRule list_;
};

// Without tensors: what the reference would refuse when it builds the quantised module.
Status check_alignment(const PlanWork& work, const Module& module, int64_t group) {
    const AwqConfig& awq = work.plan.awq;
    auto refuse = [&](const std::string& what) { return Status(Code::bad_file, work.checkpoint.quantization_field("group_size") + ": " + what); };
    std::string size = std::to_string(module.in) + " inputs of " + module.path;
    if (module.in % group != 0)
        return refuse(std::to_string(group) + " does not divide the " + size + "; expected a divisor of it, or -1 for one group");
    if (module.out % 8 != 0)
        return Status(Code::bad_file, "config.json: " + module.path + ": " + std::to_string(module.out) +
                                          " outputs; expected a multiple of 8, as int4 packing needs");
    bool padded = awq.backend == "llm-awq" || awq.version == "gemv" || awq.version == "llm-awq";
    if (awq.quant_method == "awq" && padded && group != 32 && group != 64 && group < 128)
        return refuse(std::to_string(group) + " with version gemv or backend llm-awq; expected 32, 64 or at least 128");
    return {};
}

// One warning for many modules of a kind.
struct Tally {
    int64_t count = 0;
    std::string first;
    void add(const std::string& path) {
        if (count++ == 0) first = path;
    }
    std::string text(const std::string& what) const {
        return std::to_string(count) + (count == 1 ? " Linear " : " Linears ") + what + " (" + (count == 1 ? "" : "first ") +
               first + ")";
    }
};

class RowPlanner {
public:
    RowPlanner(PlanWork& work, const Rules& rules)
        : work_(work), rules_(rules), dense_type_(configured_dtype(work.checkpoint.config())) {
        if (const Json* text = work.checkpoint.config().find("text_config"); text && dense_type_ == DType::f16)
            dense_type_ = configured_dtype(*text);
    }

    Status linear(PlanRow& row, LinearFacts& facts) {
        AWQ_ASSIGN(Verdict verdict, rules_.judge(row.module));
        row.action = verdict.action;
        row.rule = verdict.rule;
        bool has_tensors = work_.has_weights() && row.module.tied_to.empty() && row.module.needed;
        return has_tensors ? located(by_tensors(row, facts), row.module) : by_configuration(row, facts);
    }

    Status other(PlanRow& row) {
        const Module& module = row.module;
        row.action = Action::keep;
        row.rule = kind_reason(module.kind);
        if (module.kind == ModuleKind::activation) {
            row.rule = "scales of an activation";
            if (work_.has_weights() && !work_.checkpoint.find(module.path + ".scales"))
                row.rule += ": not in the file, taken as ones";
            return {};
        }
        if (!module.weight) return {};
        std::string name = module.kind == ModuleKind::parameter ? module.path : module.path + ".weight";
        row.format_name = dense_name(dense_type_);
        if (!work_.has_weights()) return {};
        const TensorInfo* tensor = work_.checkpoint.find(name);
        if (!tensor && !module.needed) return {};
        if (!tensor) return missing(name, module);
        if (tensor->known) row.format_name = dense_name(tensor->type);
        if (!module.needed) return {};
        if (module.bias && !work_.checkpoint.find(module.path + ".bias")) return missing(module.path + ".bias", module);
        AWQ_TRY(check_plain(work_.checkpoint, name, module.kind == ModuleKind::parameter ? 1 : module.out, module.in));
        return module.bias ? check_plain(work_.checkpoint, module.path + ".bias", 1, module.in) : Status();
    }

    void warn() {
        auto& warnings = work_.plan.warnings;
        std::string method = work_.plan.awq.quant_method;
        if (kept_.count)
            warnings.push_back(
                kept_.text("would be converted by the configuration, but the file holds plain weights: left as they are"));
        if (converted_.count)
            warnings.push_back(
                converted_.text("would be left out by the configuration, but the file holds int4 weights: they count"));
        if (other_format_.count)
            warnings.push_back(other_format_.text("packed as " + other_name_ + ", not as the configuration says (" +
                                                  configured_format(work_.plan.awq) + "): the tensors count"));
        if (foreign_bias_.count)
            warnings.push_back(foreign_bias_.text("with a bias in the file that this model has not: ignored"));
        if (!work_.plan.replaced && work_.plan.awq.quantized())
            warnings.push_back("nothing is converted: every Linear is left out; is this checkpoint quantised at all?");
    }

private:
    static const char* kind_reason(ModuleKind kind) {
        switch (kind) {
            case ModuleKind::norm: return "a norm";
            case ModuleKind::embedding: return "an embedding";
            case ModuleKind::conv: return "a convolution";
            default: return "a parameter";
        }
    }

    static std::string shape_text(const Module& module) { return std::to_string(module.out) + " x " + std::to_string(module.in); }

    // What is wrong with a module as a whole, or with a tensor that is not there, is told of the file that lists them.
    Status located(const Status& status, const Module& module) const {
        return status.message().starts_with(quote(module.path, 200)) ? status.in(quote(work_.checkpoint.table_path(), 300)) : status;
    }

    Status missing(const std::string& name, const Module& module) const {
        return Status(Code::not_found, quote(work_.checkpoint.table_path(), 300) + ": " + name + " is missing; expected a tensor for " + shape_text(module));
    }

    Status by_configuration(PlanRow& row, LinearFacts& facts) {
        const AwqConfig& awq = work_.plan.awq;
        facts.dtype = dense_type_;
        row.format_name = dense_name(dense_type_);
        row.format = format_named("dense");
        if (row.action != Action::convert) return {};
        int64_t group = awq.group_size == -1 ? row.module.in : awq.group_size;
        AWQ_TRY(check_alignment(work_, row.module, group));
        row.group_size = group;
        row.format_name = configured_format(awq);
        row.format = format_named(row.format_name);
        facts.integer_zeros = row.format_name != "llm-awq" && row.format_name != "gemv_fast";
        return {};
    }

    Status by_tensors(PlanRow& row, LinearFacts& facts) {
        const AwqConfig& awq = work_.plan.awq;
        const Module& module = row.module;
        ModuleTensors tensors{work_.checkpoint, module.path};
        AWQ_ASSIGN(row.format, detect_format(tensors, awq, module.out, module.in));
        bool dense = std::string_view(row.format->name) == "dense";
        if (dense) {
            const TensorInfo* weight = tensors.find("weight");
            if (weight && weight->known) facts.dtype = weight->type;
            row.format_name = dense_name(facts.dtype);
        } else {
            if (!awq.quantized())
                return Status(Code::bad_file, "config.json: quantization_config: no method known here, but " + module.path +
                                                  " is packed as " + row.format->name +
                                                  "; expected plain weights, or quant_method awq, gptq or compressed-tensors");
            // which zero points a GPTQ file has, only its configuration could say
            if (awq.quant_method == "awq" && std::string_view(row.format->name) == "gptq")
                return Status(Code::bad_file, module.path + ": qweight " + tensor_text(*tensors.find("qweight")) +
                                                  " found, which is GPTQ's shape; expected one of AWQ's, as config.json says quant_method awq");
            AWQ_ASSIGN(auto rows, row.format->open(tensors, awq, module.out, module.in));
            facts = {rows->dtype, rows->integer_zeros, rows->input_order};
            row.group_size = rows->group_size;
            row.opened = std::move(rows);
            row.format_name = row.format->name;
            if (row.format_name != configured_format(awq)) {
                other_format_.add(module.path);
                other_name_ = row.format_name;
            }
        }
        if (dense && row.action == Action::convert) {
            row.action = Action::skip;
            row.rule = "tensors: plain weights, though the configuration would convert it";
            kept_.add(module.path);
        } else if (!dense && row.action != Action::convert) {
            row.rule = "tensors: packed as " + row.format_name + ", though " + row.rule;
            row.action = Action::convert;
            converted_.add(module.path);
        }
        const TensorInfo* bias = tensors.find("bias");
        if (module.bias && !bias) return missing(module.path + ".bias", module);
        if (module.bias) AWQ_TRY(check_plain(work_.checkpoint, module.path + ".bias", 1, module.out));
        // AutoGPTQ writes biases of zeros for Linears that have none
        if (!module.bias && bias) {
            AWQ_ASSIGN(TensorData data, work_.checkpoint.read(*bias));
            if (std::any_of(data.data.get(), data.data.get() + data.bytes, [](uint8_t byte) { return byte != 0; }))
                foreign_bias_.add(module.path);
        }
        return {};
    }

    PlanWork& work_;
    const Rules& rules_;
    DType dense_type_;
    Tally kept_, converted_, other_format_, foreign_bias_;
    std::string other_name_;
};

// Whether a tensor that no module asks for goes on where a numbered row of modules ends: layers or experts that the
// configuration does not count. `end` becomes the place where they do: "model.layers.1".
bool beyond_the_count(const PlanWork& work, const std::string& module, std::string& end) {
    for (size_t begin = 0; begin < module.size();) {
        size_t dot = std::min(module.find('.', begin), module.size());
        std::string_view part = std::string_view(module).substr(begin, dot - begin);
        if (part != "0" && part.find_first_not_of("0123456789") == part.npos && !part.empty() &&
            work.plan.find(module.substr(0, begin) + "0" + module.substr(dot))) {
            end = module.substr(0, dot);
            return true;
        }
        begin = dot + 1;
    }
    return false;
}

// Tensors that no module asks for: one warning. Left over by every writer of their time, these are no news. Whole layers
// or experts too many contradict the configuration.
Status warn_unused(PlanWork& work) {
    static constexpr std::string_view known[] = {"rotary_emb.inv_freq",
                                                 "attn.masked_bias",
                                                 "attention.masked_bias",
                                                 "attn.bias",
                                                 "attention.bias",
                                                 "position_ids",
                                                 "rotary_emb.cos_cached",
                                                 "rotary_emb.sin_cached",
                                                 "attention.rotary_emb.inv_freq"};
    Tally unused;
    for (const TensorInfo& tensor : work.checkpoint.tensors()) {
        std::string_view name = tensor.name;
        size_t dot = name.rfind('.');
        const PlanRow* row = dot == name.npos ? nullptr : work.plan.find(std::string(name.substr(0, dot)));
        std::string_view suffix = name.substr(dot + 1);
        if (!row) row = work.plan.find(tensor.name);  // a bare parameter
        bool used = row != nullptr;
        if (row && row->module.kind == ModuleKind::linear && row->format && suffix != "bias" && suffix != "weight")
            used = std::ranges::any_of(row->format->suffixes, [&](const char* wanted) { return suffix == wanted; });
        if (used || std::ranges::any_of(known, [&](std::string_view end) { return name.ends_with(end); })) continue;
        if (std::string end; !row && dot != name.npos && beyond_the_count(work, tensor.name.substr(0, dot), end))
            return Status(Code::bad_file, work.checkpoint.shard_name(tensor) + ": tensor \"" + quote(name) +
                                              "\" found; expected none of " + quote(end) + ": config.json counts fewer");
        unused.add(quote(tensor.name));
    }
    if (unused.count)
        work.plan.warnings.push_back(std::to_string(unused.count) + " tensors of the checkpoint are not used (" +
                                     (unused.count == 1 ? "" : "first ") + unused.first + ")");
    return {};
}

}  // namespace

Status plan_rows(PlanWork& work) {
    AWQ_ASSIGN(Rules rules, Rules::create(work));
    RowPlanner planner(work, rules);
    work.plan.rows.resize(work.tree.modules.size());
    work.facts.resize(work.tree.modules.size());
    for (size_t i = 0; i < work.plan.rows.size(); i++) {
        PlanRow& row = work.plan.rows[i];
        row.module = work.tree.modules[i];
        work.plan.index[row.module.path] = i;
        if (row.module.kind == ModuleKind::linear) {
            AWQ_TRY(planner.linear(row, work.facts[i]));
        } else {
            AWQ_TRY(planner.other(row));
        }
        work.plan.replaced = work.plan.replaced || row.action == Action::convert;
    }
    planner.warn();
    return work.has_weights() ? warn_unused(work) : Status();
}

}  // namespace awq
