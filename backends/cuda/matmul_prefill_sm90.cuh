// What the kernels of wgmma products share (matmul_prefill_sm90.cu, matmul_experts_sm90.cu, matmul_batch_sm90.cu): rings, the product of one block of W with
// one block of tokens, and the way of its sums to y. sm_90a only.
//
// A block is 128 rows of W times TN tokens. Its weights come as packed units through one ring of shared memory, tiles of X
// (64 columns of all tokens; one or several a slot) through a second one; two warpgroups of consumers take 64 rows each.
#pragma once
#include <algorithm>
#include "backends/cuda/matmul_internal.h"
#include "backends/cuda/tensor_map_sm90.h"
#include "backends/cuda/wgmma_sm90.h"

namespace awq::cuda::sm90 {

constexpr int block_tiles = 8;  // 128 rows of W
constexpr int threads = 384;    // a warpgroup of producers, two of consumers
constexpr int max_slots = 32;   // of either ring
constexpr int shared_limit = 232448 - 1024;

// What the kernels' parameters begin with.
struct Product {
    const uint8_t* w;
    Output output;
    float gate_linear, gate_cubic;  // act(v) = v / (1 + exp(-(linear v + cubic v^3))): silu, both fast gelus
    int tiles;                      // of 16 rows
    int row_blocks, units, unit_bytes, group;
    int w_slots, x_slots;
};

// A box of a tensor map to all CTAs of a cluster, at the same places of their shared memory and counted on barriers there.
__device__ __forceinline__ void load_tile_to_all(uint32_t to, const CUtensorMap* map, int column, int row, uint32_t bar,
                                                 uint32_t ctas) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(bar), "h"(static_cast<uint16_t>((1 << ctas) - 1))
        : "memory");
}
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}
// On the barrier at the same place in CTA `rank` of the cluster.
__device__ __forceinline__ void barrier_arrive_at(uint32_t bar, int rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(bar),
        "r"(rank)
        : "memory");
}

// The warp's place in the CTA, in a register that the compiler knows to be the same in all lanes: an address of a barrier made with
// another would have it loop over the lanes.
__device__ __forceinline__ int uniform_warp() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) >> 5, 0); }

// Tiles of X in a slot: fewer, larger slots take fewer instructions of the consumers, who have none to spare up to 128 tokens.
__host__ __device__ constexpr int slot_spans(int tokens) { return tokens <= 64 ? 4 : tokens <= 128 ? 2 : 1; }

// Of a residual, 64 columns for either warpgroup, in a slot.
__host__ __device__ constexpr int residual_tiles(int tokens) { return slot_spans(tokens) == 1 ? 1 : 2; }

// Where the rings lie in shared memory, and their barriers: full and empty, one each a slot.
struct Rings {
    uint32_t x, w, w_full, w_empty, x_full, x_empty;
    int w_bytes, x_bytes;  // of a slot
    // `raw`: the dynamic shared memory; `barriers`: 4 * max_slots of 8 bytes.
    __device__ __forceinline__ Rings(const void* raw, const void* barriers, const Product& p, int x_bytes)
        : w_bytes(block_tiles * p.unit_bytes), x_bytes(x_bytes) {
        x = (shared_address(raw) + 1023) & ~1023u;
        w = x + p.x_slots * x_bytes;
        w_full = shared_address(barriers), w_empty = w_full + 8 * max_slots;
        x_full = w_empty + 8 * max_slots, x_empty = x_full + 8 * max_slots;
    }
    // By all threads: one thread alone takes some 25 cycles a barrier. x_readers: the CTAs that give a slot of X back.
    __device__ __forceinline__ void init(const Product& p, int x_readers) const {
        const int warp = uniform_warp();
        if ((threadIdx.x & 31) != 0) return;
        for (int i = warp; i < max(p.w_slots, p.x_slots); i += threads / 32) {
            if (i < p.w_slots) {
                barrier_init(w_full + 8 * i, 1);
                barrier_init(w_empty + 8 * i, 8 * 32);
            }
            if (i < p.x_slots) {
                barrier_init(x_full + 8 * i, 1);
                barrier_init(x_empty + 8 * i, 8 * x_readers);
            }
        }
        barrier_init_done();
    }
    // By all lanes of a consumer warp. The CTAs of a cluster hold the same X: all of them are told.
    template <int Cluster>
    __device__ __forceinline__ void release_x(int slot, int lane) const {
        if constexpr (Cluster == 1) {
            if (lane == 0) barrier_arrive(x_empty + 8 * slot);
        } else {
            if (lane < Cluster) barrier_arrive_at(x_empty + 8 * slot, lane);
        }
    }
};

// The whole producer warp: `count` units, from `first` on, of the tiles from first_tile on; `w` is the matrix.
__device__ __forceinline__ void send_units(const Rings& rings, Ring& ring, const Product& p, const uint8_t* w, int first_tile,
                                           int lane, int first, int count, uint64_t policy) {
    const int tiles = min(block_tiles, p.tiles - first_tile);
    const uint8_t* from = w + (static_cast<int64_t>(first_tile + (lane & 7)) * p.units + first) * p.unit_bytes;
    for (; count > 0; count--, from += p.unit_bytes) {
        barrier_wait(rings.w_empty + 8 * ring.slot, ring.phase);
        if (lane == 0) barrier_expect(rings.w_full + 8 * ring.slot, tiles * p.unit_bytes);
        __syncwarp();
        if (lane < tiles)
            bulk_copy(rings.w + ring.slot * rings.w_bytes + lane * p.unit_bytes, from, p.unit_bytes, rings.w_full + 8 * ring.slot,
                      policy);
        ring.next();
    }
}

// The compiler would make two stores of a pair that lies in registers apart.
__device__ __forceinline__ void store_global8(half* to, uint32_t a, uint32_t b) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What a warp reads of a unit for one span of 64 columns: words of weights, and the scales and zero points of their groups.
template <int Groups, bool IntegerZeros>
struct Piece {
    static constexpr int metas = Groups == 2 ? 1 : 2;
    uint4 words;
    uint32_t scales[metas], zeros[metas];
    // at: of the unit. Groups 2: the first span of a group alone has them.
    __device__ __forceinline__ void load(uint32_t at, int span, int group_size, int lane) {
        words = load_shared16(at + span * 512 + lane * 16);
        if (Groups == 2 && span % 2) return;
        const int groups = Groups == 2 ? 2 : unit_columns / group_size;
        const int shift = group_size == 128 ? 2 : group_size == 64 ? 1 : 0;  // of 32-column pieces
#pragma unroll
        for (int i = 0; i < metas; i++) {
            const int group = Groups == 2 ? span / 2 : (2 * span + i) >> shift;
            load_group<IntegerZeros>(at + unit_scales, groups, group, lane >> 2, scales[i], zeros[i]);
        }
    }
};

// A consumer warp's part of a block: d += its 16 slots of units first .. last - 1 times TN tokens. While the wgmmas of one
// span of 64 columns run, the next span is dequantised; its words have been asked for before. my_tile: of the block's eight.
// Spans: of a slot of X.
template <int TN, int Groups, bool IntegerZeros, int Cluster, int Spans>
__device__ __forceinline__ void multiply_units(float (&d)[TN / 2], const Rings& rings, Ring& wr, Ring& xr, const Product& p,
                                               int my_tile, int lane, int first, int last) {
    int previous = -1;  // X slot whose wgmmas may still run
    Piece<Groups, IntegerZeros> next;
    auto load = [&](int span) { next.load(rings.w + wr.slot * rings.w_bytes + my_tile * p.unit_bytes, span, p.group, lane); };
    barrier_wait(rings.w_full + 8 * wr.slot, wr.phase);
    load(0);
    for (int unit = first; unit < last; unit++) {
        GroupMeta<IntegerZeros> m[2];
        uint64_t x = 0;
#pragma unroll
        for (int span = 0; span < 4; span++) {
            const uint4 words = next.words;
            if (Groups != 2 || span % 2 == 0) {
                m[0].set(next.scales[0], next.zeros[0]);
                m[1] = m[0];
                if constexpr (Groups != 2) m[1].set(next.scales[1], next.zeros[1]);
            }
            if (span < 3) load(span + 1);
            // All of the unit is read. Each lane says so for itself: of a __syncwarp here nothing may be left, since the
            // compiler knows the warp to be together, and then no one could tell that the lanes' reads are done.
            if (span == 2) {
                barrier_arrive(rings.w_empty + 8 * wr.slot);
                wr.next();
            }
            if (span % Spans == 0) x = uniform_descriptor(rings.x + xr.slot * rings.x_bytes);
            const uint64_t b = x + span % Spans * (TN * 128 / 16);
            uint32_t a[4][4];
            dequantize<IntegerZeros>(a[0], words.x, m[0]);
            dequantize<IntegerZeros>(a[1], words.y, m[0]);
            dequantize<IntegerZeros>(a[2], words.z, m[1]);
            dequantize<IntegerZeros>(a[3], words.w, m[1]);
            if (span % Spans == 0) barrier_wait(rings.x_full + 8 * xr.slot, xr.phase);
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < 4; j++) Wgmma<TN>::run(d, a[j], b + 2 * j);
            wgmma_commit();
            if (span == 3 && unit + 1 < last) {  // not before: weights may be late
                barrier_wait(rings.w_full + 8 * wr.slot, wr.phase);
                load(0);
            }
            wgmma_wait<1>();
            if (span % Spans == 0) {
                if (previous >= 0) rings.release_x<Cluster>(previous, lane);
                previous = xr.slot;
            }
            if ((span + 1) % Spans == 0) xr.next();
        }
    }
    wgmma_wait<0>();
    settle(d);
    if (previous >= 0) rings.release_x<Cluster>(previous, lane);
}
#endif

// Of a gated tile's fragment: act(gate) * up, two channels of one token a lane.
__device__ __forceinline__ uint32_t gated_pair(const Product& p, const float* d) {
    auto gate = [&](float v) { return __fdividef(v, 1.0f + __expf(-v * (p.gate_linear + p.gate_cubic * v * v))); };
    return transpose8x8(pack_half2(gate(d[0]) * d[2], gate(d[1]) * d[3]));
}

// A warp's sums of 16 slots x TN tokens, the first of them `token`, to y; `mine`: the octets of tokens to be stored. Only outputs
// that can be stored in whole words come here (wgmma_fits), and the code is kept small: it is unrolled over the tokens, and one
// that outgrows the instruction cache costs microseconds. Alone: there is no bias and no residual.
template <int TN, bool Alone>
__device__ __forceinline__ void store_block(const Product& p, int tile, int token, int rows, uint32_t mine,
                                            const float (&d)[TN / 2], uint32_t residual_at = 0) {
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const Output& o = p.output;
    token += g;
    if (o.gated) {
        const int channel = tile * 8 + 2 * t;
        half* y = o.y + token * o.ldy + channel;
        const bool there = channel < o.out / 2;
#pragma unroll
        for (int j = 0; j < TN / 8; j++, token += 8, y += 8 * o.ldy) {
            if (!(mine >> j & 1)) continue;
            const uint32_t v = gated_pair(p, d + 4 * j);
            if (there && token < rows) *reinterpret_cast<uint32_t*>(y) = v;
        }
        return;
    }
    const int row = tile * tile_rows + 4 * (g >> 1) + (g & 1), column = tile * tile_rows + 4 * t;
    const float bias0 = Alone || !o.bias || row >= o.out ? 0.0f : __ldg(o.bias + row),
                bias1 = Alone || !o.bias || row + 2 >= o.out ? 0.0f : __ldg(o.bias + row + 2);
    half* y = o.y + token * o.ldy + column;
    const bool there = column < o.out;
    // The 16-byte pieces of a token's 128 bytes lie in an order that its last three bits turn (the 128-byte swizzle).
    residual_at += g * 128 + ((2 * (tile & 3) + (t >> 1)) ^ g) * 16 + (t & 1) * 8;
#pragma unroll
    for (int j = 0; j < TN / 8; j++, token += 8, y += 8 * o.ldy) {
        if (!(mine >> j & 1)) continue;
        uint32_t low = transpose8x8(pack_half2(d[4 * j] + bias0, d[4 * j + 1] + bias0));
        uint32_t high = transpose8x8(pack_half2(d[4 * j + 2] + bias1, d[4 * j + 3] + bias1));
        if (!Alone && o.residual) {
            const uint2 r = load_shared8(residual_at + j * 1024);
            low = as_bits(__hadd2(as_half2(low), as_half2(r.x)));
            high = as_bits(__hadd2(as_half2(high), as_half2(r.y)));
        }
        if (there && token < rows) store_global8(y, low, high);
    }
}

// ---- host

// The gates that fit the kernels' formula.
struct Gate {
    bool known;
    float linear, cubic;
};
inline Gate gate_of(Activation activation) {
    switch (activation) {
        case Activation::silu: return {true, 1.0f, 0.0f};
        case Activation::quick_gelu: return {true, 1.702f, 0.0f};
        case Activation::gelu_tanh: return {true, 1.5957691f, 0.0713548f};
        default: return {false, 0, 0};
    }
}

// The device has these kernels, and y can be stored by them.
inline bool wgmma_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args) {
    if (device.arch != 90 || !device.encode_tensor_map) return false;
    const Output o = output_of(args, layout.out, layout.gated);
    return o.wide && layout.out % 4 == 0 && (!layout.gated || gate_of(o.activation).known);
}

inline Product product_of(const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const Gate gate = gate_of(args.gate_activation);
    Product p;
    p.w = static_cast<const uint8_t*>(weight.data);
    p.output = output_of(args, layout.out, layout.gated);
    p.tiles = static_cast<int>(layout.tiles());
    p.row_blocks = (p.tiles + block_tiles - 1) / block_tiles;
    p.units = static_cast<int>(layout.units()), p.unit_bytes = static_cast<int>(layout.unit_bytes()), p.group = layout.group;
    p.w_slots = p.x_slots = 0;
    p.gate_linear = gate.linear, p.gate_cubic = gate.cubic;
    return p;
}

// The rows of a box of X where `tokens` are multiplied: no more than X has, in eights. The copy engine is slower with rows outside, which
// it makes zeros, than with those that it reads. What is not loaded becomes columns of sums that nobody stores.
inline int box_rows_of(int rows, int tokens) { return std::min(tokens, (rows + 7) / 8 * 8); }
// X in boxes of 64 columns x `box_rows` rows.
inline cudaError_t map_rows(const MatmulDevice& device, const half* x, int64_t in, int rows, int64_t ldx, int box_rows,
                            CUtensorMap* map) {
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(in), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(ldx) * 2};
    const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
    return encode_map(device.encode_tensor_map, x, 2, sizes, strides, box, map);
}

}  // namespace awq::cuda::sm90
