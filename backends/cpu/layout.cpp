#include "backends/cpu/layout.h"
#include <algorithm>
#include <cmath>
#include <cstring>

namespace awq::cpu {

Layout layout_of(const WeightSpec& spec) {
    Layout layout{};
    const bool pairwise = spec.stack == Stack::gate_up;
    const int64_t half = spec.out / 2;
    layout.pairs = pairwise ? (half + block_rows - 1) / block_rows : (spec.out + pair_rows - 1) / pair_rows;
    if (spec.kind != WeightKind::vector && spec.group_size > 0 && spec.group_size % 32 == 0 && spec.in % spec.group_size == 0) {
        // A header for each group, or several for one too long: the largest divisor that is a multiple of 32.
        int64_t group = spec.group_size;
        for (int64_t parts = 1; group > max_group || group % 32 != 0 || spec.group_size % group != 0; parts++)
            group = spec.group_size / (parts + 1);
        layout.group = static_cast<int32_t>(group);
        layout.type = WeightType::q4;
        const bool zeros = spec.integer_zeros;
        if (spec.dtype == DType::f16) {
            layout.scales = zeros ? ScaleKind::f16_zero : ScaleKind::f16_offset;
            layout.name = zeros ? "q4-zero-f16" : "q4-offset-f16";
        } else if (spec.dtype == DType::bf16) {
            layout.scales = zeros ? ScaleKind::bf16_zero : ScaleKind::bf16_offset;
            layout.name = zeros ? "q4-zero-bf16" : "q4-offset-bf16";
        } else {
            layout.scales = ScaleKind::f32_offset;
            layout.name = "q4-offset-f32";
        }
        const int64_t header = layout.scales == ScaleKind::f32_offset ? 128 : 64;
        layout.blocks = pairwise ? 2 * layout.pairs : (spec.out + block_rows - 1) / block_rows;
        layout.block_bytes = static_cast<size_t>(spec.in / group * (header + group * 8));
        layout.expert_bytes = static_cast<size_t>(layout.blocks) * layout.block_bytes;
    } else {
        layout.type = spec.group_size > 0 || spec.kind == WeightKind::vector ? WeightType::f32
                      : spec.dtype == DType::f16                             ? WeightType::f16
                      : spec.dtype == DType::bf16                            ? WeightType::bf16
                                                                             : WeightType::f32;
        layout.name = spec.kind == WeightKind::vector   ? "vector-f32"
                      : layout.type == WeightType::f16  ? "rows-f16"
                      : layout.type == WeightType::bf16 ? "rows-bf16"
                                                        : "rows-f32";
        layout.expert_bytes = static_cast<size_t>(spec.out * spec.in) * (layout.type == WeightType::f32 ? 4 : 2);
    }
    layout.bytes = layout.expert_bytes * static_cast<size_t>(spec.experts);
    return layout;
}

BlockRows rows_of_block(const WeightSpec& spec, int64_t block) {
    const bool pairwise = spec.stack == Stack::gate_up;
    const int64_t rows = pairwise ? spec.out / 2 : spec.out, within = (pairwise ? block / 2 : block) * block_rows;
    return {(pairwise ? block % 2 * rows : 0) + within, static_cast<int>(std::clamp<int64_t>(rows - within, 0, block_rows))};
}

// Bit at which column c of a word's 8 lies (kernels.h).
static int nibble_shift(int64_t c) { return static_cast<int>(4 * (c % 8 / 2) + 16 * (c % 2)); }

void pack_block(const Layout& layout, const WeightSpec& spec, int count, const uint8_t* q, const float* scale,
                const float* offset, uint8_t* block) {
    const int64_t group = layout.group, file_groups = spec.in / spec.group_size, repeat = spec.group_size / group;
    for (int64_t g = 0; g < spec.in / group; g++) {
        for (int part = 0; part < 2; part++)
            for (int r = 0; r < block_rows; r++) {
                float s = r < count ? scale[r * file_groups + g / repeat] : 0, value = s;
                if (part == 1) {
                    value = r < count ? offset[r * file_groups + g / repeat] : 0;
                    // -z * s: the zero point itself, exact in any type
                    if (layout.scales == ScaleKind::f16_zero || layout.scales == ScaleKind::bf16_zero)
                        value = s != 0 && std::isfinite(s) ? std::nearbyint(-value / s) : 0;
                }
                const int at = part * block_rows + r;
                if (layout.scales == ScaleKind::f32_offset) {
                    std::memcpy(block + 4 * at, &value, 4);
                } else {
                    const bool half = layout.scales == ScaleKind::f16_offset || layout.scales == ScaleKind::f16_zero;
                    uint16_t bits = half ? float_to_half(value) : float_to_bf16(value);
                    std::memcpy(block + 2 * at, &bits, 2);
                }
            }
        block += layout.scales == ScaleKind::f32_offset ? 128 : 64;
        for (int64_t c = g * group; c < (g + 1) * group; c += 8, block += 64)
            for (int r = 0; r < block_rows; r++) {
                uint32_t word = 0;
                for (int i = 0; r < count && i < 8; i++)
                    word |= static_cast<uint32_t>(q[r * spec.in + c + i] & 15) << nibble_shift(i);
                std::memcpy(block + 4 * r, &word, 4);
            }
    }
}

void unpack_block(const Layout& layout, const WeightSpec& spec, const uint8_t* block, int count, float* rows) {
    const int64_t group = layout.group;
    for (int64_t g = 0; g < spec.in / group; g++) {
        float header[2 * block_rows];
        switch (layout.scales) {
            case ScaleKind::f16_offset:
            case ScaleKind::f16_zero: widen(DType::f16, block, 2 * block_rows, header); break;
            case ScaleKind::bf16_offset:
            case ScaleKind::bf16_zero: widen(DType::bf16, block, 2 * block_rows, header); break;
            case ScaleKind::f32_offset: widen(DType::f32, block, 2 * block_rows, header); break;
        }
        const bool zeros = layout.scales == ScaleKind::f16_zero || layout.scales == ScaleKind::bf16_zero;
        block += layout.scales == ScaleKind::f32_offset ? 128 : 64;
        for (int64_t c = g * group; c < (g + 1) * group; c += 8, block += 64)
            for (int r = 0; r < count; r++) {
                uint32_t word;
                std::memcpy(&word, block + 4 * r, 4);
                for (int i = 0; i < 8; i++) {
                    const float q = static_cast<float>(word >> nibble_shift(i) & 15), scale = header[r],
                                other = header[block_rows + r];
                    rows[r * spec.in + c + i] = zeros ? (q - other) * scale : q * scale + other;
                }
            }
    }
}

void pack_rows(const Layout& layout, const float* from, int64_t count, void* to) {
    if (layout.type == WeightType::f32) {
        std::memcpy(to, from, static_cast<size_t>(count) * 4);
        return;
    }
    uint16_t* bits = static_cast<uint16_t*>(to);
    for (int64_t i = 0; i < count; i++)
        bits[i] = layout.type == WeightType::f16 ? float_to_half(from[i]) : float_to_bf16(from[i]);
}

}  // namespace awq::cpu
