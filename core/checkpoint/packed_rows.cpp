#include "core/checkpoint/packed_rows.h"
#include <algorithm>
#include <memory>
#include "core/checkpoint/finite.h"

namespace awq {
namespace {

std::string shape_text(std::initializer_list<int64_t> shape) {
    std::string text = "[";
    for (int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
    return text + "]";
}

bool same_shape(const TensorInfo& tensor, std::initializer_list<int64_t> shape) {
    return std::equal(tensor.shape.begin(), tensor.shape.end(), shape.begin(), shape.end(),
                      [](uint64_t a, int64_t b) { return a == static_cast<uint64_t>(b); });
}

}  // namespace

// ---- checks

Status tensor_error(const Checkpoint& checkpoint, const TensorInfo& tensor, const std::string& what) {
    return Status(Code::bad_file, quote(checkpoint.shard_name(tensor)) + ": " + quote(tensor.name, 200) + ": " + what);
}

Result<const TensorInfo*> need_tensor(const ModuleTensors& tensors, std::string_view suffix, std::initializer_list<DType> types,
                                      std::initializer_list<int64_t> shape, const std::string& note) {
    std::string expected;
    for (DType type : types) expected += (expected.empty() ? "" : " or ") + std::string(dtype_name(type));
    expected += " " + shape_text(shape) + " expected" + note;
    const TensorInfo* tensor = tensors.find(suffix);
    if (!tensor)
        return Status(Code::not_found,
                      quote(tensors.path + "." + std::string(suffix), 200) + ": no such tensor in the checkpoint; " + expected);
    bool type_fits = tensor->known && std::find(types.begin(), types.end(), tensor->type) != types.end();
    if (!type_fits || !same_shape(*tensor, shape))
        return tensor_error(tensors.checkpoint, *tensor, tensor_text(*tensor) + " found; " + expected);
    return tensor;
}

Status need_finite(const Checkpoint& checkpoint, const TensorInfo& tensor, int64_t rows, int64_t cols) {
    AWQ_ASSIGN(const TensorData data, checkpoint.read(tensor));
    const int64_t width = static_cast<int64_t>(tensor.shape[1]);
    int64_t bad = -1;
    if (cols == width) {
        bad = first_non_finite(tensor.type, data.data.get(), rows * cols);
    } else {
        for (int64_t row = 0; row < rows && bad < 0; row++) {
            bad = first_non_finite(tensor.type, data.data.get() + static_cast<size_t>(row * width) * dtype_bytes(tensor.type), cols);
            if (bad >= 0) bad += row * width;
        }
    }
    return bad < 0 ? Status() : non_finite_error(checkpoint, tensor, bad);
}

Status non_finite_error(const Checkpoint& checkpoint, const TensorInfo& tensor, int64_t place) {
    int64_t width = 1;
    for (size_t i = 1; i < tensor.shape.size(); i++) width *= static_cast<int64_t>(tensor.shape[i]);
    std::string index = tensor.shape.size() < 2 ? std::to_string(place) : std::to_string(place / width) + ", " + std::to_string(place % width);
    Status error = tensor_error(checkpoint, tensor, "[" + index + "] is NaN or infinite; finite numbers expected");
    return Status(Code::non_finite, error.message());
}

Result<int64_t> need_group_size(const ModuleTensors& tensors, const AwqConfig& config, int64_t in) {
    std::string where = quote(tensors.path, 200);
    int64_t size = config.group_size == -1 ? in : config.group_size;
    if (config.bits != 4)
        return Status(Code::unsupported, where + ": bits " + std::to_string(config.bits) + " configured; 4 expected");
    if (size <= 0 || in % size != 0)
        return Status(Code::bad_file, where + ": group_size " + std::to_string(size) + " found; a divisor of its " +
                                          std::to_string(in) + " inputs expected");
    return size;
}

std::string group_note(const AwqConfig& config, int64_t group_size) {
    return " (group_size " + std::to_string(config.group_size == -1 ? -1 : group_size) + ")";
}

Result<std::vector<int32_t>> need_group_order(const ModuleTensors& tensors, std::string_view suffix, int64_t in,
                                              int64_t group_size) {
    AWQ_ASSIGN(const TensorInfo* g_idx, need_tensor(tensors, suffix, {DType::i32}, {in}));
    const int64_t groups = in / group_size;
    AWQ_ASSIGN(TensorData data, tensors.checkpoint.read(*g_idx));
    auto group_of = [&](int64_t k) { return static_cast<int32_t>(load_u32(data.data.get() + 4 * k)); };
    std::vector<int64_t> members(static_cast<size_t>(groups), 0);
    bool natural = true;
    for (int64_t k = 0; k < in; k++) {
        if (group_of(k) < 0 || group_of(k) >= groups)
            return tensor_error(tensors.checkpoint, *g_idx,
                                "[" + std::to_string(k) + "]: " + std::to_string(group_of(k)) + " found; groups of 0 .. " +
                                    std::to_string(groups - 1) + " expected");
        natural = natural && group_of(k) == k / group_size;
        members[group_of(k)]++;
    }
    std::vector<int32_t> order;
    if (natural) return order;
    for (int64_t g = 0; g < groups; g++)
        if (members[g] != group_size)
            return tensor_error(tensors.checkpoint, *g_idx,
                                "group " + std::to_string(g) + " has " + std::to_string(members[g]) + " inputs; " +
                                    std::to_string(group_size) + " expected");
    order.resize(static_cast<size_t>(in));
    for (int64_t g = 0; g < groups; g++) members[g] = g * group_size;  // from here on: where its next input goes
    for (int64_t k = 0; k < in; k++) order[members[group_of(k)]++] = static_cast<int32_t>(k);
    return order;
}

bool has_shape(const TensorInfo* tensor, DType type, std::initializer_list<int64_t> shape) {
    return tensor && tensor->known && tensor->type == type && same_shape(*tensor, shape);
}

bool scales_by_output(const ModuleTensors& tensors, int64_t out) {
    const TensorInfo* scales = tensors.find("scales");
    const uint64_t rows = static_cast<uint64_t>(out);
    return scales && scales->shape.size() == 2 && scales->shape[0] == rows && scales->shape[1] != rows;
}

// ---- rows

PackedRows::PackedRows(const ModuleTensors& tensors, int64_t out_, int64_t in_, int64_t group_size_, DType dtype_)
    : checkpoint_(tensors.checkpoint) {
    out = out_;
    in = in_;
    group_size = group_size_;
    dtype = dtype_;
    groups_ = in / group_size;
}

bool PackedRows::load() const {
    if (loaded_) return true;
    std::lock_guard lock(mutex_);
    if (loaded_) return true;
    for (auto [tensor, data] : reads_) {
        auto read = checkpoint_.read(*tensor);
        if (!read.ok()) {
            status_ = read.status();
            return false;
        }
        *data = std::move(*read);
    }
    loaded_ = true;
    return true;
}

Status PackedRows::status() const {
    std::lock_guard lock(mutex_);
    return status_;
}

void PackedRows::forget() const {
    std::lock_guard lock(mutex_);
    loaded_ = false;
    for (auto [tensor, data] : reads_) data->data.reset();
}

// For scales of 16 bits and integer zeros q * scale, -z * scale and their sum are exact in float32, so this equals
// (q - z) * scale to the last bit.
void PackedRows::read_dense(int64_t first, int64_t count, float* rows) const {
    const int64_t block = std::min<int64_t>(count, 64);
    auto q = std::make_unique<uint8_t[]>(static_cast<size_t>(block * in));
    auto scale = std::make_unique<float[]>(static_cast<size_t>(block * groups_));
    auto offset = std::make_unique<float[]>(static_cast<size_t>(block * groups_));
    for (int64_t done = 0; done < count; done += block) {
        const int64_t n = std::min(block, count - done);
        read_quantized(first + done, n, q.get(), scale.get(), offset.get());
        if (!loaded_) return;
        for (int64_t i = 0; i < n * groups_; i++) {
            const uint8_t* from = q.get() + i * group_size;
            float* to = rows + done * in + i * group_size;
            const float s = scale[i], o = offset[i];
            for (int64_t k = 0; k < group_size; k++) to[k] = static_cast<float>(from[k]) * s + o;
        }
    }
}

void reorder_columns(const std::vector<int32_t>& order, int64_t count, int64_t in, uint8_t* q) {
    if (order.empty()) return;
    auto row = std::make_unique<uint8_t[]>(static_cast<size_t>(in));
    for (int64_t i = 0; i < count; i++) {
        std::memcpy(row.get(), q + i * in, static_cast<size_t>(in));
        for (int64_t k = 0; k < in; k++) q[i * in + k] = row[order[k]];
    }
}

void read_columns(const TensorData& matrix, int64_t rows, int64_t width, int64_t first, int64_t count, float* to) {
    const int64_t bytes = static_cast<int64_t>(dtype_bytes(matrix.type));
    float line[64];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t done = 0; done < count; done += 64) {
            const int64_t n = std::min<int64_t>(64, count - done);
            widen(matrix.type, matrix.data.get() + (row * width + first + done) * bytes, n, line);
            for (int64_t i = 0; i < n; i++) to[(done + i) * rows + row] = line[i];
        }
}

}  // namespace awq
