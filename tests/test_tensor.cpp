// The small float types: against their definition, number by number.
#include <doctest/doctest.h>
#include <cmath>
#include <cstring>
#include <vector>
#include "core/tensor.h"

using namespace awq;

TEST_CASE("tensor: every float16 widens to what it stands for and rounds back to itself") {
    int64_t wrong = 0;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const int exponent = static_cast<int>(bits >> 10 & 31), mantissa = static_cast<int>(bits & 1023);
        const float sign = bits & 0x8000 ? -1.0f : 1.0f, value = half_to_float(static_cast<uint16_t>(bits));
        if (exponent == 31) {
            wrong += mantissa ? !std::isnan(value) : value != sign * INFINITY;
            wrong += mantissa ? !std::isnan(half_to_float(float_to_half(value))) : float_to_half(value) != bits;
        } else {
            wrong += value != sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25)
                                               : std::ldexp(static_cast<float>(mantissa), -24));
            wrong += std::signbit(value) != (bits >= 0x8000);
            wrong += float_to_half(value) != bits;
        }
    }
    CHECK(wrong == 0);
}

TEST_CASE("tensor: widen reads any count from any address") {
    for (int64_t count : {0, 1, 31, 32, 33, 100}) {
        std::vector<uint8_t> bytes(1 + count * 8);
        std::vector<float> expected, got(count + 1, 7.0f);
        for (int64_t i = 0; i < count; i++) expected.push_back(0.25f * static_cast<float>(i - 50));
        expected.push_back(7.0f);  // past the end: untouched
        for (DType type : {DType::f16, DType::bf16, DType::f32, DType::f64}) {
            for (int64_t i = 0; i < count; i++) {
                const uint16_t half = float_to_half(expected[i]), brain = float_to_bf16(expected[i]);
                const double wide = expected[i];
                const void* from = type == DType::f16    ? static_cast<const void*>(&half)
                                   : type == DType::bf16 ? &brain
                                   : type == DType::f32  ? static_cast<const void*>(&expected[i])
                                                         : &wide;
                std::memcpy(&bytes[1 + i * dtype_bytes(type)], from, dtype_bytes(type));
            }
            widen(type, bytes.data() + 1, count, got.data());
            CHECK(got == expected);
        }
    }
}
