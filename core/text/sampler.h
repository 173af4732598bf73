// From logits to the next token: penalties, then greedy, or temperature, top-k, top-p, min-p and a draw.
// The order and meaning of the steps are those of transformers' generate(); presence and frequency penalties are OpenAI's.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>
#include "core/json.h"
#include "core/status.h"

namespace awq {

struct SamplingOptions {
    bool sample = false;             // false: greedy
    float temperature = 1;           // > 0; 0 means greedy
    int top_k = 50;                  // 0: off
    float top_p = 1, min_p = 0;      // 1 and 0: off
    float repeat_penalty = 1;        // over prompt and answer: logits > 0 divided, others multiplied
    float presence_penalty = 0;      // over the answer: subtracted once
    float frequency_penalty = 0;     // over the answer: subtracted for each occurrence
    uint64_t seed = 0;
};
Status check_sampling(const SamplingOptions& options);    // ranges; the error names the option

// What generation_config.json (or, for eos, config.json) says. Unsound values are an error that names the field.
struct GenerationDefaults {
    SamplingOptions sampling;
    std::vector<int32_t> eos_ids;
};
Result<GenerationDefaults> read_generation_config(const Json& generation_config, const Json& config);

class Sampler {
public:
    explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}
    void prompt(std::span<const int32_t> ids);            // tokens the repetition penalty counts from the start
    // The next token; among equal logits the lowest id. Changes `logits`. An error where they are not finite.
    Result<int32_t> next(std::span<float> logits);
    // A token that a device chose as next() would have: the state is then as after next().
    void accept(int32_t token);

    // What a device needs to go on from here.
    bool draws() const { return options_.sample && options_.temperature > 0; }
    bool penalizes() const { return options_.repeat_penalty != 1 || options_.presence_penalty != 0 || options_.frequency_penalty != 0; }
    const SamplingOptions& options() const { return options_; }
    uint64_t random() const { return random_; }
    const std::unordered_map<int32_t, int32_t>& seen() const { return seen_; }

private:
    double uniform();                                     // [0, 1), the same on every machine
    SamplingOptions options_;
    uint64_t random_;
    std::unordered_map<int32_t, int32_t> seen_;           // token -> occurrences in the answer, 0: only in the prompt
    std::vector<std::pair<float, int32_t>> candidates_;
};

}  // namespace awq
