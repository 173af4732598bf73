// Packing of int4 rows into CUDA's unit order and back (pack_q4.h says what the order is).
#include "backends/cuda/pack_q4.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>
#include "core/tensor.h"

namespace awq::cuda {
namespace {

// Slot of a tile -> its place among the 16 scales or zeros of a group.
int meta_place(int slot) { return 2 * (slot & 7) + (slot >> 3); }

struct UnitView {
    uint8_t* nibbles;  // unit_scales bytes
    uint8_t* scales;   // [groups][16] halves
    uint8_t* zeros;    // [groups][16] bytes or halves
};
UnitView unit_at(const Q4Layout& layout, uint8_t* tile, int64_t unit) {
    uint8_t* at = tile + unit * layout.unit_bytes();
    return {at, at + unit_scales, at + unit_scales + layout.groups() * 32};
}

// Where column `column` (0..255) of a slot lies in its unit: byte, and the shift of its nibble in it.
struct Place {
    int byte, shift;
};
Place nibble_place(int slot, int column) {
    int span = column / 64, step = column % 64 / 16, k = column % 16;
    int lane = 4 * (slot & 7) + k % 8 / 2;
    int bit = 16 * (k & 1) + 8 * (k / 8) + 4 * (slot >> 3);
    return {span * 512 + lane * 16 + step * 4 + bit / 8, bit % 8};
}

uint16_t load16(const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return bits;
}
void store16(uint8_t* at, uint16_t bits) { std::memcpy(at, &bits, 2); }

}  // namespace

Q4Layout q4_layout(const WeightSpec& spec) {
    Q4Layout layout;
    if (spec.group_size <= 0) return layout;
    layout.out = spec.out;
    layout.eight = spec.bits == 8;
    layout.in = layout.eight ? 2 * spec.in : spec.in;
    layout.integer_zeros = spec.integer_zeros;
    layout.gated = spec.stack == Stack::gate_up;
    layout.source_group = spec.group_size;
    if (layout.gated && (spec.member_rows.size() != 2 || spec.member_rows[0] != spec.member_rows[1])) return layout;
    // One group over all columns may be padded to any length; others are cut into the largest common piece.
    int64_t group = spec.group_size >= layout.in ? 128 : std::gcd(spec.group_size, int64_t{128});
    if (layout.eight && spec.in % spec.group_size) return layout;  // a group would reach from the low nibbles into the high ones
    if (group >= 32) layout.group = static_cast<int>(group);
    return layout;
}

void q4_pack(const Q4Layout& layout, std::span<const WeightRows* const> members, int64_t first, int64_t count, uint8_t* packed) {
    const int64_t in = layout.source_in(), source_groups = (in + layout.source_group - 1) / layout.source_group;
    std::vector<uint8_t> q(static_cast<size_t>(in));
    std::vector<float> scale(static_cast<size_t>(source_groups)), offset(static_cast<size_t>(source_groups));
    std::memset(packed, 0, static_cast<size_t>(count * layout.tile_bytes()));
    for (int64_t tile = first; tile < first + count; tile++) {
        uint8_t* to = packed + (tile - first) * layout.tile_bytes();
        for (int slot = 0; slot < tile_rows; slot++) {
            int64_t row = layout.slot_row(tile, slot);
            if (row < 0) continue;
            size_t m = 0;
            while (row >= members[m]->out) row -= members[m++]->out;
            members[m]->read_quantized(row, 1, q.data(), scale.data(), offset.data());
            for (int64_t unit = 0; unit < layout.units(); unit++) {
                UnitView view = unit_at(layout, to, unit);
                int64_t columns = std::min<int64_t>(unit_columns, layout.in - unit * unit_columns);
                for (int k = 0; k < columns; k++) {
                    Place place = nibble_place(slot, k);
                    const int64_t column = unit * unit_columns + k;
                    const int value = column < in ? q[static_cast<size_t>(column)] & 15 : q[static_cast<size_t>(column - in)] >> 4;
                    view.nibbles[place.byte] |= static_cast<uint8_t>(value << place.shift);
                }
                for (int g = 0; g < layout.groups() && g * layout.group < columns; g++) {
                    const int64_t column = unit * unit_columns + g * layout.group;
                    const bool high = column >= in;  // the high nibbles have the zero point (128 = 16 * 8), the low ones the offset
                    const auto source = static_cast<size_t>((high ? column - in : column) / layout.source_group);
                    int place = g * 16 + meta_place(slot);
                    store16(view.scales + 2 * place, float_to_half(high ? 16 * scale[source] : scale[source]));
                    if (layout.integer_zeros) {
                        float zero = scale[source] != 0 ? std::round(-offset[source] / scale[source]) : 0.0f;
                        if (layout.eight) zero = high ? zero / 16 : 0.0f;
                        view.zeros[place] = static_cast<uint8_t>(std::clamp(zero, 0.0f, 16.0f));
                    } else {
                        store16(view.zeros + 2 * place, float_to_half(high ? 0.0f : offset[source]));
                    }
                }
            }
        }
    }
}

void q4_unpack(const Q4Layout& layout, const uint8_t* packed, float* rows) {
    const int64_t in = layout.source_in();
    for (int64_t tile = 0; tile < layout.tiles(); tile++) {
        uint8_t* from = const_cast<uint8_t*>(packed) + tile * layout.tile_bytes();
        for (int slot = 0; slot < tile_rows; slot++) {
            int64_t row = layout.slot_row(tile, slot);
            if (row < 0) continue;
            for (int64_t k = 0; k < layout.in; k++) {
                UnitView view = unit_at(layout, from, k / unit_columns);
                int column = static_cast<int>(k % unit_columns);
                Place at = nibble_place(slot, column);
                int place = column / layout.group * 16 + meta_place(slot);
                float q = static_cast<float>(view.nibbles[at.byte] >> at.shift & 15);
                float scale = half_to_float(load16(view.scales + 2 * place));
                const float value = layout.integer_zeros ? (q - static_cast<float>(view.zeros[place])) * scale
                                                         : q * scale + half_to_float(load16(view.zeros + 2 * place));
                float& to = rows[row * in + k % in];
                to = k < in ? value : to + value;
            }
        }
    }
}

}  // namespace awq::cuda
