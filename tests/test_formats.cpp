// Every weight format, three ways: numbers packed by the layouts' descriptions (format_packers.h), real tensors written by
// the formats' own programs, and what must be refused.
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <thread>
#include "core/checkpoint/finite.h"
#include "core/checkpoint/weight_format.h"
#include "tests/checkpoint_files.h"
#include "tests/format_packers.h"

using namespace awq;
using namespace awq::test;

namespace {

AwqConfig awq_config(int64_t group_size) {
    AwqConfig config;
    config.quant_method = "awq";
    config.group_size = group_size;
    return config;
}

std::shared_ptr<const Checkpoint> open_checkpoint(const TempDirectory& directory, const SafetensorsFile& file,
                                                  const std::string& config = "{}") {
    directory.write("config.json", config);
    directory.write("model.safetensors", file.bytes());
    auto checkpoint = Checkpoint::open(directory.path());
    REQUIRE_MESSAGE(checkpoint.ok(), checkpoint.status().message());
    return *checkpoint;
}

std::vector<int32_t> natural_order(int64_t in) {
    std::vector<int32_t> order(in);
    for (int64_t k = 0; k < in; k++) order[k] = static_cast<int32_t>(k);
    return order;
}

// Reads everything in blocks of odd sizes, by two threads, and compares each number.
void check_rows(const WeightRows& rows, const Numbers& x, bool stored_offsets) {
    REQUIRE(rows.out == x.out);
    REQUIRE(rows.in == x.in);
    REQUIRE(rows.group_size == x.group_size);
    CHECK(rows.integer_zeros == !stored_offsets);
    CHECK(rows.dtype == DType::f16);
    std::vector<uint8_t> q(x.out * x.in, 0xee);
    std::vector<float> scale(x.out * x.groups), offset(x.out * x.groups), dense(x.out * x.in);
    auto read = [&](int64_t begin, int64_t end) {
        for (int64_t n = begin, block = 1; n < end; n += block, block = block * 3 % 157 + 1) {
            block = std::min(block, end - n);
            rows.read_quantized(n, block, q.data() + n * x.in, scale.data() + n * x.groups, offset.data() + n * x.groups);
            rows.read_dense(n, block, dense.data() + n * x.in);
        }
    };
    std::thread half(read, 0, x.out / 2);
    read(x.out / 2, x.out);
    half.join();
    CHECK(rows.status().ok());
    CHECK(q == x.q);
    const Halves stored = scaled_zeros(x);
    int64_t wrong_scales = 0, wrong_dense = 0;
    for (int64_t i = 0; i < x.out * x.groups; i++) {
        const float s = half_to_float(x.scale[i]),
                    o = stored_offsets ? half_to_float(stored[i]) : -static_cast<float>(x.z[i]) * s;
        wrong_scales += scale[i] != s || offset[i] != o;
        for (int64_t k = i * x.group_size; k < (i + 1) * x.group_size; k++) {
            const float zero_form = static_cast<float>(x.q[k] - x.z[i]) * s, offset_form = static_cast<float>(x.q[k]) * s + o;
            wrong_dense += dense[k] != (stored_offsets ? offset_form : zero_form);
        }
    }
    CHECK(wrong_scales == 0);
    CHECK(wrong_dense == 0);
}

void check_format(const char* name, const Numbers& x, const SafetensorsFile& file, const AwqConfig& config,
                  const std::vector<int32_t>& order = {}) {
    CAPTURE(name);
    CAPTURE(x.out);
    CAPTURE(x.in);
    CAPTURE(x.group_size);
    TempDirectory directory;
    auto checkpoint = open_checkpoint(directory, file);
    ModuleTensors tensors{*checkpoint, "m"};
    auto format = detect_format(tensors, config, x.out, x.in);
    REQUIRE_MESSAGE(format.ok(), format.status().message());
    CHECK(std::string((*format)->name) == name);
    auto rows = (*format)->open(tensors, config, x.out, x.in);
    REQUIRE_MESSAGE(rows.ok(), rows.status().message());
    CHECK((*rows)->input_order == order);
    check_rows(**rows, x, std::string(name) == "gemv_fast" || std::string(name) == "llm-awq");
    for (const auto& tensor : checkpoint->tensors()) {
        const auto& suffixes = (*format)->suffixes;
        CHECK(std::find(suffixes.begin(), suffixes.end(), tensor.name.substr(2)) != suffixes.end());
    }
}

// The message of the first error in detecting, then opening, module m of out x in; "" if there is none.
std::string error_of(const SafetensorsFile& file, const AwqConfig& config, int64_t out, int64_t in,
                     const std::string& config_json = "{}") {
    TempDirectory directory;
    auto checkpoint = open_checkpoint(directory, file, config_json);
    ModuleTensors tensors{*checkpoint, "m"};
    auto format = detect_format(tensors, config, out, in);
    if (!format.ok()) return format.status().message();
    auto rows = (*format)->open(tensors, config, out, in);
    return rows.ok() ? "" : rows.status().message();
}

}  // namespace

TEST_CASE("formats: the table has every file once") {
    std::vector<std::string> names;
    for (const WeightFormat* format : weight_formats()) names.push_back(format->name);
    std::sort(names.begin(), names.end());
    CHECK(names ==
          std::vector<std::string>{"compressed-tensors", "dense", "gemm", "gemv", "gemv_fast", "gptq", "llm-awq", "marlin"});
}

TEST_CASE("formats: AWQ GEMM, all shapes") {
    const int64_t shapes[][3] = {{8, 8, 8},       {8, 64, 32},     {24, 72, 24},   {136, 192, 64},
                                 {256, 256, 128}, {128, 200, 200}, {1032, 136, 8}, {64, 7, 7}};
    for (const auto& [out, in, group_size] : shapes) {
        Numbers x(out, in, group_size);
        check_format("gemm", x, pack_gemm(x), awq_config(group_size));
    }
    Numbers x(40, 96, 96);
    check_format("gemm", x, pack_gemm(x), awq_config(-1));
    AwqConfig other = awq_config(96);
    other.version = "gemv";  // the tensors decide
    other.backend = "llm-awq";
    check_format("gemm", x, pack_gemm(x), other);
}

TEST_CASE("formats: AWQ GEMV, padded to 8, 16 or 32 groups") {
    const int64_t shapes[][4] = {{64, 256, 128, 1}, {8, 1152, 128, 2},  {40, 576, 64, 2}, {24, 96, 32, 4},
                                 {16, 1056, 32, 8}, {256, 256, 256, 1}, {4, 512, 512, 1}};
    for (const auto& [out, in, group_size, width] : shapes) {
        Numbers x(out, in, group_size);
        check_format("gemv", x, pack_gemv(x, width), awq_config(group_size));
    }
    Numbers x(48, 384, 384);
    check_format("gemv", x, pack_gemv(x, 1), awq_config(-1));
}

TEST_CASE("formats: GEMVFast and llm-awq, offsets as stored") {
    const int64_t shapes[][4] = {{64, 256, 128, 1}, {8, 1152, 128, 2}, {40, 576, 64, 2}, {24, 192, 32, 4}, {256, 64, 64, 2}};
    for (const auto& [out, in, group_size, width] : shapes) {
        Numbers x(out, in, group_size);
        check_format("gemv_fast", x, pack_gemv_fast(x, width, "qzeros"), awq_config(group_size));
        check_format("llm-awq", x, pack_gemv_fast(x, width, "scaled_zeros"), awq_config(group_size));
    }
}

TEST_CASE("formats: Marlin, by groups and with one") {
    const int64_t shapes[][3] = {{64, 256, 128}, {192, 80, 16}, {128, 128, 128}, {320, 64, 32}};
    for (const auto& [out, in, group_size] : shapes) {
        Numbers x(out, in, group_size, 8, 8);
        check_format("marlin", x, pack_marlin(x), awq_config(group_size));
    }
    Numbers x(64, 96, 96, 8, 8);
    check_format("marlin", x, pack_marlin(x), awq_config(-1));
}

TEST_CASE("formats: GPTQ, its minus one and its act order") {
    const int64_t shapes[][3] = {{64, 256, 128}, {8, 64, 32}, {72, 200, 40}, {200, 136, 136}};
    for (const auto& [out, in, group_size] : shapes) {
        AwqConfig config = awq_config(group_size);
        config.quant_method = "gptq";
        Numbers x(out, in, group_size, 1, 16);
        check_format("gptq", x, pack_gptq(x, 1, natural_order(in)), config);
        check_format("gptq", x, pack_gptq(x, 1, natural_order(in), false), config);

        // a random order of the inputs, rising within each group, as the reader gives it back
        std::vector<int32_t> order = natural_order(in);
        std::shuffle(order.begin(), order.end(), std::mt19937(5));
        for (int64_t k = 0; k < in; k += group_size) std::sort(order.begin() + k, order.begin() + k + group_size);
        config.desc_act = true;
        check_format("gptq", x, pack_gptq(x, 1, order), config, group_size == in ? std::vector<int32_t>() : order);

        config.checkpoint_format = "gptq_v2";
        Numbers y(out, in, group_size, 0, 15);
        check_format("gptq", y, pack_gptq(y, 0, natural_order(in)), config);
    }
}

TEST_CASE("formats: compressed-tensors, symmetric or not, by group or channel") {
    AwqConfig config;
    config.quant_method = "compressed-tensors";
    const int64_t shapes[][3] = {{64, 256, 128}, {12, 64, 32}, {9, 40, 40}, {256, 256, 16}};
    for (const auto& [out, in, group_size] : shapes) {
        Numbers symmetric(out, in, group_size, 8, 8), x(out, in, group_size);
        check_format("compressed-tensors", symmetric, pack_compressed(symmetric, Zeros::none), config);
        check_format("compressed-tensors", x, pack_compressed(x, Zeros::packed), config);
        check_format("compressed-tensors", x, pack_compressed(x, Zeros::bytes), config);
    }
    // actorder "group": columns 0 1 2 ... of x are the inputs 1 3 5 ... then 0 2 4 ...
    Numbers x(8, 16, 8);
    std::vector<int32_t> order = {1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14};
    Numbers in_file = x;
    Words g_idx(16);
    for (int64_t k = 0; k < 16; k++) {
        for (int64_t n = 0; n < 8; n++) in_file.q[n * 16 + order[k]] = x.q[n * 16 + k];
        g_idx[order[k]] = static_cast<int32_t>(k / 8);
    }
    check_format("compressed-tensors", x, pack_compressed(in_file, Zeros::packed).add("m.weight_g_idx", "I32", {16}, g_idx),
                 config, order);
}

TEST_CASE("formats: bfloat16 scales") {
    Numbers x(16, 32, 32);
    for (uint16_t& scale : x.scale) scale = float_to_bf16(half_to_float(scale));
    TempDirectory directory;
    auto checkpoint = open_checkpoint(directory, pack_gemm(x, "BF16"));
    ModuleTensors tensors{*checkpoint, "m"};
    auto format = detect_format(tensors, awq_config(32), 16, 32);
    REQUIRE(format.ok());
    auto rows = (*format)->open(tensors, awq_config(32), 16, 32);
    REQUIRE(rows.ok());
    CHECK((*rows)->dtype == DType::bf16);
    std::vector<float> dense(16 * 32);
    (*rows)->read_dense(0, 16, dense.data());
    int64_t wrong = 0;
    for (int64_t i = 0; i < 16 * 32; i++)
        wrong += dense[i] != static_cast<float>(x.q[i] - x.z[i / 32]) * bf16_to_float(x.scale[i / 32]);
    CHECK(wrong == 0);
}

TEST_CASE("formats: shapes that fit two layouts are told apart by the other tensors") {
    Numbers square(128, 128, 32), gptq_like(64, 512, 128), marlin_like(64, 1024, 128, 8, 8);
    check_format("gemm", square, pack_gemm(square), awq_config(32));
    check_format("gemv", square, pack_gemv(square, 4), awq_config(32));
    check_format("gemv", gptq_like, pack_gemv(gptq_like, 1), awq_config(128));
    Numbers gptq(64, 512, 128, 1, 16);
    check_format("gptq", gptq, pack_gptq(gptq, 1, natural_order(512)), awq_config(128));
    check_format("gptq", gptq, pack_gptq(gptq, 1, natural_order(512), false), awq_config(128));
    check_format("gemv", marlin_like, pack_gemv(marlin_like, 1), awq_config(128));
    check_format("marlin", marlin_like, pack_marlin(marlin_like), awq_config(128));
}

TEST_CASE("formats: plain tensors of every floating type") {
    std::vector<float> values = {1.5f, -2, 0.25f, 0, 3, -0.5f};
    Halves half, brain;
    std::vector<double> wide(values.begin(), values.end());
    for (float value : values) {
        half.push_back(float_to_half(value));
        brain.push_back(float_to_bf16(value));
    }
    TempDirectory directory;
    auto checkpoint = open_checkpoint(directory, SafetensorsFile()
                                                     .add("f16.weight", "F16", {2, 3}, half)
                                                     .add("bf16.weight", "BF16", {2, 3}, brain)
                                                     .add("f32.weight", "F32", {2, 3}, values)
                                                     .add("f64.weight", "F64", {2, 3}, wide)
                                                     .add("conv.weight", "F32", {2, 1, 3, 1}, values)
                                                     .add("vector", "F32", {6}, values)
                                                     .add("u8", "U8", {6}, std::vector<uint8_t>(6)));
    for (const char* module : {"f16", "bf16", "f32", "f64", "conv"}) {
        CAPTURE(module);
        ModuleTensors tensors{*checkpoint, module};
        auto format = detect_format(tensors, AwqConfig(), 2, 3);
        REQUIRE(format.ok());
        CHECK(std::string((*format)->name) == "dense");
        auto rows = (*format)->open(tensors, AwqConfig(), 2, 3);
        REQUIRE(rows.ok());
        CHECK((*rows)->group_size == 0);
        float row[3];
        (*rows)->read_dense(1, 1, row);
        CHECK(std::equal(row, row + 3, values.begin() + 3));
        CHECK((*rows)->status().ok());
    }
    CHECK(open_plain(*checkpoint, "vector", 1, 6).ok());
    auto message = [&](const char* name, int64_t out, int64_t in) {
        return open_plain(*checkpoint, name, out, in).status().message();
    };
    CHECK(message("vector", 1, 5) == "model.safetensors: vector: F32 [6] found; F16, BF16, F32 or F64 [5] expected");
    CHECK(message("vector", 2, 3) == "model.safetensors: vector: F32 [6] found; F16, BF16, F32 or F64 [2, 3] expected");
    CHECK(message("f16.weight", 3, 2) ==
          "model.safetensors: f16.weight: F16 [2, 3] found; F16, BF16, F32 or F64 [3, 2] expected");
    CHECK(message("u8", 1, 6) == "model.safetensors: u8: U8 [6] found; F16, BF16, F32 or F64 [6] expected");
    CHECK(message("none", 1, 6) == "none: no such tensor in the checkpoint; F16, BF16, F32 or F64 [6] expected");
}

TEST_CASE("formats: numbers that are not finite are found, wherever they stand") {
    std::mt19937 random(3);
    struct {
        DType type;
        uint64_t bad[2], good;
    } cases[] = {{DType::f16, {0x7c00, 0xfe01}, 0xfbff},
                 {DType::bf16, {0x7f80, 0xffc1}, 0xff7f},
                 {DType::f32, {0x7f800000, 0xffc00001}, 0xff7fffff},
                 {DType::c64, {0x7f800000, 0xffc0000100000000}, 0xff7fffffff7fffff},  // of either part
                 {DType::f64, {0x7ff0000000000000, 0xfff8000000000001}, 0xffefffffffffffff},
                 {DType::f8_e5m2, {0x7c, 0xff}, 0xfb},
                 {DType::f8_e4m3, {0x7f, 0xff}, 0xfe}};
    for (const auto& c : cases) {
        CAPTURE(dtype_name(c.type));
        const size_t bytes = dtype_bytes(c.type);
        for (int64_t count : {1, 3, 8, 511, 512, 4099, 70001}) {
            std::vector<uint8_t> data(count * bytes + 1);
            uint8_t* at = data.data() + 1;  // odd on purpose
            for (int64_t i = 0; i < count; i++) std::memcpy(at + i * bytes, &c.good, bytes);
            CHECK(first_non_finite(c.type, at, count) == -1);
            CHECK(count_non_finite(c.type, at, count) == 0);
            int64_t first = random() % count, last = count - 1;
            std::memcpy(at + last * bytes, &c.bad[0], bytes);
            std::memcpy(at + first * bytes, &c.bad[1], bytes);
            CHECK(first_non_finite(c.type, at, count) == first);
            CHECK(count_non_finite(c.type, at, count) == (first == last ? 1 : 2));
        }
    }
    std::vector<uint8_t> large((48 << 20) + 2);  // several threads look at it
    large[40 << 20] = 0x7f;
    large[(20 << 20) + 1] = 0x7e;
    CHECK(first_non_finite(DType::f16, large.data(), (24 << 20) + 1) == 10 << 20);

    CHECK(first_non_finite(DType::f16, large.data(), 0) == -1);
    CHECK(count_non_finite(DType::f16, large.data(), 0) == 0);
    std::vector<uint8_t> ones(64, 0xff);  // of types without such numbers
    for (DType type : {DType::i32, DType::u8, DType::i64}) {
        CHECK(first_non_finite(type, ones.data(), 8) == -1);
        CHECK(count_non_finite(type, ones.data(), 8) == 0);
    }

    Numbers x(16, 64, 32);
    x.scale[5 * 2 + 1] = 0x7c00;
    CHECK(error_of(pack_gemm(x), awq_config(32), 16, 64) ==
          "model.safetensors: m.scales: [1, 5] is NaN or infinite; finite numbers expected");
    CHECK(error_of(pack_gemv(x, 4), awq_config(32), 16, 64) ==
          "model.safetensors: m.scales: [5, 1] is NaN or infinite; finite numbers expected");
    CHECK(error_of(pack_gemv_fast(x, 4, "qzeros"), awq_config(32), 16, 64) ==
          "model.safetensors: m.scales: [1, 5] is NaN or infinite; finite numbers expected");
    CHECK(error_of(pack_compressed(x, Zeros::none), {}, 16, 64) ==
          "model.safetensors: m.weight_scale: [5, 1] is NaN or infinite; finite numbers expected");
    CHECK(error_of(SafetensorsFile().add("m.weight", "F32", {2, 2}, std::vector<float>{1, 2, 3, NAN}), {}, 2, 2) ==
          "model.safetensors: m.weight: [1, 1] is NaN or infinite; finite numbers expected");
}

TEST_CASE("formats: what does not fit is refused by its name") {
    Numbers x(16, 64, 32);
    const std::string f = "model.safetensors: ";
    CHECK(error_of(pack_gemm(x), awq_config(64), 16, 64) ==
          f + "m.qzeros: I32 [2, 2] found; I32 [1, 2] expected (group_size 64)");
    CHECK(error_of(pack_gemm(x), awq_config(-1), 16, 64) ==
          f + "m.qzeros: I32 [2, 2] found; I32 [1, 2] expected (group_size -1)");
    CHECK(error_of(pack_gemm(x), awq_config(48), 16, 64) == "m: group_size 48 found; a divisor of its 64 inputs expected");
    CHECK(error_of(pack_gemm(x), awq_config(0), 16, 64) == "m: group_size 0 found; a divisor of its 64 inputs expected");
    AwqConfig eight = awq_config(32);
    eight.bits = 8;
    CHECK(error_of(pack_gemm(x), eight, 16, 64) == "m: bits 8 configured; 4 expected");
    CHECK(error_of(pack_gemm(x), awq_config(32), 16, 128)
              .starts_with("m: qweight I32 [64, 2], qzeros I32 [2, 2], scales F16 [2, 16] found; a Linear of "
                           "16 outputs x 128 inputs in one of the formats"));
    CHECK(error_of(SafetensorsFile(), awq_config(32), 16, 64) ==
          "m: no weights in the checkpoint; a Linear of 16 outputs x 64 inputs expected");
    CHECK(error_of(pack_gemm(x).add("m.weight", "F16", {16, 64}, Halves(1024)), awq_config(32), 16, 64) ==
          "m: its tensors are of two formats, gemm and dense; one expected");
    CHECK(error_of(SafetensorsFile().add("m.qweight", "I32", {64, 2}, Words(128)), awq_config(32), 16, 64) ==
          "m.qzeros: no such tensor in the checkpoint; I32 [2, 2] expected (group_size 32)");
    CHECK(error_of(SafetensorsFile()
                       .add("m.qweight", "I32", {64, 2}, Words(128))
                       .add("m.qzeros", "I32", {2, 2}, Words(4))
                       .add("m.scales", "F32", {2, 16}, std::vector<float>(32)),
                   awq_config(32), 16, 64) == f + "m.scales: F32 [2, 16] found; F16 or BF16 [2, 16] expected (group_size 32)");

    CHECK(error_of(pack_gemv(x, 8), awq_config(32), 16, 64) ==
          f + "m.qzeros: I32 [16, 8] found; I32 [16, 4] expected (group_size 32)");
    CHECK(error_of(pack_gemv(Numbers(16, 64, 16), 1), awq_config(16), 16, 64) ==
          "m: group_size 16 found; 32, 64 or at least 128 expected in a GEMV layout");
    CHECK(error_of(SafetensorsFile().add("m.qweight", "I16", {4, 96}, std::vector<int16_t>(384)), awq_config(32), 16, 96) ==
          "m: 96 inputs found; a multiple of 64 expected in a GEMVFast layout");
    CHECK(error_of(SafetensorsFile().add("m.qweight", "I32", {4, 96}, Words(384)), awq_config(32), 48, 64) ==
          "m: 48 outputs found; a multiple of 64 expected in Marlin");
}

TEST_CASE("formats: GPTQ's g_idx and compressed-tensors' own claims are checked") {
    const std::string f = "model.safetensors: ";
    AwqConfig gptq = awq_config(32);
    gptq.quant_method = "gptq";
    Numbers x(16, 64, 32, 1, 16);
    auto with_g_idx = [&](const Words& g_idx) {
        return error_of(
            pack_gptq(x, 1, natural_order(64), false).add("m.g_idx", "I32", {static_cast<int64_t>(g_idx.size())}, g_idx), gptq,
            16, 64);
    };
    Words g_idx(64, 0);
    CHECK(with_g_idx(g_idx) == f + "m.g_idx: group 0 has 64 inputs; 32 expected");
    g_idx[63] = 2;
    CHECK(with_g_idx(g_idx) == f + "m.g_idx: [63]: 2 found; groups of 0 .. 1 expected");
    g_idx[63] = -1;
    CHECK(with_g_idx(g_idx) == f + "m.g_idx: [63]: -1 found; groups of 0 .. 1 expected");
    CHECK(with_g_idx(Words(63)) == f + "m.g_idx: I32 [63] found; I32 [64] expected");
    gptq.desc_act = true;
    CHECK(error_of(pack_gptq(x, 1, natural_order(64), false), gptq, 16, 64) ==
          "m.g_idx: no such tensor in the checkpoint; I32 [64] expected");

    Numbers y(16, 64, 32);
    auto claimed = [&](Zeros zeros, const std::string& weights) {
        return error_of(pack_compressed(y, zeros), {}, 16, 64,
                        "{\"quantization_config\": {\"config_groups\": {\"group_0\": {\"weights\": {" + weights + "}}}}}");
    };
    CHECK(claimed(Zeros::packed, "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 32, \"symmetric\": false") == "");
    CHECK(claimed(Zeros::none, "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 32, \"symmetric\": false") ==
          "m.weight_zero_point: no such tensor in the checkpoint; I32 [2, 2] expected");
    CHECK(claimed(Zeros::none, "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 128") ==
          f + "m.weight_scale: F16 [16, 2] found, which is 4 bits in groups of 32; 4 bits in groups of 128 expected "
              "(config_groups)");
    CHECK(claimed(Zeros::none, "\"num_bits\": 8, \"strategy\": \"channel\", \"group_size\": null") ==
          f + "m.weight_scale: F16 [16, 2] found, which is 4 bits in groups of 32; 8 bits in groups of 64 expected "
              "(config_groups)");
    CHECK(error_of(SafetensorsFile()
                       .add("m.weight_packed", "I32", {16, 8}, Words(128))
                       .add("m.weight_shape", "I64", {2}, std::vector<int64_t>{64, 16}),
                   {}, 16, 64) == f + "m.weight_shape: [64, 16] found; [16, 64] expected");
    CHECK(error_of(SafetensorsFile()
                       .add("m.weight_packed", "I32", {1, 1}, Words(1))
                       .add("m.weight_scale", "F16", {1, 1}, Halves(1))
                       .add("m.weight_zero_point", "I8", {1, 1}, std::vector<int8_t>{8}),
                   {}, 1, 8) == f + "m.weight_zero_point: [0, 0]: 8 found; -8 .. 7 expected");
    CHECK(error_of(SafetensorsFile()
                       .add("m.weight_packed", "I32", {1, 1}, Words(1))
                       .add("m.weight_scale", "F16", {1, 1}, Halves(1))
                       .add("m.weight_zero_point", "I8", {1, 1}, std::vector<int8_t>{-9}),
                   {}, 1, 8) == f + "m.weight_zero_point: [0, 0]: -9 found; -8 .. 7 expected");
    CHECK(error_of(SafetensorsFile()
                       .add("m.weight_packed", "I32", {16, 8}, Words(128))
                       .add("m.weight_shape", "I64", {2}, std::vector<int64_t>{16, 63}),
                   {}, 16, 64) == f + "m.weight_shape: [16, 63] found; [16, 64] expected");
    CHECK(error_of(SafetensorsFile().add("m.weight_packed", "I32", {16, 1}, Words(16)), {}, 16, 12) ==
          "m: 12 inputs found; a multiple of 8 expected");
    auto scaled = [&](std::vector<int64_t> shape) {
        int64_t count = 1;
        for (int64_t n : shape) count *= n;
        return error_of(SafetensorsFile()
                            .add("m.weight_packed", "I32", {16, 8}, Words(128))
                            .add("m.weight_scale", "F16", shape, Halves(static_cast<size_t>(count), 0x3c00)),
                        {}, 16, 64);
    };
    CHECK(scaled({16, 4}) == "");
    CHECK(scaled({16}).find(f + "m.weight_scale: F16 [16] found; ") == 0);
    CHECK(scaled({16, 5}).find(f + "m.weight_scale: F16 [16, 5] found; ") == 0);
    CHECK(scaled({16, 128}).find(f + "m.weight_scale: F16 [16, 128] found; ") == 0);
    CHECK(scaled({16, 0}).find(f + "m.weight_scale: F16 [16, 0] found; ") == 0);
    CHECK(error_of(SafetensorsFile().add("m.weight_packed", "I32", {16, 8}, Words(128)), {}, 16, 64).find("m.weight_scale: no such tensor") == 0);

    auto groups = [&](const std::string& text) {
        return error_of(pack_compressed(y, Zeros::none), {}, 16, 64, "{\"quantization_config\": {\"config_groups\": " + text + "}}");
    };
    const std::string found = f + "m.weight_scale: F16 [16, 2] found, which is 4 bits in groups of 32; ";
    CHECK(groups("5") == "");
    CHECK(groups("{}") == found + "nothing expected (config_groups)");
    for (const char* group : {"5", "{}", "{\"weights\": 5}", "{\"weights\": {\"num_bits\": \"4\", \"strategy\": 5, \"group_size\": -1, \"symmetric\": 5}}"})
        CHECK(groups("{\"a\": " + std::string(group) + "}") == found + "0 bits in groups of 64 expected (config_groups)");
    CHECK(groups(R"({"a": {"weights": {"num_bits": 4, "group_size": "x"}}})") == found + "4 bits in groups of 64 expected (config_groups)");
    const std::string symmetric = R"({"weights": {"num_bits": 4, "group_size": 32, "symmetric": true}})", asymmetric = R"({"weights": {"num_bits": 4, "group_size": 32, "symmetric": false}})";
    CHECK(groups("{\"a\": " + symmetric + ", \"b\": " + asymmetric + "}") == "");    // which of them is meant, the tensors say
    CHECK(groups("{\"a\": " + asymmetric + ", \"b\": " + symmetric + "}") == "");
    CHECK(groups("{\"a\": " + asymmetric + ", \"b\": " + asymmetric + "}").find("m.weight_zero_point: no such tensor") == 0);
    CHECK(groups(R"({"a": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": 5}}})") == "");
    std::string many;
    for (int i = 0; i < 50; i++) many += (i ? ", \"" : "{\"") + std::to_string(i) + "\": {}";
    CHECK(groups(many + "}").size() < found.size() + 160);
}

// tests/data/formats holds one k_proj of each layout as its own program wrote it (AutoAWQ 0.2.9, llm-awq, AutoGPTQ
// 0.7.1, compressed-tensors 0.20.0); the hashes are of the float rows that a reader in another language makes of them.
TEST_CASE("formats: tensors written by the formats' own programs") {
    struct {
        const char *module, *format;
        int64_t group_size, out, in;
        uint64_t hash;
    } cases[] = {
        {"llama-gemm-g128", "gemm", 128, 64, 256, 0x8d220c8b3935a6f6},
        {"llama-gemm-g32", "gemm", 32, 64, 256, 0x5ba337dd7b07b81d},
        {"llama-gemm-g64", "gemm", 64, 192, 576, 0xc44ec5e85f9ec91f},
        {"llama-gemm-gm1", "gemm", -1, 64, 256, 0xce2e6141ae1d258b},
        {"llama-awq-bf16", "gemm", 128, 64, 256, 0x2e3af501284d465e},
        {"llama-gemv-g128", "gemv", 128, 64, 256, 0x13eb695f52b9ba0a},
        {"llama-gemvfast-g128", "gemv_fast", 128, 64, 256, 0xa799014c3ad5d55e},
        {"llama-llmawq-g128", "llm-awq", 128, 64, 256, 0x1d4833d146895087},
        {"llama-marlin-g128", "marlin", 128, 64, 256, 0x580fb3428ff665c8},
        {"llama-gptq-g128", "gptq", 128, 64, 256, 0x94f02b69f26d1278},
        {"llama-gptq-actorder-g32", "gptq", 32, 64, 256, 0xb391bd73b6db2ec1},
        {"llama-ct-asym-g128", "compressed-tensors", 128, 64, 256, 0x6c2967edf707e33e},
        {"llama-ct-channel", "compressed-tensors", 128, 64, 256, 0x768d214c4afc24d3},
        {"qwen3-ct-sym-g32", "compressed-tensors", 32, 192, 256, 0xb4a7f17b00d09f5f},
    };
    auto checkpoint = Checkpoint::open("tests/data/formats");
    REQUIRE_MESSAGE(checkpoint.ok(), checkpoint.status().message());
    for (const auto& c : cases) {
        CAPTURE(c.module);
        ModuleTensors tensors{**checkpoint, c.module};
        AwqConfig config = awq_config(c.group_size);
        auto format = detect_format(tensors, config, c.out, c.in);
        REQUIRE_MESSAGE(format.ok(), format.status().message());
        CHECK(std::string((*format)->name) == c.format);
        auto rows = (*format)->open(tensors, config, c.out, c.in);
        REQUIRE_MESSAGE(rows.ok(), rows.status().message());
        std::vector<float> read(c.out * c.in), dense(c.out * c.in);
        (*rows)->read_dense(0, c.out, read.data());
        const auto& order = (*rows)->input_order;
        CHECK(order.empty() == (std::string(c.module) != "llama-gptq-actorder-g32"));
        for (int64_t n = 0; n < c.out; n++)
            for (int64_t k = 0; k < c.in; k++)
                dense[n * c.in + (order.empty() ? k : order[k])] = read[n * c.in + k] + 0.0f;  // no -0
        uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over the little-endian bytes
        for (size_t i = 0; i < dense.size() * 4; i++)
            hash = (hash ^ reinterpret_cast<const uint8_t*>(dense.data())[i]) * 0x100000001b3;
        CHECK(hash == c.hash);
    }
}

// AWQ_GOLDEN=directory of model directories: every Linear of every one is read.
TEST_CASE("formats: every Linear of the golden models") {
    const char* golden = getenv("AWQ_GOLDEN");
    if (!golden) return;
    std::filesystem::path models = std::filesystem::path(golden) / "models";
    int64_t linears = 0;
    for (const auto& entry : std::filesystem::directory_iterator(models)) {
        if (!entry.is_directory()) continue;
        CAPTURE(entry.path().string());
        auto opened = Checkpoint::open(entry.path().string());
        REQUIRE_MESSAGE(opened.ok(), opened.status().message());
        const Checkpoint& checkpoint = **opened;
        REQUIRE(checkpoint.has_weights());
        auto config = read_awq_config(checkpoint.quantization(), checkpoint.quantization_file(), {});
        REQUIRE_MESSAGE(config.ok(), config.status().message());
        for (const TensorInfo& tensor : checkpoint.tensors()) {
            std::vector<std::pair<int64_t, int64_t>> sizes;  // out x in that the shape allows
            if (tensor.shape.size() != 2) continue;
            const int64_t rows = static_cast<int64_t>(tensor.shape[0]), cols = static_cast<int64_t>(tensor.shape[1]);
            if (tensor.name.ends_with(".qweight") && tensor.type == DType::i16) sizes = {{4 * rows, cols}};
            if (tensor.name.ends_with(".qweight") && tensor.type == DType::i32)
                sizes = {{8 * cols, rows}, {rows, 8 * cols}, {cols, 8 * rows}, {cols / 2, 16 * rows}};
            if (tensor.name.ends_with(".weight_packed")) sizes = {{rows, 8 * cols}};
            if (tensor.name.ends_with(".weight")) sizes = {{rows, cols}};
            if (sizes.empty()) continue;
            ModuleTensors tensors{checkpoint, tensor.name.substr(0, tensor.name.rfind('.'))};
            bool read = false;
            for (auto [out, in] : sizes) {
                auto format = detect_format(tensors, *config, out, in);
                if (!format.ok()) continue;
                auto source = (*format)->open(tensors, *config, out, in);
                if (!source.ok()) continue;
                std::vector<float> dense(out * in);
                (*source)->read_dense(0, out, dense.data());
                read = true;
                linears++;
                break;
            }
            CHECK_MESSAGE(read, tensor.name);
        }
    }
    CHECK(linears > 0);
    MESSAGE("Linears and tables read: ", linears);
}
