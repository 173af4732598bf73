// The grouped product of a mixture of experts on Hopper: each expert's rows of x times its matrix, all in one launch. wgmma with
// int4 weights dequantised in registers, as matmul_prefill_sm90.cu has it for a single matrix. sm_90a only.
//
// Rows are sorted by expert, so that an expert's are neighbours, as the tensor copy engine wants them; where x still has the
// tokens' order, a first kernel gathers its rows into scratch. A tile of X may run into the next expert's rows: they become
// columns of sums that nobody stores.
//
// How many rows an expert has is known on the device only. Every CTA makes the same list of work from `begin`: experts in the
// order of their blocks' tokens, the most first; for each its blocks of 128 rows of W, and next to each other a block's blocks of
// tokens, so that they read the same weights at about the same time. How many tokens a block may have is chosen so that the CTAs'
// waves cost least; an expert's are cut evenly, and the wgmma of a block is as wide as its tokens ask for. CTAs are persistent and
// take the blocks in waves, every second one in reverse: who had the largest block of one wave has the smallest of the next. Blocks
// are not cut along K.
#include "backends/cuda/matmul_prefill_sm90.cuh"

namespace awq::cuda {
namespace {

using namespace sm90;

constexpr int max_experts = 256;
constexpr int spans = 2;  // tiles of X in a slot

// How wide, in tokens, a block's wgmmas can be: 32, 64, 80, .. 192. The wide ones, from 128 on, are done with before the others
// begin: the compiler finds no registers for a switch over more than five.
constexpr int widths = 10, narrow_widths = 5, step = 16;
__host__ __device__ constexpr int width_of(int i) { return i == 0 ? 32 : 48 + step * i; }
// The least that is enough.
__device__ __forceinline__ int width_for(int tokens) { return tokens <= 32 ? 0 : max(1, (tokens - 48 + step - 1) / step); }

// X in boxes of 64 columns and as many rows as each width has.
struct Maps {
    CUtensorMap of[widths];
};

struct Params : Product {
    const int32_t* begin;  // see ExpertRows
    int64_t expert_bytes;
    int expert_count;
    int choices;  // a block's width is one of the first so many
    int x_bytes;  // of a slot: the widest choice's
};

// In shared memory: which blocks there are.
struct WorkList {
    int size[max_experts];       // rows of expert e
    int order[max_experts];      // experts, those with the most tokens a block first
    int begin[max_experts];      // first row of the expert at that place of the order
    int blocks[max_experts];     // of tokens, of expert e
    int each[max_experts];       // tokens of these, the last block's maybe fewer
    int first[max_experts + 1];  // number of its first block
    float cost[widths];          // of each choice
};

template <int N>
struct Width {};

// An expert's rows in blocks of up to max_tokens: as many tokens each, in whole steps, the last block maybe fewer.
struct Cut {
    int blocks = 0, each = 0;
    __device__ __forceinline__ Cut(int rows, int max_tokens) {
        if (rows == 0) return;
        blocks = (rows + max_tokens - 1) / max_tokens;
        each = ((rows + blocks - 1) / blocks + step - 1) / step * step;
    }
};

// A block's time, of its own unit: it grows with its tokens from about 128 on, below that turning its weights into halves takes the
// most of it (cost_of in matmul_prefill_sm90.cu).
__device__ __forceinline__ int cost_of_block(int tokens) {
    const int width = width_of(width_for(tokens));
    return width < 128 ? 700 + 6 * width : 11 * width;
}
// What the waves cost if blocks have up to max_tokens tokens; by one warp. The last wave, of the smallest blocks, may not be full.
__device__ __forceinline__ float cost_of_waves(const WorkList& list, const Params& p, int max_tokens) {
    int blocks = 0, cost = 0, least = INT32_MAX;
    for (int e = static_cast<int>(threadIdx.x) & 31; e < p.expert_count; e += 32) {
        const Cut cut(list.size[e], max_tokens);
        if (cut.blocks == 0) continue;
        const int one = cost_of_block(cut.each);
        blocks += cut.blocks, cost += cut.blocks * one, least = min(least, one);
    }
    blocks = __reduce_add_sync(~0u, blocks) * p.row_blocks;
    cost = __reduce_add_sync(~0u, cost), least = __reduce_min_sync(~0u, least);
    const int ctas = static_cast<int>(gridDim.x), idle = (ctas - blocks % ctas) % ctas;
    return static_cast<float>(cost) * static_cast<float>(p.row_blocks) + static_cast<float>(idle) * static_cast<float>(least);
}

// By all threads of the CTA.
[[maybe_unused]] __device__ __forceinline__ void make_list(WorkList& list, const Params& p) {
    const int e = static_cast<int>(threadIdx.x);
    int begin = 0, size = 0;
    if (e < p.expert_count) {
        begin = __ldcg(p.begin + e);
        size = list.size[e] = __ldcg(p.begin + e + 1) - begin;
    }
    __syncthreads();
    if (const int warp = e >> 5; warp < p.choices) {
        const float cost = cost_of_waves(list, p, width_of(warp));
        if ((e & 31) == 0) list.cost[warp] = cost;
    }
    __syncthreads();
    int best = p.choices - 1;
    for (int i = p.choices - 2; i >= 0; i--)
        if (list.cost[i] < list.cost[best]) best = i;
    const Cut cut(size, width_of(best));
    if (e < p.expert_count) list.blocks[e] = cut.blocks, list.each[e] = cut.each;
    __syncthreads();
    if (e < p.expert_count) {
        int place = 0, before = 0;
        for (int i = 0; i < p.expert_count; i++)
            if (list.each[i] > cut.each || (list.each[i] == cut.each && i < e)) place++, before += list.blocks[i];
        list.order[place] = e;
        list.begin[place] = begin;
        list.first[place] = before * p.row_blocks;
        if (place == p.expert_count - 1) list.first[place + 1] = (before + cut.blocks) * p.row_blocks;
    }
    __syncthreads();
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// A CTA's way through the list.
struct Cursor {
    int wave = 0, at = 0;
    int expert = 0, row_block = 0, token = 0, tokens = 0;  // the block: expert, block of W's rows, first row of X, rows of X
    int width = 0;
    __device__ __forceinline__ bool next(const WorkList& list, const Params& p) {
        const int ctas = static_cast<int>(gridDim.x), me = static_cast<int>(blockIdx.x);
        const int total = list.first[p.expert_count];
        int block;
        do {
            if (wave * ctas >= total) return false;
            block = wave * ctas + (wave % 2 ? ctas - 1 - me : me);
            wave++;
        } while (block >= total);
        while (list.first[at + 1] <= block) at++;
        expert = list.order[at];
        const int blocks = list.blocks[expert], each = list.each[expert];
        const int local = block - list.first[at], part = local % blocks;
        row_block = local / blocks;
        token = list.begin[at] + part * each;
        tokens = min(each, list.size[expert] - part * each);
        width = width_for(tokens);
        if (width_for(each) >= narrow_widths) width = max(width, narrow_widths);  // an expert's blocks are all wide or all narrow
        return true;
    }
};
#endif

// Groups: 2 for 128 columns a group; 8 serves every size.
template <int Groups, bool IntegerZeros>
__global__ void __launch_bounds__(threads, 1)
    experts_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint8_t raw[];
    __shared__ __align__(16) uint64_t barriers[4 * max_slots];
    __shared__ WorkList list;
    const Rings rings(raw, barriers, p, p.x_bytes);
    const int warpgroup = static_cast<int>(threadIdx.x) >> 7, warp = static_cast<int>(threadIdx.x) >> 5 & 3;
    const int lane = static_cast<int>(threadIdx.x) & 31;

    pdl_trigger();
    rings.init(p, 1);
    pdl_wait();
    make_list(list, p);
    Cursor block;
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0) {
            const uint64_t policy = stream_policy();
            Ring ring(p.w_slots, 1);
            while (block.next(list, p))
                send_units(rings, ring, p, p.w + block.expert * p.expert_bytes, block.row_block * block_tiles, lane, 0, p.units,
                           policy);
        } else if (warp == 1 && lane == 0) {
            Ring ring(p.x_slots, 1);
            while (block.next(list, p)) {
                const uint32_t tile_bytes = width_of(block.width) * 128;
                for (int span = 0; span < p.units * 4; span += spans, ring.next()) {
                    barrier_wait(rings.x_empty + 8 * ring.slot, ring.phase);
                    barrier_expect(rings.x_full + 8 * ring.slot, spans * tile_bytes);
                    for (int i = 0; i < spans; i++)
                        load_box(rings.x + ring.slot * rings.x_bytes + i * tile_bytes, &maps.of[block.width], (span + i) * 64, block.token,
                                 rings.x_full + 8 * ring.slot);
                }
            }
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int my_tile = (warpgroup - 1) * 4 + warp;
    Ring wr(p.w_slots, 0), xr(p.x_slots, 0);
    auto multiply = [&]<int N>(Width<N>) {
        float d[N / 2];
#pragma unroll
        for (float& sum : d) sum = 0.0f;
        multiply_units<N, Groups, IntegerZeros, 1, spans>(d, rings, wr, xr, p, my_tile, lane, 0, p.units);
        store_block<N, true>(p, block.row_block * block_tiles + my_tile, block.token, block.token + block.tokens, ~0u, d);
    };
    bool more = block.next(list, p);
    // All blocks that come now and are at least this wide.
    auto run = [&]<int First>(std::integral_constant<int, First>) {
        static_assert(narrow_widths == 5 && widths == 10);
        for (; more && block.width >= First; more = block.next(list, p)) {
            switch (block.width - First) {
                case 0: multiply(Width<width_of(First)>()); break;
                case 1: multiply(Width<width_of(First + 1)>()); break;
                case 2: multiply(Width<width_of(First + 2)>()); break;
                case 3: multiply(Width<width_of(First + 3)>()); break;
                default: multiply(Width<width_of(First + 4)>()); break;
            }
        }
    };
    run(std::integral_constant<int, narrow_widths>());
    run(std::integral_constant<int, 0>());
#endif
}

// Row r of `to` is row source[r] of x; columns past `in` are zero. One CTA a row.
__global__ void __launch_bounds__(256)
    gather_kernel(const half* x, int64_t ldx, int in, const int32_t* source, half* to, int64_t pitch, bool wide) {
    pdl_trigger();
    pdl_wait();
    const half* from = x + __ldcg(source + blockIdx.x) * ldx;
    to += blockIdx.x * pitch;
    if (wide) {
        for (int i = static_cast<int>(threadIdx.x); i < in / 8; i += 256)
            reinterpret_cast<uint4*>(to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
    } else {
        for (int i = static_cast<int>(threadIdx.x); i < pitch; i += 256) to[i] = i < in ? load_activation(from + i) : half(0.0f);
    }
}

using ExpertsKernel = void (*)(Maps, Params);
struct Variant {
    int groups;  // 8: any
    bool integer_zeros;
    ExpertsKernel kernel;
};
const Variant variants[] = {{2, true, experts_kernel<2, true>}, {8, true, experts_kernel<8, true>}, {8, false, experts_kernel<8, false>}};
// The first that serves the layout.
const Variant& variant_of(const Q4Layout& layout) {
    for (const Variant& v : variants)
        if (v.integer_zeros == layout.integer_zeros && (v.groups == 8 || layout.group == 128)) return v;
    return variants[0];
}
constexpr int dynamic_limit = shared_limit - static_cast<int>(sizeof(WorkList)) / 1024 * 1024 - 1024;

}  // namespace

cudaError_t open_experts(const MatmulDevice& device) {
    if (device.arch != 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, dynamic_limit)) return error;
    return allow_shared(gather_kernel, 0);
}

bool experts_fit(const MatmulDevice& device, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    return wgmma_fits(device, weight.layout, args) && weight.experts <= max_experts &&
           (rows.source || rows_aligned(args.x, args.ldx));
}

cudaError_t experts_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    const Q4Layout& layout = weight.layout;
    const half* x = args.x;
    int64_t ldx = args.ldx;
    if (rows.source) {
        half* sorted = scratch_of(context).rows;
        const int64_t pitch = dense_pitch(layout.in);
        const bool wide = rows_aligned(x, ldx) && layout.in % 8 == 0;
        if (cudaError_t error = launch(context, gather_kernel, dim3(static_cast<unsigned>(args.rows)), 256, 0, x, ldx,
                                       static_cast<int>(layout.in), rows.source, sorted, pitch, wide))
            return error;
        x = sorted, ldx = pitch;
    }
    Params p;
    static_cast<Product&>(p) = product_of(weight, args);
    p.begin = rows.begin;
    p.expert_bytes = layout.bytes(), p.expert_count = weight.experts;
    p.choices = rows.most <= width_of(narrow_widths - 1) ? narrow_widths : widths;
    p.x_bytes = width_of(p.choices - 1) * 128 * spans;
    Maps maps = {};
    for (int i = 0; i < p.choices; i++)
        if (cudaError_t error = map_rows(context.device, x, layout.in, args.rows, ldx, width_of(i), &maps.of[i])) return error;
    const int limit = dynamic_limit - 1024, w_bytes = block_tiles * p.unit_bytes;
    p.w_slots = p.choices == widths ? 4 : 6;  // narrow blocks wait for weights, wide ones for X
    while (limit - p.w_slots * w_bytes < 3 * p.x_bytes) p.w_slots--;  // one slot of X is held while the next is begun
    p.x_slots = std::min(max_slots, (limit - p.w_slots * w_bytes) / p.x_bytes);
    const int shared_bytes = 1024 + p.w_slots * w_bytes + p.x_slots * p.x_bytes;
    const int64_t blocks = static_cast<int64_t>(p.row_blocks) * std::min(args.rows, weight.experts + args.rows / 32);
    const auto ctas = static_cast<unsigned>(std::min<int64_t>(context.device.sm_count, blocks));
    return launch(context, variant_of(layout).kernel, dim3(ctas), threads, shared_bytes, maps, p);
}

}  // namespace awq::cuda
