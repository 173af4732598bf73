// What fits is decided before anything is loaded: the arithmetic, and engines held to a budget.
#include <doctest/doctest.h>
#include "core/engine.h"
#include "core/generate.h"
#include "tests/random_checkpoint.h"
#include "tests/support.h"

using namespace awq;

namespace {

constexpr size_t MiB = size_t{1} << 20;
const MemoryNeeds needs{.weights = 100 * MiB, .scratch = 20 * MiB, .page_bytes = MiB};

EngineOptions options_of(const std::string& model, const std::string& backend) {
    EngineOptions options;
    options.model = model;
    options.backend = backend;
    options.context = 256;
    return options;
}

const char* const small_llama = R"({"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "gemm"}})";

}  // namespace

TEST_CASE("memory budget: pages as asked, as many as half or all of the rest holds, one context at least") {
    CHECK(*plan_pages(needs, {}, 8, 0) == 8);                                        // nothing is known
    CHECK(*plan_pages(needs, {1000 * MiB, "x", true, false}, 8, 0) == 440);          // half of 880
    CHECK(*plan_pages(needs, {1000 * MiB, "x", true, true}, 20, 0) == 880);
    CHECK(*plan_pages(needs, {1000 * MiB, "x", true, true}, 8, 0) == 512);           // 64 contexts are enough
    CHECK(*plan_pages(needs, {130 * MiB, "x", true, false}, 8, 0) == 8);             // more than half, but it fits
    CHECK(*plan_pages(needs, {10 * MiB, "x", false, false}, 8, 0) == 8);             // a hint is no limit
    CHECK(*plan_pages(needs, {1000 * MiB, "x", true, false}, 8, 600) == 600);
    CHECK(plan_pages(needs, {}, 8, int64_t{1} << 40).status().code() == Code::invalid_argument);
    CHECK(plan_pages({.page_bytes = size_t{1} << 62}, {}, 8, 0).status().code() == Code::out_of_memory);
}

TEST_CASE("memory budget: an error says what is missing and what would fit") {
    auto refused = plan_pages(needs, {126 * MiB, "--memory", true, true}, 8, 0);
    CHECK(refused.status().code() == Code::out_of_memory);
    CHECK(refused.status().message() == "--memory: 126.0 MiB; 128.0 MiB expected: weights 100.0 MiB, scratch 20.0 MiB, KV cache 8.0 MiB "
                                        "for 512 tokens; a cache of 384 tokens would fit (-c 384)");
    refused = plan_pages(needs, {126 * MiB, "--memory", true, true}, 8, 16);
    CHECK(refused.status().message().ends_with("a cache of 384 tokens would fit (fewer or shorter sequences)"));
    refused = plan_pages(needs, {70 * MiB, "free memory of G", true, false}, 8, 0);
    CHECK(refused.status().message().ends_with("without any cache 50.0 MiB are missing"));
}

TEST_CASE("memory budget: an engine keeps to it or is refused, whatever the backend") {
    for (const BackendEntry& entry : backend_table()) {
        if (!entry.available()) continue;
        INFO(std::string(entry.name));
        EngineOptions options = options_of(test::model("llama-gemm-g32"), entry.name);
        size_t heard = 0;
        options.progress = [&](size_t done, size_t) { return heard = done, true; };
        options.memory = 1000;
        auto refused = Engine::load(options);
        CHECK(refused.status().code() == Code::out_of_memory);
        CHECK(refused.status().message().starts_with("--memory: 1000 B; "));
        CHECK(heard == 0);    // nothing was read
        options.memory = 256 * MiB;
        auto engine = Engine::load(options);
        REQUIRE_MESSAGE(engine.ok(), engine.status().message());
        CHECK(heard > 0);
        const size_t used = (*engine)->weight_bytes() + (*engine)->activation_bytes() + (*engine)->cache_bytes();
        CHECK(used <= options.memory);
        // Exactly what one context takes is enough; a byte less is not.
        const size_t page = (*engine)->backend().kv_page_bytes({(*engine)->config().layers, (*engine)->config().kv_heads, (*engine)->config().head_dim});
        options.memory = (*engine)->weight_bytes() + (*engine)->activation_bytes() +
                         (*engine)->backend().scratch_bytes((*engine)->graph(), (*engine)->capacity(), 256) + 4 * page;
        engine = Engine::load(options);
        REQUIRE_MESSAGE(engine.ok(), engine.status().message());
        CHECK((*engine)->cache_bytes() == 4 * page);
        options.memory--;
        CHECK(Engine::load(options).status().code() == Code::out_of_memory);
    }
}

TEST_CASE("a checkpoint of random weights loads, runs, and its plan tells what an engine takes") {
    test::TempDir temporary;
    const std::string directory = temporary.file("random");
    auto written = RandomCheckpoint::write(small_llama, directory);
    REQUIRE_MESSAGE(written.ok(), written.status().message());
    CHECK(!RandomCheckpoint::write(small_llama, directory).ok());    // it is there
    for (const BackendEntry& entry : backend_table()) {
        if (!entry.available()) continue;
        INFO(std::string(entry.name));
        auto engine = Engine::load(options_of(directory, entry.name));
        REQUIRE_MESSAGE(engine.ok(), engine.status().message());
        auto answers = generate_batch(**engine, {{1, 2, 3}, {300, 5}}, 8);
        REQUIRE_MESSAGE(answers.ok(), answers.status().message());
        CHECK((*answers)[1].size() == 8);

        auto checkpoint = Checkpoint::open(directory);
        REQUIRE(checkpoint.ok());
        auto model = configure_model((*checkpoint)->config());
        REQUIRE(model.ok());
        auto backend = entry.create({});
        REQUIRE(backend.ok());
        auto plan = make_plan(**checkpoint, *model, {.context = 256}, backend->get());
        REQUIRE(plan.ok());
        REQUIRE(Engine::measure(*plan, *model, std::move(*backend), true).ok());
        CHECK(plan->weight_bytes == (*engine)->weight_bytes());
        CHECK(plan->scratch_bytes >= (*engine)->activation_bytes());
        CHECK(plan->total_at_context == plan->weight_bytes + plan->scratch_bytes + 256 * plan->kv_bytes_per_token);
    }
}
