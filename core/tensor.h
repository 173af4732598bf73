// Element types, and the one tensor the graph knows: a matrix view. Not an owner: memory belongs to a backend's buffer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace awq {

// The element types of the safetensors specification that have whole bytes, in its order.
enum class DType : uint8_t { boolean, u8, i8, f8_e5m2, f8_e4m3, i16, u16, f16, bf16, i32, u32, f32, c64, f64, i64, u64 };

size_t dtype_bytes(DType dtype);
const char* dtype_name(DType dtype);    // "F16", as safetensors spells it

// rows x cols elements; row r begins at data + r * stride elements. POD.
struct Tensor {
    void* data = nullptr;
    DType dtype = DType::f32;
    int64_t rows = 0, cols = 0;
    int64_t stride = 0;    // elements from one row to the next, >= cols

    template <class T>
    T* row(int64_t r) const { return static_cast<T*>(data) + r * stride; }
};

float half_to_float(uint16_t bits);     // IEEE binary16, subnormals, infinities and NaN included
uint16_t float_to_half(float value);    // round to nearest even
inline float bf16_to_float(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &wide, 4);
    return value;
}
uint16_t float_to_bf16(float value);    // round to nearest even

// `count` elements of a floating type widened to float; `from` need not be aligned.
void widen(DType dtype, const void* from, int64_t count, float* to);

}  // namespace awq
