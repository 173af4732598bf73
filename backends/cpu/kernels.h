// What a kernel file offers, as plain structs and one table of functions for each instruction set.
//
// Kernel files are compiled once for each instruction set with its own compiler flags, so what they share with the rest of
// the program must hold no code at all: an inline function or a template compiled for AVX-512 could be the copy that the
// linker keeps for everybody. This header is therefore plain data; the operators' C++ (graph, tensors, threads) lives one
// level up and is compiled for the base machine.
#pragma once
#include <cstddef>
#include <cstdint>

namespace awq::cpu {

// ---- 4-bit and 8-bit matrices: layouts "q4" and "q8"
//
// Rows go in blocks of 16. A block holds, one behind the other, for each group of columns: a header (16 scales, then 16
// offsets or zero points), then group / 8 words of 64 bytes. In a word the 32 bits of lane r belong to row r and hold its
// next 8 columns: column 2 i is nibble i, column 2 i + 1 is nibble 4 + i, so that a shift by 4 i and a mask give pairs of
// 16-bit integers (2 i, 2 i + 1) ready for a pairwise multiply-add; a shift by 0 or 4 and a mask give four bytes, columns
// 0 4 1 5 and 2 6 3 7. With 8 bits those bytes are two words: what a 4-bit word holds in its even nibbles, and in its odd
// ones. One block is one stream of memory.
inline constexpr int block_rows = 16;
inline constexpr int pair_rows = 2 * block_rows;  // the unit of work: two blocks
inline constexpr int max_group = 512;             // so that 15 * 32767 * group fits 32 bits, a group's sum 24 bits
inline constexpr int max_group_8 = 256;           // likewise, 255 * 32767 * group

// Two-byte headers of f16 or bf16 with offsets (w = q * scale + offset) or integer zero points (w = (q - zero) * scale:
// exact, where an offset rounded to 16 bits is not); four-byte ones for scales that are float32.
enum class ScaleKind : int32_t { f16_offset, f16_zero, bf16_offset, bf16_zero, f32_offset };
enum class WeightType : int32_t { q4, q8, f16, bf16, f32 };

// One matrix product y[t][n] = sum_k w[n][k] x[t][k] with what is done to y on its way to memory.
struct LinearTask {
    // the weight: q4 or q8 blocks, or dense rows
    WeightType type;
    const void* weight;
    int64_t out, in;
    int32_t group;  // q4, q8: columns of a header
    ScaleKind scales;
    // Rows are a gate's out / 2 and then an up projection's out / 2. q4, q8: blocks alternate between the two.
    bool gate_up;
    // the input: floats for dense weights, pack_row's output for packed ones
    const void* x;
    int64_t x_stride;      // elements
    const float* x_scale;  // [tokens]                    (q4, q8)
    const float* x_sums;   // [tokens][in / group]        (q4, q8)
    // the output
    float* y;
    int64_t y_stride;
    const float* bias;      // [out] or null
    const float* residual;  // added; or null
    int64_t residual_stride;
    bool gated;          // y = activation(gate) * up, out / 2 columns; needs gate_up
    int32_t activation;  // awq::Activation
};

// ---- attention over pages of 64 positions
//
// A page holds, for each layer and kv head, K transposed [head_dim][64] and then V [64][head_pad], all f16; head_pad is
// head_dim rounded up to 16. Scores of 64 keys are then plain vector arithmetic without horizontal sums.
inline constexpr int page_keys = 64;
inline constexpr int attention_few_rows = 6;   // rows that go through pages as they lie, together
inline constexpr int attention_run_pages = 8;  // pages they go through at a time

struct AttentionTask {
    const float* q;
    int64_t q_stride;
    float* out;
    int64_t out_stride;
    int32_t group_heads;  // query heads of one kv head
    int32_t head_dim, head_pad;
    float scale, softcap;             // softcap 0: none
    const float* alibi;               // slope of each head, or null
    int32_t window;                   // 0: all
    const int32_t* positions;         // of the tokens; null: no mask (vision), `keys` of them
    const uint16_t* cache;            // first page's K of this layer and kv head 0
    size_t page_stride, head_stride;  // elements
    // vision: k, v as float rows instead of the cache
    const float* k;
    const float* v;
    int64_t k_stride, v_stride, keys;
};

// Rows of one item: `tokens` tokens from `token` on, all of one sequence, and the query heads of one kv head; keys of
// pages first_page .. last_page - 1.
struct AttentionItem {
    const int32_t* pages;  // the sequence's row of the page table
    const uint16_t* next;  // K of what is likely to be read next
    int64_t token;
    int32_t tokens, kv_head, first_page, last_page;
    // null: write finished outputs; else raw state of each row (token-major, then head): head_pad sums, maximum, denominator
    float* partial;
    int64_t partial_stride;
};

// ---- the table

struct Isa {
    const char* name;
    int32_t value_bytes;  // of one packed activation: 2 (an integer, with a scale for each token) or 4 (float)
    int32_t tile_tokens;  // tokens that the large kernel takes at once

    // One row as q4 and q8 kernels want it: values [in], its scale, and the sum of the packed values of each group.
    void (*pack_row)(const float* x, int64_t in, int32_t group, void* values, float* scale, float* sums);
    // Rows 32 * pair .. + 31 (gate and up rows 16 * pair .. + 15 of a gate_up weight) for tokens [first, last).
    // Few tokens: the weights pass once. Many: they are unpacked to `scratch` (linear_scratch bytes) first.
    void (*linear_small)(const LinearTask& task, int64_t pair, int64_t first, int64_t last);
    void (*linear_large)(const LinearTask& task, int64_t pair, int64_t first, int64_t last, void* scratch);
    size_t linear_scratch;
    int32_t large_tokens;  // most tokens of one linear_large call

    void (*attention)(const AttentionTask& task, const AttentionItem& item, void* scratch);
    // Puts `parts` partial states of one row together.
    void (*attention_join)(const float* partial, int64_t part_stride, int32_t parts, int32_t head_dim, int32_t head_pad,
                           float* out);
    // Float rows of `heads` heads into their places: k and v point at the heads of one token.
    void (*kv_store)(const float* k, const float* v, int32_t heads, int32_t head_dim, int32_t head_pad, uint16_t* k_page,
                     size_t head_stride, int32_t slot);

    // ---- rows of floats; `out` may be `x`
    void (*rms_norm)(const float* x, const float* weight, int64_t width, float eps, bool plus_one, float* out);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t width, float eps, float* out);
    void (*activate)(int32_t activation, const float* x, const float* divisor, int64_t count, float* out);  // divisor may be null
    void (*gated)(int32_t activation, const float* gate, const float* up, int64_t count, float* out);
    void (*add)(const float* a, const float* b, int64_t count, float* out);
    void (*scale)(const float* a, float factor, int64_t count, float* out);
    void (*softcap)(const float* a, float cap, int64_t count, float* out);
    void (*mix)(float* sum, const float* x, float factor, int64_t count);  // sum += factor * x
    void (*widen)(WeightType type, const void* from, int64_t count, float factor, float* to);
    void (*narrow)(WeightType type, const float* from, int64_t count, void* to);  // rounds to nearest even
    // cosines and sines [rot_dim / 2] each; the rest of the head is copied
    void (*rope)(const float* x, const float* cos_sin, int32_t heads, int32_t head_dim, int32_t rot_dim, bool interleaved,
                 float* out);
    bool (*finite)(const float* x, int64_t count);
    // Sum of a stretch of memory, for measuring what a plain read reaches.
    uint64_t (*read)(const void* data, size_t bytes);
};

// Bytes of scratch that attention() needs for one item of `rows` = tokens * group_heads: the rows, then scores of a run of
// pages, or a page as floats and its scores.
constexpr size_t attention_scratch(int64_t rows, int32_t head_dim, int32_t head_pad) {
    const int64_t run = attention_few_rows * attention_run_pages * page_keys,
                  wide = page_keys * (head_dim + head_pad + attention_few_rows);
    return static_cast<size_t>(rows * (head_dim + head_pad + 3) + (run > wide ? run : wide) + 64) * sizeof(float);
}

}  // namespace awq::cpu
