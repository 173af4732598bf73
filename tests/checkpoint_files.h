// Model directories made by tests: a temporary directory, and a writer of safetensors files.
#pragma once
#include <doctest/doctest.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace awq::test {

class TempDirectory {
public:
    TempDirectory() {
        std::string pattern = (std::filesystem::temp_directory_path() / "awq-test-XXXXXX").string();
        REQUIRE(mkdtemp(pattern.data()) != nullptr);
        path_ = pattern;
    }
    TempDirectory(const TempDirectory&) = delete;
    ~TempDirectory() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    const std::string& path() const { return path_; }
    std::string file(const std::string& name) const { return path_ + "/" + name; }
    void write(const std::string& name, const std::string& content) const {
        std::filesystem::create_directories(std::filesystem::path(file(name)).parent_path());
        std::ofstream(file(name), std::ios::binary) << content;
    }

private:
    std::string path_;
};

// Length, header, data, as they are.
inline std::string raw_safetensors(const std::string& header, const std::string& data) {
    std::string file;
    for (int i = 0; i < 8; i++) file += static_cast<char>(header.size() >> 8 * i & 255);
    return file + header + data;
}

// A sound file. The data begins at an odd address: nothing promises alignment.
class SafetensorsFile {
public:
    template <class T>
    SafetensorsFile& add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
                         const std::vector<T>& values) {
        tensors.push_back({name, dtype, shape, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))});
        return *this;
    }
    std::string bytes() const {
        std::string header = "{", data;
        for (const Tensor& tensor : tensors) {
            std::string extents;
            for (int64_t extent : tensor.shape) extents += (extents.empty() ? "" : ", ") + std::to_string(extent);
            header += (header == "{" ? "\"" : ", \"") + tensor.name + "\": {\"dtype\": \"" + tensor.dtype +
                      "\", \"shape\": [" + extents + "], \"data_offsets\": [" + std::to_string(data.size()) + ", " +
                      std::to_string(data.size() + tensor.data.size()) + "]}";
            data += tensor.data;
        }
        header += "}";
        if (header.size() % 2 == 0) header += ' ';
        return raw_safetensors(header, data);
    }

    struct Tensor {
        std::string name, dtype;
        std::vector<int64_t> shape;
        std::string data;
    };
    std::vector<Tensor> tensors;  // in the order of their data
};

}  // namespace awq::test
