// y = x W^T for more rows of x than decode takes, on Hopper: wgmma with int4 weights dequantised in registers. sm_90a only.
//
// The product is computed as Y^T = W X^T: a CTA makes 128 rows of W times `TN` tokens. W comes as packed units through a ring
// of bulk copies, is turned into A fragments in registers (exact q - z, one rounding by the scale) and multiplied with
// X tiles that the tensor copy engine puts into a second ring. One producer warp for each ring, two consumer warpgroups
// of 64 rows. While the wgmmas of one span of 64 columns run, the next span is dequantised.
//
// CTAs are persistent. A schedule (plan_schedule) gives each whole output blocks first, then an equal share of the rest,
// cut along K. Who has the first part of a cut block owns it: the others leave partial sums in scratch, the owner adds
// them in order. Where every block is cut into equally many parts (few blocks), each part's CTA finishes a share of the
// tokens instead, so that the reduction is spread over all of them.
#include <cuda.h>
#include <algorithm>
#include "backends/cuda/matmul_internal.h"
#include "backends/cuda/wgmma_sm90.h"

namespace awq::cuda {
namespace {

constexpr int block_tiles = 8;  // 128 rows of W
constexpr int threads = 384;
constexpr int max_slots = 32;  // of either ring
constexpr int shared_limit = 232448 - 1024;

struct Params {
    const uint8_t* w;
    float4* partials;
    uint32_t* flags;
    Output output;
    int tiles;  // of 16 rows
    int row_blocks, token_blocks, units, unit_bytes, group;
    int w_slots, x_slots;
    int raster;                     // token blocks that go along the rows together
    int workers;                    // CTAs that work
    int full_waves, parts;          // whole blocks for each CTA; > 0: equal parts of a block
    float gate_linear, gate_cubic;  // act(v) = v / (1 + exp(-(linear v + cubic v^3))): silu, both fast gelus
};

// A CTA's work: output blocks, with a range of units each.
struct Schedule {
    int worker, workers, units, blocks, full, waves, at, end, base;
    int64_t share;  // units behind the full waves
    int block = 0, first = 0, last = 0;
    __device__ Schedule(const Params& p, int worker, int workers) : worker(worker), workers(workers), units(p.units) {
        blocks = p.row_blocks * p.token_blocks;
        waves = p.full_waves, full = 0, base = waves * workers;
        share = base < blocks ? static_cast<int64_t>(blocks - base) * units : 0;
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
        if (at >= end) return false;
        block = base + at / units;
        first = at % units;
        last = min(first + end - at, units);
        at += last - first;
        return true;
    }
};
struct Block {
    int row, token;
};
__device__ __forceinline__ Block block_place(const Params& p, int block) {
    int band = block / (p.raster * p.row_blocks), rest = block - band * p.raster * p.row_blocks;
    int width = min(p.raster, p.token_blocks - band * p.raster);
    return {rest / width, band * p.raster + rest % width};
}

__device__ __forceinline__ void load_tile(uint32_t to, const CUtensorMap* map, int column, int row, uint32_t bar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(bar)
        : "memory");
}
__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

struct Ring {
    int slots, slot = 0;
    uint32_t phase;
    __device__ Ring(int slots, uint32_t phase) : slots(slots), phase(phase) {}
    __device__ __forceinline__ void next() {
        if (++slot == slots) slot = 0, phase ^= 1;
    }
};

// A warp's sums of 16 slots x TN tokens to y. Only outputs that can be stored in whole words come here (prefill_fits), and
// the code is kept small: it is unrolled over the tokens, and one that outgrows the instruction cache costs microseconds.
template <int TN>
__device__ __forceinline__ void store_block(const Params& p, Block place, int my_tile, uint32_t mine, const float (&d)[TN / 2]) {
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const int tile = place.row * block_tiles + my_tile;
    const Output& o = p.output;
    int token = place.token * TN + g;
    if (o.gated) {
        const int channel = tile * 8 + 2 * t;
        half* y = o.y + token * o.ldy + channel;
        const bool there = channel < o.out / 2;
        auto gate = [&](float v) { return __fdividef(v, 1.0f + __expf(-v * (p.gate_linear + p.gate_cubic * v * v))); };
#pragma unroll
        for (int j = 0; j < TN / 8; j++, token += 8, y += 8 * o.ldy) {
            if (!(mine >> j & 1)) continue;
            uint32_t v = transpose8x8(pack_half2(gate(d[4 * j]) * d[4 * j + 2], gate(d[4 * j + 1]) * d[4 * j + 3]));
            if (there && token < o.rows) *reinterpret_cast<uint32_t*>(y) = v;
        }
        return;
    }
    const int row = tile * tile_rows + 4 * (g >> 1) + (g & 1), column = tile * tile_rows + 4 * t;
    const float bias0 = o.bias && row < o.out ? __ldg(o.bias + row) : 0.0f,
                bias1 = o.bias && row + 2 < o.out ? __ldg(o.bias + row + 2) : 0.0f;
    half* y = o.y + token * o.ldy + column;
    const half* residual = o.residual ? o.residual + token * o.ld_residual + column : nullptr;
    const bool there = column < o.out;
#pragma unroll
    for (int j = 0; j < TN / 8; j++, token += 8, y += 8 * o.ldy) {
        if (mine >> j & 1) {
            uint32_t low = transpose8x8(pack_half2(d[4 * j] + bias0, d[4 * j + 1] + bias0));
            uint32_t high = transpose8x8(pack_half2(d[4 * j + 2] + bias1, d[4 * j + 3] + bias1));
            if (there && token < o.rows) {
                if (residual) {
                    uint2 r = __ldcg(reinterpret_cast<const uint2*>(residual));
                    low = as_bits(__hadd2(as_half2(low), as_half2(r.x)));
                    high = as_bits(__hadd2(as_half2(high), as_half2(r.y)));
                }
                *reinterpret_cast<uint2*>(y) = make_uint2(low, high);
            }
        }
        if (residual) residual += 8 * o.ld_residual;
    }
}

// The host picks this kernel on compute capability 9.0 without asking how it was compiled: an empty one must not be built.
#if __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "compute capability 9.0 is to be compiled as 90a, for wgmma"
#endif

// Groups: 2 for 128 columns a group; 8 serves every size.
template <int TN, int Groups, bool IntegerZeros, int PerSm>
__global__ void __launch_bounds__(threads, PerSm)
    prefill_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int x_bytes = TN * 128, octets = TN / 8;
    extern __shared__ uint8_t raw[];
    __shared__ __align__(16) uint64_t barriers[4 * max_slots];
    const uint32_t x_ring = (shared_address(raw) + 1023) & ~1023u;
    const uint32_t w_ring = x_ring + p.x_slots * x_bytes;
    const int w_bytes = block_tiles * p.unit_bytes;
    const uint32_t w_full = shared_address(barriers), w_empty = w_full + 8 * max_slots;
    const uint32_t x_full = w_empty + 8 * max_slots, x_empty = x_full + 8 * max_slots;
    const int warpgroup = static_cast<int>(threadIdx.x) >> 7, tid = static_cast<int>(threadIdx.x) & 127;
    const int warp = tid >> 5, lane = tid & 31;

    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.w_slots; i++) {
            barrier_init(w_full + 8 * i, 1);
            barrier_init(w_empty + 8 * i, 8);
        }
        for (int i = 0; i < p.x_slots; i++) {
            barrier_init(x_full + 8 * i, 1);
            barrier_init(x_empty + 8 * i, 8);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (static_cast<int>(blockIdx.x) >= p.workers) {  // holds its place, see prefill_q4
        pdl_wait();
        return;
    }
    Schedule schedule(p, static_cast<int>(blockIdx.x), p.workers);

    if (warpgroup == 0) {
        if constexpr (PerSm == 2)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        else
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0) {  // W: does not depend on the kernel before
            const uint64_t policy = stream_policy();
            Ring ring(p.w_slots, 1);
            while (schedule.next()) {
                int first_tile = block_place(p, schedule.block).row * block_tiles, tiles = min(block_tiles, p.tiles - first_tile);
                const uint8_t* from =
                    p.w + (static_cast<int64_t>(first_tile + (lane & 7)) * p.units + schedule.first) * p.unit_bytes;
                for (int unit = schedule.first; unit < schedule.last; unit++, from += p.unit_bytes) {
                    barrier_wait(w_empty + 8 * ring.slot, ring.phase);
                    if (lane == 0) barrier_expect(w_full + 8 * ring.slot, tiles * p.unit_bytes);
                    __syncwarp();
                    if (lane < tiles)
                        bulk_copy(w_ring + ring.slot * w_bytes + lane * p.unit_bytes, from, p.unit_bytes, w_full + 8 * ring.slot,
                                  policy);
                    ring.next();
                }
            }
        } else if (warp == 1 && lane == 0) {  // X
            asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
            pdl_wait();
            Ring ring(p.x_slots, 1);
            while (schedule.next()) {
                int token = block_place(p, schedule.block).token * TN;
                for (int span = schedule.first * 4; span < schedule.last * 4; span++) {
                    barrier_wait(x_empty + 8 * ring.slot, ring.phase);
                    barrier_expect(x_full + 8 * ring.slot, x_bytes);
                    load_tile(x_ring + ring.slot * x_bytes, &map, span * 64, token, x_full + 8 * ring.slot);
                    ring.next();
                }
            }
        }
        return;
    }
    if constexpr (PerSm == 2)
        asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
    else
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group_index = warpgroup - 1, my_tile = group_index * 4 + warp, g = lane >> 2;
    const int groups = Groups == 2 ? 2 : unit_columns / p.group;
    const int group_shift = p.group == 128 ? 2 : p.group == 64 ? 1 : 0;  // of 32-column pieces
    Ring wr(p.w_slots, 0), xr(p.x_slots, 0);
    bool waited = false;
    while (schedule.next()) {
        float d[TN / 2];
#pragma unroll
        for (int i = 0; i < TN / 2; i++) d[i] = 0.0f;
        int previous = -1;  // X slot whose wgmmas may still run
        for (int unit = schedule.first; unit < schedule.last; unit++) {
            barrier_wait(w_full + 8 * wr.slot, wr.phase);
            const uint32_t at = w_ring + wr.slot * w_bytes + my_tile * p.unit_bytes;
            GroupMeta<IntegerZeros> m[2];
            auto load_meta = [&](GroupMeta<IntegerZeros>& to, int group) {
                uint32_t scales = load_shared4(at + 2048 + group * 32 + g * 4);
                uint32_t zeros = IntegerZeros ? load_shared2(at + 2048 + groups * 32 + group * 16 + g * 2)
                                              : load_shared4(at + 2048 + groups * 32 + group * 32 + g * 4);
                to.set(scales, zeros);
            };
#pragma unroll
            for (int span = 0; span < 4; span++) {
                uint4 words = load_shared16(at + span * 512 + lane * 16);
                if constexpr (Groups == 2) {
                    if (span % 2 == 0) load_meta(m[0], span / 2);
                } else {
                    load_meta(m[0], (2 * span) >> group_shift);
                    load_meta(m[1], (2 * span + 1) >> group_shift);
                }
                if (span == 3) {  // all of the unit is in registers
                    __syncwarp();
                    if (lane == 0) barrier_arrive(w_empty + 8 * wr.slot);
                }
                uint32_t a[4][4];
                dequantize<IntegerZeros>(a[0], words.x, m[0]);
                dequantize<IntegerZeros>(a[1], words.y, m[0]);
                dequantize<IntegerZeros>(a[2], words.z, m[Groups == 2 ? 0 : 1]);
                dequantize<IntegerZeros>(a[3], words.w, m[Groups == 2 ? 0 : 1]);
                barrier_wait(x_full + 8 * xr.slot, xr.phase);
                const uint64_t b = wgmma_descriptor(x_ring + xr.slot * x_bytes);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < 4; j++) Wgmma<TN>::run(d, a[j], b + 2 * j);
                wgmma_commit();
                wgmma_wait<1>();
                if (previous >= 0 && lane == 0) barrier_arrive(x_empty + 8 * previous);
                previous = xr.slot;
                xr.next();
            }
            wr.next();
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < TN / 2; i++) asm volatile("" : "+f"(d[i])::"memory");
        if (previous >= 0 && lane == 0) barrier_arrive(x_empty + 8 * previous);
        if (!waited) {
            pdl_wait();
            waited = true;
        }
        // Sums that belong together. `mine`: the octets of tokens that this CTA finishes.
        uint32_t mine = ~0u;
        const bool whole = schedule.last - schedule.first == p.units;
        const int local = schedule.block - schedule.base, me = schedule.worker;
        auto partial = [&](int worker) {
            return p.partials + (static_cast<int64_t>(worker) * 2 + group_index) * octets * 128 + tid;
        };
        auto add_partials = [&](int worker) {
            const float4* from = partial(worker);
#pragma unroll
            for (int j = 0; j < octets; j++) {
                if (!(mine >> j & 1)) continue;
                float4 v = __ldcg(from + j * 128);
                d[4 * j] += v.x, d[4 * j + 1] += v.y, d[4 * j + 2] += v.z, d[4 * j + 3] += v.w;
            }
        };
        if (!whole && (p.parts > 0 || schedule.first > 0)) {  // leave what others finish
            if (p.parts > 0) {
                mine = 0;
                for (int j = me - local * p.parts; j < octets; j += p.parts) mine |= 1u << j;
            } else {
                mine = 0;
            }
            float4* to = partial(me);
#pragma unroll
            for (int j = 0; j < octets; j++)
                if (!(mine >> j & 1)) __stcg(to + j * 128, make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]));
            __threadfence();
            group_sync(warpgroup);
        }
        if (whole) {
        } else if (p.parts > 0) {  // the part's CTA finishes the octets j with j % parts == its part
            uint32_t* counter = p.flags + (schedule.block * 2 + group_index) * 2;
            if (tid == 0) {
                atomicAdd(counter, 1u);
                while (load_acquire(counter) < static_cast<uint32_t>(p.parts)) {
                }
            }
            group_sync(warpgroup);
            for (int w = local * p.parts; w < (local + 1) * p.parts; w++)  // its own first, then the others in order
                if (w != me) add_partials(w);
            if (tid == 0 && atomicAdd(counter + 1, 1u) == static_cast<uint32_t>(p.parts) - 1) counter[0] = 0, counter[1] = 0;
        } else if (schedule.first > 0) {
            if (tid == 0) atomicExch(p.flags + me * 2 + group_index, 1u);
            continue;
        } else {  // the owner
            const int last_worker = schedule.worker_at(static_cast<int64_t>(local + 1) * p.units - 1);
            for (int w = me + 1; w <= last_worker; w++) {
                if (tid == 0) {
                    uint32_t* flag = p.flags + w * 2 + group_index;
                    while (load_acquire(flag) == 0) {
                    }
                    *flag = 0;
                }
                group_sync(warpgroup);
                add_partials(w);
            }
        }
        store_block<TN>(p, block_place(p, schedule.block), my_tile, mine, d);
    }
#endif
}

using PrefillKernel = void (*)(CUtensorMap, Params);
struct Variant {
    int tokens, per_sm, groups;  // groups 8: any
    bool integer_zeros;
    PrefillKernel kernel;
};
const Variant variants[] = {
    {32, 2, 2, true, prefill_kernel<32, 2, true, 2>},     {64, 2, 2, true, prefill_kernel<64, 2, true, 2>},
    {64, 1, 2, true, prefill_kernel<64, 2, true, 1>},     {128, 1, 2, true, prefill_kernel<128, 2, true, 1>},
    {256, 1, 2, true, prefill_kernel<256, 2, true, 1>},   {64, 1, 8, true, prefill_kernel<64, 8, true, 1>},
    {128, 1, 8, true, prefill_kernel<128, 8, true, 1>},   {64, 1, 8, false, prefill_kernel<64, 8, false, 1>},
    {128, 1, 8, false, prefill_kernel<128, 8, false, 1>},
};

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                                 const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// How blocks are given to CTAs. 0: whole blocks only; 1: all blocks cut into equal shares; 2: whole waves, the rest in
// equal shares; 3: likewise with one wave less; 4: every block in equally many parts.
struct ScheduleChoice {
    int workers = 0, waves = 0, parts = 0;
    bool possible = false;
};
ScheduleChoice choose_schedule(int kind, int blocks, int units, int sms) {
    ScheduleChoice c;
    c.workers = sms;
    if (kind == 0) {
        c.workers = std::min(sms, blocks);
        c.waves = (blocks + sms - 1) / sms;
        c.possible = true;
    } else if (kind == 4) {
        c.parts = std::min(sms / blocks, units);
        c.workers = blocks * c.parts;
        c.possible = c.parts >= 2;
    } else {
        c.waves = kind == 1 ? 0 : blocks / sms - (kind - 2);
        c.possible = blocks % sms != 0 && c.waves >= 0 && (kind == 1 || c.waves > 0) &&
                     static_cast<int64_t>(blocks - c.waves * sms) * units >= sms;
    }
    return c;
}

struct PrefillPlan {
    const Variant* variant = nullptr;
    ScheduleChoice schedule;
};

// The gates that fit the kernel's formula.
struct Gate {
    bool known;
    float linear, cubic;
};
Gate gate_of(Activation activation) {
    switch (activation) {
        case Activation::silu: return {true, 1.0f, 0.0f};
        case Activation::quick_gelu: return {true, 1.702f, 0.0f};
        case Activation::gelu_tanh: return {true, 1.5957691f, 0.0713548f};
        default: return {false, 0, 0};
    }
}

// What a schedule costs, in microseconds, fitted to measurements on an H100 (docs/experiments.md): a CTA's time for one unit
// (128 rows x 256 columns) at this many tokens, and what cutting blocks along K costs, in equal parts or in equal shares.
struct Cost {
    double unit, parts, shares;
};
Cost cost_of(int tokens) {
    return tokens == 32    ? Cost{0.75, 5.2, 6.5}
           : tokens == 64  ? Cost{1.02, 5.0, 7.5}
           : tokens == 128 ? Cost{1.42, 7.0, 12.0}
                           : Cost{2.75, 22.0, 14.0};
}

PrefillPlan plan_prefill(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    const int units = static_cast<int>(layout.units()),
              row_blocks = static_cast<int>((layout.tiles() + block_tiles - 1) / block_tiles);
    const int groups = layout.group == 128 && layout.integer_zeros ? 2 : 8;
    PrefillPlan best;
    double best_cost = 1e30;
    for (const Variant& v : variants) {
        if (v.integer_zeros != layout.integer_zeros || v.groups != groups) continue;
        if (tuning.tokens && v.tokens != tuning.tokens) continue;
        if (tuning.per_sm ? v.per_sm != tuning.per_sm : v.per_sm == 2 && rows > 64) continue;
        const int token_blocks = (rows + v.tokens - 1) / v.tokens, blocks = row_blocks * token_blocks;
        for (int kind = 0; kind < 5; kind++) {
            if (tuning.schedule >= 0 && kind != tuning.schedule) continue;
            ScheduleChoice c = choose_schedule(kind, blocks, units, device.sm_count);
            if (!c.possible || static_cast<int64_t>(blocks) * 4 > counter_count) {
                if (kind != 0) continue;
            }
            Cost one = cost_of(v.tokens);
            double cost = kind == 0   ? c.waves * (units * one.unit + 1) + 2.5
                          : kind == 4 ? (units + c.parts - 1) / c.parts * (one.unit + (v.tokens == 32 ? 0.2 : 0.0)) + one.parts
                                      : static_cast<double>(blocks) * units / device.sm_count * one.unit + one.shares;
            if (cost < best_cost) best_cost = cost, best = {&v, c};
        }
    }
    return best;
}

}  // namespace

cudaError_t open_prefill(const MatmulDevice& device) {
    if (device.arch != 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, shared_limit)) return error;
    return cudaSuccess;
}

bool prefill_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args) {
    if (device.arch != 90 || !device.encode_tensor_map || !rows_aligned(args.x, args.ldx)) return false;
    const Output o = output_of(args, layout.out, layout.gated);
    if (!o.wide || layout.out % 4 || (layout.gated && !gate_of(o.activation).known)) return false;
    return plan_prefill(device, layout, args.rows).variant != nullptr;
}

cudaError_t prefill_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const PrefillPlan plan = plan_prefill(context.device, layout, args.rows);
    const int tokens = plan.variant->tokens;
    CUtensorMap map;
    cuuint64_t sizes[2] = {static_cast<cuuint64_t>(layout.in), static_cast<cuuint64_t>(args.rows)};
    cuuint64_t strides[1] = {static_cast<cuuint64_t>(args.ldx) * 2};
    cuuint32_t box[2] = {64, static_cast<cuuint32_t>(tokens)}, steps[2] = {1, 1};
    auto encode = reinterpret_cast<EncodeTiled>(context.device.encode_tensor_map);
    if (encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<half*>(args.x), sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
        return cudaErrorInvalidValue;
    Scratch scratch = scratch_of(context);
    Params p;
    p.w = static_cast<const uint8_t*>(weight.data);
    p.partials = scratch.partials, p.flags = scratch.counters;
    p.output = output_of(args, layout.out, layout.gated);
    p.tiles = static_cast<int>(layout.tiles());
    p.row_blocks = (p.tiles + block_tiles - 1) / block_tiles;
    p.token_blocks = (args.rows + tokens - 1) / tokens;
    p.units = static_cast<int>(layout.units()), p.unit_bytes = static_cast<int>(layout.unit_bytes()), p.group = layout.group;
    p.raster = std::min(p.token_blocks, 2048 / tokens);
    p.workers = plan.schedule.workers;
    p.full_waves = plan.schedule.waves, p.parts = plan.schedule.parts;
    const Gate gate = gate_of(args.gate_activation);
    p.gate_linear = gate.linear, p.gate_cubic = gate.cubic;
    // Shared memory: 1024 bytes for alignment, then the rings.
    const int limit = (plan.variant->per_sm == 2 ? 114176 : shared_limit) - 1024, w_bytes = block_tiles * p.unit_bytes,
              x_bytes = tokens * 128;
    p.w_slots = tokens == 32 ? 4 : tokens == 64 ? (plan.variant->per_sm == 2 ? 3 : 6) : tokens == 128 ? 4 : 3;
    while (limit - p.w_slots * w_bytes < 4 * x_bytes) p.w_slots--;
    p.x_slots = std::min(max_slots, (limit - p.w_slots * w_bytes) / x_bytes);
    const int shared_bytes = 1024 + p.w_slots * w_bytes + p.x_slots * x_bytes;
    // Two CTAs an SM means one of this product and one of the next: without a CTA on every SM the next product's would
    // come to lie two on some and none on others.
    const int grid = plan.variant->per_sm == 2 ? std::max(p.workers, context.device.sm_count) : p.workers;
    return launch(context, plan.variant->kernel, dim3(static_cast<unsigned>(grid)), threads, shared_bytes, map, p);
}

}  // namespace awq::cuda
