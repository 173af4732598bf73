#include <algorithm>
#include <cstring>
#include <new>
#include "backends/cuda/attention.h"
#include "backends/cuda/executor.h"
#include "backends/cuda/layout.h"

namespace awq::cuda {

Status cuda_error(cudaError_t error, const char* what) {
    cudaGetLastError();  // the next call must not report this one again
    std::string call = what;
    call = call.substr(0, call.find('('));
    if (error == cudaErrorMemoryAllocation) return Status(Code::out_of_memory, "CUDA: " + call + ": the device is out of memory");
    return Status(Code::internal, "CUDA: " + call + ": " + cudaGetErrorString(error));
}

std::span<const Kernel> kernel_table() {
    static const std::vector<Kernel> rows = [] {
        std::vector<Kernel> all;
        for (auto family :
             {elementwise_kernels(), norm_kernels(), rope_kernels(), attention_kernels(), linear_kernels(), moe_kernels()})
            all.insert(all.end(), family.begin(), family.end());
        return all;
    }();
    return rows;
}

namespace {

constexpr size_t captured_limit = 64;

// First row of a matrix with a value that is not finite, of the first node that has one: node << 32 | row, the least wins.
template <class T>
__global__ void find_non_finite(const T* data, int64_t stride, int64_t cols, int64_t count, unsigned long long node,
                                unsigned long long* verdict) {
    wait_for_previous();
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float x = static_cast<float>(data[i / cols * stride + i % cols]);
    if (!isfinite(x)) atomicMin(verdict, node << 32 | static_cast<unsigned long long>(i / cols));
}

template <class T>
__global__ void widen_kernel(float* to, const T* from, int64_t stride, int64_t cols, int64_t count) {
    wait_for_previous();
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] = static_cast<float>(from[i / cols * stride + i % cols]);
}

bool is_computed(const Node& node) { return node.op != Op::input && node.op != Op::weight && node.op != Op::view; }

// The attention right behind a rope_append whose result it reads; else no_node.
NodeId attention_behind(const Graph& graph, NodeId append) {
    const auto count = static_cast<NodeId>(graph.nodes.size());
    NodeId next = append + 1;
    while (next < count && !is_computed(graph.nodes[next])) next++;
    return next < count && graph.nodes[next].op == Op::attention && graph.nodes[next].in[0] == append ? next : no_node;
}
bool read_by_none_but(const Graph& graph, NodeId id, NodeId reader) {
    if (graph.output == id) return false;
    for (NodeId other = id + 1; other < static_cast<NodeId>(graph.nodes.size()); other++)
        if (const auto& in = graph.nodes[other].in; other != reader && std::find(in.begin(), in.end(), id) != in.end())
            return false;
    return true;
}

}  // namespace

int32_t rounded_keys(int64_t keys) {
    int32_t rounded = 128;
    while (rounded < keys && rounded < 1 << 30) rounded *= 2;
    return rounded;
}

bool Executor::Key::operator==(const Key& o) const {
    return graph == o.graph && output == o.output && nodes == o.nodes && peak == o.peak && plan == o.plan &&
           activations == o.activations && kv_cache == o.kv_cache && size.tokens == o.size.tokens &&
           size.sequences == o.size.sequences && size.outputs == o.size.outputs && size.max_pages == o.size.max_pages &&
           feature_rows == o.feature_rows && min_query == o.min_query && max_query == o.max_query && max_keys == o.max_keys &&
           inputs == o.inputs && choosing == o.choosing;
}

Executor::~Executor() {
    if (context_.stream) cudaStreamSynchronize(context_.stream);
    forget_captured();
    for (cudaEvent_t event : marks_) cudaEventDestroy(event);
    for (cudaEvent_t event : step_done_)
        if (event) cudaEventDestroy(event);
    if (context_.stream) cudaStreamDestroy(context_.stream);
}

void Executor::forget_captured() {
    for (Captured& captured : captured_)
        if (captured.exec) cudaGraphExecDestroy(captured.exec);
    captured_.clear();
}

Status Executor::open(int device, const cudaDeviceProp& properties) {
    device_ = device;
    context_.multiprocessors = properties.multiProcessorCount;
    AWQ_CUDA(open_matmul(device, &context_.matmul.device));
    context_.compute_major = context_.matmul.device.arch / 10;
    context_.shared_limit = static_cast<size_t>(context_.matmul.device.shared_block);
    AWQ_CUDA(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
    bool moved = false;
    AWQ_TRY(counters_.grow(Context::counter_count * sizeof(unsigned), moved));
    AWQ_TRY(verdict_.grow(sizeof(unsigned long long), moved));
    context_.counters = reinterpret_cast<unsigned*>(counters_.data());
    captured_.reserve(captured_limit);  // nothing is allocated once a run is under way
    return {};
}

// Facts about the batch, and memory enough for every kernel of the graph at this size.
Status Executor::prepare(const RunArgs& args) {
    Context& c = context_;
    c.min_query = c.max_query = c.max_keys = 1;
    const auto* positions = static_cast<const int32_t*>(args.inputs[static_cast<int>(Input::positions)]);
    const auto* seq_begin = static_cast<const int32_t*>(args.inputs[static_cast<int>(Input::seq_begin)]);
    if (positions && args.size.tokens > 0) {
        c.max_keys = rounded_keys(*std::max_element(positions, positions + args.size.tokens) + int64_t{1});
    }
    if (seq_begin && args.size.sequences > 0) {
        c.min_query = INT32_MAX;
        for (int32_t s = 0; s < args.size.sequences; s++) {
            c.min_query = std::min(c.min_query, seq_begin[s + 1] - seq_begin[s]);
            c.max_query = std::max(c.max_query, seq_begin[s + 1] - seq_begin[s]);
        }
    }

    return grow(scratch_of(*args.graph, args.size, c));
}

// What any kernel of the graph needs at this size; the context has the batch's facts.
Executor::Scratch Executor::scratch_of(const Graph& graph, const BatchSize& size, const Context& context) {
    size_t scratch = 0;
    int64_t rows = 1, in = 1;
    for (const Node& node : graph.nodes) {
        if (node.op == Op::attention || node.op == Op::attention_full)
            scratch = std::max(scratch, attention_scratch(graph, node, size, context));
        moe_needs(graph, node, size, rows, in, scratch);
        linear_needs(graph, node, size, rows, in, scratch);
    }
    if (graph.output != no_node) {
        const Node& output = graph.nodes[graph.output];
        const auto output_rows = static_cast<size_t>(node_rows(output, size));
        scratch = std::max(scratch, output_rows * static_cast<size_t>(output.cols) * (output.dtype == DType::f32 ? 0 : sizeof(float)));
        scratch = std::max(scratch, output_rows * (best_parts * sizeof(Best) + sizeof(int32_t)));
    }
    return {aligned(scratch), aligned(matmul_scratch_bytes(rows, in))};
}

// No kernel needs less for more tokens, sequences, outputs or keys.
Executor::Scratch Executor::largest_scratch(const Graph& graph, const BatchSize& capacity, int64_t positions) const {
    Context context = context_;
    context.max_keys = rounded_keys(positions);
    context.max_query = capacity.tokens;
    return scratch_of(graph, {capacity.tokens, capacity.sequences, capacity.outputs, 1}, context);
}

// Of one sequence; a batch of some that draw takes more when it comes.
size_t Executor::scratch_bytes(const Graph& graph, const BatchSize& capacity, int64_t positions) const {
    Scratch scratch = largest_scratch(graph, capacity, positions);
    return scratch.call + scratch.matmul + DeviceSampler::bytes(1, graph.nodes[graph.output].cols);
}

Status Executor::reserve(const Graph& graph, const BatchSize& capacity, int64_t positions) {
    AWQ_CUDA(cudaSetDevice(device_));
    AWQ_TRY(grow(largest_scratch(graph, capacity, positions)));
    bool moved = false;
    return sampler_.reserve(1, graph.nodes[graph.output].cols, moved);
}

Status Executor::grow(const Scratch& scratch) {
    bool moved = false;
    Status grown = [&]() -> Status {
        AWQ_TRY(scratch_.grow(scratch.call, moved).in("scratch memory"));
        return matmul_scratch_.grow(scratch.matmul, moved).in("scratch memory of matrix products");
    }();
    if (moved) forget_captured();  // also where no other memory came in place of the old
    AWQ_TRY(grown);
    context_.scratch = scratch_.data();
    context_.scratch_bytes = scratch_.bytes();
    context_.matmul.scratch = matmul_scratch_.data();
    context_.matmul.scratch_bytes = matmul_scratch_.bytes();
    return {};
}

// All batch inputs and the graph's constants side by side, in one copy. Page tables get rows of a length that grows by
// powers of two, so that a captured graph lasts while a sequence grows.
Status Executor::send_inputs(const RunArgs& args) {
    const BatchSize& size = args.size;
    on_device_ = args;
    on_device_.size.max_pages = 1;
    while (on_device_.size.max_pages < size.max_pages) on_device_.size.max_pages *= 2;
    int64_t pixels = 0, feature_cols = 0;
    for (const Node& node : args.graph->nodes)
        if (node.op == Op::input) {
            if (node.attrs.input == Input::pixels) pixels = node_rows(node, size) * node.cols;
            if (node.attrs.input == Input::features) feature_cols = node.cols;
        }
    const int64_t elements[input_count] = {size.tokens,    size.tokens,
                                           size.tokens,    size.sequences + 1,
                                           size.sequences, int64_t{size.sequences} * on_device_.size.max_pages,
                                           size.outputs,   size.tokens,
                                           pixels,         args.feature_rows * feature_cols};
    size_t bytes = 0;
    for (int i = 0; i < input_count; i++)
        if (args.inputs[i]) bytes += aligned(static_cast<size_t>(elements[i]) * 4);
    for (const auto& vector : args.graph->constants) bytes += aligned(vector.size() * sizeof(float));

    bool moved = false;
    AWQ_TRY(inputs_host_.grow(aligned(bytes)));
    Status grown = inputs_.grow(aligned(bytes), moved).in("batch inputs");
    if (moved) forget_captured();
    AWQ_TRY(grown);
    size_t at = 0;
    for (int i = 0; i < input_count; i++) {
        if (!args.inputs[i]) continue;
        on_device_.inputs[i] = inputs_.data() + at;
        auto* to = reinterpret_cast<int32_t*>(inputs_host_.data() + at);
        const auto* from = static_cast<const int32_t*>(args.inputs[i]);
        if (i == static_cast<int>(Input::page_table))
            for (int32_t s = 0; s < size.sequences; s++)
                std::memcpy(to + int64_t{s} * on_device_.size.max_pages, from + int64_t{s} * size.max_pages,
                            static_cast<size_t>(size.max_pages) * 4);
        else
            std::memcpy(to, from, static_cast<size_t>(elements[i]) * 4);
        at += aligned(static_cast<size_t>(elements[i]) * 4);
    }
    context_.constants.clear();
    for (const auto& vector : args.graph->constants) {
        std::memcpy(inputs_host_.data() + at, vector.data(), vector.size() * sizeof(float));
        context_.constants.emplace_back(vector.data(), reinterpret_cast<const float*>(inputs_.data() + at));
        at += aligned(vector.size() * sizeof(float));
    }
    if (at > 0) AWQ_CUDA(cudaMemcpyAsync(inputs_.data(), inputs_host_.data(), at, cudaMemcpyHostToDevice, context_.stream));
    return {};
}

// Every node's kernel, in order.
Status Executor::issue(const RunArgs& host, Choosing choosing, bool capturing) try {
    const Graph& graph = *host.graph;
    const RunArgs& args = on_device_;
    std::vector<Tensor> in, append_in;
    KernelCall append;  // the rope_append that is left to the attention behind it
    context_.chained = false;
    for (NodeId id = 0; id < static_cast<NodeId>(graph.nodes.size()); id++) {
        const Node& node = graph.nodes[id];
        if (!is_computed(node)) continue;
        if (!capturing && host.cancel && host.cancel->load(std::memory_order_relaxed))
            return Status(Code::cancelled, "cancelled");
        in.clear();
        for (NodeId source : node.in) in.push_back(source == no_node ? Tensor() : node_tensor(args, source));
        KernelCall call{&args, &node, in, node_tensor(args, id), &context_};
        if (call.out.rows == 0) continue;
        if (node.op == Op::rope_append)
            if (NodeId next = attention_behind(graph, id); next != no_node && can_attend_appending(call, graph.nodes[next]) &&
                                                           read_by_none_but(graph, id, next)) {
                append_in = in;
                append = call;
                append.in = append_in;
                continue;
            }
        if (product_weight(graph, node)) hint_next(graph, id);
        const Kernel* kernel = find_kernel(kernel_table(), graph, node, call.out.rows);
        if (!kernel) return Status(Code::internal, node.name + ": no CUDA kernel for " + op_name(node.op));
        AWQ_TRY(mark(host, id, false));
        AWQ_TRY((append.node ? attention_appending(append, call) : kernel->run(call)).in(node.name));
        append = {};
        AWQ_TRY(mark(host, id, true));
        if (!host.check_finite || call.out.cols == 0) continue;
        int64_t count = call.out.rows * call.out.cols;
        auto* verdict = reinterpret_cast<unsigned long long*>(verdict_.data());
        auto number = static_cast<unsigned long long>(id);
        context_.chained = false;  // plain launches around the check
        if (call.out.dtype == DType::f32)
            AWQ_TRY(launch(context_, find_non_finite<float>, ceil_div(count, 256), 256, 0, static_cast<float*>(call.out.data),
                           call.out.stride, call.out.cols, count, number, verdict));
        else
            AWQ_TRY(launch(context_, find_non_finite<__half>, ceil_div(count, 256), 256, 0, static_cast<__half*>(call.out.data),
                           call.out.stride, call.out.cols, count, number, verdict));
        context_.chained = false;
    }
    if (choosing == Choosing::nothing || graph.output == no_node) return {};
    Tensor logits = node_tensor(args, graph.output);
    if (logits.rows == 0 || logits.dtype != DType::f32) return {};
    Best* parts = reinterpret_cast<Best*>(context_.scratch);
    if (choosing == Choosing::best)
        return choose_best(context_, logits, parts, reinterpret_cast<int32_t*>(parts + logits.rows * best_parts), {});
    auto input = [&](Input kind) { return const_cast<int32_t*>(static_cast<const int32_t*>(args.inputs[static_cast<int>(kind)])); };
    const StepInputs next = {input(Input::tokens), input(Input::positions), input(Input::rope_len),
                             reinterpret_cast<int32_t*>(chosen_host_.data())};
    if (choosing == Choosing::best_for_next) return choose_best(context_, logits, parts, nullptr, next);
    return sampler_.choose(context_, logits, parts, next);
} catch (const std::bad_alloc&) {  // no exception: the stream must leave a capture, and what was launched be waited for
    return Status(Code::out_of_memory, "out of memory");
}

// Tells the product of node `id` which weight comes after its own.
void Executor::hint_next(const Graph& graph, NodeId id) {
    context_.matmul.next = nullptr;
    for (NodeId next = id + 1; next < static_cast<NodeId>(graph.nodes.size()) && !context_.matmul.next; next++) {
        const Weight* weight = product_weight(graph, graph.nodes[next]);
        if (!weight) continue;
        const WeightLayout layout = weight_layout(weight->spec);
        if (layout.kind != LayoutKind::q4) return;
        next_weight_ = q4_weight(*weight, layout);
        context_.matmul.next = &next_weight_;
    }
}

// Profiling: events around a node's launches, read once the run is over. They keep launches from overlapping.
Status Executor::mark(const RunArgs& args, NodeId node, bool end) {
    if (!args.node_seconds) return {};
    while (marks_.size() < args.graph->nodes.size() * 2) {
        cudaEvent_t event = nullptr;
        AWQ_CUDA(cudaEventCreate(&event));
        marks_.push_back(event);
    }
    if (!end) marked_.push_back(node);
    context_.chained = false;
    AWQ_CUDA(cudaEventRecord(marks_[static_cast<size_t>(node) * 2 + end], context_.stream));
    return {};
}

Status Executor::read_marks(const RunArgs& args) {
    AWQ_CUDA(cudaStreamSynchronize(context_.stream));
    for (NodeId node : marked_) {
        float milliseconds = 0;
        AWQ_CUDA(cudaEventElapsedTime(&milliseconds, marks_[static_cast<size_t>(node) * 2],
                                      marks_[static_cast<size_t>(node) * 2 + 1]));
        args.node_seconds[node] += milliseconds * 1e-3;
    }
    return {};
}

// Replays the graph of this key, or captures it the second time the key is seen. done: false where the run is still to do.
Status Executor::run_captured(const RunArgs& args, const Key& key, bool& done) {
    done = false;
    auto found = std::find_if(captured_.begin(), captured_.end(), [&](const Captured& c) { return c.key == key; });
    if (found == captured_.end()) {
        if (captured_.size() >= captured_limit) {
            auto oldest = std::min_element(captured_.begin(), captured_.end(),
                                           [](const Captured& a, const Captured& b) { return a.last_use < b.last_use; });
            if (oldest->exec) cudaGraphExecDestroy(oldest->exec);
            captured_.erase(oldest);
        }
        captured_.push_back({key, nullptr, ++uses_});
        return {};
    }
    found->last_use = ++uses_;
    if (!found->exec) {
        AWQ_CUDA(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal));
        Status issued = issue(args, key.choosing, true);
        cudaGraph_t graph = nullptr;
        cudaError_t ended = cudaStreamEndCapture(context_.stream, &graph);  // also after an error: the stream must leave the mode
        cudaError_t made = ended == cudaSuccess && issued.ok() ? cudaGraphInstantiate(&found->exec, graph, 0) : cudaSuccess;
        if (graph) cudaGraphDestroy(graph);
        if (made != cudaSuccess) found->exec = nullptr;
        AWQ_TRY(issued);
        AWQ_CUDA(ended);
        AWQ_CUDA(made);
    }
    AWQ_CUDA(cudaGraphLaunch(found->exec, context_.stream));
    done = true;
    return {};
}

Status Executor::fetch_result(const RunArgs& args) {
    if (args.graph->output == no_node || (!args.result && !args.argmax)) return {};
    Tensor output = node_tensor(on_device_, args.graph->output);
    const int64_t count = output.rows * output.cols;
    if (count == 0) return {};
    const size_t result_bytes = args.result ? static_cast<size_t>(count) * sizeof(float) : 0;
    const size_t argmax_bytes = args.argmax ? static_cast<size_t>(output.rows) * sizeof(int32_t) : 0;
    AWQ_TRY(result_host_.grow(result_bytes + argmax_bytes));
    if (argmax_bytes) {
        const char* index = context_.scratch + static_cast<size_t>(output.rows) * best_parts * sizeof(Best);
        AWQ_CUDA(
            cudaMemcpyAsync(result_host_.data() + result_bytes, index, argmax_bytes, cudaMemcpyDeviceToHost, context_.stream));
    }
    if (result_bytes) {
        const void* from = output.data;
        if (output.dtype != DType::f32 || output.stride != output.cols) {
            float* to = reinterpret_cast<float*>(context_.scratch);
            context_.chained = false;
            if (output.dtype == DType::f32)
                AWQ_CUDA(cudaMemcpy2DAsync(result_host_.data(), static_cast<size_t>(output.cols) * 4, output.data,
                                           static_cast<size_t>(output.stride) * 4, static_cast<size_t>(output.cols) * 4,
                                           static_cast<size_t>(output.rows), cudaMemcpyDeviceToHost, context_.stream));
            else
                AWQ_TRY(launch(context_, widen_kernel<__half>, ceil_div(count, 256), 256, 0, to,
                               static_cast<const __half*>(output.data), output.stride, output.cols, count));
            from = output.dtype == DType::f32 ? nullptr : to;
        }
        if (from) AWQ_CUDA(cudaMemcpyAsync(result_host_.data(), from, result_bytes, cudaMemcpyDeviceToHost, context_.stream));
    }
    AWQ_CUDA(cudaStreamSynchronize(context_.stream));
    if (result_bytes) std::memcpy(args.result, result_host_.data(), result_bytes);
    if (argmax_bytes) std::memcpy(args.argmax, result_host_.data() + result_bytes, argmax_bytes);
    return {};
}

Status Executor::report_finite(const RunArgs& args) {
    unsigned long long verdict = 0;
    AWQ_CUDA(cudaMemcpyAsync(&verdict, verdict_.data(), sizeof(verdict), cudaMemcpyDeviceToHost, context_.stream));
    AWQ_CUDA(cudaStreamSynchronize(context_.stream));
    if (verdict == ~0ull) return {};
    const Node& node = args.graph->nodes[verdict >> 32];
    return Status(Code::non_finite, node.name + " (" + op_name(node.op) + "): row " + std::to_string(verdict & 0xffffffff) +
                                        " holds a value that is not finite");
}

Executor::Key Executor::key_of(const RunArgs& args, Choosing choosing) const {
    Key key = {args.graph->serial.value,
               args.graph->output,
               args.graph->nodes.size(),
               args.plan->peak,
               args.plan,
               args.activations ? args.activations->data : nullptr,
               args.kv_cache ? args.kv_cache->data : nullptr,
               on_device_.size,
               args.feature_rows,
               context_.min_query,
               context_.max_query,
               context_.max_keys,
               0,
               choosing};
    for (int i = 0; i < input_count; i++) key.inputs |= args.inputs[i] ? 1u << i : 0;
    return key;
}

Status Executor::run(const RunArgs& args) {
    AWQ_CUDA(cudaSetDevice(device_));
    if (args.cancel && args.cancel->load(std::memory_order_relaxed)) return Status(Code::cancelled, "cancelled");
    AWQ_TRY(prepare(args));
    AWQ_TRY(send_inputs(args));
    const Choosing choosing = args.argmax ? Choosing::best : Choosing::nothing;

    Status status = [&]() -> Status {
        bool done = false;
        if (args.check_finite)
            AWQ_CUDA(cudaMemsetAsync(verdict_.data(), 0xff, sizeof(unsigned long long), context_.stream));
        else if (!args.node_seconds && args.size.tokens > 0 && args.size.tokens <= captured_tokens)
            AWQ_TRY(run_captured(args, key_of(args, choosing), done));
        marked_.clear();
        if (!done) AWQ_TRY(issue(args, choosing, false));
        if (args.node_seconds) AWQ_TRY(read_marks(args));
        if (args.check_finite) AWQ_TRY(report_finite(args));
        return fetch_result(args);
    }();
    // Also after an error nothing may be under way that reads the batch: its memory is used again by the next run.
    cudaError_t ended = cudaStreamSynchronize(context_.stream);
    AWQ_TRY(status);
    AWQ_CUDA(ended);
    return {};
}

}  // namespace awq::cuda
