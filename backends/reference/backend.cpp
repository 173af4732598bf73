// The reference backend: table, memory and executor.
#include <sys/mman.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include "backends/reference/reference.h"

namespace awq {
namespace reference {

static bool always(const Graph&, const Node&) { return true; }

std::span<const Kernel> table() {
#define ROW(name) \
    { Op::name, "reference " #name, 0, INT32_MAX, always, name, plain_bytes }
    static const Kernel rows[] = {ROW(embed),          ROW(add),     ROW(scale),       ROW(softcap),     ROW(rms_norm),
                                  ROW(layer_norm),     ROW(linear),  ROW(gather_cols), ROW(act),         ROW(gated_act),
                                  ROW(rope_table),     ROW(rope),    ROW(kv_append),   ROW(attention),   ROW(attention_full),
                                  ROW(select_rows),    ROW(moe),     ROW(patches),     ROW(prepend_row), ROW(add_table),
                                  ROW(drop_first_row), ROW(put_rows)};
#undef ROW
    return rows;
}

// Anonymous mapping: zero-filled, and a page costs memory only once it is touched.
class HostBuffer : public Buffer {
public:
    ~HostBuffer() override {
        if (data) munmap(data, bytes);
    }
};

class ReferenceBackend : public Backend {
public:
    const char* name() const override { return "reference"; }
    DeviceInfo device() const override {
        DeviceInfo info{"one thread, plain float"};
        host_memory(info);
        return info;
    }
    DType activation_type() const override { return DType::f32; }

    Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override {
        auto buffer = std::make_unique<HostBuffer>();
        if (bytes == 0) return std::unique_ptr<Buffer>(std::move(buffer));
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return Status(Code::out_of_memory, "no memory for " + std::to_string(bytes) + " bytes");
        buffer->data = at;
        buffer->bytes = bytes;
        return std::unique_ptr<Buffer>(std::move(buffer));
    }
    Status upload(const Buffer& buffer, size_t offset, const void* from, size_t bytes) override {
        std::memcpy(static_cast<char*>(buffer.data) + offset, from, bytes);
        return {};
    }
    Status download(const Buffer& buffer, size_t offset, void* to, size_t bytes) override {
        std::memcpy(to, static_cast<char*>(buffer.data) + offset, bytes);
        return {};
    }

    void lay_out(Weight& weight) const override {
        weight.layout = "float32 rows";
        weight.bytes = static_cast<size_t>(weight.spec.experts * weight.spec.out * weight.spec.in) * sizeof(float);
    }
    Status pack(const Weight& weight, std::span<const WeightRows* const> sources) override {
        float* to = static_cast<float*>(weight.data);
        for (const WeightRows* source : sources) {
            source->read_dense(0, source->out, to);
            to += source->out * source->in;
        }
        return {};
    }
    Status unpack(const Weight& weight, float* to) override {
        std::memcpy(to, weight.data, weight.bytes);
        return {};
    }

    size_t kv_page_bytes(const KvShape& kv) const override {
        return sizeof(float) * 2 * page_size * static_cast<size_t>(kv.layers) * kv.kv_heads * kv.head_dim;
    }
    const Kernel* kernel(const Graph& graph, const Node& node, int64_t rows) const override {
        return find_kernel(table(), graph, node, rows);
    }
    std::span<const Kernel> kernels() const override { return table(); }

    Status run(const RunArgs& args) override {
        const Graph& graph = *args.graph;
        std::vector<Tensor> in;
        for (NodeId id = 0; id < static_cast<NodeId>(graph.nodes.size()); id++) {
            const Node& node = graph.nodes[id];
            if (node.op == Op::input || node.op == Op::weight || node.op == Op::view) continue;
            if (args.cancel && args.cancel->load(std::memory_order_relaxed)) return Status(Code::cancelled, "cancelled");
            in.clear();
            for (NodeId source : node.in) in.push_back(source == no_node ? Tensor() : node_tensor(args, source));
            KernelCall call{&args, &node, in, node_tensor(args, id), nullptr};
            if (call.out.rows == 0) continue;
            auto begin = std::chrono::steady_clock::now();
            AWQ_TRY(kernel(graph, node, call.out.rows)->run(call));
            if (args.node_seconds) args.node_seconds[id] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
            if (args.check_finite) AWQ_TRY(check_finite(node, call.out));
        }
        Tensor result = node_tensor(args, graph.output);
        for (int64_t r = 0; args.result && r < result.rows; r++)
            std::memcpy(args.result + r * result.cols, result.row<float>(r), static_cast<size_t>(result.cols) * sizeof(float));
        if (args.argmax) argmax_rows(result, args.argmax);
        return {};
    }
    // Two steps under way, as a device has: so every test of an engine on this backend sees them.
    Result<std::unique_ptr<Chain>> begin_chain(const ChainArgs& args) override { return host_chain(*this, args, 2); }
};

}  // namespace reference

bool reference_available() { return true; }

Result<std::unique_ptr<Backend>> create_reference_backend(const BackendOptions&) {
    return std::unique_ptr<Backend>(new reference::ReferenceBackend());
}

}  // namespace awq
