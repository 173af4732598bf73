// Choosing tokens on the device: the largest logit of each row, or all that core/text/sampler.h does, which says what it means.
//
// The draw needs logits in order, but only of those that can be drawn, and of these only a few ones' exact place. So a row is
// dealt into bins by its logits' distance from the largest; counts and sums of the bins tell where the cuts of top-k, top-p
// and min-p fall, and only there single logits are compared. Weights are whole numbers (the largest logit's: 2^(62 - bits of the
// vocabulary)): their sums do not depend on the order in which blocks add, so equal logits always choose the same token.
#pragma once
#include "backends/cuda/memory.h"
#include "core/text/sampler.h"

namespace awq::cuda {

// A row's largest logit, the lowest index among equals. index -1: nothing but NaN, or, where penalties or a draw want finite
// logits, one that is not.
struct Best {
    float value;
    int32_t index;
};
inline constexpr int best_parts = 64;    // blocks of a row

// What one step of a chain leaves to the next; by row. tokens null: nothing.
struct StepInputs {
    int32_t *tokens, *positions, *rope_len;
    int32_t* chosen;    // [step_slots][rows] in host memory; a step at position p writes slot p % step_slots
};
inline constexpr int step_slots = 2;

// Largest logits of the rows, in `index` (may be null) and for the next step (may be none). parts: [rows][best_parts].
Status choose_best(Context& context, const Tensor& logits, Best* parts, int32_t* index, const StepInputs& next);

struct Choice;      // a row's options and state
struct RowBins;     // a row's bins

class DeviceSampler {
public:
    // Device memory for so many rows.
    static size_t bytes(int64_t rows, int64_t vocab);
    Status reserve(int64_t rows, int64_t vocab, bool& moved);
    // The state of each row's sampler, null: the likeliest token, goes to the device in the context's stream.
    Status begin(Context& context, std::span<const Sampler* const> samplers, int64_t vocab, bool& moved);
    // Chooses for every row and remembers what it chose. Logits are changed by penalties.
    Status choose(Context& context, const Tensor& logits, Best* parts, const StepInputs& next);

private:
    DeviceMemory memory_;
    PinnedMemory host_;
    Choice* choices_ = nullptr;             // [rows], as the next two
    RowBins* bins_ = nullptr;
    unsigned long long* keys_ = nullptr;    // [rows][vocab]
};

}  // namespace awq::cuda
