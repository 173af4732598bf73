#include "core/checkpoint/directory_writer.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include "core/file.h"
#include "core/json.h"

namespace awq {
namespace {

Status system_error(const std::string& path, const char* what, int error) {
    return Status(error == ENOENT || error == ENOTDIR ? Code::not_found : Code::io,
                  quote(path, 300) + ": " + what + ": " + strerror(error));
}

Result<std::vector<std::string>> list_directory(const std::string& path) {
    DIR* directory = opendir(path.c_str());
    if (!directory) return system_error(path, "cannot be read", errno);
    std::vector<std::string> names;
    while (const dirent* entry = readdir(directory))
        if (std::string name = entry->d_name; name != "." && name != "..") names.push_back(std::move(name));
    closedir(directory);
    return names;
}

// Removes a flat directory; what is no file of its own stays, and so does the directory then.
void remove_directory(const std::string& path) {
    auto names = list_directory(path);
    if (!names.ok()) return;
    for (const std::string& name : *names) unlink((path + "/" + name).c_str());
    rmdir(path.c_str());
}

Status sync_directory(const std::string& path) {
    int handle = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (handle < 0) return system_error(path, "cannot be opened", errno);
    bool synced = fsync(handle) == 0 || errno == EINVAL || errno == EROFS;  // not every file system can
    int error = errno;
    close(handle);
    return synced ? Status() : system_error(path, "cannot be written", error);
}

bool ends_with(const std::string& text, const char* end) {
    return text.size() >= strlen(end) && text.compare(text.size() - strlen(end), std::string::npos, end) == 0;
}

// Whether a file of this name may go when a directory of ours is replaced.
bool replaceable(const std::string& name) {
    for (const char* known : {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                              "model.safetensors.index.json", "chat_template.jinja"})
        if (name == known) return true;
    return name.rfind("awq_", 0) == 0 || (name.rfind("model", 0) == 0 && ends_with(name, ".safetensors"));
}

Status check_replaceable(const std::string& path, const std::string& marker) {
    if (!file_exists(path + "/" + marker))
        return Status(Code::invalid_argument, quote(path, 300) + ": is no directory that an import wrote (it has no " + marker +
                                                  "); only such a one is overwritten");
    AWQ_ASSIGN(std::vector<std::string> names, list_directory(path));
    for (const std::string& name : names)
        if (!replaceable(name))
            return Status(Code::invalid_argument, quote(path, 300) + ": holds \"" + quote(name) +
                                                      "\", which no import wrote; move it away to overwrite the directory");
    return {};
}

}  // namespace

Result<AtomicDirectory> AtomicDirectory::create(const std::string& path, bool overwrite, const std::string& marker) {
    AtomicDirectory directory;
    directory.path_ = path;
    directory.marker_ = marker;
    while (directory.path_.size() > 1 && directory.path_.back() == '/') directory.path_.pop_back();
    const std::string& final_path = directory.path_;
    if (final_path.empty() || final_path.find('\0') != final_path.npos)
        return Status(Code::invalid_argument, "the directory to write: a path expected, \"" + quote(path) + "\" given");
    struct stat info;
    if (lstat(final_path.c_str(), &info) == 0) {
        if (!overwrite) return Status(Code::invalid_argument, quote(final_path, 300) + ": exists; a new directory expected");
        if (!S_ISDIR(info.st_mode))
            return Status(Code::invalid_argument,
                          quote(final_path, 300) + ": is no directory; only an earlier import is overwritten");
        AWQ_TRY(check_replaceable(final_path, marker));
        directory.replace_ = true;
    }
    std::string temporary = final_path + ".tmp-XXXXXX";
    if (!mkdtemp(temporary.data())) return system_error(final_path, "cannot be made", errno);
    directory.temporary_ = temporary;
    return directory;
}

AtomicDirectory::AtomicDirectory(AtomicDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      marker_(std::move(other.marker_)),
      temporary_(std::exchange(other.temporary_, {})),
      replace_(other.replace_) {}

AtomicDirectory::~AtomicDirectory() {
    if (!temporary_.empty()) remove_directory(temporary_);
}

Status AtomicDirectory::commit() {
    mode_t mask = umask(0);
    umask(mask);
    if (chmod(temporary_.c_str(), 0777 & ~mask) != 0) return system_error(path_, "cannot be written", errno);
    AWQ_TRY(named(sync_directory(temporary_)));
    std::string old;  // what is at the temporary's name, or beside it, once the new directory is in place
    if (replace_) {
        AWQ_TRY(check_replaceable(path_, marker_));  // it may have changed in the meantime
        if (renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) == 0) {
            old = std::exchange(temporary_, {});
        } else {
            // file systems that cannot exchange: for a moment there is neither, but both lie side by side
            old = temporary_ + ".old";
            if (rename(path_.c_str(), old.c_str()) != 0) return system_error(path_, "cannot be replaced", errno);
            if (rename(temporary_.c_str(), path_.c_str()) != 0) {
                int error = errno;
                rename(old.c_str(), path_.c_str());
                return system_error(path_, "cannot be replaced", error);
            }
            temporary_.clear();
        }
    } else {
        int failed = renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
        if (failed && (errno == EINVAL || errno == ENOSYS)) failed = rename(temporary_.c_str(), path_.c_str());
        if (failed) return system_error(path_, "cannot be made", errno);
        temporary_.clear();
    }
    size_t slash = path_.rfind('/');
    Status synced = sync_directory(slash == path_.npos ? "." : path_.substr(0, slash + 1));
    if (!old.empty()) remove_directory(old);
    return synced;
}

Status AtomicDirectory::named(Status status) const {
    if (status.ok() || temporary_.empty()) return status;
    std::string message = status.message();
    for (size_t at; (at = message.find(temporary_)) != message.npos;) message.replace(at, temporary_.size(), path_);
    return Status(status.code(), message);
}

uint64_t PlannedTensor::bytes() const {
    uint64_t count = dtype_bytes(dtype);
    for (uint64_t n : shape) count *= n;
    return count;
}

namespace {

// The header of one file: tensors first .. last - 1, padded with spaces to a multiple of 8.
std::string shard_header(const std::vector<PlannedTensor>& tensors, size_t first, size_t last) {
    std::string json = "{\"__metadata__\": {\"format\": \"pt\"}";
    uint64_t offset = 0;
    for (size_t i = first; i < last; i++) {
        const PlannedTensor& tensor = tensors[i];
        json += ", ";
        append_json_string(json, tensor.name);
        json += std::string(": {\"dtype\": \"") + dtype_name(tensor.dtype) + "\", \"shape\": [";
        for (size_t d = 0; d < tensor.shape.size(); d++) json += (d ? ", " : "") + std::to_string(tensor.shape[d]);
        json += "], \"data_offsets\": [" + std::to_string(offset) + ", " + std::to_string(offset + tensor.bytes()) + "]}";
        offset += tensor.bytes();
    }
    json += "}";
    json.resize((json.size() + 7) / 8 * 8, ' ');
    uint64_t length = json.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + json;
}

}  // namespace

Status write_safetensors(const std::string& directory, const std::vector<PlannedTensor>& tensors, uint64_t shard_bytes,
                         const std::function<bool(uint64_t, const std::string&)>& progress) {
    // shard s holds tensors begin[s] .. begin[s + 1] - 1; a tensor larger than a shard has one to itself
    std::vector<size_t> begin = {0};
    uint64_t total = 0, in_shard = 0;
    for (size_t i = 0; i < tensors.size(); i++) {
        uint64_t bytes = tensors[i].bytes();
        if (in_shard > 0 && in_shard + bytes > shard_bytes) {
            begin.push_back(i);
            in_shard = 0;
        }
        in_shard += bytes;
        total += bytes;
    }
    begin.push_back(tensors.size());
    struct statvfs space;
    if (statvfs(directory.c_str(), &space) == 0 && total / space.f_frsize > space.f_bavail)
        return Status(Code::io, quote(directory, 300) + ": needs " + std::to_string(total) + " bytes; the file system has " +
                                    std::to_string(space.f_bavail * space.f_frsize) + " left");

    size_t shard_count = begin.size() - 1;
    Json weight_map = Json::object();
    uint64_t written = 0;
    for (size_t s = 0; s < shard_count; s++) {
        char name[64] = "model.safetensors";
        if (shard_count > 1) snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, shard_count);
        AWQ_ASSIGN(AtomicFile file, AtomicFile::create(directory + "/" + name));
        std::string header = shard_header(tensors, begin[s], begin[s + 1]);
        AWQ_TRY(file.write(header.data(), header.size()));
        for (size_t i = begin[s]; i < begin[s + 1]; i++) {
            const PlannedTensor& tensor = tensors[i];
            uint64_t left = tensor.bytes();
            AWQ_TRY(tensor.write([&](const void* data, size_t bytes) -> Status {
                if (bytes > left) return Status(Code::internal, tensor.name + ": more bytes than its shape has");
                left -= bytes;
                written += bytes;
                AWQ_TRY(file.write(data, bytes));
                if (progress && !progress(written, tensor.name)) return Status(Code::cancelled, "the import was stopped");
                return {};
            }));
            if (left) return Status(Code::internal, tensor.name + ": fewer bytes than its shape has");
            if (shard_count > 1) weight_map.members().emplace_back(tensor.name, Json(name));
        }
        AWQ_TRY(file.commit());
    }
    if (shard_count == 1) return {};
    Json index = Json::object(), metadata = Json::object();
    metadata.set("total_size", total);
    index.set("metadata", std::move(metadata));
    index.set("weight_map", std::move(weight_map));
    return write_file(directory + "/model.safetensors.index.json", dump_json(index, 2) + "\n");
}

}  // namespace awq
