// y = x W^T with mma.sync for int4 weights, any shape and any number of rows, plain or by experts: every GPU from sm_80 on.
//
// A CTA makes 256 rows of W (128 for 8 and 16 tokens) times `TN` tokens (8 to 128). A warp has 32 rows of W and all the tokens; with up to 32
// tokens two warps share the rows and take every other span of 64 columns. W and x come through stages in shared memory; a lane reads its own
// fragments of W there and dequantises them in registers, x is read by ldmatrix. What comes next is asked for between products, since all warps leave
// the barrier together and would all leave the tensor cores idle.
//
// A worker (a CTA; two have room on a multiprocessor up to 16 tokens) takes whole blocks first. The blocks that are left are cut along K
// (work.h). Where they can be cut in equally many parts, every worker leaves its sums in scratch and finishes a share of the block's outputs
// once all are there; the workers of a block are neighbours in the grid, and no GPU runs fewer at once than a block has. Else whoever has the
// first columns of a block owns it, the others leave their sums, the owner adds them in order: it waits for CTAs that were
// started before it (workers count from the last CTA down).
#include "backends/cuda/matmul_mma.cuh"

namespace awq::cuda {
namespace {

using namespace mma_sync;

constexpr int warp_tiles = 2;           // of 16 rows
constexpr int least_steps = 4;          // of what a worker shares with others
constexpr int most_experts_kept = 256;  // whose first rows are read once; with more of them they are read from memory each time
constexpr int places_kept = 8;

// What a CTA of so many tokens has in shared memory.
template <int TN, int Groups, bool IntegerZeros>
struct Shape {
    static constexpr int warps = TN == 32 ? 16 : 8, threads = warps * 32;
    static constexpr int octets = TN / 8;
    static constexpr int k_parts = TN <= 32 ? 2 : 1, row_groups = warps / k_parts, block_tiles = row_groups * warp_tiles;
    static constexpr int warp_bytes = warp_tiles * (512 + meta_bytes<64, Groups, IntegerZeros>);
    static constexpr int w_bytes = warps * warp_bytes, tile_bytes = TN * 128;
    static constexpr int stage_bytes = w_bytes + k_parts * tile_bytes;
    static constexpr int row_pieces = 8 * k_parts;                           // of 16 bytes, of a row of x
    static constexpr int x_pieces = std::max(TN * row_pieces / threads, 1);  // that a thread copies
    static constexpr int exchange_bytes = k_parts == 1 ? 0 : row_groups * warp_tiles * 512;  // for an octet of tokens
    static constexpr int x_after = std::min(TN / 32, 2);  // of a step's four k16 steps: x is asked for behind it (W behind the first)
    static constexpr int ctas = TN <= 16 ? 2 : 1;  // of a multiprocessor: what one waits for is hidden behind the other
    static constexpr int room = (least_shared_block + 1024) / ctas - 1024 - static_bytes;
    static constexpr int stages = std::min(6, (room - exchange_bytes) / stage_bytes);
    static_assert(stages >= 3 && static_bytes >= (most_experts_kept + 1) * 4 + places_kept * 16 + 128);
    static_assert(stages < places_kept - 1);  // loading is so many blocks ahead of storing at most, where a block is one step
};

struct Params : Operands {
    float4* partials;
    uint32_t* flags;
    int expert_count, rows, in, tiles, units, unit_bytes, group;
    int row_blocks, raster;  // raster: token blocks that go along the rows together
    bool x_whole;       // rows of x are aligned and whole eights
    bool early;         // W is asked for before the kernel before this one has ended
    Division division;  // not by experts: there the device makes it
};

// Where a block lies: rows of W, and rows of x from `token` to `end`.
struct Place {
    int row_block, expert, token, end;
};
template <int TN>
__device__ __forceinline__ Place place_of(const Params& p, const Begins& begins, int block) {
    if (!begins.memory) {
        const int token_blocks = (p.rows + TN - 1) / TN, band = block / (p.raster * p.row_blocks);
        const int rest = block - band * p.raster * p.row_blocks, width = min(p.raster, token_blocks - band * p.raster);
        return {rest / width, 0, (band * p.raster + rest % width) * TN, p.rows};
    }
    const ExpertBlock found = expert_block<TN>(begins, p.expert_count, block / p.row_blocks);
    return {block % p.row_blocks, found.expert, found.first, found.end};
}

// Where rows are not aligned or end in the middle of eight columns; its code stays out of the loop's way.
__device__ __noinline__ void copy_slowly(uint8_t* to, const half* from, int left) { copy_each(to, from, left); }

// The workers of one block have left their sums: each adds up and stores every parts-th fragment of 16 rows x 8 tokens.
template <class S>
__device__ __forceinline__ void finish_part(const Params& p, const Work& work, const Place& place) {
    constexpr int octets = S::octets, fragments = S::block_tiles * octets;
    const int tid = static_cast<int>(threadIdx.x), warp = tid >> 5, lane = tid & 31, parts = work.d.parts;
    const int first_worker = work.local() * parts, part = work.worker - first_worker;
    __syncthreads();
    if (tid == 0) {
        uint32_t* met = p.flags + work.local() * 2;
        meet_others(met, static_cast<uint32_t>(parts));
        if (atomicAdd(met + 1, 1) == static_cast<uint32_t>(parts - 1)) met[0] = met[1] = 0;  // all have seen it
    }
    __syncthreads();
    const float4* partials = p.partials + static_cast<int64_t>(first_worker) * fragments * 32 + lane;
    for (int f = part + warp * parts; f < fragments; f += S::warps * parts) {
        float4 v[most_parts];
#pragma unroll
        for (int i = 0; i < most_parts; i++) v[i] = i < parts ? __ldcg(partials + (i * fragments + f) * 32) : make_float4(0, 0, 0, 0);
        float d[1][4] = {};
#pragma unroll
        for (int i = 0; i < most_parts; i++) add(d[0], v[i]);
        const int tile = place.row_block * S::block_tiles + f / octets;
        if (tile < p.tiles) store_tile<8>(p.output, place.end, tile, place.token + f % octets * 8, d);
    }
}

// Groups: 2 for 128 columns a group with integer zeros; 8 serves every size.
template <int TN, int Groups, bool IntegerZeros>
__global__ void __launch_bounds__(Shape<TN, Groups, IntegerZeros>::threads, TN <= 16 ? 2 : 1) q4_kernel(const __grid_constant__ Params p) {
    using S = Shape<TN, Groups, IntegerZeros>;
    constexpr int octets = S::octets, k_parts = S::k_parts, stages = S::stages, row_pieces = S::row_pieces, x_pieces = S::x_pieces, threads = S::threads;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ int32_t kept[most_experts_kept + 1];
    __shared__ Place places[places_kept];  // of the last blocks whose loading has begun
    const int tid = static_cast<int>(threadIdx.x), warp = tid >> 5, lane = tid & 31, g = lane >> 2;
    const int row_group = warp % S::row_groups, k_part = warp / S::row_groups;
    const uint32_t base = shared_address(shared);

    pdl_trigger();
    Begins begins = {p.experts.begin, nullptr};
    int token_blocks = (p.rows + TN - 1) / TN;
    if (begins.memory) {
        pdl_wait();
        if (p.expert_count <= most_experts_kept) {
            for (int i = tid; i <= p.expert_count; i += threads) kept[i] = __ldcg(begins.memory + i);
            begins.kept = kept;
        }
        __syncthreads();
        token_blocks = token_blocks_of<TN>(begins, p.expert_count);
    }
    const int steps = p.units * 4 / k_parts, workers = static_cast<int>(gridDim.x), worker = workers - 1 - static_cast<int>(blockIdx.x);
    const int blocks = token_blocks * p.row_blocks;
    const Work start(begins.memory ? divide(blocks, steps, workers, least_steps) : p.division, worker, workers, blocks, steps);

    // ---- loading, some stages ahead
    Work to_load = start;
    int left_to_load = 0, load_slot = 0, loaded_blocks = 0;  // left_to_load: steps of the block; 0: there is none
    // This lane's pieces of the next step. Rows that are not there are read as others that are: nobody stores what comes of them.
    const uint8_t* w_from[warp_tiles];
    int quarter = 0;  // of a unit
    const int meta_tile = lane >> 3;  // of a tile's scales and zeros eight lanes have a piece each
    const MetaPiece<64, Groups, IntegerZeros> piece(p.group, lane & 7);
    const bool has_meta = meta_tile < warp_tiles && piece.there;
    const uint8_t* meta_unit = nullptr;
    const half* x_from[x_pieces];
    int x_left = 0;  // columns from there on
    const int x_token = tid / row_pieces, x_piece = tid % row_pieces;
    const uint32_t w_to = warp * S::warp_bytes + lane * 16,
                   meta_to = warp * S::warp_bytes + warp_tiles * 512 + meta_tile * meta_bytes<64, Groups, IntegerZeros> + (lane & 7) * 16,
                   x_to = S::w_bytes + (x_piece >> 3) * S::tile_bytes + swizzled(x_token, x_piece & 7);
    static_assert(threads / row_pieces % 8 == 0);  // the swizzle of a thread's next row is the same
    auto begin_load = [&] {
        if (!to_load.next()) return;
        const Place place = place_of<TN>(p, begins, to_load.block);
        if (tid == 0) places[loaded_blocks % places_kept] = place;
        loaded_blocks++;
        left_to_load = to_load.last - to_load.first;
        const int span = to_load.first * k_parts + k_part, column = to_load.first * (64 * k_parts) + x_piece * 8;
        const uint8_t* unit[warp_tiles];
        quarter = span & 3;
#pragma unroll
        for (int i = 0; i < warp_tiles; i++) {
            const int tile = min(place.row_block * S::block_tiles + row_group * warp_tiles + i, p.tiles - 1);
            unit[i] = p.w + place.expert * p.expert_bytes + (static_cast<int64_t>(tile) * p.units + (span >> 2)) * p.unit_bytes;
            w_from[i] = unit[i] + quarter * 512 + lane * 16;
        }
        meta_unit = meta_tile ? unit[1] : unit[0];
        x_left = p.in - column;
#pragma unroll
        for (int i = 0; i < x_pieces; i++) {
            const int row = min(place.token + x_token + i * (threads / row_pieces), place.end - 1);
            x_from[i] = p.x + column + (p.experts.source ? __ldcg(p.experts.source + row) : row) * p.ldx;
        }
    };
    auto load_w = [&](int slot) {
        const uint32_t stage = base + slot * S::stage_bytes;
#pragma unroll
        for (int i = 0; i < warp_tiles; i++) copy16(stage + w_to + i * 512, w_from[i], 16);
        if (has_meta) copy16(stage + meta_to, meta_unit + piece.place(quarter), 16);
        quarter += k_parts;
        const bool next_unit = quarter >= 4;
#pragma unroll
        for (int i = 0; i < warp_tiles; i++) w_from[i] += k_parts * 512 + (next_unit ? p.unit_bytes - unit_scales : 0);
        if (next_unit) quarter -= 4, meta_unit += p.unit_bytes;
    };
    auto load_x = [&](int slot) {
        const uint32_t to = slot * S::stage_bytes + x_to;
        if (TN * row_pieces < threads && x_token >= TN) return;
        if (p.x_whole) {
#pragma unroll
            for (int i = 0; i < x_pieces; i++) copy16(base + to + i * (threads / row_pieces * 128), x_from[i], x_left > 0 ? 16 : 0);
        } else {
#pragma unroll
            for (int i = 0; i < x_pieces; i++) copy_slowly(shared + to + i * (threads / row_pieces * 128), x_from[i], x_left);
        }
#pragma unroll
        for (int i = 0; i < x_pieces; i++) x_from[i] += 64 * k_parts;
        x_left -= 64 * k_parts;
    };
    auto loaded = [&] {
        if (++load_slot == stages) load_slot = 0;
        if (--left_to_load == 0) begin_load();
    };
    // In a step, after the products of k16 step j.
    auto load = [&](int j) {
        if (left_to_load > 0) {
            if (j == 0) load_w(load_slot);
            if (j == S::x_after) load_x(load_slot), loaded();
        }
        if (j == S::x_after) copy_commit();
    };
    begin_load();
    // Weights are nobody's result: those of the first block's first steps can be on their way before x may be read.
    const int early = p.early ? min(stages - 1, left_to_load) : 0;
#pragma unroll 1
    for (int i = 0; i < early; i++) load_w(i);
    pdl_wait();
#pragma unroll 1
    for (int i = 0; i < stages - 1; i++) {
        if (left_to_load > 0) {
            if (i >= early) load_w(i);
            load_x(i);
            loaded();
        }
        copy_commit();
    }

    // ---- multiplying
    float d[warp_tiles][octets][4];
    // This lane's row of an ldmatrix, and its pieces of the four k16 steps (8 tokens: of every other one).
    const uint32_t x_lane = (TN == 8 ? lane & 7 : (lane & 7) + (lane >> 4) * 8) * 128;
    uint32_t x_at[4];
#pragma unroll
    for (int j = 0; j < 4; j++) x_at[j] = x_lane + (((TN == 8 ? 2 * j + (lane >> 3) : 2 * j + (lane >> 3 & 1)) ^ (lane & 7)) << 4);
    // A warp's W of a stage, which it has brought itself: it need not wait for the others.
    uint4 words[warp_tiles];
    StageMeta<64, Groups, IntegerZeros> meta[warp_tiles];
    const int stage_groups = StageMeta<64, Groups, IntegerZeros>::groups_of(p.group);
    auto fetch = [&](int slot) {
        const uint32_t ws = base + slot * S::stage_bytes + warp * S::warp_bytes;
#pragma unroll
        for (int i = 0; i < warp_tiles; i++) {
            words[i] = load_shared16(ws + i * 512 + lane * 16);
            meta[i].load(ws + warp_tiles * 512 + i * meta_bytes<64, Groups, IntegerZeros>, stage_groups, g);
        }
    };
    auto multiply = [&](int slot) {
        const uint32_t xs = base + slot * S::stage_bytes + S::w_bytes + k_part * S::tile_bytes;
        uint32_t b[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t a[warp_tiles][4];
#pragma unroll
            for (int i = 0; i < warp_tiles; i++)
                dequantize<IntegerZeros>(a[i], word_of(words[i], j), meta[i].step(j));
            if constexpr (TN == 8) {
                if (j % 2 == 0) ldmatrix4(b, xs + x_at[j]);
#pragma unroll
                for (int i = 0; i < warp_tiles; i++) mma(d[i][0], a[i], b[j % 2 * 2], b[j % 2 * 2 + 1]);
            } else {
#pragma unroll
                for (int o = 0; o < octets; o += 2) {
                    ldmatrix4(b, xs + x_at[j] + o * 1024);
#pragma unroll
                    for (int i = 0; i < warp_tiles; i++) {
                        mma(d[i][o], a[i], b[0], b[1]);
                        mma(d[i][o + 1], a[i], b[2], b[3]);
                    }
                }
            }
            load(j);
        }
    };
    // The sums of the warps with the same rows come together in the first of them.
    auto join_k_parts = [&] {
        float4* exchange = reinterpret_cast<float4*>(shared + stages * S::stage_bytes) + row_group * (warp_tiles * 32) + lane;
#pragma unroll
        for (int o = 0; o < octets; o++) {
            if (o) __syncthreads();
            if (k_part == 1) {
#pragma unroll
                for (int i = 0; i < warp_tiles; i++) exchange[i * 32] = make_float4(d[i][o][0], d[i][o][1], d[i][o][2], d[i][o][3]);
            }
            __syncthreads();
            if (k_part == 0) {
#pragma unroll
                for (int i = 0; i < warp_tiles; i++) add(d[i][o], exchange[i * 32]);
            }
        }
    };
    auto partial = [&](int of) {
        return p.partials + (static_cast<int64_t>(of) * S::row_groups + row_group) * (warp_tiles * octets * 32) + lane;
    };
    int slot = 0, block = 0;
    for (Work work = start; work.next(); block++) {
#pragma unroll
        for (int i = 0; i < warp_tiles; i++)
#pragma unroll
            for (int o = 0; o < octets; o++)
#pragma unroll
                for (int e = 0; e < 4; e++) d[i][o][e] = 0.0f;
#pragma unroll 1
        for (int step = work.first; step < work.last; step++) {
            copy_wait<stages - 2>();
            __syncwarp();
            fetch(slot);
            __syncthreads();  // x of this stage has landed for all, and the one filled next has been read by all
            multiply(slot);
            if (++slot == stages) slot = 0;
        }
        const bool whole = work.last - work.first == steps;
        if constexpr (k_parts > 1) join_k_parts();
        auto leave = [&] {
            float4* to = partial(worker);
#pragma unroll
            for (int i = 0; i < warp_tiles; i++)
#pragma unroll
                for (int o = 0; o < octets; o++)
                    __stcg(to + (i * octets + o) * 32, make_float4(d[i][o][0], d[i][o][1], d[i][o][2], d[i][o][3]));
        };
        if (!whole && work.d.parts > 0) {
            if (k_part == 0) leave();
            finish_part<S>(p, work, places[block % places_kept]);
            continue;
        }
        if (k_part) continue;
        if (work.first > 0) {
            leave();
            __syncwarp();
            if (lane == 0) store_release(p.flags + worker * S::warps + row_group, 1);
            continue;
        }
        if (!whole) {
            const int from = worker + 1, count = work.worker_at((work.local() + 1) * steps - 1) - worker;  // those that have the rest of the block
            if (lane < count) take_flag(p.flags + (from + lane) * S::warps + row_group);
            __syncwarp();
            // As many sums are on their way at once as registers allow.
            constexpr int most = TN == 32 || TN == 64 ? 16 : 8, all = warp_tiles * octets, together = most > all ? most / all : 1, at_once = most < all ? most : all;
            for (int first = 0; first < count; first += together)
#pragma unroll
                for (int at = 0; at < all; at += at_once) {
                    float4 v[together][at_once];
#pragma unroll
                    for (int k = 0; k < together; k++)
#pragma unroll
                        for (int i = 0; i < at_once; i++)
                            v[k][i] = first + k < count ? __ldcg(partial(from + first + k) + (at + i) * 32) : make_float4(0, 0, 0, 0);
#pragma unroll
                    for (int k = 0; k < together; k++)
#pragma unroll
                        for (int i = 0; i < at_once; i++) add(d[(at + i) / octets][(at + i) % octets], v[k][i]);
                }
        }
        const Place place = places[block % places_kept];
#pragma unroll
        for (int i = 0; i < warp_tiles; i++) {
            const int tile = place.row_block * S::block_tiles + row_group * warp_tiles + i;
            if (tile < p.tiles) store_tile<TN>(p.output, place.end, tile, place.token, d[i]);
        }
    }
}

using Kernel = void (*)(Params);
struct Variant {
    int tokens, groups;  // groups 8: any
    bool integer_zeros;
    int block_tiles, k_parts, ctas, threads, shared_bytes;
    Kernel kernel;
};
template <int TN, int Groups, bool IntegerZeros>
constexpr Variant variant() {
    using S = Shape<TN, Groups, IntegerZeros>;
    return {TN, Groups, IntegerZeros, S::block_tiles, S::k_parts, S::ctas, S::threads, S::stages * S::stage_bytes + S::exchange_bytes, q4_kernel<TN, Groups, IntegerZeros>};
}
const Variant variants[] = {
    variant<8, 2, true>(),  variant<16, 2, true>(),  variant<32, 2, true>(),  variant<64, 2, true>(),  variant<128, 2, true>(),
    variant<8, 8, true>(),  variant<16, 8, true>(),  variant<32, 8, true>(),  variant<64, 8, true>(),  variant<128, 8, true>(),
    variant<8, 8, false>(), variant<16, 8, false>(), variant<32, 8, false>(), variant<64, 8, false>(), variant<128, 8, false>(),
};

// The time of the products of `rows` tokens in blocks of so many, in that of one token: dequantising W costs as much as some 16 of them.
int cost_of(int tokens, int rows) { return (rows + tokens - 1) / tokens * (tokens + 16); }

}  // namespace

cudaError_t open_mma(const MatmulDevice&) {
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, v.shared_bytes)) return error;
    return cudaSuccess;
}

cudaError_t mma_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows* experts) {
    const Q4Layout& layout = weight.layout;
    const int groups = variant_groups(layout);
    // By experts: as for a mean one's rows.
    const int rows = experts ? (args.rows + weight.experts - 1) / weight.experts : args.rows;
    const Variant* best = nullptr;
    for (const Variant& v : variants) {
        if (v.groups != groups || v.integer_zeros != layout.integer_zeros || (tuning.tokens && v.tokens != tuning.tokens)) continue;
        if (!best || cost_of(v.tokens, rows) < cost_of(best->tokens, rows)) best = &v;
    }
    if (!best) return cudaErrorInvalidConfiguration;
    Params p = {};
    static_cast<Operands&>(p) = operands_of(weight, layout, layout.bytes(), args, experts);
    p.x_whole = rows_aligned(args.x, args.ldx) && layout.in % 8 == 0;
    p.early = context.pdl && context.device.arch >= 90 && !experts;  // whose weights they are is another kernel's result
    p.expert_count = weight.experts, p.rows = args.rows, p.in = static_cast<int>(layout.in);
    p.tiles = static_cast<int>(layout.tiles()), p.units = static_cast<int>(layout.units());
    p.unit_bytes = static_cast<int>(layout.unit_bytes()), p.group = layout.group;
    p.row_blocks = (p.tiles + best->block_tiles - 1) / best->block_tiles;
    const int token_blocks = (rows + best->tokens - 1) / best->tokens;
    p.raster = std::min(token_blocks, std::max(1, 2048 / best->tokens));
    // Each worker has room in scratch for a block's sums, and flags for its warps.
    const int64_t block_bytes = int64_t{best->block_tiles} * tile_rows * best->tokens * static_cast<int64_t>(sizeof(float));
    int workers = static_cast<int>(std::min<int64_t>(context.device.sm_count * best->ctas, partial_bytes / block_bytes));
    workers = std::min(workers, static_cast<int>(counter_count) * 32 / best->threads);
    p.division = divide(p.row_blocks * token_blocks, p.units * 4 / best->k_parts, workers, least_steps);
    if (!experts && p.division.waves == 0) workers = p.division.sharers;  // by experts the division is known on the device alone
    const Scratch scratch = scratch_of(context);
    p.partials = scratch.partials, p.flags = scratch.counters;
    return launch(context, best->kernel, dim3(static_cast<unsigned>(workers)), best->threads, best->shared_bytes, p);
}

}  // namespace awq::cuda
