// How a weight lies in the CPU backend's memory, all of it a pure function of its spec; packing and unpacking.
//
//   q4-*, q8-* blocks of 16 rows with their scales (kernels.h), for groups of a multiple of 32 columns
//   rows-*     plain rows in the file's type: f16, bf16, else f32 (also quantised weights in groups of odd sizes)
//   vector-f32 a vector
#pragma once
#include "backends/cpu/kernels.h"
#include "core/weight.h"

namespace awq::cpu {

struct Layout {
    const char* name;
    WeightType type;
    ScaleKind scales;    // of packed types, as are the next three
    int32_t group;       // columns of one header; divides the weight's own group size
    int64_t blocks;      // of one expert; a gate_up weight's alternate between gate and up
    size_t block_bytes;
    size_t expert_bytes, bytes;
    int64_t pairs;  // units of work of one expert
    bool packed() const { return type == WeightType::q4 || type == WeightType::q8; }
};
Layout layout_of(const WeightSpec& spec);

// A gate_up weight's blocks alternate; others follow their rows. First row and number of rows of block b.
struct BlockRows {
    int64_t first;
    int count;
};
BlockRows rows_of_block(const WeightSpec& spec, int64_t block);

// Rows [first, first + count) of one expert as bytes and floats, to their places; count rows begin at a block's first row.
void pack_block(const Isa& isa, const Layout& layout, const WeightSpec& spec, int count, const uint8_t* q, const float* scale,
                const float* offset, uint8_t* block);
void unpack_block(const Layout& layout, const WeightSpec& spec, const uint8_t* block, int count, float* rows);
// One row of a block, as unpack_block gives it.
void unpack_block_row(const Layout& layout, const WeightSpec& spec, const uint8_t* block, int row, float* to);

}  // namespace awq::cpu
