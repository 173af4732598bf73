// Files, read whole or mapped, and written so that a crash leaves the old file or the new one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include "core/status.h"

namespace awq {

// A regular file mapped read-only; links are followed, anything that is no regular file is refused without blocking.
class MappedFile {
public:
    static Result<MappedFile> open(const std::string& path);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();
    const std::string& path() const { return path_; }
    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }
    // Tells the system that these bytes are wanted soon.
    void prefetch(size_t offset, size_t length) const;
    // Tells the system that these bytes are no longer needed in memory (they can be read from the file again).
    void forget(size_t offset, size_t length) const;

private:
    MappedFile() = default;
    std::string path_;
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// All of a regular file of at most `limit` bytes.
Result<std::string> read_file(const std::string& path, size_t limit);
bool file_exists(const std::string& path);         // a regular file, or a link to one
// Anything, even a link that leads nowhere. Of optional files: what is there but is no file to read is an error when it is
// opened, not the same as nothing.
bool entry_exists(const std::string& path);
bool directory_exists(const std::string& path);

// Written to a temporary beside `path`, fsynced, then renamed over it; on any error the temporary is removed and an
// old file at `path` is as it was.
class AtomicFile {
public:
    static Result<AtomicFile> create(const std::string& path);
    AtomicFile(AtomicFile&& other) noexcept;
    AtomicFile& operator=(AtomicFile&&) = delete;
    ~AtomicFile();                                  // without commit(): the temporary goes
    Status write(const void* data, size_t size);
    Status commit();

private:
    AtomicFile() = default;
    std::string path_, temporary_;
    int fd_ = -1;
};
Status write_file(const std::string& path, std::string_view content);    // atomically

}  // namespace awq
