// y = x W^T for up to 16 rows of x: int4 weights at the speed of memory, sm_90 and later.
//
// One CTA an SM walks a contiguous run of 16-row tiles. A producer thread keeps a ring of bulk copies in flight (it starts
// before the dependency wait: weights depend on nothing); eight consumer warps in two sets take its chunks in turn; a
// finisher warp adds the eight partial sums of a tile, applies the epilogue and stores, so that consumers never wait for
// one another between tiles. A CTA takes less than half an SM, and the grid is one CTA for each SM: the next product's CTA
// moves in beside this one and fills its ring while this one works, which is what hides the gap between kernels.
//
// Arithmetic: nibbles masked out of a word are halves with the value q * 2^-24 (subnormals) or q * 2^-20, exact operands of
// the tensor cores; a group's sum is scaled in float, and its zero point enters through the group's sum of x:
//     sum_k (q_k - z) s x_k = s * sum_k q_k x_k - s z * sum_k x_k.
//
// Where x does not fit in shared memory, or re-reading it costs more than it should, K is cut into `slices`: partial sums go
// through scratch, and the last CTA to arrive adds them in the order of slices.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {
namespace {

constexpr int set_warps = 4;  // a chunk has up to 4 units, one for each warp of a set
constexpr int max_slots = 24;
constexpr int sum_slots = 2;  // tiles whose partial sums may wait for the finisher
constexpr int max_rows = 16;
constexpr int max_consumers = 16;

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
    int pitch;  // bytes of a row of x in shared memory
    float eps;
    bool plus_one, x_aligned, norm_aligned;
};

// Bytes of dynamic shared memory, in order: ring, partial sums, x, sums of x, barriers.
struct SharedPlan {
    int ring, sums, x, x_sums, total;
};
__host__ __device__ inline SharedPlan shared_plan(int slots, int unit_bytes, int sets, int token_tiles, int rows, int pitch,
                                                  int groups) {
    SharedPlan s;
    s.ring = 0;
    s.sums = slots * set_warps * unit_bytes;
    s.x = s.sums + sum_slots * consumers_of(sets) * token_tiles * 512;
    s.x_sums = s.x + rows * pitch;
    s.total = s.x_sums + groups * token_tiles * 8 * 4;
    return s;
}

template <int Consumers>
__device__ __forceinline__ void consumer_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(Consumers * 32) : "memory");
}

// x of this slice to shared memory, normalised, and its sums over each group of columns.
template <int MT, int Groups, int Consumers>
__device__ __forceinline__ void stage_x(const Params& p, uint8_t* x_shared, float* x_sums, float (*squares)[max_consumers],
                                        int first_column, int chunks) {
    constexpr int group_chunks = unit_columns / Groups / 8;  // a chunk: 8 columns
    constexpr int step = Consumers * 32;
    const int tid = static_cast<int>(threadIdx.x), lane = tid & 31, warp = tid >> 5;
    auto load_norm = [&](int chunk, float(&w)[8]) {
        int column = first_column + chunk * 8;
        if (p.norm_aligned && column + 8 <= p.in) {
            float4 a = __ldg(reinterpret_cast<const float4*>(p.norm_weight + column)),
                   b = __ldg(reinterpret_cast<const float4*>(p.norm_weight + column) + 1);
            w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) w[i] = column + i < p.in ? __ldg(p.norm_weight + column + i) : 0.0f;
        }
    };
    float ahead[2][8];  // the norm's weights of the first two chunks, on their way while the kernel before finishes
    if (p.norm_weight) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (tid + i * step < chunks) load_norm(tid + i * step, ahead[i]);
    }
    pdl_wait();
    uint32_t to = shared_address(x_shared);
    for (int chunk = tid; chunk < chunks; chunk += step) {
        int column = first_column + chunk * 8;
        int left = min(max(p.in - column, 0), 8);
        for (int m = 0; m < p.rows; m++) {
            const half* from = p.x + m * p.ldx + (left ? column : 0);
            if (p.x_aligned) {
                copy16(to + m * p.pitch + chunk * 16, from, left * 2);
            } else {
                half* h = reinterpret_cast<half*>(x_shared + m * p.pitch) + chunk * 8;
                for (int i = 0; i < 8; i++) h[i] = i < left ? load_activation(from + i) : __float2half(0.0f);
            }
        }
    }
    copy_commit();
    copy_wait<0>();  // each thread goes on with the chunks it has copied itself
    if (p.norm_weight) {
        for (int m = 0; m < p.rows; m++) {
            float sum = 0;
            auto add = [&](uint4 v) {
                uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float2 f = __half22float2(as_half2(words[i]));
                    sum += f.x * f.x + f.y * f.y;
                }
            };
            for (int chunk = tid; chunk < chunks; chunk += step) add(load_shared16(to + m * p.pitch + chunk * 16));
            if (p.slices > 1) {  // the mean is over the whole row: the other slices' columns count too
                const half* row = p.x + m * p.ldx;
                for (int column = tid * 8; column < p.in; column += step * 8) {
                    if (column >= first_column && column < first_column + chunks * 8) continue;
                    if (p.x_aligned && column + 8 <= p.in) {
                        add(__ldcg(reinterpret_cast<const uint4*>(row + column)));
                    } else {
                        for (int i = column; i < min(column + 8, p.in); i++) {
                            float f = __half2float(load_activation(row + i));
                            sum += f * f;
                        }
                    }
                }
            }
#pragma unroll
            for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
            if (lane == 0) squares[m][warp] = sum;
        }
        consumer_sync<Consumers>();
    }
    auto finish = [&](int chunk, const float(&w)[8]) {
        for (int m = 0; m < p.rows; m++) {
            uint4* at = reinterpret_cast<uint4*>(x_shared + m * p.pitch) + chunk;
            uint4 v = *at;
            uint32_t words[4] = {v.x, v.y, v.z, v.w};
            float sum = 0, scale = 1;
            if (p.norm_weight) {
                float total = 0;
#pragma unroll
                for (int i = 0; i < Consumers; i++) total += squares[m][i];
                scale = rsqrtf(total / static_cast<float>(p.in) + p.eps);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                half2 h = as_half2(words[i]);
                float2 f = __half22float2(h);
                if (p.norm_weight) {
                    float one = p.plus_one ? 1.0f : 0.0f;
                    h = __floats2half2_rn(f.x * scale * (w[2 * i] + one), f.y * scale * (w[2 * i + 1] + one));
                    words[i] = as_bits(h);
                    f = __half22float2(h);
                }
                sum += f.x + f.y;
            }
            if (p.norm_weight) *at = make_uint4(words[0], words[1], words[2], words[3]);
#pragma unroll
            for (int d = 1; d < group_chunks; d <<= 1) sum += __shfl_xor_sync(~0u, sum, d);
            if (chunk % group_chunks == 0) x_sums[chunk / group_chunks * (8 * MT) + m] = sum;
        }
    };
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (tid + i * step < chunks) finish(tid + i * step, ahead[i]);
    for (int chunk = tid + 2 * step; chunk < chunks; chunk += step) {
        float w[8] = {};
        if (p.norm_weight) load_norm(chunk, w);
        finish(chunk, w);
    }
    consumer_sync<Consumers>();
}

// One unit (16 rows x 256 columns) times the tokens in shared memory.
template <int MT, int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply_unit(float (&sum)[MT][4], uint32_t unit, const uint32_t (&x)[MT], const float* x_sums) {
    constexpr int group_steps = 16 / Groups;
    constexpr int chains = MT == 1 ? 2 : 1;  // independent accumulators, to shorten the chain of dependent products
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    uint4 words[4];
#pragma unroll
    for (int span = 0; span < 4; span++) words[span] = load_shared16(unit + span * 512 + lane * 16);
    float d[MT][chains][4];
    uint32_t b[MT][8];
#pragma unroll
    for (int step = 0; step < 16; step++) {
        if (step % group_steps == 0) {
#pragma unroll
            for (int i = 0; i < MT * chains * 4; i++) (&d[0][0][0])[i] = 0.0f;
        }
        if (step % 4 == 0) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
                ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(b[m][0]), x[m] + step * 32);
                ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(b[m][4]), x[m] + step * 32 + 64);
            }
        }
        const uint4& span = words[step / 4];
        uint32_t word = word_of(span, step);
        uint32_t a[4] = {word & 0x000f000f, word & 0x00f000f0, word >> 8 & 0x000f000f, word >> 8 & 0x00f000f0};
#pragma unroll
        for (int m = 0; m < MT; m++) mma(d[m][step % chains], a, b[m][step % 4 * 2], b[m][step % 4 * 2 + 1]);
        if (step % group_steps == group_steps - 1) {
            constexpr float low = 16777216.0f, high = 1048576.0f;  // 2^24, 2^20
            int group = step / group_steps;
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
            float scale0 = scale.x * low, scale1 = scale.y * high;
#pragma unroll
            for (int m = 0; m < MT; m++) {
                float2 xs = *reinterpret_cast<const float2*>(x_sums + group * (8 * MT) + m * 8 + 2 * t);
                float e[4];
#pragma unroll
                for (int i = 0; i < 4; i++) e[i] = chains == 2 ? d[m][0][i] + d[m][chains - 1][i] : d[m][0][i];
                sum[m][0] += scale0 * e[0] + beta0 * xs.x;
                sum[m][1] += scale0 * e[1] + beta0 * xs.y;
                sum[m][2] += scale1 * e[2] + beta1 * xs.x;
                sum[m][3] += scale1 * e[3] + beta1 * xs.y;
            }
        }
    }
}

// A tile's finished sums, as a fragment of 8 tokens, to y: through shuffles, so that the epilogue is in float.
__device__ __forceinline__ void finish_fragment(const Output& o, int tile, int first_token, float4 v) {
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    if (o.gated && o.activation != Activation::none) {
        v.x = activate(o.activation, v.x) * v.z;
        v.y = activate(o.activation, v.y) * v.w;
    }
    // to: token g, slots 2t, 2t + 1 and those + 8
    int from = 8 * t + (g >> 1), token = first_token + g;
    bool odd = g & 1;
    auto move = [&](float even_token, float odd_token, int lane_from) {
        float a = __shfl_sync(~0u, even_token, lane_from), b = __shfl_sync(~0u, odd_token, lane_from);
        return odd ? b : a;
    };
    float s0 = move(v.x, v.y, from), s1 = move(v.x, v.y, from + 4), s8 = move(v.z, v.w, from), s9 = move(v.z, v.w, from + 4);
    if (token >= o.rows) return;
    if (o.gated) {
        int channels = o.out / 2, channel = tile * 8 + 2 * t;
        store2(o, token, channel, channels, o.y, __floats2half2_rn(s0, s1));
        if (o.activation == Activation::none) store2(o, token, channel, channels, o.y + channels, __floats2half2_rn(s8, s9));
        return;
    }
    int column = tile * 16 + 4 * t;
    if (o.bias) {
        s0 += column < o.out ? __ldg(o.bias + column) : 0.0f;
        s1 += column + 1 < o.out ? __ldg(o.bias + column + 1) : 0.0f;
        s8 += column + 2 < o.out ? __ldg(o.bias + column + 2) : 0.0f;
        s9 += column + 3 < o.out ? __ldg(o.bias + column + 3) : 0.0f;
    }
    store4(o, token, column, make_float4(s0, s1, s8, s9));
}

template <int MT, int Groups, bool IntegerZeros, int Sets, int PerSm>
__global__ void __launch_bounds__(threads_of(Sets), PerSm) decode_kernel(const __grid_constant__ Params p) {
    constexpr int consumers = consumers_of(Sets);
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[2 * max_slots + 2 * sum_slots];
    __shared__ __align__(16) float squares[max_rows][max_consumers];
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

    const SharedPlan plan = shared_plan(p.slots, p.unit_bytes, Sets, MT, p.rows, p.pitch, 0);
    float* x_sums = reinterpret_cast<float*>(shared + plan.x_sums);
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
        stage_x<MT, Groups, consumers>(p, shared + plan.x, x_sums, squares, first_unit * unit_columns, units * 32);
        const int set = warp / set_warps, place = warp % set_warps;
        uint32_t x[MT];  // where this lane's row of an ldmatrix begins: token lane % 8, 8 columns from 8 * (lane / 8)
#pragma unroll
        for (int m = 0; m < MT; m++)
            x[m] = shared_address(shared + plan.x) + min(m * 8 + (lane & 7), p.rows - 1) * p.pitch + (lane >> 3) * 16;
        const uint32_t ring = shared_address(shared) + place * p.unit_bytes;
        int turn = 0, slot = 0, phase = 0, sum_slot = 0, sum_phase = 1;  // turn: the set whose chunk comes next
        for (int tile = first_tile; tile < last_tile; tile++) {
            float sum[MT][4] = {};
            for (int c = 0; c < tile_chunks; c++) {
                if (turn == set) {
                    const int unit = c * chunk_units + min(c, longer) + place;
                    barrier_wait(full + 8 * slot, phase);
                    if (place < chunk_units + (c < longer)) {
                        uint32_t at[MT];
#pragma unroll
                        for (int m = 0; m < MT; m++) at[m] = x[m] + unit * (unit_columns * 2);
                        multiply_unit<MT, Groups, IntegerZeros>(sum, ring + slot * slot_bytes, at,
                                                                x_sums + unit * Groups * (8 * MT));
                    }
                    __syncwarp();
                    if (lane == 0) barrier_arrive(empty + 8 * slot);
                }
                if (++turn == Sets) turn = 0;
                if (++slot == p.slots) slot = 0, phase ^= 1;
            }
            barrier_wait(sums_empty + 8 * sum_slot, sum_phase);
#pragma unroll
            for (int m = 0; m < MT; m++)
                sums[((sum_slot * consumers + warp) * MT + m) * 32 + lane] =
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
            float4 v[MT];
#pragma unroll
            for (int m = 0; m < MT; m++) {
                v[m] = make_float4(0, 0, 0, 0);
#pragma unroll
                for (int w = 0; w < consumers; w++) {
                    float4 part = sums[((slot * consumers + w) * MT + m) * 32 + lane];
                    v[m].x += part.x, v[m].y += part.y, v[m].z += part.z, v[m].w += part.w;
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(sums_empty + 8 * slot);
            if (++slot == sum_slots) slot = 0, phase ^= 1;
            if (p.slices > 1) {
                float4* partial = p.partials + (static_cast<int64_t>(tile) * p.slices + slice) * MT * 32 + lane;
#pragma unroll
                for (int m = 0; m < MT; m++) __stcg(partial + m * 32, v[m]);
                continue;
            }
#pragma unroll
            for (int m = 0; m < MT; m++) finish_fragment(p.output, tile, m * 8, v[m]);
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
                const float4* partial = p.partials + static_cast<int64_t>(tile) * p.slices * MT * 32 + lane;
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    float4 v = make_float4(0, 0, 0, 0);
                    for (int s = 0; s < p.slices; s++) {
                        float4 part = __ldcg(partial + (s * MT + m) * 32);
                        v.x += part.x, v.y += part.y, v.z += part.z, v.w += part.w;
                    }
                    finish_fragment(p.output, tile, m * 8, v);
                }
            }
        }
    }
}

using DecodeKernel = void (*)(Params);
struct Variant {
    int token_tiles, groups;
    bool integer_zeros;
    int sets, per_sm;  // CTAs that share an SM
    DecodeKernel kernel;
};
template <int MT, int Groups, bool IntegerZeros, int Sets, int PerSm>
constexpr Variant variant() {
    return {MT, Groups, IntegerZeros, Sets, PerSm, decode_kernel<MT, Groups, IntegerZeros, Sets, PerSm>};
}
const Variant variants[] = {
    variant<1, 2, true, 3, 2>(),  variant<2, 2, true, 2, 2>(),  variant<1, 4, true, 2, 2>(),  variant<2, 4, true, 2, 2>(),
    variant<1, 8, true, 2, 2>(),  variant<2, 8, true, 2, 2>(),  variant<1, 2, false, 2, 2>(), variant<2, 2, false, 2, 2>(),
    variant<1, 4, false, 2, 2>(), variant<2, 4, false, 2, 2>(), variant<1, 8, false, 2, 2>(), variant<2, 8, false, 2, 2>(),
};

// How K is cut and how deep the ring is.
struct DecodePlan {
    int slices = 1, slots = 0, window = 0, pitch = 0, shared_bytes = 0;
};
// Dynamic shared memory of a CTA at one or two CTAs a SM; 2 KB of static memory and the 1 KB that the system takes beside it.
int shared_limit(const MatmulDevice& device, int per_sm) {
    return (per_sm == 1 ? device.shared_block - 2048 : std::min(device.shared_sm / 2 - 3072, device.shared_block - 2048)) / 128 *
           128;
}

// Null: none serves.
const Variant* variant_of(const Q4Layout& layout, int rows) {
    for (const Variant& v : variants)
        if (v.token_tiles == (rows + 7) / 8 && v.groups == layout.groups() && v.integer_zeros == layout.integer_zeros) return &v;
    return nullptr;
}

DecodePlan plan_decode(const MatmulDevice& device, const Q4Layout& layout, const Variant& variant, int rows) {
    const int units = static_cast<int>(layout.units()), unit_bytes = static_cast<int>(layout.unit_bytes());
    auto with = [&](int slices, int limit) {
        DecodePlan plan;
        plan.slices = slices;
        const int slice_units = (units + slices - 1) / slices, groups = slice_units * layout.groups();
        plan.pitch = slice_units * unit_columns * 2 + 16;
        SharedPlan rest = shared_plan(0, 0, variant.sets, variant.token_tiles, rows, plan.pitch, groups);
        plan.slots = std::min((limit - rest.total) / (set_warps * unit_bytes), max_slots);
        if (tuning.slots) plan.slots = std::min(plan.slots, tuning.slots);
        plan.window = std::min(plan.slots, tuning.window ? tuning.window : 4);
        plan.shared_bytes =
            shared_plan(plan.slots, unit_bytes, variant.sets, variant.token_tiles, rows, plan.pitch, groups).total;
        return plan;
    };
    const int most = shared_limit(device, 1), limit = shared_limit(device, variant.per_sm);
    const bool may_slice = layout.tiles() <= counter_count && layout.tiles() * 8 * variant.token_tiles * 512 <= partial_bytes;
    for (int slices = 1; slices <= (may_slice ? 8 : 1) && slices <= units; slices *= 2) {
        DecodePlan plan = with(slices, limit);
        if (plan.slots >= 5) return plan;
    }
    return with(may_slice ? std::min(8, units) : 1, most);
}

}  // namespace

cudaError_t decode_half_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const Variant* variant = variant_of(layout, args.rows);
    if (!variant) return cudaErrorInvalidConfiguration;
    const DecodePlan plan = plan_decode(context.device, layout, *variant, args.rows);
    if (plan.slots < 2) return cudaErrorInvalidConfiguration;
    if (cudaError_t error = allow_shared(variant->kernel, plan.shared_bytes)) return error;
    Scratch scratch = scratch_of(context);
    Params p;
    p.w = static_cast<const uint8_t*>(weight.data);
    p.x = args.x, p.ldx = args.ldx, p.rows = args.rows, p.in = static_cast<int>(layout.in);
    p.x_aligned = rows_aligned(args.x, args.ldx);
    p.norm_weight = args.norm_weight, p.eps = args.norm_eps, p.plus_one = args.norm_plus_one;
    p.norm_aligned = reinterpret_cast<uintptr_t>(args.norm_weight) % 16 == 0;
    p.partials = scratch.partials, p.counters = scratch.counters;
    p.output = output_of(args, layout.out, layout.gated);
    p.tiles = static_cast<int>(layout.tiles()), p.units = static_cast<int>(layout.units());
    p.unit_bytes = static_cast<int>(layout.unit_bytes());
    p.slices = plan.slices, p.slots = plan.slots, p.window = plan.window, p.pitch = plan.pitch;
    int grid = context.device.sm_count / plan.slices * plan.slices;
    return launch(context, variant->kernel, dim3(static_cast<unsigned>(grid)), threads_of(variant->sets), plan.shared_bytes, p);
}

}  // namespace awq::cuda
