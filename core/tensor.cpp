#include "core/tensor.h"
#include <bit>
#include <cstring>

namespace awq {

size_t dtype_bytes(DType dtype) {
    switch (dtype) {
        case DType::boolean: case DType::u8: case DType::i8: case DType::f8_e5m2: case DType::f8_e4m3: return 1;
        case DType::i16: case DType::u16: case DType::f16: case DType::bf16: return 2;
        case DType::i32: case DType::u32: case DType::f32: return 4;
        case DType::c64: case DType::f64: case DType::i64: case DType::u64: return 8;
    }
    return 0;
}

const char* dtype_name(DType dtype) {
    static const char* names[] = {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16",
                                  "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"};
    return names[static_cast<int>(dtype)];
}

namespace {

// Without branches, so that a loop of them becomes vector code.
inline float widen_half(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const int32_t magnitude = (bits & 0x7fff) << 13;
    // all bits set for infinity and NaN; for zero and subnormal numbers
    const uint32_t huge = static_cast<uint32_t>((0x0f7fffff - magnitude) >> 31), tiny = static_cast<uint32_t>((magnitude - 0x00800000) >> 31);
    const uint32_t normal = static_cast<uint32_t>(magnitude) + 0x38000000 + (huge & 0x38000000);    // the exponent's bias: 15 to 127
    const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude + 0x38800000) - 0x1p-14f);
    return std::bit_cast<float>(sign | (tiny & subnormal) | (~tiny & normal));
}

// In blocks of a size known here, which become vector code; the rest one by one.
template <class Widen>
void widen_blocks(const char* from, int64_t count, float* to, const Widen& widen) {
    constexpr int64_t block = 32;
    uint16_t bits[block];
    for (; count >= block; count -= block, from += 2 * block, to += block) {
        std::memcpy(bits, from, sizeof bits);
        for (int64_t i = 0; i < block; i++) to[i] = widen(bits[i]);
    }
    if (count <= 0) return;
    std::memcpy(bits, from, static_cast<size_t>(count) * 2);
    for (int64_t i = 0; i < count; i++) to[i] = widen(bits[i]);
}

}  // namespace

float half_to_float(uint16_t bits) { return widen_half(bits); }

uint16_t float_to_half(float value) {
    uint32_t wide = std::bit_cast<uint32_t>(value), sign = wide >> 16 & 0x8000, magnitude = wide & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);    // rounds to 65536 or more
    if (magnitude < 0x38800000) {                                               // below 2^-14: in units of 2^-24
        float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
        uint32_t whole = static_cast<uint32_t>(scaled);
        float rest = scaled - static_cast<float>(whole);
        if (rest > 0.5f || (rest == 0.5f && (whole & 1))) whole++;
        return static_cast<uint16_t>(sign | whole);
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

uint16_t float_to_bf16(float value) {
    uint32_t wide = std::bit_cast<uint32_t>(value);
    if ((wide & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(wide >> 16 | 64);
    return static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

void widen(DType dtype, const void* from, int64_t count, float* to) {
    const char* bytes = static_cast<const char*>(from);
    switch (dtype) {
        case DType::f32: std::memcpy(to, from, static_cast<size_t>(count) * 4); break;
        case DType::f16: widen_blocks(bytes, count, to, [](uint16_t bits) { return widen_half(bits); }); break;
        case DType::bf16: widen_blocks(bytes, count, to, [](uint16_t bits) { return bf16_to_float(bits); }); break;
        case DType::f64:
            for (int64_t i = 0; i < count; i++) {
                double value;
                std::memcpy(&value, bytes + 8 * i, 8);
                to[i] = static_cast<float>(value);
            }
            break;
        default: break;    // callers have checked that the type is a floating one
    }
}

}  // namespace awq
