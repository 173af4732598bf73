// Attention of many rows on Hopper: both products by wgmma. Heads of 64 and 128 columns, no soft cap, no bias;
// attention_prefill.cu has the rest. sm_90a only.
//
// A block takes 128 rows of one sequence and kv head, two warpgroups 64 each, and walks over the cache page by page; a producer
// brings keys and values to rings in shared memory through the tensor copy engine. Q and the exponentials are A operands in
// registers, a page of keys is B as it lies ([key][column], K along columns), and so is one of values ([column][key], K along
// keys).
//
// A warpgroup asks for the next page's scores before it multiplies this page's exponentials with the values: while the tensor
// cores are at the values, it makes exponentials of the scores. The other warpgroup fills what is left.
#include "backends/cuda/attention.h"
#include "backends/cuda/bulk_copy.cuh"
#include "backends/cuda/tensor_map_sm90.h"
#include "backends/cuda/wgmma_sm90.h"

namespace awq::cuda {
namespace {

constexpr int threads = 384, consumers = 256, tile_rows = 128, stages = 4;

// panels: of 64 columns of a head.
template <int panels>
struct Shape {
    static constexpr int width = panels * 64, page_bytes = page_size * width * 2;  // of keys, and as many of values
    static constexpr int shared_bytes = 1024 + stages * 2 * page_bytes;            // 1024: the swizzle wants boxes aligned
    // What attention.cu counts with.
    static_assert(tile_rows == prefill_rows(width) && partial_floats(tile_rows, width) == tile_rows * (width + 2));
};

[[maybe_unused]] __device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync 1, %0;" ::"n"(consumers) : "memory"); }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Values behind the last position, in its page, were never written: zeros instead, since 0 * NaN is not 0. By both warpgroups.
template <int panels>
__device__ __forceinline__ void blank_values(uint32_t at, int written) {
    for (int column = static_cast<int>(threadIdx.x) - (threads - consumers); column < Shape<panels>::width; column += consumers)
        for (int chunk = written / 8; chunk < 8; chunk++) {
            const uint32_t piece = at + column * 128 + ((chunk ^ (column & 7)) << 4);
            const int keep = max(written - chunk * 8, 0);  // halves of the piece
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (keep >= 2 * i + 2) continue;
                uint32_t word = 0;
                if (keep == 2 * i + 1) {
                    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(piece + 4 * i) : "memory");
                    word &= 0xffff;
                }
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(piece + 4 * i), "r"(word) : "memory");
            }
        }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    consumer_sync();
}
#endif

// Block (row tile and split, kv_head, sequence).
template <int panels>
__global__ void __launch_bounds__(threads, 1)
    wgmma_kernel(const __grid_constant__ CUtensorMap key_map, const __grid_constant__ CUtensorMap value_map,
                 const __grid_constant__ AttentionCall call) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using S = Shape<panels>;
    constexpr int width = S::width;
    extern __shared__ uint8_t raw[];
    __shared__ __align__(16) uint64_t barriers[4 * stages];
    const uint32_t keys = (shared_address(raw) + 1023) & ~1023u, values = keys + stages * S::page_bytes;
    const uint32_t keys_full = shared_address(barriers), keys_empty = keys_full + 8 * stages,
                   values_full = keys_empty + 8 * stages, values_empty = values_full + 8 * stages;
    const int warpgroup = static_cast<int>(threadIdx.x) >> 7, warp = static_cast<int>(threadIdx.x) >> 5 & 3,
              lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    let_next_begin();
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; i++) {
            barrier_init(keys_full + 8 * i, 1);
            barrier_init(values_full + 8 * i, 1);
            barrier_init(keys_empty + 8 * i, consumers);
            barrier_init(values_empty + 8 * i, consumers);
        }
        barrier_init_done();
    }
    __syncthreads();
    wait_for_previous();

    Tile tile;
    TilePages pages;
    if (!find_pages(call, tile_rows, tile, pages)) return;
    const int first = pages.first, last = pages.last, low = pages.low, high = pages.high;

    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x != 0) return;
        Ring stage(stages, 1);
        const int page_keys = static_cast<int>(call.cache.page_stride / width),
                  page_rows = static_cast<int>(call.cache.page_stride / 64);
        int64_t next = call.cache.page_of(tile.sequence, first * page_size);
        for (int page = first; page < last; page++, stage.next()) {
            const int id = static_cast<int>(next);
            if (page + 1 < last) next = call.cache.page_of(tile.sequence, (page + 1) * page_size);
            barrier_wait(keys_empty + 8 * stage.slot, stage.phase);
            barrier_expect(keys_full + 8 * stage.slot, S::page_bytes);
#pragma unroll
            for (int panel = 0; panel < panels; panel++)
                load_box(keys + stage.slot * S::page_bytes + panel * (page_size * 128), &key_map, 0, panel,
                         id * page_keys + tile.kv_head * page_size, keys_full + 8 * stage.slot);
            barrier_wait(values_empty + 8 * stage.slot, stage.phase);
            barrier_expect(values_full + 8 * stage.slot, S::page_bytes);
            load_box(values + stage.slot * S::page_bytes, &value_map, 0,
                     id * page_rows + (call.cache.kv_heads + tile.kv_head) * width, values_full + 8 * stage.slot);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = warpgroup - 1, first_row = group * 64 + warp * 16 + g;
    uint32_t q[panels * 4][4];  // of 16 columns each
    int position[2];
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // top: the highest score, scaled
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = min(first_row + 8 * i, tile.rows - 1);
        position[i] = tile.position(call, row);
        const __half* from =
            call.q + tile.token(call, row) * call.q_stride + static_cast<int64_t>(tile.head(call, row)) * width + 2 * t;
#pragma unroll
        for (int step = 0; step < panels * 4; step++) {
            q[step][i] = __ldcg(reinterpret_cast<const uint32_t*>(from + step * 16));
            q[step][i + 2] = __ldcg(reinterpret_cast<const uint32_t*>(from + step * 16 + 8));
        }
    }
    const float scale = call.scale * log2_e;

    Ring key_stage(stages, 0), value_stage(stages, 0);
    float score[32], out[width / 2];
    uint32_t p[4][4];  // exponentials, of 16 keys each
#pragma unroll
    for (float& x : out) x = 0.0f;
    auto ask_for_scores = [&] {
        barrier_wait(keys_full + 8 * key_stage.slot, key_stage.phase);
        const uint64_t b = uniform_descriptor(keys + key_stage.slot * S::page_bytes);
#pragma unroll
        for (float& x : score) x = 0.0f;
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < panels * 4; step++)
            Wgmma<64>::run(score, q[step], b + step / 4 * (page_size * 128 / 16) + 2 * (step % 4));
        wgmma_commit();
    };
    auto scores_done = [&] {
        settle(score);
        barrier_arrive(keys_empty + 8 * key_stage.slot);
        key_stage.next();
    };
    // A page's scores become exponentials; keep: what earlier sums are to be multiplied by. Returns whether that is not 1
    // somewhere.
    auto exponentiate = [&](int page, float(&keep)[2]) {
        // Inside the triangle and the window no score needs a mask.
        if (page * page_size + page_size - 1 > low || (call.window > 0 && page * page_size <= high - call.window)) {
            const int key = page * page_size + 2 * t;
#pragma unroll
            for (int i = 0; i < 32; i++)
                if (!sees(call, key + i / 4 * 8 + i % 2, position[i / 2 % 2])) score[i] = -INFINITY;
        }
        bool risen = false;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float highest = -INFINITY;
#pragma unroll
            for (int j = 0; j < 8; j++) highest = fmaxf(highest, fmaxf(score[4 * j + 2 * i], score[4 * j + 2 * i + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
            highest = fmaxf(top[i], highest * scale);
            risen |= highest > top[i];
            const float base = highest == -INFINITY ? 0.0f : highest;  // nothing seen yet: all exponentials are 0
            keep[i] = fast_exp2(top[i] - base);  // exactly 1 where nothing has risen, whatever other rows do
            top[i] = highest;
            sum[i] *= keep[i];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float &x = score[4 * j + 2 * i], &y = score[4 * j + 2 * i + 1];
                x = fast_exp2(x * scale - base), y = fast_exp2(y * scale - base);
                sum[i] += x + y;
            }
        }
        return __any_sync(~0u, risen);
    };

    auto multiply_values = [&] {
        const uint64_t b = uniform_descriptor(values + value_stage.slot * S::page_bytes);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) Wgmma<width>::run(out, p[step], b + 2 * step);
        wgmma_commit();
    };
    auto wait_for_values = [&] { barrier_wait(values_full + 8 * value_stage.slot, value_stage.phase); };

    auto pack = [&] {  // only once no product reads the last page's any more
#pragma unroll
        for (int i = 0; i < 16; i++) p[i / 4][i % 4] = pack_half2(score[2 * i], score[2 * i + 1]);
    };

    float keep[2];
    ask_for_scores();
    wgmma_wait<0>();
    scores_done();
    exponentiate(first, keep);
    pack();
    for (int page = first; page + 1 < last; page++) {
        ask_for_scores();
        wait_for_values();
        multiply_values();
        wgmma_wait<1>();
        scores_done();
        const bool risen = exponentiate(page + 1, keep);
        wgmma_wait<0>();
        settle(out);
        barrier_arrive(values_empty + 8 * value_stage.slot);
        value_stage.next();
        if (risen)
#pragma unroll
            for (int i = 0; i < width / 2; i++) out[i] *= keep[i / 2 % 2];
        pack();
    }
    wait_for_values();
    if (const int written = high + 1 - (last - 1) * page_size; written < page_size)
        blank_values<panels>(values + value_stage.slot * S::page_bytes, written);
    multiply_values();
    wgmma_wait<0>();
    settle(out);

    finish_rows<width, tile_rows>(
        call, tile, pages, width, first_row, top, sum,
        [&](int j, int i) { return make_float2(out[4 * j + 2 * i], out[4 * j + 2 * i + 1]); },
        reinterpret_cast<float*>(raw),  // the rings are free by now
        static_cast<int>(threadIdx.x) - (threads - consumers), consumers, consumer_sync);
#endif
}

template <int panels>
Status launch_wgmma(Context& context, const AttentionCall& call, int sequences) {
    constexpr int width = Shape<panels>::width;
    // All of memory from the layer's first page on, as far as a coordinate goes: pages are known on the device only.
    CUtensorMap key_map, value_map;
    const cuuint64_t key_sizes[3] = {64, panels, INT32_MAX}, key_strides[2] = {128, width * 2};
    const cuuint64_t value_sizes[2] = {64, INT32_MAX}, value_strides[1] = {128};
    const cuuint32_t key_box[3] = {64, 1, page_size}, value_box[2] = {64, width};
    void* encode = context.matmul.device.encode_tensor_map;
    AWQ_CUDA(encode_map(encode, call.cache.data, 3, key_sizes, key_strides, key_box, &key_map));
    AWQ_CUDA(encode_map(encode, call.cache.data, 2, value_sizes, value_strides, value_box, &value_map));
    const dim3 grid(call.row_tiles * call.splits, call.cache.kv_heads, sequences);
    return launch(context, wgmma_kernel<panels>, grid, threads, Shape<panels>::shared_bytes, key_map, value_map, call);
}

}  // namespace

bool can_prefill_wgmma(const Context& context, const AttentionCall& call) {
    const MatmulDevice& device = context.matmul.device;
    return device.arch == 90 && device.encode_tensor_map && call.softcap == 0 && !call.alibi && call.scale > 0 &&
           (call.cache.head_dim == 64 || call.cache.head_dim == 128);
}

Status attention_prefill_wgmma(Context& context, const AttentionCall& call, int sequences) {
    return call.cache.head_dim == 64 ? launch_wgmma<1>(context, call, sequences) : launch_wgmma<2>(context, call, sequences);
}

}  // namespace awq::cuda
