#include "tests/support.h"
#include <algorithm>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <zlib.h>

namespace fs = std::filesystem;

namespace test {

std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    REQUIRE_MESSAGE(file.good(), path);
    std::stringstream content;
    content << file.rdbuf();
    return content.str();
}

std::string read_gzip(const std::string& path) {
    gzFile file = gzopen(path.c_str(), "rb");
    REQUIRE_MESSAGE(file != nullptr, path);
    std::string content;
    char block[65536];
    int n;
    while ((n = gzread(file, block, sizeof block)) > 0) content.append(block, static_cast<size_t>(n));
    gzclose(file);
    REQUIRE_MESSAGE(n == 0, path);
    return content;
}

std::vector<std::string> lines(const std::string& text) {
    std::vector<std::string> all;
    std::stringstream stream(text);
    for (std::string line; std::getline(stream, line);)
        if (!line.empty()) all.push_back(line);
    return all;
}

void write_bytes(const std::string& path, const std::string& content) {
    std::ofstream file(path, std::ios::binary);
    file << content;
    REQUIRE_MESSAGE(file.good(), path);
}

TempDir::TempDir() {
    std::string name = (fs::temp_directory_path() / "awq-test-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
}

TempDir::~TempDir() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

std::string model(const std::string& name) {
    static std::map<std::string, std::unique_ptr<TempDir>> unpacked;
    auto& directory = unpacked[name];
    if (!directory) {
        directory = std::make_unique<TempDir>();
        for (const auto& entry : fs::directory_iterator("tests/data/models/" + name))
            write_bytes(directory->file(entry.path().stem().string()), read_gzip(entry.path().string()));
    }
    return directory->path();
}

std::vector<std::string> model_names() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator("tests/data/models")) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}

}  // namespace test
