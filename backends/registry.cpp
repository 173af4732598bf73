// The backends there are, and what every backend's executor shares. Adding a backend: a folder, and a row here.
#include "backends/backend.h"

namespace awq {

bool reference_available();
Result<std::unique_ptr<Backend>> create_reference_backend(const BackendOptions& options);
#ifdef AWQ_HAVE_CPU_BACKEND
bool cpu_available();
Result<std::unique_ptr<Backend>> create_cpu_backend(const BackendOptions& options);
#endif
#ifdef AWQ_HAVE_CUDA
bool cuda_available();
Result<std::unique_ptr<Backend>> create_cuda_backend(const BackendOptions& options);
#endif

std::span<const BackendEntry> backend_table() {
    static const BackendEntry table[] = {
#ifdef AWQ_HAVE_CUDA
        {"cuda", cuda_available, create_cuda_backend},
#endif
#ifdef AWQ_HAVE_CPU_BACKEND
        {"cpu", cpu_available, create_cpu_backend},
#endif
        {"reference", reference_available, create_reference_backend},
    };
    return table;
}

Result<std::unique_ptr<Backend>> create_backend(const std::string& name, const BackendOptions& options) {
    std::string known = "auto";
    for (const BackendEntry& entry : backend_table()) {
        known += std::string(", ") + entry.name;
        if (name == entry.name || (name == "auto" && entry.available())) return entry.create(options);
    }
    return Status(Code::invalid_argument, "--backend: \"" + quote(name) + "\" is not built into this program; expected one of " + known);
}

const Kernel* find_kernel(std::span<const Kernel> table, const Graph& graph, const Node& node, int64_t rows) {
    for (const Kernel& kernel : table)
        if (kernel.op == node.op && rows >= kernel.min_rows && rows <= kernel.max_rows && kernel.can_run(graph, node)) return &kernel;
    return nullptr;
}

Tensor node_tensor(const RunArgs& args, NodeId id) {
    const Graph& graph = *args.graph;
    const Node& node = graph.nodes[id];
    NodeId root_id = graph.root(id);
    const Node& root = graph.nodes[root_id];
    Tensor tensor{nullptr, node.dtype, node_rows(node, args.size), node.cols, root.cols};
    if (root.op == Op::weight) return tensor;
    char* base = root.op == Op::input
                     ? static_cast<char*>(const_cast<void*>(args.inputs[static_cast<int>(root.attrs.input)]))
                     : static_cast<char*>(args.activations->data) + args.plan->offset[root_id];
    tensor.data = base ? base + graph.root_offset(id) * static_cast<int64_t>(dtype_bytes(node.dtype)) : nullptr;
    return tensor;
}

}  // namespace awq
