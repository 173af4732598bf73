// `awq bench`: how fast a model is on this machine, beside what its memory would allow.
#pragma once
#include <string>
#include "core/engine.h"

namespace awq {

// request: {"shape": NAME or null, "prompt": [512], "generate": [128], "batch": [1], "depth": [0], "repeat": 5,
// "kernels": false}. Answer: {"model", "size", "params", "backend", "device", "bandwidth", "load_seconds", "rows": [{"test",
// "tokens_per_second", "sd", "gb_per_second", "percent_of_limit"}], "kernels": {RUN: [{"kernel", "nodes",
// "microseconds", "percent_of_run", "gb_per_second", "percent_of_limit"}]}}: microseconds of all nodes of a kind in one run.
Result<Json> bench(EngineOptions options, const Json& request);

}  // namespace awq
