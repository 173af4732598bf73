// GGUF tensors as numbers: rows dequantised, and 4-bit blocks moved into AWQ's layouts without touching a value.
//
// A Q4 block is 32 columns of one row: an fp16 scale d (Q4_1: and an fp16 minimum m), then 16 bytes; byte j holds column j
// in its low half and column j + 16 in its high half.
//   Q4_0: w = d * (q - 8) is AWQ's GEMM layout, scales = d and all zero points 8.
//   Q4_1: w = d * q + m is the gemv_fast layout, scales = d and (negated, scaled) zeros = m, both fp16 as they are.
#pragma once
#include <memory>
#include "core/checkpoint/directory_writer.h"
#include "core/checkpoint/gguf_reader.h"

namespace awq {

inline constexpr int64_t gguf_group_size = 32;  // of Q4_0 and Q4_1

// A tensor as a matrix whose rows are in Hugging Face's order.
struct GgufMatrix {
    const Gguf* gguf = nullptr;
    const GgufTensor* tensor = nullptr;
    int64_t rows = 1, cols = 0;
    uint64_t row_bytes = 0;
    // Not 0: rows of q and k were interleaved for a rotation of neighbouring pairs, head by head: row 2j + h of a head
    // of d rows is row h * d / 2 + j in Hugging Face's order.
    int64_t interleaved_head = 0;

    // Row r begins at this byte of the tensor.
    uint64_t row_offset(int64_t r) const;
    Result<std::unique_ptr<uint8_t[]>> read() const;  // the tensor's bytes
    Status widen_row(int64_t r, float* out) const;    // `cols` values, read from the file
    Status error(const std::string& what) const { return gguf->tensor_error(tensor->name, what); }
};

bool gguf_dequantisable(uint32_t type);  // the types widen_row() knows

// The type a dense copy gets. F16 and BF16 stay. F32 becomes F16 or BF16 where that holds every value exactly; else a
// vector stays F32 and a matrix is rounded to F16. Block types are rounded to F16. Where F16 is too narrow, BF16.
// Non-finite values are refused. `rounded` tells whether values change.
Result<DType> dense_dtype(const GgufMatrix& matrix, bool vector, bool& rounded);
Status write_dense(const GgufMatrix& matrix, DType dtype, const ByteSink& sink);

// int32 [cols][rows / 8], nibble order 0 2 4 6 1 3 5 7; needs rows % 8 == 0.
Status write_gemm_qweight(const GgufMatrix& matrix, const ByteSink& sink);
// int32 [cols / 32][rows / 8]: all zero points 8.
Status write_gemm_qzeros(const GgufMatrix& matrix, const ByteSink& sink);
// int16 [rows / 4][cols]: four rows side by side in pieces of 64 columns; needs rows % 8 == 0 and cols % 64 == 0.
Status write_gemv_fast_qweight(const GgufMatrix& matrix, const ByteSink& sink);
// Rows of gemv_fast's scales and zeros: the groups rounded up as AutoAWQ does (unused rows are zero).
int64_t gemv_fast_group_rows(int64_t cols);
// fp16 [group_rows][rows] of the half at `offset` in each block: 0 for d, 2 for m. Refuses a non-finite one.
Status write_block_halves(const GgufMatrix& matrix, int offset, int64_t group_rows, const ByteSink& sink);

}  // namespace awq
