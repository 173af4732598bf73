// AutoAWQ GEMM, also what exllama-versioned files and the first llm-awq files (2023) hold.
//
//   qweight I32 [in][out/8]      input-major: word w of row k holds outputs 8w .. 8w+7 of input k
//   qzeros  I32 [groups][out/8]  packed the same way
//   scales  F16 or BF16 [groups][out]
//
// The nibbles of a word, lowest first, are outputs 0 2 4 6 1 3 5 7; output n is nibble 0 4 1 5 2 6 3 7 of n.
#include <algorithm>
#include "core/checkpoint/packed_rows.h"

namespace awq {
namespace {

constexpr int nibble_of_output[8] = {0, 4, 1, 5, 2, 6, 3, 7};

class GemmRows final : public PackedRows {
public:
    GemmRows(const ModuleTensors& tensors, int64_t out, int64_t in, int64_t group_size, const TensorInfo& qweight,
             const TensorInfo& qzeros, const TensorInfo& scales)
        : PackedRows(tensors, out, in, group_size, scales.type) {
        reads_ = {{&qweight, &qweight_}, {&qzeros, &qzeros_}, {&scales, &scales_}};
        integer_zeros = true;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        if (!load()) return;
        for (int64_t begin = first; begin < first + count; begin = (begin / (8 * tile_words) + 1) * (8 * tile_words)) {
            int64_t end = std::min(first + count, (begin / (8 * tile_words) + 1) * (8 * tile_words));
            unpack(begin, end, q + (begin - first) * in);
        }
        read_columns(scales_, groups_, out, first, count, scale);
        const uint8_t* zeros = qzeros_.data.get();
        for (int64_t g = 0; g < groups_; g++, zeros += out / 8 * 4)
            for (int64_t i = 0; i < count; i++) {
                const int64_t n = first + i;
                const int z = load_u32(zeros + n / 8 * 4) >> 4 * nibble_of_output[n % 8] & 15;
                offset[i * groups_ + g] = static_cast<float>(-z) * scale[i * groups_ + g];
            }
    }

private:
    // The file lies across the rows wanted. A tile of 64 inputs x 128 outputs is copied first, whole cache lines at a
    // time (they are a page or more apart in the file), transposed in registers, and written 64 bytes a row.
    static constexpr int64_t tile_words = 16, tile_in = 64;

    void unpack(int64_t begin, int64_t end, uint8_t* q) const {
        const int64_t first_word = begin / 8, words = (end + 7) / 8 - first_word;
        uint32_t tile[tile_in][tile_words] = {};
        uint8_t line[8][tile_in];
        for (int64_t k = 0; k < in; k += tile_in) {
            const int64_t inputs = std::min(tile_in, in - k);
            for (int64_t i = 0; i < inputs; i++) {
                const uint8_t* from = qweight_.data.get() + ((k + i) * (out / 8) + first_word) * 4;
                if (words == tile_words) {
                    std::memcpy(tile[i], from, sizeof tile[i]);  // of a size known here: worth the branch
                } else {
                    std::memcpy(tile[i], from, static_cast<size_t>(words) * 4);
                }
            }
            for (int64_t w = 0; w < words; w++) {
                for (int64_t i = 0; i < tile_in; i += 8) {
                    uint32_t word[8];
                    uint64_t column[8];
#pragma GCC unroll 8
                    for (int64_t j = 0; j < 8; j++) word[j] = tile[i + j][w];
                    transpose_nibbles(word, column);
#pragma GCC unroll 8
                    for (int n = 0; n < 8; n++) store_u64(&line[n][i], column[nibble_of_output[n]]);
                }
                for (int n = 0; n < 8; n++) {
                    const int64_t row = (first_word + w) * 8 + n;
                    if (row < begin || row >= end) continue;
                    uint8_t* to = q + (row - begin) * in + k;
                    if (inputs == tile_in) {
                        std::memcpy(to, line[n], tile_in);
                    } else {
                        std::memcpy(to, line[n], static_cast<size_t>(inputs));
                    }
                }
            }
        }
    }

    TensorData qweight_, qzeros_, scales_;
};

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    const TensorInfo* qweight = tensors.find("qweight");
    return out % 8 == 0 && has_shape(qweight, DType::i32, {in, out / 8}) && !(in == out && scales_by_output(tensors, out));
}

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in) {
    AWQ_ASSIGN(int64_t group_size, need_group_size(tensors, config, in));
    const int64_t groups = in / group_size;
    const std::string note = group_note(config, group_size);
    const TensorInfo* qweight = tensors.find("qweight");  // of the shape that detect() has seen
    AWQ_ASSIGN(const TensorInfo* qzeros, need_tensor(tensors, "qzeros", {DType::i32}, {groups, out / 8}, note));
    AWQ_ASSIGN(const TensorInfo* scales, need_tensor(tensors, "scales", {DType::f16, DType::bf16}, {groups, out}, note));
    AWQ_TRY(need_finite(tensors.checkpoint, *scales, groups, out));
    return std::unique_ptr<WeightRows>(new GemmRows(tensors, out, in, group_size, *qweight, *qzeros, *scales));
}

const char* const suffixes[] = {"qweight", "qzeros", "scales"};

}  // namespace

extern const WeightFormat format_awq_gemm = {"gemm", "AutoAWQ GEMM (int32, input-major, nibbles 0 4 1 5 2 6 3 7)", suffixes,
                                             detect, open};

}  // namespace awq
