// A GGUF file made in memory, for tests: keys, tensors with bytes, and the means to damage either.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>
#include "core/checkpoint/gguf_reader.h"
#include "core/tensor.h"

namespace awq_test {

using awq::GgufKind;

template <class T>
std::string raw(T value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof(T));
}
inline std::string raw_text(const std::string& text) { return raw<uint64_t>(text.size()) + text; }

struct GgufWriter {
    struct Key {
        std::string name;
        uint32_t kind;
        std::string bytes;
    };
    struct Tensor {
        std::string name;
        std::vector<uint64_t> shape;  // innermost first
        uint32_t type;
        std::string data;
        int64_t offset = -1;  // -1: behind the one before
    };
    uint32_t version = 3;
    uint64_t alignment = 32;
    std::vector<Key> keys;
    std::vector<Tensor> tensors;
    int64_t key_count = -1, tensor_count = -1;  // -1: the truth

    void set(const std::string& name, GgufKind kind, std::string bytes) {
        for (Key& key : keys)
            if (key.name == name) {
                key = {name, static_cast<uint32_t>(kind), std::move(bytes)};
                return;
            }
        keys.push_back({name, static_cast<uint32_t>(kind), std::move(bytes)});
    }
    void u32(const std::string& name, uint32_t value) { set(name, GgufKind::u32, raw(value)); }
    void f32(const std::string& name, float value) { set(name, GgufKind::f32, raw(value)); }
    void boolean(const std::string& name, bool value) { set(name, GgufKind::boolean, raw<uint8_t>(value)); }
    void text(const std::string& name, const std::string& value) { set(name, GgufKind::string, raw_text(value)); }
    void texts(const std::string& name, const std::vector<std::string>& values) {
        std::string bytes = raw<uint32_t>(8) + raw<uint64_t>(values.size());
        for (const std::string& value : values) bytes += raw_text(value);
        set(name, GgufKind::array, bytes);
    }
    template <class T>
    void numbers(const std::string& name, GgufKind element, const std::vector<T>& values) {
        std::string bytes = raw(static_cast<uint32_t>(element)) + raw<uint64_t>(values.size());
        for (T value : values) bytes += raw(value);
        set(name, GgufKind::array, bytes);
    }
    void erase(const std::string& name) {
        std::erase_if(keys, [&](const Key& key) { return key.name == name; });
        std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
    }
    Tensor& tensor(const std::string& name) {
        for (Tensor& t : tensors)
            if (t.name == name) return t;
        return tensors.emplace_back(Tensor{name, {}, 0, "", -1});
    }

    std::string bytes() const {
        std::string out = "GGUF" + raw(version) +
                          raw<uint64_t>(tensor_count < 0 ? tensors.size() : static_cast<uint64_t>(tensor_count)) +
                          raw<uint64_t>(key_count < 0 ? keys.size() : static_cast<uint64_t>(key_count));
        for (const Key& key : keys) out += raw_text(key.name) + raw(key.kind) + key.bytes;
        std::string data;
        for (const Tensor& tensor : tensors) {
            data.resize((data.size() + alignment - 1) / alignment * alignment, '\0');
            out += raw_text(tensor.name) + raw<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
            for (uint64_t n : tensor.shape) out += raw(n);
            out += raw(tensor.type) + raw<uint64_t>(tensor.offset < 0 ? data.size() : static_cast<uint64_t>(tensor.offset));
            data += tensor.data;
        }
        out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
        return out + data;
    }
};

// The same numbers on every machine.
struct Random {
    uint64_t state = 88172645463325252ull;
    uint64_t next() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    }
    float real() { return static_cast<float>(static_cast<int64_t>(next() % 2001) - 1000) / 1000.0f; }
};

// Blocks of a type with random contents: any bytes for the quants, modest finite scales.
inline std::string random_tensor(uint32_t type, uint64_t elements, Random& random) {
    std::string out;
    auto half = [&] { return raw(awq::float_to_half(random.real())); };
    auto bytes = [&](int n) {
        std::string b;
        for (int i = 0; i < n; i++) b += static_cast<char>(random.next() >> 24);
        return b;
    };
    switch (type) {
        case 0:
            for (uint64_t i = 0; i < elements; i++) out += raw(random.real());
            break;
        case 1:
            for (uint64_t i = 0; i < elements; i++) out += half();
            break;
        case 2:
            for (uint64_t i = 0; i < elements; i += 32) out += half() + bytes(16);
            break;
        case 3:
            for (uint64_t i = 0; i < elements; i += 32) out += half() + half() + bytes(16);
            break;
        case 8:
            for (uint64_t i = 0; i < elements; i += 32) out += half() + bytes(32);
            break;
        case 12: out = bytes(static_cast<int>(elements / 256 * 144)); break;
        case 14:
            for (uint64_t i = 0; i < elements; i += 256) out += bytes(208) + half();
            break;
        case 30:
            for (uint64_t i = 0; i < elements; i++) out += raw(awq::float_to_bf16(random.real()));
            break;
    }
    return out;
}

// Element i of such bytes, from the definition of the type, one by one.
inline float element_of(uint32_t type, const std::string& data, uint64_t i) {
    auto half = [&](uint64_t at) {
        uint16_t bits;
        std::memcpy(&bits, data.data() + at, 2);
        return awq::half_to_float(bits);
    };
    auto byte = [&](uint64_t at) { return static_cast<uint8_t>(data[at]); };
    uint64_t block = i / 32, j = i % 32;
    auto nibble = [&](uint64_t at) { return static_cast<float>(j < 16 ? byte(at + j) & 15 : byte(at + j - 16) >> 4); };
    float value = 0;
    switch (type) {
        case 0: std::memcpy(&value, data.data() + 4 * i, 4); return value;
        case 1: return half(2 * i);
        case 2: return half(block * 18) * (nibble(block * 18 + 2) - 8);
        case 3: return nibble(block * 20 + 4) * half(block * 20) + half(block * 20 + 2);
        case 8: return half(block * 34) * static_cast<float>(static_cast<int8_t>(byte(block * 34 + 2 + j)));
        case 14: {
            // the 8th of 32 columns: 0..3 lie in the first half of the block, 4..7 in the second
            uint64_t at = i / 256 * 210, in = i % 256, eighth = in / 32, l = in % 32, second = eighth / 4, quarter = eighth % 4;
            int low = byte(at + second * 64 + (quarter & 1) * 32 + l);
            low = quarter < 2 ? low & 15 : low >> 4;
            int high = byte(at + 128 + second * 32 + l) >> (2 * quarter) & 3;
            float scale = static_cast<float>(static_cast<int8_t>(byte(at + 192 + in / 16)));
            return half(at + 208) * scale * static_cast<float>((high << 4 | low) - 32);
        }
        case 30: {
            uint16_t bits;
            std::memcpy(&bits, data.data() + 2 * i, 2);
            return awq::bf16_to_float(bits);
        }
    }
    return value;
}

}  // namespace awq_test
