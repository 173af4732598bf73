// y = x W^T for up to 16 rows of x: int4 weights at the speed of memory, sm_90 and later.
//
// One CTA an SM walks a contiguous run of 16-row tiles. A producer thread keeps a ring of bulk copies in flight (it starts
// before the dependency wait: weights depend on nothing); eight consumer warps in two sets take its chunks in turn; a
// finisher warp adds the eight partial sums of a tile, applies the epilogue and stores, so that consumers never wait for
// one another between tiles. A CTA takes less than half an SM, and the grid is one CTA for each SM: the next product's CTA
// moves in beside this one and fills its ring while this one works, which is what hides the gap between kernels.
//
// Arithmetic is in integers, exact but for the rounding of x: int8 tensor cores, because that takes the fewest
// instructions for a nibble. A packed word is four bytes, in each a nibble of slot g (low) and one of slot g + 8 (high), of the
// same column. Masked, it is an operand row of slot g; as it stands, a row with 16 q[g + 8] + q[g], and the difference of both
// sums is slot g + 8's. x is turned into integers of 22 bits and a sign, relative to the largest of each group of columns, and
// those into three digits of eight bits ("planes"), each a column of the other operand. With sums P over a group's columns:
//     y += s f (P0 + 256 P1 + 65536 P2 - z sum x),   f: the power of two that the group's x were scaled by, inverted.
//
// Where x does not fit in shared memory, K is cut into `slices`: partial sums go through scratch, and the last CTA to arrive
// adds them in the order of slices.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {
namespace {

constexpr int set_warps = 4;  // a chunk has up to 4 units, one for each warp of a set
constexpr int max_slots = 24;
constexpr int sum_slots = 2;  // tiles whose partial sums may wait for the finisher
constexpr int max_rows = 16;

// Consumer warps of a CTA: chunk i belongs to set i % sets.
__host__ __device__ constexpr int consumers_of(int sets) { return sets * set_warps; }
__host__ __device__ constexpr int threads_of(int sets) { return (consumers_of(sets) + 2) * 32; }

struct Params {
    const uint8_t* w;
    const half* x;
    const float* norm_weight;
    float4* partials;
    uint32_t* counters;
    Output output;
    int64_t ldx;
    int rows, in, tiles, units, unit_bytes, slices, slots, window;
    int pitch;  // bytes of a row of x in shared memory: 64 more than a multiple of 128
    float eps;
    bool plus_one, x_pairs;  // x_pairs: two columns of x may be loaded at once
};

// Bytes of dynamic shared memory, in order: ring, partial sums, x, its factors.
struct SharedPlan {
    int ring, sums, x, factors, total;
};
__host__ __device__ inline SharedPlan shared_plan(int slots, int unit_bytes, int sets, int token_tiles, int rows, int pitch,
                                                  int groups) {
    SharedPlan s;
    s.ring = 0;
    s.sums = slots * set_warps * unit_bytes;
    s.x = s.sums + sum_slots * consumers_of(sets) * token_tiles * 512;
    s.factors = s.x + 3 * rows * pitch;
    s.total = s.factors + groups * token_tiles * 64;
    return s;
}

template <int Consumers>
__device__ __forceinline__ void consumer_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(Consumers * 32) : "memory");
}

// How x lies in shared memory: rows of one byte a column, `pitch` bytes apart, row plane * tokens + token. Within 64 columns
// the bytes are in the order in which a lane takes them: [t][k16 step][2t, 2t + 8, 2t + 1, 2t + 9]. Beside it, for each
// group and operand column, {factor, factor * sum of x}.
//
// Packed (one or two rows of x): operand column 3 * token + plane; a factor holds the plane's weight. Otherwise operand
// column = token, and the three planes are three products.
template <int TT, bool Packed, int Groups, int Consumers>
__device__ __forceinline__ void stage_x(const Params& p, uint8_t* x_shared, float2* factors, float (*squares)[Consumers],
                                        int first_column, int blocks) {
    constexpr int group_lanes = unit_columns / Groups / 4, operand_columns = TT * 8;
    constexpr int keep = 4;  // blocks whose x and norm weights stay in registers
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    // One, two, four or eight rows of x at a time, each by as many warps as that leaves. A block: 128 columns, four a lane.
    const int at_once = p.rows == 1 ? 1 : p.rows == 2 ? 2 : p.rows <= 4 ? 4 : 8, row_warps = Consumers / at_once;
    const int part = warp % row_warps, in_block = (lane >> 4) * 64 + (lane >> 2 & 3) * 16 + (lane & 3) * 2;
    const int all_blocks = (p.in + 127) / 128;
    struct Four {
        uint32_t low, high;  // columns c, c + 1; c + 8, c + 9
    };
    auto load = [&](int row, int column) {
        column += in_block;
        const half* from = p.x + row * p.ldx + column;
        if (p.x_pairs && column + 10 <= p.in)
            return Four{__ldcg(reinterpret_cast<const unsigned*>(from)), __ldcg(reinterpret_cast<const unsigned*>(from + 8))};
        auto one = [&](int i) {
            return column + i < p.in ? static_cast<uint32_t>(__half_as_ushort(load_activation(from + i))) : 0u;
        };
        return Four{one(0) | one(1) << 16, one(8) | one(9) << 16};
    };
    auto load_norm = [&](int column) {
        column += in_block;
        float one = p.plus_one ? 1.0f : 0.0f;
        auto weight = [&](int i) { return column + i < p.in ? __ldg(p.norm_weight + column + i) + one : 0.0f; };
        return make_float4(weight(0), weight(8), weight(1), weight(9));
    };
    float4 norms[keep];
    if (p.norm_weight) {  // on its way while the kernel before finishes
#pragma unroll
        for (int i = 0; i < keep; i++)
            if (part + i * row_warps < blocks) norms[i] = load_norm(first_column + (part + i * row_warps) * 128);
    }
    pdl_wait();
    for (int first_row = 0; first_row < p.rows; first_row += at_once) {
        const int row = first_row + warp / row_warps;
        const bool there = row < p.rows;
        Four kept[keep];
#pragma unroll
        for (int i = 0; i < keep; i++)
            if (there && part + i * row_warps < blocks) kept[i] = load(row, first_column + (part + i * row_warps) * 128);
        float scale = 1;
        if (p.norm_weight) {
            float sum = 0;
            auto add = [&](Four v) {
                float2 a = __half22float2(as_half2(v.low)), b = __half22float2(as_half2(v.high));
                sum += a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y;
            };
            const int first_block = first_column / 128;  // the mean is over the whole row, not the slice
            if (there) {
#pragma unroll
                for (int i = 0; i < keep; i++)
                    if (part + i * row_warps < blocks) add(kept[i]);
#pragma unroll 4
                for (int block = part + keep * row_warps; block < blocks; block += row_warps)
                    add(load(row, first_column + block * 128));
#pragma unroll 4
                for (int block = part; block < all_blocks; block += row_warps)
                    if (block < first_block || block >= first_block + blocks) add(load(row, block * 128));
            }
#pragma unroll
            for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
            if (row_warps > 1) {
                if (there && lane == 0) squares[row][part] = sum;
                consumer_sync<Consumers>();
                sum = 0;
                if (there)
                    for (int i = 0; i < row_warps; i++) sum += squares[row][i];
            }
            scale = rsqrtf(sum / static_cast<float>(p.in) + p.eps);
        }
        if (!there) continue;
        auto put = [&](int block, Four x, float4 norm) {
            float2 a = __half22float2(as_half2(x.low)), b = __half22float2(as_half2(x.high));
            float v[4] = {a.x, b.x, a.y, b.y};
            if (p.norm_weight) v[0] *= scale * norm.x, v[1] *= scale * norm.y, v[2] *= scale * norm.z, v[3] *= scale * norm.w;
            const unsigned mask = group_lanes == 32 ? ~0u : ((1u << group_lanes) - 1) << (lane & ~(group_lanes - 1));
            const float most = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
            bool finite = true;  // the maximum of floats drops NaN
#pragma unroll
            for (int i = 0; i < 4; i++) finite = finite && fabsf(v[i]) < 3.0e38f;
            unsigned exponent = __reduce_max_sync(mask, finite ? __float_as_uint(most) : 0x7f800000u) >> 23;
            const bool broken = exponent == 255;
            exponent = max(exponent, 24u);
            const float up = __uint_as_float((275 - min(exponent, 254u)) << 23);  // to below 2^22
            const float down = broken ? __uint_as_float(0x7fc00000u) : __uint_as_float((exponent - 21) << 23);
            uint32_t digits[4];
            int sum = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int n = __float_as_int(fmaf(v[i], up, 12582912.0f)) - 0x4b400000;  // rounded to an integer
                sum += n;
                digits[i] = static_cast<uint32_t>(n + 0x808080) ^ 0x808080u;  // three balanced digits
            }
            sum = __reduce_add_sync(mask, sum);
            uint32_t p01 = __byte_perm(digits[0], digits[1], 0x5140), p23 = __byte_perm(digits[2], digits[3], 0x5140);
            uint32_t planes[3] = {
                __byte_perm(p01, p23, 0x5410), __byte_perm(p01, p23, 0x7632),
                __byte_perm(__byte_perm(digits[0], digits[1], 0x0062), __byte_perm(digits[2], digits[3], 0x0062), 0x5410)};
            uint8_t* to = x_shared + row * p.pitch + block * 128 + (lane >> 4) * 64 + (lane & 3) * 16 + (lane >> 2 & 3) * 4;
#pragma unroll
            for (int i = 0; i < 3; i++) *reinterpret_cast<uint32_t*>(to + i * p.rows * p.pitch) = planes[i];
            if (lane % group_lanes == 0) {
                float2* f = factors + (block * (32 / group_lanes) + lane / group_lanes) * operand_columns;
                const float total = down * static_cast<float>(sum);
                if constexpr (Packed) {
                    f[3 * row] = make_float2(down, total);
                    f[3 * row + 1] = make_float2(down * 256.0f, 0.0f);
                    f[3 * row + 2] = make_float2(down * 65536.0f, 0.0f);
                } else {
                    f[row] = make_float2(down, total);
                }
            }
        };
#pragma unroll
        for (int i = 0; i < keep; i++)
            if (part + i * row_warps < blocks) put(part + i * row_warps, kept[i], norms[i]);
#pragma unroll 2
        for (int block = part + keep * row_warps; block < blocks; block += row_warps) {
            Four x = load(row, first_column + block * 128);
            put(block, x, p.norm_weight ? load_norm(first_column + block * 128) : make_float4(1, 1, 1, 1));
        }
    }
    consumer_sync<Consumers>();
}

// d (16 slots x 8 operand columns, integers) += a (unsigned bytes) b (signed bytes) over 32 columns of W
__device__ __forceinline__ void mma_bytes(int (&d)[4], uint32_t w0, uint32_t w1, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(w0 & 0x0f0f0f0fu), "r"(w0), "r"(w1 & 0x0f0f0f0fu), "r"(w1), "r"(b0), "r"(b1));
}

// One unit (16 rows x 256 columns) times x. x: where this lane's bytes of the unit begin, [token tile][plane].
template <int TT, bool Packed, int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply_unit(float (&sum)[TT][4], uint32_t unit, const uint32_t (&x)[TT][Packed ? 1 : 3],
                                              const float2* factors) {
    constexpr int planes = Packed ? 1 : 3, pairs = 8 / Groups;  // pairs of k16 steps in a group
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    uint4 words[4];
#pragma unroll
    for (int span = 0; span < 4; span++) words[span] = load_shared16(unit + span * 512 + lane * 16);
    uint4 b[TT][planes];
    int d[TT][planes][4];
#pragma unroll
    for (int pair = 0; pair < 8; pair++) {
        if (pair % pairs == 0) {
#pragma unroll
            for (int i = 0; i < TT * planes * 4; i++) (&d[0][0][0])[i] = 0;
        }
        if (pair % 2 == 0) {
#pragma unroll
            for (int m = 0; m < TT; m++)
#pragma unroll
                for (int i = 0; i < planes; i++) b[m][i] = load_shared16(x[m][i] + pair * 32);
        }
        const uint4& w = words[pair / 2];
#pragma unroll
        for (int m = 0; m < TT; m++)
#pragma unroll
            for (int i = 0; i < planes; i++) {
                if (pair % 2 == 0)
                    mma_bytes(d[m][i], w.x, w.y, b[m][i].x, b[m][i].y);
                else
                    mma_bytes(d[m][i], w.z, w.w, b[m][i].z, b[m][i].w);
            }
        if (pair % pairs == pairs - 1) {
            const int group = pair / pairs;
            float2 scale = __half22float2(as_half2(load_shared4(unit + 2048 + group * 32 + g * 4)));
            float beta0, beta1;
            if constexpr (IntegerZeros) {
                uint32_t zeros = load_shared2(unit + 2048 + Groups * 32 + group * 16 + g * 2);
                // bytes to halves: 1024 + z exactly, then to float: cheaper than the integer conversion
                float2 z = __half22float2(__hsub2(as_half2(0x64006400u | __byte_perm(zeros, 0, 0x4140)), as_half2(0x64006400u)));
                beta0 = -scale.x * z.x, beta1 = -scale.y * z.y;
            } else {
                float2 offset = __half22float2(as_half2(load_shared4(unit + 2048 + Groups * 32 + group * 32 + g * 4)));
                beta0 = offset.x, beta1 = offset.y;
            }
            scale.y *= 0.0625f;
#pragma unroll
            for (int m = 0; m < TT; m++) {
                const float4 f = *reinterpret_cast<const float4*>(factors + group * (TT * 8) + m * 8 + 2 * t);  // of two columns
                float e[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if constexpr (Packed)
                        e[i] = static_cast<float>(d[m][0][i]);
                    else
                        e[i] = static_cast<float>(d[m][0][i] + d[m][1][i] * 256) + 65536.0f * static_cast<float>(d[m][2][i]);
                }
                sum[m][0] += scale.x * (e[0] * f.x) + beta0 * f.y;
                sum[m][1] += scale.x * (e[1] * f.z) + beta0 * f.w;
                sum[m][2] += scale.y * ((e[2] - e[0]) * f.x) + beta1 * f.y;
                sum[m][3] += scale.y * ((e[3] - e[1]) * f.z) + beta1 * f.w;
            }
        }
    }
}

// A tile's finished sums (fragments of 8 operand columns) to y, by way of shared memory, so that each lane has four
// neighbouring outputs of one token as floats. `board`: 16 x TT * 8 floats of this warp's own.
template <int TT, bool Packed>
__device__ __forceinline__ void finish_tile(const Output& o, int tile, const float4 (&v)[TT], float* board) {
    constexpr int columns = TT * 8 + 1;
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < TT; m++) {
        float* at = board + g * columns + m * 8 + 2 * t;
        at[0] = v[m].x, at[1] = v[m].y, at[8 * columns] = v[m].z, at[8 * columns + 1] = v[m].w;
    }
    __syncwarp();
    for (int i = lane; i < o.rows * 4; i += 32) {
        const int token = i >> 2, quad = i & 3;
        auto sum = [&](int slot) {
            const float* at = board + slot * columns;
            return Packed ? at[3 * token] + at[3 * token + 1] + at[3 * token + 2] : at[token];
        };
        float s0 = sum(2 * quad), s1 = sum(2 * quad + 1), s8 = sum(8 + 2 * quad), s9 = sum(9 + 2 * quad);
        if (o.gated) {
            int channels = o.out / 2, channel = tile * 8 + 2 * quad;
            if (o.activation == Activation::none)
                store2(o, token, channel, channels, o.y + channels, __floats2half2_rn(s8, s9));
            else
                s0 = activate(o.activation, s0) * s8, s1 = activate(o.activation, s1) * s9;
            store2(o, token, channel, channels, o.y, __floats2half2_rn(s0, s1));
            continue;
        }
        int column = tile * 16 + 4 * quad;
        if (o.bias) {
            s0 += column < o.out ? __ldg(o.bias + column) : 0.0f;
            s1 += column + 1 < o.out ? __ldg(o.bias + column + 1) : 0.0f;
            s8 += column + 2 < o.out ? __ldg(o.bias + column + 2) : 0.0f;
            s9 += column + 3 < o.out ? __ldg(o.bias + column + 3) : 0.0f;
        }
        store4(o, token, column, make_float4(s0, s1, s8, s9));
    }
}

template <int TT, bool Packed, int Groups, bool IntegerZeros, int Sets, int PerSm>
__global__ void __launch_bounds__(threads_of(Sets), PerSm) decode_kernel(const __grid_constant__ Params p) {
    constexpr int consumers = consumers_of(Sets);
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[2 * max_slots + 2 * sum_slots];
    __shared__ float squares[max_rows][consumers];
    __shared__ float board[tile_rows * (TT * 8 + 1)];
    pdl_trigger();
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
    const uint32_t full = shared_address(barriers), empty = full + 8 * max_slots;
    const uint32_t sums_full = empty + 8 * max_slots, sums_empty = sums_full + 8 * sum_slots;

    const int slice = static_cast<int>(blockIdx.x) % p.slices, crew = static_cast<int>(blockIdx.x) / p.slices;
    const int crews = static_cast<int>(gridDim.x) / p.slices;
    const int first_tile = static_cast<int>(static_cast<int64_t>(p.tiles) * crew / crews);
    const int last_tile = static_cast<int>(static_cast<int64_t>(p.tiles) * (crew + 1) / crews);
    const int first_unit = p.units * slice / p.slices, units = p.units * (slice + 1) / p.slices - first_unit;
    const int tile_chunks = (units + set_warps - 1) / set_warps;
    const int slot_bytes = set_warps * p.unit_bytes;
    // The first `longer` chunks of a tile have one unit more than the others.
    const int chunk_units = units / tile_chunks, longer = units % tile_chunks;

    const SharedPlan plan = shared_plan(p.slots, p.unit_bytes, Sets, TT, p.rows, p.pitch, 0);
    float2* factors = reinterpret_cast<float2*>(shared + plan.factors);
    float4* sums = reinterpret_cast<float4*>(shared + plan.sums);

    if (threadIdx.x == consumers * 32) {
        for (int i = 0; i < p.slots; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, set_warps);
        }
        for (int i = 0; i < sum_slots; i++) {
            barrier_init(sums_full + 8 * i, consumers);
            barrier_init(sums_empty + 8 * i, 1);
        }
        barrier_init_done();
    }
    __syncthreads();

    if (warp == consumers) {  // the producer
        if (lane == 0) {
            const uint64_t policy = stream_policy();
            const uint32_t ring = shared_address(shared);
            int slot = 0, phase = 1, landed = 0, landed_phase = 0;
            int index = 0;
            for (int tile = first_tile; tile < last_tile; tile++) {
                const uint8_t* from = p.w + (static_cast<int64_t>(tile) * p.units + first_unit) * p.unit_bytes;
                for (int c = 0; c < tile_chunks; c++, index++) {
                    if (index >= p.slots) barrier_wait(empty + 8 * slot, phase);
                    if (index >= p.window) {  // a short queue: x must not wait behind it
                        barrier_wait(full + 8 * landed, landed_phase);
                        if (++landed == p.slots) landed = 0, landed_phase ^= 1;
                    }
                    uint32_t bytes = (chunk_units + (c < longer)) * p.unit_bytes;
                    barrier_expect(full + 8 * slot, bytes);
                    bulk_copy(ring + slot * slot_bytes, from, bytes, full + 8 * slot, policy);
                    from += bytes;
                    if (++slot == p.slots) slot = 0, phase ^= 1;
                }
            }
        }
    } else if (warp < consumers) {
        stage_x<TT, Packed, Groups, consumers>(p, shared + plan.x, factors, squares, first_unit * unit_columns, units * 2);
        const int set = warp / set_warps, place = warp % set_warps;
        constexpr int planes = Packed ? 1 : 3;
        uint32_t x[TT][planes];  // where this lane's operand column begins; columns without a token repeat the last
#pragma unroll
        for (int m = 0; m < TT; m++)
#pragma unroll
            for (int i = 0; i < planes; i++) {
                int column = m * 8 + (lane >> 2),
                    row = Packed ? min(column, 3 * p.rows - 1) % 3 * p.rows + min(column, 3 * p.rows - 1) / 3
                                 : i * p.rows + min(column, p.rows - 1);
                x[m][i] = shared_address(shared + plan.x) + row * p.pitch + (lane & 3) * 16;
            }
        const uint32_t ring = shared_address(shared) + place * p.unit_bytes;
        int turn = 0, slot = 0, phase = 0, sum_slot = 0, sum_phase = 1;  // turn: the set whose chunk comes next
        for (int tile = first_tile; tile < last_tile; tile++) {
            float sum[TT][4] = {};
            for (int c = 0; c < tile_chunks; c++) {
                if (turn == set) {
                    const int unit = c * chunk_units + min(c, longer) + place;
                    barrier_wait(full + 8 * slot, phase);
                    if (place < chunk_units + (c < longer)) {
                        uint32_t at[TT][planes];
#pragma unroll
                        for (int m = 0; m < TT; m++)
#pragma unroll
                            for (int i = 0; i < planes; i++) at[m][i] = x[m][i] + unit * unit_columns;
                        multiply_unit<TT, Packed, Groups, IntegerZeros>(sum, ring + slot * slot_bytes, at,
                                                                        factors + unit * Groups * (TT * 8));
                    }
                    __syncwarp();
                    if (lane == 0) barrier_arrive(empty + 8 * slot);
                }
                if (++turn == Sets) turn = 0;
                if (++slot == p.slots) slot = 0, phase ^= 1;
            }
            barrier_wait(sums_empty + 8 * sum_slot, sum_phase);
#pragma unroll
            for (int m = 0; m < TT; m++)
                sums[((sum_slot * consumers + warp) * TT + m) * 32 + lane] =
                    make_float4(sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
            __syncwarp();
            if (lane == 0) barrier_arrive(sums_full + 8 * sum_slot);
            if (++sum_slot == sum_slots) sum_slot = 0, sum_phase ^= 1;
        }
    } else {  // the finisher
        pdl_wait();
        int slot = 0, phase = 0;
        for (int tile = first_tile; tile < last_tile; tile++) {
            barrier_wait(sums_full + 8 * slot, phase);
            float4 v[TT];
#pragma unroll
            for (int m = 0; m < TT; m++) {
                v[m] = make_float4(0, 0, 0, 0);
#pragma unroll
                for (int w = 0; w < consumers; w++) {
                    float4 part = sums[((slot * consumers + w) * TT + m) * 32 + lane];
                    v[m].x += part.x, v[m].y += part.y, v[m].z += part.z, v[m].w += part.w;
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(sums_empty + 8 * slot);
            if (++slot == sum_slots) slot = 0, phase ^= 1;
            if (p.slices > 1) {
                float4* partial = p.partials + (static_cast<int64_t>(tile) * p.slices + slice) * TT * 32 + lane;
#pragma unroll
                for (int m = 0; m < TT; m++) __stcg(partial + m * 32, v[m]);
                continue;
            }
            finish_tile<TT, Packed>(p.output, tile, v, board);
        }
        if (p.slices == 1) return;
        // All tiles' partial sums are on their way; now one fence and one round of counting for 32 tiles at a time.
        __threadfence();
        __syncwarp();
        for (int base = first_tile; base < last_tile; base += 32) {
            bool last = false;
            if (base + lane < last_tile) {
                last = atomicAdd(p.counters + base + lane, 1u) == static_cast<uint32_t>(p.slices) - 1;
                if (last) p.counters[base + lane] = 0;
            }
            __threadfence();
            for (unsigned mine = __ballot_sync(~0u, last); mine; mine &= mine - 1) {
                const int tile = base + __ffs(static_cast<int>(mine)) - 1;
                const float4* partial = p.partials + static_cast<int64_t>(tile) * p.slices * TT * 32 + lane;
                float4 v[TT];
#pragma unroll
                for (int m = 0; m < TT; m++) {
                    v[m] = make_float4(0, 0, 0, 0);
                    for (int s = 0; s < p.slices; s++) {
                        float4 part = __ldcg(partial + (s * TT + m) * 32);
                        v[m].x += part.x, v[m].y += part.y, v[m].z += part.z, v[m].w += part.w;
                    }
                }
                finish_tile<TT, Packed>(p.output, tile, v, board);
            }
        }
    }
}

using DecodeKernel = void (*)(Params);
struct Variant {
    int max_rows, token_tiles, groups;
    bool integer_zeros;
    int sets, per_sm;  // CTAs that share an SM
    DecodeKernel kernel;
};
template <int TT, bool Packed, int Groups, bool IntegerZeros, int Sets, int PerSm>
constexpr Variant variant() {
    return {
        Packed ? 2 : 8 * TT, TT, Groups, IntegerZeros, Sets, PerSm, decode_kernel<TT, Packed, Groups, IntegerZeros, Sets, PerSm>};
}
const Variant variants[] = {
    variant<1, true, 2, true, 2, 2>(),   variant<1, false, 2, true, 2, 2>(),  variant<2, false, 2, true, 2, 2>(),
    variant<1, false, 4, true, 2, 2>(),  variant<2, false, 4, true, 2, 2>(),  variant<1, false, 8, true, 2, 2>(),
    variant<2, false, 8, true, 2, 2>(),  variant<1, false, 2, false, 2, 2>(), variant<2, false, 2, false, 2, 2>(),
    variant<1, false, 4, false, 2, 2>(), variant<2, false, 4, false, 2, 2>(), variant<1, false, 8, false, 2, 2>(),
    variant<2, false, 8, false, 2, 2>(),
};

// How K is cut and how deep the ring is.
struct DecodePlan {
    int slices = 1, slots = 0, window = 0, pitch = 0, shared_bytes = 0;
};
// Dynamic shared memory of a CTA at one or two CTAs a SM; 3 KB of static memory and the 1 KB that the system takes beside it.
int shared_limit(const MatmulDevice& device, int per_sm) {
    return (per_sm == 1 ? device.shared_block - 3072 : std::min(device.shared_sm / 2 - 4096, device.shared_block - 3072)) / 128 *
           128;
}

// The first that serves; null: none.
const Variant* variant_of(const Q4Layout& layout, int rows) {
    for (const Variant& v : variants)
        if (rows <= v.max_rows && v.groups == layout.groups() && v.integer_zeros == layout.integer_zeros) return &v;
    return nullptr;
}

DecodePlan plan_decode(const MatmulDevice& device, const Q4Layout& layout, const Variant& variant, int rows) {
    const int units = static_cast<int>(layout.units()), unit_bytes = static_cast<int>(layout.unit_bytes());
    auto with = [&](int slices, int limit) {
        DecodePlan plan;
        plan.slices = slices;
        const int slice_units = (units + slices - 1) / slices, groups = slice_units * layout.groups();
        plan.pitch = slice_units * unit_columns + 64;
        SharedPlan rest = shared_plan(0, 0, variant.sets, variant.token_tiles, rows, plan.pitch, groups);
        plan.slots = std::min((limit - rest.total) / (set_warps * unit_bytes), max_slots);
        if (tuning.slots) plan.slots = std::min(plan.slots, tuning.slots);
        // A multiple of the sets, so that a slot is always the same set's. Copies may land out of order, and a barrier's parity
        // cannot tell a phase from the one after the next: only who has seen a slot's last filling may wait for the next.
        plan.slots = plan.slots / variant.sets * variant.sets;
        plan.window = std::min(plan.slots, tuning.window ? tuning.window : 4);
        plan.shared_bytes =
            shared_plan(plan.slots, unit_bytes, variant.sets, variant.token_tiles, rows, plan.pitch, groups).total;
        return plan;
    };
    const int most = shared_limit(device, 1), limit = shared_limit(device, variant.per_sm);
    const bool may_slice = layout.tiles() <= counter_count && layout.tiles() * 8 * variant.token_tiles * 512 <= partial_bytes;
    for (int slices = 1; slices <= (may_slice ? 8 : 1) && slices <= units; slices *= 2) {
        DecodePlan plan = with(slices, limit);
        if (plan.slots >= 4 && plan.slots >= 2 * variant.sets) return plan;
    }
    return with(may_slice ? std::min(8, units) : 1, most);
}

}  // namespace

cudaError_t decode_bytes_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const Variant* variant = variant_of(layout, args.rows);
    if (!variant) return cudaErrorInvalidConfiguration;
    const DecodePlan plan = plan_decode(context.device, layout, *variant, args.rows);
    if (plan.slots < variant->sets) return cudaErrorInvalidConfiguration;
    if (cudaError_t error = allow_shared(variant->kernel, plan.shared_bytes)) return error;
    Scratch scratch = scratch_of(context);
    Params p;
    p.w = static_cast<const uint8_t*>(weight.data);
    p.x = args.x, p.ldx = args.ldx, p.rows = args.rows, p.in = static_cast<int>(layout.in);
    p.x_pairs = reinterpret_cast<uintptr_t>(args.x) % 4 == 0 && args.ldx % 2 == 0;
    p.norm_weight = args.norm_weight, p.eps = args.norm_eps, p.plus_one = args.norm_plus_one;
    p.partials = scratch.partials, p.counters = scratch.counters;
    p.output = output_of(args, layout.out, layout.gated);
    p.tiles = static_cast<int>(layout.tiles()), p.units = static_cast<int>(layout.units());
    p.unit_bytes = static_cast<int>(layout.unit_bytes());
    p.slices = plan.slices, p.slots = plan.slots, p.window = plan.window, p.pitch = plan.pitch;
    int grid = context.device.sm_count / plan.slices * plan.slices;
    return launch(context, variant->kernel, dim3(static_cast<unsigned>(grid)), threads_of(variant->sets), plan.shared_bytes, p);
}

}  // namespace awq::cuda
