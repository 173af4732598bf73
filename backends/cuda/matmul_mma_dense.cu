// y = x W^T with mma.sync for dense weights (half or bf16), any shape, plain or by experts: every GPU from sm_80 on.
//
// A CTA makes 128 rows of W times TN tokens; W and x pass through stages of 64 columns in shared memory.
#include <algorithm>
#include "backends/cuda/matmul_mma.cuh"

namespace awq::cuda {
namespace {

struct Params : Operands {
    int expert_count;
    int rows, in, w_rows, pitch;  // w_rows: rows in memory
    bool x_aligned;
};

// Eight columns of a row of x to shared memory; columns past `in` and absent rows are zero.
__device__ __forceinline__ void copy_x(const Params& p, uint8_t* to, int64_t row, int column, bool present) {
    int left = present ? min(max(p.in - column, 0), 8) : 0;
    const half* from = p.x + (left ? row * p.ldx + column : 0);
    if (p.x_aligned)
        copy16(shared_address(to), from, left * 2);
    else
        copy_each(to, from, left);
}

constexpr int block_threads = 128, block_rows = 128;
template <int TN>
constexpr int stages_of = TN == 128 ? 3 : 4;
template <int TN>
constexpr int block_shared = stages_of<TN>*(block_rows + TN) * 128 + TN * 4;
static_assert(block_shared<128> < least_shared_block && block_shared<32> < least_shared_block);

__device__ __forceinline__ uint32_t bf16_to_half2(uint32_t v) {
    return pack_half2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

template <bool Bf16, int TN>
__global__ void __launch_bounds__(block_threads, TN == 128 ? 2 : 3) block_kernel(const __grid_constant__ Params p) {
    constexpr int stages = stages_of<TN>, octets = TN / 8, w_bytes = block_rows * 128, x_bytes = TN * 128;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ mma_sync::ExpertBlock found;
    uint8_t* x_shared = shared + stages * w_bytes;
    int* sources = reinterpret_cast<int*>(x_shared + stages * x_bytes);  // row of x of each token; -1: none
    const int tid = static_cast<int>(threadIdx.x), warp = tid >> 5, lane = tid & 31;
    pdl_trigger();
    pdl_wait();
    int first = static_cast<int>(blockIdx.y) * TN, end = p.rows;
    const uint8_t* w = p.w;
    if (p.experts.begin) {  // which expert's which block of tokens this is
        if (warp == 0) {
            const mma_sync::ExpertBlock block = mma_sync::expert_block<TN>({p.experts.begin, nullptr}, p.expert_count, static_cast<int>(blockIdx.y));
            if (lane == 0) found = block;
        }
        __syncthreads();
        if (found.expert < 0) return;
        w += found.expert * p.expert_bytes;
        first = found.first, end = found.end;
    }
    for (int i = tid; i < TN; i += block_threads) {
        int row = first + i;
        sources[i] = row >= end ? -1 : p.experts.source ? __ldcg(p.experts.source + row) : row;
    }
    __syncthreads();

    const int first_tile = static_cast<int>(blockIdx.x) * (block_rows / 16), spans = (p.in + 63) / 64;
    auto stage = [&](int span) {
        int slot = span % stages;
        if (span < spans) {
            uint8_t* to = shared + slot * w_bytes;
            for (int i = tid; i < block_rows * 8; i += block_threads) {
                int row = i / 8, piece = i % 8, column = span * 64 + piece * 8;
                bool there = first_tile * 16 + row < p.w_rows && column < p.pitch;
                const uint8_t* from = there ? w + (static_cast<int64_t>(first_tile * 16 + row) * p.pitch + column) * 2 : w;
                copy16(shared_address(to + swizzled(row, piece)), from, there ? 16 : 0);
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
    for (int span = 0; span < spans; span++) {
        copy_wait<stages - 2>();
        __syncthreads();  // this span has landed for all, and the slot filled next has been read by all
        stage(span + stages - 1);
        const uint8_t* ws = shared + span % stages * w_bytes;
        const uint8_t* xs = x_shared + span % stages * x_bytes;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                // ldmatrix's row of this lane: slot lane % 16, in the slot order of pack_q4.h unless gated
                int slot = lane & 15, row = p.output.gated ? slot : slot_row(0, slot);
                ldmatrix4(a[i], shared_address(ws + swizzled((warp * 2 + i) * 16 + row, 2 * j + (lane >> 4))));
                if constexpr (Bf16) {
#pragma unroll
                    for (int r = 0; r < 4; r++) a[i][r] = bf16_to_half2(a[i][r]);
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
struct Variant {
    bool bf16;
    int tokens, shared;
    Kernel kernel;
};
template <bool Bf16, int TN>
constexpr Variant variant() {
    return {Bf16, TN, block_shared<TN>, block_kernel<Bf16, TN>};
}
const Variant variants[] = {variant<false, 32>(), variant<false, 128>(), variant<true, 32>(), variant<true, 128>()};

}  // namespace

cudaError_t open_mma_dense(const MatmulDevice&) {
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, v.shared)) return error;
    return cudaSuccess;
}

cudaError_t mma_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args,
                      const ExpertRows* experts) {
    Params p = {};
    static_cast<Operands&>(p) = operands_of(weight, weight, dense_bytes(weight), args, experts);
    p.expert_count = weight.experts, p.rows = args.rows, p.in = static_cast<int>(weight.in), p.x_aligned = rows_aligned(args.x, args.ldx);
    p.w_rows = static_cast<int>(dense_rows(weight)), p.pitch = static_cast<int>(dense_pitch(weight.in));
    // By experts the tokens of a block are fewer than the batch: one block more for each expert at most.
    const int each = experts ? (args.rows + weight.experts - 1) / weight.experts : args.rows, tokens = each <= 48 ? 32 : 128;
    int token_blocks = (args.rows + tokens - 1) / tokens;
    if (experts) token_blocks = std::min(args.rows, token_blocks + weight.experts);
    for (const Variant& v : variants)
        if (v.bf16 == (weight.dtype == DType::bf16) && v.tokens == tokens)
            return launch(context, v.kernel, dim3(static_cast<unsigned>((p.w_rows + block_rows - 1) / block_rows), static_cast<unsigned>(token_blocks)),
                          block_threads, v.shared, p);
    return cudaErrorInvalidValue;
}

}  // namespace awq::cuda
