// AutoAWQ GEMVFast: the interleaved layout (core/checkpoint/interleaved_rows.cpp) with its offsets in "qzeros".
#include "core/checkpoint/interleaved_rows.h"

namespace awq {
namespace {

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    return detect_interleaved(tensors, out, in, "qzeros");
}

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in) {
    return open_interleaved(tensors, config, out, in, "qzeros");
}

const char* const suffixes[] = {"qweight", "qzeros", "scales"};

}  // namespace

extern const WeightFormat format_awq_gemv_fast = {
    "gemv_fast", "AutoAWQ GEMVFast (int16, four rows interleaved, qzeros = -z * scale)", suffixes, detect, open};

}  // namespace awq
