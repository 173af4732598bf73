// AwqOverrides from JSON, as programs give them through the C API: AwqConfig's own keys, only those that are to change.
#include <algorithm>
#include "core/checkpoint/awq_config.h"
#include "core/model.h"

namespace awq {

Result<AwqOverrides> read_awq_overrides(const Json& json) {
    if (!json.is_object()) return Status(Code::invalid_argument, std::string("awq_config: ") + json.type_name() + " found; an object expected");
    static const char* const known[] = {"version", "backend", "do_fuse", "fuse_max_seq_len", "group_size", "modules_to_not_convert", "modules_to_fuse", "exllama_config"};
    for (const auto& [key, value] : json.members())
        if (std::none_of(std::begin(known), std::end(known), [&key = key](const char* name) { return key == name; }))
            return Status(Code::invalid_argument, "awq_config: \"" + quote(key) + "\" is no option of AwqConfig that can be overridden");
    AwqOverrides overrides;
    ConfigReader reader(json, "awq_config");
    const int64_t most = int64_t{1} << 31;
    if (reader.has("version")) overrides.version = reader.string("version", "");
    if (reader.has("backend")) overrides.backend = reader.string("backend", "");
    if (reader.has("do_fuse")) overrides.do_fuse = reader.boolean("do_fuse", false);
    if (reader.has("fuse_max_seq_len")) overrides.fuse_max_seq_len = reader.integer("fuse_max_seq_len", 0, 1, most);
    if (reader.has("group_size")) overrides.group_size = reader.integer("group_size", 0, -1, most);
    if (const Json* names = reader.find("modules_to_not_convert")) {
        overrides.modules_to_not_convert.emplace();
        bool sound = names->is_array();
        if (sound)
            for (const Json& name : names->items()) {
                sound = sound && name.is_string();
                if (sound) overrides.modules_to_not_convert->push_back(name.string());
            }
        if (!sound) reader.unexpected("modules_to_not_convert", "an array of strings");
    }
    if (const Json* mapping = reader.find("modules_to_fuse")) {
        if (!mapping->is_object()) reader.unexpected("modules_to_fuse", "an object");
        overrides.modules_to_fuse = *mapping;
    }
    if (reader.has("exllama_config")) {
        ConfigReader exllama = reader.object("exllama_config");
        if (exllama.has("version")) overrides.exllama_version = static_cast<int>(exllama.integer("version", 0, 1, 2));
        if (exllama.has("max_input_len")) overrides.max_input_len = exllama.integer("max_input_len", 0, 1, most);
        if (exllama.has("max_batch_size")) overrides.max_batch_size = exllama.integer("max_batch_size", 0, 1, most);
        reader.adopt(exllama);
    }
    AWQ_TRY(reader.status());
    return overrides;
}

}  // namespace awq
