// Runs graphs on one stream of a device: batch inputs in one copy, launches one after the other or, for the sizes of a
// decode step, replayed from a captured CUDA graph.
#pragma once
#include <vector>
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

std::span<const Kernel> kernel_table();

class Executor {
public:
    ~Executor();
    Status open(int device, const cudaDeviceProp& properties);
    Status run(const RunArgs& args);
    // Memory that runs of a graph take, up to this size and so many keys of a sequence, and taking it.
    size_t scratch_bytes(const Graph& graph, const BatchSize& capacity, int64_t positions) const;
    Status reserve(const Graph& graph, const BatchSize& capacity, int64_t positions);

private:
    // Memory of one kernel call, and of matrix products, which have their own.
    struct Scratch {
        size_t call = 0, matmul = 0;
    };
    static Scratch scratch_of(const Graph& graph, const BatchSize& size, const Context& context);
    Scratch largest_scratch(const Graph& graph, const BatchSize& capacity, int64_t positions) const;
    Status grow(const Scratch& scratch);

    // Everything that decides launches: two runs with equal keys issue the same ones.
    struct Key {
        uint64_t graph;
        NodeId output;
        size_t nodes, peak;
        const void *plan, *activations, *kv_cache;
        BatchSize size;
        int32_t feature_rows, min_query, max_query, max_keys;
        uint32_t inputs;  // bit i: Input i is there
        bool argmax;
        bool operator==(const Key&) const;
    };
    struct Captured {
        Key key;
        cudaGraphExec_t exec = nullptr;  // null: this key has been seen once
        uint64_t last_use = 0;
    };

    Status prepare(const RunArgs& args);
    Status send_inputs(const RunArgs& args);
    Status issue(const RunArgs& host, bool capturing);
    Status run_captured(const RunArgs& args, const Key& key, bool& done);
    Status mark(const RunArgs& args, NodeId node, bool end);
    Status read_marks(const RunArgs& args);
    Status fetch_result(const RunArgs& args);
    Status report_finite(const RunArgs& args);
    void forget_captured();

    int device_ = 0;
    Context context_;
    RunArgs on_device_;  // the run's arguments with device memory as inputs
    DeviceMemory inputs_, scratch_, matmul_scratch_, counters_, verdict_;
    PinnedMemory inputs_host_, result_host_;
    std::vector<Captured> captured_;
    uint64_t uses_ = 0;
    std::vector<cudaEvent_t> marks_;  // of each node, before and after
    std::vector<NodeId> marked_;      // nodes of this run that have some
};

}  // namespace awq::cuda
