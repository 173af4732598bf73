// The backends there are, and what every backend's executor shares. Adding a backend: a folder, and a row here.
#include "backends/backend.h"
#include <algorithm>
#include <cmath>
#include <unistd.h>

namespace awq {

bool reference_available();
Result<std::unique_ptr<Backend>> create_reference_backend(const BackendOptions& options);
bool cpu_available();
Result<std::unique_ptr<Backend>> create_cpu_backend(const BackendOptions& options);
#ifdef AWQ_HAVE_CUDA
bool cuda_available();
bool cuda_present();
Result<std::unique_ptr<Backend>> create_cuda_backend(const BackendOptions& options);
#endif

std::span<const BackendEntry> backend_table() {
    static const BackendEntry table[] = {
#ifdef AWQ_HAVE_CUDA
        {"cuda", cuda_available, cuda_present, create_cuda_backend},
#endif
        {"cpu", cpu_available, cpu_available, create_cpu_backend},
        {"reference", reference_available, reference_available, create_reference_backend},
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

std::vector<std::string> backends_passed_over(const BackendOptions& options) {
    std::vector<std::string> reasons;
    for (const BackendEntry& entry : backend_table()) {
        if (entry.available()) break;
        if (!entry.present()) continue;
        if (auto refused = entry.create(options); !refused.ok()) reasons.push_back(refused.status().message());
    }
    return reasons;
}

const Kernel* find_kernel(std::span<const Kernel> table, const Graph& graph, const Node& node, int64_t rows) {
    for (const Kernel& kernel : table)
        if (kernel.op == node.op && rows >= kernel.min_rows && rows <= kernel.max_rows && kernel.can_run(graph, node)) return &kernel;
    return nullptr;
}

int64_t plain_bytes(const Graph& graph, const Node& node, const BatchSize& size, int64_t kv_length) {
    auto matrix = [&](const Node& n) { return node_rows(n, size) * n.cols * static_cast<int64_t>(dtype_bytes(n.dtype)); };
    int64_t bytes = matrix(node);
    for (NodeId id : node.in) {
        if (id == no_node) continue;
        const Node& in = graph.nodes[id];
        if (in.op != Op::weight) bytes += matrix(in);
        else if (node.op != Op::embed) bytes += static_cast<int64_t>(in.weight->bytes);
        else bytes += node_rows(node, size) * in.weight->spec.in * static_cast<int64_t>(dtype_bytes(in.weight->spec.dtype));
    }
    const Attrs& attrs = node.attrs;
    if (node.op == Op::attention) {
        int64_t keys = attrs.window > 0 ? std::min<int64_t>(kv_length, attrs.window) : kv_length;
        bytes += int64_t{2} * 2 * size.sequences * keys * attrs.kv_heads * attrs.head_dim;
    }
    return bytes;
}

void host_memory(DeviceInfo& info) {
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    info.memory_total = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * page;
    info.memory_free = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * page;
}

Status check_finite(const Node& node, const Tensor& tensor) {
    if (tensor.dtype != DType::f32) return {};
    for (int64_t r = 0; r < tensor.rows; r++)
        for (int64_t c = 0; c < tensor.cols; c++)
            if (!std::isfinite(tensor.row<float>(r)[c]))
                return Status(Code::non_finite, node.name + " (" + op_name(node.op) + "): row " + std::to_string(r) +
                                                    " holds a value that is not finite");
    return {};
}

void argmax_rows(const Tensor& tensor, int32_t* columns) {
    for (int64_t r = 0; r < tensor.rows; r++) {
        const float* row = tensor.row<float>(r);
        columns[r] = -1;
        float best = -INFINITY;
        for (int64_t c = 0; c < tensor.cols; c++)
            if (row[c] > best) {
                best = row[c];
                columns[r] = static_cast<int32_t>(c);
            }
    }
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
