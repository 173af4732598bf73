#include "core/verify.h"
#include <xxhash.h>
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/finite.h"
#include "core/parallel.h"

namespace awq {
namespace {

constexpr const char* fingerprint_kind = "xxh3-64";

// A window of a matrix: its first rows x cols; what lies past it is padding.
struct Window {
    int64_t rows = 0, cols = 0, width = 0;
};

// What of the tensor counts. Scales and offsets of the GEMV layouts have room for more groups than there are; which
// layout it is and how many groups there are is told by the qweight beside them and the configured group size.
Window window_of(const Checkpoint& checkpoint, const TensorInfo& tensor) {
    const int64_t count = tensor.known ? static_cast<int64_t>(tensor.bytes / dtype_bytes(tensor.type)) : 0;
    const Window all = {1, count, count};
    const size_t dot = tensor.name.rfind('.');
    const std::string suffix = dot == tensor.name.npos ? "" : tensor.name.substr(dot + 1);
    if (tensor.shape.size() != 2 || (suffix != "scales" && suffix != "qzeros" && suffix != "scaled_zeros")) return all;
    const TensorInfo* qweight = checkpoint.find(tensor.name.substr(0, dot) + ".qweight");
    if (!qweight || !qweight->known || qweight->shape.size() != 2) return all;

    int64_t group_size = 128;
    for (const char* key : {"group_size", "q_group_size"})
        if (const Json* size = checkpoint.quantization().find(key); size && size->is_integer()) group_size = size->integer();
    const int64_t rows = static_cast<int64_t>(tensor.shape[0]), cols = static_cast<int64_t>(tensor.shape[1]);
    const int64_t qrows = static_cast<int64_t>(qweight->shape[0]), qcols = static_cast<int64_t>(qweight->shape[1]);
    auto groups_in = [&](int64_t in) { return group_size > 0 ? (in + group_size - 1) / group_size : 1; };
    if (qweight->type == DType::i16 && qrows == cols / 4)  // qweight [out/4][in], scales [groups, padded][out]
        return {std::min(rows, groups_in(qcols)), cols, cols};
    if (qweight->type == DType::i32 && qrows == rows)  // qweight [out][in/8], scales [out][groups, padded]
        return {rows, std::min(cols, groups_in(qcols * 8)), cols};
    return all;
}

// Calls count(element, elements) for each run of the window in elements first .. first + n - 1, and adds up.
template <class Count>
int64_t sum_runs(const Window& window, int64_t first, int64_t n, const Count& count) {
    int64_t sum = 0;
    for (int64_t row = first / window.width; row < window.rows && row * window.width < first + n; row++) {
        const int64_t begin = std::max(first, row * window.width), end = std::min(first + n, row * window.width + window.cols);
        if (begin < end) sum += count(begin, end - begin);
    }
    return sum;
}

int64_t count_zeros(DType type, const uint8_t* data, int64_t count) {
    int64_t zeros = 0;
    float numbers[256];
    const int64_t element = static_cast<int64_t>(dtype_bytes(type));
    for (int64_t done = 0; done < count; done += 256) {
        const int64_t n = std::min<int64_t>(256, count - done);
        widen(type, data + done * element, n, numbers);
        for (int64_t i = 0; i < n; i++) zeros += numbers[i] == 0;
    }
    return zeros;
}

bool is_floating(const TensorInfo& tensor) {
    return tensor.known &&
           (tensor.type == DType::f16 || tensor.type == DType::bf16 || tensor.type == DType::f32 || tensor.type == DType::f64);
}

struct Look {
    std::string fingerprint;
    int64_t non_finite = 0, zero_scales = 0, counted = 0;
};

// The fingerprint is XXH3 of the bytes, seeded with that of type and shape. The file is read once, in pieces.
Result<Look> look_at(const Checkpoint& checkpoint, const TensorInfo& tensor) {
    std::string head = tensor.dtype + " [";
    for (uint64_t extent : tensor.shape) head += std::to_string(extent) + ",";
    head += "]";
    std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(), XXH3_freeState);
    if (!hash) throw std::bad_alloc();
    XXH3_64bits_reset_withSeed(hash.get(), XXH3_64bits(head.data(), head.size()));

    Look look;
    const bool numbers = tensor.known && tensor.bytes > 0;
    const bool scales = (tensor.name.ends_with(".scales") || tensor.name.ends_with(".weight_scale")) && is_floating(tensor);
    const Window window = numbers ? window_of(checkpoint, tensor) : Window();
    const int64_t element = numbers ? static_cast<int64_t>(dtype_bytes(tensor.type)) : 1;
    if (numbers) look.counted = window.rows * window.cols;
    const size_t piece = size_t{4} << 20;
    const auto data = std::make_unique<uint8_t[]>(std::min(piece, tensor.bytes));
    for (size_t begin = 0; begin < tensor.bytes; begin += piece) {
        const size_t bytes = std::min(piece, tensor.bytes - begin);
        AWQ_TRY(checkpoint.read(tensor, begin, data.get(), bytes));
        XXH3_64bits_update(hash.get(), data.get(), bytes);
        if (!numbers) continue;
        const int64_t first = static_cast<int64_t>(begin) / element, n = static_cast<int64_t>(bytes) / element;
        look.non_finite += sum_runs(window, first, n, [&](int64_t at, int64_t count) {
            return count_non_finite(tensor.type, data.get() + (at - first) * element, count);
        });
        if (scales)
            look.zero_scales += sum_runs(window, first, n, [&](int64_t at, int64_t count) {
                return count_zeros(tensor.type, data.get() + (at - first) * element, count);
            });
    }
    XXH64_hash_t digest = XXH3_64bits_digest(hash.get());
    look.fingerprint.assign(16, '0');
    for (int i = 15; i >= 0; i--, digest >>= 4) look.fingerprint[i] = "0123456789abcdef"[digest & 15];
    return look;
}

// The fingerprints stored beside the model, by tensor; none where there is no such file.
Result<std::map<std::string, std::string>> read_stored(const std::string& path, bool& present) {
    std::map<std::string, std::string> stored;
    present = entry_exists(path);
    if (!present) return stored;
    AWQ_ASSIGN(std::string text, read_file(path, size_t{64} << 20));
    const std::string where = quote(path, 300);
    auto json = parse_json(text);
    if (!json.ok()) return json.status().in(where);
    const Json* kind = json->find("kind");
    if (!kind || !kind->is_string() || kind->string() != fingerprint_kind)
        return Status(Code::bad_file, where + ": kind: " + (kind ? quote(dump_json(*kind)) : "nothing") + " found; \"" + fingerprint_kind + "\" expected");
    const Json* tensors = json->find("tensors");
    if (!tensors || !tensors->is_object())
        return Status(Code::bad_file, where + ": tensors: " + (tensors ? tensors->type_name() : "nothing") + " found; an object of fingerprints expected");
    for (const auto& [name, fingerprint] : tensors->members()) {
        if (!fingerprint.is_string())
            return Status(Code::bad_file,
                          where + ": tensors: \"" + quote(name) + "\": " + fingerprint.type_name() + " found; a string expected");
        stored[name] = fingerprint.string();
    }
    return stored;
}

Json finding(const TensorInfo& tensor, const char* problem, int64_t count, int64_t of) {
    Json json;
    json.set("tensor", tensor.name);
    json.set("problem", problem);
    json.set("count", count);
    json.set("of", of);
    return json;
}

}  // namespace

Result<Json> verify_checkpoint(const std::string& directory, bool write,
                               const std::function<bool(uint64_t, uint64_t)>& progress) {
    AWQ_ASSIGN(std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::open(directory));
    if (!checkpoint->has_weights()) return checkpoint->missing_weights();
    const std::vector<TensorInfo>& tensors = checkpoint->tensors();
    const std::string path = directory + (directory.ends_with('/') ? "" : "/") + fingerprint_file;
    bool compared = false;
    AWQ_ASSIGN(auto stored, read_stored(path, compared));

    uint64_t total = 0, done = 0;
    for (const TensorInfo& tensor : tensors) total += tensor.bytes;
    std::vector<Look> looks(tensors.size());
    std::mutex mutex;
    std::atomic<bool> stop = false;
    Status status;
    parallel_for(tensors.size(), hardware_threads(), [&](size_t i) {
        if (stop) return;
        checkpoint->prefetch(tensors[i]);
        auto look = look_at(*checkpoint, tensors[i]);
        std::lock_guard lock(mutex);
        if (!look.ok()) {
            status = look.status();
            stop = true;
            return;
        }
        looks[i] = std::move(*look);
        done += tensors[i].bytes;
        if (progress && !stop && !progress(done, total)) stop = true;
    });
    AWQ_TRY(status);
    if (stop) return Status(Code::cancelled, quote(directory, 300) + ": verifying was stopped");

    Json listed = Json::array(), findings = Json::array(), mismatches = Json::array(), missing = Json::array(),
         added = Json::array();
    Json fingerprints = Json::object();
    for (size_t i = 0; i < tensors.size(); i++) {
        const TensorInfo& tensor = tensors[i];
        const Look& look = looks[i];
        Json row, shape = Json::array();
        for (uint64_t extent : tensor.shape) shape.push(extent);
        row.set("name", tensor.name);
        row.set("dtype", tensor.dtype);
        row.set("shape", std::move(shape));
        row.set("file", checkpoint->shard_name(tensor));
        row.set("fingerprint", look.fingerprint);
        listed.push(std::move(row));
        fingerprints.members().emplace_back(tensor.name, look.fingerprint);
        if (look.non_finite > 0) findings.push(finding(tensor, "non-finite numbers", look.non_finite, look.counted));
        if (look.zero_scales > 0) findings.push(finding(tensor, "zero scales", look.zero_scales, look.counted));
        if (!compared) continue;
        auto before = stored.find(tensor.name);
        if (before == stored.end()) {
            added.push(tensor.name);
        } else if (before->second != look.fingerprint) {
            Json mismatch;
            mismatch.set("tensor", tensor.name);
            mismatch.set("expected", before->second);
            mismatch.set("found", look.fingerprint);
            mismatches.push(std::move(mismatch));
        }
    }
    for (const auto& [name, fingerprint] : stored)
        if (!checkpoint->find(name)) missing.push(name);

    if (write) {
        Json file;
        file.set("kind", fingerprint_kind);
        file.set("tensors", std::move(fingerprints));
        AWQ_TRY(write_file(path, dump_json(file, 1) + "\n"));
    }
    const bool ok = findings.items().empty() && mismatches.items().empty() && missing.items().empty() && added.items().empty();
    Json result;
    result.set("directory", directory);
    result.set("bytes", total);
    result.set("tensors", std::move(listed));
    result.set("findings", std::move(findings));
    result.set("compared", compared);
    result.set("mismatches", std::move(mismatches));
    result.set("missing", std::move(missing));
    result.set("added", std::move(added));
    result.set("written", write);
    result.set("ok", ok);
    return result;
}

}  // namespace awq
