// All experts of a single token in one kernel: its norm, the router and the choice, gate and up, the activation, down, the shares
// and the residual. int4, sm_90 and later.
//
// One CTA an SM: a producer warp, which keeps a ring of chunks filled by bulk copies, and sixteen warps that multiply. Both
// products' tiles are shared out evenly, whatever the experts are; the units of a CTA's tiles, one tile behind the other, are
// dealt out to the sixteen warps in turn, each chunk one to each. In the second product the chosen experts' matrices side by side
// are one matrix, each expert's sums times its share. The CTAs meet once in the middle, so all of them have to be on the device:
// one an SM, and no more than there are.
//
// Memory is to rest as little as possible. Every CTA chooses the experts for itself, all alike: no kernel in between, nothing to
// wait for but x. The stream does not end with the first product: while the CTAs wait for each other, the second one's weights
// are on their way; no more than `window` parts of chunks at once, however: what the CTAs have to say to each other waits behind
// them.
#include "backends/cuda/moe_route_token.cuh"

namespace awq::cuda {
namespace {

using namespace few;

constexpr int most_experts = 32;                           // of a token
constexpr int part_units = 8, parts = warps / part_units;  // a chunk arrives in parts
constexpr int window = 3;                                  // of these on their way
constexpr int round = 4;                                   // tiles whose sums are joined at once
constexpr int tile_sums = warps * tile_rows, sums_bytes = 2 * round * tile_sums * 4;

struct Side {
    const uint8_t* w;
    int64_t expert_bytes;
    int tiles, units, in;
    int each, longer;  // tiles that a CTA takes, of all experts'; the first `longer` CTAs take one more
};
struct Params {
    Side first, second;
    TokenExperts token;
    RouteArgs route;
    bool routes;  // by `route`; else token.expert and token.share tell
    uint32_t* counters;
    int group, unit_bytes, slots, x_bytes, out;
    bool x_aligned, hidden_aligned;
};

// ---- the producer, one lane: chunks in the order in which they are taken
struct Producer {
    const uint32_t ring, full, empty;
    const int slots, unit_bytes;
    const uint64_t policy = stream_policy();
    int slot = 0, phase = 1, chunk = 0;  // phase: of `empty`
    PartsOnWay on_way;

    // One chunk of so many units; run(from, count) tells the next run of units that lie side by side.
    const uint8_t* from = nullptr;
    int left = 0;  // of the run
    template <class Run>
    __device__ __forceinline__ void put_chunk(int units, Run run) {
        if (chunk >= slots) barrier_wait(empty + 8 * slot, phase);
#pragma unroll 1
        for (int part = 0; part < parts; part++, on_way.count++) {
            on_way.wait_below(window, full, parts, slots);
            const uint32_t bar = full + 8 * (slot * parts + part);
            uint32_t to = ring + (slot * warps + part * part_units) * unit_bytes;
            int count = min(max(units - part * part_units, 0), part_units);
            barrier_expect(bar, static_cast<uint32_t>(count * unit_bytes));  // also of an empty part: its phase goes on
#pragma unroll 1
            while (count > 0) {
                if (left == 0) run(from, left);
                const int now = min(count, left), bytes = now * unit_bytes;
                bulk_copy(to, from, static_cast<uint32_t>(bytes), bar, policy);
                to += bytes, from += bytes, left -= now, count -= now;
            }
        }
        chunk++;
        if (++slot == slots) slot = 0, phase ^= 1;
    }
    template <class Run>
    __device__ __forceinline__ void put(int units, Run run) {
        for (; units > 0; units -= warps) put_chunk(min(units, warps), run);
    }
};

// Until all CTAs are here, and see what the others wrote. By the warps that multiply; the first thread's result goes to leave().
__device__ __forceinline__ uint32_t meet_all(uint32_t* counters) {
    uint32_t before = 0;
    meet();
    if (threadIdx.x == 0) {
        meet_others(counters, gridDim.x);
        before = atomicAdd(counters + 1, 1u);  // looked at when there is time
    }
    meet();
    return before;
}
// The last CTA to have seen that all are there leaves the counters as they were.
__device__ __forceinline__ void leave(uint32_t* counters, uint32_t before) {
    if (threadIdx.x == 0 && before == gridDim.x - 1) counters[0] = 0, counters[1] = 0;
}

template <int Groups, bool IntegerZeros>
__global__ void __launch_bounds__(threads + 32, 1) token_kernel(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[most_slots * (parts + 1) + 1];
    __shared__ RouterSums router;
    __shared__ int experts[most_experts];
    __shared__ float shares[most_experts];
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const Side &first = p.first, &second = p.second;
    const int count = p.token.count;
    const bool routes = p.routes;
    const uint32_t ring = shared_address(shared), full = shared_address(barriers), empty = full + 8 * most_slots * parts,
                   router_there = empty + 8 * most_slots;
    uint8_t* x_shared = shared + warps * p.slots * p.unit_bytes;
    const int block = static_cast<int>(blockIdx.x);
    const int begin = block * first.each + min(block, first.longer), end = begin + first.each + (block < first.longer);
    const int begin2 = block * second.each + min(block, second.longer), end2 = begin2 + second.each + (block < second.longer);
    // By a whole warp, once the logits are there: lane k < count gets the k-th expert and its share.
    auto find_choice = [&](int& expert, float& share) {
        if (routes) {
            choose(p.route, router, expert, share);
        } else if (lane < count) {
            expert = __ldcg(p.token.expert + lane), share = __ldcg(p.token.share + lane);
        }
    };
    int expert = 0;
    float share = 0;

    pdl_trigger();
    if (warp == warps) {
        if (lane == 0) {
            barrier_init(router_there, 1);
            if (routes) barrier_init_done(), ask_for_router(p.route, ring, router_there);
            for (int i = 0; i < p.slots; i++) {
                for (int part = 0; part < parts; part++) barrier_init(full + 8 * (i * parts + part), 1);
                barrier_init(empty + 8 * i, threads);
            }
            barrier_init_done();
        }
        __syncthreads();  // the barriers are made
        if (!routes) pdl_wait();
        int expert_at = begin / first.tiles, tile = begin - expert_at * first.tiles;  // while nothing is known of the experts
        __syncthreads();                                                              // the logits are there
        find_choice(expert, share);
        if (lane < count) experts[lane] = expert;
        __syncwarp();
        if (lane != 0) return;
        Producer producer = {ring, full, empty, p.slots, p.unit_bytes};
        producer.put((end - begin) * first.units, [&](const uint8_t*& from, int& units) {
            const int here = min(end - expert_at * first.tiles, first.tiles) - tile;
            from = first.w + experts[expert_at] * first.expert_bytes + static_cast<int64_t>(tile) * first.units * p.unit_bytes;
            units = here * first.units;
            expert_at++, tile = 0;
        });
        int index = 0;
        producer.put((end2 - begin2) * count * second.units, [&](const uint8_t*& from, int& units) {
            const int tile = begin2 + index / count, e = index % count;
            from = second.w + experts[e] * second.expert_bytes + static_cast<int64_t>(tile) * second.units * p.unit_bytes;
            units = second.units;
            index++;
        });
        return;
    }

    // ---- x and the choice
    __syncthreads();
    if (routes) {
        find_logits(p.route, shared, router_there, x_shared, router);
    } else {
        pdl_wait();
        stage_row(x_shared, p.token.x, first.in, first.units, p.x_aligned);
        copy_commit();
        copy_wait<0>();
    }
    __syncthreads();
    if (routes) {
        norm_x(p.route, x_shared, first.units * unit_columns, router);
        meet();
    }
    if (warp == 0) {
        find_choice(expert, share);
        if (lane < count) shares[lane] = share;
    }

    // ---- the ring, as this warp sees it
    int slot = 0, phase = 0;
    auto skip = [&] { barrier_wait(full + 8 * (slot * parts + warp / part_units), phase); };
    auto pass = [&] {
        barrier_arrive(empty + 8 * slot);  // each lane for itself: see matmul_prefill_sm90.cuh
        if (++slot == p.slots) slot = 0, phase ^= 1;
    };
    using Weights = Unit<Groups, IntegerZeros>;
    auto take = [&](Weights& w) {
        skip();
        w.load(ring + (slot * warps + warp) * p.unit_bytes, p.group);
        pass();
    };
    // The product's last chunk, where it has none for this warp: parity tells two phases apart and no more.
    auto finish = [&](int units) {
        if (units % warps != 0 && warp >= units % warps) skip(), pass();
    };

    // ---- sums: those of a round lie side by side, rounds take turns
    float* sums = reinterpret_cast<float*>(x_shared + p.x_bytes);
    int in_round = 0, turn = 0;
    auto put = [&](float low, float high) {  // this warp's sums of slots g and g + 8
        float* to = sums + (turn * round + in_round) * tile_sums + warp * tile_rows;
        if (t == 0) to[g] = low, to[g + 8] = high;
        in_round++;
    };
    // Calls output(place, slot, sums, mine) for each output of the round's tiles, in whole warps; of four lanes with the same one
    // the first owns it.
    auto join = [&](int tile_outputs, auto output) {
        meet();
        const float* of_round = sums + turn * round * tile_sums;
        const int outputs = in_round * tile_outputs;
        for (int i = static_cast<int>(threadIdx.x) / 4; i < (outputs + 7) / 8 * 8; i += threads / 4) {
            const int place = min(i / tile_outputs, in_round - 1), slot = i % tile_outputs;
            output(place, slot, of_round + place * tile_sums + slot, threadIdx.x % 4 == 0 && i < outputs);
        }
        in_round = 0, turn ^= 1;
    };

    // ---- gate and up
    const uint32_t x = shared_address(x_shared) + (lane >> 3) * 16;  // ldmatrix: all of its rows are this one
    int unit = warp;                                                 // of the tile, then of the next ones
    for (int tile = begin; tile < end; tile++) {
        float d[2][4] = {};
        for (; unit < first.units; unit += warps) {
            Weights w;
            take(w);
            w.multiply(d, x + unit * x_unit_bytes);
        }
        unit -= first.units;
        put(d[0][0] + d[1][0], d[0][2] + d[1][2]);
        if (in_round < round && tile + 1 < end) continue;
        const int of_round = tile + 1 - in_round;
        join(8, [&](int place, int slot, const float* from, bool mine) {
            const float gate = total_of(from, tile_rows), up = total_of(from + 8, tile_rows);
            const int expert = (of_round + place) / first.tiles, channel = (of_round + place - expert * first.tiles) * 8 + slot;
            if (mine && channel < second.in)
                p.token.hidden[static_cast<int64_t>(expert) * second.in + channel] =
                    __float2half(activate(p.token.activation, gate) * up);
        });
    }
    finish((end - begin) * first.units);

    // ---- down
    const uint32_t before = meet_all(p.counters);
    // x, all experts' units side by side. A warp fetches every sixteenth: its own ones, where all tiles have it begin with the
    // same.
    bool fetched = false;
    for (int e = 0, first_unit = 0; e < count; e++, first_unit += second.units)
        for (int i = (warp - first_unit) & (warps - 1); i < second.units; i += warps) {
            stage_piece(x_shared + (first_unit + i) * x_unit_bytes + lane * 16, p.token.hidden + static_cast<int64_t>(e) * second.in,
                        second.in, i * 32 + lane, p.hidden_aligned);
            if (!fetched) copy_commit();  // the first one is waited for first
            fetched = true;
        }
    copy_commit();
    if (count * second.units % warps != 0) {
        copy_wait<0>();
        meet();
    }
    unit = warp;
    bool first_one = true;
    half residual = __ushort_as_half(0);  // of this thread's output in the round
    for (int tile = begin2; tile < end2; tile++) {
        if (in_round == 0 && p.token.residual) {
            const int i = static_cast<int>(threadIdx.x) / 4, column = slot_row(tile + i / tile_rows, i % tile_rows);
            if (i < round * tile_rows && column < p.out) residual = load_activation(p.token.residual + column);
        }
        float low = 0, high = 0;
        for (int expert = 0;; unit += warps) {
            while (expert < count && unit >= second.units) unit -= second.units, expert++;
            if (expert == count) break;
            float d[2][4] = {};
            Weights w;
            take(w);
            if (first_one)
                copy_wait<1>();
            else
                copy_wait<0>();
            first_one = false;
            __syncwarp();
            w.multiply(d, x + (expert * second.units + unit) * x_unit_bytes);
            low += shares[expert] * (d[0][0] + d[1][0]), high += shares[expert] * (d[0][2] + d[1][2]);
        }
        put(low, high);
        if (in_round < round && tile + 1 < end2) continue;
        const int of_round = tile + 1 - in_round;
        join(tile_rows, [&](int place, int slot, const float* from, bool mine) {
            const float v = total_of(from, tile_rows) + __half2float(residual);
            const int column = slot_row(of_round + place, slot);
            if (mine && column < p.out) p.token.y[column] = __float2half(v);
        });
    }
    leave(p.counters, before);
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
    const int64_t x_bytes = std::max({gate_up.units(), count * down.units(), int64_t{warps}}) * x_unit_bytes;
    plan.slots =
        static_cast<int>(std::min<int64_t>((device.shared_block - spare - sums_bytes - x_bytes) / slot_bytes, most_slots));
    if (tuning.slots) plan.slots = std::min(plan.slots, tuning.slots);
    plan.x_bytes = static_cast<int>(x_bytes);
    plan.shared_bytes = static_cast<int>(plan.slots * slot_bytes + x_bytes + sums_bytes);
    return plan;
}
// copies: of the matrix, one behind the other, that CTAs share out.
Side side_of(const MatmulDevice& device, const Q4Weight& weight, int copies) {
    const Q4Layout& layout = weight.layout;
    const int tiles = static_cast<int>(layout.tiles());
    return {static_cast<const uint8_t*>(weight.data),
            layout.bytes(),
            tiles,
            static_cast<int>(layout.units()),
            static_cast<int>(layout.in),
            copies * tiles / device.sm_count,
            copies * tiles % device.sm_count};
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
bool token_router_fits(const MatmulDevice& device, const Q4Weight& gate_up, const Q4Weight& down, const RouteArgs& route) {
    const int64_t ring_bytes =
        plan_token(device, gate_up.layout, down.layout, route.top_k).slots * warps * gate_up.layout.unit_bytes();
    return !route.logits && route.experts <= most_router_experts && route.in % 8 == 0 && rows_aligned(route.x, 8) &&
           route.experts * int64_t{router_pitch(route)} <= ring_bytes;
}

cudaError_t token_experts_q4(const MatmulContext& context, const Q4Weight& gate_up, const Q4Weight& down,
                             const TokenExperts& token, const RouteArgs* route) {
    const Plan plan = plan_token(context.device, gate_up.layout, down.layout, token.count);
    Params p;
    p.first = side_of(context.device, gate_up, token.count), p.second = side_of(context.device, down, 1);
    p.token = token;
    p.routes = route != nullptr;
    if (route) p.route = *route;
    p.counters = scratch_of(context).counters;
    p.group = gate_up.layout.group, p.unit_bytes = static_cast<int>(gate_up.layout.unit_bytes());
    p.slots = plan.slots, p.x_bytes = plan.x_bytes;
    p.out = static_cast<int>(down.layout.out);
    p.x_aligned = rows_aligned(token.x, 8), p.hidden_aligned = rows_aligned(token.hidden, down.layout.in);
    return launch(context, kernel_of(gate_up.layout), dim3(static_cast<unsigned>(context.device.sm_count)), threads + 32,
                  plan.shared_bytes, p);
}

}  // namespace awq::cuda
