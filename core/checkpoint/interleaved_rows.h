// The interleaved layout of AutoAWQ GEMVFast and of llm-awq since late 2023, which differ in one tensor's name.
#pragma once
#include "core/checkpoint/packed_rows.h"

namespace awq {

// Words of eight groups that GEMV and GEMVFast files have room for: the groups rounded up to 8, 16 (group size 64) or 32
// (group size 32). Other group sizes have no such files.
Result<int64_t> zeros_width(const ModuleTensors& tensors, int64_t in, int64_t group_size);

bool detect_interleaved(const ModuleTensors& tensors, int64_t out, int64_t in, std::string_view zeros);
Result<std::unique_ptr<WeightRows>> open_interleaved(const ModuleTensors& tensors, const AwqConfig& config, int64_t out,
                                                     int64_t in, std::string_view zeros);

}  // namespace awq
