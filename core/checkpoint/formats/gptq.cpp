// GPTQ, as AutoGPTQ and GPTQModel write it.
//
//   qweight I32 [in/8][out]      nibble i of word [w][n] is input 8w + i of output n
//   qzeros  I32 [groups][out/8]  nibble i of word [g][w] is of output 8w + i: z - 1 (checkpoint_format gptq) or z (gptq_v2)
//   scales  F16 or BF16 [groups][out]
//   g_idx   I32 [in]             group of each input; any order with desc_act, and may be absent without it
//
// Nothing in the tensors tells gptq from gptq_v2: here alone the configuration decides.
#include <algorithm>
#include "core/checkpoint/packed_rows.h"

namespace awq {
namespace {

class GptqRows final : public PackedRows {
public:
    GptqRows(const ModuleTensors& tensors, int64_t out, int64_t in, int64_t group_size, int zero_bias, const TensorInfo& qweight,
             const TensorInfo& qzeros, const TensorInfo& scales)
        : PackedRows(tensors, out, in, group_size, scales.type), zero_bias_(zero_bias) {
        reads_ = {{&qweight, &qweight_}, {&qzeros, &qzeros_}, {&scales, &scales_}};
        integer_zeros = true;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        if (!load()) return;
        for (int64_t done = 0; done < count; done += tile_out)
            unpack(first + done, std::min(tile_out, count - done), q + done * in);
        reorder_columns(input_order, count, in, q);
        read_columns(scales_, groups_, out, first, count, scale);
        const uint8_t* zeros = qzeros_.data.get();
        for (int64_t g = 0; g < groups_; g++, zeros += out / 8 * 4)
            for (int64_t i = 0; i < count; i++) {
                const int64_t n = first + i;
                const int z = static_cast<int>(load_u32(zeros + n / 8 * 4) >> 4 * (n % 8) & 15) + zero_bias_;
                offset[i * groups_ + g] = static_cast<float>(-z) * scale[i * groups_ + g];
            }
    }

private:
    // A tile of 64 inputs x 64 outputs: eight lines of the file in, 64 bytes a row out.
    static constexpr int64_t tile_out = 64, tile_words = 8;

    void unpack(int64_t first, int64_t rows, uint8_t* q) const {
        uint32_t tile[tile_words][tile_out];
        for (int64_t w = 0; w < in / 8; w += tile_words) {
            const int64_t words = std::min(tile_words, in / 8 - w);
            for (int64_t i = 0; i < words; i++)
                std::memcpy(tile[i], qweight_.data.get() + ((w + i) * out + first) * 4, static_cast<size_t>(rows) * 4);
            for (int64_t n = 0; n < rows; n++)
                for (int64_t i = 0; i < words; i++) store_u64(q + n * in + (w + i) * 8, spread_nibbles(tile[i][n]));
        }
    }

    int zero_bias_;
    TensorData qweight_, qzeros_, scales_;
};

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    const TensorInfo* qweight = tensors.find("qweight");
    if (in % 8 != 0 || !has_shape(qweight, DType::i32, {in / 8, out})) return false;
    return in / 8 != out || tensors.find("g_idx") || !scales_by_output(tensors, out);  // or GEMV's shape
}

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig& config, int64_t out, int64_t in) {
    AWQ_ASSIGN(int64_t group_size, need_group_size(tensors, config, in));
    const int64_t groups = in / group_size;
    const std::string note = group_note(config, group_size);
    if (out % 8 != 0)
        return Status(Code::unsupported,
                      quote(tensors.path, 200) + ": " + std::to_string(out) + " outputs found; a multiple of 8 expected in GPTQ");
    const TensorInfo* qweight = tensors.find("qweight");  // of the shape that detect() has seen
    AWQ_ASSIGN(const TensorInfo* qzeros, need_tensor(tensors, "qzeros", {DType::i32}, {groups, out / 8}, note));
    AWQ_ASSIGN(const TensorInfo* scales, need_tensor(tensors, "scales", {DType::f16, DType::bf16}, {groups, out}, note));
    AWQ_TRY(need_finite(tensors.checkpoint, *scales, groups, out));
    std::vector<int32_t> order;
    if (config.desc_act || tensors.find("g_idx")) {
        AWQ_ASSIGN(order, need_group_order(tensors, "g_idx", in, group_size));
    }
    const int zero_bias = config.checkpoint_format == "gptq_v2" ? 0 : 1;
    auto rows = std::make_unique<GptqRows>(tensors, out, in, group_size, zero_bias, *qweight, *qzeros, *scales);
    rows->input_order = std::move(order);
    return std::unique_ptr<WeightRows>(std::move(rows));
}

const char* const suffixes[] = {"qweight", "qzeros", "scales", "g_idx"};

}  // namespace

extern const WeightFormat format_gptq = {"gptq", "GPTQ (int32, words along the inputs, g_idx)", suffixes, detect, open};

}  // namespace awq
