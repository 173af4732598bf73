// Attention of single tokens over the paged cache, with rope_append's work done on the way, sm_90 and later: reads the cache at
// the speed of memory. Heads of whole 32-column blocks, no soft cap, no bias; attention_decode.cu has the rest.
//
// A producer warp brings whole pages of a head's keys and values to a ring in shared memory by bulk copies. It starts before the
// dependency wait: but for the token's own position nothing in them comes from this run. Where a multiprocessor has
// one block, as much of its share as the ring holds has come or is on its way by the time q is there.
//
// Eight warps take a chunk of four pages at a time. First each takes 32 keys and leaves their exponentials, relative to its own
// maximum, in shared memory; then each takes 16 columns and all keys of the chunk. So a warp's sums are the block's, and what
// is left to do once the last values have come is short. Scores are K Q^T, outputs V^T P^T: keys and columns in the place of
// an mma's 16 rows, the tile's 8 rows as its columns.
#include <algorithm>
#include "backends/cuda/attention_decode.cuh"
#include "backends/cuda/bulk_copy.cuh"

namespace awq::cuda {
namespace {

constexpr int warps = 8, threads = warps * 32, step_keys = 32, page_steps = page_size / step_keys;
constexpr int chunk_pages = warps / page_steps, most_slots = 2 * chunk_pages;
constexpr int split_pages = split_keys / page_size;

// Shared memory of a block, from its beginning; the ring is behind it.
template <int blocks>
struct Shared {
    static constexpr int p_pitch = chunk_pages * page_size + 32;  // two rows' 64 bytes are in different banks
    uint64_t full[most_slots], empty[most_slots];
    __align__(16) float2 state[warps][decode_tile];  // maximum, sum of exponentials of each step of the chunk
    float newest[decode_tile];                       // exponentials of the token's own key
    Staged<blocks> staged;
    __align__(16) __half p[decode_tile][p_pitch];  // exponentials of the chunk
};
template <int blocks>
constexpr int page_bytes = page_size* blocks * 32 * static_cast<int>(sizeof(__half));
// So many pages of a block are on their way at once: with all of them, some multiprocessors get theirs long after the others.
template <int blocks>
constexpr int pages_on_way = 64 * 1024 / page_bytes<blocks>;
template <int blocks>
constexpr int ring_offset = (static_cast<int>(sizeof(Shared<blocks>)) + 127) / 128 * 128;

__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory"); }

// The pages of a split, first .. last - 1. The cut depends on the sequence's own length alone; one chunk is not cut, and the later
// splits are the longer ones, since the last page is not full.
struct Share {
    int first, last, used;  // used: splits of the sequence
    __device__ __forceinline__ Share(const AttentionCall& call, int high, int split) {
        const int begin = call.window > 0 ? max(0, high - call.window + 1) / page_size : 0, pages = high / page_size + 1 - begin;
        used = pages <= chunk_pages ? 1 : min((pages + split_pages - 1) / split_pages, call.most_splits);
        const auto each = static_cast<int>(__fdividef(static_cast<float>(pages) + 0.5f, static_cast<float>(used)));
        const int longer = split - used + pages - each * used;
        first = begin + each * split + max(longer, 0);
        last = first + each + (longer >= 0);
    }
};

// One warp: of each chunk the keys and then the values. All it waits for before the first copy is the token's position and, at
// the same time, the page table. Returns whether the token's own position is among them.
template <int blocks>
__device__ __forceinline__ bool produce(const AttentionCall& call, int sequence, int kv_head, int slots, uint32_t ring,
                                        uint32_t full, uint32_t empty) {
    const int lane = threadIdx.x % 32;
    const int32_t* table = call.cache.page_table + static_cast<int64_t>(sequence) * call.cache.max_pages;
    const int high = call.cache.positions[sequence];
    int32_t early[4];  // the first 128 pages
#pragma unroll
    for (int i = 0; i < 4; i++) early[i] = table[min(i * 32 + lane, call.cache.max_pages - 1)];
    if (lane == 0) {
#pragma unroll
        for (int i = 0; i < most_slots; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, threads);  // each lane for itself: see matmul_prefill_sm90.cuh
        }
        barrier_init_done();
    }
    __syncwarp();
    const Share share(call, high, blockIdx.y);
    if (static_cast<int>(blockIdx.y) >= share.used) return false;
    asm volatile("bar.arrive 2, %0;" ::"n"(threads + 32) : "memory");
    const int64_t to_values = static_cast<int64_t>(call.cache.kv_heads) * (page_bytes<blocks> / sizeof(__half));
    Ring place(slots, 1);
    const int most = min(pages_on_way<blocks>, slots);  // beyond a turn of the ring the oldest one's parity says nothing
    PartsOnWay on_way;
    for (int chunk = share.first; chunk < share.last; chunk += chunk_pages) {
        const int pages = min(chunk_pages, share.last - chunk);
        for (int i = 0; i < 2 * pages; i++) {
            const int at = chunk + (i < pages ? i : i - pages);
            int32_t id = __shfl_sync(~0u, at < 64 ? at < 32 ? early[0] : early[1] : at < 96 ? early[2] : early[3], at % 32);
            if (lane == 0) {
                if (at >= 128) id = table[at];
                const __half* from = call.cache.keys(id, kv_head) + (i < pages ? 0 : to_values);
                on_way.wait_below(most, full, 1, slots);
                on_way.count++;
                barrier_wait(empty + 8 * place.slot, place.phase);
                barrier_expect(full + 8 * place.slot, page_bytes<blocks>);
                bulk_copy(ring + place.slot * page_bytes<blocks>, from, page_bytes<blocks>, full + 8 * place.slot);
            }
            place.next();
            __syncwarp();
        }
    }
    return static_cast<int>(blockIdx.y) == share.used - 1;
}

// What a split leaves of a tile: its outputs as [column][pair of rows], then each row's log2 of its sum of exponentials.
template <int blocks>
constexpr int split_floats = decode_tile*(blocks * 32 + 2);

// A warp joins 16 columns of the splits (32 at most), in their order. All loads of 16 splits are on their way at once.
template <int blocks>
__device__ __forceinline__ void join(const AttentionCall& call, const Tile& tile, const float* partial, int splits,
                                     int first_column) {
    constexpr int width = blocks * 32, at_once = 16;
    const int pairs = (tile.rows + 1) / 2;
    for (int e = threadIdx.x % 32; e < 16 * pairs; e += 32) {
        const int pair = e % pairs, column = first_column + e / pairs;
        float top[2] = {-INFINITY, -INFINITY}, total[2] = {}, sum[2] = {};
        for (int base = 0; base < splits; base += at_once) {
            float2 weight[at_once], x[at_once];
            const float2* at = reinterpret_cast<const float2*>(partial + base * split_floats<blocks>);
#pragma unroll
            for (int i = 0; i < at_once; i++) {
                weight[i] = __ldcg(at + decode_tile * width / 2 + pair);
                x[i] = __ldcg(at + column * pairs + pair);
                if (base + i + 1 < splits) at += split_floats<blocks> / 2;  // behind the last: its again, of no weight
            }
#pragma unroll
            for (int row = 0; row < 2; row++) {
                float highest = top[row];
#pragma unroll
                for (int i = 0; i < at_once; i++) highest = fmaxf(highest, row ? weight[i].y : weight[i].x);
                const float keep = fast_exp2(top[row] - highest);
                top[row] = highest, total[row] *= keep, sum[row] *= keep;
#pragma unroll
                for (int i = 0; i < at_once; i++) {
                    const float w = base + i < splits ? fast_exp2((row ? weight[i].y : weight[i].x) - highest) : 0.0f;
                    total[row] += w, sum[row] += w * (row ? x[i].y : x[i].x);
                }
            }
        }
#pragma unroll
        for (int row = 0; row < 2; row++)
            if (2 * pair + row < tile.rows)
                call.out[tile.first_token * call.out_stride + row_head<true>(call, tile, 2 * pair + row) * width + column] =
                    __float2half_rn(__fdividef(sum[row], total[row]));
    }
}

// Block (kv_head and row tile, split, sequence).
template <int blocks>
__global__ void __launch_bounds__(threads + 32, blocks <= 4 ? 2 : 1)
    pages_kernel(const int slots, const __grid_constant__ AttentionCall call) {
    constexpr int width = blocks * 32, column_tiles = width / 16, warp_tiles = (column_tiles + warps - 1) / warps;
    extern __shared__ __align__(128) char dynamic[];
    Shared<blocks>& shared = *reinterpret_cast<Shared<blocks>*>(dynamic);
    const char* ring = dynamic + ring_offset<blocks>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t full = shared_address(shared.full), empty = shared_address(shared.empty);

    let_next_begin();
    const int sequence = blockIdx.z, split = blockIdx.y;
    const int kv_head = call.row_tiles == 1 ? blockIdx.x : blockIdx.x / call.row_tiles;
    Tile tile;
    if (warp == warps) [[likely]] {  // first in the code: its copies are what everybody waits for
        const bool newest = produce<blocks>(call, sequence, kv_head, slots, shared_address(ring), full, empty);
        find_tile<true>(call, sequence, kv_head, blockIdx.x - kv_head * call.row_tiles, decode_tile, tile);
        if (newest && tile.first_row == 0) {  // once for the tiles that share the keys
            asm volatile("bar.sync 3, %0;" ::"n"(threads + 32) : "memory");
            const int high = call.cache.positions[sequence];
            put_newest<blocks, true>(call, tile, high, call.cache.keys(call.cache.page_of(sequence, high), kv_head),
                                     shared.staged);
        }
        return;
    }
    const int high = call.cache.positions[sequence];  // the token's position
    find_tile<true>(call, sequence, kv_head, blockIdx.x - kv_head * call.row_tiles, decode_tile, tile);
    const Share share(call, high, split);
    const int first = share.first, last = share.last, used = share.used;
    if (split >= used) {
        wait_for_previous();
        return;
    }
    const int newest = split == used - 1 ? high : -1;
    stage_rows<blocks, warps, true, true>(call, tile, newest >= 0, shared.staged);
    asm volatile("bar.sync 2, %0;" ::"n"(threads + 32) : "memory");  // the barriers of the ring are initialised as well
    if (newest >= 0 && tile.first_row == 0) asm volatile("bar.arrive 3, %0;" ::"n"(threads + 32) : "memory");  // q is staged

    // Score tile u: its row g is key 8 (g / 2) + 2 u + g % 2 of the step, so that once transposed a lane's exponentials belong
    // to 8 neighbouring keys 8 t .. 8 t + 7, the ones in its 16 bytes of each value row.
    const int lane_key = 8 * (g / 2) + g % 2;
    const auto reach = static_cast<unsigned>(call.window > 0 ? call.window : INT32_MAX);
    Ring place(slots, 0);
    auto page_there = [&] {
        barrier_wait(full + 8 * place.slot, place.phase);
        return reinterpret_cast<const __half*>(ring + place.slot * page_bytes<blocks>);
    };
    auto page_done = [&] {
        barrier_arrive(empty + 8 * place.slot);
        place.next();
    };
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {}, out[warp_tiles][4] = {};
    for (int chunk = first; chunk < last; chunk += chunk_pages) {
        const int chunk_key = chunk * page_size, count = min(chunk_pages, last - chunk);
        const int steps = min(count * page_steps, (high - chunk_key) / step_keys + 1);

        // ---- scores: this warp's step. Every warp waits for every page: parity tells two phases apart.
        const int key = chunk_key + warp * step_keys + lane_key;  // of score tile 0; tile u's is 2 u further
        float score[2][2][4] = {};                                // two sums each, for a shorter chain of products
        for (int i = 0; i < count; i++) {
            const __half* k = page_there() + (warp % page_steps * step_keys + lane_key) * width + 8 * t;
            if (warp / page_steps == i && warp < steps)
#pragma unroll
                for (int block = 0; block < blocks; block++) {
                    const uint4 q = *reinterpret_cast<const uint4*>(&shared.staged.q[g][block * 32 + 8 * t]);
                    uint4 bits[4];
#pragma unroll
                    for (int u = 0; u < 4; u++) {
                        bits[u] = *reinterpret_cast<const uint4*>(k + 2 * u * width + block * 32);
                        if (key + 2 * u == newest)
                            bits[u] = *reinterpret_cast<const uint4*>(&shared.staged.q[tile.rows][block * 32 + 8 * t]);
                    }
#pragma unroll
                    for (int m = 0; m < 2; m++) {
                        const uint4 a = bits[2 * m], b = bits[2 * m + 1];
                        mma_f16(score[m][0], a.x, b.x, a.y, b.y, q.x, q.y);
                        mma_f16(score[m][1], a.z, b.z, a.w, b.w, q.z, q.w);
                    }
                }
            page_done();
        }
        float p[4][2], highest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
        for (int u = 0; u < 4; u++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int at = u % 2 * 2 + e;
                const float x = finish_score<true>(call, score[u / 2][0][at] + score[u / 2][1][at], 0, key + 2 * u, high);
                p[u][e] = static_cast<unsigned>(high - key - 2 * u) < reach ? x : -INFINITY;
                highest[e] = fmaxf(highest[e], p[u][e]);
            }
#pragma unroll
        for (int e = 0; e < 2; e++) {
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) highest[e] = fmaxf(highest[e], __shfl_xor_sync(~0u, highest[e], lanes));
            const float base = highest[e] == -INFINITY ? 0.0f : highest[e];  // nothing seen: all exponentials are 0
#pragma unroll
            for (int u = 0; u < 4; u++) {
                p[u][e] = fast_exp2(p[u][e] - base);
                sum[e] += p[u][e];
            }
        }
        uint4 p_bits;
        p_bits.x = transpose_8x8(pack_half2(p[0][0], p[0][1])), p_bits.y = transpose_8x8(pack_half2(p[1][0], p[1][1]));
        p_bits.z = transpose_8x8(pack_half2(p[2][0], p[2][1])), p_bits.w = transpose_8x8(pack_half2(p[3][0], p[3][1]));
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) sum[e] += __shfl_xor_sync(~0u, sum[e], lanes);
        if (chunk != first) consumer_sync();  // nobody reads the last chunk's any more
        *reinterpret_cast<uint4*>(&shared.p[g][warp * step_keys + 8 * t]) = p_bits;
        if (g == 0) *reinterpret_cast<float4*>(&shared.state[warp][2 * t]) = make_float4(highest[0], sum[0], highest[1], sum[1]);
#pragma unroll
        for (int u = 0; u < 4; u++)
            if (key + 2 * u == newest) *reinterpret_cast<float2*>(&shared.newest[2 * t]) = make_float2(p[u][0], p[u][1]);
        consumer_sync();

        // ---- outputs: this warp's columns
        auto state = [&](int step) { return *reinterpret_cast<const float4*>(&shared.state[step][2 * t]); };
        float base[2] = {top[0], top[1]};
#pragma unroll
        for (int step = 0; step < warps; step++)
            if (step < steps) base[0] = fmaxf(base[0], state(step).x), base[1] = fmaxf(base[1], state(step).z);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float kept = top[e];
            top[e] = base[e];
            if (base[e] == -INFINITY) base[e] = 0;
            const float keep = fast_exp2(kept - base[e]);
            total[e] *= keep;
#pragma unroll
            for (int i = 0; i < warp_tiles; i++) out[i][e] *= keep, out[i][e + 2] *= keep;
        }
        for (int i = 0; i < count; i++) {
            const __half* v = page_there() + g * page_size + 8 * t;
#pragma unroll
            for (int half = 0; half < page_steps; half++) {
                const int step = i * page_steps + half;
                if (step >= steps) break;
                const float4 of_step = state(step);
                const float weight[2] = {fast_exp2(of_step.x - base[0]), fast_exp2(of_step.z - base[1])};
                total[0] += weight[0] * of_step.y, total[1] += weight[1] * of_step.w;
                const uint4 exponentials = *reinterpret_cast<const uint4*>(&shared.p[g][step * step_keys + 8 * t]);
                // From the token's own position on lies memory nobody wrote: zeros instead, since 0 * NaN is not 0.
                const int written = high - chunk_key - step * step_keys - 8 * t;
                auto blank = [&](uint4& bits) {
                    if (written >= 8) return;
                    auto mask = [&](int key) { return written >= key + 2 ? ~0u : written == key + 1 ? 0xffffu : 0u; };
                    bits = make_uint4(bits.x & mask(0), bits.y & mask(2), bits.z & mask(4), bits.w & mask(6));
                };
#pragma unroll
                for (int j = 0; j < warp_tiles; j++) {
                    const int tile_of_columns = warp + j * warps;
                    if (tile_of_columns >= column_tiles) break;
                    const __half* from = v + tile_of_columns * 16 * page_size + half * step_keys;
                    uint4 a = *reinterpret_cast<const uint4*>(from), b = *reinterpret_cast<const uint4*>(from + 8 * page_size);
                    blank(a), blank(b);
                    float product[4] = {};
                    mma_f16(product, a.x, b.x, a.y, b.y, exponentials.x, exponentials.y);
                    mma_f16(product, a.z, b.z, a.w, b.w, exponentials.z, exponentials.w);
#pragma unroll
                    for (int e = 0; e < 4; e++) out[j][e] += weight[e % 2] * product[e];
                }
            }
            page_done();
        }
        if (newest >= 0 && chunk + count == last) {  // the token's own value, in the last step
            const float4 of_step = state(steps - 1);
            const float weight[2] = {fast_exp2(of_step.x - base[0]) * shared.newest[2 * t],
                                     fast_exp2(of_step.z - base[1]) * shared.newest[2 * t + 1]};
#pragma unroll
            for (int j = 0; j < warp_tiles; j++) {
                const int column = (warp + j * warps) * 16 + g;
                if (column >= width) break;
                const float low = __half2float(shared.staged.v[column]), up = __half2float(shared.staged.v[column + 8]);
#pragma unroll
                for (int e = 0; e < 2; e++) out[j][e] += weight[e] * low, out[j][e + 2] += weight[e] * up;
            }
        }
    }

    // ---- columns 16 i + g and + 8, rows 2 t and 2 t + 1: the result, or the split's part of it. Of each 16 columns the last
    // warp to arrive joins the splits.
    const float inverse[2] = {__fdividef(1.0f, total[0]), __fdividef(1.0f, total[1])};
    const int pairs = (tile.rows + 1) / 2;
    const float* partials = call.partial + static_cast<int64_t>(tile.id) * call.splits * split_floats<blocks>;
    float* partial = call.partial + (static_cast<int64_t>(tile.id) * call.splits + split) * split_floats<blocks>;
#pragma unroll
    for (int j = 0; j < warp_tiles; j++) {
        const int tile_of_columns = warp + j * warps, column = tile_of_columns * 16;
        if (tile_of_columns >= column_tiles) break;
        const float low[2] = {out[j][0] * inverse[0], out[j][1] * inverse[1]},
                    up[2] = {out[j][2] * inverse[0], out[j][3] * inverse[1]};
        if (used == 1) {
            const uint32_t low_bits = transpose_8x8(pack_half2(low[0], low[1])),
                           up_bits = transpose_8x8(pack_half2(up[0], up[1]));
            if (g >= tile.rows) continue;
            __half* to = call.out + tile.first_token * call.out_stride + row_head<true>(call, tile, g) * width + column + 2 * t;
            *reinterpret_cast<uint32_t*>(to) = low_bits;
            *reinterpret_cast<uint32_t*>(to + 8) = up_bits;
            continue;
        }
        if (t < pairs) {
            float2* to = reinterpret_cast<float2*>(partial) + (column + g) * pairs + t;
            __stcg(to, make_float2(low[0], low[1]));
            __stcg(to + 8 * pairs, make_float2(up[0], up[1]));
            // Every warp writes the same, so that what a warp has to see of it is what a warp of its own columns wrote.
            if (g == 0)
                __stcg(reinterpret_cast<float2*>(partial) + decode_tile * width / 2 + t,
                       make_float2(top[0] + fast_log2(total[0]), top[1] + fast_log2(total[1])));
        }
        if (last_warp_to_arrive(call.counters + tile.id * column_tiles + tile_of_columns, used))
            join<blocks>(call, tile, partials, used, column);
    }
}

template <int blocks>
Status launch_pages(Context& context, const AttentionCall& call, int sequences) {
    const dim3 grid(call.cache.kv_heads * call.row_tiles, call.splits, sequences);
    // As many slots as leave room for the blocks that a multiprocessor has, two at most.
    const int64_t blocks_each =
        std::clamp<int64_t>(ceil_div(int64_t{grid.x} * grid.y * grid.z, context.multiprocessors), 1, blocks <= 4 ? 2 : 1);
    const auto room = static_cast<int>((context.shared_limit + 1024) / blocks_each) - 1024 - ring_offset<blocks> - 128;
    const int slots = std::min(room / page_bytes<blocks>, most_slots);
    const size_t shared = ring_offset<blocks> + static_cast<size_t>(slots) * page_bytes<blocks>;
    return launch(context, pages_kernel<blocks>, grid, threads + 32, shared, slots, call);
}

}  // namespace

bool can_decode_pages(const Context& context, const AttentionCall& call) {
    return call.append.k && context.compute_major >= 9 && call.softcap == 0 && !call.alibi && call.cache.head_dim % 32 == 0 &&
           head_blocks(call.cache.head_dim) * 32 == call.cache.head_dim;
}

Status attention_decode_pages(Context& context, const AttentionCall& call, int sequences) {
    switch (head_blocks(call.cache.head_dim)) {
        case 1: return launch_pages<1>(context, call, sequences);
        case 2: return launch_pages<2>(context, call, sequences);
        case 3: return launch_pages<3>(context, call, sequences);
        case 4: return launch_pages<4>(context, call, sequences);
        case 6: return launch_pages<6>(context, call, sequences);
        default: return launch_pages<8>(context, call, sequences);
    }
}

}  // namespace awq::cuda
