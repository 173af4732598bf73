// The CPU backend: its table of kernels, memory, packing, and the executor in which a team of threads walks a graph.
#include "backends/backend.h"
#include <sys/mman.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include "backends/cpu/isa.h"
#include "backends/cpu/ops.h"
#include "core/parallel.h"

namespace awq {
namespace cpu {

// ---- the table

static bool always(const Graph&, const Node&) { return true; }
static bool is_gate_up(const Graph& graph, const Node& node) {
    return graph.nodes[node.in[2]].weight->spec.stack == Stack::gate_up;
}

std::span<const Operator> operators() {
    constexpr int32_t all = INT32_MAX, few = 6;
    constexpr int64_t cheap = 4096, moderate = 1024;  // outputs
    static const Operator rows[] = {
        {{Op::embed, "embed", 0, all, always, embed, plain_bytes}, nullptr, cheap},
        {{Op::add, "add", 0, all, always, add, plain_bytes}, nullptr, cheap},
        {{Op::scale, "scale", 0, all, always, scale, plain_bytes}, nullptr, cheap},
        {{Op::softcap, "softcap", 0, all, always, softcap, plain_bytes}, nullptr, cheap},
        {{Op::rms_norm, "rms_norm", 0, all, always, rms_norm, plain_bytes}, nullptr, cheap},
        {{Op::layer_norm, "layer_norm", 0, all, always, layer_norm, plain_bytes}, nullptr, cheap},
        {{Op::linear, "matvec", 0, few, always, linear, plain_bytes}, linear_scratch, 0},
        {{Op::linear, "matmul", few + 1, all, always, linear, plain_bytes}, linear_scratch, 0},
        {{Op::gather_cols, "gather_cols", 0, all, always, gather_cols, plain_bytes}, nullptr, cheap},
        {{Op::act, "act", 0, all, always, act, plain_bytes}, nullptr, cheap},
        {{Op::gated_act, "gated_act", 0, all, always, gated_act, plain_bytes}, nullptr, cheap},
        {{Op::rope_table, "rope_table", 0, all, always, rope_table, plain_bytes}, nullptr, moderate},
        {{Op::rope, "rope", 0, all, always, rope, plain_bytes}, nullptr, cheap},
        {{Op::kv_append, "kv_append", 0, all, always, kv_append, plain_bytes}, nullptr, moderate},
        {{Op::attention, "attention", 0, all, always, attention, plain_bytes}, attention_scratch_of, 0},
        {{Op::attention_full, "attention_full", 0, all, always, attention_full, plain_bytes}, attention_scratch_of, 0},
        {{Op::select_rows, "select_rows", 0, all, always, select_rows, plain_bytes}, nullptr, cheap},
        {{Op::moe, "moe", 0, all, is_gate_up, moe, moe_bytes}, moe_scratch, 0},
        {{Op::patches, "patches", 0, all, always, patches, plain_bytes}, nullptr, cheap},
        {{Op::prepend_row, "prepend_row", 0, all, always, prepend_row, plain_bytes}, nullptr, cheap},
        {{Op::add_table, "add_table", 0, all, always, add_table, plain_bytes}, nullptr, cheap},
        {{Op::drop_first_row, "drop_first_row", 0, all, always, drop_first_row, plain_bytes}, nullptr, cheap},
        {{Op::put_rows, "put_rows", 0, all, always, put_rows, plain_bytes}, nullptr, cheap},
        {{Op::norm_linear, "norm matvec", 0, few, always, norm_linear, plain_bytes}, linear_scratch, 0},
        {{Op::norm_linear, "norm matmul", few + 1, all, always, norm_linear, plain_bytes}, linear_scratch, 0},
        {{Op::norm_gate_up, "norm gated matvec", 0, few, is_gate_up, norm_gate_up, plain_bytes}, linear_scratch, 0},
        {{Op::norm_gate_up, "norm gated matmul", few + 1, all, is_gate_up, norm_gate_up, plain_bytes}, linear_scratch, 0},
        {{Op::linear_add, "matvec add", 0, few, always, linear_add, plain_bytes}, linear_scratch, 0},
        {{Op::linear_add, "matmul add", few + 1, all, always, linear_add, plain_bytes}, linear_scratch, 0},
        {{Op::rope_append, "rope append", 0, all, always, rope_append, plain_bytes}, rope_append_scratch, moderate},
    };
    return rows;
}

static std::span<const Kernel> kernel_table() {
    static const std::vector<Kernel> table = [] {
        std::vector<Kernel> kernels;
        for (const Operator& row : operators()) kernels.push_back(row.kernel);
        return kernels;
    }();
    return table;
}

// ---- memory

// Anonymous mapping: zero-filled, a page costs memory once it is touched; in huge pages where the system gives them.
class HostBuffer : public Buffer {
public:
    ~HostBuffer() override {
        if (data) munmap(data, bytes);
    }
    static Result<std::unique_ptr<Buffer>> create(size_t bytes) {
        auto buffer = std::make_unique<HostBuffer>();
        if (bytes == 0) return std::unique_ptr<Buffer>(std::move(buffer));
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return Status(Code::out_of_memory, "no memory for " + std::to_string(bytes) + " bytes");
        if (bytes >= (size_t{2} << 20)) madvise(at, bytes, MADV_HUGEPAGE);  // a wish
        buffer->data = at;
        buffer->bytes = bytes;
        return std::unique_ptr<Buffer>(std::move(buffer));
    }
};

// ---- packing

// The rows of one expert as its members have them one behind the other.
struct Members {
    std::span<const WeightRows* const> sources;
    // f(source, first row in it, count, rows already read) over rows [first, first + count)
    template <class F>
    void each(int64_t first, int64_t count, F f) const {
        int64_t done = 0;
        for (const WeightRows* source : sources) {
            if (first < source->out && done < count) {
                const int64_t n = std::min(count - done, source->out - first);
                f(*source, first, n, done);
                done += n;
                first = 0;
            } else {
                first -= source->out;
            }
        }
    }
};

static void pack_weight(const Isa& isa, const Weight& weight, std::span<const WeightRows* const> sources, int threads) {
    const WeightSpec& spec = weight.spec;
    const Layout layout = layout_of(spec);
    if (spec.kind ==
        WeightKind::vector) {  // one row; members, if there are several (biases of q, k, v), lie one behind the other in it
        float* to = static_cast<float*>(weight.data);
        for (const WeightRows* source : sources) {
            source->read_dense(0, source->out, to);
            to += source->out * source->in;
        }
        return;
    }
    const size_t members = sources.size() / static_cast<size_t>(spec.experts);
    // Rows in runs of 128: formats with the rows of a matrix side by side are read a cache line at a time.
    constexpr int64_t run = 8 * block_rows;
    const int64_t halves = spec.stack == Stack::gate_up ? 2 : 1, rows = spec.out / halves, runs = (rows + run - 1) / run;
    parallel_for(static_cast<size_t>(spec.experts * halves * runs), static_cast<size_t>(threads), [&](size_t item) {
        const int64_t first = static_cast<int64_t>(item) % runs * run, half = static_cast<int64_t>(item) / runs % halves,
                      expert = static_cast<int64_t>(item) / runs / halves;
        const int64_t count = std::min(run, rows - first);
        const Members from{sources.subspan(static_cast<size_t>(expert) * members, members)};
        char* to = static_cast<char*>(weight.data) + static_cast<size_t>(expert) * layout.expert_bytes;
        if (!layout.packed()) {
            std::vector<float> values(static_cast<size_t>(count * spec.in));
            from.each(half * rows + first, count, [&](const WeightRows& source, int64_t at, int64_t n, int64_t done) {
                source.read_dense(at, n, values.data() + done * spec.in);
            });
            const int64_t element = layout.type == WeightType::f32 ? 4 : 2;
            isa.narrow(layout.type, values.data(), count * spec.in, to + (half * rows + first) * spec.in * element);
            return;
        }
        const int64_t groups = spec.in / spec.group_size;
        std::vector<uint8_t> q(static_cast<size_t>(count * spec.in));
        std::vector<float> scale(static_cast<size_t>(count * groups)), offset(scale.size());
        from.each(half * rows + first, count, [&](const WeightRows& source, int64_t at, int64_t n, int64_t done) {
            source.read_quantized(at, n, q.data() + done * spec.in, scale.data() + done * groups, offset.data() + done * groups);
        });
        for (int64_t r = 0; r < count; r += block_rows)
            pack_block(isa, layout, spec, static_cast<int>(std::min<int64_t>(block_rows, count - r)), q.data() + r * spec.in,
                       scale.data() + r * groups, offset.data() + r * groups,
                       reinterpret_cast<uint8_t*>(to) +
                           static_cast<size_t>((first + r) / block_rows * halves + half) * layout.block_bytes);
    });
}

static void unpack_weight(const Weight& weight, float* rows) {
    const WeightSpec& spec = weight.spec;
    const Layout layout = layout_of(spec);
    for (int64_t expert = 0; expert < spec.experts; expert++, rows += spec.out * spec.in) {
        const uint8_t* from = static_cast<const uint8_t*>(weight.data) + static_cast<size_t>(expert) * layout.expert_bytes;
        if (!layout.packed()) {
            widen(layout.type == WeightType::f32   ? DType::f32
                  : layout.type == WeightType::f16 ? DType::f16
                                                   : DType::bf16,
                  from, spec.out * spec.in, rows);
            continue;
        }
        for (int64_t b = 0; b < layout.blocks; b++) {
            const BlockRows block = rows_of_block(spec, b);
            unpack_block(layout, spec, from + static_cast<size_t>(b) * layout.block_bytes, block.count,
                         rows + block.first * spec.in);
        }
    }
}

// ---- the executor

namespace {

struct Step {
    NodeId id;
    const Operator* op;
    bool alone;
    Tensor in[8], out;
};

// One run: what all threads of the team share.
struct Walk {
    const RunArgs* args;
    const Isa* isa;
    Team* team;
    std::vector<Step> steps;
    char* shared;
    char* own;
    size_t own_bytes;
    std::atomic<int64_t> count;
    std::atomic<bool> stopped;
    std::mutex mutex;
    Status status;  // the first error

    void fail(Status error) {
        if (error.ok()) return;
        std::lock_guard lock(mutex);
        if (status.ok()) status = std::move(error);
        stopped = true;
    }

    // What each thread does. A thread may leave at any node: the others do without it.
    void work(int index) {
        Worker worker{isa, team, team->size(), index, shared, own + static_cast<size_t>(index) * own_bytes, &count, team->first_phase()};
        Worker single = worker;
        single.team = nullptr;
        single.threads = 1;
        if (team->size() == 1) worker = single;
        for (size_t i = 0; i < steps.size() && !stopped;) {
            if (!steps[i].alone) {
                step(steps[i], worker, index);
                if (args->check_finite) worker.share(1, 1, [&](int64_t) { check(steps[i]); });
                i++;
                continue;
            }
            // Cheap nodes in a row are one phase: whoever comes first does them all.
            size_t end = i + 1;
            while (end < steps.size() && steps[end].alone) end++;
            worker.share(1, 1, [&](int64_t) {
                for (; i < end && !stopped; i++) {
                    step(steps[i], single, index);
                    if (args->check_finite) check(steps[i]);
                }
            });
            i = end;
        }
    }
    void step(const Step& step, const Worker& worker, int index) {
        if (args->cancel && args->cancel->load(std::memory_order_relaxed)) fail(Status(Code::cancelled, "cancelled"));
        const Node& node = args->graph->nodes[static_cast<size_t>(step.id)];
        const KernelCall call{args, &node, std::span<const Tensor>(step.in, node.in.size()), step.out,
                              const_cast<Worker*>(&worker)};
        const auto begin = args->node_seconds ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
        try {
            fail(step.op->kernel.run(call));
        } catch (const std::bad_alloc&) {  // nothing may leave a thread of the team
            fail(Status(Code::out_of_memory, "out of memory"));
        }
        if (!args->node_seconds || index != 0) return;
        args->node_seconds[step.id] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    void check(const Step& step) {
        for (int64_t r = 0; r < step.out.rows; r++)
            if (!isa->finite(step.out.row<float>(r), step.out.cols))
                return fail(check_finite(args->graph->nodes[static_cast<size_t>(step.id)], step.out));
    }
};

}  // namespace

class CpuBackend : public Backend {
public:
    CpuBackend(const Isa* isa, std::unique_ptr<Team> team) : isa_(isa), team_(std::move(team)) {}

    const char* name() const override { return "cpu"; }
    DType activation_type() const override { return DType::f32; }
    DeviceInfo device() const override;
    double bandwidth() const override;

    Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override { return HostBuffer::create(bytes); }
    Status upload(const Buffer& buffer, size_t offset, const void* from, size_t bytes) override {
        std::memcpy(static_cast<char*>(buffer.data) + offset, from, bytes);
        return {};
    }
    Status download(const Buffer& buffer, size_t offset, void* to, size_t bytes) override {
        std::memcpy(to, static_cast<const char*>(buffer.data) + offset, bytes);
        return {};
    }

    void lay_out(Weight& weight) const override {
        const Layout layout = layout_of(weight.spec);
        weight.layout = layout.name;
        weight.bytes = layout.bytes;
    }
    Status pack(const Weight& weight, std::span<const WeightRows* const> sources) override {
        pack_weight(*isa_, weight, sources, team_->size());
        return {};
    }
    Status unpack(const Weight& weight, float* rows) override {
        unpack_weight(weight, rows);
        return {};
    }

    size_t kv_page_bytes(const KvShape& shape) const override { return page_elements(shape) * sizeof(uint16_t); }
    const Kernel* kernel(const Graph& graph, const Node& node, int64_t rows) const override {
        return find_kernel(kernel_table(), graph, node, rows);
    }
    std::span<const Kernel> kernels() const override { return kernel_table(); }

    Status run(const RunArgs& args) override;

private:
    Status resolve(const RunArgs& args);
    Status make_room(const Scratch& need);

    const Isa* isa_;
    std::unique_ptr<Team> team_;
    Walk walk_{};
    std::unique_ptr<Buffer> shared_, own_;
    size_t own_bytes_ = 0;
    mutable std::once_flag measured_;
    mutable double bandwidth_ = 0;
};

Status CpuBackend::make_room(const Scratch& need) {
    // A quarter more than asked for: sizes that grow by and by do not cost an allocation each time.
    if (!shared_ || shared_->bytes < need.shared) {
        shared_.reset();
        AWQ_ASSIGN(shared_, HostBuffer::create(aligned(need.shared + need.shared / 4 + 1)));
    }
    if (!own_ || own_bytes_ < need.own) {
        own_.reset();
        own_bytes_ = aligned(need.own + need.own / 4 + 1);
        AWQ_ASSIGN(own_, HostBuffer::create(own_bytes_ * static_cast<size_t>(team_->size())));
    }
    return {};
}

// Resolves every node's memory and kernel.
Status CpuBackend::resolve(const RunArgs& args) {
    const Graph& graph = *args.graph;
    const NodeId result_root = graph.output == no_node ? no_node : graph.root(graph.output);
    // The graph's output goes where the caller wants it, without a copy, unless it is a part of something wider.
    const bool direct = args.result && result_root == graph.output;
    auto tensor = [&](NodeId id) {
        Tensor t = node_tensor(args, id);
        if (direct && graph.root(id) == result_root) t.data = args.result + graph.root_offset(id);
        return t;
    };
    walk_.steps.clear();
    Scratch need;
    for (NodeId id = 0; id < static_cast<NodeId>(graph.nodes.size()); id++) {
        const Node& node = graph.nodes[static_cast<size_t>(id)];
        if (node.op == Op::input || node.op == Op::weight || node.op == Op::view) continue;
        Step step{};
        step.id = id;
        step.out = tensor(id);
        if (step.out.rows == 0) continue;
        for (size_t i = 0; i < node.in.size() && i < 8; i++)
            if (node.in[i] != no_node) step.in[i] = tensor(node.in[i]);
        for (const Operator& op : operators())
            if (op.kernel.op == node.op && step.out.rows >= op.kernel.min_rows && step.out.rows <= op.kernel.max_rows &&
                op.kernel.can_run(graph, node)) {
                step.op = &op;
                break;
            }
        if (!step.op) return Status(Code::unsupported, node.name + ": the cpu backend has no kernel for " + op_name(node.op));
        const int64_t outputs = step.out.rows * std::max<int64_t>(step.out.cols, step.in[0].cols);  // kv_append has no output
        step.alone = team_->size() == 1 || outputs <= step.op->alone;
        if (step.op->scratch) {
            const Scratch node_need = step.op->scratch(*isa_, args, node);
            need.shared = std::max(need.shared, node_need.shared);
            need.own = std::max(need.own, node_need.own);
        }
        walk_.steps.push_back(step);
    }
    return make_room(need);
}

Status CpuBackend::run(const RunArgs& args) {
    AWQ_TRY(resolve(args));
    walk_.args = &args;
    walk_.isa = isa_;
    walk_.team = team_.get();
    walk_.shared = static_cast<char*>(shared_->data);
    walk_.own = static_cast<char*>(own_->data);
    walk_.own_bytes = own_bytes_;
    walk_.status = Status();
    walk_.stopped = false;
    team_->run([](void* walk, int index) { static_cast<Walk*>(walk)->work(index); }, &walk_);
    AWQ_TRY(walk_.status);
    const Graph& graph = *args.graph;
    if (args.result && graph.output != no_node && graph.root(graph.output) != graph.output) {
        const Tensor result = node_tensor(args, graph.output);
        for (int64_t r = 0; r < result.rows; r++)
            std::memcpy(args.result + r * result.cols, result.row<float>(r), static_cast<size_t>(result.cols) * 4);
    }
    if (args.argmax && graph.output != no_node) {
        Tensor logits = node_tensor(args, graph.output);
        if (args.result) logits.data = args.result, logits.stride = logits.cols;
        argmax_rows(logits, args.argmax);
    }
    return {};
}

// ---- the machine

static std::string value_in(const char* path, const std::string& key) {
    std::string value;
    if (FILE* file = std::fopen(path, "re")) {
        char line[512];
        while (value.empty() && std::fgets(line, sizeof line, file))
            if (std::strncmp(line, key.c_str(), key.size()) == 0)
                if (const char* colon = std::strchr(line, ':')) value = colon + 1;
        std::fclose(file);
    }
    const size_t begin = value.find_first_not_of(" \t"), end = value.find_last_not_of(" \t\n");
    return begin == std::string::npos ? "" : value.substr(begin, end - begin + 1);
}

DeviceInfo CpuBackend::device() const {
    DeviceInfo info;
    std::string model = value_in("/proc/cpuinfo", "model name");
    info.name = (model.empty() ? "CPU" : model) + ", " + std::to_string(team_->size()) +
                (team_->size() == 1 ? " thread, " : " threads, ") + isa_->name;
    info.memory_total = std::strtoull(value_in("/proc/meminfo", "MemTotal").c_str(), nullptr, 10) << 10;
    info.memory_free = std::strtoull(value_in("/proc/meminfo", "MemAvailable").c_str(), nullptr, 10) << 10;
    return info;
}

double CpuBackend::bandwidth() const {
    std::call_once(measured_, [&] {
        // More than caches hold; the best of a few passes.
        constexpr size_t bytes = size_t{256} << 20;
        auto memory = HostBuffer::create(bytes);
        if (!memory.ok()) return;
        std::memset((*memory)->data, 1, bytes);
        struct Read {
            const Isa* isa;
            const char* data;
            Team* team;
            std::atomic<uint64_t> sum{0};
        } read{isa_, static_cast<const char*>((*memory)->data), team_.get()};
        constexpr size_t part = size_t{4} << 20;
        for (int pass = 0; pass < 4; pass++) {
            const auto begin = std::chrono::steady_clock::now();
            team_->run(
                [](void* argument, int index) {
                    Read& r = *static_cast<Read*>(argument);
                    r.team->phase(r.team->first_phase(), index, bytes / part, 1,
                                  [&](int64_t i) { r.sum += r.isa->read(r.data + static_cast<size_t>(i) * part, part); });
                },
                &read);
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
            bandwidth_ = std::max(bandwidth_, static_cast<double>(bytes) / seconds);
        }
    });
    return bandwidth_;
}

}  // namespace cpu

bool cpu_available() { return true; }

Result<std::unique_ptr<Backend>> create_cpu_backend(const BackendOptions& options) {
    const char* environment = std::getenv("AWQ_CPU");
    const std::string wanted = !options.isa.empty() ? options.isa : environment ? environment : "";
    const cpu::Isa* isa = nullptr;
    std::string known;
    for (const cpu::IsaEntry& entry : cpu::isas()) {
        if (!entry.supported()) continue;
        known += std::string(known.empty() ? "" : ", ") + entry.table->name;
        if (!isa && (wanted.empty() || wanted == entry.table->name)) isa = entry.table;
    }
    if (!isa)
        return Status(Code::invalid_argument,
                      "instruction set \"" + quote(wanted) + "\" is not one of this machine's; expected one of " + known);
    if (options.threads < 0 || options.threads > 1024)
        return Status(Code::invalid_argument,
                      "threads: " + std::to_string(options.threads) + "; expected 1 to 1024, or 0 for the physical cores");
    AWQ_ASSIGN(auto team, cpu::Team::create(options.threads > 0 ? options.threads : cpu::physical_cores()));
    return std::unique_ptr<Backend>(new cpu::CpuBackend(isa, std::move(team)));
}

}  // namespace awq
