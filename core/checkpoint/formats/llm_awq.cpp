// llm-awq: the interleaved layout (core/checkpoint/interleaved_rows.cpp) with its offsets in "scaled_zeros".
#include "core/checkpoint/interleaved_rows.h"

namespace awq {
namespace {

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    return detect_interleaved(tensors, out, in, "scaled_zeros");
}

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in) {
    return open_interleaved(tensors, config, out, in, "scaled_zeros");
}

const char* const suffixes[] = {"qweight", "scaled_zeros", "scales"};

}  // namespace

extern const WeightFormat format_llm_awq = {"llm-awq", "llm-awq (int16, four rows interleaved, scaled_zeros = -z * scale)",
                                            suffixes, detect, open};

}  // namespace awq
