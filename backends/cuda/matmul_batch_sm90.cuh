// The device's side of the products of a small batch (matmul_batch_sm90.cu): the producers, what a warp multiplies, and the way to
// y. sm_90a only.
#pragma once
#include "backends/cuda/matmul_prefill_sm90.cuh"

namespace awq::cuda::sm90 {

constexpr int panel = 64;  // columns of x that lie beside each other in shared memory; a slot has a unit's

struct BatchParams : Product {
    int each, longer;  // tiles of a cluster; the first `longer` have one more
    int pass;          // tiles that a CTA takes at once
    int cluster;       // CTAs that cut K: 1 or 2
    int first_units;   // units of the first CTA of a cluster
    int k_groups;      // 2: the warpgroups take units in turn; 1: they share the tiles
    int window, first_window;
    int join_octets;
    // Of x in a slot: as many rows as there are, in eights. What a tile of tokens reads behind them is the next panel's, or the ring of
    // W: columns of sums that nobody stores.
    int panel_bytes;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
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
    __device__ __forceinline__ Share(const BatchParams& p, int rank) {
        const int cluster = static_cast<int>(blockIdx.x) >> (p.cluster - 1);
        first_tile = cluster * p.each + min(cluster, p.longer);
        tiles = p.each + (cluster < p.longer);
        first_unit = rank == 0 ? 0 : p.first_units;
        units = rank == 0 ? p.first_units : p.units - p.first_units;
    }
};

struct Slots {
    uint32_t x, w, sums, w_full, w_empty, x_full, x_empty, join;
    int w_bytes, x_bytes;
};

// The producer warp of W.
struct WeightSender {
    const BatchParams& p;
    const Share& share;
    const Slots& s;
    const int lane;
    const uint64_t policy = stream_policy();
    Ring ring;
    PartsOnWay on_way;
    int window, pass = 0, unit = 0;
    __device__ __forceinline__ WeightSender(const BatchParams& p, const Share& share, const Slots& s, int lane)
        : p(p), share(share), s(s), lane(lane), ring(p.w_slots, 1), window(p.first_window) {}
    __device__ __forceinline__ bool more() const { return pass < share.tiles; }
    // Fills a slot that is free.
    __device__ __forceinline__ void ask() {
        const int tiles = min(p.pass, share.tiles - pass), bytes = min(p.k_groups, share.units - unit) * p.unit_bytes;
        if (lane == 0) barrier_expect(s.w_full + 8 * ring.slot, static_cast<uint32_t>(tiles * bytes));
        __syncwarp();
        if (lane < tiles)
            bulk_copy(s.w + ring.slot * s.w_bytes + lane * p.k_groups * p.unit_bytes,
                      p.w + (static_cast<int64_t>(share.first_tile + pass + lane) * p.units + share.first_unit + unit) * p.unit_bytes,
                      static_cast<uint32_t>(bytes), s.w_full + 8 * ring.slot, policy);
        on_way.count++;
        ring.next();
        unit += p.k_groups;
        if (unit >= share.units) unit = 0, pass += p.pass;
    }
    __device__ __forceinline__ void run() {
        while (more()) {
            barrier_wait(s.w_empty + 8 * ring.slot, ring.phase);
            if (window != p.window && barrier_passed(s.x_full, 0)) window = p.window;  // lanes may differ until ask()
            on_way.wait_below(window, s.w_full, 1, p.w_slots);
            ask();
        }
    }
};

// One lane. Where the warpgroups take units in turn, so do their slots.
__device__ __forceinline__ void send_x(const BatchParams& p, const Share& share, const Slots& s, const CUtensorMap* map) {
    Ring ring(p.x_slots, 1);
    for (int pass = 0; pass < share.tiles; pass += p.pass)
        for (int unit = 0; unit < share.units; unit++, ring.next()) {
            const uint32_t bar = s.x_full + 8 * ring.slot;
            barrier_wait(s.x_empty + 8 * ring.slot, ring.phase);
            barrier_expect(bar, static_cast<uint32_t>(s.x_bytes));
            load_box(s.x + ring.slot * s.x_bytes, map, 0, 0, (share.first_unit + unit) * (unit_columns / panel), bar);  // panel by panel
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
#pragma unroll
            for (int group = 0; group < 2; group++) load_group<IntegerZeros>(at + unit_scales, 2, group, lane >> 2, scales[group], zeros[group]);
        }
    }
};

// A warp's part of `Count` blocks of four tiles: d[b] += its tile of block b times TN tokens, over the units that its warpgroup
// takes in one pass. tile[b]: place in a slot of W, negative: none. Where a group has 128 columns, the next unit's words
// are fetched while this one's last products run.
template <int TN, int Blocks, int Count, int Groups, bool IntegerZeros, bool Sync>
__device__ __forceinline__ void multiply(float (&d)[Blocks][TN / 2], const int (&tile)[Blocks], const BatchParams& p, const Slots& s,
                                         Ring& wr, Ring& xr, int units, int group, int lane) {
    static_assert(!Sync || Groups == 2);
    const bool turns = p.k_groups == 2;
    const int first = turns ? group : 0;
    Unit<Groups, IntegerZeros> in[Count];
    uint32_t at[Count], empty = 0;
    auto take = [&](Unit<Groups, IntegerZeros>(&to)[Count]) {
        barrier_wait(s.w_full + 8 * wr.slot, wr.phase);
        const uint32_t slot = s.w + wr.slot * s.w_bytes + (turns ? group * p.unit_bytes : 0);
#pragma unroll
        for (int b = 0; b < Count; b++) {
            at[b] = slot + max(tile[b], 0) * p.k_groups * p.unit_bytes;
            to[b].load(at[b], lane);
        }
        empty = s.w_empty + 8 * wr.slot;
        if constexpr (Groups == 2) barrier_arrive(empty);  // each lane for itself: see matmul_prefill_sm90.cuh
        wr.next();
    };
    int previous = -1;  // slot of x whose wgmmas may still run
    if (first < units) take(in);
    for (int unit = first; unit < units; unit += p.k_groups) {
        Unit<Groups, IntegerZeros> ahead[Count];
        auto take_ahead = [&] {  // late in this unit's work: the weights may be late, too
            if constexpr (Groups == 2)
                if (unit + p.k_groups < units) take(ahead);
        };
        barrier_wait(s.x_full + 8 * xr.slot, xr.phase);
        const uint32_t x = s.x + xr.slot * s.x_bytes;
        if constexpr (Sync) {
            // ldmatrix: the lanes of a quarter warp give the rows of one 8 x 8 block: 8 tokens, 8 columns; quarters 0, 1 are the
            // 16 columns of a step for one octet of tokens, 2, 3 for the next. The copy engine has exchanged 16-byte pieces by
            // the row (128-byte swizzle).
            const int row = (lane & 7) + (lane >> 4) * 8, piece = lane >> 3 & 1;
            uint32_t fragments[2][TN / 16][4];  // of this step and the next
            auto load_fragments = [&](int step) {
#pragma unroll
                for (int j = 0; j < TN / 16; j++)
                    ldmatrix4(fragments[step % 2][j],
                              x + step / 4 * p.panel_bytes + (j * 16 + row) * 128 + (((step % 4 * 2 + piece) ^ (row & 7)) << 4));
            };
            load_fragments(0);
#pragma unroll
            for (int at_half = 0; at_half < 2; at_half++) {
                // A group's sums of exact q - z, to be scaled as a whole; one block has two chains, so that each is half as long.
                constexpr int chains = Count == 1 ? 2 : Count;
                float sums[chains][TN / 2] = {};
                GroupMeta<IntegerZeros> meta[Count];
#pragma unroll
                for (int b = 0; b < Count; b++) meta[b].set(in[b].scales[at_half], in[b].zeros[at_half]);
#pragma unroll
                for (int step = 8 * at_half; step < 8 * at_half + 8; step++) {
                    if (step < 15) load_fragments(step + 1);
                    const uint32_t(&fragment)[TN / 16][4] = fragments[step % 2];
#pragma unroll
                    for (int b = 0; b < Count; b++) {
                        uint32_t a[4];
                        subtract_zero(a, word_of(in[b].words[step / 4], step), meta[b]);
#pragma unroll
                        for (int j = 0; j < TN / 8; j++)
                            mma(reinterpret_cast<float(&)[4]>(sums[Count == 1 ? step % 2 : b][4 * j]), a, fragment[j / 2][j % 2 * 2],
                                fragment[j / 2][j % 2 * 2 + 1]);
                    }
                }
                if (at_half == 1) take_ahead();
#pragma unroll
                for (int b = 0; b < Count; b++) {
                    const float2 scale = __half22float2(as_half2(in[b].scales[at_half]));
#pragma unroll
                    for (int i = 0; i < TN / 2; i++)
                        d[b][i] += (i % 4 < 2 ? scale.x : scale.y) * (Count == 1 ? sums[0][i] + sums[1][i] : sums[b][i]);
                }
            }
            barrier_arrive(s.x_empty + 8 * xr.slot);
        } else {
            const int group_shift = p.group == 128 ? 2 : p.group == 64 ? 1 : 0;  // of 32-column pieces
            const int groups = unit_columns / p.group, g = lane >> 2;
            const uint64_t columns = uniform_descriptor(x);
#pragma unroll
            for (int span = 0; span < 4; span++)
#pragma unroll
                for (int b = 0; b < Count; b++) {
                    GroupMeta<IntegerZeros> low, high;
                    if constexpr (Groups == 2) {
                        low.set(in[b].scales[span / 2], in[b].zeros[span / 2]);
                        high = low;
                    } else {
                        auto load_meta = [&](GroupMeta<IntegerZeros>& to, int index) {
                            uint32_t scales, zeros;
                            load_group<IntegerZeros>(at[b] + unit_scales, groups, index, g, scales, zeros);
                            to.set(scales, zeros);
                        };
                        load_meta(low, (2 * span) >> group_shift);
                        load_meta(high, (2 * span + 1) >> group_shift);
                        if (span == 3 && b == Count - 1) barrier_arrive(empty);
                    }
                    uint32_t a[4][4];
#pragma unroll
                    for (int step = 0; step < 4; step++)
                        dequantize<IntegerZeros>(a[step], word_of(in[b].words[span], step), step < 2 ? low : high);
                    wgmma_fence();
#pragma unroll
                    for (int step = 0; step < 4; step++)
                        Wgmma<TN>::run(d[b], a[step], columns + span * (p.panel_bytes >> 4) + 2 * step);
                    wgmma_commit();
                    if (span == 2 && b == Count - 1) take_ahead();
                    wgmma_wait<1>();
                    if (span == 0 && b == 0) {
                        if (previous >= 0) barrier_arrive(s.x_empty + 8 * previous);
                        previous = xr.slot;
                    }
                }
        }
        xr.next();
        if (turns) xr.next();
        if (unit + p.k_groups >= units) break;
        if constexpr (Groups == 2) {
#pragma unroll
            for (int b = 0; b < Count; b++) in[b] = ahead[b];
        } else {
            take(in);
        }
    }
    if constexpr (!Sync) {
        wgmma_wait<0>();
#pragma unroll
        for (int b = 0; b < Count; b++) settle(d[b]);
        if (previous >= 0) barrier_arrive(s.x_empty + 8 * previous);
    }
}

// The octets of tokens in `mine` to y. Only outputs that can be stored in whole words come here (wgmma_fits), and the code is kept
// small: one that outgrows the instruction cache costs microseconds.
struct Place {
    int token, column;  // of the first octet; gated: of the channel
    bool there;
};
__device__ __forceinline__ Place place_of(const Output& o, int tile, int lane) {
    const int column = o.gated ? tile * 8 + 2 * (lane & 3) : tile * tile_rows + 4 * (lane & 3);
    return {lane >> 2, column, column < (o.gated ? o.out / 2 : o.out)};
}
template <int TN>
__device__ __forceinline__ void load_residual(const Output& o, int tile, uint32_t mine, int lane, uint2 (&r)[TN / 8]) {
    const Place at = place_of(o, tile, lane);
#pragma unroll
    for (int j = 0; j < TN / 8; j++)
        if (at.there && (mine >> j & 1) && at.token + 8 * j < o.rows)
            r[j] = __ldcg(reinterpret_cast<const uint2*>(o.residual + (at.token + 8 * j) * o.ld_residual + at.column));
}
template <int TN>
__device__ __forceinline__ void store_tile(const BatchParams& p, int tile, uint32_t mine, int lane, const float (&d)[TN / 2],
                                           const uint2 (&residual)[TN / 8]) {
    const Output& o = p.output;
    const Place at = place_of(o, tile, lane);
    const int row = slot_row(tile, lane >> 2);
    const float bias0 = o.gated || !o.bias || row >= o.out ? 0.0f : __ldg(o.bias + row),
                bias1 = o.gated || !o.bias || row + 2 >= o.out ? 0.0f : __ldg(o.bias + row + 2);
#pragma unroll
    for (int j = 0; j < TN / 8; j++) {
        if (!(mine >> j & 1)) continue;
        half* y = o.y + (at.token + 8 * j) * o.ldy + at.column;
        const bool there = at.there && at.token + 8 * j < o.rows;
        if (o.gated) {
            const uint32_t v = gated_pair(p, d + 4 * j);
            if (there) *reinterpret_cast<uint32_t*>(y) = v;
            continue;
        }
        uint32_t low = transpose8x8(pack_half2(d[4 * j] + bias0, d[4 * j + 1] + bias0));
        uint32_t high = transpose8x8(pack_half2(d[4 * j + 2] + bias1, d[4 * j + 3] + bias1));
        if (o.residual) {
            low = as_bits(__hadd2(as_half2(low), as_half2(residual[j].x)));
            high = as_bits(__hadd2(as_half2(high), as_half2(residual[j].y)));
        }
        if (there) store_global8(y, low, high);
    }
}
#endif

}  // namespace awq::cuda::sm90
