// All experts of a single token in one kernel: gate and up, the activation, down, the shares and the residual. int4, sm_90 and
// later.
//
// One CTA an SM, as in matmul_experts_decode.cu: tiles shared out evenly, a tile's units dealt out to sixteen warps, a stream for
// each warp. The stream does not end with the first product: while the CTAs wait for each other between the two, the second one's
// weights are on their way. There the chosen experts' matrices side by side are one matrix, each expert's sums times its share.
//
// The CTAs meet once in the middle, so all of them have to be on the device: one an SM, and no more than there are.
#include "backends/cuda/matmul_experts_decode.cuh"

namespace awq::cuda {
namespace {

using namespace few;

constexpr int most_experts = 32;
constexpr int round = 4;  // tiles whose sums are joined at once
constexpr int sums_bytes = 2 * round * warps * tile_rows * 4;

struct Side {
    const uint8_t* w;
    int64_t expert_bytes;
    int tiles, units, in, x_pitch;
};
struct Params {
    Side first, second;
    TokenExperts token;
    uint32_t* counters;
    int group, unit_bytes, slots, x_bytes, out;
    bool x_aligned, hidden_aligned;
};

// Until all CTAs are here, and see what the others wrote.
__device__ __forceinline__ void meet_all(uint32_t* counters) {
    __threadfence();
    meet();
    if (threadIdx.x == 0) {
        atomicAdd(counters, 1u);
        uint32_t arrived;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counters) : "memory");
        } while (arrived < gridDim.x);
        if (atomicAdd(counters + 1, 1u) == gridDim.x - 1) counters[0] = 0, counters[1] = 0;
    }
    meet();
}

template <int Groups, bool IntegerZeros>
__global__ void __launch_bounds__(threads, 1) token_kernel(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[warps * most_slots];
    __shared__ int experts[most_experts];
    __shared__ float shares[most_experts];
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const Side &first = p.first, &second = p.second;
    const int count = p.token.count;
    Stream stream(barriers, shared, p.slots, p.unit_bytes);
    uint8_t* x_shared = shared + warps * p.slots * p.unit_bytes;
    float* sums = reinterpret_cast<float*>(x_shared + p.x_bytes);
    auto share_out = [](int tiles, int& from, int& to) {
        from = static_cast<int>(static_cast<int64_t>(tiles) * blockIdx.x / gridDim.x);
        to = static_cast<int>(static_cast<int64_t>(tiles) * (blockIdx.x + 1) / gridDim.x);
    };
    int begin, end, begin2, end2;  // of the first product's tiles, all experts', and of the second's
    share_out(count * first.tiles, begin, end);
    share_out(second.tiles, begin2, end2);

    if (lane == 0) stream.init();
    pdl_trigger();
    pdl_wait();
    if (static_cast<int>(threadIdx.x) < count) {
        experts[threadIdx.x] = __ldcg(p.token.expert + threadIdx.x);
        shares[threadIdx.x] = __ldcg(p.token.share + threadIdx.x);
    }
    __syncthreads();

    // The unit to be asked for next, every sixteenth of the CTA's.
    const uint64_t policy = stream_policy();
    int ask_expert = begin / first.tiles, ask_tile = begin - ask_expert * first.tiles, ask_unit = warp, ask_left = end - begin;
    bool ask_second = false;
    auto ask = [&](int slot) {
        if (!ask_second) {
            while (ask_unit >= first.units) {
                ask_unit -= first.units;
                ask_left--;
                if (++ask_tile == first.tiles) ask_tile = 0, ask_expert++;
            }
            if (ask_left <= 0) ask_second = true, ask_expert = 0, ask_tile = begin2, ask_unit = warp;
        }
        if (ask_second) {
            while (ask_unit >= second.units) {
                ask_unit -= second.units;
                if (++ask_expert == count) ask_expert = 0, ask_tile++;
            }
            if (ask_tile >= end2) return;
        }
        const Side& side = ask_second ? second : first;
        stream.ask(slot,
                   side.w + experts[ask_expert] * side.expert_bytes +
                       (static_cast<int64_t>(ask_tile) * side.units + ask_unit) * p.unit_bytes,
                   policy);
        ask_unit += warps;
    };
    if (lane == 0)
        for (int i = 0; i < p.slots; i++) ask(i);

    int in_round = 0, turn = 0;
    auto put = [&](float low, float high) {  // this warp's sums of slots g and g + 8
        float* to = sums + ((turn * round + in_round) * warps + warp) * tile_rows;
        if (t == 0) to[g] = low, to[g + 8] = high;
        in_round++;
    };
    // Calls output(place, slot, sums) for each output of the round's tiles, in whole warps; four lanes have the same.
    auto join = [&](int tile_outputs, auto output) {
        meet();
        const float* of_round = sums + turn * round * warps * tile_rows;
        const int outputs = in_round * tile_outputs;
        for (int i = static_cast<int>(threadIdx.x) / 4; i < (outputs + 7) / 8 * 8; i += threads / 4) {
            const int place = min(i / tile_outputs, in_round - 1), slot = i % tile_outputs;
            output(place, slot, of_round + place * warps * tile_rows + slot, threadIdx.x % 4 == 0 && i < outputs);
        }
        in_round = 0, turn ^= 1;
    };

    // ---- gate and up
    stage_row(x_shared, p.token.x, first.in, first.units, p.x_aligned);
    copy_commit();
    copy_wait<0>();
    meet();
    const uint32_t x = shared_address(x_shared) + (lane >> 3) * 16;  // ldmatrix: all of its rows are this one
    int unit = warp;                                                 // of the tile, then of the next ones
    for (int tile = begin; tile < end; tile++) {
        float d[2][4] = {};
        for (; unit < first.units; unit += warps) {
            Unit<Groups, IntegerZeros> w;
            w.take(stream, p.group, ask);
            w.multiply(d, x + unit * 512);
        }
        unit -= first.units;
        put(d[0][0] + d[1][0], d[0][2] + d[1][2]);
        if (in_round == round || tile + 1 == end) {
            const int of_round = tile + 1 - in_round;
            join(8, [&](int place, int slot, const float* from, bool mine) {
                const float gate = total_of(from, tile_rows), up = total_of(from + 8, tile_rows);
                const int expert = (of_round + place) / first.tiles,
                          channel = (of_round + place - expert * first.tiles) * 8 + slot;
                if (mine && channel < second.in)
                    p.token.hidden[static_cast<int64_t>(expert) * second.in + channel] =
                        __float2half(activate(p.token.activation, gate) * up);
            });
        }
    }

    // ---- down
    meet_all(p.counters);
    for (int e = 0; e < count; e++)
        stage_row(x_shared + e * second.x_pitch, p.token.hidden + static_cast<int64_t>(e) * second.in, second.in, second.units,
                  p.hidden_aligned);
    copy_commit();
    copy_wait<0>();
    meet();
    unit = warp;
    for (int tile = begin2; tile < end2; tile++) {
        float low = 0, high = 0;
        for (int expert = 0;; unit += warps) {
            while (expert < count && unit >= second.units) unit -= second.units, expert++;
            if (expert == count) break;
            float d[2][4] = {};
            Unit<Groups, IntegerZeros> w;
            w.take(stream, p.group, ask);
            w.multiply(d, x + expert * second.x_pitch + unit * 512);
            low += shares[expert] * (d[0][0] + d[1][0]), high += shares[expert] * (d[0][2] + d[1][2]);
        }
        put(low, high);
        if (in_round == round || tile + 1 == end2) {
            const int of_round = tile + 1 - in_round;
            join(tile_rows, [&](int place, int slot, const float* from, bool mine) {
                float v = total_of(from, tile_rows);
                const int column = slot_row(of_round + place, slot);
                if (!mine || column >= p.out) return;
                if (p.token.residual) v += __half2float(load_activation(p.token.residual + column));
                p.token.y[column] = __float2half(v);
            });
        }
    }
}

using TokenKernel = void (*)(Params);
TokenKernel kernel_of(const Q4Layout& layout) {
    return !layout.integer_zeros ? token_kernel<8, false> : layout.group == 128 ? token_kernel<2, true> : token_kernel<8, true>;
}

struct Plan {
    int slots = 0, x_bytes = 0, shared_bytes = 0;
};
Plan plan_token(const MatmulDevice& device, const Q4Layout& gate_up, const Q4Layout& down, int count) {
    Plan plan;
    const int slot_bytes = warps * static_cast<int>(gate_up.unit_bytes());
    const int64_t x_bytes = std::max<int64_t>(x_pitch_of(gate_up), int64_t{count} * x_pitch_of(down));
    plan.slots =
        static_cast<int>(std::min<int64_t>((device.shared_block - spare - sums_bytes - x_bytes) / slot_bytes, most_slots));
    if (tuning.slots) plan.slots = std::min(plan.slots, tuning.slots);
    plan.x_bytes = static_cast<int>(x_bytes);
    plan.shared_bytes = static_cast<int>(plan.slots * slot_bytes + x_bytes + sums_bytes);
    return plan;
}
Side side_of(const Q4Weight& weight) {
    const Q4Layout& layout = weight.layout;
    return {static_cast<const uint8_t*>(weight.data),
            layout.bytes(),
            static_cast<int>(layout.tiles()),
            static_cast<int>(layout.units()),
            static_cast<int>(layout.in),
            x_pitch_of(layout)};
}

}  // namespace

cudaError_t open_token(const MatmulDevice& device) {
    if (device.arch < 90) return cudaSuccess;
    for (TokenKernel kernel : {token_kernel<2, true>, token_kernel<8, true>, token_kernel<8, false>})
        if (cudaError_t error = allow_shared(kernel, device.shared_block - spare)) return error;
    return cudaSuccess;
}

bool token_experts_fit(const MatmulDevice& device, const Q4Weight& gate_up, const Q4Weight& down, int count) {
    const Q4Layout &first = gate_up.layout, &second = down.layout;
    return device.arch >= 90 && count <= most_experts && first.gated && !second.gated && first.group == second.group &&
           first.integer_zeros == second.integer_zeros && plan_token(device, first, second, count).slots >= 2;
}

cudaError_t token_experts_q4(const MatmulContext& context, const Q4Weight& gate_up, const Q4Weight& down,
                             const TokenExperts& token) {
    const Plan plan = plan_token(context.device, gate_up.layout, down.layout, token.count);
    Params p;
    p.first = side_of(gate_up), p.second = side_of(down);
    p.token = token;
    p.counters = scratch_of(context).counters;
    p.group = gate_up.layout.group, p.unit_bytes = static_cast<int>(gate_up.layout.unit_bytes());
    p.slots = plan.slots, p.x_bytes = plan.x_bytes;
    p.out = static_cast<int>(down.layout.out);
    p.x_aligned = rows_aligned(token.x, 8), p.hidden_aligned = rows_aligned(token.hidden, down.layout.in);
    return launch(context, kernel_of(gate_up.layout), dim3(static_cast<unsigned>(context.device.sm_count)), threads,
                  plan.shared_bytes, p);
}

}  // namespace awq::cuda
