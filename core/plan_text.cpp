// The plan as JSON for scripts and as text for people.
#include <algorithm>
#include <cstdio>
#include <map>
#include "backends/backend.h"
#include "core/memory_budget.h"
#include "core/plan.h"

namespace awq {

namespace {

const char* kind_name(ModuleKind kind) {
    switch (kind) {
        case ModuleKind::linear: return "linear";
        case ModuleKind::norm: return "norm";
        case ModuleKind::embedding: return "embedding";
        case ModuleKind::activation: return "activation";
        case ModuleKind::conv: return "conv";
        case ModuleKind::parameter: return "parameter";
    }
    return "";
}

const char* action_name(Action action) {
    return action == Action::convert ? "convert" : action == Action::skip ? "skip" : "keep";
}

const char* group_name(FusionGroup::Kind kind) {
    return kind == FusionGroup::Kind::attention ? "attention" : kind == FusionGroup::Kind::mlp ? "mlp" : "layernorm";
}

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

Json number(size_t value) { return static_cast<uint64_t>(value); }

// "0-3,7" for a sorted list.
std::string ranges(const std::vector<int64_t>& numbers) {
    std::string text;
    for (size_t i = 0; i < numbers.size();) {
        size_t end = i;
        while (end + 1 < numbers.size() && numbers[end + 1] == numbers[end] + 1) end++;
        text += (text.empty() ? "" : ",") + std::to_string(numbers[i]) + (end > i ? "-" + std::to_string(numbers[end]) : "");
        i = end + 1;
    }
    return text;
}

// Numbers in a path: "layers.3.experts.1" -> "layers.#.experts.#" and 3, 1.
std::string pattern_of(const std::string& path, std::vector<int64_t>& numbers) {
    std::string pattern;
    for (size_t at = 0; at <= path.size();) {
        size_t dot = std::min(path.find('.', at), path.size());
        std::string part = path.substr(at, dot - at);
        bool digits = !part.empty() && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
        if (digits) numbers.push_back(std::stoll(part));
        pattern += (at ? "." : "") + (digits ? std::string("#") : part);
        at = dot + 1;
    }
    return pattern;
}

// Rows that differ only by the numbers in their paths, as one line of the table.
struct Line {
    std::string pattern;
    std::vector<std::vector<int64_t>> numbers;  // for each # its values, sorted and unique
    int64_t count = 0;
    size_t bytes = 0;
    const PlanRow* row = nullptr;
    std::string path() const {
        std::string text;
        size_t at = 0;
        for (char c : pattern) {
            if (c != '#')
                text += c;
            else
                text += numbers[at].size() > 1 ? "{" + ranges(numbers[at]) + "}" : std::to_string(numbers[at][0]), at++;
        }
        return text;
    }
};

std::vector<Line> lines_of(const Plan& plan) {
    std::vector<Line> lines;
    std::map<std::string, size_t> at;
    for (const PlanRow& row : plan.rows) {
        std::vector<int64_t> numbers;
        std::string pattern = pattern_of(row.module.path, numbers), key = pattern;
        std::vector<int64_t> ignored;
        for (const std::string& part : {std::string(action_name(row.action)), row.rule, row.format_name, row.layout, row.kernels,
                                        std::to_string(row.group_size), std::to_string(row.module.in),
                                        std::to_string(row.module.out), pattern_of(row.fused_into, ignored)})
            key += "\n" + part;
        auto [found, fresh] = at.try_emplace(key, lines.size());
        if (fresh) lines.push_back({pattern, std::vector<std::vector<int64_t>>(numbers.size()), 0, 0, &row});
        Line& line = lines[found->second];
        line.count++;
        line.bytes += row.bytes;
        for (size_t i = 0; i < numbers.size(); i++) line.numbers[i].push_back(numbers[i]);
    }
    for (Line& line : lines)
        for (auto& values : line.numbers) {
            std::ranges::sort(values);
            values.erase(std::unique(values.begin(), values.end()), values.end());
        }
    return lines;
}

std::string leaf_of(const std::string& path) { return path.substr(path.rfind('.') + 1); }

// Rows of cells as columns of equal width, those with numbers to the right. A row of one cell stands for itself.
std::string columns(const std::vector<std::vector<std::string>>& cells) {
    struct Column {
        size_t width = 0;
        bool numbers = false;
    };
    std::vector<Column> columns;
    for (const auto& row : cells)
        for (size_t i = 0; row.size() > 1 && i < row.size(); i++) {
            if (i >= columns.size()) columns.emplace_back();
            columns[i].width = std::max(columns[i].width, row[i].size());
            columns[i].numbers = columns[i].numbers || (row[i] >= "0" && row[i] < ":");
        }
    std::string text;
    for (const auto& row : cells) {
        std::string line = row.size() == 1 ? row[0] : "";
        for (size_t i = 0; row.size() > 1 && i < row.size(); i++) {
            const std::string fill(columns[i].width - row[i].size(), ' ');
            line += (i ? "  " : "") + (columns[i].numbers ? fill + row[i] : row[i] + fill);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        text += line + "\n";
    }
    return text;
}

// What many rows have in common is said once, below the table, by a number.
class Notes {
public:
    std::string number(const std::string& text) {
        auto at = std::ranges::find(notes_, text);
        if (at == notes_.end()) at = notes_.insert(at, text);
        return std::to_string(at - notes_.begin() + 1);
    }
    std::string text() const {
        std::vector<std::vector<std::string>> cells;
        for (size_t i = 0; i < notes_.size(); i++) cells.push_back({"note " + std::to_string(i + 1), notes_[i]});
        return columns(cells);
    }

private:
    std::vector<std::string> notes_;
};

// The paths of a table that fits a terminal of 100 columns: longer ones stand below a line with the module they are in.
constexpr size_t path_width = 26;

}  // namespace

Json plan_to_json(const Plan& plan, const ConfiguredModel& model) {
    Json json = Json::object(), modules = Json::array(), fusion = Json::array(), warnings = Json::array(),
         memory = Json::object();
    for (const PlanRow& row : plan.rows) {
        Json module = Json::object();
        module.set("path", row.module.path);
        module.set("kind", kind_name(row.module.kind));
        module.set("action", action_name(row.action));
        module.set("rule", row.rule);
        module.set("format", text_or_null(row.format_name));
        module.set("in", row.module.in);
        module.set("out", row.module.out);
        module.set("group_size", row.group_size ? Json(row.group_size) : Json());
        module.set("bias", row.module.bias);
        module.set("fused_into", text_or_null(row.fused_into));
        module.set("layout", text_or_null(row.layout));
        module.set("kernels", text_or_null(row.kernels));
        module.set("bytes", number(row.bytes));
        const RankSplit split = row.module.split;
        module.set("split", split == RankSplit::none ? Json() : Json(split == RankSplit::out ? "out" : "in"));
        modules.push(std::move(module));
    }
    for (const FusionRow& row : plan.fusion) {
        Json group = Json::object(), members = Json::array();
        for (const std::string& member : row.members) members.push(member);
        group.set("kind", group_name(row.kind));
        group.set("target", row.target);
        group.set("members", std::move(members));
        group.set("status", row.fused ? "fused" : "unfused");
        group.set("reason", row.reason);
        fusion.push(std::move(group));
    }
    for (const std::string& warning : plan.warnings) warnings.push(warning);
    memory.set("weights", number(plan.weight_bytes));
    memory.set("kv_per_token", number(plan.kv_bytes_per_token));
    memory.set("scratch", number(plan.scratch_bytes));
    memory.set("total_at_context", number(plan.total_at_context));
    memory.set("context", plan.context);
    json.set("model_type", model.config.model_type);
    json.set("quantization", plan.awq.to_json());
    json.set("modules", std::move(modules));
    json.set("fusion", std::move(fusion));
    json.set("fusion_mapping", plan.fusion_mapping);
    json.set("replaced", plan.replaced);
    json.set("warnings", std::move(warnings));
    json.set("memory", std::move(memory));
    return json;
}

std::string plan_to_table(const Plan& plan, const ConfiguredModel& model) {
    std::string text = "model type " + model.config.model_type;
    if (plan.awq.quantized())
        text += ", " + plan.awq.quant_method + " int4" + (plan.awq.version.empty() ? "" : " " + plan.awq.version);
    else
        text += ", not quantised";
    text += ", " + std::to_string(model.config.layers) + " layers\n\n";

    std::vector<std::vector<std::string>> cells = {{"module", "action", "format", "in", "out", "fused into", "size", "note"}};
    Notes notes;
    std::string block;
    for (const Line& line : lines_of(plan)) {
        const PlanRow& row = *line.row;
        std::string name = line.path(), in;
        if (name.size() > path_width || line.count > 1) {
            in = name.substr(0, name.size() - leaf_of(name).size() - 1) +
                 (line.count > 1 ? "  x" + std::to_string(line.count) : "");
            name = "  " + leaf_of(name);
        }
        if (in != block && !in.empty()) cells.push_back({in});
        block = in;
        std::string note = row.rule;
        if (!row.kernels.empty()) note += "; " + row.layout + ": " + row.kernels;
        cells.push_back({name, action_name(row.action),
                         row.format_name + (row.group_size ? " g" + std::to_string(row.group_size) : ""),
                         std::to_string(row.module.in), std::to_string(row.module.out), leaf_of(row.fused_into),
                         line.bytes ? bytes_text(line.bytes) : "", notes.number(note)});
    }
    text += columns(cells) + "\n" + notes.text();

    int64_t converted = 0, skipped = 0;
    for (const PlanRow& row : plan.rows) converted += row.action == Action::convert, skipped += row.action == Action::skip;
    std::map<std::string, int64_t> fused;  // "attention fused: default" -> how often
    for (const FusionRow& row : plan.fusion)
        fused[std::string(group_name(row.kind)) + (row.fused ? " fused: " : " not fused: ") + row.reason]++;
    text += "\n" + std::to_string(converted) + " Linears converted, " + std::to_string(skipped) + " left as they are\n";
    for (const auto& [what, count] : fused) text += std::to_string(count) + " " + what + "\n";
    text += "memory: weights " + bytes_text(plan.weight_bytes) + ", KV cache " + bytes_text(plan.kv_bytes_per_token) +
            " a token, scratch " + bytes_text(plan.scratch_bytes) + ";\n        in all " + bytes_text(plan.total_at_context) +
            " at a context of " + std::to_string(plan.context) + "\n";
    for (const std::string& warning : plan.warnings) text += "warning: " + warning + "\n";
    return text;
}

Result<std::string> explain_module(const Plan& plan, const Checkpoint& checkpoint, const Backend* backend,
                                   const std::string& path) {
    const PlanRow* row = plan.find(path);
    if (!row) {
        std::string near;
        for (const PlanRow& other : plan.rows)
            if (other.module.path.starts_with(path + ".") || other.module.path.ends_with("." + leaf_of(path)) ||
                other.module.rule_path() == path) {
                near = "; there is " + other.module.path;
                break;
            }
        return Status(Code::not_found, "--explain: no module \"" + quote(path) + "\" in this model" + near);
    }
    const Module& module = row->module;
    std::string text = module.path + ": " + kind_name(module.kind) + ", " + std::to_string(module.in) + " in, " +
                       std::to_string(module.out) + " out" + (module.bias ? ", with bias" : "") + "\n";
    if (module.rule_path() != module.path) text += "  rules read it as    " + module.rule_path() + "\n";
    text += std::string("  action              ") + action_name(row->action) + " (" + row->rule + ")\n";
    if (!row->format_name.empty())
        text +=
            "  format              " + row->format_name + (row->format ? std::string(": ") + row->format->class_name : "") + "\n";
    if (row->group_size)
        text += "  group size          " + std::to_string(row->group_size) + " (" + std::to_string(module.in / row->group_size) +
                " groups a row)\n";
    bool any = false;
    for (const TensorInfo& tensor : checkpoint.tensors()) {
        bool own = tensor.name == path ||
                   (tensor.name.starts_with(path + ".") && tensor.name.find('.', path.size() + 1) == tensor.name.npos);
        if (!own) continue;
        std::string shape;
        for (uint64_t n : tensor.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(n);
        text += std::string(any ? "                      " : "  tensors             ") +
                tensor.name.substr(std::min(tensor.name.size(), path.size() + 1)) + " " + tensor.dtype + " [" + shape + "] in " +
                checkpoint.shard_name(tensor) + "\n";
        any = true;
    }
    if (!module.tied_to.empty()) text += "  weights             those of " + module.tied_to + "\n";
    for (const FusionRow& group : plan.fusion) {
        auto at = std::ranges::find(group.members, path);
        if (at == group.members.end() && group.target != path) continue;
        text += std::string("  fusing              ") + group_name(group.kind) + " " + group.target + ": " +
                (group.fused ? "fused" : "not fused") + " (" + group.reason + ")\n";
    }
    if (!row->fused_into.empty()) {
        text += "  lies in             " + row->fused_into;
        for (const PlannedWeight& weight : plan.weights)
            if (weight.spec.name == row->fused_into) text += ", " + std::to_string(weight.modules.size()) + " members";
        text += "\n";
    }
    if (!row->layout.empty()) text += "  layout              " + row->layout + "\n";
    if (!row->kernels.empty()) text += "  kernels (by rows)   " + row->kernels + "\n";
    if (row->bytes) text += "  size                " + bytes_text(row->bytes) + " (" + std::to_string(row->bytes) + " bytes)\n";
    double bandwidth = backend && row->bytes ? backend->bandwidth() : 0;
    if (bandwidth > 0) {
        char time[96];
        snprintf(time, sizeof time, "%.2f us to read once at %.1f GB/s", static_cast<double>(row->bytes) / bandwidth * 1e6,
                 bandwidth / 1e9);
        text += std::string("  predicted time      ") + time + "\n";
    }
    return text;
}

}  // namespace awq
