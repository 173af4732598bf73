// The one layout of int4 matrices in CUDA memory, and the functions that write and read it on the host.
//
// Plain C++ without CUDA headers: tests check it on machines that have no GPU.
//
// A matrix is cut into units of 16 rows x 256 columns, stored tile by tile (a tile: 16 rows, all columns), so that any
// run of tiles is one contiguous range. A unit is
//
//     2048 bytes   the nibbles in the order of mma.m16n8k16's A fragments: 4 spans of 64 columns, in each 32 lanes x 16 bytes.
//                  Lane 4 g + t holds of k16-step j in its word j:  bits 0-3, 16-19: slot g, columns 2t, 2t + 1;
//                  bits 4-7, 20-23: slot g + 8, same columns;  bits 8-11, 24-27: slot g, columns 2t + 8, 2t + 9;
//                  bits 12-15, 28-31: slot g + 8, columns 2t + 8, 2t + 9.
//     then for each of its 256 / group groups: 16 scales (half), slot g and slot g + 8 side by side: {0, 8, 1, 9, ...}
//     then for each group: 16 zeros in the same order: bytes where zero points are integers, halves (the offset) elsewhere.
//
// A matrix of 8-bit values (an output head packed at load) is one of 4-bit values and twice the columns: first the low nibbles of
// all columns, then the high ones with 16 times the scale, and x is laid twice beside itself. So every kernel serves it.
//
// decode reads it as mma.sync fragments, prefill as wgmma A fragments (four tiles make the 64 rows of one wgmma).
// Slots are rows of the tile in an order that lets a thread store four neighbouring outputs (slot_row below). Rows and
// columns past the matrix are padding: nibbles, scales and offsets zero, and no kernel lets them reach an output.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include "core/weight.h"

namespace awq::cuda {

inline constexpr int tile_rows = 16;
inline constexpr int unit_columns = 256;
inline constexpr int unit_scales = 2048;  // where a unit's scales begin, behind its nibbles

struct Q4Layout {
    int64_t out = 0, in = 0;     // of one matrix (one expert); in: twice the source's where `eight`
    int group = 0;               // columns that share a scale, as the kernels see it: 32, 64 or 128
    int64_t source_group = 0;    // as the checkpoint has it: a multiple of `group`
    bool integer_zeros = false;  // w = (q - zero) * scale, zero 0..16 a byte; else w = q * scale + offset, offset a half
    bool eight = false;          // the source's values have 8 bits
    bool gated = false;          // gate | up stacked: tile i holds gate rows 8i..8i+7 and up rows 8i..8i+7

    int64_t source_in() const { return eight ? in / 2 : in; }
    // A group size that is no multiple of 32 has no layout here: such a weight is kept as dense halves.
    bool valid() const { return group != 0; }
    int64_t tiles() const { return gated ? (out / 2 + 7) / 8 : (out + tile_rows - 1) / tile_rows; }
    int64_t units() const { return (in + unit_columns - 1) / unit_columns; }  // of a tile
    int groups() const { return unit_columns / group; }                       // of a unit
    int64_t unit_bytes() const { return unit_scales + groups() * (integer_zeros ? 48 : 64); }
    int64_t tile_bytes() const { return units() * unit_bytes(); }
    int64_t bytes() const { return tiles() * tile_bytes(); }  // a multiple of 32

    // Output row (members concatenated) in a slot of a tile; -1: padding.
    int64_t slot_row(int64_t tile, int slot) const {
        if (gated) {
            int64_t channel = tile * 8 + (slot & 7);
            return channel >= out / 2 ? -1 : slot < 8 ? channel : out / 2 + channel;
        }
        int64_t row = tile * tile_rows + 4 * ((slot & 7) >> 1) + (slot & 1) + (slot < 8 ? 0 : 2);
        return row < out ? row : -1;
    }
};

// The layout of one matrix of the weight (all experts have the same). Not valid() where the weight is dense, its group
// size is no multiple of 32, or its gate and up halves differ in size.
Q4Layout q4_layout(const WeightSpec& spec);

// Packs tiles first .. first + count - 1 of one matrix; `packed` receives count * tile_bytes() bytes. `members` are the
// matrix's sources, one behind the other in its rows. Scales and offsets are rounded to half.
void q4_pack(const Q4Layout& layout, std::span<const WeightRows* const> members, int64_t first, int64_t count, uint8_t* packed);
// The inverse: rows as the kernels see them, [out][source_in] floats, of a whole packed matrix.
void q4_unpack(const Q4Layout& layout, const uint8_t* packed, float* rows);

}  // namespace awq::cuda
