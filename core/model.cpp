#include "core/model.h"
#include <algorithm>

namespace awq {

// models/NAME.cpp defines model_NAME; the list of names is made from the folder.
#define AWQ_MODEL(name) extern const Model model_##name;
#include "model_table.inc"
#undef AWQ_MODEL

std::span<const Model* const> model_table() {
    static const Model* const table[] = {
#define AWQ_MODEL(name) &model_##name,
#include "model_table.inc"
#undef AWQ_MODEL
    };
    return table;
}

static const Model* extra_model = nullptr;
void set_extra_model(const Model* model) { extra_model = model; }

const Model* find_model(std::string_view model_type) {
    if (extra_model && model_type == extra_model->model_type) return extra_model;
    for (const Model* model : model_table())
        if (model_type == model->model_type || std::ranges::find(model->aliases, model_type) != model->aliases.end())
            return model;
    return nullptr;
}

Result<ConfiguredModel> configure_model(const Json& config_json) {
    if (!config_json.is_object())
        return Status(Code::bad_file, std::string("config.json: ") + config_json.type_name() + "; expected an object");
    ConfigReader reader(config_json, "config.json");
    std::string known;
    for (const Model* model : model_table()) known += std::string(known.empty() ? "" : ", ") + model->model_type;
    if (!reader.has("model_type")) reader.fail("model_type", "nothing; expected one of " + known);
    std::string model_type = reader.string("model_type", "");
    AWQ_TRY(reader.status());
    ConfiguredModel result;
    result.model = find_model(model_type);
    if (!result.model)
        return Status(Code::unsupported, "config.json: model_type: \"" + quote(model_type) +
                                             "\" is not a model known here; expected one of " + known);
    result.config.model_type = model_type;
    result.model->configure(reader, result.config);
    AWQ_TRY(reader.status());
    result.config.window.resize(result.config.layers, 0);
    return result;
}

}  // namespace awq
