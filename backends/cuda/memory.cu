#include "backends/cuda/memory.h"

namespace awq::cuda {

Status DeviceMemory::grow(size_t bytes, bool& moved) {
    if (bytes <= bytes_) return {};
    moved = true;
    AWQ_CUDA(cudaDeviceSynchronize());  // nobody reads the old memory any more
    cudaFree(data_);
    data_ = nullptr;
    bytes_ = 0;
    AWQ_CUDA(cudaMalloc(&data_, bytes));
    AWQ_CUDA(cudaMemset(data_, 0, bytes));
    AWQ_CUDA(cudaDeviceSynchronize());
    bytes_ = bytes;  // only now: memory that is not zero is not there
    return {};
}

Status PinnedMemory::grow(size_t bytes) {
    if (bytes <= bytes_) return {};
    cudaFreeHost(data_);
    data_ = nullptr;
    bytes_ = 0;
    AWQ_CUDA(cudaMallocHost(&data_, bytes));
    bytes_ = bytes;
    return {};
}

}  // namespace awq::cuda
