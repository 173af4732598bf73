// Which modules run as one. By default every group whose members are alike; where the configuration asks for fusing
// (do_fuse, modules_to_fuse), just what transformers would fuse, checked before anything is decided.
//
// Fused here means: q, k, v (gate, up) are one matmul over weights that lie side by side. Rotation, windows, soft caps,
// per-head norms and biases are the model's own either way; fusing never changes a result.
#include <algorithm>
#include <set>
#include "core/plan_parts.h"

namespace awq {

namespace {

std::string parent_of(const std::string& path) {
    size_t dot = path.rfind('.');
    return dot == path.npos ? "" : path.substr(0, dot);
}

std::string leaf_of(const std::string& path) { return path.substr(path.rfind('.') + 1); }

size_t stacked_count(const FusionGroup& group) {
    return group.kind == FusionGroup::Kind::attention ? 3 : group.kind == FusionGroup::Kind::mlp ? 2 : 0;
}

std::string described(const PlanRow& row) {
    return leaf_of(row.module.path) + " is " + row.format_name +
           (row.group_size ? " of group " + std::to_string(row.group_size) : "");
}

// Why the members of a group cannot lie in one weight; empty: they can.
std::string obstacle(PlanWork& work, const FusionGroup& group) {
    const PlanRow* first = work.row(group.members[0]);
    for (size_t i = 1; i < stacked_count(group); i++) {
        const PlanRow* row = work.row(group.members[i]);
        const LinearFacts &a = work.facts_of(*first), &b = work.facts_of(*row);
        if (row->action != first->action || row->format_name != first->format_name || row->group_size != first->group_size)
            return "members differ: " + described(*first) + ", " + described(*row);
        if (a.dtype != b.dtype)
            return "members differ: the scales of " + leaf_of(first->module.path) + " and " + leaf_of(row->module.path) +
                   " have different types";
        if (a.input_order != b.input_order)
            return "members differ: " + leaf_of(first->module.path) + " and " + leaf_of(row->module.path) +
                   " order their inputs differently";
    }
    return "";
}

// The mapping that is in force where the configuration asks for fusing.
struct Mapping {
    FusionMapping names;
    const char* origin = "";  // for reasons
};

std::vector<std::string> names_of(const Json& list) {
    std::vector<std::string> names;
    for (const Json& name : list.items()) names.push_back(name.string());
    return names;
}

// read_awq_config() has checked keys and types of modules_to_fuse.
Result<Mapping> find_mapping(const PlanWork& work) {
    const AwqConfig& awq = work.plan.awq;
    const Json& given = awq.modules_to_fuse;
    if (given.is_object())
        return Mapping{{names_of(*given.find("attention")), names_of(*given.find("mlp")), names_of(*given.find("layernorm")),
                        given.find("use_alibi")->boolean()},
                       "modules_to_fuse"};
    if (!work.model.model->fusion.empty()) return Mapping{work.model.model->fusion, "do_fuse"};
    return Status(Code::unsupported,
                  work.checkpoint.quantization_field("do_fuse") + ": there is no fusing mapping for model type " + work.model.config.model_type +
                      "; expected modules_to_fuse to bring one, or do_fuse false (what is alike is fused without it)");
}

Json mapping_json(const PlanWork& work, const Mapping& mapping) {
    const ModelConfig& config = work.model.config;
    const AwqConfig& awq = work.plan.awq;
    auto given = [&](const char* key, Json own) {
        const Json* value = awq.modules_to_fuse.find(key);
        return value ? *value : own;
    };
    Json json = Json::object();
    json.set("hidden_size", given("hidden_size", config.hidden_size));
    json.set("num_attention_heads", given("num_attention_heads", config.heads));
    json.set("num_key_value_heads", given("num_key_value_heads", config.kv_heads));
    json.set("max_seq_len", *awq.fuse_max_seq_len);
    json.set("rope_theta", config.rope.rot_dim ? given("rope_theta", config.rope.theta) : Json());
    json.set("use_alibi", mapping.names.use_alibi);
    return json;
}

// What modules_to_fuse says of the model against what the model is: the model counts.
void warn_mapping(PlanWork& work, const Json& mapping) {
    const ModelConfig& config = work.model.config;
    std::string clash;
    auto compare = [&](const char* key, int64_t own) {
        if (mapping.find(key)->integer() != own) clash += std::string(clash.empty() ? "" : ", ") + key;
    };
    compare("hidden_size", config.hidden_size);
    compare("num_attention_heads", config.heads);
    compare("num_key_value_heads", config.kv_heads);
    if (mapping.find("use_alibi")->boolean() != config.alibi) clash += std::string(clash.empty() ? "" : ", ") + "use_alibi";
    if (!clash.empty())
        work.plan.warnings.push_back("modules_to_fuse: " + clash +
                                     " not as in the model's own configuration: the model's counts");
}

// transformers 4.57's walk over the modules: a parent whose path contains an entry of modules_to_not_convert is passed by
// (the list as given, without the default keys); of the others, children that go by the mapping's names are fused.
class ReferenceFusion {
public:
    ReferenceFusion(PlanWork& work, const Mapping& mapping) : work_(work), mapping_(mapping) {
        for (const FusionGroup& group : work.tree.groups) groups_[group.target] = &group;
    }

    Status run() {
        std::set<std::string> seen;
        for (const PlanRow& row : work_.plan.rows) {
            std::string parent = parent_of(row.module.path);
            if (seen.insert(parent).second) AWQ_TRY(visit(parent, parent_of(row.module.rule_path())));
        }
        // in the order of the tree, so that equal plans print equally; groups the mapping does not name stay unfused
        for (const FusionGroup& group : work_.tree.groups) {
            FusionRow row{group.kind, group.target, group.members, false, std::string(mapping_.origin) + " does not name it"};
            if (fused_.contains(group.target)) {
                row.fused = true;
                row.reason = mapping_.origin;
            } else if (auto why =
                           passed_.find(group.kind == FusionGroup::Kind::layernorm ? parent_of(group.target) : group.target);
                       why != passed_.end()) {
                row.reason = why->second;
            }
            work_.plan.fusion.push_back(std::move(row));
        }
        return {};
    }

private:
    Status refuse(const std::string& path, const std::string& what) const {
        return Status(Code::unsupported, work_.checkpoint.quantization_field(mapping_.origin) + ": " + path + ": " + what);
    }

    const PlanRow* child(const std::string& parent, const std::string& name) {
        return work_.row(parent.empty() ? name : parent + "." + name);
    }

    Status visit(const std::string& parent, const std::string& class_parent) {
        for (const std::string& entry : work_.plan.awq.modules_to_not_convert.value_or(std::vector<std::string>()))
            if (class_parent.find(entry) != class_parent.npos) {
                passed_[parent] = "modules_to_not_convert: \"" + quote(entry) + "\" is part of " + class_parent;
                return {};
            }
        for (const std::string& name : mapping_.names.layernorm) AWQ_TRY(norm(parent, name));
        AWQ_TRY(linears(parent, mapping_.names.mlp, FusionGroup::Kind::mlp, work_.plan.awq.version == "ipex"));
        return linears(parent, mapping_.names.attention, FusionGroup::Kind::attention, false);
    }

    Status norm(const std::string& parent, const std::string& name) {
        const PlanRow* row = child(parent, name);
        if (!row || row->module.kind != ModuleKind::norm) return {};
        if (!groups_.contains(row->module.path))
            return refuse(row->module.path, "is not a plain RMS norm; expected an empty \"layernorm\" for this model type");
        fused_.insert(row->module.path);
        return {};
    }

    Status linears(const std::string& parent, const std::vector<std::string>& names, FusionGroup::Kind kind, bool off) {
        if (names.empty() || off || !child(parent, names[0])) return {};
        for (size_t i = 0; i < names.size(); i++) {
            const PlanRow* row = child(parent, names[i]);
            if (!row)
                return refuse(parent, "has " + names[0] + " but no " + names[i] +
                                          "; expected all of the mapping's names, or the module in modules_to_not_convert");
            bool last = i + 1 == names.size();  // o_proj, down_proj: may be plain
            if (!last && row->action != Action::convert)
                return refuse(row->module.path,
                              "is not converted (" + row->rule + "); expected int4 weights, as it is to be fused");
        }
        auto group = groups_.find(parent);
        bool same = group != groups_.end() && group->second->kind == kind && group->second->members.size() == names.size();
        for (size_t i = 0; same && i < names.size(); i++) same = leaf_of(group->second->members[i]) == names[i];
        if (!same)
            return refuse(
                parent, "cannot be fused by these names; expected the projections of one attention or gated MLP, in their order");
        fused_.insert(parent);
        return {};
    }

    PlanWork& work_;
    const Mapping& mapping_;
    std::unordered_map<std::string, const FusionGroup*> groups_;
    std::set<std::string> fused_;
    std::unordered_map<std::string, std::string> passed_;
};

Status fuse_by_configuration(PlanWork& work) {
    const AwqConfig& awq = work.plan.awq;
    AWQ_ASSIGN(Mapping mapping, find_mapping(work));
    if (awq.backend == "llm-awq" || awq.version == "llm-awq")
        return Status(Code::unsupported,
                      work.checkpoint.quantization_field("do_fuse") + ": true with backend llm-awq; expected backend autoawq for fused modules");
    if (awq.version == "exllama")
        return Status(Code::unsupported,
                      work.checkpoint.quantization_field("do_fuse") + ": true with version exllama; expected another version for fused modules");
    AWQ_TRY(ReferenceFusion(work, mapping).run());
    if (std::ranges::none_of(work.plan.fusion,
                             [](const FusionRow& row) { return row.fused && row.kind == FusionGroup::Kind::attention; }))
        return {};
    work.plan.fusion_mapping = mapping_json(work, mapping);
    warn_mapping(work, work.plan.fusion_mapping);
    if (awq.modules_to_fuse.has("rope_theta") && work.model.config.rope.rot_dim) {
        // the base is read anew with this theta, scaling and all
        Json config = work.checkpoint.config();
        set_rope_theta(config, *awq.modules_to_fuse.find("rope_theta"));
        AWQ_ASSIGN(ConfiguredModel changed, configure_model(config));
        work.plan.rope = changed.config.rope;
    }
    return {};
}

void fuse_by_default(PlanWork& work) {
    for (const FusionGroup& group : work.tree.groups) {
        FusionRow row{group.kind, group.target, group.members, work.options.fuse,
                      work.options.fuse ? "default: members are alike" : "--no-fuse"};
        if (group.kind == FusionGroup::Kind::layernorm && row.fused) row.reason = "default: one kernel";
        work.plan.fusion.push_back(std::move(row));
    }
}

}  // namespace

void set_rope_theta(Json& config, const Json& theta) {
    Json* part = &config;
    for (auto& [key, value] : config.members())
        if (key == "text_config" && value.is_object()) part = &value;
    for (auto& [key, value] : part->members())
        if (key == "rope_parameters" && value.is_object()) {
            value.set("rope_theta", theta);
            return;
        }
    part->set("rope_theta", theta);
}

std::string fused_name(const FusionGroup& group) {
    if (!group.block.empty()) return group.block + ".experts.gate_up_proj";
    return group.target + (group.kind == FusionGroup::Kind::attention ? ".qkv_proj" : ".gate_up_proj");
}

Status plan_fusion(PlanWork& work) {
    if (work.plan.awq.do_fuse) {
        AWQ_TRY(fuse_by_configuration(work));
    } else {
        fuse_by_default(work);
    }
    for (size_t i = 0; i < work.tree.groups.size(); i++) {
        const FusionGroup& group = work.tree.groups[i];
        FusionRow& row = work.plan.fusion[i];
        if (group.kind == FusionGroup::Kind::layernorm || group.members.empty()) continue;
        if (row.fused)
            if (std::string why = obstacle(work, group); !why.empty()) {
                row.fused = false;
                row.reason = why;
            }
        if (!group.block.empty()) {
            // experts lie in one stack in any case: the mixture picks them by number
            for (size_t m = 0; m < group.members.size(); m++)
                work.row(group.members[m])->fused_into = m < 2 ? fused_name(group) : group.block + ".experts.down_proj";
            if (!row.fused) row.reason += "; the block's experts are stacked all the same";
        } else if (row.fused) {
            for (size_t m = 0; m < stacked_count(group); m++) work.row(group.members[m])->fused_into = fused_name(group);
        }
    }
    return {};
}

}  // namespace awq
