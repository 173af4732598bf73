// Tokens chosen on the device against the host's Sampler, which says what choosing means: every option, ties, tails, rows that are
// not finite, vocabularies of one token and of 256k, a generator that goes on from step to step.
// Without a device the tests say so and pass; without CUDA there is nothing to compile.
#ifdef AWQ_HAVE_CUDA
#include <doctest/doctest.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include "backends/cuda/sample.h"

using namespace awq;
using namespace awq::cuda;

namespace {

bool has_gpu() {
    for (const BackendEntry& entry : backend_table())
        if (std::string(entry.name) == "cuda" && entry.available()) return true;
    MESSAGE("no CUDA device: choosing on the device is not tested");
    return false;
}

// A stream, and memory for rows of logits.
class Bench {
public:
    Bench() {
        cudaDeviceProp properties;
        REQUIRE(cudaGetDeviceProperties(&properties, 0) == cudaSuccess);
        context.compute_major = properties.major;
        REQUIRE(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking) == cudaSuccess);
        bool moved = false;
        REQUIRE(counters_.grow(Context::counter_count * sizeof(unsigned), moved).ok());
        context.counters = reinterpret_cast<unsigned*>(counters_.data());
    }
    ~Bench() { cudaStreamDestroy(context.stream); }

    // Tokens chosen in `steps` steps from the same rows of logits.
    std::vector<std::vector<int32_t>> choose(const std::vector<std::vector<float>>& rows, std::span<const Sampler* const> samplers, int steps) {
        const size_t count = rows.size(), vocab = rows[0].size(), stride = vocab + 3;
        bool moved = false;
        const size_t logits_bytes = aligned(count * stride * sizeof(float)), part_bytes = aligned(count * best_parts * sizeof(Best));
        REQUIRE(memory_.grow(logits_bytes + part_bytes + 3 * aligned(count * sizeof(int32_t)), moved).ok());
        REQUIRE(chosen_.grow(step_slots * count * sizeof(int32_t)).ok());
        auto* logits = reinterpret_cast<float*>(memory_.data());
        auto* parts = reinterpret_cast<Best*>(memory_.data() + logits_bytes);
        char* inputs = memory_.data() + logits_bytes + part_bytes;
        auto input = [&](size_t i) { return reinterpret_cast<int32_t*>(inputs + i * aligned(count * sizeof(int32_t))); };
        REQUIRE(cudaMemset(inputs, 0, 3 * aligned(count * sizeof(int32_t))) == cudaSuccess);
        const StepInputs next = {input(0), input(1), input(2), reinterpret_cast<int32_t*>(chosen_.data())};
        context.chained = false;
        REQUIRE(sampler_.begin(context, samplers, static_cast<int64_t>(vocab), moved).ok());
        Tensor tensor;
        tensor.data = logits, tensor.dtype = DType::f32;
        tensor.rows = static_cast<int64_t>(count), tensor.cols = static_cast<int64_t>(vocab), tensor.stride = static_cast<int64_t>(stride);
        std::vector<std::vector<int32_t>> tokens;
        std::vector<int32_t> fed(count), position(count), length(count);
        for (int step = 0; step < steps; step++) {
            for (size_t r = 0; r < count; r++)    // penalties have changed them
                REQUIRE(cudaMemcpyAsync(logits + r * stride, rows[r].data(), vocab * sizeof(float), cudaMemcpyHostToDevice, context.stream) == cudaSuccess);
            context.chained = false;
            REQUIRE(sampler_.choose(context, tensor, parts, next).ok());
            REQUIRE(cudaStreamSynchronize(context.stream) == cudaSuccess);
            const auto* chosen = reinterpret_cast<const int32_t*>(chosen_.data()) + static_cast<size_t>(step % step_slots) * count;
            tokens.emplace_back(chosen, chosen + count);
            REQUIRE(cudaMemcpy(fed.data(), input(0), count * sizeof(int32_t), cudaMemcpyDeviceToHost) == cudaSuccess);
            REQUIRE(cudaMemcpy(position.data(), input(1), count * sizeof(int32_t), cudaMemcpyDeviceToHost) == cudaSuccess);
            REQUIRE(cudaMemcpy(length.data(), input(2), count * sizeof(int32_t), cudaMemcpyDeviceToHost) == cudaSuccess);
            for (size_t r = 0; r < count; r++) {
                CHECK(fed[r] == std::max(tokens.back()[r], 0));
                CHECK(position[r] == step + 1);
                CHECK(length[r] == step + 1);
            }
        }
        return tokens;
    }

    // Microseconds of one step of these rows, as a part of a captured graph. Penalties are applied again and again.
    double microseconds(size_t count, size_t vocab) {
        Tensor tensor;
        tensor.data = memory_.data(), tensor.dtype = DType::f32;
        tensor.rows = static_cast<int64_t>(count), tensor.cols = static_cast<int64_t>(vocab), tensor.stride = static_cast<int64_t>(vocab + 3);
        auto* parts = reinterpret_cast<Best*>(memory_.data() + aligned(count * (vocab + 3) * sizeof(float)));
        const int steps = 64;
        REQUIRE(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        context.chained = false;
        for (int i = 0; i < steps; i++) REQUIRE(sampler_.choose(context, tensor, parts, {}).ok());
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        REQUIRE(cudaStreamEndCapture(context.stream, &graph) == cudaSuccess);
        REQUIRE(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
        double best = 1e9;
        for (int i = 0; i < 5; i++) {
            const auto begin = std::chrono::steady_clock::now();
            REQUIRE(cudaGraphLaunch(exec, context.stream) == cudaSuccess);
            REQUIRE(cudaStreamSynchronize(context.stream) == cudaSuccess);
            best = std::min(best, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / steps);
        }
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
        return best;
    }

    Context context;

private:
    DeviceMemory counters_, memory_;
    PinnedMemory chosen_;
    DeviceSampler sampler_;
};

// What the host's samplers choose, step after step.
std::vector<std::vector<int32_t>> on_host(const std::vector<std::vector<float>>& rows, std::vector<Sampler> samplers, int steps) {
    std::vector<std::vector<int32_t>> tokens;
    for (int step = 0; step < steps; step++) {
        tokens.emplace_back();
        for (size_t r = 0; r < rows.size(); r++) {
            std::vector<float> copy = rows[r];
            auto chosen = samplers[r].next(copy);
            tokens.back().push_back(chosen.ok() ? *chosen : -1);
        }
    }
    return tokens;
}

void compare(Bench& bench, const std::vector<std::vector<float>>& rows, const std::vector<Sampler>& samplers, int steps, const std::string& what) {
    std::vector<const Sampler*> pointers;
    for (const Sampler& sampler : samplers) pointers.push_back(&sampler);
    const auto expected = on_host(rows, samplers, steps), got = bench.choose(rows, pointers, steps);
    for (int step = 0; step < steps; step++)
        for (size_t r = 0; r < rows.size(); r++) {
            const SamplingOptions& o = samplers[r].options();
            CHECK_MESSAGE(got[static_cast<size_t>(step)][r] == expected[static_cast<size_t>(step)][r],
                          what << ", step " << step << ", row " << r << " of " << rows[r].size() << ": temperature " << o.temperature << ", top-k " << o.top_k
                               << ", top-p " << o.top_p << ", min-p " << o.min_p << ", penalties " << o.repeat_penalty << " " << o.presence_penalty << " "
                               << o.frequency_penalty << ", seed " << o.seed);
        }
    CHECK(bench.choose(rows, pointers, steps) == got);    // the same whenever it is done
}

// Options of every kind and mixture.
SamplingOptions some_options(std::mt19937& random) {
    auto one_of = [&](std::initializer_list<float> values) { return values.begin()[random() % values.size()]; };
    SamplingOptions o;
    o.sample = random() % 8 != 0;
    o.temperature = one_of({0.8f, 1, 0.1f, 1.7f, 25, 100, 0.01f, 0});
    o.top_k = static_cast<int>(one_of({0, 50, 1, 2, 40, 1000, 3000000}));
    o.top_p = one_of({1, 0.95f, 0.9f, 0.5f, 0.01f, 0.9999f});
    o.min_p = one_of({0, 0, 0.05f, 0.5f, 1, 1e-6f});
    o.repeat_penalty = one_of({1, 1, 1.1f, 0.5f, 100});
    o.presence_penalty = one_of({0, 0, 0.6f, -2});
    o.frequency_penalty = one_of({0, 0, 0.3f, -0.1f});
    o.seed = random();
    return o;
}

}  // namespace

TEST_CASE("cuda: tokens chosen on the device are those that the host's sampler chooses") {
    if (!has_gpu()) return;
    Bench bench;
    std::mt19937 random(5);
    for (size_t vocab : {1, 2, 31, 300, 5000, 32000, 128256, 262144}) {
        std::vector<std::vector<float>> rows;
        std::vector<Sampler> samplers;
        const size_t count = vocab > 10000 ? 12 : 64;
        for (size_t r = 0; r < count; r++) {
            std::vector<float> row(vocab);
            std::normal_distribution<float> normal;
            const float spread = std::exp2(static_cast<float>(static_cast<int>(random() % 12) - 6));
            switch (random() % 5) {
                case 0:    // as models' are: few stand out
                    for (float& x : row) x = 2.5f * normal(random);
                    for (int i = 0; i < 20; i++) row[random() % vocab] += 8 + 4 * normal(random);
                    break;
                case 1:
                    for (float& x : row) x = spread * normal(random);
                    break;
                case 2:    // many equal ones
                    for (float& x : row) x = static_cast<float>(static_cast<int>(random() % 5) - 2) * spread;
                    break;
                case 3:    // half precision's
                    for (float& x : row) x = std::round(spread * 16 * normal(random)) / 16;
                    break;
                default:    // a falling line, and tails beyond what can be drawn
                    for (size_t i = 0; i < vocab; i++) row[i] = 50 - spread * static_cast<float>((i * 7919) % vocab);
            }
            rows.push_back(row);
            samplers.emplace_back(some_options(random));
            std::vector<int32_t> prompt;
            for (int i = 0; i < 40; i++) prompt.push_back(static_cast<int32_t>(random() % (vocab + 2)));    // some are not of this vocabulary
            samplers.back().prompt(prompt);
        }
        compare(bench, rows, samplers, 3, "random rows");
    }
}

TEST_CASE("cuda: choosing on the device among equals, zeros of both signs, extremes") {
    if (!has_gpu()) return;
    Bench bench;
    const float tiny = std::numeric_limits<float>::denorm_min(), huge = std::numeric_limits<float>::max();
    std::mt19937 random(9);
    for (size_t vocab : {7, 1000, 40000}) {
        std::vector<std::vector<float>> rows;
        for (float level : {0.0f, -0.0f, 3.25f, -1e30f, huge, -huge, tiny}) rows.emplace_back(vocab, level);
        std::vector<float> row(vocab);
        for (size_t i = 0; i < vocab; i++) row[i] = i % 2 ? 0.0f : -0.0f;
        rows.push_back(row);
        for (size_t i = 0; i < vocab; i++) row[i] = static_cast<float>(i % 3) * tiny;
        rows.push_back(row);
        for (size_t i = 0; i < vocab; i++) row[i] = i % 3 ? 1e7f + static_cast<float>(i % 50) : -huge;    // the limit of 60 temperatures is rounded
        rows.push_back(row);
        std::fill(row.begin(), row.end(), -100.0f);
        row.back() = 100;
        rows.push_back(row);
        for (int round = 0; round < 6; round++) {
            std::vector<Sampler> samplers;
            for (size_t r = 0; r < rows.size(); r++) {
                SamplingOptions o = some_options(random);
                if (round < 2) o.repeat_penalty = 1, o.presence_penalty = o.frequency_penalty = 0;    // alike stays alike
                samplers.emplace_back(o);
            }
            compare(bench, rows, samplers, 3, "equal rows");
        }
    }
}

TEST_CASE("cuda: logits that are not finite give no token, wherever they are and whatever is asked") {
    if (!has_gpu()) return;
    Bench bench;
    std::vector<std::vector<float>> rows;
    std::vector<Sampler> samplers;
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
        for (size_t at : {0, 4999, 9999})
            for (bool sample : {false, true}) {
                rows.emplace_back(10000, 1.0f);
                rows.back()[at] = bad;
                SamplingOptions o;
                o.sample = sample;
                if (!sample) o.repeat_penalty = 1.5f;
                samplers.emplace_back(o);
            }
    rows.emplace_back(10000, 3e38f);    // a penalty takes it beyond
    SamplingOptions o;
    o.repeat_penalty = 0.5f;
    samplers.emplace_back(o);
    const std::vector<int32_t> prompt = {5};
    samplers.back().prompt(prompt);
    compare(bench, rows, samplers, 2, "not finite");
    std::vector<const Sampler*> pointers;
    for (const Sampler& sampler : samplers) pointers.push_back(&sampler);
    const auto none = bench.choose(rows, pointers, 1);
    for (int32_t token : none[0]) CHECK(token == -1);
    // The likeliest token alone is one as long as there is a number.
    const std::vector<const Sampler*> likeliest(rows.size(), nullptr);
    const auto tokens = bench.choose(rows, likeliest, 1)[0];
    CHECK(tokens[0] == 1);
    CHECK(tokens[6] == 0);
    CHECK(tokens[8] == 4999);
    CHECK(bench.choose({std::vector<float>(300, std::numeric_limits<float>::quiet_NaN())}, std::span(likeliest).first(1), 1)[0][0] == -1);
}

TEST_CASE("cuda: the time of choosing on the device") {
    if (!has_gpu() || !std::getenv("AWQ_BENCH")) return;
    Bench bench;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (size_t vocab : {32000, 128256, 262144})
        for (size_t count : {1, 16})
            for (int kind = 0; kind < 6; kind++) {
                const char* names[] = {"greedy", "top-k 50, top-p 0.95", "top-p 0.95", "nothing cut", "flat, top-p 0.95", "all equal, top-p 0.95"};
                std::vector<std::vector<float>> rows(count, std::vector<float>(vocab));
                for (auto& row : rows)
                    for (float& x : row) x = kind == 5 ? 1 : normal(random) * (kind == 4 ? 0.1f : 2.5f);
                if (kind < 4)
                    for (auto& row : rows)
                        for (int i = 0; i < 20; i++) row[random() % vocab] += 8 + 4 * normal(random);
                SamplingOptions o;
                o.sample = true;
                o.temperature = 0.8f;
                o.top_k = kind == 1 ? 50 : 0;
                o.top_p = kind == 3 ? 1 : 0.95f;
                std::vector<Sampler> samplers(count, Sampler(o));
                std::vector<const Sampler*> pointers;
                for (const Sampler& sampler : samplers) pointers.push_back(kind == 0 ? nullptr : &sampler);
                bench.choose(rows, pointers, 1);
                MESSAGE(vocab << " tokens, " << count << std::string(count == 1 ? " row, " : " rows, ") << std::string(names[kind]) << ": " << bench.microseconds(count, vocab) << " us");
            }
}

#endif
