// y = x W^T for up to 16 rows of x: int4 weights straight from memory to registers.
//
// Written after the exploration of the decode step: there plain 16-byte loads that are well ahead of their use, one CTA an SM,
// were faster than the ring of bulk copies at every row count from 2 on. Compared with matmul_decode.cu there is no ring, no
// producer and no finisher: sixteen warps (or a few less, so that K divides evenly) cut K among them, each keeps `depth` units
// of weights on their way in registers, and all of them add the partial sums of a few tiles at a time.
//
// A warp's columns of x are its own: it brings them to shared memory itself, without a barrier unless there is a norm. Where
// x does not fit (`Resident` false) a warp holds one unit's columns at a time and takes two tiles with them.
//
// The order of every sum depends on the weight's shape alone, never on the number of rows: a row's result is the same bits
// whatever rows stand beside it.
#include <algorithm>
#include "backends/cuda/lab/lab.h"

namespace awq::cuda {
namespace {

constexpr int most_warps = 16;
constexpr int x_pitch = unit_columns * 2 + 16;  // bytes of a token's columns of one unit: ldmatrix meets no bank twice
constexpr int pass_tiles = 2;                   // tiles of a pass, where x is not resident

struct Params {
    const uint8_t* w;
    const half* x;
    const float* norm_weight;
    Output output;
    int64_t ldx;
    int rows, in, tiles, units, unit_bytes;
    int buffers;      // x not resident: units of x a warp has room for, 1 or 2
    int round_tiles;  // tiles whose sums are joined at once
    float eps;
    bool plus_one, x_aligned, norm_aligned;
};

// Words of scales and zeros behind a unit's nibbles, and how many of them each lane fetches.
template <int Groups, bool IntegerZeros>
constexpr int meta_words = Groups*(IntegerZeros ? 12 : 16);
template <int Groups, bool IntegerZeros>
constexpr int meta_lanes = (meta_words<Groups, IntegerZeros> + 31) / 32;

// One unit's weights in a warp's registers.
template <int Groups, bool IntegerZeros>
struct Unit {
    uint4 words[4];
    uint32_t meta[meta_lanes<Groups, IntegerZeros>];

    __device__ __forceinline__ void load(const uint8_t* from, uint64_t policy) {
        const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
        for (int span = 0; span < 4; span++) words[span] = load_stream(from + span * 512 + lane * 16, policy);
        const uint32_t* more = reinterpret_cast<const uint32_t*>(from + 2048);
#pragma unroll
        for (int i = 0; i < meta_lanes<Groups, IntegerZeros>; i++)
            if ((i + 1) * 32 <= meta_words<Groups, IntegerZeros> || i * 32 + lane < meta_words<Groups, IntegerZeros>)
                meta[i] = __ldg(more + i * 32 + lane);
    }
    // Scales of slots g and g + 8.
    __device__ __forceinline__ uint32_t scales(int group, int g) const {
        return __shfl_sync(~0u, meta[group * 8 / 32], group * 8 % 32 + g);
    }
    // Their zeros: two bytes, or two halves.
    __device__ __forceinline__ uint32_t zeros(int group, int g) const {
        if constexpr (IntegerZeros) {
            const int word = Groups * 8 + group * 4;
            return __shfl_sync(~0u, meta[word / 32], word % 32 + (g >> 1)) >> (g & 1) * 16;
        } else {
            const int word = Groups * 8 + group * 8;
            return __shfl_sync(~0u, meta[word / 32], word % 32 + g);
        }
    }
};

// One unit times the tokens in shared memory; x: this lane's ldmatrix rows, at the unit's columns.
template <int TT, int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply_unit(float (&sum)[TT][4], const Unit<Groups, IntegerZeros>& unit, const uint32_t (&x)[TT]) {
    constexpr int group_steps = 16 / Groups;
    const int g = (static_cast<int>(threadIdx.x) & 31) >> 2;
    float d[TT][2][4];  // two accumulators, to shorten the chain of dependent products
    uint32_t b[TT][8];
    uint32_t scales = 0;
    GroupMeta<IntegerZeros> meta;
#pragma unroll
    for (int step = 0; step < 16; step++) {
        if (step % group_steps == 0) {
            scales = unit.scales(step / group_steps, g);
            meta.set(scales, unit.zeros(step / group_steps, g));
#pragma unroll
            for (int m = 0; m < TT; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) d[m][0][i] = d[m][1][i] = 0.0f;
        }
        if (step % 4 == 0) {
#pragma unroll
            for (int m = 0; m < TT; m++) {
                ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(b[m][0]), x[m] + step * 32);
                ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(b[m][4]), x[m] + step * 32 + 64);
            }
        }
        const uint4& span = unit.words[step / 4];
        const uint32_t word = word_of(span, step);
        uint32_t a[4];
        if constexpr (IntegerZeros)
            subtract_zero(a, word, meta);
        else
            dequantize<false>(a, word, meta);
#pragma unroll
        for (int m = 0; m < TT; m++) mma(d[m][step % 2], a, b[m][step % 4 * 2], b[m][step % 4 * 2 + 1]);
        if (step % group_steps == group_steps - 1) {
            const float2 scale = IntegerZeros ? __half22float2(as_half2(scales)) : make_float2(1.0f, 1.0f);
#pragma unroll
            for (int m = 0; m < TT; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[m][i] += (i < 2 ? scale.x : scale.y) * (d[m][0][i] + d[m][1][i]);
        }
    }
}

__device__ __forceinline__ float squares_of(uint4 v) {
    const float2 a = __half22float2(as_half2(v.x)), b = __half22float2(as_half2(v.y)), c = __half22float2(as_half2(v.z)),
                 d = __half22float2(as_half2(v.w));
    return (a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y) + (c.x * c.x + c.y * c.y + d.x * d.x + d.y * d.y);
}

// The warps' partial sums of `count` tiles from `first` on, [tile][warp][slot][token], to y.
template <int Tokens>
__device__ __forceinline__ void join_sums(const Output& o, const float* sums, int first, int count, int warps) {
    constexpr int tile_sums = tile_rows * Tokens;
    const int slots = o.gated ? 8 : 16;
    for (int i = static_cast<int>(threadIdx.x); i < count * slots * Tokens; i += static_cast<int>(blockDim.x)) {
        const int token = i % Tokens, slot = i / Tokens % slots, tile = i / Tokens / slots;
        if (token >= o.rows) continue;
        const float* from = sums + tile * warps * tile_sums + slot * Tokens + token;
        float v = 0, up = 0;
#pragma unroll 4
        for (int w = 0; w < warps; w++) v += from[w * tile_sums];
        if (o.gated) {
#pragma unroll 4
            for (int w = 0; w < warps; w++) up += from[w * tile_sums + 8 * Tokens];
            const int channels = o.out / 2, channel = (first + tile) * 8 + slot;
            if (channel >= channels) continue;
            half* y = o.y + token * o.ldy + channel;
            if (o.activation == Activation::none)
                y[0] = __float2half(v), y[channels] = __float2half(up);
            else
                y[0] = __float2half(activate(o.activation, v) * up);
            continue;
        }
        const int row = (first + tile) * tile_rows + 4 * ((slot & 7) >> 1) + (slot & 1) + (slot < 8 ? 0 : 2);
        if (row >= o.out) continue;
        if (o.bias) v += __ldg(o.bias + row);
        if (o.residual) v += __half2float(load_activation(o.residual + token * o.ld_residual + row));
        o.y[token * o.ldy + row] = __float2half(v);
    }
}

// Tokens: 1, 2, 4, 8 or 16, at least the rows. depth: units on their way.
template <int Tokens, int Groups, bool IntegerZeros, bool Resident, int depth>
__global__ void __launch_bounds__(most_warps * 32, 1) decode_direct_kernel(const __grid_constant__ Params p) {
    constexpr int TT = Tokens > 8 ? 2 : 1, tile_sums = tile_rows * Tokens;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float squares[Tokens][most_warps];
    pdl_trigger();
    const int warps = static_cast<int>(blockDim.x) >> 5, warp = static_cast<int>(threadIdx.x) >> 5,
              lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const int first_tile = static_cast<int>(static_cast<int64_t>(p.tiles) * blockIdx.x / gridDim.x);
    const int last_tile = static_cast<int>(static_cast<int64_t>(p.tiles) * (blockIdx.x + 1) / gridDim.x);
    const int mine = (p.units - warp + warps - 1) / warps;  // units of a tile: warp, warp + warps, ...
    float* sums = reinterpret_cast<float*>(shared);         // two rounds' worth
    uint8_t* x_shared = shared + 2 * p.round_tiles * warps * tile_sums * sizeof(float) +
                        warp * (Resident ? (p.units + warps - 1) / warps : p.buffers) * p.rows * x_pitch;

    // ---- the stream of this warp's units: tile by tile, or for two tiles at a time unit by unit
    Unit<Groups, IntegerZeros> queue[depth];
    const uint64_t policy = stream_policy();
    int ahead_pass = first_tile, ahead_tile = 0, ahead_unit = 0;  // the next to be fetched; tile: within the pass
    auto fetch = [&](Unit<Groups, IntegerZeros>& to) {
        const int tile = ahead_pass + ahead_tile;
        if (tile < last_tile)
            to.load(p.w + (static_cast<int64_t>(tile) * p.units + warp + ahead_unit * warps) * p.unit_bytes, policy);
        if constexpr (Resident) {
            if (++ahead_unit == mine) ahead_unit = 0, ahead_pass++;
        } else {
            if (++ahead_tile == pass_tiles) {  // a place in the queue belongs to a tile, also where the last pass has only one
                ahead_tile = 0;
                if (++ahead_unit == mine) ahead_unit = 0, ahead_pass += pass_tiles;
            }
        }
    };
#pragma unroll
    for (int i = 0; i < depth; i++) fetch(queue[i]);

    // ---- x
    const int lane_column = lane * 8;
    auto load_norm = [&](int unit, float(&w)[8]) {
        const int column = unit * unit_columns + lane_column;
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
    float first_norm[8];  // on its way while the kernel before finishes
    if (p.norm_weight) load_norm(warp, first_norm);
    pdl_wait();
    auto stage = [&](int unit, uint8_t* to) {  // this lane's 8 columns of every row
        const int column = unit * unit_columns + lane_column, left = min(max(p.in - column, 0), 8);
        const half* from = p.x + (left ? column : 0);
        for (int m = 0; m < p.rows; m++, from += p.ldx, to += x_pitch) {
            if (p.x_aligned) {
                copy16(shared_address(to) + lane * 16, from, left * 2);
            } else {
                half* h = reinterpret_cast<half*>(to) + lane_column;
                for (int i = 0; i < 8; i++) h[i] = i < left ? load_activation(from + i) : __float2half(0.0f);
            }
        }
        copy_commit();
    };
    auto scale_rows = [&](int unit, uint8_t* at) {  // the norm, on what this lane has staged itself
        float w[8];
        if (unit == warp) {
#pragma unroll
            for (int i = 0; i < 8; i++) w[i] = first_norm[i];
        } else {
            load_norm(unit, w);
        }
#pragma unroll 4
        for (int m = 0; m < p.rows; m++) {
            float total = 0;
            for (int i = 0; i < warps; i++) total += squares[m][i];
            const float s = rsqrtf(total / static_cast<float>(p.in) + p.eps);
            uint4* piece = reinterpret_cast<uint4*>(at + m * x_pitch) + lane;
            const uint4 v = *piece;
            const float2 a = __half22float2(as_half2(v.x)), b = __half22float2(as_half2(v.y)), c = __half22float2(as_half2(v.z)),
                         d = __half22float2(as_half2(v.w));
            *piece = make_uint4(pack_half2(a.x * s * w[0], a.y * s * w[1]), pack_half2(b.x * s * w[2], b.y * s * w[3]),
                                pack_half2(c.x * s * w[4], c.y * s * w[5]), pack_half2(d.x * s * w[6], d.y * s * w[7]));
        }
    };
    const int unit_x = p.rows * x_pitch;  // bytes
    if constexpr (Resident) {
        for (int i = 0; i < mine; i++) stage(warp + i * warps, x_shared + i * unit_x);
        copy_wait<0>();
    }
    if (p.norm_weight) {
#pragma unroll 4
        for (int m = 0; m < p.rows; m++) {
            float sum = 0;
            for (int i = 0; i < mine; i++) {
                if constexpr (Resident) {
                    sum += squares_of(load_shared16(shared_address(x_shared + i * unit_x + m * x_pitch) + lane * 16));
                } else {
                    const int column = (warp + i * warps) * unit_columns + lane_column;
                    const half* from = p.x + m * p.ldx;
                    uint4 piece;
                    if (p.x_aligned && column + 8 <= p.in) {
                        piece = __ldcg(reinterpret_cast<const uint4*>(from + column));
                    } else {
                        auto at = [&](int c) { return c < p.in ? load_activation(from + c) : __float2half(0.0f); };
                        auto pair = [&](int c) { return as_bits(__halves2half2(at(c), at(c + 1))); };
                        piece = make_uint4(pair(column), pair(column + 2), pair(column + 4), pair(column + 6));
                    }
                    sum += squares_of(piece);  // in the order of the other branch: the same bits
                }
            }
#pragma unroll
            for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
            if (lane == 0) squares[m][warp] = sum;
        }
        __syncthreads();
        if constexpr (Resident)
            for (int i = 0; i < mine; i++) scale_rows(warp + i * warps, x_shared + i * unit_x);
    }
    __syncwarp();

    // ---- the product
    uint32_t x[TT];  // where this lane's row of an ldmatrix begins: token lane % 8, 8 columns from 8 * (lane / 8)
#pragma unroll
    for (int m = 0; m < TT; m++)
        x[m] = shared_address(x_shared) + min(m * 8 + (lane & 7), p.rows - 1) * x_pitch + (lane >> 3) * 16;
    int round_first = first_tile, round = 0;
    auto put = [&](int tile, const float(&sum)[TT][4]) {
        float* to = sums + ((round & 1) * p.round_tiles + tile - round_first) * warps * tile_sums + warp * tile_sums;
#pragma unroll
        for (int m = 0; m < TT; m++) {
            const int token = m * 8 + 2 * t;
            if constexpr (Tokens == 1) {
                if (t == 0) to[g] = sum[m][0], to[g + 8] = sum[m][2];
            } else if (token < Tokens) {
                *reinterpret_cast<float2*>(to + g * Tokens + token) = make_float2(sum[m][0], sum[m][1]);
                *reinterpret_cast<float2*>(to + (g + 8) * Tokens + token) = make_float2(sum[m][2], sum[m][3]);
            }
        }
        if (tile + 1 - round_first < p.round_tiles && tile + 1 < last_tile) return;
        __syncthreads();
        join_sums<Tokens>(p.output, sums + (round & 1) * p.round_tiles * warps * tile_sums, round_first, tile + 1 - round_first,
                          warps);
        round_first = tile + 1, round++;
    };
    if constexpr (Resident) {
        float sum[TT][4] = {};
        int tile = first_tile, unit = 0;
        while (tile < last_tile) {
#pragma unroll
            for (int i = 0; i < depth; i++) {
                if (tile >= last_tile) break;
                uint32_t at[TT];
#pragma unroll
                for (int m = 0; m < TT; m++) at[m] = x[m] + unit * unit_x;
                const Unit<Groups, IntegerZeros> now = queue[i];
                fetch(queue[i]);
                multiply_unit<TT, Groups, IntegerZeros>(sum, now, at);
                if (++unit < mine) continue;
                put(tile, sum);
                unit = 0, tile++;
#pragma unroll
                for (int m = 0; m < TT; m++)
#pragma unroll
                    for (int k = 0; k < 4; k++) sum[m][k] = 0.0f;
            }
        }
    } else {
        static_assert(Resident || depth == pass_tiles, "each tile of a pass has its place in the queue");
        for (int pass = first_tile; pass < last_tile; pass += pass_tiles) {
            float sum[pass_tiles][TT][4] = {};
            const int tiles = min(pass_tiles, last_tile - pass);
            if (p.buffers == 2) stage(warp, x_shared);
            for (int unit = 0; unit < mine; unit++) {
                const int buffer = p.buffers == 2 ? unit & 1 : 0;
                uint8_t* here = x_shared + buffer * unit_x;
                if (p.buffers == 1) {
                    stage(warp + unit * warps, here);
                    copy_wait<0>();
                } else if (unit + 1 < mine) {
                    stage(warp + (unit + 1) * warps, x_shared + (buffer ^ 1) * unit_x);
                    copy_wait<1>();
                } else {
                    copy_wait<0>();
                }
                if (p.norm_weight) scale_rows(warp + unit * warps, here);
                __syncwarp();
                uint32_t at[TT];
#pragma unroll
                for (int m = 0; m < TT; m++) at[m] = x[m] + buffer * unit_x;
#pragma unroll
                for (int i = 0; i < pass_tiles; i++) {
                    const Unit<Groups, IntegerZeros> now = queue[i];
                    fetch(queue[i]);
                    if (i < tiles) multiply_unit<TT, Groups, IntegerZeros>(sum[i], now, at);
                }
                __syncwarp();  // all lanes are done with this unit's columns
            }
#pragma unroll
            for (int i = 0; i < pass_tiles; i++)
                if (i < tiles) put(pass + i, sum[i]);
        }
    }
}

using DirectKernel = void (*)(Params);
struct Variant {
    int tokens, groups;
    bool integer_zeros, resident;
    DirectKernel kernel;
};
template <int Tokens, int Groups, bool IntegerZeros, bool Resident>
constexpr Variant variant() {
    return {Tokens, Groups, IntegerZeros, Resident,
            decode_direct_kernel<Tokens, Groups, IntegerZeros, Resident, Resident ? (Tokens > 8 ? 2 : 3) : pass_tiles>};
}
// The first that takes the rows, and whose x fits, is taken.
#define AWQ_DIRECT(groups, zeros)                                                                         \
    variant<1, groups, zeros, true>(), variant<2, groups, zeros, true>(), variant<4, groups, zeros, true>(), \
        variant<8, groups, zeros, true>(), variant<8, groups, zeros, false>(), variant<16, groups, zeros, true>(), \
        variant<16, groups, zeros, false>()
const Variant variants[] = {AWQ_DIRECT(2, true),  AWQ_DIRECT(4, true),  AWQ_DIRECT(8, true),
                            AWQ_DIRECT(2, false), AWQ_DIRECT(4, false), AWQ_DIRECT(8, false)};
#undef AWQ_DIRECT

struct DirectPlan {
    const Variant* variant = nullptr;
    int warps = 0, buffers = 0, round_tiles = 0, shared_bytes = 0;
};

// As many warps as cut K most evenly; among equals the most.
int choose_warps(int units) {
    int best = 1;
    double share = 0;
    for (int warps = std::min(units, 8); warps <= std::min(units, most_warps); warps++) {
        const int each = (units + warps - 1) / warps;
        const double used = static_cast<double>(units) / (each * warps) * (warps >= 12 ? 1.0 : 0.9);
        if (used >= share) best = warps, share = used;
    }
    return best;
}

DirectPlan plan_direct(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    const int units = static_cast<int>(layout.units()), limit = device.shared_block - 3072;
    const int most_tiles = static_cast<int>((layout.tiles() + device.sm_count - 1) / device.sm_count);
    DirectPlan plan;
    plan.warps = choose_warps(units);
    for (const Variant& v : variants) {
        if (v.tokens < rows || v.groups != layout.groups() || v.integer_zeros != layout.integer_zeros) continue;
        const int tile_bytes = 2 * plan.warps * tile_rows * v.tokens * static_cast<int>(sizeof(float)), unit_x = rows * x_pitch;
        // One row has sums for all of a CTA's tiles, others for two or one: then one round is joined while the next is made.
        plan.round_tiles = std::min(most_tiles, v.tokens == 1 ? 16 : v.tokens <= 8 ? 2 : 1);
        const int sums = plan.round_tiles * tile_bytes;
        plan.buffers = sums + 2 * plan.warps * unit_x <= limit ? 2 : 1;
        plan.shared_bytes = sums + plan.warps * unit_x * (v.resident ? (units + plan.warps - 1) / plan.warps : plan.buffers);
        if (plan.shared_bytes > limit) continue;
        plan.variant = &v;
        break;
    }
    return plan;
}

}  // namespace

cudaError_t decode_direct_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const DirectPlan plan = plan_direct(context.device, layout, args.rows);
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
    p.buffers = plan.buffers, p.round_tiles = plan.round_tiles;
    if (cudaError_t error = allow_shared(plan.variant->kernel, plan.shared_bytes)) return error;
    const int grid = std::min(context.device.sm_count, p.tiles);
    return launch(context, plan.variant->kernel, dim3(static_cast<unsigned>(grid)), plan.warps * 32, plan.shared_bytes, p);
}

}  // namespace awq::cuda
