// Files, read whole or in parts, and written so that a crash leaves the old file or the new one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include "core/status.h"

namespace awq {

// A regular file to read from at any place; links are followed, anything that is no regular file is refused without
// blocking. Never mapped: a file that somebody cuts short while it is open is an error here, where a mapping would end the
// process with a signal.
class InputFile {
public:
    static Result<InputFile> open(const std::string& path);
    InputFile(InputFile&& other) noexcept;
    InputFile& operator=(InputFile&& other) noexcept;
    ~InputFile();
    const std::string& path() const { return path_; }
    uint64_t size() const { return size_; }    // when it was opened
    // All of these bytes or an error that names the file. Any number of threads may read at once.
    Status read(uint64_t offset, void* to, size_t bytes) const;
    // As read(), in pieces on several threads where that is worth it: a whole tensor.
    Status read_large(uint64_t offset, void* to, size_t bytes) const;
    // Tells the system that these bytes are wanted soon.
    void prefetch(uint64_t offset, uint64_t bytes) const;

private:
    InputFile() = default;
    std::string path_;
    uint64_t size_ = 0;
    int fd_ = -1;
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
