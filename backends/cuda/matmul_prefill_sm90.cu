// y = x W^T for more rows of x than decode takes, on Hopper: wgmma with int4 weights dequantised in registers. sm_90a only.
//
// The product is computed as Y^T = W X^T: a CTA makes 128 rows of W times `TN` tokens, of a width that wastes little of the last
// block and of the last wave (32 to 256 tokens; plan_prefill). W comes as packed units through a ring
// of bulk copies, is turned into A fragments in registers (exact q - z, one rounding by the scale) and multiplied with
// X tiles that the tensor copy engine puts into a second ring. One producer warp for each ring, two consumer warpgroups
// of 64 rows. While the wgmmas of one span of 64 columns run, the next span is dequantised. A residual comes through the
// ring of X too, behind a block's last tile. In the variants with clusters two CTAs have neighbouring rows of W and the same
// tokens: each loads half of every tile of X, for both.
//
// CTAs are persistent. A schedule (choose_schedule) gives each whole output blocks first, then an equal share of the rest,
// cut along K. Who has the first part of a cut block owns it: the others leave partial sums in scratch, the owner adds
// them in order. Where every block is cut into equally many parts (few blocks), each part's CTA finishes a share of the
// tokens instead, so that the reduction is spread over all of them. Or the rest is not cut along K at all: behind the waves of blocks of
// 256 tokens come their halves of 128, where those fill a wave better.
#include "backends/cuda/matmul_prefill_sm90.cuh"

namespace awq::cuda {
namespace {

using namespace sm90;

constexpr int most_parts = 8;
// Clusters load less through the second-level cache, which counts where the card is at its power limit. With fewer rows a kernel of
// clusters among others costs more than that.
constexpr int least_rows_of_clusters = 1000;

struct Params : Product {
    float4* partials;
    uint32_t* flags;
    int token_blocks;
    int box_rows, last_rows;  // of the boxes in which X is loaded, and of the one where it ends
    int residual_rows;        // of the boxes of the residual
    int raster;             // token blocks that go along the rows together
    int workers;            // clusters that work
    int full_waves, parts;  // whole blocks for each worker; 2, 3, 4 or most_parts: equal parts of a block
};

struct Block {
    int row, token;
};
[[maybe_unused]] __device__ __forceinline__ Block block_place(const Params& p, int block) {
    int band = block / (p.raster * p.row_blocks), rest = block - band * p.raster * p.row_blocks;
    int width = min(p.raster, p.token_blocks - band * p.raster);
    return {rest / width, band * p.raster + rest % width};
}

// A CTA's work: output blocks, with a range of units each. Halves: what the full waves leave comes as blocks of half as many tokens.
template <bool Halves>
struct Schedule {
    const Params& p;
    int worker, workers, units, blocks, full, waves, at, end, base;
    int64_t share;  // units behind the full waves
    int block = 0, first = 0, last = 0;
    int half = -1;  // 0, 1: of the block's tokens, where it is halved
    __device__ Schedule(const Params& p, int worker, int workers) : p(p), worker(worker), workers(workers), units(p.units) {
        blocks = p.row_blocks * p.token_blocks;
        waves = p.full_waves, full = 0, base = waves * workers;
        share = base < blocks ? static_cast<int64_t>(blocks - base) * units : 0;
        if (Halves)
            at = worker, end = 2 * (blocks - base);
        else
            at = begin_of(worker), end = begin_of(worker + 1);
    }
    __device__ int begin_of(int w) const { return static_cast<int>(share * w / workers); }
    __device__ int worker_at(int64_t unit) const { return static_cast<int>(((unit + 1) * workers - 1) / share); }
    __device__ bool next() {
        while (full < waves) {
            block = full++ * workers + worker;
            if (block < blocks) {
                first = 0, last = units;
                return true;
            }
        }
        if constexpr (Halves) {
            first = 0, last = units;
            while (at < end) {
                block = base + at / 2, half = at % 2, at += workers;
                if ((block_place(p, block).token * 2 + half) * p.box_rows < p.output.rows) return true;  // else it lies outside of X
            }
            return false;
        } else {
            if (at >= end) return false;
            block = base + at / units;
            first = at % units;
            last = min(first + end - at, units);
            at += last - first;
            return true;
        }
    }
};

// A box of X from `token` on: no rows where it lies outside, and those that there are where X ends.
struct Box {
    const CUtensorMap* map;
    int bytes;
};
[[maybe_unused]] __device__ __forceinline__ Box box_at(const Params& p, const CUtensorMap& map, const CUtensorMap& last_map, int token) {
    const int left = p.output.rows - token;
    return left >= p.box_rows ? Box{&map, p.box_rows * 128} : Box{&last_map, left > 0 ? p.last_rows * 128 : 0};
}
// The CTA finishes the block (or its part of the tokens), and there is a residual.
template <bool Halves>
__device__ __forceinline__ bool adds(const Params& p, const Schedule<Halves>& schedule) {
    return p.output.residual && (schedule.first == 0 || p.parts > 0);
}

[[maybe_unused]] __device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

// What this warp's d lacks of the octets j with j % Parts == part: the other parts' sums, all asked for before the first is used.
// partial_of(part): a lane's place in what a part has left, octet by octet, 128 float4 apart.
template <int Parts, int TN, class PartialOf>
__device__ __forceinline__ void add_parts(float (&d)[TN / 2], int part, const PartialOf& partial_of) {
    constexpr int octets = TN / 8, most = (octets + Parts - 1) / Parts;
    constexpr int together = TN <= 128 ? Parts - 1 : 1, batch = TN <= 128 ? most : 2;  // as registers allow
#pragma unroll
    for (int first = 0; first < Parts - 1; first += together)
#pragma unroll
        for (int at = 0; at < most; at += batch) {
            float4 v[together][batch];
#pragma unroll
            for (int i = 0; i < together; i++) {
                const float4* from = partial_of(first + i + (first + i >= part));
#pragma unroll
                for (int k = at; k < at + batch && k < most; k++)
                    if (octets % Parts == 0 || part + k * Parts < octets) v[i][k - at] = __ldcg(from + (part + k * Parts) * 128);
            }
#pragma unroll
            for (int j = at * Parts; j < (at + batch) * Parts && j < octets; j++)
                if (j % Parts == part)
#pragma unroll
                    for (int i = 0; i < together; i++) add(d + 4 * j, v[i][j / Parts - at]);
        }
}

// Groups: 2 for 128 columns a group; 8 serves every size. Halves: of blocks, behind the full waves, and no parts along K.
template <int TN, int Groups, bool IntegerZeros, int Cluster, bool Halves>
__global__ void __launch_bounds__(threads, 1)
    prefill_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap last_map,
                   const __grid_constant__ CUtensorMap residual_map, const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int octets = TN / 8, spans = slot_spans(TN), tile_bytes = TN * 128, x_bytes = spans * tile_bytes;
    // Every slot of X is two boxes then: half as many tokens of one tile, or of two.
    static_assert(!Halves || (Cluster == 1 && slot_spans(TN) == 1 && slot_spans(TN / 2) == 2));
    extern __shared__ uint8_t raw[];
    __shared__ __align__(16) uint64_t barriers[4 * max_slots];
    const Rings rings(raw, barriers, p, x_bytes);
    const int warpgroup = static_cast<int>(threadIdx.x) >> 7, tid = static_cast<int>(threadIdx.x) & 127;
    const int warp = tid >> 5, lane = tid & 31;

    pdl_trigger();
    rings.init(p, Cluster);
    if constexpr (Cluster == 1)
        __syncthreads();
    else
        cluster_sync();
    const int rank = Cluster == 1 ? 0 : static_cast<int>(cluster_rank());
    Schedule<Halves> schedule(p, static_cast<int>(blockIdx.x) / Cluster, p.workers);

    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0) {  // W: does not depend on the kernel before
            // Read once, or by blocks of other tokens at about the same time.
            const uint64_t policy = p.token_blocks == 1 ? stream_policy() : keep_policy();
            Ring ring(p.w_slots, 1);
            while (schedule.next())
                send_units(rings, ring, p, p.w, (block_place(p, schedule.block).row * Cluster + rank) * block_tiles, lane,
                           schedule.first, schedule.last - schedule.first, policy);
        } else if (warp == 1 && lane == 0) {  // X; behind a block's last tile the residual: 64 columns for either warpgroup
            if (p.output.rows >= p.box_rows) asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
            if (p.last_rows > 0) asm volatile("prefetch.tensormap [%0];" ::"l"(&last_map) : "memory");
            pdl_wait();
            Ring ring(p.x_slots, 1);
            while (schedule.next()) {
                const Block place = block_place(p, schedule.block);
                int token = place.token * TN;
                int column = (place.row * Cluster + rank) * block_tiles * tile_rows;
                auto begin_slot = [&](int bytes) {
                    barrier_wait(rings.x_empty + 8 * ring.slot, ring.phase);
                    barrier_expect(rings.x_full + 8 * ring.slot, bytes);
                };
                if constexpr (Halves) {
                    token += max(schedule.half, 0) * (TN / 2);
                    const int tiles = schedule.half < 0 ? 1 : 2;  // of a slot
                    auto load_slot = [&](const Box& left, const Box& right, int at) {
                        const uint32_t to = rings.x + ring.slot * x_bytes, bar = rings.x_full + 8 * ring.slot;
                        begin_slot(left.bytes + right.bytes);
                        load_box(to, left.map, at, token, bar);
                        if (right.bytes > 0)
                            load_box(to + x_bytes / 2, right.map, at + (tiles - 1) * 64, token + (2 - tiles) * (TN / 2), bar);
                        ring.next();
                    };
                    const Box left = box_at(p, map, last_map, token), right = tiles == 2 ? left : box_at(p, map, last_map, token + TN / 2);
                    for (int span = 0; span < p.units * 4; span += tiles) load_slot(left, right, span * 64);
                    const Box whole = {&residual_map, p.residual_rows * 128};
                    for (int i = 0; p.output.residual && i < 2; i += tiles) load_slot(whole, whole, column + i * 64);
                } else {
                    // Each CTA of a cluster loads its share of the tokens, for all.
                    constexpr int share = TN / Cluster;
                    const Box box = box_at(p, map, last_map, token + rank * share);
                    const int tile = Cluster == 1 ? box.bytes
                                                  : box_at(p, map, last_map, token).bytes + box_at(p, map, last_map, token + share).bytes;
                    for (int span = schedule.first * 4; span < schedule.last * 4; ring.next()) {
                        begin_slot(spans * tile);
                        uint32_t to = rings.x + ring.slot * x_bytes;
                        for (int i = 0; i < spans; i++, span++, to += tile_bytes) {
                            if constexpr (Cluster == 1)
                                load_box(to, box.map, span * 64, token, rings.x_full + 8 * ring.slot);
                            else if (box.bytes > 0)
                                load_tile_to_all(to + rank * (share * 128), box.map, span * 64, token + rank * share,
                                                 rings.x_full + 8 * ring.slot, Cluster);
                        }
                    }
                    if (!adds(p, schedule)) continue;
                    constexpr int tiles = residual_tiles(TN);
                    for (int slot = 0; slot < 2 / tiles; slot++, ring.next()) {
                        begin_slot(tiles * Cluster * p.residual_rows * 128);
                        for (int i = 0; i < tiles; i++, column += 64)
                            for (int part = 0; part < Cluster; part++)
                                load_box(rings.x + ring.slot * x_bytes + i * tile_bytes + part * (share * 128), &residual_map, column,
                                         token + part * share, rings.x_full + 8 * ring.slot);
                    }
                }
            }
        }
        if constexpr (Cluster > 1) cluster_sync();
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group_index = warpgroup - 1, my_tile = group_index * 4 + warp;
    Ring wr(p.w_slots, 0), xr(p.x_slots, 0);
    bool waited = false;
    // The sums of T tokens over the block's units.
    auto multiply = [&]<int T>(float(&d)[T / 2], std::integral_constant<int, T>) {
#pragma unroll
        for (float& sum : d) sum = 0.0f;
        multiply_units<T, Groups, IntegerZeros, Cluster, slot_spans(T)>(d, rings, wr, xr, p, my_tile, lane, schedule.first,
                                                                       schedule.last);
        if (!waited) {
            pdl_wait();
            waited = true;
        }
    };
    // The octets of tokens in `mine`, of T from `token` on, to y, with the residual's tiles.
    auto store = [&]<int T>(const float(&d)[T / 2], int row, int token, uint32_t mine, std::integral_constant<int, T>) {
        constexpr int tiles = residual_tiles(T);
        const bool residual = adds(p, schedule);
        Ring residuals = xr;
        uint32_t residual_at = 0;
        for (int i = 0; residual && i < 2 / tiles; i++, xr.next()) {
            barrier_wait(rings.x_full + 8 * xr.slot, xr.phase);
            if (tiles == 2 || i == group_index)
                residual_at = rings.x + xr.slot * x_bytes + (tiles == 2 ? group_index * (T * 128) : 0);
        }
        store_block<T, false>(p, (row * Cluster + rank) * block_tiles + my_tile, token, p.output.rows, mine, d, residual_at);
        if (residual) __syncwarp();
        for (int i = 0; residual && i < 2 / tiles; i++, residuals.next()) rings.release_x<Cluster>(residuals.slot, lane);
    };
    while (schedule.next()) {
        const Block place = block_place(p, schedule.block);
        constexpr std::integral_constant<int, TN> all;
        if constexpr (Halves) {
            auto run = [&]<int T>(std::integral_constant<int, T> tokens) {
                float d[T / 2];
                multiply(d, tokens);
                store(d, place.row, place.token * TN + max(schedule.half, 0) * T, ~0u, tokens);
            };
            if (schedule.half < 0)
                run(all);
            else
                run(std::integral_constant<int, TN / 2>());
            continue;
        }
        float d[TN / 2];
        multiply(d, all);
        // Sums that belong together. `mine`: the octets of tokens that this CTA finishes.
        uint32_t mine = ~0u;
        const bool whole = schedule.last - schedule.first == p.units;
        const int local = schedule.block - schedule.base, me = schedule.worker;
        auto cta_of = [&](int worker) { return worker * Cluster + rank; };
        auto partial = [&](int worker) {
            return p.partials + (static_cast<int64_t>(cta_of(worker)) * 2 + group_index) * octets * 128 + tid;
        };
        auto leave = [&] {  // what others finish
            float4* to = partial(me);
#pragma unroll
            for (int j = 0; j < octets; j++)
                if (!(mine >> j & 1)) __stcg(to + j * 128, make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]));
        };
        if (whole) {
        } else if (p.parts > 0) {
            // The part's CTA finishes the octets j with j % parts == its part. Each warp needs the same warp's sums of the other parts,
            // and tells them by a flag for each.
            const int first = local * p.parts, part = me - first;
            mine = 0;
            for (int j = part; j < octets; j += p.parts) mine |= 1u << j;
            leave();
            __syncwarp();
            if (lane < p.parts && lane != part) {
                auto flag = [&](int to, int from) { return p.flags + (cta_of(first + to) * 8 + my_tile) * most_parts + from; };
                store_release(flag(lane, part), 1);
                take_flag(flag(part, lane));
            }
            __syncwarp();
            auto partial_of = [&](int other) { return partial(first + other); };
            if (p.parts == 2)
                add_parts<2, TN>(d, part, partial_of);
            else if (p.parts == 3)
                add_parts<3, TN>(d, part, partial_of);
            else if (p.parts == 4)
                add_parts<4, TN>(d, part, partial_of);
            else
                add_parts<most_parts, TN>(d, part, partial_of);
        } else if (schedule.first > 0) {
            mine = 0;
            leave();
            group_sync(warpgroup);
            if (tid == 0) store_release(p.flags + cta_of(me) * 2 + group_index, 1);
            continue;
        } else {  // the owner
            const int last_worker = schedule.worker_at(static_cast<int64_t>(local + 1) * p.units - 1);
            for (int w = me + 1; w <= last_worker; w++) {
                if (tid == 0) take_flag(p.flags + cta_of(w) * 2 + group_index);
                group_sync(warpgroup);
                constexpr int batch = TN > 128 ? 2 : octets % 8 == 0 ? 8 : 4;
                const float4* from = partial(w);
#pragma unroll
                for (int j = 0; j < octets; j += batch) {
                    float4 v[batch];
#pragma unroll
                    for (int i = 0; i < batch; i++) v[i] = __ldcg(from + (j + i) * 128);
#pragma unroll
                    for (int i = 0; i < batch; i++) add(d + 4 * (j + i), v[i]);
                }
            }
        }
        store(d, place.row, place.token * TN, mine, all);
    }
    if constexpr (Cluster > 1) cluster_sync();  // a CTA's shared memory is written and its barriers are used by the other one
#endif
}

using PrefillKernel = void (*)(CUtensorMap, CUtensorMap, CUtensorMap, Params);
struct Variant {
    int tokens, groups;  // groups 8: any
    bool integer_zeros;
    int cluster;
    bool halves;
    PrefillKernel kernel;
};
template <int TN, int Groups, bool IntegerZeros, int Cluster = 1, bool Halves = false>
constexpr Variant variant() {
    return {TN, Groups, IntegerZeros, Cluster, Halves, prefill_kernel<TN, Groups, IntegerZeros, Cluster, Halves>};
}
const Variant variants[] = {
    variant<32, 2, true>(),  variant<64, 2, true>(),  variant<96, 2, true>(),  variant<128, 2, true>(),  variant<160, 2, true>(),  variant<192, 2, true>(),
    variant<224, 2, true>(), variant<256, 2, true>(), variant<256, 2, true, 2>(), variant<256, 2, true, 1, true>(),
    variant<32, 8, true>(),  variant<64, 8, true>(),  variant<96, 8, true>(),  variant<128, 8, true>(),  variant<160, 8, true>(),  variant<192, 8, true>(),
    variant<224, 8, true>(), variant<256, 8, true>(), variant<256, 8, true, 2>(), variant<256, 8, true, 1, true>(),
    variant<32, 8, false>(), variant<64, 8, false>(), variant<96, 8, false>(), variant<128, 8, false>(), variant<160, 8, false>(), variant<192, 8, false>(),
    variant<224, 8, false>(), variant<256, 8, false>(),
};

// How blocks are given to CTAs. 0: whole blocks only; 1: all blocks cut into equal shares; 2: whole waves but one, the rest in
// equal shares; 3: all whole waves, the rest likewise; 4: every block in equally many parts; 5: all whole waves, the rest in halves.
struct ScheduleChoice {
    int workers = 0, waves = 0, parts = 0;
    bool possible = false;
};
ScheduleChoice choose_schedule(int kind, int blocks, int units, int workers) {
    ScheduleChoice c;
    c.workers = workers;
    if (kind == 0) {
        c.workers = std::min(workers, blocks);
        c.waves = (blocks + workers - 1) / workers;
        c.possible = true;
    } else if (kind == 4) {
        c.parts = std::min(workers / blocks, units);
        c.parts = c.parts >= most_parts ? most_parts : std::min(c.parts, 4);
        c.workers = blocks * c.parts;
        c.possible = c.parts >= 2;
    } else if (kind == 5) {
        c.waves = blocks / workers;
        c.possible = c.waves > 0 && blocks % workers != 0;
    } else {
        c.waves = kind == 1 ? 0 : blocks / workers - (3 - kind);
        c.possible = blocks % workers != 0 && blocks - c.waves * workers < 2 * workers && c.waves >= 0 &&
                     (kind == 1 || c.waves > 0) && static_cast<int64_t>(blocks - c.waves * workers) * units >= workers;
    }
    return c;
}

struct PrefillPlan {
    const Variant* variant = nullptr;
    ScheduleChoice schedule;
};

// What a schedule costs, in microseconds, fitted to bursts of single products on an H100 (docs/experiments.md): a CTA's time for one unit
// (128 rows x 256 columns) at this many tokens and for the start and end of a block, and what it costs to cut blocks along K, in
// equal parts (the launch and the block's start and end included) or in equal shares. idle: what is left of a unit's time where few
// multiprocessors work.
struct Cost {
    double unit, block, parts, shares, idle;
};
const Cost costs[] = {
    {0.73, 1.0, 6.0, 4.0, 0.92},   // 32 tokens
    {0.935, 1.0, 6.0, 5.0, 0.92},  // 64, and so on
    {1.17, 1.5, 6.5, 5.0, 0.88},  {1.40, 2.0, 7.0, 5.0, 0.86},  {1.67, 2.5, 8.0, 5.8, 0.86},
    {1.94, 3.0, 9.0, 6.5, 0.86},  {2.25, 3.5, 10.0, 7.2, 0.86}, {2.55, 4.0, 11.0, 8.0, 0.86},
};
constexpr Cost cluster_cost = {2.50, 4.0, 18.0, 6.0, 0.86};  // 256 tokens
Cost cost_of(int tokens, int cluster) { return cluster == 1 ? costs[tokens / 32 - 1] : cluster_cost; }
// Of whole blocks, each of so many units. The last wave's are faster where it is not full.
double time_of(const Cost& c, int blocks, int workers, int units) {
    const int waves = (blocks + workers - 1) / workers;
    const double busy = static_cast<double>(blocks - (waves - 1) * workers) / workers;
    return waves * c.block + units * c.unit * (waves - 1 + std::max(c.idle, 1.0 - 0.4 * (1.0 - busy)));
}

// Of one of this kind. workers: those there are; c.workers of them work.
double schedule_cost(const Variant& v, int kind, const ScheduleChoice& c, int blocks, int units, int rows, int workers) {
    const Cost one = cost_of(v.tokens, v.cluster);
    const double launch = v.cluster == 1 ? 2.5 : 6.0;
    if (kind == 0) return launch + time_of(one, blocks, workers, units);
    if (kind == 4) return time_of(one, c.workers, workers, (units + c.parts - 1) / c.parts) - one.block + one.parts;
    if (kind == 5)
        return launch + c.waves * (units * one.unit + one.block) +
               time_of(cost_of(v.tokens / 2, 1), 2 * (blocks % workers), workers, units);
    // Shares leave the CTAs at different columns: what they do not find in the second-level cache is more where X is larger.
    // And where there are fewer blocks than workers, who owns a block adds up the sums of several.
    const double x_mb = static_cast<double>(units) * unit_columns * rows * 2e-6, workers_each = static_cast<double>(workers) / blocks;
    return launch + blocks * (units * one.unit + one.block) / workers + one.shares + std::max(0.0, x_mb - 8.0) / v.cluster +
           std::max(0.0, workers_each - 1.0) * v.tokens / 140.0;
}

PrefillPlan plan_prefill(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    const int units = static_cast<int>(layout.units()),
              row_blocks = static_cast<int>((layout.tiles() + block_tiles - 1) / block_tiles);
    const int groups = variant_groups(layout);
    PrefillPlan best;
    double best_cost = 1e30;
    for (const Variant& v : variants) {
        if (v.integer_zeros != layout.integer_zeros || v.groups != groups) continue;
        if (tuning.tokens && v.tokens != tuning.tokens) continue;
        if (tuning.cluster && v.cluster != tuning.cluster) continue;
        if (row_blocks % v.cluster || (v.cluster > 1 && !tuning.cluster && rows < least_rows_of_clusters)) continue;
        const int workers = v.cluster == 1 ? device.sm_count : device.cluster_pairs;
        if (workers == 0) continue;
        const int token_blocks = (rows + v.tokens - 1) / v.tokens, blocks = row_blocks / v.cluster * token_blocks;
        for (int kind = 0; kind < 6; kind++) {
            if ((kind == 5) != v.halves || (tuning.schedule >= 0 && kind != tuning.schedule)) continue;
            ScheduleChoice c = choose_schedule(kind, blocks, units, workers);
            // A flag of each warp for every part, or two of a CTA; sums of a block for each CTA.
            const int64_t ctas = static_cast<int64_t>(c.workers) * v.cluster;
            if (!c.possible || ctas * block_tiles * most_parts > counter_count ||
                ctas * block_tiles * tile_rows * v.tokens * static_cast<int>(sizeof(float)) > partial_bytes)
                continue;
            const double cost = schedule_cost(v, kind, c, blocks, units, rows, workers);
            if (cost < best_cost) best_cost = cost, best = {&v, c};
        }
    }
    return best;
}

}  // namespace

cudaError_t open_prefill(MatmulDevice* device) {
    if (device->arch != 90) return cudaSuccess;
    for (const Variant& v : variants) {
        if (cudaError_t error = allow_shared(v.kernel, shared_limit)) return error;
        if (v.cluster == 1 || device->sm_count < v.cluster) continue;
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {static_cast<unsigned>(v.cluster), 1, 1};
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(static_cast<unsigned>(device->sm_count / v.cluster * v.cluster)), config.blockDim = dim3(threads);
        config.dynamicSmemBytes = shared_limit;
        config.attrs = &attribute, config.numAttrs = 1;
        if (cudaError_t error = cudaOccupancyMaxActiveClusters(&device->cluster_pairs, v.kernel, &config)) return error;
    }
    return cudaSuccess;
}

bool prefill_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args) {
    return wgmma_fits(device, layout, args) && rows_aligned(args.x, args.ldx) &&
           (!args.residual || rows_aligned(args.residual, args.ld_residual)) &&
           plan_prefill(device, layout, args.rows).variant != nullptr;
}

cudaError_t prefill_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const PrefillPlan plan = plan_prefill(context.device, weight.layout, args.rows);
    const int tokens = plan.variant->tokens, cluster = plan.variant->cluster;
    const int box_rows = plan.variant->halves ? tokens / 2 : tokens / cluster, last_rows = box_rows_of(args.rows % box_rows, box_rows),
              residual_rows = box_rows_of(args.rows, box_rows);
    CUtensorMap map = {}, last_map = {}, residual_map = {};
    auto map_x = [&](int rows, CUtensorMap* to) {
        return rows > 0 ? map_rows(context.device, args.x, weight.layout.in, args.rows, args.ldx, rows, to) : cudaSuccess;
    };
    if (cudaError_t error = map_x(args.rows >= box_rows ? box_rows : 0, &map)) return error;
    if (cudaError_t error = map_x(last_rows, &last_map)) return error;
    if (args.residual)
        if (cudaError_t error = map_rows(context.device, args.residual, weight.layout.out, args.rows, args.ld_residual, residual_rows,
                                         &residual_map))
            return error;
    Scratch scratch = scratch_of(context);
    Params p;
    static_cast<Product&>(p) = product_of(weight, args);
    p.partials = scratch.partials, p.flags = scratch.counters;
    p.row_blocks /= cluster;
    p.box_rows = box_rows, p.last_rows = last_rows, p.residual_rows = residual_rows;
    p.token_blocks = (args.rows + tokens - 1) / tokens;
    p.raster = std::min(p.token_blocks, 2048 / tokens);
    p.workers = plan.schedule.workers;
    p.full_waves = plan.schedule.waves, p.parts = plan.schedule.parts;
    // Shared memory: 1024 bytes for alignment, then the rings.
    // A consumer gives a slot of X back behind the first products of the next: there are two at least.
    const int limit = shared_limit - 1024, w_bytes = block_tiles * p.unit_bytes, x_bytes = tokens * 128 * slot_spans(tokens);
    p.w_slots = tokens == 32 ? 8 : tokens == 64 ? 5 : 3;
    while (limit - p.w_slots * w_bytes < std::max(2, 4 / slot_spans(tokens)) * x_bytes) p.w_slots--;
    p.x_slots = std::min(max_slots, (limit - p.w_slots * w_bytes) / x_bytes);
    const int shared_bytes = 1024 + p.w_slots * w_bytes + p.x_slots * x_bytes;
    return launch_clusters(context, plan.variant->kernel, cluster > 1 ? cluster : 0, dim3(static_cast<unsigned>(p.workers * cluster)), threads,
                           shared_bytes, map, last_map, residual_map, p);
}

}  // namespace awq::cuda
