// From a prompt to an answer: prefix reuse, prefill, the decode loop, streaming text, stop strings.
#pragma once
#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>
#include "core/engine.h"
#include "core/text/sampler.h"

namespace awq {

struct GenerateRequest {
    std::vector<int32_t> prompt;              // all of it; what the session's cache holds already is not fed again
    SamplingOptions sampling;
    int64_t max_tokens = -1;                  // new tokens at most; < 0: as many as the context holds
    std::vector<int32_t> eos_ids;             // end the answer, are not part of it
    std::vector<std::string> stop;            // likewise, as text
    std::vector<float> features;              // of all images in the prompt, in order
    size_t known_images = 0;                  // of these, how many the session's cache holds the same at the same places
    // Text as it becomes final, and the token it came with (-1: at the end). False: stop.
    std::function<bool(std::string_view text, int32_t token)> on_text;
    const std::atomic<bool>* cancel = nullptr;
};

enum class Finish : uint8_t { eos, stop, length, context, cancelled };    // as awq_finish

struct GenerateResult {
    std::vector<int32_t> ids;                 // the answer, without the eos token
    std::string text;
    Finish finish = Finish::length;
    int64_t prompt_tokens = 0, cached_tokens = 0, new_tokens = 0;
    double prompt_seconds = 0, generate_seconds = 0;
};

// `tokenizer` may be null: ids only, no text. An error leaves the session as it was or with part of the answer in it;
// both are sound.
Result<GenerateResult> generate(Session& session, const std::shared_ptr<const Tokenizer>& tokenizer, const GenerateRequest& request);

// Greedy continuations of several prompts as one batch, exactly `count` ids each, no stop at eos.
Result<std::vector<std::vector<int32_t>>> generate_batch(Engine& engine, const std::vector<std::vector<int32_t>>& prompts, int64_t count,
                                                         const std::vector<float>& features = {});

}  // namespace awq
