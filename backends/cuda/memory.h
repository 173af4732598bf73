// Memory of the device, and of the host where the device can reach it.
#pragma once
#include "backends/cuda/cuda.h"

namespace awq::cuda {

// Memory that grows; what it held is lost when it does.
class DeviceMemory {
public:
    DeviceMemory() = default;
    DeviceMemory(const DeviceMemory&) = delete;
    ~DeviceMemory() { cudaFree(data_); }
    // True in `moved` where the address changed; the new memory is zero.
    Status grow(size_t bytes, bool& moved);
    char* data() const { return static_cast<char*>(data_); }
    size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};
class PinnedMemory {
public:
    PinnedMemory() = default;
    PinnedMemory(const PinnedMemory&) = delete;
    ~PinnedMemory() { cudaFreeHost(data_); }
    Status grow(size_t bytes);
    char* data() const { return static_cast<char*>(data_); }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// Of the pieces that one allocation is cut into.
inline size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace awq::cuda
