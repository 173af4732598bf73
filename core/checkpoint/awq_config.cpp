#include "core/checkpoint/awq_config.h"
#include <algorithm>
#include "core/model.h"

namespace awq {

namespace {

constexpr int64_t longest = int64_t{1} << 31;

bool has_key(const Json& json, std::initializer_list<std::string_view> keys) {
    return std::ranges::any_of(keys, [&](std::string_view key) { return json.has(key); });
}

// A name out of a few; the letters' case does not count, as in transformers for `version`.
std::string read_name(ConfigReader& reader, std::string_view key, const char* fallback, std::initializer_list<const char*> known,
                      bool any_case) {
    std::string list;
    for (const char* name : known) list += std::string(list.empty() ? "" : ", ") + name;
    std::string name = reader.string(key, fallback);
    if (any_case)
        std::ranges::transform(name, name.begin(),
                               [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    if (reader.is_null(key) || !std::ranges::any_of(known, [&](const char* k) { return name == k; }))
        reader.unexpected(key, "one of " + list);
    return name;
}

// bits and group_size, or AutoAWQ's own names for them.
void read_bits(ConfigReader& reader, AwqConfig& config) {
    std::string_view bits = reader.json().has("bits") ? "bits" : "w_bit";
    const Json* width = reader.find(bits);
    if (reader.is_null(bits) || (width && !(width->type() == Json::Type::integer && width->integer() == 4)))
        reader.unexpected(bits, "4, the only width this program runs");
    std::string_view group = reader.json().has("group_size") ? "group_size" : "q_group_size";
    config.group_size = reader.integer(group, 128, -1, longest);
    if (reader.is_null(group) || config.group_size == 0) reader.unexpected(group, "-1 or a number of columns above 0");
}

std::vector<std::string> read_strings(ConfigReader& reader, std::string_view key) {
    std::vector<std::string> names;
    const Json* value = reader.find(key);
    if (!value) return names;
    // transformers iterates over whatever is there; of a string that gives its letters
    if (value->is_string()) {
        for (size_t i = 0; i < value->string().size();) {
            size_t end = i + 1;
            while (end < value->string().size() && (value->string()[end] & 0xC0) == 0x80) end++;
            names.push_back(value->string().substr(i, end - i));
            i = end;
        }
        return names;
    }
    bool good = value->is_array();
    if (good)
        for (const Json& item : value->items()) {
            good = good && item.is_string();
            if (good) names.push_back(item.string());
        }
    if (!good) reader.unexpected(key, "an array of strings");
    return names;
}

void read_exllama(ConfigReader& reader, AwqConfig& config) {
    if (const Json* given = reader.find("exllama_config")) config.exllama_config = *given;
    if (config.version != "exllama") return;
    if (config.exllama_config.is_null()) config.exllama_config.set("version", 2);
    ConfigReader exllama = reader.object("exllama_config");
    if (reader.has("exllama_config") && !exllama.has("version")) exllama.fail("version", "nothing; expected 1 or 2");
    config.exllama_version = static_cast<int>(exllama.integer("version", 2, 1, 2));
    config.exllama_max_input_len = exllama.integer("max_input_len", 2048, 1, longest);
    config.exllama_max_batch_size = exllama.integer("max_batch_size", 8, 1, longest);
    reader.adopt(exllama);
    if (!reader.ok() || config.exllama_version != 2) return;
    config.exllama_config.set("max_input_len", config.exllama_max_input_len);
    config.exllama_config.set("max_batch_size", config.exllama_max_batch_size);
}

void check_modules_to_fuse(ConfigReader& reader) {
    ConfigReader fuse = reader.object("modules_to_fuse");
    std::string missing;
    for (const char* key :
         {"hidden_size", "num_attention_heads", "num_key_value_heads", "mlp", "attention", "layernorm", "use_alibi"})
        if (!fuse.has(key)) missing += std::string(missing.empty() ? "" : ", ") + key;
    if (!missing.empty())
        reader.fail("modules_to_fuse", "lacks " + missing +
                                           "; expected all of hidden_size, num_attention_heads, "
                                           "num_key_value_heads, mlp, attention, layernorm, use_alibi");
    for (const char* key : {"hidden_size", "num_attention_heads", "num_key_value_heads"}) fuse.integer(key, 1, 1, longest);
    for (auto [key, count] : {std::pair<const char*, size_t>{"attention", 4}, {"mlp", 3}, {"layernorm", 0}}) {
        const Json* names = fuse.find(key);
        bool good = names && names->is_array() && (count == 0 || names->items().empty() || names->items().size() == count) &&
                    std::ranges::all_of(names->items(), [](const Json& name) { return name.is_string(); });
        if (names && !good)
            fuse.unexpected(key, "an array of " + (count ? std::to_string(count) + " names, or none" : std::string("names")));
    }
    fuse.boolean("use_alibi", false);
    fuse.real("rope_theta", 1, 1e-3, 1e15);
    reader.adopt(fuse);
}

void read_fusing(ConfigReader& reader, AwqConfig& config) {
    if (const Json* given = reader.find("modules_to_fuse")) config.modules_to_fuse = *given;
    bool listed = config.modules_to_fuse.is_object() && !config.modules_to_fuse.members().empty();
    if (reader.has("modules_to_fuse") && !config.modules_to_fuse.is_object()) reader.unexpected("modules_to_fuse", "an object");
    config.do_fuse = reader.boolean("do_fuse", listed);
    if (reader.has("fuse_max_seq_len")) config.fuse_max_seq_len = reader.integer("fuse_max_seq_len", 0, 0, longest);
    if (!config.do_fuse) return;
    if (!config.fuse_max_seq_len)
        reader.fail("fuse_max_seq_len",
                    "nothing; expected a number of positions, as do_fuse or modules_to_fuse ask for fused modules");
    if (reader.has("modules_to_fuse")) check_modules_to_fuse(reader);
}

void read_awq(ConfigReader& reader, AwqConfig& config) {
    config.backend = read_name(reader, "backend", "autoawq", {"autoawq", "llm-awq", "auto"}, false);
    if (config.backend == "auto") config.backend = "autoawq";  // transformers 5's spelling
    config.version =
        read_name(reader, "version", "gemm", {"gemm", "gemv", "gemv_fast", "exllama", "marlin", "ipex", "llm-awq"}, true);
    read_bits(reader, config);
    if (reader.is_null("zero_point")) reader.unexpected("zero_point", "true or false");
    config.zero_point = reader.boolean("zero_point", true);
    if (reader.has("modules_to_not_convert")) config.modules_to_not_convert = read_strings(reader, "modules_to_not_convert");
    read_fusing(reader, config);
    read_exllama(reader, config);
}

void read_gptq(ConfigReader& reader, AwqConfig& config) {
    read_bits(reader, config);
    config.desc_act = reader.boolean("desc_act", false);
    config.sym = reader.boolean("sym", true);
    config.zero_point = !config.sym;
    config.quantized_head = reader.boolean("lm_head", false);
    config.checkpoint_format = read_name(reader, "checkpoint_format", "gptq", {"gptq", "gptq_v2"}, false);
    config.version.clear();
    config.backend.clear();
}

void read_compressed_tensors(ConfigReader& reader, AwqConfig& config) {
    ConfigReader groups = reader.object("config_groups");
    if (groups.json().members().size() != 1)
        return reader.fail("config_groups", std::to_string(groups.json().members().size()) + " groups; expected one");
    ConfigReader group = groups.object(groups.json().members()[0].first);
    ConfigReader weights = group.object("weights");
    std::string format = reader.string("format", "pack-quantized");
    format = group.string("format", format);
    if (format != "pack-quantized")
        group.fail("format", "\"" + quote(format) + "\"; expected \"pack-quantized\"", Code::unsupported);
    if (group.has("input_activations")) group.unexpected("input_activations", "null: only weights quantised");
    std::vector<std::string> targets = read_strings(group, "targets");
    if (std::ranges::find(targets, "Linear") == targets.end()) group.fail("targets", "does not name it; expected \"Linear\"");
    if (weights.integer("num_bits", 4, 1, 64) != 4) weights.unexpected("num_bits", "4, the only width this program runs");
    read_name(weights, "type", "int", {"int"}, false);
    std::string strategy = read_name(weights, "strategy", "group", {"group", "channel"}, false);
    config.group_size = weights.integer("group_size", -1, -1, longest);
    if (config.group_size == 0 || (strategy == "group" && config.group_size == -1))
        weights.unexpected("group_size", "a number of columns above 0 for strategy group");
    if (strategy == "channel") config.group_size = -1;
    config.sym = weights.boolean("symmetric", true);
    config.zero_point = !config.sym;
    config.ignore = read_strings(reader, "ignore");
    config.version.clear();
    config.backend.clear();
    group.adopt(weights);
    groups.adopt(group);
    reader.adopt(groups);
}

// What the caller gave, put over the checkpoint's own keys: then all of it is validated as one. True if anything was.
bool merge(Json& json, const AwqOverrides& overrides) {
    size_t given = 0;
    auto put = [&](const char* key, const auto& value) {
        if (!value) return;
        json.set(key, *value);
        given++;
    };
    put("version", overrides.version);
    put("backend", overrides.backend);
    put("do_fuse", overrides.do_fuse);
    put("fuse_max_seq_len", overrides.fuse_max_seq_len);
    put("group_size", overrides.group_size);
    if (overrides.modules_to_not_convert) {
        Json list = Json::array();
        for (const std::string& name : *overrides.modules_to_not_convert) list.push(name);
        json.set("modules_to_not_convert", std::move(list));
        given++;
    }
    if (!overrides.modules_to_fuse.is_null()) {
        json.set("modules_to_fuse", overrides.modules_to_fuse);
        given++;
    }
    if (overrides.exllama_version || overrides.max_input_len || overrides.max_batch_size) {
        const Json* own = json.find("exllama_config");
        Json exllama = own && own->is_object() ? *own : Json::object();
        if (!exllama.has("version")) exllama.set("version", 2);
        if (overrides.exllama_version) exllama.set("version", *overrides.exllama_version);
        if (overrides.max_input_len) exllama.set("max_input_len", *overrides.max_input_len);
        if (overrides.max_batch_size) exllama.set("max_batch_size", *overrides.max_batch_size);
        json.set("exllama_config", std::move(exllama));
        given++;
    }
    return given > 0;
}

// With the keys of every object in order; depth is what the parser allowed.
Json sorted(Json json) {
    if (json.is_object()) {
        for (auto& [key, value] : json.members()) value = sorted(std::move(value));
        std::ranges::sort(json.members(), {}, &Json::Member::first);
    }
    return json;
}

}  // namespace

Result<AwqConfig> read_awq_config(const Json& json, const std::string& file, const AwqOverrides& overrides) {
    AwqConfig config;
    bool inside = file == "config.json";
    std::string path = inside ? "quantization_config" : "";
    if (json.is_null()) return config;
    if (!json.is_object())
        return Status(Code::bad_file, file + ": " + (inside ? path + ": " : "") + json.type_name() + "; expected an object");
    Json merged = json;
    bool given = merge(merged, overrides);
    ConfigReader reader(merged, given ? file + " with the options given" : file, inside ? path + "." : "");

    // files of their own were written by AutoAWQ or AutoGPTQ, which did not say so
    bool gptq_file =
        !inside && has_key(json, {"desc_act", "checkpoint_format"}) && !has_key(json, {"w_bit", "zero_point", "version"});
    if (inside && !reader.has("quant_method"))
        reader.fail("quant_method", "nothing; expected \"awq\", \"gptq\" or \"compressed-tensors\"");
    config.quant_method = reader.string("quant_method", gptq_file ? "gptq" : "awq");
    AWQ_TRY(reader.status());
    if (config.quant_method == "awq") {
        read_awq(reader, config);
    } else if (config.quant_method == "gptq") {
        read_gptq(reader, config);
    } else if (config.quant_method == "compressed-tensors") {
        read_compressed_tensors(reader, config);
    } else {
        config.warnings.push_back(
            file + ": quant_method \"" + quote(config.quant_method) +
            "\" is not known here (known: awq, gptq, compressed-tensors); the weights are taken as not quantised");
        config.quant_method.clear();
    }
    AWQ_TRY(reader.status());
    if (config.quant_method != "awq" && config.quantized()) {
        read_fusing(reader, config);
        AWQ_TRY(reader.status());
    }
    return config;
}

Json AwqConfig::to_json() const {
    Json json = Json::object();
    if (!quantized()) return nullptr;
    Json strings = Json::array();
    for (const std::string& entry : quant_method == "awq" ? modules_to_not_convert.value_or(std::vector<std::string>()) : ignore)
        strings.push(entry);
    if (quant_method == "awq") {
        json.set("backend", backend);
        json.set("bits", bits);
        json.set("do_fuse", do_fuse);
        json.set("exllama_config", sorted(exllama_config));
        json.set("fuse_max_seq_len", fuse_max_seq_len ? Json(*fuse_max_seq_len) : Json());
        json.set("group_size", group_size);
        json.set("modules_to_fuse", sorted(modules_to_fuse));
        json.set("modules_to_not_convert", modules_to_not_convert ? std::move(strings) : Json());
        json.set("quant_method", quant_method);
        json.set("version", version);
        json.set("zero_point", zero_point);
    } else if (quant_method == "gptq") {
        json.set("bits", bits);
        json.set("checkpoint_format", checkpoint_format);
        json.set("desc_act", desc_act);
        json.set("group_size", group_size);
        json.set("lm_head", quantized_head);
        json.set("quant_method", quant_method);
        json.set("sym", sym);
    } else {
        json.set("bits", bits);
        json.set("format", "pack-quantized");
        json.set("group_size", group_size);
        json.set("ignore", std::move(strings));
        json.set("quant_method", quant_method);
        json.set("sym", sym);
    }
    return json;
}

}  // namespace awq
