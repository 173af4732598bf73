// Runs graphs on one stream of a device: batch inputs in one copy, launches one after the other or, for the sizes of a
// decode step, replayed from a captured CUDA graph.
#pragma once
#include <vector>
#include "backends/cuda/sample.h"

namespace awq::cuda {

std::span<const Kernel> kernel_table();

// An upper limit of so many keys that does not change with every token.
int32_t rounded_keys(int64_t keys);

inline constexpr int captured_tokens = 64;  // runs of more tokens are launched one by one: they take long enough

class Executor {
public:
    ~Executor();
    Status open(int device, const cudaDeviceProp& properties);
    Status run(const RunArgs& args);
    // Chains of steps (backend.h; chain.cu), one at a time.
    Status begin_chain(const ChainArgs& args);
    Status launch_step();
    Status wait_step(int32_t* tokens);
    void end_chain();
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

    // What becomes of the logits on the device.
    enum class Choosing : uint8_t { nothing, best, best_for_next, sampled_for_next };
    // Everything that decides launches: two runs with equal keys issue the same ones.
    struct Key {
        uint64_t graph;
        NodeId output;
        size_t nodes, peak;
        const void *plan, *activations, *kv_cache;
        BatchSize size;
        int32_t feature_rows, min_query, max_query, max_keys;
        uint32_t inputs;  // bit i: Input i is there
        Choosing choosing;
        bool operator==(const Key&) const;
    };
    struct Captured {
        Key key;
        cudaGraphExec_t exec = nullptr;  // null: this key has been seen once
        uint64_t last_use = 0;
    };

    Status prepare(const RunArgs& args);
    Status send_inputs(const RunArgs& args);
    Key key_of(const RunArgs& args, Choosing choosing) const;
    Status issue(const RunArgs& host, Choosing choosing, bool capturing);
    void hint_next(const Graph& graph, NodeId id);
    Status run_captured(const RunArgs& args, const Key& key, bool& done);
    Status mark(const RunArgs& args, NodeId node, bool end);
    Status read_marks(const RunArgs& args);
    Status fetch_result(const RunArgs& args);
    Status report_finite(const RunArgs& args);
    void forget_captured();

    int device_ = 0;
    Context context_;
    DeviceSampler sampler_;
    struct {
        RunArgs args;    // of the first step
        Choosing choosing;
        int32_t steps, launched, waited_for, keys;    // keys: of the longest sequence, its first step's token included
        std::vector<int32_t> positions;               // of the first step
    } chain_ = {};
    PinnedMemory chosen_host_;                        // [step_slots][sequences]
    cudaEvent_t step_done_[step_slots] = {};
    Q4Weight next_weight_;  // what context_.matmul.next points to
    RunArgs on_device_;  // the run's arguments with device memory as inputs
    DeviceMemory inputs_, scratch_, matmul_scratch_, counters_, verdict_;
    PinnedMemory inputs_host_, result_host_;
    std::vector<Captured> captured_;
    uint64_t uses_ = 0;
    std::vector<cudaEvent_t> marks_;  // of each node, before and after
    std::vector<NodeId> marked_;      // nodes of this run that have some
};

}  // namespace awq::cuda
