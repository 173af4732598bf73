// Linears of random 4-bit numbers, packed by the layouts' descriptions: an index at a time, nothing shared with the
// readers under test.
#pragma once
#include <algorithm>
#include <random>
#include "core/tensor.h"
#include "tests/checkpoint_files.h"

namespace awq::test {

using Words = std::vector<int32_t>;
using Halves = std::vector<uint16_t>;

// A Linear of random q, zero points and scales.
struct Numbers {
    int64_t out, in, group_size, groups;
    std::vector<uint8_t> q, z;  // [out][in], [out][groups]
    Halves scale;               // [out][groups], float16
    Numbers(int64_t out_, int64_t in_, int64_t group_size_, int z_low = 0, int z_high = 15)
        : out(out_),
          in(in_),
          group_size(group_size_),
          groups(in_ / group_size_),
          q(out * in),
          z(out * groups),
          scale(out * groups) {
        std::mt19937 random(static_cast<uint32_t>(out * 31 + in * 7 + group_size));
        for (uint8_t& value : q) value = random() & 15;
        for (uint8_t& value : z) value = static_cast<uint8_t>(z_low + static_cast<int>(random()) % (z_high - z_low + 1));
        for (uint16_t& value : scale) value = random() % 0x3800;  // below a half, subnormal ones included
        for (uint8_t& value : z) value = std::clamp<int>(value, z_low, z_high);
    }
    uint32_t q_at(int64_t n, int64_t k) const { return q[n * in + k]; }
    uint32_t z_at(int64_t n, int64_t g) const { return z[n * groups + g]; }
    uint16_t scale_at(int64_t n, int64_t g) const { return scale[n * groups + g]; }
};

inline void put(Words& words, int64_t word, int64_t nibble, uint32_t value) {
    words[word] = static_cast<int32_t>(static_cast<uint32_t>(words[word]) | value << 4 * nibble);
}

// [groups][out] out of [out][groups]; rows past the groups hold `fill`.
inline Halves transposed(const Numbers& x, const Halves& from, int64_t rows, uint16_t fill) {
    Halves to(rows * x.out, fill);
    for (int64_t n = 0; n < x.out; n++)
        for (int64_t g = 0; g < x.groups; g++) to[g * x.out + n] = from[n * x.groups + g];
    return to;
}

inline SafetensorsFile pack_gemm(const Numbers& x, const char* scale_type = "F16") {
    const int nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    Words qweight(x.in * x.out / 8), qzeros(x.groups * x.out / 8);
    for (int64_t n = 0; n < x.out; n++) {
        for (int64_t k = 0; k < x.in; k++) put(qweight, k * (x.out / 8) + n / 8, nibble[n % 8], x.q_at(n, k));
        for (int64_t g = 0; g < x.groups; g++) put(qzeros, g * (x.out / 8) + n / 8, nibble[n % 8], x.z_at(n, g));
    }
    return SafetensorsFile()
        .add("m.qweight", "I32", {x.in, x.out / 8}, qweight)
        .add("m.qzeros", "I32", {x.groups, x.out / 8}, qzeros)
        .add("m.scales", scale_type, {x.groups, x.out}, transposed(x, x.scale, x.groups, 0));
}

inline constexpr uint16_t nan16 = 0x7e00;  // what padding is filled with: nobody may look at it

inline SafetensorsFile pack_gemv(const Numbers& x, int64_t width) {
    Words qweight(x.out * x.in / 8), qzeros(x.out * width);
    Halves scales(x.out * width * 8, nan16);
    for (int64_t n = 0; n < x.out; n++) {
        for (int64_t k = 0; k < x.in; k++) put(qweight, n * (x.in / 8) + k / 8, k % 8, x.q_at(n, k));
        for (int64_t g = 0; g < x.groups; g++) {
            put(qzeros, n * width + g / 8, g % 8, x.z_at(n, g));
            scales[n * width * 8 + g] = x.scale_at(n, g);
        }
    }
    return SafetensorsFile()
        .add("m.qweight", "I32", {x.out, x.in / 8}, qweight)
        .add("m.qzeros", "I32", {x.out, width}, qzeros)
        .add("m.scales", "F16", {x.out, width * 8}, scales);
}

inline Halves scaled_zeros(const Numbers& x) {
    Halves offset(x.scale.size());
    for (size_t i = 0; i < offset.size(); i++) offset[i] = float_to_half(-static_cast<float>(x.z[i]) * half_to_float(x.scale[i]));
    return offset;
}

inline SafetensorsFile pack_gemv_fast(const Numbers& x, int64_t width, const char* zeros) {
    // Within 32 columns: [4][4][2] -> [4 of the middle][4][2], then each 8 columns even ones first.
    int source[32];
    for (int p = 0; p < 32; p++) {
        int eight = p / 8, even_first = p % 8, within = even_first % 4 * 2 + even_first / 4;  // undo the second step
        int middle = eight, outer = within / 2, last = within % 2;                            // then the first
        source[p] = outer * 8 + middle * 2 + last;
    }
    std::vector<int16_t> qweight(x.out / 4 * x.in);
    for (int64_t n = 0; n < x.out; n++)
        for (int64_t k = 0; k < x.in; k += 64)
            for (int64_t p = 0; p < 64; p++) {
                int64_t place = n % 4 * 64 + p;  // of the 256 values of four rows
                int16_t& word = qweight[n / 4 * x.in + k + place / 4];
                word = static_cast<int16_t>(static_cast<uint16_t>(word) | x.q_at(n, k + p / 32 * 32 + source[p % 32])
                                                                              << 4 * (place % 4));
            }
    return SafetensorsFile()
        .add("m.qweight", "I16", {x.out / 4, x.in}, qweight)
        .add("m.scales", "F16", {width * 8, x.out}, transposed(x, x.scale, width * 8, nan16))
        .add("m." + std::string(zeros), "F16", {width * 8, x.out}, transposed(x, scaled_zeros(x), width * 8, nan16));
}

inline SafetensorsFile pack_marlin(const Numbers& x) {
    std::vector<int> order;  // of the 16 x 64 values of a block: which is stored where
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < 4; j++) {
            int eight[8], count = 0;
            for (int block : {0, 1})
                for (int row : {2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1})
                    eight[count++] = 16 * row + i / 4 + 8 * block + 256 * j;
            for (int p : {0, 2, 4, 6, 1, 3, 5, 7}) order.push_back(eight[p]);
        }
    Words qweight(x.in / 16 * 2 * x.out);
    for (int64_t tile = 0; tile < x.in / 16; tile++)
        for (int64_t block = 0; block < x.out / 64; block++)
            for (int64_t p = 0; p < 1024; p++) {
                int64_t k = tile * 16 + order[p] % 256 / 16, n = block * 64 + order[p] / 256 * 16 + order[p] % 16;
                put(qweight, tile * 2 * x.out + block * 128 + p / 8, p % 8, x.q_at(n, k));
            }
    std::vector<int> scale_order;
    if (x.groups > 1) {
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 8; j++) scale_order.push_back(i + 8 * j);
    } else {
        for (int i = 0; i < 4; i++)
            for (int j : {0, 1, 8, 9, 16, 17, 24, 25}) scale_order.push_back(2 * i + j);
    }
    Halves natural = transposed(x, x.scale, x.groups, 0), scales(natural.size());
    const int64_t span = static_cast<int64_t>(scale_order.size());
    for (int64_t i = 0; i < static_cast<int64_t>(scales.size()); i++)
        scales[i] = natural[i / span * span + scale_order[i % span]];
    return SafetensorsFile()
        .add("m.qweight", "I32", {x.in / 16, 2 * x.out}, qweight)
        .add("m.scales", "F16", {x.groups, x.out}, scales);
}

// order: input order[k] is column k of x, whose groups are contiguous.
inline SafetensorsFile pack_gptq(const Numbers& x, int zero_bias, const std::vector<int32_t>& order, bool with_g_idx = true) {
    Words qweight(x.in / 8 * x.out), qzeros(x.groups * x.out / 8), g_idx(x.in);
    for (int64_t n = 0; n < x.out; n++) {
        for (int64_t k = 0; k < x.in; k++) put(qweight, order[k] / 8 * x.out + n, order[k] % 8, x.q_at(n, k));
        for (int64_t g = 0; g < x.groups; g++)
            put(qzeros, g * (x.out / 8) + n / 8, n % 8, x.z_at(n, g) - static_cast<uint32_t>(zero_bias));
    }
    for (int64_t k = 0; k < x.in; k++) g_idx[order[k]] = static_cast<int32_t>(k / x.group_size);
    SafetensorsFile file;
    if (with_g_idx) file.add("m.g_idx", "I32", {x.in}, g_idx);
    return file.add("m.qweight", "I32", {x.in / 8, x.out}, qweight)
        .add("m.qzeros", "I32", {x.groups, x.out / 8}, qzeros)
        .add("m.scales", "F16", {x.groups, x.out}, transposed(x, x.scale, x.groups, 0));
}

enum class Zeros { none, packed, bytes };

inline SafetensorsFile pack_compressed(const Numbers& x, Zeros zeros) {
    Words packed(x.out * x.in / 8), zero_words((x.out + 7) / 8 * x.groups);
    std::vector<int8_t> zero_bytes;
    for (int64_t n = 0; n < x.out; n++) {
        for (int64_t k = 0; k < x.in; k++) put(packed, n * (x.in / 8) + k / 8, k % 8, x.q_at(n, k));
        for (int64_t g = 0; g < x.groups; g++) {
            put(zero_words, n / 8 * x.groups + g, n % 8, x.z_at(n, g));
            zero_bytes.push_back(static_cast<int8_t>(static_cast<int>(x.z_at(n, g)) - 8));
        }
    }
    SafetensorsFile file;
    file.add("m.weight_packed", "I32", {x.out, x.in / 8}, packed).add("m.weight_scale", "F16", {x.out, x.groups}, x.scale);
    file.add("m.weight_shape", "I64", {2}, std::vector<int64_t>{x.out, x.in});
    if (zeros == Zeros::packed) file.add("m.weight_zero_point", "I32", {(x.out + 7) / 8, x.groups}, zero_words);
    if (zeros == Zeros::bytes) file.add("m.weight_zero_point", "I8", {x.out, x.groups}, zero_bytes);
    return file;
}

}  // namespace awq::test
