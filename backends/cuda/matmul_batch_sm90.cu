// y = x W^T for the rows of a small batch (9 to 32) on Hopper, int4 weights dequantised in registers: up to 16 rows by mma.sync,
// which is faster there, then by wgmma. sm_90a only.
//
// A CTA takes up to 16 tiles of W at once, so that x is read from L2 few times. Where a matrix has few tiles, two CTAs of a
// cluster share them and cut K; with four tiles or fewer the two warpgroups of a CTA cut K once more. The sums that belong
// together meet in shared memory: each part sends what others finish (octets of tokens, dealt out) straight to their CTA, which
// is told by an mbarrier. Nothing waits for a CTA outside of its cluster.
//
// One CTA an SM: a producer warp for units of W through a ring of bulk copies (before the dependency wait: weights depend on
// nothing, but no more than `window` slots on their way, or x queues behind them), one for x through the tensor copy engine,
// two consumer warpgroups.
#include "backends/cuda/matmul_prefill_sm90.cuh"

namespace awq::cuda {
namespace {

using namespace sm90;

constexpr int most_tokens = 32, most_tiles = 16;  // of a CTA
constexpr int x_columns = 128;                    // of a slot of x
constexpr int batch_limit = shared_limit - 128;   // of shared memory, for rings and sums

struct Params : Product {
    int each, longer;  // tiles of a cluster; the first `longer` have one more
    int pass;          // tiles that a CTA takes at once
    int cluster;       // CTAs that cut K
    int k_groups;      // 2: the warpgroups take units in turn; 1: they share the tiles
    int window, first_window;
    int join_octets;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ uint32_t address_in(uint32_t shared, int rank) {
    uint32_t at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared), "r"(rank));
    return at;
}
__device__ __forceinline__ void store_shared4(uint32_t to, const float* v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}
// Four floats to shared memory of a CTA of the cluster, counted on a barrier beside them.
__device__ __forceinline__ void send4(uint32_t to, const float* v, uint32_t bar) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "r"(__float_as_uint(v[0])), "r"(__float_as_uint(v[1])), "r"(__float_as_uint(v[2])), "r"(__float_as_uint(v[3])),
                 "r"(bar)
                 : "memory");
}
__device__ __forceinline__ void cluster_barrier_wait(uint32_t bar, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nWAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra "
        "WAIT;\n}" ::"r"(bar),
        "r"(parity)
        : "memory");
}

// A CTA's share: tiles in passes, and units of K.
struct Share {
    int first_tile, tiles, first_unit, units;
    __device__ __forceinline__ Share(const Params& p, int rank) {
        const int cluster = static_cast<int>(blockIdx.x) / p.cluster;
        first_tile = cluster * p.each + min(cluster, p.longer);
        tiles = p.each + (cluster < p.longer);
        first_unit = p.units * rank / p.cluster;
        units = p.units * (rank + 1) / p.cluster - first_unit;
    }
};

struct Slots {
    uint32_t x, w, sums, w_full, w_empty, x_full, x_empty, join;
    int w_bytes, x_bytes;
};

__device__ __forceinline__ void send_weights(const Params& p, const Share& share, const Slots& s, int lane) {
    const uint64_t policy = stream_policy();
    Ring ring(p.w_slots, 1), landed(p.w_slots, 0);
    int on_way = 0, window = p.first_window;
    for (int pass = 0; pass < share.tiles; pass += p.pass) {
        const int tiles = min(p.pass, share.tiles - pass);
        const uint8_t* from =
            p.w + (static_cast<int64_t>(share.first_tile + pass + lane) * p.units + share.first_unit) * p.unit_bytes;
        for (int unit = 0; unit < share.units; unit += p.k_groups) {
            const int bytes = min(p.k_groups, share.units - unit) * p.unit_bytes;
            barrier_wait(s.w_empty + 8 * ring.slot, ring.phase);
            if (window != p.window && barrier_passed(s.x_full, 0)) window = p.window;
            while (on_way >= window) {
                barrier_wait(s.w_full + 8 * landed.slot, landed.phase);
                landed.next();
                on_way--;
            }
            if (lane == 0) barrier_expect(s.w_full + 8 * ring.slot, static_cast<uint32_t>(tiles * bytes));
            __syncwarp();
            if (lane < tiles)
                bulk_copy(s.w + ring.slot * s.w_bytes + lane * p.k_groups * p.unit_bytes, from, static_cast<uint32_t>(bytes),
                          s.w_full + 8 * ring.slot, policy);
            from += bytes;
            on_way++;
            ring.next();
        }
    }
}

// One lane. Where the warpgroups take units in turn, so do their slots.
template <int TN>
__device__ __forceinline__ void send_x(const Params& p, const Share& share, const Slots& s, const CUtensorMap* map) {
    Ring ring(p.x_slots, 1);
    for (int pass = 0; pass < share.tiles; pass += p.pass)
        for (int unit = 0; unit < share.units; unit += p.k_groups)
            for (int half = 0; half < unit_columns; half += x_columns)
                for (int group = 0; group < p.k_groups; group++, ring.next()) {
                    if (unit + group >= share.units) continue;
                    const int column = (share.first_unit + unit + group) * unit_columns + half;
                    const uint32_t bar = s.x_full + 8 * ring.slot, to = s.x + ring.slot * s.x_bytes;
                    barrier_wait(s.x_empty + 8 * ring.slot, ring.phase);
                    barrier_expect(bar, TN * x_columns * 2);
                    load_tile(to, map, column, 0, bar);
                    load_tile(to + TN * 128, map, column + 64, 0, bar);
                }
}

// A unit of a tile in a warp's registers. Groups 8: any size, whose scales stay in shared memory.
template <int Groups, bool IntegerZeros>
struct Unit {
    uint4 words[4];
    uint32_t scales[2], zeros[2];
    __device__ __forceinline__ void load(uint32_t at, int lane) {
#pragma unroll
        for (int span = 0; span < 4; span++) words[span] = load_shared16(at + span * 512 + lane * 16);
        if constexpr (Groups == 2) {
            const int g = lane >> 2;
#pragma unroll
            for (int group = 0; group < 2; group++) {
                scales[group] = load_shared4(at + 2048 + group * 32 + g * 4);
                zeros[group] = IntegerZeros ? load_shared2(at + 2048 + 64 + group * 16 + g * 2)
                                            : load_shared4(at + 2048 + 64 + group * 32 + g * 4);
            }
        }
    }
};

// As multiply() below, by mma.sync: a fragment of x serves the tiles of all blocks.
template <int TN, int Blocks, int Count, int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply_sync(float (&d)[Blocks][TN / 2], const int (&tile)[Blocks], const Params& p,
                                              const Slots& s, Ring& wr, Ring& xr, int units, int group, int lane) {
    static_assert(Groups == 2);
    // ldmatrix: the lanes of a quarter warp give the rows of one 8 x 8 block: 8 tokens, 8 columns; quarters 0, 1 are the 16
    // columns of a step for one octet of tokens, 2, 3 for the next. The copy engine has exchanged 16-byte pieces by the row
    // (128-byte swizzle).
    const int row = (lane & 7) + (lane >> 4) * 8, piece = lane >> 3 & 1;
    const bool turns = p.k_groups == 2;
    for (int unit = turns ? group : 0; unit < units; unit += p.k_groups) {
        barrier_wait(s.w_full + 8 * wr.slot, wr.phase);
        const uint32_t slot = s.w + wr.slot * s.w_bytes + (turns ? group * p.unit_bytes : 0);
        Unit<Groups, IntegerZeros> in[Count];
#pragma unroll
        for (int b = 0; b < Count; b++) in[b].load(slot + max(tile[b], 0) * p.k_groups * p.unit_bytes, lane);
        barrier_arrive(s.w_empty + 8 * wr.slot);  // each lane for itself: see matmul_prefill_sm90.cuh
        wr.next();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            GroupMeta<IntegerZeros> meta[Count];
#pragma unroll
            for (int b = 0; b < Count; b++) meta[b].set(in[b].scales[half], in[b].zeros[half]);
            barrier_wait(s.x_full + 8 * xr.slot, xr.phase);
            const uint32_t x = s.x + xr.slot * s.x_bytes + row * 128;
#pragma unroll
            for (int step = 0; step < 8; step++) {
                uint32_t fragment[TN / 16][4];
#pragma unroll
                for (int j = 0; j < TN / 16; j++)
                    ldmatrix4(fragment[j], x + step / 4 * TN * 128 + j * 16 * 128 + (((step % 4 * 2 + piece) ^ (row & 7)) << 4));
#pragma unroll
                for (int b = 0; b < Count; b++) {
                    const uint4& span = in[b].words[half * 2 + step / 4];
                    uint32_t a[4];
                    dequantize<IntegerZeros>(a,
                                             step % 4 == 0   ? span.x
                                             : step % 4 == 1 ? span.y
                                             : step % 4 == 2 ? span.z
                                                             : span.w,
                                             meta[b]);
#pragma unroll
                    for (int j = 0; j < TN / 8; j++)
                        mma(reinterpret_cast<float(&)[4]>(d[b][4 * j]), a, fragment[j / 2][j % 2 * 2],
                            fragment[j / 2][j % 2 * 2 + 1]);
                }
            }
            barrier_arrive(s.x_empty + 8 * xr.slot);
            xr.next();
            if (turns) xr.next();
        }
    }
}

// A warp's part of `Count` blocks of four tiles: d[b] += its tile of block b times TN tokens, over the units that its warpgroup
// takes in one pass. tile[b]: place in a slot of W, negative: none. While the wgmmas of one span of 64 columns of one tile run,
// the next is dequantised.
template <int TN, int Blocks, int Count, int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply(float (&d)[Blocks][TN / 2], const int (&tile)[Blocks], const Params& p, const Slots& s,
                                         Ring& wr, Ring& xr, int units, int group, int lane) {
    const int group_shift = p.group == 128 ? 2 : p.group == 64 ? 1 : 0;  // of 32-column pieces
    const int groups = unit_columns / p.group, g = lane >> 2;
    const bool turns = p.k_groups == 2;
    int previous = -1;  // slot of x whose wgmmas may still run
    for (int unit = turns ? group : 0; unit < units; unit += p.k_groups) {
        barrier_wait(s.w_full + 8 * wr.slot, wr.phase);
        const uint32_t slot = s.w + wr.slot * s.w_bytes + (turns ? group * p.unit_bytes : 0);
        Unit<Groups, IntegerZeros> in[Count];
        uint32_t at[Count];
#pragma unroll
        for (int b = 0; b < Count; b++) {
            at[b] = slot + max(tile[b], 0) * p.k_groups * p.unit_bytes;
            in[b].load(at[b], lane);
        }
        auto release = [&] { barrier_arrive(s.w_empty + 8 * wr.slot); };
        if constexpr (Groups == 2) release();
#pragma unroll
        for (int span = 0; span < 4; span++) {
#pragma unroll
            for (int b = 0; b < Count; b++) {
                const uint4& words = in[b].words[span];
                GroupMeta<IntegerZeros> low, high;
                if constexpr (Groups == 2) {
                    low.set(in[b].scales[span / 2], in[b].zeros[span / 2]);
                    high = low;
                } else {
                    auto load_meta = [&](GroupMeta<IntegerZeros>& to, int index) {
                        to.set(load_shared4(at[b] + 2048 + index * 32 + g * 4),
                               IntegerZeros ? load_shared2(at[b] + 2048 + groups * 32 + index * 16 + g * 2)
                                            : load_shared4(at[b] + 2048 + groups * 32 + index * 32 + g * 4));
                    };
                    load_meta(low, (2 * span) >> group_shift);
                    load_meta(high, (2 * span + 1) >> group_shift);
                    if (span == 3 && b == Count - 1) release();
                }
                uint32_t a[4][4];
                dequantize<IntegerZeros>(a[0], words.x, low);
                dequantize<IntegerZeros>(a[1], words.y, low);
                dequantize<IntegerZeros>(a[2], words.z, high);
                dequantize<IntegerZeros>(a[3], words.w, high);
                if (span % 2 == 0 && b == 0) barrier_wait(s.x_full + 8 * xr.slot, xr.phase);
                const uint64_t x = wgmma_descriptor(s.x + xr.slot * s.x_bytes + span % 2 * TN * 128);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < 4; j++) Wgmma<TN>::run(d[b], a[j], x + 2 * j);
                wgmma_commit();
                wgmma_wait<1>();
                if (span % 2 == 0 && b == 0) {
                    if (previous >= 0) barrier_arrive(s.x_empty + 8 * previous);
                    previous = xr.slot;
                }
            }
            if (span % 2 == 1) {
                xr.next();
                if (turns) xr.next();
            }
        }
        wr.next();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int b = 0; b < Count; b++)
#pragma unroll
        for (int i = 0; i < TN / 2; i++) asm volatile("" : "+f"(d[b][i])::"memory");
    if (previous >= 0) barrier_arrive(s.x_empty + 8 * previous);
}
#endif

// Groups: 2 for 128 columns a group; 8 serves every size. Blocks: of 64 rows, of a warpgroup.
template <int TN, int Blocks, int Groups, bool IntegerZeros, bool Sync>
__global__ void __launch_bounds__(threads, 1)
    batch_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int octets = TN / 8;
    extern __shared__ uint8_t raw[];
    __shared__ __align__(16) uint64_t barriers[4 * max_slots + 2];
    const int warpgroup = static_cast<int>(threadIdx.x) >> 7, warp = static_cast<int>(threadIdx.x) >> 5 & 3,
              lane = static_cast<int>(threadIdx.x) & 31;
    const int rank = p.cluster > 1 ? cluster_rank() : 0;
    const Share share(p, rank);
    Slots s;
    s.w_bytes = p.pass * p.k_groups * p.unit_bytes, s.x_bytes = TN * x_columns * 2;
    s.x = (shared_address(raw) + 1023) & ~1023u;
    s.w = s.x + p.x_slots * s.x_bytes, s.sums = s.w + p.w_slots * s.w_bytes;
    s.w_full = shared_address(barriers), s.w_empty = s.w_full + 8 * max_slots;
    s.x_full = s.w_empty + 8 * max_slots, s.x_empty = s.x_full + 8 * max_slots, s.join = s.x_empty + 8 * max_slots;

    // K's parts: of the cluster's CTAs, and of a CTA's warpgroups. Part i finishes the octets of tokens j with j % parts == i.
    const int parts = p.cluster * p.k_groups;
    auto octets_of = [&](int part) { return (octets - 1 - part + parts) / parts; };
    auto tiles_of = [&](int group) {  // of a warpgroup in a pass of all tiles
        if (p.k_groups == 2) return share.tiles;
        int n = 0;
#pragma unroll
        for (int b = 0; b < Blocks; b++) n += min(max(share.tiles - (2 * b + group) * 4, 0), 4);
        return n;
    };

    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.w_slots; i++) {
            barrier_init(s.w_full + 8 * i, 1);
            barrier_init(s.w_empty + 8 * i, 8 * 32);
        }
        for (int i = 0; i < p.x_slots; i++) {
            barrier_init(s.x_full + 8 * i, 1);
            barrier_init(s.x_empty + 8 * i, static_cast<uint32_t>(8 / p.k_groups * 32));
        }
        for (int group = 0; group < 2; group++) barrier_init(s.join + 8 * group, 1);
        barrier_init_done();
        for (int group = 0; group < 2 && p.cluster > 1; group++) {
            const int part = p.k_groups == 2 ? rank * 2 + group : rank;
            barrier_expect(s.join + 8 * group, static_cast<uint32_t>((parts - 1) * tiles_of(group) * octets_of(part) * 512));
        }
    }
    __syncthreads();
    if (p.cluster > 1) cluster_arrive();

    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0) {
            send_weights(p, share, s, lane);
        } else if (warp == 1 && lane == 0) {
            asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
            pdl_wait();
            send_x<TN>(p, share, s, &map);
        }
        __syncwarp();
        if (p.cluster > 1) cluster_wait();
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = warpgroup - 1;
    Ring wr(p.w_slots, 0), xr(p.x_slots, 0);
    if (p.k_groups == 2 && group == 1) xr.next();
    for (int pass = 0; pass < share.tiles; pass += p.pass) {
        const int tiles = min(p.pass, share.tiles - pass);
        float d[Blocks][TN / 2];
        int tile[Blocks], count = 1;  // blocks of this warpgroup with tiles
#pragma unroll
        for (int b = 0; b < Blocks; b++) {
            const int first = (p.k_groups == 2 ? b : 2 * b + group) * 4;
            if (first < tiles) count = b + 1;
            tile[b] = first + warp < tiles ? first + warp : -1;
#pragma unroll
            for (int i = 0; i < TN / 2; i++) d[b][i] = 0.0f;
        }
        auto run = [&]<int Count>(std::integral_constant<int, Count>) {
            if constexpr (Sync)
                multiply_sync<TN, Blocks, Count, Groups, IntegerZeros>(d, tile, p, s, wr, xr, share.units, group, lane);
            else
                multiply<TN, Blocks, Count, Groups, IntegerZeros>(d, tile, p, s, wr, xr, share.units, group, lane);
        };
        if (Blocks == 2 && count == 2)
            run(std::integral_constant<int, Blocks>());
        else
            run(std::integral_constant<int, 1>());

        uint32_t mine = ~0u;  // octets of tokens that this warpgroup finishes
        if (parts > 1) {      // then there is one pass
            if (p.cluster > 1) cluster_wait();
            const int part = p.k_groups == 2 ? rank * 2 + group : rank;
            // The place of one octet of a tile, of those that `from` sends to `to`, in the latter's CTA.
            auto place = [&](int from, int to, int tile_place, int index) {
                const int set = p.k_groups == 2 ? to & 1 : 0, source = from - (from > to);
                return s.sums + (((set * (parts - 1) + source) * p.pass + tile_place) * p.join_octets + index) * 512 + lane * 16;
            };
            mine = 0;
#pragma unroll
            for (int j = 0; j < octets; j++) {
                const int to = j % parts;
                if (to == part) {
                    mine |= 1u << j;
                    continue;
                }
                if (p.cluster == 1) {  // to this CTA's other warpgroup: st.async is for clusters of several
#pragma unroll
                    for (int b = 0; b < Blocks; b++)
                        if (tile[b] >= 0) store_shared4(place(part, to, tile[b], j / parts), d[b] + 4 * j);
                    continue;
                }
                const int to_rank = p.k_groups == 2 ? to >> 1 : to;
                const uint32_t bar = address_in(s.join + 8 * (p.k_groups == 2 ? to & 1 : group), to_rank);
#pragma unroll
                for (int b = 0; b < Blocks; b++)
                    if (tile[b] >= 0) send4(address_in(place(part, to, tile[b], j / parts), to_rank), d[b] + 4 * j, bar);
            }
            if (p.cluster == 1)
                asm volatile("bar.sync 1, 256;" ::: "memory");  // the consumers' warpgroups
            else
                cluster_barrier_wait(s.join + 8 * group, 0);
#pragma unroll
            for (int j = 0; j < octets; j++)
                if (mine >> j & 1)
                    for (int from = 0; from < parts; from++)
                        if (from != part)
#pragma unroll
                            for (int b = 0; b < Blocks; b++)
                                if (tile[b] >= 0) {
                                    const uint4 v = load_shared16(place(from, part, tile[b], j / parts));
                                    d[b][4 * j] += __uint_as_float(v.x), d[b][4 * j + 1] += __uint_as_float(v.y);
                                    d[b][4 * j + 2] += __uint_as_float(v.z), d[b][4 * j + 3] += __uint_as_float(v.w);
                                }
        }
        pdl_wait();
#pragma unroll
        for (int b = 0; b < Blocks; b++)
#pragma unroll
            for (int j = 0; j < octets; j++)
                if (tile[b] >= 0 && (mine >> j & 1))
                    store_fragment(p.output, share.first_tile + pass + tile[b], 8 * j,
                                   reinterpret_cast<float(&)[4]>(d[b][4 * j]));
    }
#endif
}

using BatchKernel = void (*)(CUtensorMap, Params);
struct Variant {
    int tokens, blocks, groups;  // groups 8: any
    bool integer_zeros;
    BatchKernel kernel;
};
template <int TN, int Blocks, int Groups, bool IntegerZeros, bool Sync = false>
constexpr Variant variant() {
    return {TN, Blocks, Groups, IntegerZeros, batch_kernel<TN, Blocks, Groups, IntegerZeros, Sync>};
}
// The first with tokens enough is taken.
const Variant variants[] = {
    variant<16, 1, 2, true, true>(), variant<16, 2, 2, true, true>(), variant<32, 1, 2, true>(),  variant<32, 2, 2, true>(),
    variant<32, 1, 8, true>(),       variant<32, 2, 8, true>(),       variant<32, 1, 8, false>(), variant<32, 2, 8, false>(),
};

struct BatchPlan {
    const Variant* variant = nullptr;
    int cluster = 1, clusters = 0, longest = 0, pass = 0, k_groups = 1;
    int w_slots = 0, x_slots = 0, join_octets = 0, shared_bytes = 0;
    double cost = 1e30;  // microseconds, roughly
};

BatchPlan plan_cluster(const MatmulDevice& device, const Q4Layout& layout, int rows, int cluster) {
    BatchPlan plan;
    const int tiles = static_cast<int>(layout.tiles()), units = static_cast<int>(layout.units()),
              unit_bytes = static_cast<int>(layout.unit_bytes());
    const int most = cluster == 1 ? device.sm_count : device.cluster_pairs;
    if (most == 0 || units < cluster) return plan;
    plan.cluster = cluster;
    plan.clusters = std::min(most, tiles);
    plan.longest = (tiles + plan.clusters - 1) / plan.clusters;
    const int passes = (plan.longest + most_tiles - 1) / most_tiles;
    if (passes > 1 && cluster > 1) return plan;
    plan.pass = (plan.longest + passes - 1) / passes;
    plan.k_groups = plan.pass <= 4 ? 2 : 1;
    const int blocks = plan.pass <= 8 ? 1 : 2, groups = layout.group == 128 && layout.integer_zeros ? 2 : 8;
    const Variant* chosen = nullptr;
    for (const Variant& v : variants)
        if (!chosen && v.tokens >= rows && v.blocks == blocks && v.groups == groups && v.integer_zeros == layout.integer_zeros)
            chosen = &v;
    if (!chosen) return plan;
    // Shared memory: 1024 bytes for alignment, the rings, the sums that are joined. A ring needs no more slots than it has uses.
    const int octets = chosen->tokens / 8, parts = cluster * plan.k_groups, share = (units + cluster - 1) / cluster;
    const int w_bytes = plan.pass * plan.k_groups * unit_bytes, x_bytes = chosen->tokens * x_columns * 2;
    const int w_uses = passes * ((share + plan.k_groups - 1) / plan.k_groups), x_uses = 2 * plan.k_groups * w_uses;
    plan.join_octets = (octets + parts - 1) / parts;
    const int join = parts == 1 ? 0 : plan.k_groups * (parts - 1) * plan.pass * plan.join_octets * 512;
    const int limit = batch_limit - 1024 - join;
    plan.x_slots = std::min({limit / 2 / x_bytes, x_uses, 16});
    plan.w_slots = std::min({(limit - plan.x_slots * x_bytes) / w_bytes, w_uses, 16});
    if (plan.x_slots < std::min(x_uses, 2 * plan.k_groups) || plan.w_slots < std::min(w_uses, 2)) return plan;
    plan.x_slots = std::min({(limit - plan.w_slots * w_bytes) / x_bytes, x_uses, max_slots});
    plan.shared_bytes = 1024 + plan.w_slots * w_bytes + plan.x_slots * x_bytes + join;
    plan.variant = chosen;
    // Bytes from memory by all, bytes through L2 by one SM (3.05 TB/s, 35 GB/s: measured on an H100), the joining.
    const double w_all = static_cast<double>(plan.longest) * plan.clusters * units * unit_bytes,
                 l2 = static_cast<double>(share) * (plan.longest * unit_bytes + passes * chosen->tokens * unit_columns * 2);
    plan.cost = std::max(w_all / 3.05e6, l2 / 35e3) + (cluster > 1 ? 0.5 : 0.0);
    return plan;
}

BatchPlan plan_batch(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    BatchPlan best;
    for (int cluster : {1, 2}) {
        if (tuning.cluster && tuning.cluster != cluster) continue;
        const BatchPlan plan = plan_cluster(device, layout, rows, cluster);
        if (plan.variant && plan.cost < best.cost) best = plan;
    }
    return best;
}

}  // namespace

cudaError_t open_batch(const MatmulDevice& device) {
    if (device.arch != 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, batch_limit)) return error;
    return cudaSuccess;
}

bool batch_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args) {
    return args.rows <= most_tokens && device.arch == 90 && device.encode_tensor_map && rows_aligned(args.x, args.ldx) &&
           plan_batch(device, layout, args.rows).variant != nullptr;
}

cudaError_t batch_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const BatchPlan plan = plan_batch(context.device, weight.layout, args.rows);
    CUtensorMap map;
    if (cudaError_t error = map_rows(context.device, args.x, weight.layout.in, args.rows, args.ldx, plan.variant->tokens, &map))
        return error;
    Params p;
    static_cast<Product&>(p) = product_of(weight, args);
    p.w_slots = plan.w_slots, p.x_slots = plan.x_slots;
    p.each = p.tiles / plan.clusters, p.longer = p.tiles % plan.clusters;
    p.pass = plan.pass, p.cluster = plan.cluster, p.k_groups = plan.k_groups;
    p.join_octets = plan.join_octets;
    const int slot_bytes = plan.pass * plan.k_groups * p.unit_bytes;
    auto slots_of = [&](int bytes) { return std::max(1, (bytes + slot_bytes / 2) / slot_bytes); };
    p.window = slots_of((tuning.window ? tuning.window : 52) * 1024);
    p.first_window = std::min(p.window, slots_of((tuning.first_window ? tuning.first_window : 36) * 1024));
    // A cluster of one is launched as a cluster, too: st.async is an illegal instruction elsewhere.
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(plan.clusters * plan.cluster)), config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = context.stream;
    config.attrs = attributes, config.numAttrs = context.pdl ? 2 : 1;
    return cudaLaunchKernelEx(&config, plan.variant->kernel, map, p);
}

}  // namespace awq::cuda
