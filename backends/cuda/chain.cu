// Chains of steps: the token that a step chooses is the next one's input, without the host in between. Each step's positions, rope
// lengths and tokens are left in the batch's device memory by the kernel that chooses (sample.h), so a step is a captured graph
// launched again; the host launches ahead and reads tokens from memory that the device writes to.
#include <algorithm>
#include "backends/cuda/executor.h"

namespace awq::cuda {

Status Executor::begin_chain(const ChainArgs& args) {
    AWQ_CUDA(cudaSetDevice(device_));
    const RunArgs& run = args.run;
    if (run.cancel && run.cancel->load(std::memory_order_relaxed)) return Status(Code::cancelled, "cancelled");
    if (run.size.sequences > captured_tokens || run.size.tokens != run.size.sequences || run.size.outputs != run.size.sequences)
        return Status(Code::internal, "a chain of " + std::to_string(run.size.tokens) + " tokens; expected one of each sequence, at most " +
                                          std::to_string(captured_tokens));
    for (cudaEvent_t& event : step_done_)
        if (!event) AWQ_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    AWQ_TRY(chosen_host_.grow(size_t{step_slots} * captured_tokens * sizeof(int32_t)));    // once: captured steps know where it is
    const auto* positions = static_cast<const int32_t*>(run.inputs[static_cast<int>(Input::positions)]);
    chain_.args = run;
    chain_.positions.assign(positions, positions + run.size.tokens);
    chain_.keys = *std::max_element(positions, positions + run.size.tokens) + 1;
    chain_.steps = args.steps;
    chain_.launched = chain_.waited_for = 0;
    const bool sampled = std::any_of(args.samplers.begin(), args.samplers.end(), [](const Sampler* s) { return s != nullptr; });
    chain_.choosing = sampled ? Choosing::sampled_for_next : Choosing::best_for_next;
    // Memory for the last step as well: none is taken once a step is under way.
    AWQ_TRY(prepare(run));
    context_.max_keys = rounded_keys(int64_t{chain_.keys} + args.steps - 1);
    AWQ_TRY(grow(scratch_of(*run.graph, run.size, context_)));
    if (sampled) {
        bool moved = false;
        Status ready = sampler_.begin(context_, args.samplers, run.graph->nodes[run.graph->output].cols, moved);
        if (moved) forget_captured();
        AWQ_TRY(ready);
    }
    return send_inputs(run);
}

Status Executor::launch_step() {
    if (chain_.launched >= chain_.steps || chain_.launched - chain_.waited_for >= step_slots)
        return Status(Code::internal, "a chain's step too many");
    AWQ_CUDA(cudaSetDevice(device_));
    context_.max_keys = rounded_keys(int64_t{chain_.keys} + chain_.launched);
    bool done = false;
    AWQ_TRY(run_captured(chain_.args, key_of(chain_.args, chain_.choosing), done));
    if (!done) AWQ_TRY(issue(chain_.args, chain_.choosing, false));
    AWQ_CUDA(cudaEventRecord(step_done_[chain_.launched % step_slots], context_.stream));
    chain_.launched++;
    return {};
}

Status Executor::wait_step(int32_t* tokens) {
    if (chain_.waited_for >= chain_.launched) return Status(Code::internal, "no step of the chain is under way");
    AWQ_CUDA(cudaSetDevice(device_));
    AWQ_CUDA(cudaEventSynchronize(step_done_[chain_.waited_for % step_slots]));
    const auto* chosen = reinterpret_cast<const volatile int32_t*>(chosen_host_.data());
    const size_t rows = chain_.positions.size();
    for (size_t r = 0; r < rows; r++)
        tokens[r] = chosen[static_cast<size_t>((chain_.positions[r] + chain_.waited_for) % step_slots) * rows + r];
    chain_.waited_for++;
    return {};
}

// Also after an error nothing may be under way that reads the batch. What had gone wrong has been said by then.
void Executor::end_chain() {
    cudaSetDevice(device_);
    if (cudaStreamSynchronize(context_.stream) != cudaSuccess) cudaGetLastError();
}

}  // namespace awq::cuda
