// compressed-tensors "pack-quantized" with 4 bits, as llm-compressor's AWQ and GPTQ recipes write it.
//
//   weight_packed      I32 [out][in/8]       nibbles in plain order: the signed value -8..7 plus 8
//   weight_scale       F16 or BF16 [out][groups]; one group with strategy "channel"
//   weight_zero_point  I32 [out/8][groups]   asymmetric only; packed along the rows: nibble i of word [w][g] is z of row
//                                            8w + i; older writers: I8 [out][groups], z - 8
//   weight_shape       I64 [2]               out, in
//   weight_g_idx       I32 [in]              actorder "group" only: group of each input
//
// The group size is the tensors'; config_groups must have it too.
#include <algorithm>
#include "core/checkpoint/packed_rows.h"

namespace awq {
namespace {

class CompressedRows final : public PackedRows {
public:
    CompressedRows(const ModuleTensors& tensors, int64_t out, int64_t in, int64_t group_size, const TensorInfo& packed,
                   const TensorInfo& scale, const TensorInfo* zero_point)
        : PackedRows(tensors, out, in, group_size, scale.type) {
        reads_ = {{&packed, &packed_}, {&scale, &scale_}};
        if (zero_point) reads_.emplace_back(zero_point, &zero_point_);
        integer_zeros = true;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        if (!load()) return;
        unpack_nibbles(packed_.data.get() + first * (in / 2), count * in, q);
        reorder_columns(input_order, count, in, q);
        widen(scale_.type, scale_.data.get() + first * groups_ * 2, count * groups_, scale);
        for (int64_t i = 0; i < count; i++)
            for (int64_t g = 0; g < groups_; g++)
                offset[i * groups_ + g] = static_cast<float>(-zero(first + i, g)) * scale[i * groups_ + g];
    }

private:
    int zero(int64_t row, int64_t group) const {
        if (!zero_point_.data) return 8;
        if (zero_point_.type == DType::i8) return static_cast<int8_t>(zero_point_.data[row * groups_ + group]) + 8;
        return load_u32(zero_point_.data.get() + (row / 8 * groups_ + group) * 4) >> 4 * (row % 8) & 15;
    }
    TensorData packed_, scale_, zero_point_;    // the last without data: symmetric
};

// Whether one of config_groups has these weights; `listed` tells what they have. Where there are no config_groups
// nothing contradicts.
bool configured(const Json& quantization, int64_t group_size, int64_t in, bool& asymmetric, std::string& listed) {
    const Json* groups = quantization.find("config_groups");
    if (!groups || !groups->is_object()) return true;
    bool found = false;
    for (const auto& [name, group] : groups->members()) {
        const Json* weights = group.find("weights");
        const Json* bits = weights ? weights->find("num_bits") : nullptr;
        const Json* strategy = weights ? weights->find("strategy") : nullptr;
        const Json* size = weights ? weights->find("group_size") : nullptr;
        const Json* symmetric = weights ? weights->find("symmetric") : nullptr;
        const bool by_channel = strategy && strategy->is_string() && strategy->string() == "channel";
        const int64_t configured_size =
            by_channel || !size || !size->is_integer() || size->integer() == -1 ? in : size->integer();
        const int64_t configured_bits = bits && bits->is_integer() ? bits->integer() : 0;
        if (configured_size == group_size && configured_bits == 4) {
            asymmetric = symmetric && symmetric->is_bool() && !symmetric->boolean() && (asymmetric || !found);
            found = true;
        }
        if (listed.size() < 100)
            listed += (listed.empty() ? "" : ", ") + std::to_string(configured_bits) + " bits in groups of " +
                      std::to_string(configured_size);
    }
    return found;
}

bool detect(const ModuleTensors& tensors, const AwqConfig&, int64_t, int64_t) { return tensors.find("weight_packed") != nullptr; }

Result<std::unique_ptr<WeightRows>> open(const ModuleTensors& tensors, const AwqConfig&, int64_t out, int64_t in) {
    const Checkpoint& checkpoint = tensors.checkpoint;
    if (in % 8 != 0)
        return Status(Code::unsupported,
                      quote(tensors.path, 200) + ": " + std::to_string(in) + " inputs found; a multiple of 8 expected");
    AWQ_ASSIGN(const TensorInfo* packed, need_tensor(tensors, "weight_packed", {DType::i32}, {out, in / 8}));
    if (tensors.find("weight_shape")) {
        AWQ_ASSIGN(const TensorInfo* shape, need_tensor(tensors, "weight_shape", {DType::i64}, {2}));
        AWQ_ASSIGN(TensorData size, checkpoint.read(*shape));
        const int64_t rows = static_cast<int64_t>(load_u64(size.data.get())), cols = static_cast<int64_t>(load_u64(size.data.get() + 8));
        if (rows != out || cols != in)
            return tensor_error(checkpoint, *shape,
                                "[" + std::to_string(rows) + ", " + std::to_string(cols) + "] found; [" + std::to_string(out) +
                                    ", " + std::to_string(in) + "] expected");
    }

    // in / groups is the group size, so any number of groups that divides `in` is sound in itself
    const TensorInfo* scale = tensors.find("weight_scale");
    int64_t groups = 1;
    if (scale && scale->shape.size() == 2 && scale->shape[1] > 0 && scale->shape[1] <= static_cast<uint64_t>(in) &&
        in % scale->shape[1] == 0)
        groups = static_cast<int64_t>(scale->shape[1]);
    AWQ_ASSIGN(scale, need_tensor(tensors, "weight_scale", {DType::f16, DType::bf16}, {out, groups}));
    bool asymmetric = false;
    std::string listed;
    if (!configured(checkpoint.quantization(), in / groups, in, asymmetric, listed))
        return tensor_error(checkpoint, *scale,
                            tensor_text(*scale) + " found, which is 4 bits in groups of " + std::to_string(in / groups) + "; " +
                                (listed.empty() ? "nothing" : listed) + " expected (config_groups)");
    AWQ_TRY(need_finite(checkpoint, *scale, out, groups));

    const TensorInfo* zero_point = tensors.find("weight_zero_point");
    if (zero_point && zero_point->known && zero_point->type == DType::i8) {
        AWQ_ASSIGN(zero_point, need_tensor(tensors, "weight_zero_point", {DType::i8}, {out, groups}));
        AWQ_ASSIGN(TensorData zeros, checkpoint.read(*zero_point));
        for (int64_t i = 0; i < out * groups; i++)
            if (int z = static_cast<int8_t>(zeros.data[i]); z < -8 || z > 7)
                return tensor_error(checkpoint, *zero_point,
                                    "[" + std::to_string(i / groups) + ", " + std::to_string(i % groups) +
                                        "]: " + std::to_string(z) + " found; -8 .. 7 expected");
    } else if (zero_point || asymmetric) {
        AWQ_ASSIGN(zero_point, need_tensor(tensors, "weight_zero_point", {DType::i32}, {(out + 7) / 8, groups}));
    }

    auto rows = std::make_unique<CompressedRows>(tensors, out, in, in / groups, *packed, *scale, zero_point);
    if (tensors.find("weight_g_idx")) {
        AWQ_ASSIGN(rows->input_order, need_group_order(tensors, "weight_g_idx", in, in / groups));
    }
    return std::unique_ptr<WeightRows>(std::move(rows));
}

const char* const suffixes[] = {"weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"};

}  // namespace

extern const WeightFormat format_compressed_tensors = {
    "compressed-tensors", "compressed-tensors pack-quantized (int32, output-major)", suffixes, detect, open};

}  // namespace awq
