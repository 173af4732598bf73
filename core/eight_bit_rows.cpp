#include "core/eight_bit_rows.h"
#include <algorithm>
#include <cmath>

namespace awq {
namespace {

constexpr int zero_point = 128;

class EightBitRows : public WeightRows {
public:
    EightBitRows(std::shared_ptr<const WeightRows> source, int64_t group) : source_(std::move(source)) {
        out = source_->out;
        in = source_->in;
        group_size = group;
        bits = 8;
        integer_zeros = true;
        dtype = DType::f16;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        std::vector<float> rows(static_cast<size_t>(count * in));
        source_->read_dense(first, count, rows.data());
        for (int64_t at = 0; at < count * in; at += group_size, scale++, offset++) {
            const float* from = rows.data() + at;
            float largest = 0;
            for (int64_t k = 0; k < group_size; k++) largest = std::max(largest, std::fabs(from[k]));
            // The scale as it is kept: what it lost in rounding, the values make up for. A float16 spans any head's values.
            *scale = half_to_float(float_to_half(largest / 127));
            *offset = -zero_point * *scale;
            const float factor = *scale > 0 ? 1 / *scale : 0;
            for (int64_t k = 0; k < group_size; k++)
                q[at + k] = static_cast<uint8_t>(std::clamp(std::nearbyint(from[k] * factor), -127.0f, 127.0f) + zero_point);
        }
    }
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        std::vector<uint8_t> q(static_cast<size_t>(count * in));
        std::vector<float> scale(q.size() / static_cast<size_t>(group_size)), offset(scale.size());
        read_quantized(first, count, q.data(), scale.data(), offset.data());
        for (size_t i = 0; i < q.size(); i++) {
            const size_t group = i / static_cast<size_t>(group_size);
            rows[i] = static_cast<float>(q[i]) * scale[group] + offset[group];
        }
    }
    Status status() const override { return source_->status(); }
    void forget() const override { source_->forget(); }

private:
    std::shared_ptr<const WeightRows> source_;
};

}  // namespace

int64_t eight_bit_group(int64_t in) {
    for (int64_t group = 256; group >= 32; group -= 32)
        if (in % group == 0) return group;
    return 0;
}

std::shared_ptr<const WeightRows> eight_bit_rows(std::shared_ptr<const WeightRows> source, int64_t group_size) {
    return std::make_shared<EightBitRows>(std::move(source), group_size);
}

}  // namespace awq
