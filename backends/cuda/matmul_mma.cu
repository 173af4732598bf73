// y = x W^T with mma.sync, for every GPU from sm_80 on: int4 or dense weights, any shape, plain or by experts.
//
// block_kernel: 128 rows of W x TN tokens a CTA; W and x pass through four stages of 64 columns in shared memory.
// strip_kernel: int4 only, 16 rows of W x 8 tokens a CTA, K shared out among eight warps that do not meet until the end:
//   small batches where the decode kernel cannot run, and a few rows for each of many experts.
#include <algorithm>
#include "backends/cuda/matmul_internal.h"

namespace awq::cuda {
namespace {

struct Params {
    const uint8_t* w;
    const half* x;
    Output output;
    ExpertRows experts;  // begin null: one matrix
    int64_t ldx, expert_bytes;
    int expert_count;
    int rows, in, w_rows;  // w_rows: dense rows in memory
    int tiles, units, unit_bytes, group, pitch;
    bool x_aligned;
};

// Eight columns of a row of x to shared memory; columns past `in` and absent rows are zero.
__device__ __forceinline__ void copy_x(const Params& p, uint8_t* to, int64_t row, int column, bool present) {
    int left = present ? min(max(p.in - column, 0), 8) : 0;
    const half* from = p.x + (left ? row * p.ldx + column : 0);
    if (p.x_aligned) {
        copy16(shared_address(to), from, left * 2);
    } else {
        half* h = reinterpret_cast<half*>(to);
        for (int i = 0; i < 8; i++) h[i] = i < left ? load_activation(from + i) : __float2half(0.0f);
    }
}

template <bool IntegerZeros>
struct RawMeta {
    uint32_t scales, zeros;
    __device__ __forceinline__ void load(const uint8_t* unit, int groups, int group, int g) {
        scales = __ldg(reinterpret_cast<const uint32_t*>(unit + 2048 + group * 32) + g);
        const uint8_t* z = unit + 2048 + groups * 32;
        zeros = IntegerZeros ? __ldg(reinterpret_cast<const unsigned short*>(z + group * 16) + g)
                             : __ldg(reinterpret_cast<const uint32_t*>(z + group * 32) + g);
    }
};

constexpr int strip_warps = 8, strip_pitch = unit_columns * 2 + 16;  // bytes of a row of x
constexpr int strip_shared = strip_warps * 2 * 8 * strip_pitch;

template <bool IntegerZeros>
__global__ void __launch_bounds__(strip_warps * 32) strip_kernel(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float4 sums[strip_warps][32];
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2;
    pdl_trigger();
    const int tile = static_cast<int>(blockIdx.x);
    const uint8_t* w = p.w + static_cast<int64_t>(tile) * p.units * p.unit_bytes;
    const uint64_t policy = stream_policy();
    uint4 next[4];
    if (!p.experts.begin && warp < p.units) {  // weights need not wait
#pragma unroll
        for (int s = 0; s < 4; s++) next[s] = load_stream(w + warp * p.unit_bytes + s * 512 + lane * 16, policy);
    }
    pdl_wait();
    int first = static_cast<int>(blockIdx.y) * 8, end = p.rows;
    if (p.experts.begin) {  // this CTA serves the octet that begins with its row, if one does
        first = static_cast<int>(blockIdx.y);
        int expert = __ldcg(p.experts.expert + first), begin = __ldcg(p.experts.begin + expert);
        if ((first - begin) % 8) return;
        end = __ldcg(p.experts.begin + expert + 1);
        w += expert * p.expert_bytes;
        if (warp < p.units) {
#pragma unroll
            for (int s = 0; s < 4; s++) next[s] = load_stream(w + warp * p.unit_bytes + s * 512 + lane * 16, policy);
        }
    }
    int count = min(8, end - first);
    // a lane copies pieces of row lane / 4
    int64_t source = first + min(g, count - 1);
    if (p.experts.source) source = __ldcg(p.experts.source + source);
    uint8_t* mine = shared + warp * 2 * 8 * strip_pitch;
    auto stage = [&](int unit, int buffer) {
        for (int i = lane & 3; i < 32; i += 4)
            copy_x(p, mine + buffer * 8 * strip_pitch + g * strip_pitch + i * 16, source, unit * unit_columns + i * 8, g < count);
    };
    float d[4] = {};
    if (warp < p.units) stage(warp, 0);
    copy_commit();
    const int groups = unit_columns / p.group, group_shift = p.group == 128 ? 2 : p.group == 64 ? 1 : 0;
    int buffer = 0;
    for (int unit = warp; unit < p.units; unit += strip_warps, buffer ^= 1) {
        const uint8_t* at = w + static_cast<int64_t>(unit) * p.unit_bytes;
        uint4 words[4];
#pragma unroll
        for (int s = 0; s < 4; s++) words[s] = next[s];
        RawMeta<IntegerZeros> raw[8];
#pragma unroll
        for (int i = 0; i < 8; i++) raw[i].load(at, groups, i >> group_shift, g);
        if (unit + strip_warps < p.units) {
#pragma unroll
            for (int s = 0; s < 4; s++) next[s] = load_stream(at + strip_warps * p.unit_bytes + s * 512 + lane * 16, policy);
            stage(unit + strip_warps, buffer ^ 1);
        }
        copy_commit();
        copy_wait<1>();
        __syncwarp();
        uint32_t x = shared_address(mine + buffer * 8 * strip_pitch + (lane & 7) * strip_pitch) + (lane >> 3) * 16;
#pragma unroll
        for (int pair = 0; pair < 8; pair++) {  // of k16 steps
            uint32_t b[4], a[4];
            ldmatrix4(b, x + pair * 64);
            GroupMeta<IntegerZeros> meta;
            meta.set(raw[pair].scales, raw[pair].zeros);
            const uint4& span = words[pair / 2];
            dequantize<IntegerZeros>(a, pair % 2 ? span.z : span.x, meta);
            mma(d, a, b[0], b[1]);
            dequantize<IntegerZeros>(a, pair % 2 ? span.w : span.y, meta);
            mma(d, a, b[2], b[3]);
        }
        __syncwarp();
    }
    sums[warp][lane] = make_float4(d[0], d[1], d[2], d[3]);
    __syncthreads();
    if (warp) return;
    float v[4] = {};
#pragma unroll
    for (int i = 0; i < strip_warps; i++) {
        float4 s = sums[i][lane];
        v[0] += s.x, v[1] += s.y, v[2] += s.z, v[3] += s.w;
    }
    Output o = p.output;
    o.rows = end;
    store_fragment(o, tile, first, v);
}

enum class Source { integer_zeros, offsets, half, bf16 };

constexpr int stages = 4, block_threads = 128, block_rows = 128;
template <Source S>
constexpr int w_stage_bytes = S == Source::half || S == Source::bf16 ? block_rows * 128 : 8 * 512;
template <Source S, int TN>
constexpr int block_shared = stages*(w_stage_bytes<S> + TN * 128) + TN * 4;

// A tile of 64 columns (128 bytes) a row: 16-byte pieces exchanged by row so that ldmatrix meets no bank twice.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }

__device__ __forceinline__ uint32_t bf16_to_half2(uint32_t v) {
    return pack_half2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

template <Source S, int TN>
__global__ void __launch_bounds__(block_threads, TN == 128 ? 2 : 3) block_kernel(const __grid_constant__ Params p) {
    constexpr bool dense = S == Source::half || S == Source::bf16;
    constexpr bool integer_zeros = S == Source::integer_zeros;
    constexpr int octets = TN / 8, w_bytes = w_stage_bytes<S>, x_bytes = TN * 128;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ int found[3];  // expert, first and last sorted row
    uint8_t* x_shared = shared + stages * w_bytes;
    int* sources = reinterpret_cast<int*>(x_shared + stages * x_bytes);  // row of x of each token; -1: none
    const int tid = static_cast<int>(threadIdx.x), warp = tid >> 5, lane = tid & 31, g = lane >> 2;
    pdl_trigger();
    pdl_wait();
    int first = static_cast<int>(blockIdx.y) * TN, end = p.rows;
    const uint8_t* w = p.w;
    if (p.experts.begin) {  // which expert's which block of tokens this is
        if (warp == 0) {
            int before = 0, expert = -1;
            for (int base = 0; base < p.expert_count && expert < 0; base += 32) {
                int e = base + lane, begin = 0, blocks = 0;
                if (e < p.expert_count) {
                    begin = __ldcg(p.experts.begin + e);
                    blocks = (__ldcg(p.experts.begin + e + 1) - begin + TN - 1) / TN;
                }
                int sum = blocks;
#pragma unroll
                for (int i = 1; i < 32; i <<= 1) {
                    int other = __shfl_up_sync(~0u, sum, i);
                    if (lane >= i) sum += other;
                }
                int my_before = before + sum - blocks, index = static_cast<int>(blockIdx.y);
                bool mine = index >= my_before && index < my_before + blocks;
                unsigned hit = __ballot_sync(~0u, mine);
                if (mine) found[0] = e, found[1] = begin + (index - my_before) * TN, found[2] = __ldcg(p.experts.begin + e + 1);
                if (hit) expert = base;
                before += __shfl_sync(~0u, sum, 31);
            }
            if (lane == 0 && expert < 0) found[0] = -1;
        }
        __syncthreads();
        if (found[0] < 0) return;
        w += found[0] * p.expert_bytes;
        first = found[1], end = found[2];
    }
    for (int i = tid; i < TN; i += block_threads) {
        int row = first + i;
        sources[i] = row >= end ? -1 : p.experts.source ? __ldcg(p.experts.source + row) : row;
    }
    __syncthreads();

    const int first_tile = static_cast<int>(blockIdx.x) * 8, spans = dense ? (p.in + 63) / 64 : p.units * 4;
    auto stage = [&](int span) {
        int slot = span % stages;
        if (span < spans) {
            uint8_t* to = shared + slot * w_bytes;
            if constexpr (dense) {
                for (int i = tid; i < block_rows * 8; i += block_threads) {
                    int row = i / 8, piece = i % 8, column = span * 64 + piece * 8;
                    bool there = first_tile * 16 + row < p.w_rows && column < p.pitch;
                    const uint8_t* from = there ? w + (static_cast<int64_t>(first_tile * 16 + row) * p.pitch + column) * 2 : w;
                    copy16(shared_address(to + swizzled(row, piece)), from, there ? 16 : 0);
                }
            } else {  // a lane's own fragments
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int tile = warp * 2 + i;
                    bool there = first_tile + tile < p.tiles;
                    const uint8_t* from =
                        w + (static_cast<int64_t>(there ? first_tile + tile : 0) * p.units + span / 4) * p.unit_bytes;
                    copy16(shared_address(to + tile * 512 + lane * 16), from + span % 4 * 512 + lane * 16, there ? 16 : 0);
                }
            }
            for (int i = tid; i < TN * 8; i += block_threads) {
                int token = i / 8, piece = i % 8;
                copy_x(p, x_shared + slot * x_bytes + swizzled(token, piece), sources[token], span * 64 + piece * 8,
                       sources[token] >= 0);
            }
        }
        copy_commit();
    };
    float d[2][octets][4] = {};
    for (int s = 0; s < stages - 1; s++) stage(s);
    const int groups = dense ? 0 : unit_columns / p.group, group_shift = p.group == 128 ? 2 : p.group == 64 ? 1 : 0;
    RawMeta<integer_zeros> raw[2][2];  // of this span: [tile][half]
    auto load_meta = [&](int span) {
        if constexpr (!dense) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int tile = min(first_tile + warp * 2 + i, p.tiles - 1);
                const uint8_t* unit = w + (static_cast<int64_t>(tile) * p.units + span / 4) * p.unit_bytes;
#pragma unroll
                for (int h = 0; h < 2; h++) raw[i][h].load(unit, groups, (2 * (span % 4) + h) >> group_shift, g);
            }
        }
    };
    load_meta(0);
    for (int span = 0; span < spans; span++) {
        copy_wait<stages - 2>();
        __syncthreads();  // this span has landed for all, and the slot filled next has been read by all
        stage(span + stages - 1);
        const uint8_t* ws = shared + span % stages * w_bytes;
        const uint8_t* xs = x_shared + span % stages * x_bytes;
        GroupMeta<integer_zeros> meta[2][2];
        uint4 words[2];
        if constexpr (!dense) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                meta[i][0].set(raw[i][0].scales, raw[i][0].zeros);
                meta[i][1].set(raw[i][1].scales, raw[i][1].zeros);
                words[i] = load_shared16(shared_address(ws + (warp * 2 + i) * 512 + lane * 16));
            }
            if (span + 1 < spans) load_meta(span + 1);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if constexpr (dense) {
                    // ldmatrix's row of this lane: slot lane % 16, in the slot order of pack_q4.h unless gated
                    int slot = lane & 15, row = p.output.gated ? slot : slot_row(0, slot);
                    ldmatrix4(a[i], shared_address(ws + swizzled((warp * 2 + i) * 16 + row, 2 * j + (lane >> 4))));
                    if constexpr (S == Source::bf16) {
#pragma unroll
                        for (int r = 0; r < 4; r++) a[i][r] = bf16_to_half2(a[i][r]);
                    }
                } else {
                    uint32_t word = j == 0 ? words[i].x : j == 1 ? words[i].y : j == 2 ? words[i].z : words[i].w;
                    dequantize<integer_zeros>(a[i], word, meta[i][j / 2]);
                }
            }
#pragma unroll
            for (int o = 0; o < octets; o += 2) {  // two octets of tokens an ldmatrix: columns 0-7 and 8-15 of each
                uint32_t b[4];
                ldmatrix4(b, shared_address(xs + swizzled(o * 8 + (lane & 7) + (lane >> 4) * 8, 2 * j + (lane >> 3 & 1))));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma(d[i][o], a[i], b[0], b[1]);
                    mma(d[i][o + 1], a[i], b[2], b[3]);
                }
            }
        }
    }
    copy_wait<0>();
    Output o = p.output;
    o.rows = end;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int octet = 0; octet < octets; octet++) store_fragment(o, first_tile + warp * 2 + i, first + octet * 8, d[i][octet]);
}

using Kernel = void (*)(Params);
struct BlockVariant {
    Source source;
    int tokens, shared;
    Kernel kernel;
};
template <Source S, int TN>
constexpr BlockVariant variant() {
    return {S, TN, block_shared<S, TN>, block_kernel<S, TN>};
}
const BlockVariant block_variants[] = {
    variant<Source::integer_zeros, 32>(), variant<Source::integer_zeros, 128>(), variant<Source::offsets, 32>(),
    variant<Source::offsets, 128>(),      variant<Source::half, 32>(),           variant<Source::half, 128>(),
    variant<Source::bf16, 32>(),          variant<Source::bf16, 128>(),
};

Params params_of(const MatmulArgs& args, const ExpertRows* experts, int64_t in, int64_t out, bool gated) {
    Params p = {};
    p.x = args.x, p.ldx = args.ldx, p.rows = args.rows, p.in = static_cast<int>(in);
    p.x_aligned = rows_aligned(args.x, args.ldx);
    p.output = output_of(args, out, gated);
    if (experts) p.experts = *experts;
    return p;
}

cudaError_t launch_block(const MatmulContext& context, Source source, const Params& p, int experts) {
    // By experts the tokens of a block are fewer than the batch: one block more for each expert at most.
    const int each = p.experts.begin ? (p.rows + experts - 1) / experts : p.rows, tokens = each <= 48 ? 32 : 128;
    int token_blocks = (p.rows + tokens - 1) / tokens;
    if (p.experts.begin) token_blocks = std::min(p.rows, token_blocks + experts);
    for (const BlockVariant& v : block_variants)
        if (v.source == source && v.tokens == tokens)
            return launch(context, v.kernel, dim3(static_cast<unsigned>((p.tiles + 7) / 8), static_cast<unsigned>(token_blocks)),
                          block_threads, v.shared, p);
    return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t open_mma(const MatmulDevice&) {
    for (const BlockVariant& v : block_variants)
        if (cudaError_t error = allow_shared(v.kernel, v.shared)) return error;
    if (cudaError_t error = allow_shared(strip_kernel<true>, strip_shared)) return error;
    return allow_shared(strip_kernel<false>, strip_shared);
}

cudaError_t mma_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows* experts) {
    const Q4Layout& layout = weight.layout;
    Params p = params_of(args, experts, layout.in, layout.out, layout.gated);
    p.w = static_cast<const uint8_t*>(weight.data);
    p.expert_bytes = layout.bytes(), p.expert_count = weight.experts;
    p.tiles = static_cast<int>(layout.tiles()), p.units = static_cast<int>(layout.units());
    p.unit_bytes = static_cast<int>(layout.unit_bytes()), p.group = layout.group;
    const bool few = experts ? args.rows <= 4 * weight.experts : args.rows <= 16;
    if (tuning.kernel == 4 || (tuning.kernel != 3 && few)) {
        dim3 grid(static_cast<unsigned>(p.tiles), static_cast<unsigned>(experts ? args.rows : (args.rows + 7) / 8));
        return launch(context, layout.integer_zeros ? strip_kernel<true> : strip_kernel<false>, grid, strip_warps * 32,
                      strip_shared, p);
    }
    return launch_block(context, layout.integer_zeros ? Source::integer_zeros : Source::offsets, p, weight.experts);
}

cudaError_t mma_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args,
                      const ExpertRows* experts) {
    Params p = params_of(args, experts, weight.in, weight.out, weight.gated);
    p.w = static_cast<const uint8_t*>(weight.data);
    p.expert_bytes = dense_bytes(weight), p.expert_count = weight.experts;
    p.w_rows = static_cast<int>(dense_rows(weight)), p.pitch = static_cast<int>(dense_pitch(weight.in));
    p.tiles = (p.w_rows + 15) / 16;
    p.group = 128;
    return launch_block(context, weight.dtype == DType::bf16 ? Source::bf16 : Source::half, p, weight.experts);
}

}  // namespace awq::cuda
