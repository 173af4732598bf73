// AutoAWQ GEMV.
//
//   qweight I32 [out][in/8]       output-major, nibbles in plain order
//   qzeros  I32 [out][width]      z of group g is nibble g % 8 of word g / 8
//   scales  F16 or BF16 [out][8 * width]
//
// width (core/checkpoint/interleaved_rows.h: zeros_width) leaves columns past the groups: padding, never looked at.
#include "core/checkpoint/interleaved_rows.h"
#include "core/checkpoint/packed_rows.h"

namespace awq {
namespace {

class GemvRows final : public PackedRows {
public:
    GemvRows(const ModuleTensors& tensors, int64_t out, int64_t in, int64_t group_size, int64_t width, const TensorInfo& qweight,
             const TensorInfo& qzeros, const TensorInfo& scales)
        : PackedRows(tensors, out, in, group_size, scales.type), width_(width) {
        reads_ = {{&qweight, &qweight_}, {&qzeros, &qzeros_}, {&scales, &scales_}};
        integer_zeros = true;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        if (!load()) return;
        unpack_nibbles(qweight_.data.get() + first * (in / 2), count * in, q);
        for (int64_t i = 0; i < count; i++) {
            float* s = scale + i * groups_;
            widen(scales_.type, scales_.data.get() + (first + i) * width_ * 8 * 2, groups_, s);
            const uint8_t* zeros = qzeros_.data.get() + (first + i) * width_ * 4;
            for (int64_t g = 0; g < groups_; g++) {
                int z = zeros[g / 2] >> (g % 2 * 4) & 15;
                offset[i * groups_ + g] = static_cast<float>(-z) * s[g];
            }
        }
    }

private:
    int64_t width_;
    TensorData qweight_, qzeros_, scales_;
};

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    const TensorInfo* qweight = tensors.find("qweight");
    if (in % 8 != 0 || !has_shape(qweight, DType::i32, {out, in / 8})) return false;
    if (in == out) return scales_by_output(tensors, out);                                // or GEMM's shape
    if (in / 8 == out) return scales_by_output(tensors, out) && !tensors.find("g_idx");  // or GPTQ's
    return in != 16 * out || tensors.find("qzeros");                                     // or Marlin's
}

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in) {
    AWQ_ASSIGN(int64_t group_size, need_group_size(tensors, config, in));
    AWQ_ASSIGN(int64_t width, zeros_width(tensors, in, group_size));
    const std::string note = group_note(config, group_size);
    const TensorInfo* qweight = tensors.find("qweight");  // of the shape that detect() has seen
    AWQ_ASSIGN(const TensorInfo* qzeros, need_tensor(tensors, "qzeros", {DType::i32}, {out, width}, note));
    AWQ_ASSIGN(const TensorInfo* scales, need_tensor(tensors, "scales", {DType::f16, DType::bf16}, {out, 8 * width}, note));
    AWQ_TRY(need_finite(tensors.checkpoint, *scales, out, in / group_size));
    return std::unique_ptr<WeightRows>(new GemvRows(tensors, out, in, group_size, width, *qweight, *qzeros, *scales));
}

const char* const suffixes[] = {"qweight", "qzeros", "scales"};

}  // namespace

extern const WeightFormat format_awq_gemv = {"gemv", "AutoAWQ GEMV (int32, output-major, padded zeros and scales)", suffixes,
                                             detect, open};

}  // namespace awq
