// y = x W^T for up to 8 rows of x: int4 weights at the speed of memory, sm_90 and later.
//
// One CTA an SM. A producer warp keeps a ring of chunks filled by bulk copies (it starts before the dependency wait: weights
// depend on nothing); up to sixteen consumer warps take one unit of each chunk and so cut K among them. The partial sums of
// a few tiles at a time are joined by all of them. A warp's columns of x are its own: it stages them itself, without a barrier
// unless there is a norm, and keeps them as B fragments in registers.
//
// No more than `window` parts of chunks are on their way at once, however deep the ring is: a longer queue in front of memory
// delays the x and the y of everybody, a shorter one starves. (34 KB an SM on an H100: docs/experiments.md.)
//
// The ring takes an SM's shared memory but for `spare` bytes. Two matrix CTAs on one SM and none on another is what a smaller one
// comes to as soon as another kernel runs between two products, and a product is as slow as its slowest SM.
//
// Arithmetic: q - z exactly in half, tensor cores, a group's sum scaled in float. (With an offset in place of a zero point:
// q * scale + offset rounded to half, as in prefill.) The order of every sum depends on the weight's shape alone, never on the
// number of rows: a row's result is the same bits whatever rows stand beside it.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {
namespace {

constexpr int most_warps = 16, most_rows = 8, most_slots = 12;
constexpr int x_pitch = unit_columns * 2 + 16;  // bytes of a row's columns of one unit: ldmatrix meets no bank twice
constexpr int pass_tiles = 2;                   // tiles that a warp takes with the same columns of x, where K needs several steps
constexpr int part_units = 8, parts = most_warps / part_units;  // a chunk arrives in parts
constexpr int spare = 20 * 1024;                                // for attention's blocks beside a product's

struct Params {
    const uint8_t* w;
    const half* x;
    const float* norm_weight;
    Output output;
    int64_t ldx;
    int rows, in, tiles, units, unit_bytes;
    int warps;   // units of a tile in one chunk, each a warp's
    int groups;  // tiles in one chunk, each a group of warps'; 1 where there are several steps
    int steps;   // chunks of a tile
    int slots, window;
    float eps;
    bool plus_one, x_aligned, norm_aligned;
};

// Tiles (times groups) whose sums are joined at once. Each warp has room for two such rounds behind its x.
template <int Columns>
constexpr int round_tiles = Columns <= 1 ? 8 : Columns <= 4 ? 4 : 2;
__host__ __device__ constexpr int region_bytes(int rows, int columns, int round) {
    return rows * x_pitch + 2 * round * tile_rows * columns * static_cast<int>(sizeof(float));
}

__device__ __forceinline__ void consumer_sync(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }

__device__ __forceinline__ float squares_of(uint4 v) {
    const float2 a = __half22float2(as_half2(v.x)), b = __half22float2(as_half2(v.y)), c = __half22float2(as_half2(v.z)),
                 d = __half22float2(as_half2(v.w));
    return (a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y) + (c.x * c.x + c.y * c.y + d.x * d.x + d.y * d.y);
}

// One unit's weights in a warp's registers.
template <int Groups, bool IntegerZeros>
struct Unit {
    uint4 words[4];
    uint32_t scales[Groups], zeros[Groups];

    __device__ __forceinline__ void load(uint32_t at) {
        const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2;
#pragma unroll
        for (int span = 0; span < 4; span++) words[span] = load_shared16(at + span * 512 + lane * 16);
#pragma unroll
        for (int group = 0; group < Groups; group++) {
            scales[group] = load_shared4(at + 2048 + group * 32 + g * 4);
            zeros[group] = IntegerZeros ? load_shared2(at + 2048 + Groups * 32 + group * 16 + g * 2)
                                        : load_shared4(at + 2048 + Groups * 32 + group * 32 + g * 4);
        }
    }
};

// sum += one unit (16 rows x 256 columns) times x, whose fragments of the 16 steps are b.
template <int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply_unit(float (&sum)[4], const Unit<Groups, IntegerZeros>& unit, const uint32_t (&b)[32]) {
    constexpr int group_steps = 16 / Groups;
    float d[2][4];  // two accumulators, to shorten the chain of dependent products
    GroupMeta<IntegerZeros> meta;
#pragma unroll
    for (int step = 0; step < 16; step++) {
        const int group = step / group_steps;
        if (step % group_steps == 0) {
            meta.set(unit.scales[group], unit.zeros[group]);
#pragma unroll
            for (int i = 0; i < 4; i++) d[0][i] = d[1][i] = 0.0f;
        }
        const uint4& span = unit.words[step / 4];
        const uint32_t word = step % 4 == 0 ? span.x : step % 4 == 1 ? span.y : step % 4 == 2 ? span.z : span.w;
        uint32_t a[4];
        if constexpr (IntegerZeros)
            subtract_zero(a, word, meta);
        else
            dequantize<false>(a, word, meta);
        mma(d[step % 2], a, b[2 * step], b[2 * step + 1]);
        if (step % group_steps == group_steps - 1) {
            const float2 scale = IntegerZeros ? __half22float2(as_half2(unit.scales[group])) : make_float2(1.0f, 1.0f);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += (i < 2 ? scale.x : scale.y) * (d[0][i] + d[1][i]);
        }
    }
}

// The outputs of `tiles` tiles from `first_tile` on, each thread every `threads`-th: element e is token e % Columns of a row.
// early: the residual of this thread's first element, where it has been fetched (`fetched`).
template <int Columns>
__device__ __forceinline__ void join_sums(const Params& p, const float* sums, int region_floats, int first_tile, int tiles,
                                          int threads, bool fetched, float early) {
    const Output& o = p.output;
    const int rows = o.gated ? 8 : tile_rows;
    for (int e = static_cast<int>(threadIdx.x); e < tiles * rows * Columns; e += threads) {
        const int token = e % Columns, slot = e / Columns % rows, index = e / Columns / rows;
        const float* from = sums + index % p.groups * p.warps * region_floats +
                            (index / p.groups * tile_rows + slot) * Columns + token;
        float v = 0, up = 0;
#pragma unroll 8
        for (int w = 0; w < p.warps; w++) {
            v += from[w * region_floats];
            if (o.gated) up += from[w * region_floats + 8 * Columns];
        }
        if (token >= o.rows) continue;
        const int tile = first_tile + index;
        half* y = o.y + token * o.ldy;
        if (o.gated) {
            const int channels = o.out / 2, channel = tile * 8 + slot;
            if (channel >= channels) continue;
            if (o.activation == Activation::none)
                y[channel] = __float2half(v), y[channels + channel] = __float2half(up);
            else
                y[channel] = __float2half(activate(o.activation, v) * up);
            continue;
        }
        const int row = tile * tile_rows + 4 * ((slot & 7) >> 1) + (slot & 1) + (slot < 8 ? 0 : 2);
        if (row >= o.out) continue;
        if (o.bias) v += __ldg(o.bias + row);
        if (o.residual)
            v += fetched && e == static_cast<int>(threadIdx.x) ? early
                                                              : __half2float(load_activation(o.residual + token * o.ld_residual + row));
        y[row] = __float2half(v);
    }
}

// The producer: this CTA's chunks in the order in which consumers take them.
template <bool Steps>
__device__ __forceinline__ void produce(const Params& p, uint32_t ring, uint32_t full, uint32_t empty, int first_tile,
                                        int last_tile) {
    const uint64_t policy = stream_policy();
    const int slot_bytes = p.warps * p.groups * p.unit_bytes;
    int slot = 0, phase = 1, chunk = 0;                                    // phase: of `empty`
    int landed_slot = 0, landed_part = 0, landed_phase = 0, on_way = 0;  // the oldest part on its way
    auto put = [&](int64_t first_unit, int units) {
        if (chunk >= p.slots) barrier_wait(empty + 8 * slot, phase);
        const uint8_t* from = p.w + first_unit * p.unit_bytes;
        for (int part = 0; part < parts; part++) {
            if (on_way == p.window) {
                barrier_wait(full + 8 * (landed_slot * parts + landed_part), landed_phase);
                on_way--;
                if (++landed_part == parts) {
                    landed_part = 0;
                    if (++landed_slot == p.slots) landed_slot = 0, landed_phase ^= 1;
                }
            }
            const int count = min(max(units - part * part_units, 0), part_units), bytes = count * p.unit_bytes;
            const uint32_t bar = full + 8 * (slot * parts + part), to = ring + slot * slot_bytes + part * part_units * p.unit_bytes;
            barrier_expect(bar, static_cast<uint32_t>(bytes));  // also of an empty part: its phase goes on
            on_way++;
            const int half_bytes = (count + 1) / 2 * p.unit_bytes;
            if (count > 0) bulk_copy(to, from, static_cast<uint32_t>(half_bytes), bar, policy);
            if (count > 1)
                bulk_copy(to + half_bytes, from + half_bytes, static_cast<uint32_t>(bytes - half_bytes), bar, policy);
            from += bytes;
        }
        chunk++;
        if (++slot == p.slots) slot = 0, phase ^= 1;
    };
    if constexpr (Steps) {
        for (int pass = first_tile; pass < last_tile; pass += pass_tiles)
            for (int step = 0; step < p.steps; step++)
                for (int tile = pass; tile < min(pass + pass_tiles, last_tile); tile++)
                    put(static_cast<int64_t>(tile) * p.units + step * p.warps, min(p.warps, p.units - step * p.warps));
    } else {
        for (int tile = first_tile; tile < last_tile; tile += p.groups)
            put(static_cast<int64_t>(tile) * p.units, min(p.groups, last_tile - tile) * p.units);
    }
}

// Columns: 1, 4 or 8, at least the rows. Steps: K needs more than one chunk.
template <int Columns, int Groups, bool IntegerZeros, bool Steps>
__global__ void __launch_bounds__((most_warps + 1) * 32, 1) decode_kernel(const __grid_constant__ Params p) {
    constexpr int round = Steps ? pass_tiles : round_tiles<Columns>, tile_sums = tile_rows * Columns;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[most_slots * (parts + 1)];
    __shared__ float squares[Columns][most_warps];
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const int consumers = p.warps * p.groups;
    const uint32_t ring = shared_address(shared), full = shared_address(barriers), empty = full + 8 * most_slots * parts;
    const int slot_bytes = consumers * p.unit_bytes;
    const int chunk_tiles = (p.tiles + p.groups - 1) / p.groups;
    const int first_tile = static_cast<int>(static_cast<int64_t>(chunk_tiles) * blockIdx.x / gridDim.x) * p.groups;
    const int last_tile =
        min(static_cast<int>(static_cast<int64_t>(chunk_tiles) * (blockIdx.x + 1) / gridDim.x) * p.groups, p.tiles);

    if (warp == consumers) {
        if (lane == 0) {
            for (int i = 0; i < p.slots; i++) {
                for (int part = 0; part < parts; part++) barrier_init(full + 8 * (i * parts + part), 1);
                barrier_init(empty + 8 * i, static_cast<uint32_t>(consumers));
            }
            barrier_init_done();
        }
        __syncwarp();
        asm volatile("bar.arrive 2, %0;" ::"r"(consumers * 32 + 32) : "memory");
        pdl_trigger();
        if (lane == 0) produce<Steps>(p, ring, full, empty, first_tile, last_tile);
        return;
    }
    pdl_trigger();

    const int group = warp / p.warps, place = warp - group * p.warps;
    const int region = region_bytes(p.rows, Columns, round), region_floats = region / 4;
    uint8_t* x_shared = shared + p.slots * slot_bytes + warp * region;
    float* my_sums = reinterpret_cast<float*>(x_shared + p.rows * x_pitch);
    const float* all_sums = reinterpret_cast<const float*>(shared + p.slots * slot_bytes + p.rows * x_pitch);

    // ---- x
    auto load_norm = [&](int unit, float(&w)[8]) {
        const int column = unit * unit_columns + lane * 8;
        const float one = p.plus_one ? 1.0f : 0.0f;
        if (p.norm_aligned && column + 8 <= p.in) {
            const float4* from = reinterpret_cast<const float4*>(p.norm_weight + column);
            const float4 a = __ldg(from), b = __ldg(from + 1);
            w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) w[i] = column + i < p.in ? __ldg(p.norm_weight + column + i) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] += one;
    };
    // This lane's 8 columns of row m of a unit.
    auto load_x = [&](int unit, int m) {
        const int column = unit * unit_columns + lane * 8;
        const half* from = p.x + m * p.ldx;
        if (p.x_aligned && column + 8 <= p.in) return __ldcg(reinterpret_cast<const uint4*>(from + column));
        auto at = [&](int c) { return c < p.in ? load_activation(from + c) : __float2half(0.0f); };
        auto pair = [&](int c) { return as_bits(__halves2half2(at(c), at(c + 1))); };
        return make_uint4(pair(column), pair(column + 2), pair(column + 4), pair(column + 6));
    };
    auto add_squares = [&](int m, float sum) {
#pragma unroll
        for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane == 0 && group == 0) squares[m][place] = sum;
    };
    auto scaled = [&](uint4 v, int m, const float(&w)[8]) {
        float total = 0;
#pragma unroll 8
        for (int i = 0; i < p.warps; i++) total += squares[m][i];
        const float s = rsqrtf(total / static_cast<float>(p.in) + p.eps);
        const float2 a = __half22float2(as_half2(v.x)), b = __half22float2(as_half2(v.y)), c = __half22float2(as_half2(v.z)),
                     d = __half22float2(as_half2(v.w));
        return make_uint4(pack_half2(a.x * s * w[0], a.y * s * w[1]), pack_half2(b.x * s * w[2], b.y * s * w[3]),
                          pack_half2(c.x * s * w[4], c.y * s * w[5]), pack_half2(d.x * s * w[6], d.y * s * w[7]));
    };
    auto place_x = [&](int m, uint4 v) { *(reinterpret_cast<uint4*>(x_shared + m * x_pitch) + lane) = v; };
    uint32_t b[32];
    auto load_fragments = [&] {  // lane: row lane % 8 of an ldmatrix, 8 columns from 8 * (lane / 8)
        const uint32_t at = shared_address(x_shared) + min(lane & 7, p.rows - 1) * x_pitch + (lane >> 3) * 16;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 8; i++) ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(b[4 * i]), at + i * 64);
    };
    float norm[8];  // on its way while the kernel before finishes
    if (!Steps && p.norm_weight) load_norm(place, norm);
    asm volatile("bar.sync 2, %0;" ::"r"(consumers * 32 + 32) : "memory");
    pdl_wait();

    // ---- the ring, as consumers see it
    int slot = 0, phase = 0;
    const int my_part = warp / part_units;
    auto next_slot = [&] {
        if (++slot == p.slots) slot = 0, phase ^= 1;
    };
    auto take = [&](Unit<Groups, IntegerZeros>& unit, bool there) {
        barrier_wait(full + 8 * (slot * parts + my_part), phase);  // who has nothing to take, too: parity tells two phases apart
        if (there) unit.load(ring + slot * slot_bytes + warp * p.unit_bytes);
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * slot);
        next_slot();
    };

    // ---- sums: those of a round lie side by side, rounds take turns
    int in_round = 0, turn = 0, round_first = first_tile;
    float early = 0;
    const int threads = consumers * 32;
    {
        const Output& o = p.output;
        const int e = static_cast<int>(threadIdx.x), token = e % Columns, slot_of = e / Columns % tile_rows,
                  row = (first_tile + e / Columns / tile_rows) * tile_rows + 4 * ((slot_of & 7) >> 1) + (slot_of & 1) +
                        (slot_of < 8 ? 0 : 2);
        if (o.residual && token < o.rows && row < o.out)
            early = __half2float(load_activation(o.residual + token * o.ld_residual + row));
    }
    auto put = [&](const float(&sum)[4]) {
        float* to = my_sums + (turn * round + in_round) * tile_sums;
        if constexpr (Columns == 1) {
            if (t == 0) to[g] = sum[0], to[g + 8] = sum[2];
        } else if (2 * t < Columns) {
            *reinterpret_cast<float2*>(to + g * Columns + 2 * t) = make_float2(sum[0], sum[1]);
            *reinterpret_cast<float2*>(to + (g + 8) * Columns + 2 * t) = make_float2(sum[2], sum[3]);
        }
        in_round++;
    };
    auto join = [&](int end) {  // tiles round_first .. end - 1
        consumer_sync(threads);
        join_sums<Columns>(p, all_sums + turn * round * tile_sums, region_floats, round_first, end - round_first, threads,
                           round_first == first_tile, early);
        round_first = end, in_round = 0, turn ^= 1;
    };

    if constexpr (!Steps) {
        uint4 v[Columns];
#pragma unroll
        for (int m = 0; m < Columns; m++) v[m] = m < p.rows ? load_x(place, m) : make_uint4(0, 0, 0, 0);
        if (p.norm_weight) {
#pragma unroll
            for (int m = 0; m < Columns; m++)
                if (m < p.rows) add_squares(m, squares_of(v[m]));
            consumer_sync(threads);
#pragma unroll
            for (int m = 0; m < Columns; m++)
                if (m < p.rows) v[m] = scaled(v[m], m, norm);
        }
#pragma unroll
        for (int m = 0; m < Columns; m++)
            if (m < p.rows) place_x(m, v[m]);
        load_fragments();
        for (int tile = first_tile; tile < last_tile; tile += p.groups) {
            Unit<Groups, IntegerZeros> unit;
            const bool there = tile + group < last_tile;
            take(unit, there);
            float sum[4] = {};
            if (there) multiply_unit(sum, unit, b);
            put(sum);
            if (in_round == round || tile + p.groups >= last_tile) join(min(tile + p.groups, last_tile));
        }
    } else {
        if (p.norm_weight) {
            for (int m = 0; m < p.rows; m++) {
                float sum = 0;
                for (int unit = place; unit < p.units; unit += p.warps) sum += squares_of(load_x(unit, m));
                add_squares(m, sum);
            }
            consumer_sync(threads);
        }
        auto fetch = [&](int unit) {  // to this warp's place, where no lane needs the step before any more
            __syncwarp();
            const int column = unit * unit_columns + lane * 8, left = min(max(p.in - column, 0), 8);
            for (int m = 0; m < p.rows && unit < p.units; m++) {
                if (p.x_aligned)
                    copy16(shared_address(x_shared) + m * x_pitch + lane * 16, p.x + m * p.ldx + (left ? column : 0), left * 2);
                else
                    place_x(m, load_x(unit, m));
            }
            copy_commit();
        };
        fetch(place);
        for (int pass = first_tile; pass < last_tile; pass += pass_tiles) {
            float sum[pass_tiles][4] = {};
            for (int step = 0; step < p.steps; step++) {
                const int unit_index = step * p.warps + place;
                const bool there = unit_index < p.units;
                copy_wait<0>();
                if (p.norm_weight && there) {
                    load_norm(unit_index, norm);
                    for (int m = 0; m < p.rows; m++)  // what this lane has fetched itself
                        place_x(m, scaled(*(reinterpret_cast<uint4*>(x_shared + m * x_pitch) + lane), m, norm));
                }
                load_fragments();
                fetch(step + 1 < p.steps ? unit_index + p.warps : place);
#pragma unroll
                for (int i = 0; i < pass_tiles; i++) {
                    if (pass + i >= last_tile) continue;
                    Unit<Groups, IntegerZeros> unit;
                    take(unit, there);
                    if (there) multiply_unit(sum[i], unit, b);
                }
            }
#pragma unroll
            for (int i = 0; i < pass_tiles; i++)
                if (pass + i < last_tile) put(sum[i]);
            join(min(pass + pass_tiles, last_tile));
        }
    }
}

using DecodeKernel = void (*)(Params);
struct Variant {
    int columns, groups;
    bool integer_zeros, steps;
    DecodeKernel kernel;
};
template <int Columns, int Groups, bool IntegerZeros, bool Steps>
constexpr Variant variant() {
    return {Columns, Groups, IntegerZeros, Steps, decode_kernel<Columns, Groups, IntegerZeros, Steps>};
}
// The first with columns enough is taken.
const Variant variants[] = {
    variant<1, 2, true, false>(),  variant<4, 2, true, false>(), variant<8, 2, true, false>(), variant<1, 2, true, true>(),
    variant<4, 2, true, true>(),   variant<8, 2, true, true>(),  variant<1, 4, true, false>(), variant<8, 4, true, false>(),
    variant<1, 4, true, true>(),   variant<8, 4, true, true>(),  variant<1, 8, true, false>(), variant<8, 8, true, false>(),
    variant<1, 8, true, true>(),   variant<8, 8, true, true>(),  variant<8, 2, false, false>(), variant<8, 2, false, true>(),
    variant<8, 4, false, false>(), variant<8, 4, false, true>(), variant<8, 8, false, false>(), variant<8, 8, false, true>(),
};

struct DecodePlan {
    const Variant* variant = nullptr;
    int warps = 0, groups = 1, steps = 1, slots = 0, shared_bytes = 0;
};

// Which warps take what. Depends on the weight alone, see above.
void divide(const MatmulDevice& device, const Q4Layout& layout, DecodePlan& plan) {
    const int units = static_cast<int>(layout.units());
    if (units <= most_warps) {
        const int tiles_each = static_cast<int>((layout.tiles() + device.sm_count - 1) / device.sm_count);
        plan.warps = units;
        plan.groups = std::clamp(most_warps / units, 1, tiles_each);
        return;
    }
    // As many warps as cut K most evenly; among equals the most.
    double best = 0;
    for (int warps = 8; warps <= most_warps; warps++) {
        const int steps = (units + warps - 1) / warps;
        const double used = static_cast<double>(units) / (steps * warps) * (warps >= 12 ? 1.0 : 0.9);
        if (used >= best) best = used, plan.warps = warps, plan.steps = steps;
    }
}

DecodePlan plan_decode(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    DecodePlan plan;
    divide(device, layout, plan);
    for (const Variant& v : variants) {
        if (v.columns < rows || v.groups != layout.groups() || v.integer_zeros != layout.integer_zeros || v.steps != (plan.steps > 1))
            continue;
        const int round = v.steps ? pass_tiles : v.columns <= 1 ? round_tiles<1> : v.columns <= 4 ? round_tiles<4> : round_tiles<8>;
        const int consumers = plan.warps * plan.groups, slot_bytes = consumers * static_cast<int>(layout.unit_bytes());
        const int rest = consumers * region_bytes(rows, v.columns, round);
        plan.slots = std::min((device.shared_sm - spare - 4096 - rest) / slot_bytes, most_slots);
        if (tuning.slots) plan.slots = std::min(plan.slots, tuning.slots);
        plan.shared_bytes = plan.slots * slot_bytes + rest;
        if (plan.slots >= 2) plan.variant = &v;
        break;
    }
    return plan;
}

}  // namespace

cudaError_t open_decode(const MatmulDevice& device) {
    if (device.arch < 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, device.shared_block - 3072)) return error;
    return cudaSuccess;
}

bool decode_fits(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    return device.arch >= 90 && rows <= most_rows && plan_decode(device, layout, rows).variant != nullptr;
}

cudaError_t decode_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const DecodePlan plan = plan_decode(context.device, layout, args.rows);
    if (!plan.variant) return cudaErrorInvalidConfiguration;
    Params p;
    p.w = static_cast<const uint8_t*>(weight.data);
    p.x = args.x, p.ldx = args.ldx, p.rows = args.rows, p.in = static_cast<int>(layout.in);
    p.x_aligned = rows_aligned(args.x, args.ldx);
    p.norm_aligned = reinterpret_cast<uintptr_t>(args.norm_weight) % 16 == 0;
    p.norm_weight = args.norm_weight, p.eps = args.norm_eps, p.plus_one = args.norm_plus_one;
    p.output = output_of(args, layout.out, layout.gated);
    p.tiles = static_cast<int>(layout.tiles()), p.units = static_cast<int>(layout.units());
    p.unit_bytes = static_cast<int>(layout.unit_bytes());
    p.warps = plan.warps, p.groups = plan.groups, p.steps = plan.steps, p.slots = plan.slots;
    p.window = tuning.window ? tuning.window : 2;
    const int chunk_tiles = (p.tiles + p.groups - 1) / p.groups, grid = std::min(context.device.sm_count, chunk_tiles);
    return launch(context, plan.variant->kernel, dim3(static_cast<unsigned>(grid)), (plan.warps * plan.groups + 1) * 32,
                  plan.shared_bytes, p);
}

}  // namespace awq::cuda
