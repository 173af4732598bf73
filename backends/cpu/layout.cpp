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

static WeightType scale_type(ScaleKind kind) {
    switch (kind) {
        case ScaleKind::f16_offset:
        case ScaleKind::f16_zero: return WeightType::f16;
        case ScaleKind::bf16_offset:
        case ScaleKind::bf16_zero: return WeightType::bf16;
        case ScaleKind::f32_offset: break;
    }
    return WeightType::f32;
}

// Where column c of a run of 8 lies (kernels.h): in which of the run's words, and at which bit of a row's lane.
static int word_of(int bits, int64_t c) { return bits == 8 ? static_cast<int>(c / 2 % 2) : 0; }
static int shift_of(int bits, int64_t c) {
    return static_cast<int>((bits == 8 ? c / 4 * 8 : c / 2 * 4) + 16 * (c % 2));
}

// The words of one row's run of 8 columns; as word_of and shift_of say, all columns at once.
static void pack_run(int bits, const uint8_t* q, uint32_t words[2]) {
    uint64_t all;
    std::memcpy(&all, q, 8);  // column c in byte c: the machine is little-endian
    if (bits == 8) {
        const uint32_t low = static_cast<uint32_t>(all), high = static_cast<uint32_t>(all >> 32);
        for (int w = 0; w < 2; w++) {
            const uint32_t a = low >> 16 * w, b = high >> 16 * w;
            words[w] = (a & 0xff) | (b & 0xff) << 8 | (a >> 8 & 0xff) << 16 | (b >> 8 & 0xff) << 24;
        }
        return;
    }
    uint64_t even = all & 0x000f000f000f000f, odd = all >> 8 & 0x000f000f000f000f;
    even |= even >> 12, odd |= odd >> 12;  // nibbles 0, 1 and, 32 bits further, 2, 3
    even |= even >> 24, odd |= odd >> 24;
    words[0] = static_cast<uint32_t>((even & 0xffff) | (odd & 0xffff) << 16);
}

void pack_block(const Isa& isa, const Layout& layout, const WeightSpec& spec, int count, const uint8_t* q, const float* scale,
                const float* offset, uint8_t* block) {
    const int64_t group = layout.group, file_groups = spec.in / spec.group_size, repeat = spec.group_size / group;
    const int bits = spec.bits, words = bits / 4;
    const bool zeros = layout.scales == ScaleKind::f16_zero || layout.scales == ScaleKind::bf16_zero;
    for (int64_t g = 0; g < spec.in / group; g++) {
        float header[2 * block_rows] = {};
        for (int r = 0; r < count; r++) {
            const float s = scale[r * file_groups + g / repeat], o = offset[r * file_groups + g / repeat];
            header[r] = s;
            // -z * s: the zero point itself, exact in any type
            header[block_rows + r] = !zeros ? o : s != 0 && std::isfinite(s) ? std::nearbyint(-o / s) : 0;
        }
        isa.narrow(scale_type(layout.scales), header, 2 * block_rows, block);
        block += layout.scales == ScaleKind::f32_offset ? 128 : 64;
        for (int64_t c = g * group; c < (g + 1) * group; c += 8, block += 64 * words)
            for (int r = 0; r < block_rows; r++) {
                uint32_t lanes[2] = {};
                if (r < count) pack_run(bits, q + r * spec.in + c, lanes);
                for (int w = 0; w < words; w++) std::memcpy(block + 64 * w + 4 * r, &lanes[w], 4);
            }
    }
}

void unpack_block_row(const Layout& layout, const WeightSpec& spec, const uint8_t* block, int row, float* to) {
    const int64_t group = layout.group;
    const int bits = spec.bits, words = bits / 4;
    const uint32_t mask = (1u << bits) - 1;
    const WeightType scales = scale_type(layout.scales);
    const DType type = scales == WeightType::f32 ? DType::f32 : scales == WeightType::f16 ? DType::f16 : DType::bf16;
    const int64_t element = type == DType::f32 ? 4 : 2;
    const bool zeros = layout.scales == ScaleKind::f16_zero || layout.scales == ScaleKind::bf16_zero;
    for (int64_t g = 0; g < spec.in / group; g++) {
        float scale, other;
        widen(type, block + row * element, 1, &scale);
        widen(type, block + (block_rows + row) * element, 1, &other);
        block += 2 * block_rows * element;
        for (int64_t c = 0; c < group; c += 8, block += 64 * words) {
            uint32_t lane[2] = {};
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

}  // namespace awq::cpu
