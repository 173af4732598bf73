// The grouped product of a mixture of experts for a few tokens: up to 8 rows an expert, int4 weights at the speed of memory.
// sm_90 and later.
//
// One CTA an SM. The work is a list of items, an expert with its rows; all items' tiles of 16 rows of W, one item behind the
// other, are shared out evenly among the CTAs, whatever the experts are. A CTA's stretch of tiles is a stretch of units, dealt
// out to its sixteen warps in turn, so that K is cut among them and all have equally many. Each warp streams its own units
// through a ring of its own (bulk copies, waited for and asked for by the warp itself: nobody else is involved), multiplies them
// with x, which lies in shared memory whole, and leaves its sums of a tile. After every few tiles the warps meet and join the
// sums.
//
// Mix: the second product of a single token. Its experts' matrices side by side are one matrix, each expert's sums times its
// share: what remains is the residual, and no kernel need follow to add the experts up.
//
// Which experts are wanted is in device memory. Where the kernel that wrote it was done before the one in front of this began
// (ExpertRows::settled), the weights are on their way before the dependency wait.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {
namespace {

constexpr int warps = 16, threads = warps * 32;
constexpr int most_items = 64, most_rows = 8, most_slots = 6;
constexpr int spare = 3072;  // of shared memory, for what is not dynamic

struct Params {
    const uint8_t* w;
    const half* x;
    Output output;
    ExpertRows experts;
    ExpertMix mix;
    int64_t ldx, expert_bytes;
    int expert_count, in, tiles, units, unit_bytes, group;
    int slots, x_pitch;  // of each warp's ring; bytes of a row of x in shared memory
    bool x_aligned;
};

struct Items {
    int count;
    int expert[most_items], row[most_items], rows[most_items];
    float share[most_items];  // Mix
};

// By one warp.
template <int Columns>
__device__ __forceinline__ void list_items(Items& items, const Params& p) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    int before = 0;
    for (int base = 0; base < p.expert_count; base += 32) {
        const int e = base + lane;
        int begin = 0, size = 0;
        if (e < p.expert_count) begin = __ldcg(p.experts.begin + e), size = __ldcg(p.experts.begin + e + 1) - begin;
        const int own = (size + Columns - 1) / Columns;
        int upto = own;
#pragma unroll
        for (int step = 1; step < 32; step <<= 1) {
            const int other = __shfl_up_sync(~0u, upto, step);
            if (lane >= step) upto += other;
        }
        for (int i = 0; i < own; i++) {
            const int at = before + upto - own + i;
            items.expert[at] = e, items.row[at] = begin + i * Columns, items.rows[at] = min(Columns, size - i * Columns);
        }
        before += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0) items.count = before;
}

// Tiles whose sums are joined at once.
template <int Columns>
constexpr int round_tiles = Columns == 1 ? 4 : 2;
template <int Columns>
constexpr int sums_bytes = 2 * round_tiles<Columns>* warps* tile_rows* Columns * 4;

__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory"); }

// The outputs of `tiles` tiles of one item: four lanes add up one, each the sums of four warps.
template <int Columns>
__device__ __forceinline__ void join_sums(const Params& p, const float* sums, int tile, int tiles, int row, int rows) {
    const Output& o = p.output;
    const int quarter = static_cast<int>(threadIdx.x) & 3, tile_outputs = o.gated ? 8 : tile_rows;
    const int outputs = tiles * tile_outputs * Columns;
    for (int i = static_cast<int>(threadIdx.x) / 4; i < (outputs + 7) / 8 * 8;
         i += threads / 4) {  // whole warps, for the shuffles
        const int token = i % Columns, slot = i / Columns % tile_outputs, place = min(i / Columns / tile_outputs, tiles - 1);
        const float* from = sums + ((place * warps + quarter * 4) * tile_rows + slot) * Columns + token;
        auto total = [&](const float* at) {
            float v = 0;
#pragma unroll
            for (int w = 0; w < 4; w++) v += at[w * tile_rows * Columns];
            v += __shfl_xor_sync(~0u, v, 1);
            return v + __shfl_xor_sync(~0u, v, 2);
        };
        float v = total(from);
        const float up = o.gated ? total(from + 8 * Columns) : 0.0f;
        if (quarter != 0 || i >= outputs || token >= rows) continue;
        half* y = o.y + static_cast<int64_t>(row + token) * o.ldy;
        if (o.gated) {
            const int channels = o.out / 2, channel = (tile + place) * 8 + slot;
            if (channel >= channels) continue;
            if (o.activation == Activation::none)
                y[channel] = __float2half(v), y[channels + channel] = __float2half(up);
            else
                y[channel] = __float2half(activate(o.activation, v) * up);
        } else {
            const int column = (tile + place) * tile_rows + 4 * ((slot & 7) >> 1) + (slot & 1) + (slot < 8 ? 0 : 2);
            if (column >= o.out) continue;
            if (o.residual) v += __half2float(load_activation(o.residual + column));  // of a single row
            y[column] = __float2half(v);
        }
    }
}

// Columns: rows of an item at most. Groups: of a unit; 8 serves every size.
template <int Columns, int Groups, bool IntegerZeros, bool Mix>
__global__ void __launch_bounds__(threads, 1) few_kernel(const __grid_constant__ Params p) {
    constexpr int round = round_tiles<Columns>, warp_sums = tile_rows * Columns;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[warps * most_slots];
    __shared__ Items items;
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const uint32_t full = shared_address(barriers + warp * most_slots);
    const uint32_t ring = shared_address(shared) + warp * p.slots * p.unit_bytes;
    uint8_t* x_shared = shared + warps * p.slots * p.unit_bytes;
    float* sums = reinterpret_cast<float*>(x_shared + (Mix ? p.mix.count : Columns) * p.x_pitch);
    const bool settled = Mix ? p.mix.settled : p.experts.settled;

    if (lane == 0) {
        for (int i = 0; i < p.slots; i++) barrier_init(full + 8 * i, 1);
        barrier_init_done();
    }
    if (!settled) {
        pdl_wait();
        pdl_trigger();
    }
    if constexpr (Mix) {
        if (warp == 0 && lane < p.mix.count) {
            items.expert[lane] = __ldcg(p.mix.expert + lane);
            items.row[lane] = __ldcg(p.mix.row + lane);
            items.share[lane] = __ldcg(p.mix.share + lane);
        }
    } else {
        if (warp == 0) list_items<Columns>(items, p);
    }
    __syncthreads();
    const int tile_units = Mix ? p.units * p.mix.count : p.units;  // of a tile of y
    const int64_t all = static_cast<int64_t>(Mix ? 1 : items.count) * p.tiles;
    const int first = static_cast<int>(all * blockIdx.x / gridDim.x), last = static_cast<int>(all * (blockIdx.x + 1) / gridDim.x);

    // ---- this warp's stream: of the units of this CTA's tiles of one item, then of the next, every sixteenth
    const uint64_t policy = stream_policy();
    int ask_tile = first, ask_unit = warp;
    auto ask = [&](int slot) {  // by lane 0
        while (ask_unit >= tile_units) {
            ask_unit -= tile_units;
            if (!Mix && ++ask_tile % p.tiles == 0) ask_unit = warp;
            if (Mix) ask_tile++;
        }
        if (ask_tile >= last) return;
        const int item = Mix ? ask_unit / p.units : ask_tile / p.tiles;
        const int tile = Mix ? ask_tile : ask_tile - item * p.tiles, unit = Mix ? ask_unit - item * p.units : ask_unit;
        barrier_expect(full + 8 * slot, static_cast<uint32_t>(p.unit_bytes));
        bulk_copy(ring + slot * p.unit_bytes,
                  p.w + items.expert[item] * p.expert_bytes + (static_cast<int64_t>(tile) * p.units + unit) * p.unit_bytes,
                  static_cast<uint32_t>(p.unit_bytes), full + 8 * slot, policy);
        ask_unit += warps;
    };
    if (lane == 0)
        for (int i = 0; i < p.slots; i++) ask(i);
    if (settled) {
        pdl_wait();
        pdl_trigger();
    }

    const int groups = Groups == 2 ? 2 : unit_columns / p.group, group_shift = p.group == 128 ? 2 : p.group == 64 ? 1 : 0;
    int slot = 0, phase = 0, turn = 0;
    for (int at = first; at < last;) {
        const int item = at / p.tiles, tile = at - item * p.tiles, count = min(p.tiles - tile, last - at);
        const int row = Mix ? 0 : items.row[item], rows = Mix ? p.mix.count : items.rows[item];
        // x, zero past `in`
        for (int m = 0; m < rows; m++) {
            int64_t source = Mix ? items.row[m] : row + m;
            if (!Mix && p.experts.source) source = __ldcg(p.experts.source + source);
            const half* from = p.x + source * p.ldx;
            for (int i = static_cast<int>(threadIdx.x); i < p.units * 32; i += threads) {
                const int left = min(max(p.in - i * 8, 0), 8);
                uint8_t* to = x_shared + m * p.x_pitch + i * 16;
                if (p.x_aligned) {
                    copy16(shared_address(to), from + (left ? i * 8 : 0), left * 2);
                } else {
                    half* h = reinterpret_cast<half*>(to);
                    for (int c = 0; c < 8; c++) h[c] = c < left ? load_activation(from + i * 8 + c) : __float2half(0.0f);
                }
            }
        }
        copy_commit();
        copy_wait<0>();
        meet();
        // ldmatrix: row lane % 8, 8 columns from 8 * (lane / 8)
        const uint32_t x = shared_address(x_shared) + (Mix ? 0 : min(lane & 7, rows - 1)) * p.x_pitch + (lane >> 3) * 16;
        int unit = warp, in_round = 0;  // unit: of the segment's first tile, then of the next ones
        for (int i = 0; i < count; i++) {
            float d[2][4] = {};  // two accumulators, to shorten the chain of dependent products
            float sum[4] = {};   // Mix: over the experts
            for (; unit < tile_units; unit += warps) {
                const int of = Mix ? unit / p.units : 0;  // the expert of a mix
                const uint32_t x_unit = x + of * p.x_pitch + (unit - of * p.units) * 512;
                if constexpr (Mix) {
#pragma unroll
                    for (int e = 0; e < 4; e++) d[0][e] = d[1][e] = 0.0f;
                }
                barrier_wait(full + 8 * slot, phase);
                const uint32_t from = ring + slot * p.unit_bytes;
                uint4 words[4];
                GroupMeta<IntegerZeros> meta[Groups];
                uint32_t scales[Groups], zeros[Groups];
#pragma unroll
                for (int span = 0; span < 4; span++) words[span] = load_shared16(from + span * 512 + lane * 16);
#pragma unroll
                for (int piece = 0; piece < Groups; piece++) {
                    const int group = Groups == 2 ? piece : piece >> group_shift;
                    scales[piece] = load_shared4(from + 2048 + group * 32 + g * 4);
                    zeros[piece] = IntegerZeros ? load_shared2(from + 2048 + groups * 32 + group * 16 + g * 2)
                                                : load_shared4(from + 2048 + groups * 32 + group * 32 + g * 4);
                }
                __syncwarp();
                if (lane == 0) ask(slot);
                if (++slot == p.slots) slot = 0, phase ^= 1;
#pragma unroll
                for (int pair = 0; pair < 8; pair++) {  // of k16 steps
                    uint32_t b[4], a[4];
                    ldmatrix4(b, x_unit + pair * 64);
                    GroupMeta<IntegerZeros>& m = meta[pair * Groups / 8];
                    if (pair * Groups % 8 == 0) m.set(scales[pair * Groups / 8], zeros[pair * Groups / 8]);
                    const uint4& span = words[pair / 2];
                    dequantize<IntegerZeros>(a, pair % 2 ? span.z : span.x, m);
                    mma(d[0], a, b[0], b[1]);
                    dequantize<IntegerZeros>(a, pair % 2 ? span.w : span.y, m);
                    mma(d[1], a, b[2], b[3]);
                }
                if constexpr (Mix) {
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[e] += items.share[of] * (d[0][e] + d[1][e]);
                }
            }
            if constexpr (!Mix) {
#pragma unroll
                for (int e = 0; e < 4; e++) sum[e] = d[0][e] + d[1][e];
            }
            unit -= tile_units;
            float* to = sums + ((turn * round + in_round) * warps + warp) * warp_sums;
            if constexpr (Columns == 1) {
                if (t == 0) to[g] = sum[0], to[g + 8] = sum[2];
            } else if (2 * t < Columns) {
                *reinterpret_cast<float2*>(to + g * Columns + 2 * t) = make_float2(sum[0], sum[1]);
                *reinterpret_cast<float2*>(to + (g + 8) * Columns + 2 * t) = make_float2(sum[2], sum[3]);
            }
            if (++in_round == round || i + 1 == count) {
                meet();
                join_sums<Columns>(p, sums + turn * round * warps * warp_sums, tile + i + 1 - in_round, in_round, row,
                                   Mix ? 1 : rows);
                in_round = 0, turn ^= 1;
            }
        }
        at += count;
    }
}

using FewKernel = void (*)(Params);
struct Variant {
    int columns, groups;  // groups 8: any
    bool integer_zeros, mix;
    FewKernel kernel;
    int sums;
};
template <int Columns, int Groups, bool IntegerZeros, bool Mix = false>
constexpr Variant variant() {
    return {Columns, Groups, IntegerZeros, Mix, few_kernel<Columns, Groups, IntegerZeros, Mix>, sums_bytes<Columns>};
}
const Variant variants[] = {variant<1, 2, true>(),       variant<4, 2, true>(),       variant<8, 2, true>(),
                            variant<1, 8, true>(),       variant<8, 8, true>(),       variant<8, 8, false>(),
                            variant<1, 2, true, true>(), variant<1, 8, true, true>(), variant<1, 8, false, true>()};

struct Plan {
    const Variant* variant = nullptr;
    int slots = 0, x_pitch = 0, shared_bytes = 0;
};
// columns: rows of an item, 1 of a mix; x_rows: rows of x in shared memory, at least the variant's columns.
Plan plan_few(const MatmulDevice& device, const Q4Layout& layout, int columns, bool mix, int x_rows) {
    Plan plan;
    if (device.arch < 90) return plan;
    plan.x_pitch = static_cast<int>(layout.units()) * unit_columns * 2 + 16;  // ldmatrix meets no bank twice
    const int groups = layout.group == 128 && layout.integer_zeros ? 2 : 8,
              slot_bytes = warps * static_cast<int>(layout.unit_bytes());
    for (const Variant& v : variants) {
        if (v.columns < columns || v.mix != mix || v.groups != groups || v.integer_zeros != layout.integer_zeros) continue;
        const int64_t rest = std::max(v.columns, x_rows) * static_cast<int64_t>(plan.x_pitch) + v.sums;
        plan.slots = static_cast<int>(std::min<int64_t>((device.shared_block - spare - rest) / slot_bytes, most_slots));
        if (tuning.slots) plan.slots = std::min(plan.slots, tuning.slots);
        plan.shared_bytes = static_cast<int>(plan.slots * slot_bytes + rest);
        if (plan.slots >= 2) plan.variant = &v;
        break;
    }
    return plan;
}

cudaError_t launch_few(const MatmulContext& context, const Plan& plan, const Q4Weight& weight, const MatmulArgs& args,
                       const ExpertRows& rows, const ExpertMix& mix) {
    const Q4Layout& layout = weight.layout;
    Params p;
    p.w = static_cast<const uint8_t*>(weight.data);
    p.x = args.x, p.ldx = args.ldx, p.in = static_cast<int>(layout.in), p.x_aligned = rows_aligned(args.x, args.ldx);
    p.output = output_of(args, layout.out, layout.gated);
    p.experts = rows, p.mix = mix;
    p.expert_bytes = layout.bytes(), p.expert_count = weight.experts;
    p.tiles = static_cast<int>(layout.tiles()), p.units = static_cast<int>(layout.units());
    p.unit_bytes = static_cast<int>(layout.unit_bytes()), p.group = layout.group;
    p.slots = plan.slots, p.x_pitch = plan.x_pitch;
    return launch(context, plan.variant->kernel, dim3(static_cast<unsigned>(context.device.sm_count)), threads, plan.shared_bytes,
                  p);
}

}  // namespace

cudaError_t open_few(const MatmulDevice& device) {
    if (device.arch < 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, device.shared_block - spare)) return error;
    return cudaSuccess;
}

bool few_fit(const MatmulDevice& device, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    return args.rows <= most_items && rows.most <= most_rows && plan_few(device, weight.layout, rows.most, false, 0).variant;
}
cudaError_t few_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    return launch_few(context, plan_few(context.device, weight.layout, rows.most, false, 0), weight, args, rows, {});
}

bool mix_fits(const MatmulDevice& device, const Q4Weight& weight, const ExpertMix& mix) {
    return !weight.layout.gated && mix.count <= 32 && plan_few(device, weight.layout, 1, true, mix.count).variant;
}
cudaError_t matmul_q4_mix(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertMix& mix) {
    return launch_few(context, plan_few(context.device, weight.layout, 1, true, mix.count), weight, args, {}, mix);
}

}  // namespace awq::cuda
