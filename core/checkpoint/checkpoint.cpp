// Opening a model directory: its JSON files, then the weight files that count. The safetensors format itself is in
// safetensors.cpp, the local Hugging Face cache in model_directory.cpp.
#include "core/checkpoint/checkpoint.h"
#include <algorithm>
#include <filesystem>
#include <new>

namespace awq {
namespace {

constexpr size_t config_limit = size_t{16} << 20;
constexpr size_t tensor_limit = size_t{1} << 19;  // of all files together; the largest models have some 200,000
constexpr size_t index_limit = size_t{32} << 20;  // one line a tensor; 12 MB for the largest models there are
const char* const single_file = "model.safetensors";
const char* const index_file = "model.safetensors.index.json";

std::string join(const std::string& directory, const std::string& name) {
    return directory.empty() || directory.back() == '/' ? directory + name : directory + "/" + name;
}

Result<Json> read_json_object(const std::string& path, size_t limit) {
    AWQ_ASSIGN(std::string text, read_file(path, limit));
    std::string where = quote(path, 300);
    auto json = parse_json(text);
    if (!json.ok()) return json.status().in(where);
    if (!json->is_object()) return Status(Code::bad_file, where + ": " + json->type_name() + " found; an object expected");
    return json;
}

// A shard is one plain file beside the index: nothing that leads elsewhere.
bool is_shard_name(std::string_view name) {
    return name.size() <= 255 && name.ends_with(".safetensors") && name.front() != '.' &&
           name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

// weight_map of an index: the shard of each tensor, in the index's order.
Result<std::vector<Json::Member>> read_index(const std::string& path) {
    AWQ_ASSIGN(Json index, read_json_object(path, index_limit));
    std::string where = quote(path, 300) + ": weight_map";
    const Json* map = index.find("weight_map");
    if (!map) return Status(Code::bad_file, where + ": is missing");
    if (!map->is_object()) return Status(Code::bad_file, where + ": " + map->type_name() + " found; an object expected");
    if (map->members().empty()) return Status(Code::bad_file, where + ": is empty; a file for each tensor expected");
    for (const auto& [tensor, file] : map->members()) {
        std::string at = where + ": \"" + quote(tensor) + "\": ";
        if (!file.is_string()) return Status(Code::bad_file, at + file.type_name() + " found; a file name expected");
        if (!is_shard_name(file.string()))
            return Status(Code::bad_file,
                          at + "\"" + quote(file.string()) + "\" found; a plain file name that ends in .safetensors expected");
    }
    return map->members();
}

}  // namespace

Result<std::shared_ptr<const Checkpoint>> Checkpoint::open(const std::string& directory) {
    if (directory.find('\0') != directory.npos) return Status(Code::invalid_argument, quote(directory) + ": a path holds no NUL");
    if (!directory_exists(directory)) {
        bool is_file = file_exists(directory);
        return Status(is_file ? Code::invalid_argument : Code::not_found,
                      quote(directory, 300) + (is_file ? ": is a file; a model directory expected" : ": no such directory"));
    }
    auto checkpoint = std::make_shared<Checkpoint>();
    Checkpoint& c = *checkpoint;
    c.directory_ = directory;
    AWQ_ASSIGN(c.config_, read_json_object(join(directory, "config.json"), config_limit));
    if (std::string path = join(directory, "generation_config.json"); entry_exists(path)) {
        AWQ_ASSIGN(c.generation_config_, read_json_object(path, config_limit));
    }
    AWQ_TRY(c.read_quantization());
    AWQ_TRY(c.open_weights());
    return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

Result<std::shared_ptr<const Checkpoint>> Checkpoint::from_config(const std::string& config_json) {
    auto checkpoint = std::make_shared<Checkpoint>();
    AWQ_ASSIGN(checkpoint->config_, parse_json(config_json));
    if (!checkpoint->config_.is_object()) return Status(Code::bad_file, "config.json: " + std::string(checkpoint->config_.type_name()) + " found; an object expected");
    AWQ_TRY(checkpoint->read_quantization());
    return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

Status Checkpoint::read_quantization() {
    const Json* inside = config_.find("quantization_config");
    if (inside && !inside->is_null()) {
        quantization_file_ = "config.json";
        if (!inside->is_object())
            return Status(Code::bad_file, quote(join(directory_, "config.json"), 300) +
                                              ": quantization_config: " + inside->type_name() + " found; an object expected");
        quantization_ = *inside;
        return {};
    }
    for (const char* name : {"quant_config.json", "quantize_config.json"}) {  // AutoAWQ's and AutoGPTQ's older place
        std::string path = join(directory_, name);
        if (!entry_exists(path)) continue;
        AWQ_ASSIGN(quantization_, read_json_object(path, config_limit));
        quantization_file_ = name;
        return {};
    }
    return {};
}

std::string Checkpoint::quantization_field(const std::string& name) const {
    const bool inside = quantization_file_.empty() || quantization_file_ == "config.json";
    return inside ? "config.json: quantization_config." + name : quantization_file_ + ": " + name;
}

Status Checkpoint::open_weights() {
    std::vector<std::string> names;
    std::vector<Json::Member> listed;
    // Which of the two counts where both are there: as transformers has it.
    if (entry_exists(join(directory_, single_file))) {
        names.push_back(single_file);
    } else if (std::string path = join(directory_, index_file); entry_exists(path)) {
        AWQ_ASSIGN(listed, read_index(path));
        for (const auto& [tensor, file] : listed) names.push_back(file.string());
        std::sort(names.begin(), names.end());
        names.erase(std::unique(names.begin(), names.end()), names.end());
    }
    for (const std::string& name : names) {
        AWQ_ASSIGN(InputFile file, InputFile::open(join(directory_, name)));
        AWQ_ASSIGN(std::vector<TensorInfo> tensors, read_safetensors(file));
        for (TensorInfo& tensor : tensors) {
            tensor.shard = static_cast<int>(shards_.size());
            tensors_.push_back(std::move(tensor));
        }
        if (tensors_.size() > tensor_limit)
            return Status(Code::bad_file, quote(file.path(), 300) + ": " + std::to_string(tensors_.size()) +
                                              " tensors up to here; at most " + std::to_string(tensor_limit) + " expected in all");
        shards_.push_back(std::move(file));
    }
    by_name_.resize(tensors_.size());
    for (size_t i = 0; i < by_name_.size(); i++) by_name_[i] = i;
    std::stable_sort(by_name_.begin(), by_name_.end(), [&](size_t a, size_t b) { return tensors_[a].name < tensors_[b].name; });
    for (size_t i = 1; i < by_name_.size(); i++) {
        const TensorInfo &a = tensors_[by_name_[i - 1]], &b = tensors_[by_name_[i]];
        if (a.name == b.name)
            return Status(Code::bad_file, quote(shards_[b.shard].path(), 300) + ": tensor \"" + quote(b.name) + "\": stands in " +
                                              quote(shard_name(a)) + " too; one file expected");
    }
    for (const auto& [tensor, file] : listed) {
        const TensorInfo* found = find(tensor);
        if (!found || shard_name(*found) != file.string())
            return Status(Code::bad_file, quote(join(directory_, file.string()), 300) + ": tensor \"" + quote(tensor) +
                                              "\": not there; " + index_file + " says it is");
    }
    return {};
}

std::string Checkpoint::table_path() const {
    return shards_.size() == 1 && shards_[0].path() == join(directory_, single_file) ? shards_[0].path() : join(directory_, index_file);
}

Status Checkpoint::missing_weights() const {
    std::string others;
    std::error_code error;
    size_t left = 10000;
    for (std::filesystem::directory_iterator it(directory_, error), end; it != end && left-- > 0; it.increment(error)) {
        std::string name = it->path().filename().string();
        bool weights = false;
        for (const char* ending : {".bin", ".pt", ".pth", ".gguf", ".safetensors"}) weights = weights || name.ends_with(ending);
        if (weights && (others.empty() || name < others)) others = name;
    }
    std::string what = quote(directory_, 300) + ": no weights: neither " + single_file + " nor " + index_file + " is there";
    if (others.ends_with(".gguf")) {
        what += " (\"" + quote(others) + "\" is: \"awq import\" makes a directory of it)";
    } else if (others.ends_with(".safetensors")) {
        what += " (\"" + quote(others) + "\" is, but is not read by another name)";
    } else if (!others.empty()) {
        what += " (\"" + quote(others) + "\" is, which is not read: save the model as safetensors)";
    }
    return Status(Code::not_found, what);
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
    auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                               [&](size_t i, std::string_view key) { return tensors_[i].name < key; });
    return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

std::string Checkpoint::shard_name(const TensorInfo& tensor) const {
    const std::string& path = shards_[tensor.shard].path();
    return path.substr(path.rfind('/') + 1);
}

Result<TensorData> Checkpoint::read(const TensorInfo& tensor) const {
    TensorData read;
    read.type = tensor.type;
    read.bytes = tensor.bytes;
    read.data.reset(new (std::nothrow) uint8_t[tensor.bytes]);    // not zeroed first
    if (!read.data)
        return Status(Code::out_of_memory, quote(shard_name(tensor)) + ": " + quote(tensor.name, 200) + ": no memory for its " +
                                               std::to_string(tensor.bytes) + " bytes");
    AWQ_TRY(shards_[tensor.shard].read_large(tensor.offset, read.data.get(), tensor.bytes));
    return read;
}

Status Checkpoint::read(const TensorInfo& tensor, uint64_t first, void* to, size_t bytes) const {
    return shards_[tensor.shard].read(tensor.offset + first, to, bytes);
}

void Checkpoint::prefetch(const TensorInfo& tensor) const {
    if (tensor.bytes > 0) shards_[tensor.shard].prefetch(tensor.offset, tensor.bytes);
}

}  // namespace awq
