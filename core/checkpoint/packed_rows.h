// What the file formats of int4 Linears share: checks of a module's tensors, and unpacking of nibbles.
//
// Names used throughout: out x in is the Linear's size, groups = in / group_size, q a 4-bit value, z a zero point.
#pragma once
#include <atomic>
#include <cstring>
#include <initializer_list>
#include <mutex>
#include <utility>
#include "core/checkpoint/weight_format.h"

namespace awq {

// ---- checks; errors name the file, the tensor, what was found and what was expected

// "model.safetensors: model.layers.0.mlp.up_proj.scales: " + what
Status tensor_error(const Checkpoint& checkpoint, const TensorInfo& tensor, const std::string& what);
// The module's tensor of exactly this shape and one of these types. `note` is added to what was expected.
Result<const TensorInfo*> need_tensor(const ModuleTensors& tensors, std::string_view suffix, std::initializer_list<DType> types,
                                      std::initializer_list<int64_t> shape, const std::string& note = "");
// Every number of the leading part rows x cols of a two-dimensional tensor is finite; the rest is padding.
Status need_finite(const Checkpoint& checkpoint, const TensorInfo& tensor, int64_t rows, int64_t cols);
// The error of need_finite() for the element `place`.
Status non_finite_error(const Checkpoint& checkpoint, const TensorInfo& tensor, int64_t place);
// The configured group size (-1: `in`) for bits 4, which must divide `in`.
Result<int64_t> need_group_size(const ModuleTensors& tensors, const AwqConfig& config, int64_t in);
std::string group_note(const AwqConfig& config, int64_t group_size);  // " (group_size 128)"

// The order of inputs in which those of a group, as the tensor g_idx I32 [in] has them, stand together; empty where they
// do already. Every group must have group_size inputs.
Result<std::vector<int32_t>> need_group_order(const ModuleTensors& tensors, std::string_view suffix, int64_t in,
                                              int64_t group_size);

bool has_shape(const TensorInfo* tensor, DType type, std::initializer_list<int64_t> shape);
// Whether scales lie by output ([out][groups, padded]) rather than by group: decides where out and in make a qweight fit
// two formats.
bool scales_by_output(const ModuleTensors& tensors, int64_t out);

// ---- rows

// A source of rows whose tensors are read into memory when the first row is asked for (a plan asks for none); the
// checkpoint must outlive it. Formats add read_quantized(), which begins with load().
class PackedRows : public WeightRows {
public:
    PackedRows(const ModuleTensors& tensors, int64_t out, int64_t in, int64_t group_size, DType dtype);
    void read_dense(int64_t first, int64_t count, float* rows) const override;
    Status status() const override;
    void forget() const override;

protected:
    bool load() const;    // false: the file does not give the tensors any more, see status()
    std::vector<std::pair<const TensorInfo*, TensorData*>> reads_;    // what load() fills
    int64_t groups_;

private:
    const Checkpoint& checkpoint_;
    mutable std::mutex mutex_;
    mutable std::atomic<bool> loaded_ = false;
    mutable Status status_;
};

// The columns of q [count][in], from their order in the file to that of `order` (empty: as it is).
void reorder_columns(const std::vector<int32_t>& order, int64_t count, int64_t in, uint8_t* q);

// Columns first .. first + count - 1 of a floating matrix [rows][width], as rows: to[count][rows].
void read_columns(const TensorData& matrix, int64_t rows, int64_t width, int64_t first, int64_t count, float* to);

// ---- nibbles

inline uint32_t load_u32(const uint8_t* at) {
    uint32_t word;
    std::memcpy(&word, at, 4);
    return word;
}
inline uint64_t load_u64(const uint8_t* at) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    return word;
}
inline void store_u64(uint8_t* at, uint64_t word) { std::memcpy(at, &word, 8); }

// The eight nibbles of a word as eight bytes, lowest first.
inline uint64_t spread_nibbles(uint32_t word) {
    uint64_t x = word;
    x = (x | x << 16) & 0x0000ffff0000ffff;
    x = (x | x << 8) & 0x00ff00ff00ff00ff;
    return (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
}

// `count` nibbles in plain order, the low one of each byte first.
inline void unpack_nibbles(const uint8_t* packed, int64_t count, uint8_t* q) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) store_u64(q + i, spread_nibbles(load_u32(packed + i / 2)));
    for (; i < count; i++) q[i] = packed[i / 2] >> (i % 2 * 4) & 15;
}

// Eight words of eight nibbles: byte i of column[n] becomes nibble n of word[i]. In registers, and so without loops.
inline void transpose_nibbles(const uint32_t word[8], uint64_t column[8]) {
    // both halves of `a` hold 4 x 4 bytes (rows 0..3 and 4..7): transpose them together
    auto transpose = [](uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t* to) {
        auto swap = [](uint64_t& low, uint64_t& high, int shift, uint64_t mask) {
            uint64_t t = (low >> shift ^ high) & mask;
            high ^= t;
            low ^= t << shift;
        };
        swap(a, b, 8, 0x00ff00ff00ff00ff);
        swap(c, d, 8, 0x00ff00ff00ff00ff);
        swap(a, c, 16, 0x0000ffff0000ffff);
        swap(b, d, 16, 0x0000ffff0000ffff);
        to[0] = a;
        to[2] = b;
        to[4] = c;
        to[6] = d;
    };
    const uint64_t a = word[0] | static_cast<uint64_t>(word[4]) << 32, b = word[1] | static_cast<uint64_t>(word[5]) << 32;
    const uint64_t c = word[2] | static_cast<uint64_t>(word[6]) << 32, d = word[3] | static_cast<uint64_t>(word[7]) << 32;
    constexpr uint64_t even = 0x0f0f0f0f0f0f0f0f;
    transpose(a & even, b & even, c & even, d & even, column);
    transpose(a >> 4 & even, b >> 4 & even, c >> 4 & even, d >> 4 & even, column + 1);
}

}  // namespace awq
