// Memory that ends at any allocation, a backend that fails at any call: always a status, and nothing is left behind.
//
// Calls of the system that fail are tests/faults' business, which runs the whole program.
#include <doctest/doctest.h>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <new>
#include <string>
#include <string_view>
#include "core/awq.h"
#include "core/engine.h"
#include "core/weight_store.h"
#include "tests/chat_files.h"
#include "tests/support.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they have their own

namespace {
std::atomic<long> until_failure{-1};  // allocations that still succeed; below zero: all
std::atomic<long> living{0};          // allocated, not yet freed

void* take(size_t size, size_t alignment) {
    long left = until_failure.load(std::memory_order_relaxed);
    while (left >= 0 && !until_failure.compare_exchange_weak(left, left == 0 ? 0 : left - 1)) {
    }
    if (left == 0) return nullptr;
    void* block = alignment ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment) : std::malloc(size ? size : 1);
    if (block) living.fetch_add(1, std::memory_order_relaxed);
    return block;
}
void* take_or_throw(size_t size, size_t alignment) {
    void* block = take(size, alignment);
    if (!block) throw std::bad_alloc();
    return block;
}
void give(void* block) noexcept {
    if (block) living.fetch_sub(1, std::memory_order_relaxed);
    std::free(block);
}
}  // namespace

void* operator new(size_t size) { return take_or_throw(size, 0); }
void* operator new[](size_t size) { return take_or_throw(size, 0); }
void* operator new(size_t size, std::align_val_t alignment) { return take_or_throw(size, static_cast<size_t>(alignment)); }
void* operator new[](size_t size, std::align_val_t alignment) { return take_or_throw(size, static_cast<size_t>(alignment)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return take(size, 0); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return take(size, 0); }
void operator delete(void* block) noexcept { give(block); }
void operator delete[](void* block) noexcept { give(block); }
void operator delete(void* block, size_t) noexcept { give(block); }
void operator delete[](void* block, size_t) noexcept { give(block); }
void operator delete(void* block, std::align_val_t) noexcept { give(block); }
void operator delete[](void* block, std::align_val_t) noexcept { give(block); }
void operator delete(void* block, size_t, std::align_val_t) noexcept { give(block); }
void operator delete[](void* block, size_t, std::align_val_t) noexcept { give(block); }
void operator delete(void* block, const std::nothrow_t&) noexcept { give(block); }
void operator delete[](void* block, const std::nothrow_t&) noexcept { give(block); }

namespace {

const std::string& chat_model() {
    static test::TempDir directory;
    static const bool made = [] {
        for (const auto& entry : std::filesystem::directory_iterator(test::model("qwen2-tied")))
            std::filesystem::copy_file(entry.path(), directory.file(entry.path().filename().string()));
        test::write_bytes(directory.file("tokenizer.json"), test::tokenizer_json({"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}, 384));
        test::write_bytes(directory.file("tokenizer_config.json"), "{}");
        test::write_bytes(directory.file("chat_template.jinja"), test::chatml);
        return true;
    }();
    (void)made;
    return directory.path();
}

// `task` again and again, its first, second, third ... allocation failing; sparser and sparser, until none fails. Each
// until nothing is added any more: what is made once and kept (a table, the room for a message) is there after a few times,
// a leak comes back every time.
void fail_each(const std::function<awq_status()>& task) {
    int refused = 0;
    bool worked = false;
    for (long k = 0; !worked && k < 10'000'000; k += 1 + k / 40) {
        awq_status status = AWQ_OK;
        long before = 0;
        for (int time = 0; time < 8 && (time == 0 || living != before); time++) {
            before = living;
            until_failure = k;
            status = task();
            worked = until_failure > 0;
            until_failure = -1;
        }
        REQUIRE_MESSAGE((status == AWQ_OK || status == AWQ_OUT_OF_MEMORY), "allocation " << k << ": " << status << " " << awq_last_error());
        REQUIRE_MESSAGE((status == AWQ_OK || std::string(awq_last_error()).size() > 5), k);
        REQUIRE_MESSAGE(living == before, "allocation " << k << ": " << living - before << " blocks are left");
        refused += status != AWQ_OK;
    }
    CHECK(worked);
    CHECK(refused > 20);
    CHECK(task() == AWQ_OK);
}

}  // namespace

TEST_CASE("faults: any allocation fails while a model is loaded, talks, looks at pictures, is looked at or verified: a status, and no leak") {
    awq_options options = awq_default_options();
    options.model = chat_model().c_str();
    options.backend = "cpu";
    options.threads = 1;
    options.context = 64;
    SUBCASE("loaded") {
        fail_each([&] {
            awq_engine* engine = nullptr;
            const awq_status status = awq_engine_load(&options, &engine);
            awq_engine_free(engine);
            return status;
        });
    }
    SUBCASE("chat") {
        awq_engine* engine = nullptr;
        REQUIRE(awq_engine_load(&options, &engine) == AWQ_OK);
        fail_each([&] {
            awq_session* session = nullptr;
            awq_generation generation = awq_default_generation(engine);
            generation.max_tokens = 3;
            awq_status status = awq_session_create(engine, &session);
            if (status == AWQ_OK) status = awq_chat(session, "[{\"role\": \"user\", \"content\": \"Hello\"}]", &generation, nullptr, nullptr, nullptr);
            awq_session_free(session);
            return status;
        });
        awq_engine_free(engine);
    }
    SUBCASE("inspect") {
        fail_each([&] {
            char* text = nullptr;
            const awq_status status = awq_inspect(&options, true, nullptr, &text);
            awq_free(text);
            return status;
        });
    }
    SUBCASE("verify") {
        fail_each([&] {
            char* text = nullptr;
            const awq_status status = awq_verify(options.model, false, nullptr, nullptr, &text);
            awq_free(text);
            return status;
        });
    }
    SUBCASE("tokenize") {
        fail_each([&] {
            awq_evaluator* evaluator = nullptr;
            char* answer = nullptr;
            awq_status status = awq_evaluator_open(&options, "tokenize", &evaluator);
            const std::string_view request = "{\"text\": \"Hello\"}";
            if (status == AWQ_OK) status = awq_evaluator_run(evaluator, request.data(), request.size(), &answer);
            awq_free(answer);
            awq_evaluator_free(evaluator);
            return status;
        });
    }
    SUBCASE("pictures") {
        const std::string model = test::model("llava-gemm");
        options.model = model.c_str();
        awq_engine* engine = nullptr;
        REQUIRE(awq_engine_load(&options, &engine) == AWQ_OK);
        std::vector<float> pixels(3 * 56 * 56);
        std::vector<std::string> files;
        for (const char* name : {"rgba16-interlaced.png", "palette8.png", "cmyk-adobe.jpg", "420-progressive.jpg"})
            files.push_back(test::read_bytes(std::string("tests/data/images/formats/") + name));
        fail_each([&] {
            for (const std::string& file : files)
                if (awq_status status = awq_image_pixels(engine, file.data(), file.size(), pixels.data(), pixels.size())) return status;
            return AWQ_OK;
        });
        awq_engine_free(engine);
    }
}

#endif

namespace {

using namespace awq;

// The CPU backend, whose calls of one kind fail from the k-th on: as a device whose memory is full or whose kernels do
// not start.
class FailingBackend : public Backend {
public:
    FailingBackend(std::unique_ptr<Backend> inner, std::string kind, int k) : inner_(std::move(inner)), kind_(std::move(kind)), left_(k) {}
    const char* name() const override { return inner_->name(); }
    DeviceInfo device() const override { return inner_->device(); }
    DType activation_type() const override { return inner_->activation_type(); }
    Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override {
        if (fails("allocate")) return Status(Code::out_of_memory, "the device: out of memory");
        return inner_->allocate(bytes);
    }
    Status upload(const Buffer& buffer, size_t offset, const void* from, size_t bytes) override { return inner_->upload(buffer, offset, from, bytes); }
    Status download(const Buffer& buffer, size_t offset, void* to, size_t bytes) override { return inner_->download(buffer, offset, to, bytes); }
    void lay_out(Weight& weight) const override { inner_->lay_out(weight); }
    Status pack(const Weight& weight, std::span<const WeightRows* const> sources) override {
        if (fails("pack")) return Status(Code::internal, "the device: a kernel was not launched");
        return inner_->pack(weight, sources);
    }
    Status unpack(const Weight& weight, float* rows) override { return inner_->unpack(weight, rows); }
    size_t kv_page_bytes(const KvShape& shape) const override { return inner_->kv_page_bytes(shape); }
    const Kernel* kernel(const Graph& graph, const Node& node, int64_t rows) const override { return inner_->kernel(graph, node, rows); }
    std::span<const Kernel> kernels() const override { return inner_->kernels(); }
    Status run(const RunArgs& args) override { return inner_->run(args); }

private:
    bool fails(const char* kind) { return kind_ == kind && left_-- <= 0; }
    std::unique_ptr<Backend> inner_;
    std::string kind_;
    int left_;
};

}  // namespace

TEST_CASE("faults: a backend that has no memory or does not pack: the load ends with its error") {
    auto checkpoint = Checkpoint::open(test::model("qwen2-tied"));
    REQUIRE(checkpoint.ok());
    auto model = configure_model((*checkpoint)->config());
    REQUIRE(model.ok());
    for (const char* kind : {"allocate", "pack"})
        for (int k = 0;; k++) {
            auto cpu = create_backend("cpu", {});
            REQUIRE(cpu.ok());
            FailingBackend backend(std::move(*cpu), kind, k);
            auto plan = make_plan(**checkpoint, *model, PlanOptions(), &backend);
            REQUIRE(plan.ok());
            WeightStore store(*plan, backend);
            Status status = store.allocate(backend);
            if (status.ok()) status = store.load(**checkpoint, *plan, backend, {});
            if (status.ok()) {
                CHECK(k == (std::string(kind) == "pack" ? static_cast<int>(plan->weights.size()) : 1));
                break;
            }
            CHECK(status.message().find("the device: ") != std::string::npos);
        }
}
