// Bytes as a regular file without a disk, for readers that map their file.
#pragma once
#include <sys/mman.h>
#include <unistd.h>
#include <string>
#include <string_view>

namespace fuzz {

class FileInMemory {
public:
    explicit FileInMemory(std::string_view bytes) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
        size_t done = 0;
        while (fd_ >= 0 && done < bytes.size()) {
            ssize_t n = write(fd_, bytes.data() + done, bytes.size() - done);
            if (n <= 0) break;
            done += static_cast<size_t>(n);
        }
    }
    FileInMemory(const FileInMemory&) = delete;
    ~FileInMemory() {
        if (fd_ >= 0) close(fd_);
    }
    std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

private:
    int fd_;
};

}  // namespace fuzz
