// What a backend is: memory, a layout for each weight, a table of kernels, and a way to run a graph.
//
// core/ and models/ know backends only through this file. A backend is one folder; the table in backends/registry.cpp
// names them in the order in which `auto` prefers them.
#pragma once
#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>
#include "core/graph.h"
#include "core/memory_plan.h"
#include "core/status.h"
#include "core/weight.h"

namespace awq {

class Sampler;

// Memory of a backend; freed with the object.
class Buffer {
public:
    virtual ~Buffer() = default;
    void* data = nullptr;    // in the backend's address space
    size_t bytes = 0;
};

// The KV cache of a model, as pages of `page_size` positions. Layout and type of a page are the backend's.
inline constexpr int32_t page_size = 64;
struct KvShape {
    int32_t layers = 0, kv_heads = 0, head_dim = 0;
};

// One run of a graph. Pointers are host memory and stay valid until run() returns.
struct RunArgs {
    const Graph* graph = nullptr;
    const MemoryPlan* plan = nullptr;
    Buffer* activations = nullptr;          // at least plan->peak bytes
    Buffer* kv_cache = nullptr;             // kv_pages * kv_page_bytes(kv)
    KvShape kv;
    int32_t kv_pages = 0;
    BatchSize size;                         // of this run
    const void* inputs[input_count] = {};   // by Input; null where the graph has none
    int32_t feature_rows = 0;               // rows of Input::features
    float* result = nullptr;                // the graph's output as float32 [rows][cols] is put here; null: not wanted
    int32_t* argmax = nullptr;              // [rows]: column of each row's largest element, the lowest among equals; out of range
                                            // where a row holds NaN only. Null: not wanted
    double* node_seconds = nullptr;         // [nodes]: the time each node took is added here (profiling; slower)
    bool check_finite = false;              // stop at the first node whose output holds a NaN or an infinity
    const std::atomic<bool>* cancel = nullptr;    // looked at between nodes
};

// What a kernel is called with: the node, its inputs and its output as memory.
struct KernelCall {
    const RunArgs* run = nullptr;
    const Node* node = nullptr;
    std::span<const Tensor> in;             // as node->in; data null where absent and for weights: see weight(i)
    Tensor out;
    void* context = nullptr;                // the backend's own: worker, stream
    const Weight* weight(size_t i) const {
        return i >= node->in.size() || node->in[i] == no_node ? nullptr : run->graph->nodes[node->in[i]].weight;
    }
    // A batch input of the run, whether or not the node lists it.
    const int32_t* batch(Input kind) const { return static_cast<const int32_t*>(run->inputs[static_cast<int>(kind)]); }
};

// One row of a backend's table: "can run" and "run" together. The first row that matches op and rows and can run, runs.
struct Kernel {
    Op op;
    const char* name;
    int32_t min_rows, max_rows;             // rows of the output it is meant for, inclusive
    bool (*can_run)(const Graph&, const Node&);
    Status (*run)(const KernelCall&);
    // Bytes that must be read and written at these sizes: weights, activations, cache (kv_length: keys in the cache).
    int64_t (*bytes)(const Graph&, const Node&, const BatchSize&, int64_t kv_length);
};

struct DeviceInfo {
    std::string name;                       // "AMD EPYC, 2 threads, avx512vnni"
    size_t memory_total = 0, memory_free = 0;
    bool own_memory = false;                // memory_free is all there will be: nothing can be paged out to make room
};

struct BackendOptions {
    int threads = 0;                        // CPU: 0 = physical cores
    int device = 0;                         // CUDA ordinal
    std::string isa;                        // CPU: force "scalar", "avx2", ...; empty: the best this machine has
};

// Steps that follow one another: one token of each sequence a step, which chooses the tokens of the next.
struct ChainArgs {
    RunArgs run;            // the first step, every row's logits wanted; the page table has the pages of all steps. What it points
                            // to stays valid as long as the chain
    std::span<const Sampler* const> samplers;    // of each sequence, copied; null: the likeliest token
    int32_t steps = 0;      // at most
};
class Chain {
public:
    virtual ~Chain() = default;                  // waits for what is under way
    virtual int32_t depth() const = 0;           // steps under way that keep the device busy
    virtual Status launch() = 0;                 // puts the next step on its way, depth() of them at most; an error ends the chain
    // Of the oldest step under way: the token chosen for each sequence, -1 where its logits are not finite.
    virtual Status wait(int32_t* tokens) = 0;
};

class Backend {
public:
    virtual ~Backend() = default;
    virtual const char* name() const = 0;
    virtual DeviceInfo device() const = 0;
    // Bytes a second that a plain read of memory reaches, measured on the first call (which takes a moment); 0: not known.
    virtual double bandwidth() const { return 0; }
    virtual DType activation_type() const = 0;      // of every node but those marked f32

    virtual Result<std::unique_ptr<Buffer>> allocate(size_t bytes) = 0;    // zero-filled
    virtual Status upload(const Buffer& buffer, size_t offset, const void* from, size_t bytes) = 0;
    virtual Status download(const Buffer& buffer, size_t offset, void* to, size_t bytes) = 0;

    // Fills layout and bytes of `weight` from its spec. Never fails: there is a layout for every spec.
    virtual void lay_out(Weight& weight) const = 0;
    // Writes the members' rows (experts outermost: experts * member_rows.size() sources) to weight.data.
    virtual Status pack(const Weight& weight, std::span<const WeightRows* const> sources) = 0;
    // The inverse: all rows as floats [experts][out][in], members concatenated, exactly as the kernels see them.
    virtual Status unpack(const Weight& weight, float* rows) = 0;

    virtual size_t kv_page_bytes(const KvShape& shape) const = 0;    // of one page, all layers
    virtual int32_t run_tokens() const { return 512; }               // most tokens of one run: longer prompts are several

    // Memory that the backend takes for itself, to load weights and to run this graph up to this size with sequences of so
    // many positions.
    virtual size_t scratch_bytes(const Graph&, const BatchSize&, int64_t) const { return 0; }
    // The weights are packed: what loading needed goes back, what runs will need is taken at once.
    virtual Status prepare(const Graph&, const BatchSize&, int64_t) { return {}; }

    // The kernel for a node at these rows; null: none, and a fused op must be lowered. `graph` gives its inputs.
    virtual const Kernel* kernel(const Graph& graph, const Node& node, int64_t rows) const = 0;
    virtual std::span<const Kernel> kernels() const = 0;

    virtual Status run(const RunArgs& args) = 0;    // one at a time, and no chain beside it; the engine sees to that
    virtual Result<std::unique_ptr<Chain>> begin_chain(const ChainArgs& args);    // unless overridden: host_chain
};

// A chain of runs whose tokens the host chooses, each when it is waited for.
std::unique_ptr<Chain> host_chain(Backend& backend, const ChainArgs& args, int32_t depth);

// The first row of `table` for this node, or null. What most backends' kernel() does.
const Kernel* find_kernel(std::span<const Kernel> table, const Graph& graph, const Node& node, int64_t rows);

// What an op moves at least, counted from its tensors: weights (rows looked up only, for embed), inputs, output; for
// attention also keys and values in float16. Fit for every kernel that reads each operand once.
int64_t plain_bytes(const Graph& graph, const Node& node, const BatchSize& size, int64_t kv_length);
// Fills memory_total and memory_free from the system's main memory.
void host_memory(DeviceInfo& info);
// Of a float32 matrix in host memory: an error that names the node, its op and the first row that is not finite.
Status check_finite(const Node& node, const Tensor& tensor);

// Column of the largest element of each row of a float32 matrix in host memory, the lowest among equals.
void argmax_rows(const Tensor& tensor, int32_t* columns);

// A node's memory in this run: columns of its root for a view, host memory for a batch input, no data for a weight.
Tensor node_tensor(const RunArgs& args, NodeId id);

struct BackendEntry {
    const char* name;
    bool (*available)();
    bool (*present)();    // there is hardware for it, whether or not this program can use it
    Result<std::unique_ptr<Backend>> (*create)(const BackendOptions& options);
};
std::span<const BackendEntry> backend_table();      // in the order `auto` prefers
// name: "auto" or one of the table
Result<std::unique_ptr<Backend>> create_backend(const std::string& name, const BackendOptions& options);
// Why `auto` passes over hardware that is there: one line each, for the plan's warnings.
std::vector<std::string> backends_passed_over(const BackendOptions& options);

}  // namespace awq
