// Logits of a small batch (9 to 64 rows) by a float16 output head on Hopper: y32 = x W^T + bias, both operands of wgmma in shared
// memory, all tokens in one wgmma's N. sm_90a only.
//
// A head is a gigabyte that is read once: CTAs are persistent and take equal shares of its rows, 128 at a time, 64 for each of
// two warpgroups. One producer thread fills a ring of stages (64 columns of W's rows and of x) through the tensor copy engine.
#include "backends/cuda/matmul_prefill_sm90.cuh"

namespace awq::cuda {
namespace {

using namespace sm90;

constexpr int most_tokens = 64, block_rows = 64, stage_columns = 64;
constexpr int w_bytes = block_rows * stage_columns * 2;  // of one warpgroup, in one stage

struct Params {
    float* y;
    const float* bias;
    int64_t ldy;
    int rows, out;
    int steps;         // stages along K
    int each, longer;  // blocks of rows of W that a CTA takes; the first `longer` take one more
    int stages;
};

template <int TN>
__global__ void __launch_bounds__(threads, 1)
    head_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int x_bytes = TN * stage_columns * 2, stage_bytes = 2 * w_bytes + x_bytes;
    extern __shared__ uint8_t raw[];
    __shared__ __align__(16) uint64_t barriers[2 * max_slots];
    const uint32_t base = (shared_address(raw) + 1023) & ~1023u, full = shared_address(barriers), empty = full + 8 * max_slots;
    const int warpgroup = static_cast<int>(threadIdx.x) >> 7, warp = static_cast<int>(threadIdx.x) >> 5 & 3,
              lane = static_cast<int>(threadIdx.x) & 31;
    const int first = static_cast<int>(blockIdx.x) * p.each + min(static_cast<int>(blockIdx.x), p.longer),
              last = first + p.each + (static_cast<int>(blockIdx.x) < p.longer);
    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 8);
        }
        barrier_init_done();
    }
    __syncthreads();

    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x != 0) return;
        // The two blocks from `block` on, at column `step`: W does not depend on the kernel before, x does.
        auto send_w = [&](int stage, int block, int step) {
            const int blocks = min(2, last - block);
            barrier_expect(full + 8 * stage, static_cast<uint32_t>(blocks * w_bytes + x_bytes));
            for (int i = 0; i < blocks; i++)
                load_box(base + stage * stage_bytes + i * w_bytes, &w_map, step * stage_columns, (block + i) * block_rows,
                         full + 8 * stage);
        };
        auto send_x = [&](int stage, int step) {
            load_box(base + stage * stage_bytes + 2 * w_bytes, &x_map, step * stage_columns, 0, full + 8 * stage);
        };
        const int early = min(p.stages, p.steps);
        for (int i = 0; i < early; i++) send_w(i, first, i);
        pdl_wait();
        for (int i = 0; i < early; i++) send_x(i, i);
        Ring ring(p.stages, 1);
        for (int block = first; block < last; block += 2)
            for (int step = 0; step < p.steps; step++, ring.next()) {
                if (block == first && step < early) continue;
                barrier_wait(empty + 8 * ring.slot, ring.phase);
                send_w(ring.slot, block, step);
                send_x(ring.slot, step);
            }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = warpgroup - 1;
    Ring ring(p.stages, 0);
    pdl_wait();
    for (int block = first; block < last; block += 2) {
        float d[TN / 2];
#pragma unroll
        for (int i = 0; i < TN / 2; i++) d[i] = 0.0f;
        int previous = -1;  // stage whose wgmmas may still run
        for (int step = 0; step < p.steps; step++, ring.next()) {
            const uint32_t at = base + ring.slot * stage_bytes;
            const uint64_t w = wgmma_descriptor(at + group * w_bytes), x = wgmma_descriptor(at + 2 * w_bytes);
            barrier_wait(full + 8 * ring.slot, ring.phase);
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < 4; j++) Wgmma<TN>::run_shared(d, w + 2 * j, x + 2 * j);
            wgmma_commit();
            wgmma_wait<1>();
            if (previous >= 0 && lane == 0) barrier_arrive(empty + 8 * previous);
            previous = ring.slot;
        }
        wgmma_wait<0>();
        settle(d);
        if (lane == 0) barrier_arrive(empty + 8 * previous);
        if (block + group >= last) continue;  // where one block was left
        const int row = (block + group) * block_rows + warp * 16 + (lane >> 2);
#pragma unroll
        for (int high = 0; high < 2; high++) {
            if (row + 8 * high >= p.out) continue;
            const float bias = p.bias ? __ldg(p.bias + row + 8 * high) : 0.0f;
            float* y = p.y + row + 8 * high;
#pragma unroll
            for (int j = 0; j < TN / 8; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int token = 8 * j + 2 * (lane & 3) + i;
                    if (token < p.rows) __stcs(y + token * p.ldy, d[4 * j + 2 * high + i] + bias);
                }
        }
    }
#endif
}

using HeadKernel = void (*)(CUtensorMap, CUtensorMap, Params);
struct Variant {
    int tokens;
    HeadKernel kernel;
};
const Variant variants[] = {{16, head_kernel<16>}, {32, head_kernel<32>}, {64, head_kernel<64>}};  // the first with tokens enough

}  // namespace

cudaError_t open_head(const MatmulDevice& device) {
    if (device.arch != 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, shared_limit)) return error;
    return cudaSuccess;
}

// Only where every SM has some rows: K is not cut.
bool head_fits(const MatmulDevice& device, const DenseWeight& weight, const MatmulArgs& args) {
    return device.arch == 90 && device.encode_tensor_map && args.rows > 8 && args.rows <= most_tokens && args.y32 &&
           !weight.gated && weight.dtype == DType::f16 && weight.out >= int64_t{device.sm_count} * block_rows &&
           rows_aligned(args.x, args.ldx);
}

cudaError_t head_dense(const MatmulContext& context, const DenseWeight& weight, const MatmulArgs& args) {
    const Variant* variant = variants;
    while (variant->tokens < args.rows) variant++;
    CUtensorMap w_map, x_map;
    if (cudaError_t error = map_rows(context.device, static_cast<const half*>(weight.data), weight.in,
                                     static_cast<int>(weight.out), dense_pitch(weight.in), block_rows, &w_map))
        return error;
    if (cudaError_t error = map_rows(context.device, args.x, weight.in, args.rows, args.ldx, variant->tokens, &x_map))
        return error;
    Params p;
    p.y = args.y32, p.bias = args.bias, p.ldy = args.ldy;
    p.rows = args.rows, p.out = static_cast<int>(weight.out);
    p.steps = static_cast<int>((weight.in + stage_columns - 1) / stage_columns);
    const int blocks = (p.out + block_rows - 1) / block_rows, grid = std::min(blocks, context.device.sm_count);
    p.each = blocks / grid, p.longer = blocks % grid;
    const int stage_bytes = 2 * w_bytes + variant->tokens * stage_columns * 2;
    p.stages = std::min((shared_limit - 1024) / stage_bytes, max_slots);
    return launch(context, variant->kernel, dim3(static_cast<unsigned>(grid)), threads, 1024 + p.stages * stage_bytes, w_map,
                  x_map, p);
}

}  // namespace awq::cuda
