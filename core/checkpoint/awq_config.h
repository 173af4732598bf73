// quantization_config as transformers' AwqConfig (4.57) reads, validates and completes it, and the options that override
// it. Also the little that is needed of its neighbours (gptq, compressed-tensors).
#pragma once
#include <optional>
#include <string>
#include <vector>
#include "core/json.h"
#include "core/status.h"

namespace awq {

struct AwqConfig {
    // "awq", "gptq", "compressed-tensors"; empty: the checkpoint is not quantised (or by a method unknown here)
    std::string quant_method;
    int bits = 4;
    int64_t group_size = 128;  // -1: one group over the whole input
    bool zero_point = true;
    std::string version = "gemm";     // lower case: gemm, gemv, gemv_fast, exllama, marlin, ipex, llm-awq
    std::string backend = "autoawq";  // autoawq, llm-awq
    bool do_fuse = false;
    std::optional<int64_t> fuse_max_seq_len;
    Json modules_to_fuse;  // null: none given
    std::optional<std::vector<std::string>> modules_to_not_convert;
    Json exllama_config;      // as given, completed where version is exllama
    int exllama_version = 0;  // 0: version is not exllama
    int64_t exllama_max_input_len = 2048, exllama_max_batch_size = 8;
    // compressed-tensors
    std::vector<std::string> ignore;  // full paths, or "re:" + a pattern matched from the start
    // gptq
    bool desc_act = false, sym = true;
    std::string checkpoint_format;      // gptq, gptq_v2
    bool quantized_head = false;        // "lm_head": true
    std::vector<std::string> warnings;  // what was mended or ignored, for people

    bool quantized() const { return !quant_method.empty(); }
    Json to_json() const;  // normalised, with defaults, sorted keys (inspect --json)
};

// What the command line or a program says; only what was given overrides.
struct AwqOverrides {
    std::optional<std::string> version, backend;
    std::optional<bool> do_fuse;
    std::optional<int64_t> fuse_max_seq_len, group_size, max_input_len, max_batch_size;
    std::optional<int> exllama_version;
    std::optional<std::vector<std::string>> modules_to_not_convert;
    Json modules_to_fuse;  // null: not given
};

// AwqConfig's keys, only those that are to change; unknown ones are an error.
Result<AwqOverrides> read_awq_overrides(const Json& json);

// `json`: quantization_config or the content of quant_config.json, null for none; `file` names it in errors.
// A quantization_config inside config.json must have a quant_method; the files of its own need none.
Result<AwqConfig> read_awq_config(const Json& json, const std::string& file, const AwqOverrides& overrides);

}  // namespace awq
