// The CPU backend's operators, as its executor sees them: what runs, how many threads it is worth, what scratch it needs.
//
// Every thread of the team calls an operator with the same arguments but its own Worker; what there is to do is cut into
// items that do not depend on the number of threads, so results do not either.
#pragma once
#include "backends/backend.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/layout.h"
#include "backends/cpu/threads.h"

namespace awq::cpu {

struct Worker {
    const Isa* isa = nullptr;
    Team* team = nullptr;  // null: this thread does all of the node alone
    int threads = 1, index = 0;
    char* shared = nullptr;                 // scratch of the node, seen by all threads
    char* own = nullptr;                    // scratch of this thread
    std::atomic<int64_t>* count = nullptr;  // a number that one phase hands to the next ones
    mutable uint32_t phase = 0;

    // One phase: f(i) for every i < items, shared out among the threads in runs of `run`; all are done on return. Outside of
    // items a node may look at weights, shapes and the batch's inputs, but not at activations or scratch (threads.h).
    template <class F>
    void share(int64_t items, int64_t run, F f) const {
        if (team) return team->phase(phase++, index, items, run, f);
        for (int64_t i = 0; i < items; i++) f(i);
    }
};
inline const Worker& worker_of(const KernelCall& call) { return *static_cast<const Worker*>(call.context); }

struct Scratch {
    size_t shared = 0, own = 0;
};

struct Operator {
    Kernel kernel;
    Scratch (*scratch)(const Isa&, const RunArgs&, const Node&);  // null: none
    // Outputs up to which one thread does a node faster than all of them, barrier included; 0: never.
    int64_t alone;
};
std::span<const Operator> operators();

inline size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }
// The next `count` elements of a piece of scratch.
template <class T>
T* carve(char*& scratch, int64_t count) {
    T* at = reinterpret_cast<T*>(scratch);
    scratch += aligned(static_cast<size_t>(count) * sizeof(T));
    return at;
}

// ---- linear.cpp

// Rows of activations as a weight's kernels want them: packed values, scales, sums; or floats where the weight is dense.
struct Packed {
    void* values = nullptr;
    float *scale = nullptr, *sums = nullptr;
    int64_t stride = 0;  // elements
};
size_t packed_bytes(const Isa& isa, const Layout& layout, int64_t rows, int64_t in);
Packed carve_packed(const Isa& isa, const Layout& layout, int64_t rows, int64_t in, char*& scratch);
void pack_row(const Isa& isa, const Layout& layout, int64_t in, const float* x, const Packed& packed, int64_t row);
LinearTask linear_task(const Weight& weight, const Layout& layout, int64_t expert, const Packed& x);

void norm_row(const Isa& isa, const Attrs& attrs, const Weight* weight, const Weight* bias, bool mean, const float* x,
              int64_t cols, float* out);

Scratch linear_scratch(const Isa& isa, const RunArgs& args, const Node& node);
Status linear(const KernelCall& call);
Status norm_linear(const KernelCall& call);
Status norm_gate_up(const KernelCall& call);
Status linear_add(const KernelCall& call);
// ---- moe.cpp
Scratch moe_scratch(const Isa& isa, const RunArgs& args, const Node& node);
Status moe(const KernelCall& call);
int64_t moe_bytes(const Graph& graph, const Node& node, const BatchSize& size, int64_t kv_length);
// ---- attention.cpp
size_t page_elements(const KvShape& kv);  // of one page, all layers
Scratch attention_scratch_of(const Isa& isa, const RunArgs& args, const Node& node);
Scratch rope_append_scratch(const Isa& isa, const RunArgs& args, const Node& node);
Status rope_table(const KernelCall& call);
Status rope(const KernelCall& call);
Status kv_append(const KernelCall& call);
Status rope_append(const KernelCall& call);
Status attention(const KernelCall& call);
Status attention_full(const KernelCall& call);
// ---- rows.cpp
Status embed(const KernelCall& call);
Status add(const KernelCall& call);
Status scale(const KernelCall& call);
Status softcap(const KernelCall& call);
Status rms_norm(const KernelCall& call);
Status layer_norm(const KernelCall& call);
Status gather_cols(const KernelCall& call);
Status act(const KernelCall& call);
Status gated_act(const KernelCall& call);
Status select_rows(const KernelCall& call);
Status patches(const KernelCall& call);
Status prepend_row(const KernelCall& call);
Status add_table(const KernelCall& call);
Status drop_first_row(const KernelCall& call);
Status put_rows(const KernelCall& call);

}  // namespace awq::cpu
