// A model directory that appears whole or not at all, and safetensors files streamed into it.
//
// Everything is written into a temporary directory beside the final one, flushed to the disk and renamed: whoever looks,
// even after a crash, sees the old directory or the new one. Not a general file library: the directories are flat.
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "core/status.h"
#include "core/tensor.h"

namespace awq {

class AtomicDirectory {
public:
    // `path` must not exist, or, with `overwrite`, be a directory that has the file `marker` and beside it only
    // files such as a model directory of ours has.
    static Result<AtomicDirectory> create(const std::string& path, bool overwrite, const std::string& marker);
    AtomicDirectory(AtomicDirectory&& other) noexcept;
    AtomicDirectory& operator=(AtomicDirectory&&) = delete;
    ~AtomicDirectory();  // without commit(): the temporary goes
    const std::string& path() const { return path_; }
    const std::string& temporary() const { return temporary_; }  // where the files are written
    Status commit();
    // An error about a file in the temporary directory, told of its final name.
    Status named(Status status) const;

private:
    AtomicDirectory() = default;
    std::string path_, marker_, temporary_;
    bool replace_ = false;
};

// Takes the next bytes of a tensor.
using ByteSink = std::function<Status(const void* data, size_t bytes)>;

struct PlannedTensor {
    std::string name;
    DType dtype = DType::f16;
    std::vector<uint64_t> shape;
    std::function<Status(const ByteSink&)> write;  // hands exactly bytes() bytes to the sink, in pieces of any size
    uint64_t bytes() const;
};

inline constexpr uint64_t safetensors_shard_bytes = 5'000'000'000;

// model.safetensors, or model-0000X-of-0000Y.safetensors and their index where all is more than `shard_bytes`. Tensors
// lie in the order given. `progress` hears the bytes written so far and the tensor's name; false stops.
Status write_safetensors(const std::string& directory, const std::vector<PlannedTensor>& tensors, uint64_t shard_bytes,
                         const std::function<bool(uint64_t written, const std::string& tensor)>& progress);

}  // namespace awq
