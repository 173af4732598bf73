// Plain floating tensors: "weight" of a Linear that is not quantised, and embeddings, norms and biases (open_plain).
#include "core/checkpoint/packed_rows.h"

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
        widen(dtype, tensor_.data + static_cast<size_t>(first * in) * dtype_bytes(dtype), count * in, rows);
    }
    void prefetch() const override { checkpoint_.prefetch(tensor_); }
    void forget() const override { checkpoint_.forget(tensor_); }

private:
    const Checkpoint& checkpoint_;
    const TensorInfo& tensor_;
};

// [out, in], [in] where out is 1, or [out, ...] with in numbers an output: a convolution's kernel. The reader has seen
// to it that the product does not overflow.
bool is_matrix(const TensorInfo& tensor, int64_t out, int64_t in) {
    uint64_t count = 1;
    for (uint64_t extent : tensor.shape) count *= extent;
    if (tensor.shape.empty() || count != static_cast<uint64_t>(out) * static_cast<uint64_t>(in)) return false;
    return tensor.shape[0] == static_cast<uint64_t>(out) || (out == 1 && tensor.shape.size() == 1);
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
    AWQ_TRY(need_finite(checkpoint, *tensor, static_cast<int64_t>(tensor->shape[0]),
                        out * in / static_cast<int64_t>(tensor->shape[0])));
    return std::unique_ptr<WeightRows>(new DenseRows(checkpoint, *tensor, out, in));
}

}  // namespace awq
