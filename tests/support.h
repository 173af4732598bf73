// What several test files need: gzipped data, temporary directories, the small golden models.
#pragma once
#include <string>
#include <vector>

namespace test {

std::string read_bytes(const std::string& path);        // fails the test where the file is not there
std::string read_gzip(const std::string& path);
std::vector<std::string> lines(const std::string& text);
void write_bytes(const std::string& path, const std::string& content);

// A directory that goes with the object.
class TempDir {
public:
    TempDir();
    ~TempDir();
    TempDir(const TempDir&) = delete;
    const std::string& path() const { return path_; }
    std::string file(const std::string& name) const { return path_ + "/" + name; }

private:
    std::string path_;
};

// tests/data/models/NAME unpacked for this process; the path of the directory.
std::string model(const std::string& name);
std::vector<std::string> model_names();

}  // namespace test
