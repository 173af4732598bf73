// One case for each rule of the format: what must be read, what must be refused, and in which words.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include "core/checkpoint/checkpoint.h"
#include "tests/checkpoint_files.h"

using namespace awq;
using namespace awq::test;

namespace {

// The error of a file with these bytes, without the file's name before it; "" where it is read.
std::string error_of(const std::string& bytes) {
    TempDirectory directory;
    directory.write("m.safetensors", bytes);
    auto file = InputFile::open(directory.file("m.safetensors"));
    REQUIRE(file.ok());
    auto tensors = read_safetensors(*file);
    if (tensors.ok()) return "";
    std::string message = tensors.status().message(), name = directory.file("m.safetensors") + ": ";
    CHECK(message.starts_with(name));
    CHECK(message.find('\n') == message.npos);
    CHECK(message.size() < 600);
    return message.substr(name.size());
}
std::string error_of(const std::string& header, const std::string& data) { return error_of(raw_safetensors(header, data)); }

// Of one tensor "a" with these members.
std::string entry_error(const std::string& dtype, const std::string& shape, const std::string& offsets, size_t data = 0) {
    return error_of("{\"a\": {\"dtype\": " + dtype + ", \"shape\": " + shape + ", \"data_offsets\": " + offsets + "}}",
                    std::string(data, '\0'));
}

}  // namespace

TEST_CASE("safetensors: a sound file, tensors in order of their bytes whatever the order of keys") {
    TempDirectory directory;
    directory.write("m.safetensors",
                    raw_safetensors(" {\"z\": {\"dtype\": \"F16\", \"shape\": [2, 1], \"data_offsets\": [4, 8], \"more\": [1]},"
                                    "\"__metadata__\": {\"format\": \"pt\"},"
                                    "\"\\u00e9\": {\"shape\": [], \"dtype\": \"I32\", \"data_offsets\": [0, 4]},"
                                    "\"none\": {\"shape\": [0, 7], \"dtype\": \"F4\", \"data_offsets\": [4, 4]}} \n",
                                    "abcdefgh"));
    auto file = InputFile::open(directory.file("m.safetensors"));
    REQUIRE(file.ok());
    auto tensors = read_safetensors(*file);
    REQUIRE(tensors.ok());
    REQUIRE(tensors->size() == 3);
    CHECK((*tensors)[0].name == "\xC3\xA9");
    CHECK((*tensors)[0].shape.empty());
    auto bytes_of = [&](const TensorInfo& tensor) {
        std::string bytes(tensor.bytes, '\0');
        REQUIRE(file->read(tensor.offset, bytes.data(), bytes.size()).ok());
        return bytes;
    };
    CHECK(bytes_of((*tensors)[0]) == "abcd");
    CHECK((*tensors)[1].name == "none");
    CHECK(bytes_of((*tensors)[1]) == "");
    CHECK_FALSE((*tensors)[1].known);
    CHECK((*tensors)[2].type == DType::f16);
    CHECK((*tensors)[2].bytes == 4);
    CHECK(bytes_of((*tensors)[2]) == "efgh");
    CHECK(tensor_text((*tensors)[2]) == "F16 [2, 1]");
}

TEST_CASE("safetensors: no tensors at all is a sound file") {
    CHECK(error_of("{}", "") == "");
    CHECK(error_of("{\"__metadata__\": {}}", "") == "");
}

TEST_CASE("safetensors: the file's and the header's size") {
    CHECK(error_of("") == "has 0 bytes; a safetensors file has at least 8");
    CHECK(error_of("1234567") == "has 7 bytes; a safetensors file has at least 8");
    CHECK(error_of(std::string(8, '\0')).starts_with("header: not valid JSON"));
    CHECK(error_of(std::string("\x03\0\0\0\0\0\0\0{}", 10)) == "header of 3 bytes, but only 2 follow its length");
    CHECK(error_of(std::string(8, '\xff') + "{}") == "header of 18446744073709551615 bytes; at most 100000000 expected");
    CHECK(error_of(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10)) == "header of 100000001 bytes; at most 100000000 expected");
    CHECK(error_of(std::string("\x00\xe1\xf5\x05\0\0\0\0{}", 10)) == "header of 100000000 bytes, but only 2 follow its length");
    CHECK(error_of("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n") ==
          "is a Git LFS pointer, not the weights; \"git lfs pull\" in its repository fetches them");
}

TEST_CASE("safetensors: only regular files are opened, without blocking") {
    TempDirectory directory;
    REQUIRE(mkfifo(directory.file("pipe").c_str(), 0600) == 0);
    auto pipe = InputFile::open(directory.file("pipe"));
    REQUIRE(!pipe.ok());
    CHECK(pipe.status().message() == directory.file("pipe") + ": is no regular file");
    CHECK(!InputFile::open(directory.path()).ok());
}

TEST_CASE("safetensors: the header is strict JSON, an object") {
    for (const char* header :
         {"", "{", "{}x", "{},", "{\"a\": NaN}", "// c\n{}", "{\"a\": \"\\ud800\"}", "{\"\xff\": 1}", "{'a': 1}", "nul"})
        CHECK_MESSAGE(error_of(header, "").starts_with("header: "), header);
    CHECK(error_of("\xEF\xBB\xBF{}", "") == "header: begins with a byte order mark; expected plain JSON");
    CHECK(error_of(std::string("{}\0\0", 4), "").starts_with("header: not valid JSON"));
    CHECK(error_of("[]", "") == "header: an array found; an object expected");
    CHECK(error_of("7", "") == "header: an integer found; an object expected");
    std::string deep = "{\"a\": " + std::string(200, '[') + std::string(200, ']') + "}";
    CHECK(error_of(deep, "") == "header: JSON nested deeper than 128 levels");
}

TEST_CASE("safetensors: a key that stands twice is refused, escaped or not, wherever it stands") {
    const std::string empty = "{\"dtype\": \"U8\", \"shape\": [0], \"data_offsets\": [0, 0]}";
    CHECK(error_of("{\"a\": " + empty + ", \"b\": " + empty + ", \"\\u0061\": " + empty + "}", "") ==
          "header: the key \"a\" stands twice in one object");
    CHECK(error_of("{\"__metadata__\": {}, \"__metadata__\": {}}", "") ==
          "header: the key \"__metadata__\" stands twice in one object");
    CHECK(error_of("{\"__metadata__\": {\"k\": \"1\", \"k\": \"2\"}}", "") == "header: the key \"k\" stands twice in one object");
    CHECK(error_of("{\"a\": {\"dtype\": \"U8\", \"dtype\": \"U8\", \"shape\": [0], \"data_offsets\": [0, 0]}}", "") ==
          "header: the key \"dtype\" stands twice in one object");
    CHECK(error_of("{\"a\": {\"dtype\": \"U8\", \"shape\": [0], \"data_offsets\": [0, 0], \"x\": [{\"y\": 1, \"y\": 2}]}}", "") ==
          "header: the key \"y\" stands twice in one object");
}

TEST_CASE("safetensors: __metadata__ is string to string") {
    CHECK(error_of("{\"__metadata__\": [1]}", "") == "__metadata__: an array found; an object of strings expected");
    CHECK(error_of("{\"__metadata__\": null}", "") == "__metadata__: null found; an object of strings expected");
    CHECK(error_of("{\"__metadata__\": {\"step\": 3}}", "") == "__metadata__: \"step\": an integer found; a string expected");
}

TEST_CASE("safetensors: an entry has dtype, shape and data_offsets") {
    CHECK(error_of("{\"a\": 1}", "") == "tensor \"a\": an integer found; an object with dtype, shape and data_offsets expected");
    CHECK(error_of("{\"a\": {\"shape\": [0], \"data_offsets\": [0, 0]}}", "") == "tensor \"a\": dtype is missing");
    CHECK(error_of("{\"a\": {\"dtype\": \"U8\", \"data_offsets\": [0, 0]}}", "") == "tensor \"a\": shape is missing");
    CHECK(error_of("{\"a\": {\"dtype\": \"U8\", \"shape\": [0]}}", "") == "tensor \"a\": data_offsets is missing");
}

TEST_CASE("safetensors: the types of the specification, in exact case") {
    struct {
        const char* name;
        int bits;
        bool known;
    } types[] = {{"BOOL", 8, true},     {"F4", 4, false},          {"F6_E2M3", 6, false},     {"F6_E3M2", 6, false},
                 {"U8", 8, true},       {"I8", 8, true},           {"F8_E5M2", 8, true},      {"F8_E4M3", 8, true},
                 {"F8_E8M0", 8, false}, {"F8_E4M3FNUZ", 8, false}, {"F8_E5M2FNUZ", 8, false}, {"I16", 16, true},
                 {"U16", 16, true},     {"F16", 16, true},         {"BF16", 16, true},        {"I32", 32, true},
                 {"U32", 32, true},     {"F32", 32, true},         {"C64", 64, true},         {"F64", 64, true},
                 {"I64", 64, true},     {"U64", 64, true}};
    for (const auto& type : types) {
        size_t bytes = static_cast<size_t>(type.bits);  // of eight elements
        CHECK_MESSAGE(
            entry_error("\"" + std::string(type.name) + "\"", "[2, 4]", "[0, " + std::to_string(bytes) + "]", bytes) == "",
            type.name);
    }
    CHECK(entry_error("\"f16\"", "[0]", "[0, 0]") ==
          "tensor \"a\": dtype: \"f16\" found; a type of the safetensors specification expected");
    CHECK(entry_error("\"F16 \"", "[0]", "[0, 0]").starts_with("tensor \"a\": dtype: \"F16 \" found"));
    CHECK(entry_error("\"\\u001b[31m\"", "[0]", "[0, 0]").starts_with("tensor \"a\": dtype: \"\\x1b[31m\" found"));
    CHECK(entry_error("16", "[0]", "[0, 0]") == "tensor \"a\": dtype: an integer found; a string expected");
    CHECK(entry_error("\"F4\"", "[3]", "[0, 2]", 2) == "tensor \"a\": F4 [3] found, which is 12 bits; whole bytes expected");
    CHECK(entry_error("\"F6_E3M2\"", "[2]", "[0, 2]", 2) ==
          "tensor \"a\": F6_E3M2 [2] found, which is 12 bits; whole bytes expected");
}

TEST_CASE("safetensors: shapes are integers of 0 .. 2^64 - 1, and their products are checked") {
    const std::string range = " found; integers of 0 .. 2^64 - 1 expected";
    CHECK(entry_error("\"U8\"", "[-1]", "[0, 0]") == "tensor \"a\": shape: -1" + range);
    CHECK(entry_error("\"U8\"", "[1.0]", "[0, 1]", 1) == "tensor \"a\": shape: a real number" + range);
    CHECK(entry_error("\"U8\"", "[\"1\"]", "[0, 1]", 1) == "tensor \"a\": shape: a string" + range);
    CHECK(entry_error("\"U8\"", "[true]", "[0, 1]", 1) == "tensor \"a\": shape: a boolean" + range);
    CHECK(entry_error("\"U8\"", "[null]", "[0, 1]", 1) == "tensor \"a\": shape: null" + range);
    CHECK(entry_error("\"U8\"", "8", "[0, 1]", 1) == "tensor \"a\": shape: an integer found; an array expected");
    CHECK(entry_error("\"U8\"", "[18446744073709551616]", "[0, 0]") == "tensor \"a\": shape: a real number" + range);
    const std::string bits = " found; fewer than 2^64 bits expected";
    CHECK(entry_error("\"U8\"", "[18446744073709551615]", "[0, 1]", 1) == "tensor \"a\": U8 [18446744073709551615]" + bits);
    CHECK(entry_error("\"U8\"", "[4294967296, 4294967296]", "[0, 0]") == "tensor \"a\": U8 [4294967296, 4294967296]" + bits);
    CHECK(entry_error("\"F32\"", "[576460752303423488]", "[0, 0]") == "tensor \"a\": F32 [576460752303423488]" + bits);
    CHECK(entry_error("\"F16\"", "[0, 18446744073709551615]", "[0, 0]") == "");
    CHECK(entry_error("\"F16\"", "[]", "[0, 2]", 2) == "");
    std::string many;
    for (int i = 0; i < 1025; i++) many += i ? ", 1" : "1";
    CHECK(entry_error("\"U8\"", "[" + many + "]", "[0, 1]", 1) == "tensor \"a\": shape: more than 1024 dimensions");
}

TEST_CASE("safetensors: shapes in messages are cut; a product that has overflown stays so") {
    std::string ones = "1";
    for (int i = 0; i < 60; i++) ones += ", 1";
    std::string message = entry_error("\"F16\"", "[" + ones + "]", "[0, 4]", 4);
    CHECK_MESSAGE(message.find("1, 1, ...]") != std::string::npos, message);
    CHECK(message.size() < 300);
    message = entry_error("\"F16\"", "[4294967296, 4294967296, 0]", "[0, 0]");
    CHECK_MESSAGE(message.find("F16 [4294967296, 4294967296, 0] found; fewer than 2^64 bits expected") != std::string::npos, message);
    CHECK(entry_error("18446744073709551615", "[1]", "[0, 1]", 1).find("dtype: an integer found") != std::string::npos);
}

TEST_CASE("safetensors: data_offsets are two integers that fit type and shape") {
    CHECK(entry_error("\"U8\"", "[1]", "[0]", 1) == "tensor \"a\": data_offsets: 1 values found; [begin, end] expected");
    CHECK(entry_error("\"U8\"", "[1]", "[0, 1, 2]", 1) == "tensor \"a\": data_offsets: 3 values found; [begin, end] expected");
    CHECK(entry_error("\"U8\"", "[1]", "{}", 1) == "tensor \"a\": data_offsets: an object found; an array [begin, end] expected");
    CHECK(entry_error("\"U8\"", "[1]", "[-1, 0]", 1) ==
          "tensor \"a\": data_offsets: -1 found; integers of 0 .. 2^64 - 1 expected");
    CHECK(entry_error("\"U8\"", "[1]", "[0, 1.0]", 1) ==
          "tensor \"a\": data_offsets: a real number found; integers of 0 .. 2^64 - 1 expected");
    CHECK(entry_error("\"U8\"", "[1]", "[1, 0]", 1) == "tensor \"a\": data_offsets: [1, 0] found; begin <= end expected");
    CHECK(entry_error("\"F16\"", "[3]", "[0, 4]", 4) == "tensor \"a\": data_offsets: [0, 4] found; 6 bytes expected for F16 [3]");
}

TEST_CASE("safetensors: no hole, no overlap, nothing past the end") {
    auto two = [](const std::string& first, const std::string& second, size_t data) {
        return error_of("{\"a\": {\"dtype\": \"U8\", \"shape\": [4], \"data_offsets\": " + first +
                            "}, \"b\": {\"dtype\": \"U8\", \"shape\": [4], \"data_offsets\": " + second + "}}",
                        std::string(data, '\0'));
    };
    CHECK(two("[4, 8]", "[0, 4]", 8) == "");
    CHECK(two("[0, 4]", "[5, 9]", 9) == "tensor \"b\": data_offsets begin at 5; 4 expected, where the tensor before ends");
    CHECK(two("[1, 5]", "[5, 9]", 9) == "tensor \"a\": data_offsets begin at 1; 0 expected, where the tensor before ends");
    CHECK(two("[0, 4]", "[3, 7]", 7) == "tensor \"b\": data_offsets begin at 3, inside of another tensor, which ends at 4");
    CHECK(two("[0, 4]", "[0, 4]", 4) == "tensor \"b\": data_offsets begin at 0, inside of another tensor, which ends at 4");
    CHECK(two("[0, 4]", "[4, 8]", 7) == "tensor \"b\": ends at byte 8 of the data; the file has 7");
    CHECK(two("[0, 4]", "[4, 8]", 9) == "the tensors end at byte 8 of the data; the file has 9");
    CHECK(two("[18446744073709551611, 18446744073709551615]", "[0, 4]", 4)
              .starts_with("tensor \"a\": data_offsets begin at 18446744073709551611; 4"));
    CHECK(error_of("{}", "x") == "the tensors end at byte 0 of the data; the file has 1");
}

TEST_CASE("safetensors: a file that is cut short while it is read") {
    TempDirectory directory;
    const std::string whole = raw_safetensors("{\"a\": {\"dtype\": \"U8\", \"shape\": [1], \"data_offsets\": [0, 1]}}", "x");
    for (size_t left : {size_t{3}, size_t{64}}) {  // inside of what is read first, inside of the header
        directory.write("m.safetensors", whole);
        auto file = InputFile::open(directory.file("m.safetensors"));
        REQUIRE(file.ok());
        std::filesystem::resize_file(directory.file("m.safetensors"), left);
        Status status = read_safetensors(*file).status();
        CHECK(status.code() == Code::io);
        CHECK_MESSAGE(status.message().starts_with(directory.file("m.safetensors") + ": "), status.message());
    }
}

TEST_CASE("safetensors: names in messages are cut and escaped") {
    std::string message = error_of("{\"" + std::string(500, 'n') + "\\u0007\": 1}", "");
    CHECK(message.starts_with("tensor \"" + std::string(80, 'n') + "...\": an integer found"));
    CHECK(error_of("{\"a\\u001bb\": 1}", "").starts_with("tensor \"a\\x1bb\": "));
}

TEST_CASE("safetensors: many tensors are read in good time") {
    std::string header = "{";
    for (int i = 0; i < 100000; i++)
        header += (i ? ",\"t" : "\"t") + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[" +
                  std::to_string(i) + "," + std::to_string(i + 1) + "]}";
    CHECK(error_of(header + "}", std::string(100000, 'x')) == "");
}
