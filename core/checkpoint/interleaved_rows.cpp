// The interleaved layout, read. zeros is "qzeros" or "scaled_zeros":
//
//   qweight I16 [out/4][in]          for each four rows: blocks of 64 columns, in each the rows one after the other,
//                                    16 int16 = 32 bytes a row
//   scales  F16 or BF16 [8 * width][out]
//   zeros   the same type and shape  -z * scale, already rounded to that type: offsets, not integers
//
// A row's 32 bytes are two runs of 32 columns; 32-bit word a (0..3) of a run holds, lowest nibble first, the columns
// 2a, 2a + 8, 2a + 16, 2a + 24, then 2a + 1, 2a + 9, 2a + 17, 2a + 25. Rows of scales past the groups are padding.
#include "core/checkpoint/interleaved_rows.h"

namespace awq {
namespace {

// 16 bytes to 32 columns.
inline void unpack_run(const uint8_t* from, uint8_t* q) {
    // even columns are the low halves of the four words, odd ones the high halves
    const uint64_t x = load_u64(from), y = load_u64(from + 8);
    const uint64_t even = (x & 0xffff) | (x >> 16 & 0xffff0000) | (y & 0xffff) << 32 | (y & 0x0000ffff00000000) << 16;
    const uint64_t odd = (x >> 16 & 0xffff) | (x >> 32 & 0xffff0000) | (y & 0xffff0000) << 16 | (y & 0xffff000000000000);
    constexpr uint64_t nibble = 0x000f000f000f000f;
    for (int b = 0; b < 4; b++) store_u64(q + 8 * b, (even >> 4 * b & nibble) | (odd >> 4 * b & nibble) << 8);
}

class InterleavedRows final : public PackedRows {
public:
    InterleavedRows(const ModuleTensors& tensors, int64_t out, int64_t in, int64_t group_size, const TensorInfo& qweight,
                    const TensorInfo& scales, const TensorInfo& zeros)
        : PackedRows(tensors, out, in, group_size, scales.type) {
        reads_ = {{&qweight, &qweight_}, {&scales, &scales_}, {&zeros, &zeros_}};
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        if (!load()) return;
        for (int64_t i = 0; i < count; i++) {
            const int64_t row = first + i;
            const uint8_t* from = qweight_.data.get() + row / 4 * in * 2 + row % 4 * 32;  // blocks of the four rows: 128 bytes
            uint8_t* to = q + i * in;
            for (int64_t k = 0; k < in; k += 64) {
                unpack_run(from + k * 2, to + k);
                unpack_run(from + k * 2 + 16, to + k + 32);
            }
        }
        read_columns(scales_, groups_, out, first, count, scale);
        read_columns(zeros_, groups_, out, first, count, offset);
    }

private:
    TensorData qweight_, scales_, zeros_;
};

}  // namespace

Result<int64_t> zeros_width(const ModuleTensors& tensors, int64_t in, int64_t group_size) {
    const int64_t multiple = group_size >= 128 ? 1 : group_size == 64 ? 2 : group_size == 32 ? 4 : 0;
    if (multiple == 0)
        return Status(Code::unsupported, quote(tensors.path, 200) + ": group_size " + std::to_string(group_size) +
                                             " found; 32, 64 or at least 128 expected in a GEMV layout");
    const int64_t words = (in / group_size + 7) / 8;
    return (words + multiple - 1) / multiple * multiple;
}

bool detect_interleaved(const ModuleTensors& tensors, int64_t out, int64_t in, std::string_view zeros) {
    return out % 4 == 0 && has_shape(tensors.find("qweight"), DType::i16, {out / 4, in}) &&
           (zeros == "scaled_zeros") == (tensors.find("scaled_zeros") != nullptr);
}

Result<std::unique_ptr<WeightRows>> open_interleaved(const ModuleTensors& tensors, const AwqConfig& config, int64_t out,
                                                     int64_t in, std::string_view zeros_name) {
    AWQ_ASSIGN(int64_t group_size, need_group_size(tensors, config, in));
    AWQ_ASSIGN(int64_t width, zeros_width(tensors, in, group_size));
    const std::string note = group_note(config, group_size);
    if (in % 64 != 0)
        return Status(Code::unsupported, quote(tensors.path, 200) + ": " + std::to_string(in) +
                                             " inputs found; a multiple of 64 expected in a GEMVFast layout");
    const TensorInfo* qweight = tensors.find("qweight");  // of the shape that detect_interleaved() has seen
    AWQ_ASSIGN(const TensorInfo* scales, need_tensor(tensors, "scales", {DType::f16, DType::bf16}, {8 * width, out}, note));
    AWQ_ASSIGN(const TensorInfo* zeros, need_tensor(tensors, zeros_name, {scales->type}, {8 * width, out}, note));
    AWQ_TRY(need_finite(tensors.checkpoint, *scales, in / group_size, out));
    AWQ_TRY(need_finite(tensors.checkpoint, *zeros, in / group_size, out));
    return std::unique_ptr<WeightRows>(
        new InterleavedRows(tensors, out, in, group_size, *qweight, *scales, *zeros));
}

}  // namespace awq
