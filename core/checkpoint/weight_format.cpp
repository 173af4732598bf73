// The table of weight formats (made from the file names in formats/) and the choice among them.
#include "core/checkpoint/weight_format.h"

namespace awq {

#define AWQ_FORMAT(name) extern const WeightFormat format_##name;
#include "format_table.inc"
#undef AWQ_FORMAT

std::span<const WeightFormat* const> weight_formats() {
    static const WeightFormat* const formats[] = {
#define AWQ_FORMAT(name) &format_##name,
#include "format_table.inc"
#undef AWQ_FORMAT
    };
    return formats;
}

Result<const WeightFormat*> detect_format(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in) {
    const WeightFormat* found = nullptr;
    std::string present, known;
    for (const WeightFormat* format : weight_formats()) {
        known += (known.empty() ? "" : ", ") + std::string(format->name);
        if (!format->detect(tensors, config, out, in)) continue;
        if (found)
            return Status(Code::bad_file, quote(tensors.path, 200) + ": its tensors are of two formats, " + found->name +
                                              " and " + format->name + "; one expected");
        found = format;
    }
    if (found) return found;

    for (const char* suffix : {"weight", "qweight", "weight_packed", "qzeros", "scaled_zeros", "scales", "weight_scale", "g_idx"})
        if (const TensorInfo* tensor = tensors.find(suffix))
            present += (present.empty() ? "" : ", ") + std::string(suffix) + " " + tensor_text(*tensor);
    std::string size = std::to_string(out) + " outputs x " + std::to_string(in) + " inputs";
    if (present.empty())
        return Status(Code::not_found,
                      quote(tensors.path, 200) + ": no weights in the checkpoint; a Linear of " + size + " expected");
    return Status(Code::bad_file, quote(tensors.path, 200) + ": " + present + " found; a Linear of " + size +
                                      " in one of the formats " + known + " expected");
}

}  // namespace awq
