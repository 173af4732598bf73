#include "core/file.h"
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <sys/stat.h>
#include <unistd.h>
#include "core/parallel.h"

namespace awq {
namespace {

Status system_error(const std::string& path, const char* what, int error) {
    Code code = error == ENOENT || error == ENOTDIR ? Code::not_found : error == ENOMEM ? Code::out_of_memory : Code::io;
    return Status(code, quote(path, 300) + ": " + what + ": " + strerror(error));
}

struct Descriptor {
    int fd = -1;
    size_t size = 0;
    Descriptor() = default;
    Descriptor(Descriptor&& other) noexcept : fd(std::exchange(other.fd, -1)), size(other.size) {}
    ~Descriptor() {
        if (fd >= 0) close(fd);
    }
};

Result<Descriptor> open_regular(const std::string& path) {
    if (path.find('\0') != path.npos) return Status(Code::invalid_argument, quote(path) + ": a path holds no NUL");
    Descriptor file;
    do file.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (file.fd < 0 && errno == EINTR);
    if (file.fd < 0) return system_error(path, "cannot be opened", errno);
    struct stat info;
    if (fstat(file.fd, &info) != 0) return system_error(path, "cannot be read", errno);
    if (!S_ISREG(info.st_mode)) return Status(Code::bad_file, quote(path, 300) + ": is no regular file");
    file.size = static_cast<size_t>(info.st_size);
    return file;
}

Status read_at(int fd, const std::string& path, uint64_t offset, void* to, size_t bytes) {
    char* at = static_cast<char*>(to);
    while (bytes > 0) {
        ssize_t n = pread(fd, at, std::min<size_t>(bytes, 1u << 30), static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return system_error(path, "cannot be read", errno);
        if (n == 0) return Status(Code::io, quote(path, 300) + ": ended while it was read");
        at += n;
        offset += static_cast<uint64_t>(n);
        bytes -= static_cast<size_t>(n);
    }
    return {};
}

}  // namespace

Result<InputFile> InputFile::open(const std::string& path) {
    AWQ_ASSIGN(Descriptor descriptor, open_regular(path));
    InputFile file;
    file.path_ = path;
    file.size_ = descriptor.size;
    file.fd_ = std::exchange(descriptor.fd, -1);
    return file;
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), size_(std::exchange(other.size_, 0)), fd_(std::exchange(other.fd_, -1)) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(size_, other.size_);
    std::swap(fd_, other.fd_);
    return *this;
}

InputFile::~InputFile() {
    if (fd_ >= 0) close(fd_);
}

Status InputFile::read(uint64_t offset, void* to, size_t bytes) const { return read_at(fd_, path_, offset, to, bytes); }

Status InputFile::read_large(uint64_t offset, void* to, size_t bytes) const {
    const size_t piece = size_t{8} << 20;
    std::mutex mutex;
    Status status;
    parallel_for((bytes + piece - 1) / piece, std::min<size_t>(8, hardware_threads()), [&](size_t i) {
        const size_t begin = i * piece;
        Status mine = read(offset + begin, static_cast<char*>(to) + begin, std::min(piece, bytes - begin));
        if (mine.ok()) return;
        std::lock_guard lock(mutex);
        status = std::move(mine);
    });
    return status;
}

void InputFile::prefetch(uint64_t offset, uint64_t bytes) const {
    posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
}

Result<std::string> read_file(const std::string& path, size_t limit) {
    AWQ_ASSIGN(Descriptor file, open_regular(path));
    if (file.size > limit)
        return Status(Code::bad_file, quote(path, 300) + ": has " + std::to_string(file.size) + " bytes; at most " + std::to_string(limit) + " expected");
    std::string content;
    content.reserve(file.size + 64);  // a JSON parser wants some bytes behind the text, and no copy of it
    content.resize(file.size);
    AWQ_TRY(read_at(file.fd, path, 0, content.data(), content.size()));
    return content;
}

bool file_exists(const std::string& path) {
    struct stat info;
    return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

bool entry_exists(const std::string& path) {
    struct stat info;
    return lstat(path.c_str(), &info) == 0;
}

bool directory_exists(const std::string& path) {
    struct stat info;
    return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

Result<AtomicFile> AtomicFile::create(const std::string& path) {
    AtomicFile file;
    file.path_ = path;
    file.temporary_ = path + ".tmp-XXXXXX";
    file.fd_ = mkostemp(file.temporary_.data(), O_CLOEXEC);
    if (file.fd_ < 0) {
        file.temporary_.clear();
        return system_error(path, "cannot be written", errno);
    }
    return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)), temporary_(std::exchange(other.temporary_, {})), fd_(std::exchange(other.fd_, -1)) {}

AtomicFile::~AtomicFile() {
    if (fd_ >= 0) close(fd_);
    if (!temporary_.empty()) unlink(temporary_.c_str());
}

Status AtomicFile::write(const void* data, size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
        ssize_t n = ::write(fd_, at, std::min<size_t>(size, 1u << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return system_error(path_, "cannot be written", errno);
        at += n;
        size -= static_cast<size_t>(n);
    }
    return {};
}

Status AtomicFile::commit() {
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd_, 0666 & ~mask) != 0 || fsync(fd_) != 0) return system_error(path_, "cannot be written", errno);
    int fd = std::exchange(fd_, -1);
    if (close(fd) != 0) return system_error(path_, "cannot be written", errno);
    if (rename(temporary_.c_str(), path_.c_str()) != 0) return system_error(path_, "cannot be written", errno);
    temporary_.clear();
    size_t slash = path_.rfind('/');
    std::string directory = slash == path_.npos ? "." : path_.substr(0, slash + 1);
    int handle = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (handle >= 0) {    // the rename itself must reach the disk too
        fsync(handle);
        close(handle);
    }
    return {};
}

Status write_file(const std::string& path, std::string_view content) {
    AWQ_ASSIGN(AtomicFile file, AtomicFile::create(path));
    AWQ_TRY(file.write(content.data(), content.size()));
    return file.commit();
}

}  // namespace awq
