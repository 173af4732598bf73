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
        int64_t group = spec.group_size, most = spec.bits == 8 ? max_group_8 : max_group;
        for (int64_t parts = 1; group > most || group % 32 != 0 || spec.group_size % group != 0; parts++)
            group = spec.group_size / (parts + 1);
        layout.group = static_cast<int32_t>(group);
        layout.type = spec.bits == 8 ? WeightType::q8 : WeightType::q4;
        const bool zeros = spec.integer_zeros, eight = spec.bits == 8;
        if (spec.dtype == DType::f16) {
            layout.scales = zeros ? ScaleKind::f16_zero : ScaleKind::f16_offset;
            layout.name = zeros ? (eight ? "q8-zero-f16" : "q4-zero-f16") : (eight ? "q8-offset-f16" : "q4-offset-f16");
        } else if (spec.dtype == DType::bf16) {
            layout.scales = zeros ? ScaleKind::bf16_zero : ScaleKind::bf16_offset;
            layout.name = zeros ? (eight ? "q8-zero-bf16" : "q4-zero-bf16") : (eight ? "q8-offset-bf16" : "q4-offset-bf16");
        } else {
            layout.scales = ScaleKind::f32_offset;
            layout.name = eight ? "q8-offset-f32" : "q4-offset-f32";
        }
        const int64_t header = layout.scales == ScaleKind::f32_offset ? 128 : 64;
        layout.blocks = pairwise ? 2 * layout.pairs : (spec.out + block_rows - 1) / block_rows;
        layout.block_bytes = static_cast<size_t>(spec.in / group * (header + group * spec.bits * 2));
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

// Where column c of a run of 8 lies (kernels.h): in which of the run's words, and at which bit of a row's lane.
static int word_of(int bits, int64_t c) { return bits == 8 ? static_cast<int>(c / 2 % 2) : 0; }
static int shift_of(int bits, int64_t c) {
    return static_cast<int>((bits == 8 ? c / 4 * 8 : c / 2 * 4) + 16 * (c % 2));
}

void pack_block(const Layout& layout, const WeightSpec& spec, int count, const uint8_t* q, const float* scale,
                const float* offset, uint8_t* block) {
    const int64_t group = layout.group, file_groups = spec.in / spec.group_size, repeat = spec.group_size / group;
    const int bits = spec.bits, words = bits / 4;
    const uint32_t mask = (1u << bits) - 1;
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
                    uint16_t bits16 = half ? float_to_half(value) : float_to_bf16(value);
                    std::memcpy(block + 2 * at, &bits16, 2);
                }
            }
        block += layout.scales == ScaleKind::f32_offset ? 128 : 64;
        for (int64_t c = g * group; c < (g + 1) * group; c += 8, block += 64 * words)
            for (int r = 0; r < block_rows; r++) {
                uint32_t lane[2] = {};
                for (int i = 0; r < count && i < 8; i++)
                    lane[word_of(bits, i)] |= (q[r * spec.in + c + i] & mask) << shift_of(bits, i);
                for (int w = 0; w < words; w++) std::memcpy(block + 64 * w + 4 * r, &lane[w], 4);
            }
    }
}

void unpack_block_row(const Layout& layout, const WeightSpec& spec, const uint8_t* block, int row, float* to) {
    const int64_t group = layout.group;
    const int bits = spec.bits, words = bits / 4;
    const uint32_t mask = (1u << bits) - 1;
    const DType type = layout.scales == ScaleKind::f32_offset                                             ? DType::f32
                       : layout.scales == ScaleKind::f16_offset || layout.scales == ScaleKind::f16_zero ? DType::f16
                                                                                                          : DType::bf16;
    const int64_t element = type == DType::f32 ? 4 : 2;
    const bool zeros = layout.scales == ScaleKind::f16_zero || layout.scales == ScaleKind::bf16_zero;
    for (int64_t g = 0; g < spec.in / group; g++) {
        float scale, other;
        widen(type, block + row * element, 1, &scale);
        widen(type, block + (block_rows + row) * element, 1, &other);
        block += 2 * block_rows * element;
        for (int64_t c = 0; c < group; c += 8, block += 64 * words) {
            uint32_t lane[2];
            for (int w = 0; w < words; w++) std::memcpy(&lane[w], block + 64 * w + 4 * row, 4);
            for (int i = 0; i < 8; i++) {
                const float q = static_cast<float>(lane[word_of(bits, i)] >> shift_of(bits, i) & mask);
                *to++ = zeros ? (q - other) * scale : q * scale + other;
            }
        }
    }
}

void unpack_block(const Layout& layout, const WeightSpec& spec, const uint8_t* block, int count, float* rows) {
    for (int r = 0; r < count; r++) unpack_block_row(layout, spec, block, r, rows + r * spec.in);
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
