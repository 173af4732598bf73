// `awq bench`: how fast a model is on this machine, beside what its memory would allow.
#pragma once
#include <string>
#include "core/engine.h"

namespace awq {

// request: {"shape": NAME or null, "prompt": [512], "generate": [128], "batch": [1], "depth": [0], "repeat": 5,
// "kernels": false}. Answer: {"model", "size", "params", "backend", "device", "bandwidth", "rows": [{"test",
// "tokens_per_second", "sd", "gb_per_second", "percent_of_limit"}], "kernels": [...]}.
Result<Json> bench(EngineOptions options, const Json& request);

}  // namespace awq
