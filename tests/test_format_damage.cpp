// Every weight format with each of its tensors missing, of another type or shape, unreadable or not finite.
#include <doctest/doctest.h>
#include <unistd.h>
#include <filesystem>
#include "core/checkpoint/weight_format.h"
#include "tests/checkpoint_files.h"
#include "tests/format_packers.h"

using namespace awq;
using namespace awq::test;

namespace {

struct FormatCase {
    const char* name;
    SafetensorsFile file;
    int64_t out, in, group_size;
    const char* packed;  // the tensor that decides which format it is
};

AwqConfig configured(int64_t group_size) {
    AwqConfig config;
    config.quant_method = "awq";
    config.group_size = group_size;
    return config;
}

std::vector<FormatCase> format_cases() {
    const Numbers x(16, 64, 32), y(16, 64, 32, 1, 15), marlin(64, 64, 32, 8, 8);
    std::vector<int32_t> order(64);
    for (int32_t k = 0; k < 64; k++) order[static_cast<size_t>(k)] = k * 7 % 64;
    SafetensorsFile words = pack_compressed(x, Zeros::packed), bytes = pack_compressed(x, Zeros::bytes);
    words.add("m.weight_g_idx", "I32", {64}, Words(64, 0));
    for (int k = 0; k < 32; k++) words.tensors.back().data[static_cast<size_t>(4 * k)] = 1;
    return {{"gemm", pack_gemm(x), 16, 64, 32, "qweight"},
            {"gemv", pack_gemv(x, 4), 16, 64, 32, "qweight"},
            {"gemv_fast", pack_gemv_fast(x, 4, "qzeros"), 16, 64, 32, "qweight"},
            {"llm-awq", pack_gemv_fast(x, 4, "scaled_zeros"), 16, 64, 32, "qweight"},
            {"marlin", pack_marlin(marlin), 64, 64, 32, "qweight"},
            {"gptq", pack_gptq(y, 1, order), 16, 64, 32, "qweight"},
            {"compressed-tensors", words, 16, 64, 32, "weight_packed"},
            {"compressed-tensors", bytes, 16, 64, 32, "weight_packed"},
            {"dense", SafetensorsFile().add("m.weight", "F16", {16, 64}, Halves(1024, 0x3c00)), 16, 64, 32, "weight"}};
}

struct Opened {
    std::shared_ptr<const Checkpoint> checkpoint;
    const WeightFormat* format = nullptr;
    std::unique_ptr<WeightRows> rows;
    Status status;
};

std::shared_ptr<const Checkpoint> open_directory(const TempDirectory& directory, const SafetensorsFile& file) {
    directory.write("config.json", "{}");
    directory.write("model.safetensors", file.bytes());
    auto checkpoint = Checkpoint::open(directory.path());
    REQUIRE_MESSAGE(checkpoint.ok(), checkpoint.status().message());
    return *checkpoint;
}

Opened open_module(std::shared_ptr<const Checkpoint> checkpoint, const FormatCase& c, int64_t group_size, int bits = 4) {
    Opened out{std::move(checkpoint), nullptr, nullptr, {}};
    AwqConfig config = configured(group_size);
    config.bits = bits;
    ModuleTensors tensors{*out.checkpoint, "m"};
    auto format = detect_format(tensors, config, c.out, c.in);
    if (!format.ok()) {
        out.status = format.status();
        return out;
    }
    out.format = *format;
    auto rows = (*format)->open(tensors, config, c.out, c.in);
    if (rows.ok())
        out.rows = std::move(*rows);
    else
        out.status = rows.status();
    return out;
}

}  // namespace

TEST_CASE("format damage: a tensor missing, of another type, of another shape") {
    for (const FormatCase& c : format_cases()) {
        CAPTURE(c.name);
        TempDirectory directory;
        Opened whole = open_module(open_directory(directory, c.file), c, c.group_size);
        REQUIRE_MESSAGE(whole.status.ok(), whole.status.message());
        CHECK(whole.format->name == std::string(c.name));
        for (size_t i = 0; i < c.file.tensors.size(); i++) {
            const std::string name = c.file.tensors[i].name, suffix = name.substr(2);
            CAPTURE(name);
            const bool decides = suffix == c.packed;
            auto refused = [&](const SafetensorsFile& file, const std::string& what) {
                TempDirectory damaged;
                Opened opened = open_module(open_directory(damaged, file), c, c.group_size);
                CHECK_FALSE(opened.status.ok());
                CHECK_MESSAGE(opened.status.message().find(what) != std::string::npos, opened.status.message());
                CHECK_MESSAGE(opened.status.message().find(" expected") != std::string::npos, opened.status.message());
            };
            SafetensorsFile without = c.file;
            without.tensors.erase(without.tensors.begin() + static_cast<std::ptrdiff_t>(i));
            const bool optional = suffix == "g_idx" || suffix == "weight_g_idx" || suffix == "weight_shape" || suffix == "weight_zero_point";
            if (optional) {
                TempDirectory smaller;
                Opened opened = open_module(open_directory(smaller, without), c, c.group_size);
                CHECK_MESSAGE(opened.status.ok(), opened.status.message());
            } else if (suffix == "scaled_zeros") {
                refused(without, "m.qzeros: no such tensor in the checkpoint");  // it tells llm-awq from gemv_fast
            } else {
                refused(without, decides ? "m: " : name + ": no such tensor in the checkpoint; ");
            }
            SafetensorsFile retyped = c.file;  // as wide, of another kind
            SafetensorsFile::Tensor& typed = retyped.tensors[i];
            const std::string dtype = typed.dtype;
            typed.dtype = dtype == "I32" ? "F32" : dtype == "I64" ? "F64" : dtype == "I8" ? "U8" : dtype == "I16" ? "F16" : "I16";
            refused(retyped, suffix + (decides && c.packed != std::string("weight") && suffix != "weight_packed" ? " " : ": ") + typed.dtype + " [");
            SafetensorsFile unknown = c.file;  // a type of the specification that no module here has
            SafetensorsFile::Tensor& exotic = unknown.tensors[i];
            exotic.dtype = "F8_E8M0";
            exotic.data.resize(exotic.data.size() / (dtype == "I64" ? 8 : dtype == "I32" ? 4 : dtype == "I8" ? 1 : 2));
            refused(unknown, "F8_E8M0 [");
            SafetensorsFile longer = c.file;
            SafetensorsFile::Tensor& shaped = longer.tensors[i];
            shaped.data.append(shaped.data.size() / static_cast<size_t>(shaped.shape[0]), '\0');
            shaped.shape[0]++;
            refused(longer, suffix);
        }
    }
}

TEST_CASE("format damage: a group size, a number of bits that the layout does not hold") {
    for (const FormatCase& c : format_cases()) {
        CAPTURE(c.name);
        if (c.packed != std::string("qweight")) continue;  // the others' groups are what the tensors say
        TempDirectory directory;
        auto checkpoint = open_directory(directory, c.file);
        CHECK(open_module(checkpoint, c, 48).status.message() == "m: group_size 48 found; a divisor of its 64 inputs expected");
        CHECK(open_module(checkpoint, c, 32, 8).status.message() == "m: bits 8 configured; 4 expected");
        CHECK(open_module(checkpoint, c, 32, 3).status.message() == "m: bits 3 configured; 4 expected");
        const std::string sixteen = open_module(checkpoint, c, 16).status.message();
        if (std::string(c.name).find("gemv") == 0 || c.name == std::string("llm-awq"))
            CHECK(sixteen == "m: group_size 16 found; 32, 64 or at least 128 expected in a GEMV layout");
        else
            CHECK_MESSAGE(sixteen.ends_with(" expected (group_size 16)"), sixteen);
    }
    FormatCase twelve{"gptq", SafetensorsFile().add("m.qweight", "I32", {8, 12}, Words(96)), 12, 64, 32, "qweight"};
    TempDirectory directory;
    CHECK(open_module(open_directory(directory, twelve.file), twelve, 32).status.message() ==
          "m: 12 outputs found; a multiple of 8 expected in GPTQ");
}

TEST_CASE("format damage: NaN among scales and zeros that are floating numbers") {
    for (const FormatCase& c : format_cases())
        for (size_t i = 0; i < c.file.tensors.size(); i++) {
            if (c.file.tensors[i].dtype != "F16") continue;
            CAPTURE(c.name);
            SafetensorsFile file = c.file;
            SafetensorsFile::Tensor& tensor = file.tensors[i];
            tensor.data[0] = 0, tensor.data[1] = 0x7e;
            TempDirectory directory;
            Status status = open_module(open_directory(directory, file), c, c.group_size).status;
            CHECK(status.code() == Code::non_finite);
            CHECK(status.message() == "model.safetensors: " + tensor.name + ": [0, 0] is NaN or infinite; finite numbers expected");
        }
}

TEST_CASE("format damage: a file that is cut short before or after its tensors are checked") {
    for (const FormatCase& c : format_cases()) {
        CAPTURE(c.name);
        size_t data_bytes = 0, before = 0;
        for (const auto& tensor : c.file.tensors) data_bytes += tensor.data.size();
        for (const auto& tensor : c.file.tensors) {
            CAPTURE(tensor.name);
            before += tensor.data.size();
            const off_t keep = static_cast<off_t>(c.file.bytes().size() - data_bytes + before - 1);  // its last byte is gone
            std::vector<float> row(static_cast<size_t>(c.in));
            TempDirectory directory;
            auto checkpoint = open_directory(directory, c.file);
            REQUIRE(truncate(directory.file("model.safetensors").c_str(), keep) == 0);
            Opened opened = open_module(checkpoint, c, c.group_size);
            if (opened.rows) {  // what only rows are made of is read with the first of them
                opened.rows->read_dense(c.out - 1, 1, row.data());
                opened.status = opened.rows->status();
            }
            CHECK(opened.status.code() == Code::io);
            CHECK_MESSAGE(opened.status.message().find("model.safetensors") != std::string::npos, opened.status.message());

            TempDirectory later;
            auto sound = open_directory(later, c.file);
            Opened rows = open_module(sound, c, c.group_size);
            REQUIRE(rows.rows);
            REQUIRE(truncate(later.file("model.safetensors").c_str(), 200) == 0);
            rows.rows->read_dense(0, 1, row.data());
            CHECK(rows.rows->status().code() == Code::io);
        }
    }
}

TEST_CASE("format damage: where two formats share a shape, scales decide") {
    auto status_of = [](SafetensorsFile file, int64_t out, int64_t in) {
        TempDirectory directory;
        return open_module(open_directory(directory, file), {"", file, out, in, 32, "qweight"}, 32).status.message();
    };
    auto square = [](std::vector<int64_t> scales, const char* g_idx = nullptr) {
        int64_t count = 1;
        for (int64_t n : scales) count *= n;
        SafetensorsFile file;
        file.add("m.qweight", "I32", {64, 8}, Words(512)).add("m.qzeros", "I32", {2, 8}, Words(16));
        if (!scales.empty()) file.add("m.scales", "F16", scales, Halves(static_cast<size_t>(count)));
        if (g_idx) file.add(std::string("m.") + g_idx, "I32", {64}, Words(64));
        return file;
    };
    CHECK(status_of(square({2, 64}), 64, 64) == "");
    CHECK(status_of(square({}), 64, 64) == "m.scales: no such tensor in the checkpoint; F16 or BF16 [2, 64] expected (group_size 32)");
    CHECK(status_of(square({128}), 64, 64) == "model.safetensors: m.scales: F16 [128] found; F16 or BF16 [2, 64] expected (group_size 32)");
    CHECK(status_of(square({64, 64}), 64, 64) == "model.safetensors: m.scales: F16 [64, 64] found; F16 or BF16 [2, 64] expected (group_size 32)");
    CHECK(status_of(square({64, 32}), 64, 64) == "model.safetensors: m.qzeros: I32 [2, 8] found; I32 [64, 4] expected (group_size 32)");  // GEMV
    // 8 outputs of 64 inputs: the words of GPTQ and of GEMV lie alike
    auto eighth = [](std::vector<int64_t> scales, bool g_idx) {
        SafetensorsFile file;
        file.add("m.qweight", "I32", {8, 8}, Words(64)).add("m.scales", "F16", scales, Halves(static_cast<size_t>(scales[0] * scales[1])));
        if (g_idx) file.add("m.g_idx", "I32", {64}, Words(64));
        return file;
    };
    CHECK(status_of(eighth({8, 32}, false), 8, 64) == "m.qzeros: no such tensor in the checkpoint; I32 [8, 4] expected (group_size 32)");
    CHECK(status_of(eighth({8, 32}, true), 8, 64) == "m.qzeros: no such tensor in the checkpoint; I32 [2, 1] expected (group_size 32)");
    CHECK(status_of(eighth({2, 8}, false), 8, 64) == "m.qzeros: no such tensor in the checkpoint; I32 [2, 1] expected (group_size 32)");
    // 4 outputs of 64 inputs: Marlin's shape too, told by the zero points it has not
    CHECK(status_of(SafetensorsFile().add("m.qweight", "I32", {4, 8}, Words(32)), 4, 64) == "m: 4 outputs found; a multiple of 64 expected in Marlin");
    CHECK(status_of(SafetensorsFile().add("m.qweight", "I32", {4, 8}, Words(32)).add("m.qzeros", "I32", {1}, Words(1)), 4, 64) ==
          "model.safetensors: m.qzeros: I32 [1] found; I32 [4, 4] expected (group_size 32)");
}

TEST_CASE("format damage: plain weights of other shapes, compressed-tensors of other bits") {
    auto plain = [](const char* dtype, std::vector<int64_t> shape, size_t bytes, int64_t out, int64_t in) {
        SafetensorsFile file;
        file.tensors.push_back({"m.weight", dtype, std::move(shape), std::string(bytes, '\0')});
        TempDirectory directory;
        return open_module(open_directory(directory, file), {"dense", file, out, in, 32, "weight"}, 32).status.message();
    };
    CHECK(plain("F16", {}, 2, 1, 1) == "model.safetensors: m.weight: F16 [] found; F16, BF16, F32 or F64 [1] expected");
    CHECK(plain("F16", {2, 4}, 16, 1, 8) == "model.safetensors: m.weight: F16 [2, 4] found; F16, BF16, F32 or F64 [8] expected");
    CHECK(plain("F8_E8M0", {2, 4}, 8, 2, 4) == "model.safetensors: m.weight: F8_E8M0 [2, 4] found; F16, BF16, F32 or F64 [2, 4] expected");
    CHECK(plain("F16", {8}, 16, 1, 8) == "");
    CHECK(plain("F64", {2, 2, 2}, 64, 2, 4) == "");

    const Numbers x(16, 64, 32);
    SafetensorsFile file = pack_compressed(x, Zeros::none);
    auto claimed = [&](const std::string& weights) {
        TempDirectory directory;
        directory.write("config.json", "{\"quantization_config\": {\"config_groups\": {\"a\": {\"weights\": {" + weights + "}}}}}");
        directory.write("model.safetensors", file.bytes());
        auto checkpoint = Checkpoint::open(directory.path());
        REQUIRE(checkpoint.ok());
        return open_module(*checkpoint, {"", file, 16, 64, 32, "weight_packed"}, 32).status.message();
    };
    CHECK(claimed("\"num_bits\": 8, \"group_size\": 32") ==
          "model.safetensors: m.weight_scale: F16 [16, 2] found, which is 4 bits in groups of 32; 8 bits in groups of 32 expected (config_groups)");
    CHECK(claimed("\"num_bits\": 4, \"group_size\": 32") == "");
}
