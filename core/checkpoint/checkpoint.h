// A Hugging Face model directory: its JSON files read and checked, its safetensors files mapped and validated.
//
// Says which tensors there are, of what type and shape, and where their bytes lie. Knows nothing of what they mean:
// that is weight_format.h (quantised Linears) and core/plan.h (which module is what).
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
#include "core/file.h"
#include "core/json.h"
#include "core/status.h"
#include "core/tensor.h"

namespace awq {

struct TensorInfo {
    std::string name;
    std::string dtype;               // as the file spells it; may be one this program has no type for (F4, F8_E8M0, ...)
    DType type = DType::f32;         // meaningful where `known`
    bool known = false;
    std::vector<uint64_t> shape;
    const uint8_t* data = nullptr;   // any alignment; null where bytes == 0
    size_t bytes = 0;
    int shard = 0;                   // index into Checkpoint::shards()
};

// Opens and validates one safetensors file (loader-rules: header, entries, layout). Tensors in the order of the file.
Result<std::vector<TensorInfo>> read_safetensors(const MappedFile& file);

class Checkpoint {
public:
    // Opens the directory: config.json must be there; weights may be absent (has_weights() false). Errors name the file.
    static Result<std::shared_ptr<const Checkpoint>> open(const std::string& directory);

    // No directory: just a config.json, for plans and benchmarks of a shape.
    static Result<std::shared_ptr<const Checkpoint>> from_config(const std::string& config_json);

    const std::string& directory() const { return directory_; }
    const Json& config() const { return config_; }                          // config.json, an object
    const Json& generation_config() const { return generation_config_; }    // generation_config.json, null where absent
    // quantization_config of config.json, else quant_config.json / quantize_config.json as it is; null where none.
    const Json& quantization() const { return quantization_; }
    const std::string& quantization_file() const { return quantization_file_; }    // "config.json", "quant_config.json", ...

    bool has_weights() const { return !shards_.empty(); }
    const std::vector<MappedFile>& shards() const { return shards_; }
    const std::vector<TensorInfo>& tensors() const { return tensors_; }
    const TensorInfo* find(std::string_view name) const;                    // null where there is none
    std::string shard_name(const TensorInfo& tensor) const;                 // file name without the directory
    // The bytes of a tensor need not stay in memory.
    void forget(const TensorInfo& tensor) const;

private:
    std::string directory_, quantization_file_;
    Json config_, generation_config_, quantization_;
    std::vector<MappedFile> shards_;
    std::vector<TensorInfo> tensors_;
    std::unordered_map<std::string_view, size_t> index_;    // keys point into tensors_
};

// MODEL of the command line: a directory as it is, or org/name[@revision] in the local Hugging Face cache.
Result<std::string> resolve_model_directory(const std::string& model);

}  // namespace awq
