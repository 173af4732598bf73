// The KV cache as device code sees it, and what the attention kernels share.
//
// A page of the cache holds 64 positions of every layer: [layer][keys, values][kv_head]. Keys lie as [64][head_dim],
// values transposed, [head_dim][64]: 16 bytes of either are then what one lane holds of two B operands of mma.sync, and either is a
// B operand of wgmma (rows of 128 bytes along what is summed over), so both go to the tensor cores without a detour.
#pragma once
#include "backends/cuda/cuda.h"

namespace awq::cuda {

// One layer of the paged cache. Without a page table: a cache of the rows themselves, row r at position r (attention_full).
struct KvCache {
    __half* data;         // of this layer in page 0
    int64_t page_stride;  // elements from a page to the next: all layers, keys and values
    int kv_heads, head_dim;
    const int32_t* page_table;  // [sequences][max_pages], or null
    const int32_t *positions, *sequence;
    int max_pages;

#ifdef __CUDACC__
    __device__ int position(int64_t row) const { return page_table ? positions[row] : static_cast<int>(row); }
    // The page of a position of one of the batch's sequences.
    __device__ int64_t page_of(int sequence, int position) const {
        return page_table ? page_table[static_cast<int64_t>(sequence) * max_pages + position / page_size] : position / page_size;
    }
    __device__ int64_t page(int64_t row, int position) const { return page_of(page_table ? sequence[row] : 0, position); }
    __device__ __half* keys(int64_t page, int head) const {
        return data + page * page_stride + static_cast<int64_t>(head) * (page_size * head_dim);
    }
    __device__ __half* values(int64_t page, int head) const { return keys(page, kv_heads + head); }
#endif
};
KvCache paged_cache(const KernelCall& call);
// A rope_append and the attention behind it as one kernel: whether the two can be, and doing so. What append reads must not lie
// where attention's output does (plan_memory sees to that), append's output is not written.
bool can_attend_appending(const KernelCall& append, const Node& attention);
Status attention_appending(const KernelCall& append, const KernelCall& attention);
// Puts keys and values into a cache without a page table (rope.cu).
Status append_plain(Context& context, const Tensor& k, const Tensor& v, const KvCache& cache);

// A sequence with n tokens in the batch has n * group rows for each kv head: row r is query head r % group of its group, of
// token r / group. So the heads that share keys share a tile, and a tile is read once for all of them.
struct AttentionCall {
    KvCache cache;
    int window;  // 0: all
    // Keys split over `splits` blocks: each leaves its sums in `partial`, the last to arrive joins them. Decode cuts a
    // sequence by its own length alone, whatever it shares the batch with (unless that has more tiles than there are counters): not
    // at all up to 2 * split_keys, then into most_splits at most, of some split_keys (attention_decode.cu: twice as many) at least.
    int splits, most_splits, row_tiles;
    const __half* q;
    __half* out;
    int64_t q_stride, out_stride;
    const int32_t* seq_begin;  // null: one sequence of all `tokens`
    int tokens, heads, group;
    int full_keys;         // > 0: no mask, every row sees these many keys
    float scale, softcap;  // softcap 0: none
    const float* alibi;    // slope of each head, or null
    // Each kernel takes the sequences with min_rows .. max_rows rows.
    int min_rows, max_rows;
    float* partial;  // of the splits
    unsigned* counters;  // of each tile, or of each 16 columns of a tile
    bool prefetch;       // decode: few blocks, whose keys and values fit in the second-level cache
    // Decode of one token a sequence may do rope_append's work as well: q is then not rotated yet, and the token's key and
    // value are still to be put in the cache. Pairs are columns i and half + i, or 2 i and 2 i + 1.
    struct Append {
        const __half *k, *v;  // null: all that is done
        const float* table;   // of each token: cosines [half], sines [half]
        int64_t k_stride, v_stride, table_stride;
        int half;
        bool interleaved;
    } append;
};

inline constexpr int decode_tile = 8;    // rows of a decode tile
inline constexpr int split_keys = 128;

// Most rows of a sequence that decode takes: one token's, or those of a few tokens with few heads to a kv head.
inline int decode_rows(int group) { return group > 16 ? group : 16; }
// 32-column blocks the kernels are made for: 1, 2, 3, 4, 6, 8.
constexpr int head_blocks(int head_dim) {
    int blocks = (head_dim + 31) / 32;
    return blocks > 4 ? (blocks + 1) / 2 * 2 : blocks;
}
constexpr int prefill_rows(int head_dim) { return head_dim <= 128 ? 128 : 64; }

// max_rows: of a sequence in this run
Status attention_decode(Context& context, const AttentionCall& call, int max_rows, int sequences);
// Single tokens' attention at the speed of memory, append's work included (sm_90 and later), and whether it takes the call.
bool can_decode_pages(const Context& context, const AttentionCall& call);
Status attention_decode_pages(Context& context, const AttentionCall& call, int sequences);
Status attention_prefill(Context& context, const AttentionCall& call, int sequences);
// By wgmma (sm_90a), and whether it takes the call.
bool can_prefill_wgmma(const Context& context, const AttentionCall& call);
Status attention_prefill_wgmma(Context& context, const AttentionCall& call, int sequences);

// Floats of one split of a tile: sums, maximum and denominator of each row.
constexpr int64_t partial_floats(int rows, int head_dim) { return static_cast<int64_t>(rows) * (head_blocks(head_dim) * 32 + 2); }

#ifdef __CUDACC__
constexpr float log2_e = 1.44269504f;

__device__ __forceinline__ void mma_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float fast_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A score in units of log2: scaled, and where it is not plain capped and biased. tanh(x) = 1 - 2 / (1 + e^2x): the library's
// would be inlined at every score, and the kernels would no longer fit the instruction cache.
template <bool plain>
__device__ __forceinline__ float finish_score(const AttentionCall& call, float dot, float slope, int key, int position) {
    if constexpr (plain) return dot * (call.scale * log2_e);
    float score = dot * call.scale;
    if (call.softcap > 0) score = call.softcap * (1.0f - __fdividef(2.0f, 1.0f + fast_exp2(score * (2 * log2_e / call.softcap))));
    score += slope * static_cast<float>(key - position);
    return score * log2_e;
}
__device__ __forceinline__ bool sees(const AttentionCall& call, int key, int position) {
    return key <= position && (call.window == 0 || key > position - call.window);
}

// A tile of rows of one sequence and kv head.
struct Tile {
    int sequence, kv_head, first_token, first_row, rows;  // rows: of this tile
    int id;

    __device__ int token(const AttentionCall& call, int row) const { return first_token + (first_row + row) / call.group; }
    __device__ int head(const AttentionCall& call, int row) const {
        return kv_head * call.group + (first_row + row) % call.group;
    }
    __device__ int position(const AttentionCall& call, int row) const {
        return call.full_keys > 0 ? call.full_keys - 1 : call.cache.positions[token(call, row)];
    }
};
// false: nothing to do for this tile. single: every sequence has one token.
template <bool single = false>
__device__ __forceinline__ bool find_tile(const AttentionCall& call, int sequence, int kv_head, int row_tile, int tile_rows,
                                          Tile& tile) {
    int begin = single ? sequence : call.seq_begin ? call.seq_begin[sequence] : 0,
        end = single ? sequence + 1 : call.seq_begin ? call.seq_begin[sequence + 1] : call.tokens;
    int rows = (end - begin) * call.group;
    tile = {sequence,
            kv_head,
            begin,
            row_tile * tile_rows,
            min(rows - row_tile * tile_rows, tile_rows),
            (sequence * call.cache.kv_heads + kv_head) * call.row_tiles + row_tile};
    return rows >= call.min_rows && rows <= call.max_rows && tile.rows > 0;
}

// Lowest and highest position of a tile's rows, the same in every thread of a warp. Positions of a sequence ascend.
__device__ __forceinline__ void position_range(const AttentionCall& call, const Tile& tile, int& low, int& high) {
    low = tile.position(call, 0);
    high = tile.position(call, tile.rows - 1);
}

// The pages that a block of many rows walks over: its tile's, as far as they are its split's.
struct TilePages {
    int low, high;              // positions of the tile's rows
    int first, last;            // first .. last - 1
    int split, used;            // which split this is, of how many
};
// Block (row tile and split, kv_head, sequence). false: nothing to do.
__device__ __forceinline__ bool find_pages(const AttentionCall& call, int tile_rows, Tile& tile, TilePages& pages) {
    // The last rows have the most keys: they begin first.
    const int row_tile = call.row_tiles - 1 - static_cast<int>(blockIdx.x) / call.splits;
    pages.split = static_cast<int>(blockIdx.x) % call.splits;
    if (!find_tile(call, blockIdx.z, blockIdx.y, row_tile, tile_rows, tile)) return false;
    position_range(call, tile, pages.low, pages.high);
    const int begin = call.window > 0 && call.full_keys == 0 ? max(0, pages.low - call.window + 1) / page_size : 0;
    const int count = pages.high / page_size + 1 - begin, share = (count + call.splits - 1) / call.splits;
    pages.used = (count + share - 1) / share;
    pages.first = begin + pages.split * share, pages.last = min(pages.first + share, begin + count);
    return pages.first < pages.last;
}

// Counts the blocks of a tile; true in all calling threads of the last one, which then sees what the others wrote. The release and
// acquire of the one whose number is 0 serve all: `sync`, their barrier, lies before and behind.
template <class Sync>
__device__ __forceinline__ bool last_to_arrive(unsigned* counter, int count, int thread, Sync sync) {
    __shared__ bool last;
    sync();
    if (thread == 0) {
        unsigned before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
        last = before == static_cast<unsigned>(count) - 1;
        if (last) *counter = 0;
    }
    sync();
    return last;
}

// The same among single warps.
__device__ __forceinline__ bool last_warp_to_arrive(unsigned* counter, int count) {
    unsigned before = 0;
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
        if (before == static_cast<unsigned>(count) - 1) *counter = 0;
    }
    before = __shfl_sync(~0u, before, 0);
    __syncwarp();
    return before == static_cast<unsigned>(count) - 1;
}

// Joins the splits of a tile (32 at most), in their order. partial: [splits][sums [tile_rows][width], maxima [tile_rows], sums of
// exponentials]. `weights`: shared memory for 33 floats a row. By `threads` threads, whole warps, of which this is `thread`; `sync`: their barrier.
template <int width, class Sync>
__device__ void join_splits(const AttentionCall& call, const Tile& tile, const float* partial, int splits, int tile_rows,
                            float* weights, int thread, int threads, Sync sync) {
    const int64_t stride = static_cast<int64_t>(tile_rows) * (width + 2);
    const int dim = call.cache.head_dim, lane = thread % 32;
    for (int row = thread / 32; row < tile.rows; row += threads / 32) {
        const float* at = partial + lane * stride + static_cast<int64_t>(tile_rows) * width + row;
        float top = lane < splits ? __ldcg(at) : -INFINITY, sum = lane < splits ? __ldcg(at + tile_rows) : 0;
        float weight = fast_exp2(top - warp_max(top));
        weights[row * 33 + lane] = weight / warp_sum(weight * sum);
    }
    sync();
    for (int e = thread * 4; e < tile.rows * width; e += threads * 4) {
        int row = e / width, d = e % width;
        if (d >= dim) continue;
        float x[4] = {};
#pragma unroll 8
        for (int i = 0; i < splits; i++) {
            float weight = weights[row * 33 + i];
            float4 value = __ldcg(reinterpret_cast<const float4*>(partial + i * stride + e));
            x[0] += weight * value.x, x[1] += weight * value.y, x[2] += weight * value.z, x[3] += weight * value.w;
        }
        __half* out = call.out + tile.token(call, row) * call.out_stride + static_cast<int64_t>(tile.head(call, row)) * dim + d;
        *reinterpret_cast<uint2*>(out) = make_uint2(pack_half2(x[0], x[1]), pack_half2(x[2], x[3]));
    }
}

// What a block of many rows has summed up goes to `out`, or, split, where the last block to arrive joins it. A lane has two rows,
// first_row and + 8, with `top` (of log2 units) and its own part of `sum`; value(j, i): its sums of columns 8 j + 2 t and + 1 of row i.
// weights, thread, threads, sync: as join_splits has them.
template <int width, int tile_rows, class Value, class Sync>
__device__ __forceinline__ void finish_rows(const AttentionCall& call, const Tile& tile, const TilePages& pages, int dim, int first_row,
                                            const float (&top)[2], float (&sum)[2], Value value, float* weights, int thread,
                                            int threads, Sync sync) {
    const int t = thread % 4;
    const int64_t split_floats = tile_rows * (width + 2);
    float* partials = call.partial + static_cast<int64_t>(tile.id) * call.splits * split_floats;
    float* partial = partials + pages.split * split_floats;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        const int row = first_row + 8 * i;
        if (row >= tile.rows) continue;
        __half* to = call.out + tile.token(call, row) * call.out_stride + static_cast<int64_t>(tile.head(call, row)) * dim + 2 * t;
        const float inverse = 1.0f / sum[i];
#pragma unroll
        for (int j = 0; j < width / 8; j++) {
            if (8 * j + 2 * t >= dim) continue;
            const float2 v = value(j, i);
            if (pages.used == 1)
                *reinterpret_cast<__half2*>(to + 8 * j) = __floats2half2_rn(v.x * inverse, v.y * inverse);
            else
                __stcg(reinterpret_cast<float2*>(partial + row * width + 8 * j + 2 * t), v);
        }
        if (pages.used > 1 && t == 0) {
            __stcg(partial + tile_rows * width + row, top[i]);
            __stcg(partial + tile_rows * (width + 1) + row, sum[i]);
        }
    }
    if (pages.used > 1 && last_to_arrive(call.counters + tile.id, pages.used, thread, sync))
        join_splits<width>(call, tile, partials, pages.used, tile_rows, weights, thread, threads, sync);
}
#endif

}  // namespace awq::cuda
