// Plain floating tensors: "weight" of a Linear that is not quantised, and embeddings, norms and biases (open_plain).
// The largest tensors of a checkpoint are of this kind: they are never in memory whole.
#include <memory>
#include <mutex>
#include "core/checkpoint/finite.h"
#include "core/checkpoint/packed_rows.h"
#include "core/parallel.h"

namespace awq {
namespace {

class DenseRows final : public WeightRows {
public:
    DenseRows(const Checkpoint& checkpoint, const TensorInfo& tensor, int64_t out_, int64_t in_)
        : checkpoint_(checkpoint), tensor_(tensor) {
        out = out_;
        in = in_;
        dtype = tensor.type;
    }
    void read_quantized(int64_t, int64_t, uint8_t*, float*, float*) const override {}  // never asked of a dense source
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        const int64_t element = static_cast<int64_t>(dtype_bytes(dtype)), end = (first + count) * in;
        const auto piece = std::make_unique<uint8_t[]>(static_cast<size_t>(std::min(piece_elements, count * in) * element));
        for (int64_t at = first * in; at < end; at += piece_elements) {
            const int64_t n = std::min(piece_elements, end - at);
            Status read = checkpoint_.read(tensor_, static_cast<uint64_t>(at * element), piece.get(), static_cast<size_t>(n * element));
            if (!read.ok()) {
                std::lock_guard lock(mutex_);
                status_ = std::move(read);
                return;
            }
            widen(dtype, piece.get(), n, rows + (at - first * in));
        }
    }
    Status status() const override {
        std::lock_guard lock(mutex_);
        return status_;
    }

private:
    static constexpr int64_t piece_elements = int64_t{1} << 16;
    const Checkpoint& checkpoint_;
    const TensorInfo& tensor_;
    mutable std::mutex mutex_;
    mutable Status status_;
};

// [out, in], [in] where out is 1, or [out, ...] with in numbers an output: a convolution's kernel. The reader has seen
// to it that the product does not overflow.
bool is_matrix(const TensorInfo& tensor, int64_t out, int64_t in) {
    uint64_t count = 1;
    for (uint64_t extent : tensor.shape) count *= extent;
    if (tensor.shape.empty() || count != static_cast<uint64_t>(out) * static_cast<uint64_t>(in)) return false;
    return tensor.shape[0] == static_cast<uint64_t>(out) || (out == 1 && tensor.shape.size() == 1);
}

Status need_all_finite(const Checkpoint& checkpoint, const TensorInfo& tensor) {
    const size_t element = dtype_bytes(tensor.type), piece = size_t{4} << 20;
    std::mutex mutex;
    Status status;
    int64_t first = INT64_MAX;
    parallel_for((tensor.bytes + piece - 1) / piece, std::min<size_t>(8, hardware_threads()), [&](size_t i) {
        const size_t begin = i * piece, bytes = std::min(piece, tensor.bytes - begin);
        const auto data = std::make_unique<uint8_t[]>(bytes);
        Status read = checkpoint.read(tensor, begin, data.get(), bytes);
        const int64_t bad = read.ok() ? first_non_finite(tensor.type, data.get(), static_cast<int64_t>(bytes / element)) : -1;
        std::lock_guard lock(mutex);
        if (!read.ok()) status = std::move(read);
        if (bad >= 0) first = std::min(first, static_cast<int64_t>(begin / element) + bad);
    });
    AWQ_TRY(status);
    return first == INT64_MAX ? Status() : non_finite_error(checkpoint, tensor, first);
}

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t, int64_t) { return tensors.find("weight") != nullptr; }

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    return open_plain(tensors.checkpoint, tensors.path + ".weight", out, in);
}

const char* const suffixes[] = {"weight"};

}  // namespace

extern const WeightFormat format_dense = {"dense", "plain floating numbers", suffixes, detect, open};

Status check_plain(const Checkpoint& checkpoint, const std::string& name, int64_t out, int64_t in) {
    const std::string shape =
        out == 1 ? "[" + std::to_string(in) + "]" : "[" + std::to_string(out) + ", " + std::to_string(in) + "]";
    const std::string expected = "F16, BF16, F32 or F64 " + shape + " expected";
    const TensorInfo* tensor = checkpoint.find(name);
    if (!tensor) return Status(Code::not_found, quote(name, 200) + ": no such tensor in the checkpoint; " + expected);
    const bool floating = tensor->known && (tensor->type == DType::f16 || tensor->type == DType::bf16 ||
                                            tensor->type == DType::f32 || tensor->type == DType::f64);
    if (!floating || !is_matrix(*tensor, out, in))
        return tensor_error(checkpoint, *tensor, tensor_text(*tensor) + " found; " + expected);
    return {};
}

Result<std::unique_ptr<WeightRows>> open_plain(const Checkpoint& checkpoint, const std::string& name, int64_t out, int64_t in) {
    AWQ_TRY(check_plain(checkpoint, name, out, in));
    const TensorInfo* tensor = checkpoint.find(name);
    AWQ_TRY(need_all_finite(checkpoint, *tensor));
    return std::unique_ptr<WeightRows>(new DenseRows(checkpoint, *tensor, out, in));
}

}  // namespace awq
