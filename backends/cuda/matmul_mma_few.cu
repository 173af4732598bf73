// y = x W^T for up to 4 rows of x and int4 weights on GPUs before Hopper: what a chat's tokens are made of there.
//
// A CTA of sixteen warps, one a multiprocessor, takes a tile of 16 rows of W at a time; its warps have a piece of 128 columns each, and
// then the piece sixteen further on. x stays in shared memory, normalised where there is a norm, so a warp meets no other one until a tile's end,
// where one of them adds up the sixteen sums, while the others go on. Every warp brings its own weights, some stages ahead. Tiles that are left when all
// have had equally many are cut along K, where that pays (work.h).
//
// With groups of 128 and integer zeros the nibbles themselves go into the product, as subnormal halves, and the zero point leaves with the
// group's sum of x, as in matmul_decode.cu.
//
// When all its own weights are asked for, a CTA asks for the first ones that its successor in the next product will read, as far as L2: between two
// kernels memory would rest. Rows of x that do not fit shared memory (with 99 KB two of Llama-3-8B's 14336 columns) go to matmul_mma.cu.
#include "backends/cuda/matmul_mma.cuh"

namespace awq::cuda {
namespace {

using namespace mma_sync;

constexpr int warps = 16, threads = warps * 32, most_rows = 4;
constexpr int columns = 128;                     // of a warp's step
constexpr int least_steps = 2;                   // of all warps, that a worker's share has
constexpr int sums_lanes = 16;                   // of a fragment, that have sums of up to 4 tokens
constexpr int exchange_bytes = 2 * warps * sums_lanes * 16;  // a tile's sums of all warps; tiles take turns
constexpr int most_next_bytes = 32 * 1024;       // that a CTA asks for of the next product's weights

template <int Groups, bool IntegerZeros>
constexpr int warp_bytes = 1024 + meta_bytes<columns, Groups, IntegerZeros>;
// Bytes of a row of x, whole units of columns: ldmatrix meets no bank twice.
__host__ __device__ constexpr int64_t x_pitch(int units) { return int64_t{units} * unit_columns * 2 + 16; }
// And of its sums over 128 columns.
__host__ __device__ constexpr int64_t sums_pitch(int units) { return int64_t{units} * 2 * static_cast<int64_t>(sizeof(float)); }

struct Params {
    const uint8_t* w;
    const half* x;  // rows are 16-byte aligned and whole eights
    int64_t ldx;
    Output output;
    const float* norm_weight;  // 16-byte aligned, or null
    float eps;
    bool plus_one;
    int rows, in, tiles, units, unit_bytes, group, steps;
    Division division;
    float4* partials;
    uint32_t* flags;
    // What the next product's workers begin with.
    const uint8_t* next_w;
    Division next_division;
    int next_workers, next_tiles, next_steps, next_units, next_unit_bytes, next_bytes;
};

__device__ __noinline__ void ask_for_next(const Params& p, int worker) {
    const int at = static_cast<int>(threadIdx.x) * 128;
    if (worker >= p.next_workers || at >= p.next_bytes) return;
    Work work(p.next_division, worker, p.next_workers, p.next_tiles, p.next_steps);
    if (!work.next()) return;
    const int64_t tile_bytes = static_cast<int64_t>(p.next_units) * p.next_unit_bytes,
                  from = static_cast<int64_t>(work.first) * (warps * columns / unit_columns) * p.next_unit_bytes + at;
    if (from < tile_bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(p.next_w + work.block * tile_bytes + from));
}

// All rows of x to shared memory, and behind them their sums over 128 columns; columns up to whole units are zero. A norm's arithmetic is that
// of norm_rows_kernel.
__device__ __forceinline__ void keep_x(const Params& p, uint8_t* kept) {
    __shared__ float squares[most_rows][warps];
    const int tid = static_cast<int>(threadIdx.x), all = p.units * unit_columns;
    const int64_t pitch = x_pitch(p.units);
    for (int row = 0; row < p.rows && p.norm_weight; row++) {
        float sum = 0;
        for (int column = tid * 8; column < p.in; column += threads * 8) {
            const uint4 v = __ldcg(reinterpret_cast<const uint4*>(p.x + row * p.ldx + column));
            *reinterpret_cast<uint4*>(kept + row * pitch + column * 2) = v;
            const uint32_t bits[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 f = __half22float2(as_half2(bits[i]));
                sum += f.x * f.x + f.y * f.y;
            }
        }
        for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
        if (tid % 32 == 0) squares[row][tid / 32] = sum;
    }
    if (p.norm_weight) __syncthreads();
    const float one = p.plus_one ? 1.0f : 0.0f;
    float* sums = reinterpret_cast<float*>(kept + p.rows * pitch);
    for (int row = 0; row < p.rows; row++) {
        float total = 0;
#pragma unroll
        for (int i = 0; i < warps; i++) total += p.norm_weight ? squares[row][i] : 0.0f;
        const float scale = rsqrtf(total / static_cast<float>(p.in) + p.eps);
        for (int column = tid * 8; column < all; column += threads * 8) {  // whole warps: units are a warp's columns
            uint4* at = reinterpret_cast<uint4*>(kept + row * pitch + column * 2);
            uint4 v = make_uint4(0, 0, 0, 0);
            if (column < p.in) v = p.norm_weight ? *at : __ldcg(reinterpret_cast<const uint4*>(p.x + row * p.ldx + column));
            uint32_t bits[4] = {v.x, v.y, v.z, v.w};
            if (p.norm_weight && column < p.in) {
                const float4 w0 = __ldg(reinterpret_cast<const float4*>(p.norm_weight + column)),
                             w1 = __ldg(reinterpret_cast<const float4*>(p.norm_weight + column) + 1);
                const float w[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float2 f = __half22float2(as_half2(bits[i]));
                    bits[i] = pack_half2(f.x * scale * (w[2 * i] + one), f.y * scale * (w[2 * i + 1] + one));
                }
            }
            *at = make_uint4(bits[0], bits[1], bits[2], bits[3]);
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 f = __half22float2(as_half2(bits[i]));
                sum += f.x + f.y;
            }
            for (int d = 8; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
            if (tid % 16 == 0) sums[row * (p.units * 2) + column / columns] = sum;
        }
    }
    __syncthreads();
}

// sum += a tile's 128 columns, of so many groups, (in shared memory at `at`) times x, of whose row of an ldmatrix this lane has its piece at `x`; x_sums: of this
// lane's two tokens.
template <int Groups, bool IntegerZeros>
__device__ __forceinline__ void multiply(float (&sum)[4], uint32_t at, uint32_t x, float2 x_sums, int groups) {
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2;
    const uint4 words[2] = {load_shared16(at + lane * 16), load_shared16(at + 512 + lane * 16)};
    uint32_t b[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) ldmatrix4(b[i], x + i * 64);
    float d[2][4] = {};  // two, to shorten the chain of dependent products
    if constexpr (Groups == 2) {
        uint32_t scales, zeros;
        load_group<true>(at + 1024, 1, 0, g, scales, zeros);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t word = word_of(words[j / 4], j);
            uint32_t a[4];
            raw_nibbles(a, word);
            mma(d[j % 2], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        const RawGroup group(scales, zeros);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += group.value(i, d[0][i] + d[1][i], i & 1 ? x_sums.y : x_sums.x);
    } else {
        StageMeta<columns, Groups, IntegerZeros> meta;
        meta.load(at + 1024, groups, g);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint32_t a[4];
            dequantize<IntegerZeros>(a, word_of(words[j / 4], j), meta.step(j));
            mma(d[j % 2], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += d[0][i] + d[1][i];
    }
}

template <int Groups, bool IntegerZeros, int stages>
__global__ void __launch_bounds__(threads, 1) few_kernel(const __grid_constant__ Params p) {
    constexpr int bytes = warp_bytes<Groups, IntegerZeros>;
    extern __shared__ __align__(128) uint8_t shared[];
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    const int workers = static_cast<int>(gridDim.x), worker = workers - 1 - static_cast<int>(blockIdx.x), pieces = p.units * 2;
    uint8_t* const exchange = shared + stages * warps * bytes;
    uint8_t* const kept = exchange + exchange_bytes;

    pdl_trigger();
    const Work start(p.division, worker, workers, p.tiles, p.steps);
    // ---- weights, some steps ahead
    Work to_load = start;
    const MetaPiece<columns, Groups, IntegerZeros> meta_piece(p.group, lane);
    const uint32_t mine = shared_address(shared) + warp * (stages * bytes);
    const uint8_t* tile = nullptr;
    int load_piece = 0, load_end = 0, load_slot = 0;
    bool more = true;
    auto begin_load = [&] {
        more = to_load.next();
        tile = p.w + static_cast<int64_t>(to_load.block) * p.units * p.unit_bytes;
        load_piece = to_load.first * warps + warp, load_end = to_load.last * warps;
    };
    auto load = [&] {
        if (more) {
            if (load_piece < pieces) {
                const uint8_t* unit = tile + (load_piece >> 1) * p.unit_bytes;
                const uint32_t to = mine + load_slot * bytes;
                const uint8_t* words = unit + (load_piece & 1) * 1024 + lane * 16;
                copy16(to + lane * 16, words, 16);
                copy16(to + 512 + lane * 16, words + 512, 16);
                if (lane < 16 && meta_piece.there) copy16(to + 1024 + lane * 16, unit + meta_piece.place(load_piece & 1), 16);
            }
            if (++load_slot == stages) load_slot = 0;
            load_piece += warps;
            if (load_piece >= load_end) begin_load();
        }
        copy_commit();
    };
    begin_load();
#pragma unroll 1
    for (int i = 0; i < stages - 1; i++) load();
    pdl_wait();
    keep_x(p, kept);

    // ---- products
    const uint32_t x_lane = shared_address(kept) + static_cast<uint32_t>(min(lane & 7, p.rows - 1) * x_pitch(p.units)) + (lane >> 3) * 16;
    const float* x_sums = reinterpret_cast<const float*>(kept + p.rows * x_pitch(p.units));
    const float *x_sums0 = x_sums + min(2 * t, p.rows - 1) * pieces, *x_sums1 = x_sums + min(2 * t + 1, p.rows - 1) * pieces;
    const int step_groups = StageMeta<columns, Groups, IntegerZeros>::groups_of(p.group);
    int slot = 0, turn = 0, finisher = 0;
    bool asked = !p.next_w;
    for (Work work = start; work.next();) {
        float sum[4] = {};
#pragma unroll 1
        for (int piece = work.first * warps + warp, end = work.last * warps; piece < end; piece += warps) {
            copy_wait<stages - 2>();
            __syncwarp();  // this stage has landed for all lanes, and the one filled next has been read by all
            load();
            if (piece < pieces)
                multiply<Groups, IntegerZeros>(sum, mine + slot * bytes, x_lane + piece * (columns * 2), make_float2(x_sums0[piece], x_sums1[piece]), step_groups);
            if (++slot == stages) slot = 0;
        }
        if (!more && !asked) {
            ask_for_next(p, worker);
            asked = true;
        }
        float4* sums = reinterpret_cast<float4*>(exchange) + turn * (warps * sums_lanes) + g * 2 + (t & 1);  // of lanes with t < 2: tokens 0 to 3
        if (t < 2) sums[warp * sums_lanes] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        turn ^= 1;
        __syncthreads();  // the sums that are read meanwhile are the other turn's
        const bool finishes = warp == finisher;
        finisher = (finisher + 1) % warps;
        if (!finishes) continue;
        float v[1][4] = {};
#pragma unroll
        for (int i = 0; i < warps; i++) add(v[0], sums[i * sums_lanes]);
        if (work.first > 0) {
            __stcg(p.partials + worker * 32 + lane, make_float4(v[0][0], v[0][1], v[0][2], v[0][3]));
            __syncwarp();
            if (lane == 0) store_release(p.flags + worker, 1);
            continue;
        }
        if (work.last < p.steps) {
            const int last_worker = work.d.parts > 0 ? worker + work.d.parts - 1 : work.worker_at((work.local() + 1) * p.steps - 1);
            const int from = worker + 1, count = last_worker - worker;  // those that have the rest of the tile
            if (lane < count) take_flag(p.flags + from + lane);
            __syncwarp();
            for (int i = 0; i < count; i++) add(v[0], __ldcg(p.partials + (from + i) * 32 + lane));
        }
        store_tile<8>(p.output, p.rows, work.block, 0, v);
    }
}

using Kernel = void (*)(Params);
struct Variant {
    int groups;  // 8: any
    bool integer_zeros;
    int shared_bytes;  // without x
    Kernel kernel;
};
template <int Groups, bool IntegerZeros, int stages>
constexpr Variant variant() {
    return {Groups, IntegerZeros, stages * warps * warp_bytes<Groups, IntegerZeros> + exchange_bytes, few_kernel<Groups, IntegerZeros, stages>};
}
// The first that x leaves room for is taken.
const Variant variants[] = {variant<2, true, 4>(), variant<2, true, 3>(), variant<8, true, 4>(), variant<8, true, 3>(), variant<8, false, 3>()};

struct Plan {
    const Variant* variant = nullptr;
    int shared_bytes = 0, steps = 0, workers = 0;
    Division division = {};
};
int room_of(const MatmulDevice& device) { return std::min(device.shared_block, device.shared_sm - 1024) - static_bytes; }
Plan plan_few(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    Plan plan;
    const int groups = variant_groups(layout), units = static_cast<int>(layout.units());
    for (const Variant& v : variants) {
        if (v.groups != groups || v.integer_zeros != layout.integer_zeros) continue;
        const int64_t bytes = v.shared_bytes + rows * (x_pitch(units) + sums_pitch(units));
        if (plan.variant || bytes > room_of(device)) continue;
        plan.variant = &v, plan.shared_bytes = static_cast<int>(bytes);
        plan.steps = (units * 2 + warps - 1) / warps;
        plan.division = divide(static_cast<int>(layout.tiles()), plan.steps, device.sm_count, least_steps);
        plan.workers = plan.division.waves > 0 ? device.sm_count : plan.division.sharers;
    }
    return plan;
}

}  // namespace

cudaError_t open_mma_few(const MatmulDevice& device) {
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, room_of(device))) return error;
    return cudaSuccess;
}

bool mma_few_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args) {
    return device.arch < 90 && args.rows <= most_rows && layout.in % 8 == 0 && rows_aligned(args.x, args.ldx) &&
           reinterpret_cast<uintptr_t>(args.norm_weight) % 16 == 0 && plan_few(device, layout, args.rows).variant;
}

cudaError_t mma_few_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const Q4Layout& layout = weight.layout;
    const MatmulDevice& device = context.device;
    const Plan plan = plan_few(device, layout, args.rows);
    if (!plan.variant) return cudaErrorInvalidConfiguration;
    Params p = {};
    p.w = static_cast<const uint8_t*>(weight.data), p.x = args.x, p.ldx = args.ldx;
    p.output = output_of(args, layout.out, layout.gated);
    p.norm_weight = args.norm_weight, p.eps = args.norm_eps, p.plus_one = args.norm_plus_one;
    p.rows = args.rows, p.in = static_cast<int>(layout.in), p.tiles = static_cast<int>(layout.tiles());
    p.units = static_cast<int>(layout.units()), p.unit_bytes = static_cast<int>(layout.unit_bytes()), p.group = layout.group;
    p.steps = plan.steps, p.division = plan.division;
    const Scratch scratch = scratch_of(context);
    p.partials = scratch.partials, p.flags = scratch.counters;
    if (const Q4Weight* next = context.next) {
        const Plan its = plan_few(device, next->layout, args.rows);
        if (its.variant) {
            p.next_w = static_cast<const uint8_t*>(next->data);
            p.next_division = its.division, p.next_workers = its.workers, p.next_steps = its.steps;
            p.next_tiles = static_cast<int>(next->layout.tiles()), p.next_units = static_cast<int>(next->layout.units());
            p.next_unit_bytes = static_cast<int>(next->layout.unit_bytes());
            // Not more than a quarter of the second-level cache in all.
            p.next_bytes = std::min(most_next_bytes, device.l2_bytes / 4 / its.workers);
        }
    }
    return launch(context, plan.variant->kernel, dim3(static_cast<unsigned>(plan.workers)), threads, plan.shared_bytes, p);
}

}  // namespace awq::cuda
