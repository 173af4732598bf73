// The file formats of a Linear's weights. One file each in formats/, registered by its file name.
//
// The tensors in the file decide which format a module has; the configuration is only cross-checked.
#pragma once
#include <memory>
#include <span>
#include <string>
#include "core/checkpoint/awq_config.h"
#include "core/checkpoint/checkpoint.h"
#include "core/weight.h"

namespace awq {

// The tensors "<path>.<suffix>" of one module.
struct ModuleTensors {
    const Checkpoint& checkpoint;
    std::string path;
    const TensorInfo* find(std::string_view suffix) const { return checkpoint.find(path + "." + std::string(suffix)); }
};

struct WeightFormat {
    const char* name;             // as the plan prints it: "gemm", "gemv", "gemv_fast", "llm-awq", "gptq", "dense", ...
    const char* class_name;       // a short description for people: "AutoAWQ GEMM (int32, 0 4 1 5 2 6 3 7)"
    // The suffixes of the tensors it uses, for "unused tensor" warnings: {"qweight", "qzeros", "scales"}.
    std::span<const char* const> suffixes;
    // Whether the module's tensors are of this format, for a Linear of out x in: by the packed tensor's type and shape,
    // so that open() can name what is wrong with the others. Cheap. Exactly one format says yes for a sound module.
    bool (*detect)(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in);
    // Full validation, then a source of rows, which the checkpoint must outlive. Errors name the tensor, what was found
    // and what was expected.
    Result<std::unique_ptr<WeightRows>> (*open)(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in);
};

std::span<const WeightFormat* const> weight_formats();
// The format of a module, or an error that lists the module's tensors as found and the formats that were tried.
Result<const WeightFormat*> detect_format(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in);
// Whether a plain floating tensor is there, of shape [out, in], or [in] where out is 1. Looks at none of its numbers.
Status check_plain(const Checkpoint& checkpoint, const std::string& tensor, int64_t out, int64_t in);
// A floating tensor as a source of rows (embedding tables, norms, biases), checked to be finite: of shape [out, in], or
// [in] where out is 1; a convolution's [out, ...] counts as the matrix it is.
Result<std::unique_ptr<WeightRows>> open_plain(const Checkpoint& checkpoint, const std::string& tensor, int64_t out, int64_t in);

}  // namespace awq
