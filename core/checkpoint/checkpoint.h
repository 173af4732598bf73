// A Hugging Face model directory: its JSON files read and checked, its safetensors files open and validated.
//
// Says which tensors there are, of what type and shape, and where their bytes lie. Knows nothing of what they mean:
// that is weight_format.h (quantised Linears) and core/plan.h (which module is what).
#pragma once
#include <memory>
#include <string>
#include <string_view>
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
    uint64_t offset = 0;             // in the file, of any alignment
    size_t bytes = 0;
    int shard = 0;                   // index into Checkpoint::shards()
};

std::string tensor_text(const TensorInfo& tensor);    // "I32 [256, 32]", for messages

// Validates one safetensors file: header, entries, layout. Tensors in the order of their bytes; errors name the file.
Result<std::vector<TensorInfo>> read_safetensors(const InputFile& file);
// The same of a header alone: its JSON text, and how many bytes of data follow it. Errors do not name the file.
Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view json, uint64_t data_bytes);

// A tensor's bytes in memory.
struct TensorData {
    DType type = DType::f32;
    size_t bytes = 0;
    std::unique_ptr<uint8_t[]> data;
};

class Checkpoint {
public:
    // Opens the directory: config.json must be there; weights may be absent (has_weights() false). Weights are
    // model.safetensors or the shards of model.safetensors.index.json, nothing else. Errors name the file.
    static Result<std::shared_ptr<const Checkpoint>> open(const std::string& directory);

    // No directory: just a config.json, for plans and benchmarks of a shape.
    static Result<std::shared_ptr<const Checkpoint>> from_config(const std::string& config_json);

    const std::string& directory() const { return directory_; }
    const Json& config() const { return config_; }                          // config.json, an object
    const Json& generation_config() const { return generation_config_; }    // generation_config.json, null where absent
    // quantization_config of config.json, else quant_config.json / quantize_config.json as it is; null where none.
    const Json& quantization() const { return quantization_; }
    const std::string& quantization_file() const { return quantization_file_; }    // "config.json", "quant_config.json", ...
    std::string quantization_field(const std::string& name) const;                 // with its file, as messages name it

    bool has_weights() const { return !shards_.empty(); }
    // Why there are none: which files were looked for and what lies there instead. Only for has_weights() false.
    Status missing_weights() const;
    const std::vector<InputFile>& shards() const { return shards_; }
    const std::vector<TensorInfo>& tensors() const { return tensors_; }
    std::string table_path() const;                                         // of the file that lists the tensors: the index, or the only one
    const TensorInfo* find(std::string_view name) const;                    // null where there is none
    std::string shard_name(const TensorInfo& tensor) const;                 // file name without the directory
    Result<TensorData> read(const TensorInfo& tensor) const;                // all of its bytes
    // `bytes` of them, from the tensor's byte `first` on. Any number of threads may read at once.
    Status read(const TensorInfo& tensor, uint64_t first, void* to, size_t bytes) const;
    // Tells the system that these bytes are wanted soon: it reads ahead.
    void prefetch(const TensorInfo& tensor) const;

private:
    Status read_quantization();
    Status open_weights();

    std::string directory_, quantization_file_;
    Json config_, generation_config_, quantization_;
    std::vector<InputFile> shards_;
    std::vector<TensorInfo> tensors_;
    std::vector<size_t> by_name_;    // indices of tensors_, in order of the names
};

// MODEL of the command line: a directory as it is, or org/name[@revision] in the local Hugging Face cache.
Result<std::string> resolve_model_directory(const std::string& model);

}  // namespace awq
