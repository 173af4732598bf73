// Weights on their way from a checkpoint to a backend: where the rows come from, what a weight is, where it lies.
//
//   checkpoint tensors -> WeightRows (one module, any file format, read row by row) -> Backend::pack -> Weight
//
// Every file format ends in one internal form: w[n][k] = q[n][k] * scale[n][k / group_size] + offset[n][k / group_size],
// q in 0..15, or in plain floating rows. Integer zero points are offset = -z * scale. An output head may be brought to q in
// 0..255 at load (EightBitRows). In which order and types the numbers lie in memory afterwards is the backend's own business.
#pragma once
#include <cstdint>
#include <string>
#include <vector>
#include "core/status.h"
#include "core/tensor.h"

namespace awq {

// One Linear (or embedding, or vector) of a checkpoint as a source of rows, validated, and open to several threads.
// Reading has no error of its own: rows that the file no longer gives are left as they are, and status() says so
// afterwards.
class WeightRows {
public:
    virtual ~WeightRows() = default;
    int64_t out = 0, in = 0;       // rows and columns; a vector has one row
    int64_t group_size = 0;        // columns that share a scale; 0: dense
    int bits = 4;                  // of a quantised value: 4, or 8
    bool integer_zeros = false;    // offset[g] = -z * scale[g] with an integer z in 0..16; 128 where q has 8 bits
    DType dtype = DType::f16;      // dense: the type in the file; quantised: the type of the scales
    // Act-order files: column k of the rows below is input column input_order[k]; empty: natural order.
    std::vector<int32_t> input_order;

    // Rows first .. first + count - 1: q [count][in] one value a byte, scale and offset [count][in / group_size].
    // Only of quantised sources.
    virtual void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const = 0;
    // The same rows as plain floats [count][in], in the column order above; quantised ones dequantised.
    virtual void read_dense(int64_t first, int64_t count, float* rows) const = 0;
    // What has gone wrong in any of the reads so far.
    virtual Status status() const { return {}; }
    // All has been read that will be: what is held in memory for it can go.
    virtual void forget() const {}
};

// How the members of a fused weight lie in its output: one behind the other (q | k | v), or, for a gate and an up
// projection, in whatever interleaving the backend's gated kernel likes.
enum class Stack : uint8_t { single, concat, gate_up };
enum class WeightKind : uint8_t {
    linear,    // y = x W^T
    table,     // rows are looked up by token id (and the same table may serve as a tied output head)
    vector,    // a norm's weight, a bias, inverse frequencies: always float32 in the backend's memory
};

struct WeightSpec {
    std::string name;                     // module path; a fused weight has the path of its block's fused module
    WeightKind kind = WeightKind::linear;
    int64_t out = 0, in = 0;              // summed over members; experts not counted
    int64_t group_size = 0;               // 0: dense
    int bits = 4;                         // of a quantised value: 4, or 8 (an output head packed at load)
    bool integer_zeros = false;           // of all members
    DType dtype = DType::f16;             // dense: the file's type; quantised: the type of the scales
    Stack stack = Stack::single;
    std::vector<int64_t> member_rows;     // rows of each member, in order; one entry for `single`
    int64_t experts = 1;                  // that many such matrices, one behind the other (mixture of experts)
};

// A weight in a backend's memory.
struct Weight {
    WeightSpec spec;
    const char* layout = "";    // the backend's name for how the bytes lie
    void* data = nullptr;       // in the backend's weight buffer
    size_t bytes = 0;
};

}  // namespace awq
