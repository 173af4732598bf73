// What the backend is to hold, one entry a weight: tables, Linears or stacks of them, biases, norms, activation scales.
// Where there is a backend it also says how each lies in memory and which kernels run on it.
#include <algorithm>
#include <map>
#include <set>
#include "backends/backend.h"
#include "core/eight_bit_rows.h"
#include "core/graph_builder.h"
#include "core/plan_parts.h"

namespace awq {

namespace {

// Bytes of a weight without a backend to ask: nibbles, one scale and one zero point a group; else the file's own type.
size_t estimated_bytes(const WeightSpec& spec) {
    size_t count = static_cast<size_t>(spec.out) * static_cast<size_t>(spec.in) * static_cast<size_t>(spec.experts);
    if (spec.kind == WeightKind::vector) return count * sizeof(float);
    if (spec.group_size == 0) return count * dtype_bytes(spec.dtype);
    return count * static_cast<size_t>(spec.bits) / 8 + count / static_cast<size_t>(spec.group_size) * (spec.integer_zeros ? 3 : 4);
}

class WeightPlanner {
public:
    WeightPlanner(PlanWork& work, const Backend* backend) : work_(work), backend_(backend) {
        for (const FusionGroup& group : work.tree.groups) {
            for (const std::string& member : group.members) group_of_[member] = &group;
            if (!group.block.empty()) blocks_[group.block].push_back(&group);
        }
    }

    Status run() {
        for (size_t i = 0; i < work_.plan.rows.size(); i++) {
            const Module& module = work_.plan.rows[i].module;
            if (!module.needed) continue;
            switch (module.kind) {
                case ModuleKind::linear: AWQ_TRY(linear(work_.plan.rows[i])); break;
                case ModuleKind::embedding: plain(WeightKind::table, module.path, module.path, module.out, module.in); break;
                case ModuleKind::conv:
                    plain(WeightKind::linear, module.path, module.path, module.out, module.in);
                    if (module.bias) vector(module.path + ".bias", {module.path}, {module.out});
                    break;
                case ModuleKind::parameter: vector(module.path, {module.path}, {module.in}); break;
                case ModuleKind::norm:
                    if (module.weight) vector(module.path + ".weight", {module.path}, {module.out * module.in});
                    if (module.bias) vector(module.path + ".bias", {module.path}, {module.out * module.in});
                    break;
                case ModuleKind::activation:  // without scales the activation is just itself
                    if (work_.has_weights() ? work_.checkpoint.find(module.path + ".scales") != nullptr
                                            : work_.plan.awq.quant_method == "awq")
                        vector(module.path + ".scales", {module.path}, {module.in});
                    break;
            }
        }
        if (work_.options.head_bits == 8) AWQ_TRY(pack_head());
        for (PlannedWeight& weight : work_.plan.weights) AWQ_TRY(lay_out(weight));
        return {};
    }

private:
    PlanRow& row(const std::string& path) { return *work_.row(path); }

    void plain(WeightKind kind, const std::string& name, const std::string& module, int64_t out, int64_t in) {
        const std::string& format = row(module).format_name;
        DType dtype = format == "dense bf16" ? DType::bf16 : format == "dense f32" ? DType::f32 : DType::f16;
        work_.plan.weights.push_back(
            {{.name = name, .kind = kind, .out = out, .in = in, .dtype = dtype, .member_rows = {out}}, {module}});
    }

    // `rows`: elements of each member.
    void vector(std::string name, std::vector<std::string> modules, std::vector<int64_t> rows) {
        int64_t total = 0;
        for (int64_t n : rows) total += n;
        WeightSpec spec{.name = std::move(name),
                        .kind = WeightKind::vector,
                        .out = 1,
                        .in = total,
                        .dtype = DType::f32,
                        .stack = rows.size() > 1 ? Stack::concat : Stack::single,
                        .member_rows = std::move(rows)};
        work_.plan.weights.push_back({std::move(spec), std::move(modules)});
    }

    Status linear(const PlanRow& first) {
        const Module& module = first.module;
        if (!module.tied_to.empty()) {
            if (module.bias) vector(module.path + ".bias", {module.path}, {module.out});
            return {};
        }
        if (first.fused_into.empty()) {
            stack(module.path, {module.path}, {module.out}, Stack::single);
            return {};
        }
        if (!done_.insert(first.fused_into).second) return {};
        const FusionGroup& group = *group_of_[module.path];
        if (!group.block.empty()) return experts(group.block);
        size_t count = group.kind == FusionGroup::Kind::attention ? 3 : 2;
        std::vector<std::string> members(group.members.begin(), group.members.begin() + static_cast<int64_t>(count));
        std::vector<int64_t> rows;
        bool bare = work_.facts_of(first).input_order.empty();
        for (const std::string& member : members) {
            rows.push_back(row(member).module.out);
            bare = bare && !row(member).module.bias;
        }
        // gate and up may interleave only where nothing but the gated kernel looks at their product
        stack(first.fused_into, members, rows, count == 2 && bare ? Stack::gate_up : Stack::concat);
        return {};
    }

    // One Linear or several that plan_fusion found alike, with their bias and their input order.
    void stack(const std::string& name, const std::vector<std::string>& members, const std::vector<int64_t>& rows, Stack kind) {
        const PlanRow& first = row(members[0]);
        const LinearFacts& facts = work_.facts_of(first);
        WeightSpec spec{.name = name,
                        .kind = WeightKind::linear,
                        .in = first.module.in,
                        .group_size = first.group_size,
                        .integer_zeros = true,
                        .dtype = facts.dtype,
                        .stack = kind,
                        .member_rows = rows};
        bool bias = false;
        for (const std::string& member : members) {
            spec.out += row(member).module.out;
            spec.integer_zeros = spec.integer_zeros && work_.facts_of(row(member)).integer_zeros;
            bias = bias || row(member).module.bias;
        }
        work_.plan.weights.push_back({spec, members});
        if (bias) vector(name + ".bias", members, rows);
        if (!facts.input_order.empty()) vector(name + ".input_order", {members[0]}, {first.module.in});
    }

    // All experts of a block as two stacked weights. Experts of different formats are brought to plain rows.
    Status experts(const std::string& block) {
        std::vector<std::string> gate_up, down;
        for (const FusionGroup* group : blocks_[block]) {
            gate_up.insert(gate_up.end(), group->members.begin(), group->members.begin() + 2);
            down.push_back(group->members[2]);
        }
        done_.insert(block + ".experts.down_proj");
        AWQ_TRY(expert_stack(block + ".experts.gate_up_proj", gate_up, Stack::gate_up, 2));
        return expert_stack(block + ".experts.down_proj", down, Stack::single, 1);
    }

    Status expert_stack(const std::string& name, const std::vector<std::string>& members, Stack kind, size_t each) {
        const PlanRow& first = row(members[0]);
        WeightSpec spec{.name = name,
                        .kind = WeightKind::linear,
                        .out = first.module.out * static_cast<int64_t>(each),
                        .in = first.module.in,
                        .group_size = first.group_size,
                        .integer_zeros = true,
                        .dtype = work_.facts_of(first).dtype,
                        .stack = kind,
                        .member_rows = std::vector<int64_t>(each, first.module.out),
                        .experts = static_cast<int64_t>(members.size() / each)};
        const PlanRow* other = nullptr;
        for (const std::string& member : members) {
            const PlanRow& row = this->row(member);
            const LinearFacts& facts = work_.facts_of(row);
            if (!facts.input_order.empty())
                return Status(
                    Code::unsupported,
                    member + ": an expert with its inputs in act-order; expected desc_act false for a mixture of experts");
            spec.integer_zeros = spec.integer_zeros && facts.integer_zeros;
            if (row.format_name != first.format_name || row.group_size != first.group_size || facts.dtype != spec.dtype)
                other = &row;
        }
        if (other) {
            spec.group_size = 0;
            spec.integer_zeros = false;
            spec.dtype = first.group_size ? work_.facts_of(*other).dtype : spec.dtype;
            if (mixed_++ == 0)
                work_.plan.warnings.push_back(name + ": the experts differ in format (" + first.module.path + " is " +
                                              first.format_name + ", " + other->module.path + " " + other->format_name +
                                              "): stacked as plain " + dtype_name(spec.dtype) +
                                              ", four times the memory of int4");
        }
        work_.plan.weights.push_back({std::move(spec), members});
        return {};
    }

    // --head-bits 8. A tied head is the table of embeddings: there is one matrix, and it is packed.
    Status pack_head() {
        PlanRow* head = work_.row(work_.tree.head);
        if (!head) return {};
        PlanRow& holder = head->module.tied_to.empty() ? *head : row(head->module.tied_to);
        if (holder.group_size > 0) {
            work_.plan.warnings.push_back("--head-bits 8: " + holder.module.path + " is int4 already");
            return {};
        }
        const int64_t group = eight_bit_group(holder.module.in);
        if (group == 0) {
            work_.plan.warnings.push_back("--head-bits 8: " + holder.module.path + " has " + std::to_string(holder.module.in) +
                                          " columns, expected a multiple of 32: it stays as it is");
            return {};
        }
        for (PlannedWeight& weight : work_.plan.weights)
            if (weight.spec.name == holder.module.path) {
                weight.spec.group_size = group;
                weight.spec.bits = 8;
                weight.spec.integer_zeros = true;
                weight.spec.dtype = DType::f16;
            }
        for (PlanRow* changed : {head, &holder}) {
            changed->group_size = group;
            changed->rule += "; packed to 8 bits at load (--head-bits 8)";
            if (head == &holder) break;
        }
        return {};
    }

    Status lay_out(PlannedWeight& planned) {
        Weight weight;
        weight.spec = planned.spec;
        size_t bytes = estimated_bytes(planned.spec);
        if (backend_) {
            backend_->lay_out(weight);
            bytes = weight.bytes;
        }
        work_.plan.weight_bytes += bytes;
        if (!backend_) return {};
        bool vector = planned.spec.kind == WeightKind::vector;
        std::string kernels = vector ? "" : kernel_text(weight);
        // shared out by rows; what does not divide goes to the first
        int64_t rows = 0;
        for (const std::string& member : planned.modules) rows += row(member).module.out;
        size_t left = bytes;
        for (const std::string& member : planned.modules) {
            PlanRow& row = this->row(member);
            size_t share = bytes / static_cast<size_t>(std::max<int64_t>(rows, 1)) * static_cast<size_t>(row.module.out);
            share = std::min(share, left);
            row.bytes += share;
            left -= share;
            if (vector) continue;
            row.layout = weight.layout;
            row.kernels = kernels;
        }
        row(planned.modules[0]).bytes += left;
        return {};
    }

    // "name (1-8), name (9+)": the kernel at each number of rows, found by asking the backend about a graph of one node.
    std::string kernel_text(const Weight& weight) {
        const WeightSpec& spec = weight.spec;
        std::string key = std::to_string(static_cast<int>(spec.kind)) + " " + std::to_string(spec.out) + " " +
                          std::to_string(spec.in) + " " + std::to_string(spec.group_size) + " " +
                          std::to_string(spec.integer_zeros) + " " + std::to_string(static_cast<int>(spec.dtype)) + " " +
                          std::to_string(static_cast<int>(spec.stack)) + " " + std::to_string(spec.experts) + " " + weight.layout;
        auto [at, fresh] = kernels_.try_emplace(key);
        if (!fresh) return at->second;
        Graph graph;
        GraphBuilder builder(graph, *backend_, false);
        Op op = spec.kind == WeightKind::table ? Op::embed : spec.experts > 1 ? Op::moe : Op::linear;
        NodeId node = no_node;
        Weight other;  // the other half of a mixture
        if (op == Op::embed) {
            node = builder.op(op, "probe", {builder.batch_input(Input::tokens), builder.weight(&weight)});
        } else if (op == Op::linear) {
            NodeId x = builder.input(Input::features, Rows::tokens, spec.in, backend_->activation_type());
            node = builder.op(op, "probe", {x, builder.weight(&weight), no_node});
        } else {
            bool first = spec.stack == Stack::gate_up;
            other.spec = spec;
            other.spec.name = "probe.other";
            other.spec.stack = first ? Stack::single : Stack::gate_up;
            other.spec.in = first ? spec.out / 2 : spec.out;
            other.spec.out = first ? spec.in : 2 * spec.in;
            other.spec.member_rows = std::vector<int64_t>(first ? 1 : 2, spec.in);
            if (other.spec.group_size && other.spec.in % other.spec.group_size != 0) other.spec.group_size = other.spec.in;
            backend_->lay_out(other);
            NodeId gate_up = builder.weight(first ? &weight : &other), down = builder.weight(first ? &other : &weight);
            NodeId x = builder.input(Input::features, Rows::tokens, first ? spec.in : spec.out, backend_->activation_type());
            NodeId router = builder.input(Input::features, Rows::tokens, spec.experts, backend_->activation_type());
            Attrs attrs;
            attrs.activation = work_.model.config.activation;
            attrs.top_k = work_.model.config.experts_per_token;
            node = builder.op(op, "probe", {x, router, gate_up, down}, attrs);
        }
        if (!builder.status().ok() || node == no_node) return at->second;
        std::set<int64_t> starts = {1};
        for (const Kernel& kernel : backend_->kernels())
            if (kernel.op == op) {
                if (kernel.min_rows > 1) starts.insert(kernel.min_rows);
                if (kernel.max_rows < INT32_MAX) starts.insert(int64_t{kernel.max_rows} + 1);
            }
        std::vector<std::pair<int64_t, std::string>> ranges;  // first row count, kernel
        for (int64_t rows : starts) {
            const Kernel* kernel = backend_->kernel(graph, graph.nodes[node], rows);
            std::string name = kernel ? kernel->name : "none";
            if (ranges.empty() || ranges.back().second != name) ranges.emplace_back(rows, name);
        }
        for (size_t i = 0; i < ranges.size(); i++) {
            at->second += (i ? ", " : "") + ranges[i].second + " (" + std::to_string(ranges[i].first);
            if (i + 1 == ranges.size())
                at->second += "+)";
            else
                at->second +=
                    (ranges[i + 1].first - 1 > ranges[i].first ? "-" + std::to_string(ranges[i + 1].first - 1) : "") + ")";
        }
        return at->second;
    }

    PlanWork& work_;
    const Backend* backend_;
    std::unordered_map<std::string, const FusionGroup*> group_of_;
    std::unordered_map<std::string, std::vector<const FusionGroup*>> blocks_;
    std::set<std::string> done_;
    std::map<std::string, std::string> kernels_;
    int mixed_ = 0;
};

}  // namespace

// ExLlama v2's dequantising buffer and its temporary rows, over the largest layer (bytes). Beyond 2^62: that.
size_t exllama_scratch(const Plan& plan) {
    using Wide = unsigned __int128;
    Wide most = 0;
    for (const PlanRow& row : plan.rows) {
        if (row.action != Action::convert) continue;
        Wide in = static_cast<Wide>(row.module.in), out = static_cast<Wide>(row.module.out);
        Wide rows = static_cast<Wide>(plan.awq.exllama_max_input_len) * static_cast<Wide>(plan.awq.exllama_max_batch_size);
        most = std::max<Wide>(most, in * out * 2 + 128 + out * rows * 4 + 128);
    }
    return static_cast<size_t>(std::min<Wide>(most, Wide{1} << 62));
}

Status plan_weights(PlanWork& work, const Backend* backend) {
    Plan& plan = work.plan;
    AWQ_TRY(WeightPlanner(work, backend).run());
    const ModelConfig& config = work.model.config;
    KvShape shape{config.layers, config.kv_heads, config.head_dim};
    plan.kv_bytes_per_token = backend ? backend->kv_page_bytes(shape) / page_size
                                      : size_t{2} * 2 * static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.kv_heads) *
                                            static_cast<size_t>(shape.head_dim);
    plan.context = work.options.context > 0 ? work.options.context : config.max_positions;
    if (plan.awq.exllama_version == 2) plan.scratch_bytes = exllama_scratch(plan);
    plan.total_at_context = plan.weight_bytes + plan.kv_bytes_per_token * static_cast<size_t>(plan.context) + plan.scratch_bytes;
    return {};
}

}  // namespace awq
