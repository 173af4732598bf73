// Calls of the CUDA runtime that fail, one after the other, while a model is loaded, talks and is freed: always a status that
// fits, nothing left on the device or of pinned memory, and the same engine then computes the same bits as before.
//
// The linker puts the functions below between the library and the runtime (-Wl,--wrap; the build reads their names from here).
// Without a device the tests say so and pass; without CUDA there is nothing to compile.
#ifdef AWQ_HAVE_CUDA
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include "core/engine.h"
#include "tests/support.h"

namespace {

// The k-th call of one name fails, alone or with all that follow.
std::atomic<const char*> wanted{nullptr};
std::atomic<long> first_to_fail{0}, calls{0};
std::atomic<bool> once{true};
std::atomic<long> living{0};                       // allocations, streams, events and graphs that nobody has freed yet
thread_local cudaError_t unseen = cudaSuccess;     // as the runtime's: the error of a call that failed, until somebody asks

bool fails(const char* name) {
    const char* now = wanted.load();
    if (!now || std::strcmp(name, now) != 0) return false;
    const long k = ++calls;
    return once ? k == first_to_fail : k >= first_to_fail;
}
cudaError_t failure(const char* name) {
    const bool memory = std::strcmp(name, "cudaMalloc") == 0 || std::strcmp(name, "cudaMallocHost") == 0;
    return unseen = memory ? cudaErrorMemoryAllocation : cudaErrorUnknown;
}
cudaError_t count(cudaError_t result, int change) {
    if (result == cudaSuccess) living += change;
    return result;
}

}  // namespace

// WRAP: fails in place of the call. WRAP_AFTER: fails once the call is done, as one does that reports what went wrong before.
// WRAP_MAKE, WRAP_FREE: what they make is counted; nothing can be done about a failure to free, so none is made up.
#define DECLARE(name, parameters)      \
    cudaError_t __real_##name parameters; \
    cudaError_t __wrap_##name parameters
#define WRAP(name, parameters, arguments) \
    DECLARE(name, parameters) { return fails(#name) ? failure(#name) : __real_##name arguments; }
#define WRAP_AFTER(name, parameters, arguments)          \
    DECLARE(name, parameters) {                          \
        const cudaError_t result = __real_##name arguments; \
        return fails(#name) ? failure(#name) : result;   \
    }
#define WRAP_MAKE(name, parameters, arguments) \
    DECLARE(name, parameters) { return fails(#name) ? failure(#name) : count(__real_##name arguments, 1); }
#define WRAP_FREE(name, type) \
    DECLARE(name, (type object)) { return count(__real_##name(object), object ? -1 : 0); }

extern "C" {
WRAP(cudaGetDeviceCount, (int* number), (number))
WRAP(cudaGetDeviceProperties, (cudaDeviceProp * properties, int device), (properties, device))
WRAP(cudaDeviceGetAttribute, (int* value, cudaDeviceAttr attribute, int device), (value, attribute, device))
WRAP(cudaSetDevice, (int device), (device))
WRAP(cudaMemGetInfo, (size_t * free, size_t* total), (free, total))
WRAP(cudaFuncGetAttributes, (cudaFuncAttributes * attributes, const void* function), (attributes, function))
WRAP(cudaFuncSetAttribute, (const void* function, cudaFuncAttribute attribute, int value), (function, attribute, value))
WRAP(cudaGetDriverEntryPointByVersion,
     (const char* name, void** function, unsigned version, unsigned long long flags, cudaDriverEntryPointQueryResult* result),
     (name, function, version, flags, result))
WRAP_MAKE(cudaMalloc, (void** data, size_t bytes), (data, bytes))
WRAP_MAKE(cudaMallocHost, (void** data, size_t bytes), (data, bytes))
WRAP(cudaMemcpyAsync, (void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream), (to, from, bytes, kind, stream))
WRAP(cudaMemcpy2DAsync,
     (void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream),
     (to, to_pitch, from, from_pitch, width, height, kind, stream))
WRAP(cudaMemset, (void* data, int value, size_t bytes), (data, value, bytes))
WRAP(cudaMemsetAsync, (void* data, int value, size_t bytes, cudaStream_t stream), (data, value, bytes, stream))
WRAP(cudaLaunchKernelExC, (const cudaLaunchConfig_t* config, const void* kernel, void** arguments), (config, kernel, arguments))
WRAP(__cudaLaunchKernel, (cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream),
     (kernel, grid, block, arguments, shared, stream))
WRAP(cudaStreamBeginCapture, (cudaStream_t stream, cudaStreamCaptureMode mode), (stream, mode))
WRAP(cudaGraphLaunch, (cudaGraphExec_t graph, cudaStream_t stream), (graph, stream))
WRAP(cudaEventRecord, (cudaEvent_t event, cudaStream_t stream), (event, stream))
WRAP(cudaEventElapsedTime, (float* milliseconds, cudaEvent_t begin, cudaEvent_t end), (milliseconds, begin, end))
WRAP_AFTER(cudaEventSynchronize, (cudaEvent_t event), (event))
WRAP_AFTER(cudaStreamSynchronize, (cudaStream_t stream), (stream))
WRAP_AFTER(cudaDeviceSynchronize, (), ())
WRAP_MAKE(cudaEventCreate, (cudaEvent_t * event), (event))
WRAP_MAKE(cudaEventCreateWithFlags, (cudaEvent_t * event, unsigned flags), (event, flags))
WRAP_MAKE(cudaStreamCreateWithFlags, (cudaStream_t * stream, unsigned flags), (stream, flags))
WRAP_MAKE(cudaGraphInstantiate, (cudaGraphExec_t * exec, cudaGraph_t graph, unsigned long long flags), (exec, graph, flags))
WRAP_FREE(cudaFree, void*)
WRAP_FREE(cudaFreeHost, void*)
WRAP_FREE(cudaEventDestroy, cudaEvent_t)
WRAP_FREE(cudaStreamDestroy, cudaStream_t)
WRAP_FREE(cudaGraphExecDestroy, cudaGraphExec_t)
WRAP_FREE(cudaGraphDestroy, cudaGraph_t)
// A capture that fails has ended all the same, and there is no graph.
DECLARE(cudaStreamEndCapture, (cudaStream_t stream, cudaGraph_t* graph)) {
    cudaError_t result = __real_cudaStreamEndCapture(stream, graph);
    if (result == cudaSuccess && *graph) living++;
    if (!fails("cudaStreamEndCapture")) return result;
    if (*graph) __wrap_cudaGraphDestroy(*graph);
    *graph = nullptr;
    return failure("cudaStreamEndCapture");
}
DECLARE(cudaGetLastError, ()) {
    const cudaError_t real = __real_cudaGetLastError(), made_up = unseen;
    unseen = cudaSuccess;
    return made_up != cudaSuccess ? made_up : real;
}
}

using namespace awq;

namespace {

bool has_gpu() {
    for (const BackendEntry& entry : backend_table())
        if (std::string(entry.name) == "cuda" && entry.available()) return true;
    MESSAGE("no CUDA device: the calls of a GPU that fail are skipped");
    return false;
}

struct Armed {
    Armed(const char* name, long k, bool alone) {
        first_to_fail = k, once = alone, calls = 0;
        wanted = name;
    }
    ~Armed() { wanted = nullptr, unseen = cudaSuccess; }
    bool reached() const { return calls >= first_to_fail; }
};

Result<std::shared_ptr<Engine>> load(const std::string& name, bool check_finite) {
    EngineOptions options;
    options.model = test::model(name);
    options.backend = "cuda";
    options.context = 256;
    options.cache_tokens = 512;
    options.check_finite = check_finite;
    return Engine::load(options);
}

// A prompt, tokens one by one (launched, captured, replayed), one profiled; steps chained, drawn with penalties and the likeliest; an
// image where the model sees.
Status talk(Engine& engine, std::vector<float>& all) {
    all.clear();
    AWQ_ASSIGN(auto session, engine.new_session());
    std::vector<int32_t> ids;
    for (uint32_t seed = 7; ids.size() < 40;) {
        seed = seed * 1664525 + 1013904223;
        const auto id = static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(engine.vocab_size()));
        if (id != engine.config().vision.image_token) ids.push_back(id);
    }
    for (size_t at = 0; at < ids.size(); at += at ? 1 : 34) {
        std::vector<float> rows;
        std::vector<double> seconds;
        int32_t best = 0;
        Feed feed{.session = session.get(), .tokens = std::span(ids).subspan(at, at ? 1 : 34), .logits = &rows, .best = &best};
        AWQ_TRY(at + 1 == ids.size() ? engine.profile({&feed, 1}, seconds) : engine.run({&feed, 1}));
        all.insert(all.end(), rows.begin(), rows.end());
        all.push_back(static_cast<float>(best));
    }
    SamplingOptions options;
    options.sample = true, options.temperature = 2, options.repeat_penalty = 1.2f, options.frequency_penalty = 0.1f;
    Sampler sampler(options);
    sampler.prompt(ids);
    for (Sampler* choosing : {&sampler, static_cast<Sampler*>(nullptr)}) {
        Continuation next{session.get(), ids[0], choosing};
        AWQ_TRY(engine.decode({&next, 1}, 4, [&](std::span<const int32_t> tokens) -> Result<bool> {
            all.push_back(static_cast<float>(tokens[0]));
            return true;
        }));
    }
    if (!engine.has_vision()) return {};
    const auto side = static_cast<size_t>(engine.config().vision.image_size);
    AWQ_ASSIGN(auto features, engine.image_features(std::vector<float>(3 * side * side, 0.5f)));
    all.insert(all.end(), features.begin(), features.end());
    return {};
}

// What a call that fails is told as. Nothing: a run goes well without it, or is told by the code that fits the place.
void check_told(const std::string& call, const Status& status) {
    if (status.ok()) return;
    const Code expected = call == "cudaMalloc" || call == "cudaMallocHost" ? Code::out_of_memory
                          : call == "cudaGetDeviceCount"                   ? Code::unsupported
                                                                           : Code::internal;
    CHECK_MESSAGE(status.code() == expected, status.message());
    CHECK_MESSAGE((status.message().find("CUDA") != std::string::npos || status.message().find("no room for") != std::string::npos),
                  status.message());
    CHECK(status.message().find('\n') == std::string::npos);
}

// Every call by itself, then all from the k-th on; denser in `make soak`.
void fail_each(const std::string& model, bool check_finite, const std::vector<const char*>& names) {
    std::vector<float> expected, got;
    for (int i = 0; i < 2; i++) {    // what the runtime makes once and keeps is there after this
        auto engine = load(model, check_finite);
        REQUIRE_MESSAGE(engine.ok(), engine.status().message());
        REQUIRE(talk(**engine, expected).ok());
    }
    const long before = living;
    size_t free_before = 0, free_after = 0, total = 0;
    REQUIRE(__real_cudaMemGetInfo(&free_before, &total) == cudaSuccess);
    const bool dense = std::getenv("AWQ_SOAK") != nullptr;
    long runs = 0, refused = 0;
    for (const char* name : names) {
        long of_this = 0, refused_of_this = 0;
        for (bool alone : {true, false})
            for (long k = 1;; k += 1 + (k / (dense ? 10 : 2))) {
                INFO(model << ", " << std::string(name) << ": call " << k << std::string(alone ? " alone" : " and all that follow"));
                Status status;
                std::shared_ptr<Engine> engine;
                bool reached;
                {
                    Armed armed(name, k, alone);
                    auto loaded = load(model, check_finite);
                    status = loaded.status();
                    if (loaded.ok()) engine = std::move(*loaded), status = talk(*engine, got);
                    reached = armed.reached();
                    if (!status.ok()) REQUIRE(reached);
                    if (reached && !engine) CHECK(living == before);
                }
                if (!reached) break;
                check_told(name, status);
                if (status.ok()) {
                    REQUIRE(got == expected);
                } else if (engine) {
                    const Status again = talk(*engine, got);
                    REQUIRE_MESSAGE(again.ok(), again.message());
                    REQUIRE(got == expected);
                }
                engine.reset();
                REQUIRE(living == before);
                of_this++, refused_of_this += !status.ok();
            }
        runs += of_this, refused += refused_of_this;
        if (dense) MESSAGE(model << ", " << std::string(name) << ": " << of_this << " runs, " << refused_of_this << " ended in an error");
    }
    auto engine = load(model, check_finite);
    REQUIRE_MESSAGE(engine.ok(), engine.status().message());
    REQUIRE(talk(**engine, got).ok());
    CHECK(got == expected);
    engine->reset();
    CHECK(living == before);
    bool all_back = false;
    for (int seconds = 0; seconds < 60 && !all_back; seconds++) {  // other programs' memory counts too: they may be gone in a moment
        if (seconds > 0) std::this_thread::sleep_for(std::chrono::seconds(1));
        REQUIRE(__real_cudaMemGetInfo(&free_after, &total) == cudaSuccess);
        all_back = free_after + (size_t{16} << 20) >= free_before;
    }
    CHECK_MESSAGE(all_back, (free_before - free_after) << " bytes of device memory are gone");
    MESSAGE(model << ": " << runs << " runs with calls that fail, " << refused << " ended in an error");
    CHECK(refused > 0);
}

}  // namespace

TEST_CASE("faults: any call of the GPU fails while a model is loaded, talks and is freed: a status, no leak, the same bits afterwards") {
    if (!has_gpu()) return;
    const std::vector<const char*> all = {
        "cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaDeviceGetAttribute", "cudaSetDevice", "cudaMemGetInfo",
        "cudaFuncGetAttributes", "cudaFuncSetAttribute", "cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync", "cudaMemset", "cudaMemsetAsync",
        "cudaLaunchKernelExC", "__cudaLaunchKernel", "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate",
        "cudaGraphLaunch", "cudaEventRecord", "cudaEventElapsedTime", "cudaEventSynchronize", "cudaStreamSynchronize",
        "cudaDeviceSynchronize", "cudaEventCreate", "cudaEventCreateWithFlags", "cudaStreamCreateWithFlags"};
    SUBCASE("a dense model") { fail_each("llama-gemm-g32", false, all); }
    SUBCASE("looking for what is not finite") { fail_each("llama-gemm-g32", true, {"cudaMemsetAsync", "cudaMemcpyAsync", "cudaLaunchKernelExC", "cudaStreamSynchronize"}); }
    SUBCASE("experts") { fail_each("mixtral-gemm", false, {"cudaMalloc", "cudaLaunchKernelExC", "cudaFuncSetAttribute", "__cudaLaunchKernel"}); }
    SUBCASE("images") { fail_each("llava-gemm", false, {"cudaMalloc", "cudaLaunchKernelExC", "cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaStreamSynchronize"}); }
    // A driver that does not know tensor maps: other kernels are taken, which may round otherwise.
    SUBCASE("an old driver") {
        Armed armed("cudaGetDriverEntryPointByVersion", 1, false);
        auto engine = load("llama-gemm-g32", false);
        REQUIRE_MESSAGE(engine.ok(), engine.status().message());
        std::vector<float> logits;
        CHECK(talk(**engine, logits).ok());
        CHECK(armed.reached());
    }
}

TEST_CASE("faults: a GPU's bandwidth that cannot be measured is 0, never a number") {
    if (!has_gpu()) return;
    for (const char* name : {"cudaMemGetInfo", "cudaMalloc", "cudaMemset", "cudaEventCreate", "__cudaLaunchKernel", "cudaEventSynchronize", "cudaEventElapsedTime"}) {
        INFO(std::string(name));
        auto backend = create_backend("cuda", {});
        REQUIRE(backend.ok());
        const long before = living;
        {
            Armed armed(name, 1, false);
            CHECK((*backend)->bandwidth() == 0);
        }
        CHECK(living == before);
    }
}

#endif
