// y = x W^T for up to 8 rows of x: int4 weights at the speed of memory, sm_90 and later.
//
// One CTA an SM. A producer warp keeps a ring of chunks filled by bulk copies (it starts before the dependency wait: weights
// depend on nothing); up to sixteen consumer warps take one unit of each chunk and so cut K among them. The partial sums of
// a few tiles at a time are joined by all of them. A warp's columns of x are its own: it stages them itself, without a barrier,
// and keeps them as B fragments in registers. A norm's scale of a row is not known then: the sums are multiplied by it.
//
// What a product loses it loses at its ends, where memory rests: from the last weights that a CTA asks for to the first of the next
// product's. So the first chunk is asked for before all else, and the producer's last acts are to ask for some of the next product's
// weights, as far as L2: when its own are all on their way, for more and more of them while x is not there, as behind attention, and
// when its own are used up.
//
// No more than `window` parts of chunks are on their way at once, however deep the ring is: a longer queue in front of memory
// delays the x and the y of everybody, a shorter one starves. (34 KB an SM on an H100 until x is there, then 51: docs/experiments.md.)
//
// The ring takes an SM's shared memory but for `spare` bytes. Two matrix CTAs on one SM and none on another is what a smaller one
// comes to as soon as another kernel runs between two products, and a product is as slow as its slowest SM.
//
// Arithmetic: q times x on tensor cores, exact products, a group's sum and its zero point's share scaled in float. (With an offset
// in place of a zero point: q * scale + offset rounded to half, as in prefill.) The order of every sum depends on the weight's shape and on whether there is
// one row or several (join_lanes): in 2 to 8 rows a row's result is the same bits whatever rows stand beside it.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {
namespace {

constexpr int most_warps = 16, most_rows = 8, most_slots = 12;
constexpr int x_pitch = unit_columns * 2 + 16;  // bytes of a row's columns of one unit: ldmatrix meets no bank twice
constexpr int pass_tiles = 2;                   // tiles that a warp takes with the same columns of x, where K needs several steps
constexpr int part_units = 8, parts = most_warps / part_units;  // a chunk arrives in parts
// Of the next product's weights so much a CTA is asked for when its own are all on their way: more takes bandwidth from CTAs that are
// behind. While x is late, another so much every so many cycles, some 6 TB/s of all CTAs, of which half are still busy.
constexpr int next_bytes = 12 * 1024, most_next_bytes = 256 * 1024, next_cycles = 450;
// And so much when its own are used up, until the next product's CTA begins in its place.
constexpr int last_bytes = 36 * 1024;
constexpr int spare = 20 * 1024;  // for attention's blocks beside a product's

// What a kernel needs first stands first, as whole words: until the first weights are asked for, memory rests.
struct Params {
    const uint8_t* w;
    int32_t each, longer;  // chunks' worth of tiles that a CTA takes; the first `longer` CTAs take one more
    int32_t tile_bytes, unit_bytes;
    int32_t warps;   // units of a tile in one chunk, each a warp's
    int32_t groups;  // tiles in one chunk, each a group of warps'; 1 where there are several steps
    int32_t tiles, units;
    int32_t slots;
    int32_t window, first_window;  // parts on their way: at most, and until x is there
    int32_t steps;                 // chunks of a tile
    const half* x;                 // 16-byte aligned, and its rows too
    int64_t ldx;
    const float* norm_weight;  // 16-byte aligned
    int32_t in, rows;          // in: up to a multiple of 8, with zeros in x
    float eps, inverse_in;
    bool plus_one;
    Output output;
    const uint8_t* next_w;  // what the product after this one begins with: a CTA's share of its weights
    int32_t next_chunk_bytes, next_each, next_longer, next_grid;
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

// sum += one unit (16 rows x 256 columns, in shared memory at `at`) times x, whose fragments of the 16 steps are b and whose sums over a group's columns
// are x_sums (this lane's tokens 2 t and 2 t + 1); times: the power of two that takes back what x was multiplied by.
//
// Integer zeros: the nibbles themselves go into the product (raw_nibbles), six instructions a step where q - z in half takes ten. Groups
// of 32 would need too many registers for their sums of x.
template <int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply_unit(float (&sum)[4], uint32_t at, const uint32_t (&b)[32], const float (&x_sums)[Groups][2], float2 times) {
    constexpr int group_steps = 16 / Groups;
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2;
    uint4 spans[2];  // this one and the next
    spans[0] = load_shared16(at + lane * 16);
    uint32_t scales, zeros;
    float d[2][4];  // two accumulators, to shorten the chain of dependent products
#pragma unroll
    for (int step = 0; step < 16; step++) {
        const int group = step / group_steps;
        if (step % 4 == 0 && step < 12) spans[(step / 4 + 1) % 2] = load_shared16(at + (step / 4 + 1) * 512 + lane * 16);
        if (step % group_steps == 0) {
            load_group<IntegerZeros>(at + unit_scales, Groups, group, g, scales, zeros);
#pragma unroll
            for (int i = 0; i < 4; i++) d[0][i] = d[1][i] = 0.0f;
        }
        const uint32_t word = word_of(spans[step / 4 % 2], step);
        uint32_t a[4];
        if constexpr (IntegerZeros && Groups <= 4) {
            raw_nibbles(a, word);
        } else {
            GroupMeta<IntegerZeros> meta;
            meta.set(scales, zeros);
            if constexpr (IntegerZeros)
                subtract_zero(a, word, meta);
            else
                dequantize<false>(a, word, meta);
        }
        mma(d[step % 2], a, b[2 * step], b[2 * step + 1]);
        if (step % group_steps == group_steps - 1) {
            if constexpr (IntegerZeros && Groups <= 4) {
                const RawGroup raw(scales, zeros);
#pragma unroll
                for (int i = 0; i < 4; i++) sum[i] += raw.value(i, d[0][i] + d[1][i], x_sums[group][i & 1], i & 1 ? times.y : times.x);
            } else {
                const float2 scale = IntegerZeros ? __half22float2(as_half2(scales)) : make_float2(1.0f, 1.0f);
#pragma unroll
                for (int i = 0; i < 4; i++) sum[i] += (i < 2 ? scale.x : scale.y) * (i & 1 ? times.y : times.x) * (d[0][i] + d[1][i]);
            }
        }
    }
}
// Sums of x over each group's columns: a product with ones.
template <int Groups>
__device__ __forceinline__ void sum_groups(float (&x_sums)[Groups][2], const uint32_t (&b)[32]) {
    const uint32_t ones[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
    float d[Groups][4] = {};
#pragma unroll
    for (int step = 0; step < 16; step++) mma(d[step / (16 / Groups)], ones, b[2 * step], b[2 * step + 1]);
#pragma unroll
    for (int group = 0; group < Groups; group++) x_sums[group][0] = d[group][0], x_sums[group][1] = d[group][1];
}

// The kernel's code is fetched as it runs: what is rare stays out of the way.
__device__ __noinline__ float activate_rarely(Activation activation, float v) { return activate(activation, v); }

// Lanes that add up one output: many threads for the few outputs of one row, one for each of those of many rows.
template <int Columns>
constexpr int join_lanes = Columns == 1 ? 4 : 1;

// The outputs of `tiles` tiles from `first_tile` on. Element e is token e % Columns of a row; of its lanes the first stores.
// scale: of this thread's token. early: the residual of its first element, where it has been fetched (`fetched`).
template <int Columns>
__device__ __forceinline__ void join_sums(const Params& p, const float* sums, int region_floats, int first_tile, int tiles,
                                          int threads, float scale, bool fetched, half early) {
    constexpr int lanes = join_lanes<Columns>, warp_elements = 32 / lanes;
    const Output& o = p.output;
    const int rows = o.gated ? 8 : tile_rows, rows_shift = o.gated ? 3 : 4, part = static_cast<int>(threadIdx.x) % lanes;
    const int first = static_cast<int>(threadIdx.x) / lanes, step = threads / lanes, elements = tiles * rows * Columns;
    for (int e = first; e / warp_elements * warp_elements < elements; e += step) {  // whole warps, for the shuffles
        const int token = e % Columns, slot = e / Columns & (rows - 1), index = min(e / Columns >> rows_shift, tiles - 1);
        int group = 0, place = index;
        if (p.groups > 1) place = index / p.groups, group = index - place * p.groups;
        const float* from = sums + (group * p.warps + part) * region_floats + (place * tile_rows + slot) * Columns + token;
        auto add_up = [&](const float* at) {
            float v = 0;
#pragma unroll
            for (int i = 0; i < most_warps; i += lanes) v += part + i < p.warps ? at[i * region_floats] : 0.0f;
#pragma unroll
            for (int d = 1; d < lanes; d *= 2) v += __shfl_xor_sync(~0u, v, d);
            return v;
        };
        float v = scale * add_up(from), up = o.gated ? scale * add_up(from + 8 * Columns) : 0.0f;
        if (part != 0 || e >= elements || token >= o.rows) continue;
        const int tile = first_tile + index;
        half* y = o.y32 ? nullptr : o.y + token * o.ldy;
        if (o.gated) {
            const int channels = o.out / 2, channel = tile * 8 + slot;
            if (channel >= channels) continue;
            if (o.activation == Activation::silu)
                y[channel] = __float2half(v / (1.0f + __expf(-v)) * up);
            else if (o.activation == Activation::none)
                y[channel] = __float2half(v), y[channels + channel] = __float2half(up);
            else
                y[channel] = __float2half(activate_rarely(o.activation, v) * up);
            continue;
        }
        const int row = slot_row(tile, slot);
        if (row >= o.out) continue;
        if (o.bias) v += __ldg(o.bias + row);
        if (o.residual)
            v += __half2float(fetched && e == first ? early : load_activation(o.residual + token * o.ld_residual + row));
        if (o.y32)
            o.y32[token * o.ldy + row] = v;
        else
            y[row] = __float2half(v);
    }
}

// The producer: this CTA's chunks in the order in which consumers take them.
__device__ __forceinline__ void ask_for_part(const Params& p, uint32_t to, const uint8_t* from, int count, uint32_t bar, uint64_t policy) {
    const uint32_t bytes = count * p.unit_bytes;
    barrier_expect(bar, bytes);  // also of an empty part: its phase goes on
    if (count > 0) bulk_copy(to, from, bytes, bar, policy);
}
struct Producer {
    const Params& p;
    const uint32_t ring, full, empty, x_there;
    const uint64_t policy;
    int slot = 0, phase = 1, chunk = 0;  // phase: of `empty`
    int window = p.first_window;
    PartsOnWay on_way;

    // asked: for the chunk's copies already.
    __device__ __forceinline__ void put(int64_t first_unit, int units, bool asked = false) {
        if (chunk >= p.slots) barrier_wait(empty + 8 * slot, phase);
        const uint8_t* from = p.w + first_unit * p.unit_bytes;
#pragma unroll 1
        for (int part = 0; part < parts; part++, on_way.count++) {
            if (asked) continue;
            if (window != p.window && barrier_passed(x_there, 0)) window = p.window;
            on_way.wait_below(window, full, parts, p.slots);
            ask_for_part(p, ring + (slot * p.warps * p.groups + part * part_units) * p.unit_bytes, from + part * part_units * p.unit_bytes,
                         min(max(units - part * part_units, 0), part_units), full + 8 * (slot * parts + part), policy);
        }
        chunk++;
        if (++slot == p.slots) slot = 0, phase ^= 1;
    }
    // All chunks; the first has been asked for.
    template <bool Steps>
    __device__ __forceinline__ void run(int first_tile, int last_tile) {
        if constexpr (Steps) {
            for (int pass = first_tile; pass < last_tile; pass += pass_tiles)
                for (int step = 0; step < p.steps; step++)
                    for (int tile = pass; tile < min(pass + pass_tiles, last_tile); tile++)
                        put(static_cast<int64_t>(tile) * p.units + step * p.warps, min(p.warps, p.units - step * p.warps),
                            tile == first_tile && step == 0);
        } else {
            for (int tile = first_tile; tile < last_tile; tile += p.groups)
                put(static_cast<int64_t>(tile) * p.units, min(p.groups, last_tile - tile) * p.units, tile == first_tile);
        }
    }
    // Memory would rest from here on until the next product has started: let it bring that one's first weights as far as L2.
    __device__ __forceinline__ void ask_for_next(int block) {
        if (block >= p.next_grid) return;
        const uint8_t* from = p.next_w + static_cast<int64_t>(block * p.next_each + min(block, p.next_longer)) * p.next_chunk_bytes;
        int left = min((p.next_each + (block < p.next_longer)) * p.next_chunk_bytes, most_next_bytes);
        auto ask = [&](int most) {
            const int bytes = min(left, most);
            if (bytes > 0) bulk_prefetch(from, static_cast<uint32_t>(bytes));
            from += bytes, left -= bytes;
        };
        ask(next_bytes);
        on_way.wait_below(1, full, parts, p.slots);  // this product's own come first
        while (left > 0 && !barrier_passed(x_there, 0)) {
            ask(next_bytes);
            for (const long long now = clock64(); clock64() - now < next_cycles && !barrier_passed(x_there, 0);) {
            }
        }
        // The last chunk's slot, and the phase in which its readers leave it.
        barrier_wait(empty + 8 * ((slot ? slot : p.slots) - 1), slot ? phase ^ 1 : phase);
        ask(last_bytes);
    }
};

// Rows' sums over a warp, all rows at once: lane l gets that of row l / (32 / Rows), always by the same tree.
template <int Rows>
__device__ __forceinline__ float sum_rows(float (&v)[Rows]) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    int mask = 16;
#pragma unroll
    for (int n = Rows / 2; n > 0; n /= 2, mask /= 2) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            const bool upper = lane & mask;
            const float mine = upper ? v[i + n] : v[i], other = upper ? v[i] : v[i + n];
            v[i] = mine + __shfl_xor_sync(~0u, other, mask);
        }
    }
    for (; mask; mask /= 2) v[0] += __shfl_xor_sync(~0u, v[0], mask);
    return v[0];
}

// Columns: 1, 4 or 8, at least the rows. Steps: K needs more than one chunk.
template <int Columns, int Groups, bool IntegerZeros, bool Steps>
__global__ void __launch_bounds__((most_warps + 1) * 32, 1) decode_kernel(const __grid_constant__ Params p) {
    constexpr int round = Steps ? pass_tiles : round_tiles<Columns>, tile_sums = tile_rows * Columns;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[most_slots * (parts + 1) + 1];
    __shared__ float squares[Columns][most_warps], scales[Columns];
    __shared__ __align__(8) float inverses[most_warps][Columns < 2 ? 2 : Columns];  // of each warp's x: see weighted()
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const int consumers = p.warps * p.groups;
    const uint32_t ring = shared_address(shared), full = shared_address(barriers), empty = full + 8 * most_slots * parts,
                   x_there = empty + 8 * most_slots;
    const int slot_bytes = consumers * p.unit_bytes;
    const int block = static_cast<int>(blockIdx.x);
    const int first_tile = (block * p.each + min(block, p.longer)) * p.groups;
    const int last_tile = min(first_tile + (p.each + (block < p.longer)) * p.groups, p.tiles);

    // The first chunk is asked for before anything else. (By one lane: barriers and copies take uniform addresses, several
    // lanes' would be served one after the other.)
    const uint64_t policy = stream_policy();
    const bool produces = warp == consumers;
    if (__builtin_expect(produces, 1)) {  // its code stands first, where it is fetched at once
        if (lane == 0) {
#pragma unroll
            for (int part = 0; part < parts; part++) barrier_init(full + 8 * part, 1);
            barrier_init_done();
            const uint8_t* from = p.w + static_cast<int64_t>(first_tile) * p.tile_bytes;
            const int units = Steps ? min(p.warps, p.units) : min(p.groups, last_tile - first_tile) * p.units;
            if (first_tile < last_tile)
#pragma unroll
                for (int part = 0; part < parts; part++)
                    ask_for_part(p, ring + part * part_units * p.unit_bytes, from + part * part_units * p.unit_bytes,
                                 min(max(units - part * part_units, 0), part_units), full + 8 * part, policy);
        }
    }
    if (threadIdx.x == 0) {  // the other barriers
        const auto readers = static_cast<uint32_t>(consumers * 32);
        barrier_init(x_there, readers);
        barrier_init(empty, readers);
#pragma unroll 4
        for (int i = 1; i < p.slots; i++) {
            for (int part = 0; part < parts; part++) barrier_init(full + 8 * (i * parts + part), 1);
            barrier_init(empty + 8 * i, readers);
        }
        barrier_init_done();
    }
    pdl_trigger();
    if (produces) {
        __syncwarp();
        asm volatile("bar.sync 2, %0;" ::"r"(consumers * 32 + 32) : "memory");
        if (lane == 0) {
            Producer producer = {p, ring, full, empty, x_there, policy};
            producer.run<Steps>(first_tile, last_tile);
            producer.ask_for_next(block);
        }
        return;
    }

    int group = 0, place = warp;
    if (p.groups > 1) group = warp / p.warps, place = warp - group * p.warps;
    const int region = region_bytes(p.rows, Columns, round), region_floats = region / 4;
    uint8_t* x_shared = shared + p.slots * slot_bytes + warp * region;
    float* my_sums = reinterpret_cast<float*>(x_shared + p.rows * x_pitch);
    const float* all_sums = reinterpret_cast<const float*>(shared + p.slots * slot_bytes + p.rows * x_pitch);

    // ---- x
    auto load_norm = [&](int unit, float(&w)[8]) {
        const int column = unit * unit_columns + lane * 8;
        float4 a = {}, b = {};
        if (column < p.in) {
            const float4* from = reinterpret_cast<const float4*>(p.norm_weight + column);
            a = __ldg(from), b = __ldg(from + 1);
        }
        w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
    };
    // This lane's 8 columns of row m of a unit; zero where there is none.
    auto load_x = [&](int unit, int m) {
        const int column = unit * unit_columns + lane * 8;
        return m < p.rows && column < p.in ? __ldcg(reinterpret_cast<const uint4*>(p.x + m * p.ldx + column)) : make_uint4(0, 0, 0, 0);
    };
    // x times the norm's weight, brought up to halves' range by a power of two; its inverse is what it is to be multiplied by.
    // The row's own scale waits until the sums are joined: nothing here depends on other warps.
    auto weighted = [&](uint4 v, const float(&w)[8], float& inverse) {
        const float one = p.plus_one ? 1.0f : 0.0f;
        const float2 a = __half22float2(as_half2(v.x)), b = __half22float2(as_half2(v.y)), c = __half22float2(as_half2(v.z)),
                     d = __half22float2(as_half2(v.w));
        float f[8] = {a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}, most = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) f[i] *= w[i] + one, most = fmaxf(most, fabsf(f[i]));
        const float up = into_half_range(most, inverse);
        return make_uint4(pack_half2(f[0] * up, f[1] * up), pack_half2(f[2] * up, f[3] * up), pack_half2(f[4] * up, f[5] * up),
                          pack_half2(f[6] * up, f[7] * up));
    };
    auto note_inverse = [&](int m, float inverse) {
        if (lane == 0) inverses[warp][m] = inverse;
    };
    auto my_inverses = [&] {  // of this lane's tokens 2 t and 2 t + 1
        return p.norm_weight && 2 * t < Columns ? *reinterpret_cast<const float2*>(&inverses[warp][2 * t]) : make_float2(1.0f, 1.0f);
    };
    // sum: of row lane / (32 / Columns), over this warp's columns.
    auto note_squares = [&](float sum) {
        if (lane % (32 / Columns) == 0 && group == 0) squares[lane / (32 / Columns)][place] = sum;
    };
    // The norm's scale of each row, once all warps have noted their squares; by the first threads, for all.
    auto find_scales = [&] {
        if (threadIdx.x >= Columns) return;
        float total = 0;
#pragma unroll
        for (int i = 0; i < most_warps; i++) total += i < p.warps ? squares[threadIdx.x][i] : 0.0f;
        scales[threadIdx.x] = rsqrtf(total * p.inverse_in + p.eps);
    };
    auto place_x = [&](int m, uint4 v) { *(reinterpret_cast<uint4*>(x_shared + m * x_pitch) + lane) = v; };
    uint32_t b[32];
    float x_sums[Groups][2];
    auto load_fragments = [&] {  // lane: row lane % 8 of an ldmatrix, 8 columns from 8 * (lane / 8)
        const uint32_t at = shared_address(x_shared) + min(lane & 7, p.rows - 1) * x_pitch + (lane >> 3) * 16;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 8; i++) ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(b[4 * i]), at + i * 64);
        if constexpr (IntegerZeros && Groups <= 4) sum_groups<Groups>(x_sums, b);
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
    auto take = [&](float (&sum)[4], bool there, float2 times) {
        barrier_wait(full + 8 * (slot * parts + my_part), phase);  // who has nothing to take, too: parity tells two phases apart
        if (there) multiply_unit<Groups, IntegerZeros>(sum, ring + slot * slot_bytes + warp * p.unit_bytes, b, x_sums, times);
        barrier_arrive(empty + 8 * slot);  // each lane for itself: see matmul_prefill_sm90.cuh
        next_slot();
    };

    // ---- sums: those of a round lie side by side, rounds take turns
    int in_round = 0, turn = 0, round_first = first_tile;
    const int threads = consumers * 32;
    const int my_token = static_cast<int>(threadIdx.x) / join_lanes<Columns> % Columns;  // of every sum that this thread joins
    half early = __ushort_as_half(0);
    auto fetch_residual = [&] {
        const Output& o = p.output;
        const int e = static_cast<int>(threadIdx.x) / join_lanes<Columns>, token = e % Columns,
                  row = slot_row(first_tile + e / Columns / tile_rows, e / Columns % tile_rows);
        if (o.residual && token < o.rows && row < o.out) early = load_activation(o.residual + token * o.ld_residual + row);
    };
    auto put = [&](const float(&sum)[4]) {
        float* to = my_sums + (turn * round + in_round) * tile_sums;
        const float2 times = Steps ? make_float2(1.0f, 1.0f) : my_inverses();
        if constexpr (Columns == 1) {
            if (t == 0) to[g] = sum[0] * times.x, to[g + 8] = sum[2] * times.x;
        } else if (2 * t < Columns) {
            *reinterpret_cast<float2*>(to + g * Columns + 2 * t) = make_float2(sum[0] * times.x, sum[1] * times.y);
            *reinterpret_cast<float2*>(to + (g + 8) * Columns + 2 * t) = make_float2(sum[2] * times.x, sum[3] * times.y);
        }
        in_round++;
    };
    auto join = [&](int end) {  // tiles round_first .. end - 1
        consumer_sync(threads);
        if (Steps && p.norm_weight && round_first == first_tile) {
            find_scales();
            consumer_sync(threads);
        }
        join_sums<Columns>(p, all_sums + turn * round * tile_sums, region_floats, round_first, end - round_first, threads,
                           p.norm_weight ? scales[my_token] : 1.0f, round_first == first_tile, early);
        round_first = end, in_round = 0, turn ^= 1;
    };

    if constexpr (!Steps) {
        uint4 v[Columns];
#pragma unroll
        for (int m = 0; m < Columns; m++) v[m] = load_x(place, m);
        fetch_residual();
        float squared[Columns];
        if (p.norm_weight) {
#pragma unroll
            for (int m = 0; m < Columns; m++) {
                squared[m] = squares_of(v[m]);
                if (m >= p.rows) continue;
                float inverse;
                v[m] = weighted(v[m], norm, inverse);
                note_inverse(m, inverse);
            }
        }
#pragma unroll
        for (int m = 0; m < Columns; m++)
            if (m < p.rows) place_x(m, v[m]);
        load_fragments();
        if (p.norm_weight) note_squares(sum_rows<Columns>(squared));
        barrier_arrive(x_there);
        for (int tile = first_tile; tile < last_tile; tile += p.groups) {
            float sum[4] = {};
            take(sum, tile + group < last_tile, make_float2(1.0f, 1.0f));
            if (p.norm_weight && tile == first_tile && warp == 0) {
                barrier_wait(x_there, 0);
                find_scales();
            }
            put(sum);
            if (in_round == round || tile + p.groups >= last_tile) join(min(tile + p.groups, last_tile));
        }
    } else {
        float squared = 0;  // of this lane's row in note_squares
        auto fetch = [&](int unit) {  // to this warp's place, where no lane needs the step before any more
            __syncwarp();
            const int column = unit * unit_columns + lane * 8, left = min(max(p.in - column, 0), 8);
            for (int m = 0; m < p.rows && unit < p.units; m++)
                copy16(shared_address(x_shared) + m * x_pitch + lane * 16, p.x + m * p.ldx + (left ? column : 0), left * 2);
            copy_commit();
        };
        {
            uint4 v[Columns];  // the first step's, which all wait for, in the quickest way
#pragma unroll
            for (int m = 0; m < Columns; m++) v[m] = load_x(place, m);
            fetch_residual();
#pragma unroll
            for (int m = 0; m < Columns; m++)
                if (m < p.rows) place_x(m, v[m]);
        }
        for (int pass = first_tile; pass < last_tile; pass += pass_tiles) {
            float sum[pass_tiles][4] = {};
            for (int step = 0; step < p.steps; step++) {
                const int unit_index = step * p.warps + place;
                const bool there = unit_index < p.units;
                copy_wait<0>();
                if (p.norm_weight && there) {
                    float squares_now[Columns] = {};
                    load_norm(unit_index, norm);
#pragma unroll
                    for (int m = 0; m < Columns; m++) {  // what this lane has fetched itself
                        if (m >= p.rows) continue;
                        const uint4 v = *(reinterpret_cast<uint4*>(x_shared + m * x_pitch) + lane);
                        squares_now[m] = squares_of(v);
                        float inverse;
                        place_x(m, weighted(v, norm, inverse));
                        note_inverse(m, inverse);
                    }
                    if (pass == first_tile) squared += sum_rows<Columns>(squares_now);
                }
                load_fragments();
                if (step == 0 && pass == first_tile) barrier_arrive(x_there);
                fetch(step + 1 < p.steps ? unit_index + p.warps : place);
#pragma unroll
                for (int i = 0; i < pass_tiles; i++) {
                    if (pass + i >= last_tile) continue;
                    take(sum[i], there, my_inverses());
                }
            }
            if (p.norm_weight && pass == first_tile) note_squares(squared);
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

// Chunks' worth of tiles to CTAs: `each`, and one more to each of the first `longer`.
struct Division {
    int grid, each, longer;
};
Division divide_tiles(const MatmulDevice& device, const Q4Layout& layout, const DecodePlan& plan) {
    const int chunks = (static_cast<int>(layout.tiles()) + plan.groups - 1) / plan.groups, grid = std::min(device.sm_count, chunks);
    return {grid, chunks / grid, chunks % grid};
}

}  // namespace

cudaError_t open_decode(const MatmulDevice& device) {
    if (device.arch < 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, device.shared_block - 3072)) return error;
    return cudaSuccess;
}

bool decode_fits(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    return device.arch >= 90 && rows <= most_rows && layout.units() <= INT16_MAX && layout.tiles() <= INT32_MAX / 2 && plan_decode(device, layout, rows).variant != nullptr;
}

cudaError_t decode_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const DecodePlan plan = plan_decode(context.device, layout, args.rows);
    if (!plan.variant) return cudaErrorInvalidConfiguration;
    Params p = {};
    const Division division = divide_tiles(context.device, layout, plan);
    if (const Q4Weight* next = context.next; next && decode_fits(context.device, next->layout, args.rows)) {
        const DecodePlan its = plan_decode(context.device, next->layout, args.rows);
        const Division shares = divide_tiles(context.device, next->layout, its);
        p.next_w = static_cast<const uint8_t*>(next->data);
        p.next_chunk_bytes = static_cast<int32_t>(next->layout.units() * next->layout.unit_bytes()) * its.groups;
        p.next_each = shares.each, p.next_longer = shares.longer;
        p.next_grid = shares.grid - (next->layout.tiles() % its.groups ? 1 : 0);  // the last share may be shorter than a chunk
    }
    p.w = static_cast<const uint8_t*>(weight.data);
    p.each = division.each, p.longer = division.longer;
    p.units = static_cast<int32_t>(layout.units()), p.unit_bytes = static_cast<int32_t>(layout.unit_bytes());
    p.tile_bytes = p.units * p.unit_bytes;
    p.warps = plan.warps, p.groups = plan.groups, p.slots = plan.slots, p.steps = plan.steps;
    p.tiles = static_cast<int32_t>(layout.tiles());
    p.window = tuning.window ? tuning.window : 3;
    p.first_window = tuning.first_window ? tuning.first_window : std::min(2, p.window);
    p.x = args.x, p.ldx = args.ldx, p.in = static_cast<int32_t>(dense_pitch(layout.in)), p.rows = args.rows;
    p.norm_weight = args.norm_weight, p.eps = args.norm_eps, p.inverse_in = 1.0f / static_cast<float>(layout.in);
    p.plus_one = args.norm_plus_one;
    p.output = output_of(args, layout.out, layout.gated);
    return launch(context, plan.variant->kernel, dim3(static_cast<unsigned>(division.grid)), (plan.warps * plan.groups + 1) * 32,
                  plan.shared_bytes, p);
}

}  // namespace awq::cuda
