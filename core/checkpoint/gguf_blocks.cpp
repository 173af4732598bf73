#include "core/checkpoint/gguf_blocks.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace awq {
namespace {

constexpr int64_t buffer_bytes = 4 << 20;  // what a writer gathers before it hands it on, where one row is not more

uint16_t load_half(const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return bits;
}

bool is_finite_half(uint16_t bits) { return (bits & 0x7c00) != 0x7c00; }

int64_t block_bytes(const GgufMatrix& matrix) { return matrix.tensor->type == gguf_type::q4_0 ? 18 : 20; }

// The 32 values 0..15 of a Q4 block, in column order.
void unpack_q4(const uint8_t* quants, uint8_t* out) {
    for (int j = 0; j < 16; j++) {
        out[j] = quants[j] & 15;
        out[j + 16] = quants[j] >> 4;
    }
}

// Q6_K: 256 columns in two halves of 128; the low 4 bits in ql, the high 2 in qh, a signed 8-bit scale for 16 columns.
void widen_q6_k(const uint8_t* block, float* out) {
    const uint8_t *low = block, *high = block + 128, *scales = block + 192;
    float d = half_to_float(load_half(block + 208));
    for (int half = 0; half < 2; half++, low += 64, high += 32, scales += 8, out += 128) {
        for (int column = 0; column < 128; column++) {
            int quarter = column / 32, l = column % 32;  // quarters 0, 1: low halves of the bytes; 2, 3: high halves
            int bits = low[l + quarter % 2 * 32] >> (quarter / 2 * 4) & 15;
            int q = (bits | (high[l] >> (2 * quarter) & 3) << 4) - 32;
            out[column] = d * static_cast<float>(static_cast<int8_t>(scales[column / 16])) * static_cast<float>(q);
        }
    }
}

}  // namespace

uint64_t GgufMatrix::row_offset(int64_t r) const {
    if (interleaved_head) {
        int64_t half = interleaved_head / 2, in_head = r % interleaved_head;
        r = r - in_head + in_head % half * 2 + in_head / half;
    }
    return static_cast<uint64_t>(r) * row_bytes;
}

Result<std::unique_ptr<uint8_t[]>> GgufMatrix::read() const {
    std::unique_ptr<uint8_t[]> bytes(new (std::nothrow) uint8_t[tensor->bytes]);
    if (!bytes) return Status(Code::out_of_memory, error("no memory for its " + std::to_string(tensor->bytes) + " bytes").message());
    AWQ_TRY(gguf->file().read_large(tensor->offset, bytes.get(), tensor->bytes));
    return bytes;
}

bool gguf_dequantisable(uint32_t type) {
    for (uint32_t known :
         {gguf_type::f32, gguf_type::f16, gguf_type::bf16, gguf_type::q4_0, gguf_type::q4_1, gguf_type::q8_0, gguf_type::q6_k})
        if (type == known) return true;
    return false;
}

Status GgufMatrix::widen_row(int64_t r, float* out) const {
    const auto bytes = std::make_unique<uint8_t[]>(row_bytes);
    const uint8_t* at = bytes.get();
    AWQ_TRY(gguf->file().read(tensor->offset + row_offset(r), bytes.get(), row_bytes));
    switch (tensor->type) {
        case gguf_type::f32: widen(DType::f32, at, cols, out); break;
        case gguf_type::f16: widen(DType::f16, at, cols, out); break;
        case gguf_type::bf16: widen(DType::bf16, at, cols, out); break;
        case gguf_type::q4_0:
        case gguf_type::q4_1:
            for (int64_t k = 0; k < cols; k += 32, at += block_bytes(*this)) {
                bool has_minimum = tensor->type == gguf_type::q4_1;
                float d = half_to_float(load_half(at)), m = has_minimum ? half_to_float(load_half(at + 2)) : -8 * d;
                uint8_t q[32];
                unpack_q4(at + (has_minimum ? 4 : 2), q);
                for (int j = 0; j < 32; j++) out[k + j] = static_cast<float>(q[j]) * d + m;
            }
            break;
        case gguf_type::q8_0:
            for (int64_t k = 0; k < cols; k += 32, at += 34) {
                float d = half_to_float(load_half(at));
                for (int j = 0; j < 32; j++) out[k + j] = static_cast<float>(static_cast<int8_t>(at[2 + j])) * d;
            }
            break;
        case gguf_type::q6_k:
            for (int64_t k = 0; k < cols; k += 256, at += 210) widen_q6_k(at, out + k);
            break;
    }
    return {};
}

Result<DType> dense_dtype(const GgufMatrix& matrix, bool vector, bool& rounded) {
    bool exact_f16 = true, exact_bf16 = true;
    float largest = 0;
    std::vector<float> row(static_cast<size_t>(matrix.cols));
    for (int64_t r = 0; r < matrix.rows; r++) {
        AWQ_TRY(matrix.widen_row(r, row.data()));
        for (int64_t k = 0; k < matrix.cols; k++) {
            float value = row[k];
            if (!std::isfinite(value))
                return matrix.error("holds " + std::to_string(value) + " at row " + std::to_string(r) + ", column " +
                                    std::to_string(k) + "; finite numbers expected");
            exact_f16 &= half_to_float(float_to_half(value)) == value;
            exact_bf16 &= bf16_to_float(float_to_bf16(value)) == value;
            largest = std::max(largest, std::fabs(value));
        }
    }
    uint32_t type = matrix.tensor->type;
    rounded = false;
    if (type == gguf_type::bf16) return DType::bf16;
    if (exact_f16) return DType::f16;
    if (type == gguf_type::f32 && exact_bf16) return DType::bf16;
    if (type == gguf_type::f32 && vector) return DType::f32;
    rounded = true;
    return largest < 65520 ? DType::f16 : DType::bf16;  // from 65520 on fp16 rounds to infinity
}

Status write_dense(const GgufMatrix& matrix, DType dtype, const ByteSink& sink) {
    size_t cols = static_cast<size_t>(matrix.cols), element = dtype_bytes(dtype);
    int64_t rows_at_once = std::clamp<int64_t>(buffer_bytes / static_cast<int64_t>(cols * element), 1, matrix.rows);
    std::vector<float> row(cols);
    std::vector<uint8_t> out;
    for (int64_t first = 0; first < matrix.rows; first += rows_at_once) {
        int64_t count = std::min(rows_at_once, matrix.rows - first);
        out.resize(static_cast<size_t>(count) * cols * element);
        for (int64_t r = 0; r < count; r++) {
            AWQ_TRY(matrix.widen_row(first + r, row.data()));
            uint8_t* to = out.data() + static_cast<size_t>(r) * cols * element;
            if (dtype == DType::f32) {
                std::memcpy(to, row.data(), cols * 4);
                continue;
            }
            for (size_t k = 0; k < cols; k++) {
                uint16_t bits = dtype == DType::f16 ? float_to_half(row[k]) : float_to_bf16(row[k]);
                std::memcpy(to + 2 * k, &bits, 2);
            }
        }
        AWQ_TRY(sink(out.data(), out.size()));
    }
    return {};
}

Status write_gemm_qweight(const GgufMatrix& matrix, const ByteSink& sink) {
    // the layout is column by column, the file row by row: gather some groups of all rows at a time
    static const int nibble_of_row[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    int64_t words = matrix.rows / 8, groups = matrix.cols / 32;
    int64_t groups_at_once = std::clamp<int64_t>(buffer_bytes / (32 * words * 4), 1, groups);
    AWQ_ASSIGN(const auto bytes, matrix.read());
    std::vector<uint32_t> out;
    for (int64_t first = 0; first < groups; first += groups_at_once) {
        int64_t count = std::min(groups_at_once, groups - first);
        out.assign(static_cast<size_t>(count * 32 * words), 0);
        for (int64_t n = 0; n < matrix.rows; n++) {
            const uint8_t* block = bytes.get() + matrix.row_offset(n) + first * block_bytes(matrix);
            int shift = 4 * nibble_of_row[n % 8];
            for (int64_t g = 0; g < count; g++, block += block_bytes(matrix)) {
                uint8_t q[32];
                unpack_q4(block + 2, q);
                uint32_t* to = out.data() + g * 32 * words + n / 8;
                for (int j = 0; j < 32; j++) to[j * words] |= static_cast<uint32_t>(q[j]) << shift;
            }
        }
        AWQ_TRY(sink(out.data(), out.size() * 4));
    }
    return {};
}

Status write_gemm_qzeros(const GgufMatrix& matrix, const ByteSink& sink) {
    std::vector<uint32_t> row(static_cast<size_t>(matrix.rows / 8), 0x88888888u);
    for (int64_t g = 0; g < matrix.cols / 32; g++) AWQ_TRY(sink(row.data(), row.size() * 4));
    return {};
}

Status write_gemv_fast_qweight(const GgufMatrix& matrix, const ByteSink& sink) {
    int64_t quads = matrix.rows / 4, cols = matrix.cols;
    int64_t quads_at_once = std::clamp<int64_t>(buffer_bytes / (cols * 2), 1, quads);
    AWQ_ASSIGN(const auto bytes, matrix.read());
    std::vector<uint16_t> out;
    for (int64_t first = 0; first < quads; first += quads_at_once) {
        int64_t count = std::min(quads_at_once, quads - first);
        out.resize(static_cast<size_t>(count * cols));
        for (int64_t r = 0; r < 4 * count; r++) {
            const uint8_t* block = bytes.get() + matrix.row_offset(4 * first + r);
            for (int64_t k = 0; k < cols; k += 32, block += 20) {
                // a piece of 64 columns is 64 words: 16 of each of the four rows, 8 of each half of the columns;
                // word 2a + c holds columns 2a + c, 8 + 2a + c, 16 + 2a + c, 24 + 2a + c
                uint16_t* to = out.data() + r / 4 * cols + k / 64 * 64 + r % 4 * 16 + k % 64 / 32 * 8;
                uint8_t q[32];
                unpack_q4(block + 4, q);
                for (int w = 0; w < 8; w++)
                    to[w] = static_cast<uint16_t>(q[w] | q[8 + w] << 4 | q[16 + w] << 8 | q[24 + w] << 12);
            }
        }
        AWQ_TRY(sink(out.data(), out.size() * 2));
    }
    return {};
}

int64_t gemv_fast_group_rows(int64_t cols) {
    return (cols / gguf_group_size + 31) / 32 * 32;  // for groups of 32: whole packs of 8, a multiple of 4 of them
}

Status write_block_halves(const GgufMatrix& matrix, int offset, int64_t group_rows, const ByteSink& sink) {
    int64_t groups = matrix.cols / 32;
    int64_t groups_at_once = std::clamp<int64_t>(buffer_bytes / (2 * matrix.rows), 1, groups);
    AWQ_ASSIGN(const auto bytes, matrix.read());
    std::vector<uint16_t> out;
    for (int64_t first = 0; first < groups; first += groups_at_once) {
        int64_t count = std::min(groups_at_once, groups - first);
        out.resize(static_cast<size_t>(count * matrix.rows));
        for (int64_t n = 0; n < matrix.rows; n++) {
            const uint8_t* block = bytes.get() + matrix.row_offset(n) + first * block_bytes(matrix) + offset;
            for (int64_t g = 0; g < count; g++, block += block_bytes(matrix)) {
                uint16_t bits = load_half(block);
                if (!is_finite_half(bits))
                    return matrix.error(std::string("has a ") + (offset ? "minimum" : "scale") + " that is not finite at row " +
                                        std::to_string(n) + ", block " + std::to_string(first + g));
                out[static_cast<size_t>(g * matrix.rows + n)] = bits;
            }
        }
        AWQ_TRY(sink(out.data(), out.size() * 2));
    }
    std::vector<uint16_t> unused(static_cast<size_t>(matrix.rows), 0);
    for (int64_t g = groups; g < group_rows; g++) AWQ_TRY(sink(unused.data(), unused.size() * 2));
    return {};
}

}  // namespace awq
