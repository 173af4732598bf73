// Getting weights into CUDA memory and out again: pinned host memory in between, several threads reading the files.
#pragma once
#include <memory>
#include <span>
#include <vector>
#include "backends/cuda/layout.h"
#include "core/status.h"

namespace awq::cuda {

// Plain copies between device memory and any host memory, through two pinned pieces in turn.
class Staging {
public:
    ~Staging();
    Status upload(void* to, const void* from, size_t bytes);
    Status download(void* to, const void* from, size_t bytes);

private:
    static constexpr size_t piece_bytes = size_t{8} << 20;
    Status open();
    Status send(void* to, const void* from, size_t bytes);
    Status fetch(void* to, const void* from, size_t bytes);
    Status wait(const Status& status);
    void* piece_[2] = {};
    cudaEvent_t copied_[2] = {};
    cudaStream_t stream_ = nullptr;
};

// Packs weights: threads read rows from the checkpoint into pinned slots, the device arranges them. Its memory is only
// needed while a model loads.
class Packer {
public:
    explicit Packer(int device) : device_(device) {}
    ~Packer();
    // All of one weight; returns once it is in place.
    Status pack(const Weight& weight, std::span<const WeightRows* const> sources);
    // Device memory its slots take, rows of unusual length apart.
    static size_t device_bytes();

private:
    // One thread's two slots: while the device works on one, the other is filled.
    struct Worker {
        char *host[2] = {}, *device[2] = {};
        cudaEvent_t done[2] = {};
        cudaStream_t stream = nullptr;
        int turn = 0;
    };
    Status open(size_t slot_bytes);
    void close();
    int device_;
    size_t slot_bytes_ = 0;
    void *host_ = nullptr, *device_memory_ = nullptr;  // of all slots
    std::vector<Worker> workers_;
};

// Dense rows as floats, the inverse of packing them; device memory to device memory.
Status unpack_dense(const DenseWeight& weight, int64_t expert, int64_t first, int64_t count, float* rows, cudaStream_t stream);

}  // namespace awq::cuda
