// AutoAWQ Marlin: symmetric, laid out for the tensor cores of that kernel.
//
//   qweight I32 [in/16][2 * out]   for each 16 inputs x 64 outputs a block of 128 words
//   scales  F16 or BF16 [groups][out], permuted within 64 outputs (one group: within 32)
//
// z is 8 throughout. Word 16c + 4t + j of a block (c 0..7, t and j 0..3) belongs to the outputs 16j + c, in nibbles
// 0 4 1 5, and 16j + c + 8, in nibbles 2 6 3 7: there the inputs 2t, 2t + 1, 2t + 8 and 2t + 9.
#include "core/checkpoint/packed_rows.h"

namespace awq {
namespace {

// Where the scale of output n lies, relative to the first of its 64 or 32.
int64_t scale_place(int64_t n, bool one_group) {
    if (!one_group) return n % 8 * 8 + n / 8;  // an 8 x 8 transposition
    // the file has, for each i of 0..3, the outputs 2i + {0 1 8 9 16 17 24 25}
    return n % 8 / 2 * 8 + n / 8 * 2 + n % 2;
}

class MarlinRows final : public PackedRows {
public:
    MarlinRows(const ModuleTensors& tensors, int64_t out, int64_t in, int64_t group_size, const TensorInfo& qweight,
               const TensorInfo& scales)
        : PackedRows(tensors, out, in, group_size, scales.type) {
        reads_ = {{&qweight, &qweight_}, {&scales, &scales_}};
        integer_zeros = true;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        if (!load()) return;
        for (int64_t block = first / 64; block * 64 < first + count; block++) unpack(block, first, count, q);
        const int64_t span = groups_ == 1 ? 32 : 64;
        for (int64_t i = 0; i < count; i++) {
            const int64_t n = first + i, place = n / span * span + scale_place(n % span, groups_ == 1);
            for (int64_t g = 0; g < groups_; g++) {
                widen(scales_.type, scales_.data.get() + (g * out + place) * 2, 1, scale + i * groups_ + g);
                offset[i * groups_ + g] = -8 * scale[i * groups_ + g];
            }
        }
    }

private:
    // 64 outputs, those of them that are wanted; 64 inputs at a time, so that a row is written in whole lines.
    void unpack(int64_t block, int64_t first, int64_t count, uint8_t* q) const {
        for (int64_t k = 0; k < in; k += 64) {
            const int64_t inputs = in - k < 64 ? in - k : 64;
            uint8_t line[64][64];
            for (int64_t i = 0; i < inputs; i += 16) {
                const uint8_t* words = qweight_.data.get() + ((k + i) / 16 * 2 * out + block * 128) * 4;
                for (int c = 0; c < 8; c++)
                    for (int t = 0; t < 4; t++)
                        for (int j = 0; j < 4; j++) {
                            const uint32_t word = load_u32(words + (16 * c + 4 * t + j) * 4);
                            for (int half = 0; half < 2; half++) {
                                uint8_t* to = &line[16 * j + c + 8 * half][i + 2 * t];
                                const uint32_t w = word >> 8 * half;
                                to[0] = w & 15;
                                to[1] = w >> 16 & 15;
                                to[8] = w >> 4 & 15;
                                to[9] = w >> 20 & 15;
                            }
                        }
            }
            for (int64_t n = 0; n < 64; n++) {
                const int64_t row = block * 64 + n - first;
                if (row >= 0 && row < count) std::memcpy(q + row * in + k, line[n], static_cast<size_t>(inputs));
            }
        }
    }

    TensorData qweight_, scales_;
};

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    return in % 16 == 0 && has_shape(tensors.find("qweight"), DType::i32, {in / 16, 2 * out}) && !tensors.find("qzeros");
}

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in) {
    AWQ_ASSIGN(int64_t group_size, need_group_size(tensors, config, in));
    if (out % 64 != 0)
        return Status(Code::unsupported, quote(tensors.path, 200) + ": " + std::to_string(out) +
                                             " outputs found; a multiple of 64 expected in Marlin");
    const int64_t groups = in / group_size;
    const TensorInfo* qweight = tensors.find("qweight");  // of the shape that detect() has seen
    AWQ_ASSIGN(const TensorInfo* scales,
               need_tensor(tensors, "scales", {DType::f16, DType::bf16}, {groups, out}, group_note(config, group_size)));
    AWQ_TRY(need_finite(tensors.checkpoint, *scales, groups, out));
    return std::unique_ptr<WeightRows>(new MarlinRows(tensors, out, in, group_size, *qweight, *scales));
}

const char* const suffixes[] = {"qweight", "scales"};

}  // namespace

extern const WeightFormat format_awq_marlin = {"marlin", "AutoAWQ Marlin (int32, 16 x 64 tiles, symmetric)", suffixes, detect,
                                               open};

}  // namespace awq
