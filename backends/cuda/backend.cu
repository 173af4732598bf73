// The CUDA backend: device, memory, weights. What runs is in executor.cu, kernels in a file a family.
//
// Activations are float16 with float32 accumulation, whatever the checkpoint was trained in; logits and rope tables are
// float32. Values beyond 65504 become infinite: --check-finite names the module where that happens.
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include "backends/cuda/executor.h"
#include "backends/cuda/loader.h"

namespace awq {
namespace cuda {
namespace {

class CudaBuffer : public Buffer {
public:
    ~CudaBuffer() override { cudaFree(data); }
};

std::string megabytes(size_t bytes) { return std::to_string((bytes + (size_t{1} << 20) - 1) >> 20) + " MiB"; }

__global__ void read_kernel(const uint4* data, size_t count, unsigned* sink) {
    unsigned sum = 0;
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i + 3 * step < count; i += 4 * step) {
        uint4 a = data[i], b = data[i + step], c = data[i + 2 * step], d = data[i + 3 * step];
        sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (sum == 0x12345678) *sink = sum;  // keeps the reads
}

// Bytes a second a plain read of device memory reaches: the best of a few reads of half a gigabyte. 0: not measured.
double measure_bandwidth(int multiprocessors) {
    const size_t bytes = size_t{512} << 20;
    size_t free = 0, total = 0;
    void* data = nullptr;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess || free < 4 * bytes || cudaMalloc(&data, bytes) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    cudaEvent_t begin = nullptr, end = nullptr;
    double best = 0;
    if (cudaMemset(data, 1, bytes) == cudaSuccess && cudaEventCreate(&begin) == cudaSuccess &&
        cudaEventCreate(&end) == cudaSuccess)
        for (int i = 0; i < 4; i++) {
            float milliseconds = 0;
            cudaEventRecord(begin);
            read_kernel<<<multiprocessors * 8, 256>>>(static_cast<const uint4*>(data), bytes / 16, static_cast<unsigned*>(data));
            cudaEventRecord(end);
            if (cudaGetLastError() != cudaSuccess) break;  // a read that was not launched takes no time
            if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&milliseconds, begin, end) != cudaSuccess) break;
            if (i > 0) best = std::max(best, static_cast<double>(bytes) / (milliseconds * 1e-3));
        }
    if (begin) cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    cudaFree(data);
    cudaGetLastError();
    return best;
}

class DeviceChain : public Chain {
public:
    explicit DeviceChain(Executor& executor) : executor_(executor) {}
    ~DeviceChain() override { executor_.end_chain(); }
    int32_t depth() const override { return step_slots; }
    Status launch() override { return executor_.launch_step(); }
    Status wait(int32_t* tokens) override { return executor_.wait_step(tokens); }

private:
    Executor& executor_;
};

class CudaBackend : public Backend {
public:
    Status open(int device) {
        device_ = device;
        AWQ_CUDA(cudaSetDevice(device));
        AWQ_CUDA(cudaGetDeviceProperties(&properties_, device));
        if (properties_.major < 8)
            return Status(Code::unsupported, std::string("--backend cuda: ") + properties_.name + " has compute capability " +
                                                 std::to_string(properties_.major) + "." + std::to_string(properties_.minor) +
                                                 "; 8.0 or later expected");
        cudaFuncAttributes attributes;
        if (cudaError_t error = cudaFuncGetAttributes(&attributes, read_kernel); error != cudaSuccess) {
            if (error != cudaErrorInvalidDeviceFunction && error != cudaErrorNoKernelImageForDevice)
                return cuda_error(error, "cudaFuncGetAttributes");
            cudaGetLastError();
            return Status(Code::unsupported, std::string("--backend cuda: this program was not built for ") + properties_.name +
                                                 " (compute capability " + std::to_string(properties_.major) + "." +
                                                 std::to_string(properties_.minor) + "): build it with CUDA_ARCHS");
        }
        bool known = false;
        taken_arch(properties_.major * 10 + properties_.minor, &known);
        if (!known)
            return Status(Code::invalid_argument, "AWQ_CUDA_ARCH \"" + quote(std::getenv("AWQ_CUDA_ARCH")) +
                                                      "\": expected 80 (the kernels of GPUs before Hopper) or, on compute capability 9.0 and later, 120 (of those after it)");
        AWQ_TRY(executor_.open(device, properties_));
        return {};
    }

    const char* name() const override { return "cuda"; }
    DeviceInfo device() const override {
        DeviceInfo info;
        info.name = std::string(properties_.name) + ", " + std::to_string(properties_.multiProcessorCount) + " multiprocessors";
        cudaSetDevice(device_);
        if (cudaMemGetInfo(&info.memory_free, &info.memory_total) != cudaSuccess) cudaGetLastError();
        info.own_memory = info.memory_free > 0;
        return info;
    }
    double bandwidth() const override {
        std::call_once(measured_, [&] {
            cudaSetDevice(device_);
            bandwidth_ = measure_bandwidth(properties_.multiProcessorCount);
        });
        return bandwidth_;
    }
    DType activation_type() const override { return DType::f16; }

    Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override {
        AWQ_CUDA(cudaSetDevice(device_));
        auto buffer = std::make_unique<CudaBuffer>();
        if (bytes == 0) return std::unique_ptr<Buffer>(std::move(buffer));
        if (cudaError_t error = cudaMalloc(&buffer->data, bytes); error != cudaSuccess) {
            buffer->data = nullptr;
            if (error != cudaErrorMemoryAllocation) return cuda_error(error, "cudaMalloc");
            cudaGetLastError();
            return Status(Code::out_of_memory, std::string(properties_.name) + ": no room for " + megabytes(bytes) + "; " +
                                                   megabytes(device().memory_free) + " are free");
        }
        buffer->bytes = bytes;
        AWQ_CUDA(cudaMemset(buffer->data, 0, bytes));
        AWQ_CUDA(cudaDeviceSynchronize());
        return std::unique_ptr<Buffer>(std::move(buffer));
    }
    Status upload(const Buffer& buffer, size_t offset, const void* from, size_t bytes) override {
        AWQ_CUDA(cudaSetDevice(device_));
        return staging_.upload(static_cast<char*>(buffer.data) + offset, from, bytes);
    }
    Status download(const Buffer& buffer, size_t offset, void* to, size_t bytes) override {
        AWQ_CUDA(cudaSetDevice(device_));
        return staging_.download(to, static_cast<const char*>(buffer.data) + offset, bytes);
    }

    void lay_out(Weight& weight) const override {
        WeightLayout layout = weight_layout(weight.spec);
        size_t experts = static_cast<size_t>(weight.spec.experts);
        switch (layout.kind) {
            case LayoutKind::q4:
                weight.layout = layout.q4.eight   ? "int8 as two int4 columns, units of 16 x 256"
                                : layout.q4.gated ? "int4 units of 16 x 256, gate and up rows in turn" : "int4 units of 16 x 256";
                weight.bytes = experts * static_cast<size_t>(layout.q4.bytes());
                break;
            case LayoutKind::dense:
                weight.layout = layout.dense.gated ? "float16 rows, gate and up in turn" : "float16 rows";
                weight.bytes = experts * static_cast<size_t>(dense_bytes(layout.dense));
                break;
            case LayoutKind::vector:
                weight.layout = "float32";
                weight.bytes = experts * static_cast<size_t>(weight.spec.out * weight.spec.in) * sizeof(float);
                break;
        }
    }

    Status pack(const Weight& weight, std::span<const WeightRows* const> sources) override {
        AWQ_CUDA(cudaSetDevice(device_));
        if (weight_layout(weight.spec).kind != LayoutKind::vector) {
            if (!packer_) packer_ = std::make_unique<Packer>(device_);
            return packer_->pack(weight, sources);
        }
        std::vector<float> rows;
        for (const WeightRows* source : sources) {
            size_t at = rows.size();
            rows.resize(at + static_cast<size_t>(source->out * source->in));
            source->read_dense(0, source->out, rows.data() + at);
        }
        return staging_.upload(weight.data, rows.data(), std::min(weight.bytes, rows.size() * sizeof(float)));
    }

    Status unpack(const Weight& weight, float* rows) override {
        AWQ_CUDA(cudaSetDevice(device_));
        const WeightLayout layout = weight_layout(weight.spec);
        if (layout.kind == LayoutKind::vector) return staging_.download(rows, weight.data, weight.bytes);
        const int64_t matrix = weight.spec.out * weight.spec.in;
        if (layout.kind == LayoutKind::q4) {
            std::vector<uint8_t> packed(weight.bytes);
            AWQ_TRY(staging_.download(packed.data(), weight.data, packed.size()));
            for (int64_t e = 0; e < weight.spec.experts; e++)
                q4_unpack(layout.q4, packed.data() + e * layout.q4.bytes(), rows + e * matrix);
            return {};
        }
        const int64_t block = std::clamp<int64_t>((int64_t{1} << 22) / weight.spec.in, 1, weight.spec.out);
        DeviceMemory floats;
        bool moved = false;
        AWQ_TRY(floats.grow(static_cast<size_t>(block * weight.spec.in) * sizeof(float), moved));
        for (int64_t e = 0; e < weight.spec.experts; e++)
            for (int64_t first = 0; first < weight.spec.out; first += block) {
                int64_t count = std::min(block, weight.spec.out - first);
                AWQ_TRY(unpack_dense(dense_weight(weight, layout), e, first, count, reinterpret_cast<float*>(floats.data()),
                                     nullptr));
                AWQ_CUDA(cudaDeviceSynchronize());
                AWQ_TRY(staging_.download(rows + e * matrix + first * weight.spec.in, floats.data(),
                                          static_cast<size_t>(count * weight.spec.in) * sizeof(float)));
            }
        return {};
    }

    size_t kv_page_bytes(const KvShape& kv) const override {
        return sizeof(__half) * 2 * page_size * static_cast<size_t>(kv.layers) * static_cast<size_t>(kv.kv_heads) *
               static_cast<size_t>(kv.head_dim);
    }
    // Products of 512 tokens leave a tenth of a large GPU's speed unused; a small one has no memory to spare for activations.
    int32_t run_tokens() const override { return properties_.totalGlobalMem >= (size_t{20} << 30) ? 2048 : 512; }
    // Slots of the packer and what runs need are never there at once.
    size_t scratch_bytes(const Graph& graph, const BatchSize& capacity, int64_t positions) const override {
        return std::max(Packer::device_bytes(), executor_.scratch_bytes(graph, capacity, positions));
    }
    Status prepare(const Graph& graph, const BatchSize& capacity, int64_t positions) override {
        packer_.reset();
        return executor_.reserve(graph, capacity, positions);
    }
    const Kernel* kernel(const Graph& graph, const Node& node, int64_t rows) const override {
        return find_kernel(kernel_table(), graph, node, rows);
    }
    std::span<const Kernel> kernels() const override { return kernel_table(); }

    Status run(const RunArgs& args) override { return executor_.run(args); }
    Result<std::unique_ptr<Chain>> begin_chain(const ChainArgs& args) override {
        if (args.run.check_finite || args.run.size.sequences > captured_tokens) return Backend::begin_chain(args);
        std::unique_ptr<Chain> chain = std::make_unique<DeviceChain>(executor_);
        AWQ_TRY(executor_.begin_chain(args));
        return std::move(chain);
    }

private:
    int device_ = 0;
    cudaDeviceProp properties_ = {};
    mutable std::once_flag measured_;
    mutable double bandwidth_ = 0;
    Staging staging_;
    std::unique_ptr<Packer> packer_;
    Executor executor_;
};

}  // namespace
}  // namespace cuda

// The runtime is linked statically and looks for a driver only here: without one this is a plain no.
bool cuda_available() {
    int count = 0;
    cudaFuncAttributes attributes;
    bool usable = cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
                  cudaFuncGetAttributes(&attributes, cuda::read_kernel) == cudaSuccess;
    cudaGetLastError();
    return usable;
}

bool cuda_present() {
    int count = 0;
    bool present = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
    cudaGetLastError();
    return present;
}

Result<std::unique_ptr<Backend>> create_cuda_backend(const BackendOptions& options) {
    int count = 0;
    if (cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
        cudaGetLastError();
        return Status(Code::unsupported, std::string("--backend cuda: no CUDA device: ") +
                                             (error == cudaSuccess                   ? "none is installed"
                                              : error == cudaErrorInsufficientDriver ? "no NVIDIA driver, or one that is too old"
                                                                                     : cudaGetErrorString(error)));
    }
    if (options.device < 0 || options.device >= count)
        return Status(Code::invalid_argument,
                      "--device: " + std::to_string(options.device) + "; expected 0 to " + std::to_string(count - 1));
    auto backend = std::make_unique<cuda::CudaBackend>();
    AWQ_TRY(backend->open(options.device));
    return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace awq
