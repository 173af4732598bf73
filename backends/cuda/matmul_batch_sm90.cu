// y = x W^T for the rows of a small batch (9 to 32) on Hopper, int4 weights dequantised in registers: up to 16 rows of the
// common format by mma.sync, which is faster there, then by wgmma. sm_90a only.
//
// A CTA takes up to 16 tiles of W at once, so that x is read from L2 few times. Where a matrix has few tiles, two CTAs of a
// cluster share them and cut K; with four tiles or fewer the two warpgroups of a CTA cut K once more. The sums that belong
// together meet in shared memory: each part sends what others finish (octets of tokens, dealt out) straight to their CTA, which
// is told by an mbarrier. Nothing waits for a CTA outside of its cluster.
//
// One CTA an SM: a producer warp for units of W through a ring of bulk copies (before the dependency wait: weights depend on
// nothing, but no more than `window` slots on their way, or x queues behind them), one for x through the tensor copy engine,
// two consumer warpgroups.
#include "backends/cuda/matmul_batch_sm90.cuh"

namespace awq::cuda {
namespace {

using namespace sm90;

constexpr int most_tokens = 32, most_tiles = 16;  // of a CTA
constexpr int batch_limit = shared_limit - 128;   // of shared memory, for rings and sums
// So much of an SM's shared memory, and a quarter of its registers, is left to the next norm's CTA: it starts beside this kernel's and has its
// weights when the last sums are there.
constexpr int spare = 6 * 1024;

// The kernel of one block leaves room beside itself (`spare`): launch bounds of 512 threads, of which 384 run, keep a quarter of the registers free.
// The one of two blocks is mostly gate and up's, which no norm follows. registers: a consumer's, of what the producers' 40 leave.
template <int Blocks>
constexpr int bound = Blocks == 1 ? 512 : threads;
template <int Blocks>
constexpr int registers = Blocks == 1 ? 168 : 232;
static_assert(128 * 40 + 256 * registers<1> <= threads * (65536 / bound<1> & ~7) &&
              128 * 40 + 256 * registers<2> <= threads * (65536 / bound<2> & ~7));

// Groups: 2 for 128 columns a group; 8 serves every size. Blocks: of 64 rows, of a warpgroup.
template <int TN, int Blocks, int Groups, bool IntegerZeros, bool Sync>
__global__ void __launch_bounds__(bound<Blocks>, 1)
    batch_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ BatchParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int octets = TN / 8;
    extern __shared__ uint8_t raw[];
    __shared__ __align__(16) uint64_t barriers[4 * max_slots + 2];
    pdl_trigger();
    const int warpgroup = static_cast<int>(threadIdx.x) >> 7, warp = static_cast<int>(threadIdx.x) >> 5 & 3,
              lane = static_cast<int>(threadIdx.x) & 31;
    const int rank = p.cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
    const Share share(p, rank);
    Slots s;
    s.w_bytes = p.pass * p.k_groups * p.unit_bytes, s.x_bytes = p.panel_bytes * (unit_columns / panel);
    s.x = (shared_address(raw) + 1023) & ~1023u;
    s.w = s.x + p.x_slots * s.x_bytes, s.sums = s.w + p.w_slots * s.w_bytes;
    s.w_full = shared_address(barriers), s.w_empty = s.w_full + 8 * max_slots;
    s.x_full = s.w_empty + 8 * max_slots, s.x_empty = s.x_full + 8 * max_slots, s.join = s.x_empty + 8 * max_slots;

    // The first weights before all else: until they are asked for, memory rests.
    WeightSender weights(p, share, s, lane);
    if (threadIdx.x < 32) {
        if (lane == 0) {
            barrier_init(s.w_full, 1);
            barrier_init(s.w_empty, 8 * 32);
            barrier_init_done();
        }
        __syncwarp();
        weights.ask();
    }
    // K's parts: of the cluster's CTAs, and of a CTA's warpgroups. Part i finishes the octets of tokens j with j % parts == i.
    const int parts = p.cluster * p.k_groups, parts_shift = parts == 4 ? 2 : parts - 1;  // 1, 2 or 4
    auto octets_of = [&](int part) { return (octets - 1 - part + parts) >> parts_shift; };
    auto tiles_of = [&](int group) {  // of a warpgroup in a pass of all tiles
        if (p.k_groups == 2) return share.tiles;
        int n = 0;
#pragma unroll
        for (int b = 0; b < Blocks; b++) n += min(max(share.tiles - (2 * b + group) * 4, 0), 4);
        return n;
    };
    const int warp_index = uniform_warp();
    if (lane == 0 && warp_index > 0) {  // of the other warps: one thread alone takes some 25 cycles a barrier
        const int index = warp_index - 1;
        for (int i = index; i < max(p.w_slots, p.x_slots); i += threads / 32 - 1) {
            if (i > 0 && i < p.w_slots) {
                barrier_init(s.w_full + 8 * i, 1);
                barrier_init(s.w_empty + 8 * i, 8 * 32);
            }
            if (i < p.x_slots) {
                barrier_init(s.x_full + 8 * i, 1);
                barrier_init(s.x_empty + 8 * i, static_cast<uint32_t>(8 / p.k_groups * 32));
            }
        }
        if (index < 2) barrier_init(s.join + 8 * index, 1);
        barrier_init_done();
        if (index < 2 && p.cluster > 1) {
            const int part = p.k_groups == 2 ? rank * 2 + index : rank;
            barrier_expect(s.join + 8 * index, static_cast<uint32_t>((parts - 1) * tiles_of(index) * octets_of(part) * 512));
        }
    }
    __syncthreads();
    if (p.cluster > 1) cluster_arrive();

    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0) {
            weights.run();
        } else if (warp == 1 && lane == 0) {
            asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
            pdl_wait();
            send_x(p, share, s, &map);
        }
        __syncwarp();
        if (p.cluster > 1) cluster_wait();
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers<Blocks>));
    const int group = warpgroup - 1;
    Ring wr(p.w_slots, 0), xr(p.x_slots, 0);
    if (p.k_groups == 2 && group == 1) xr.next();
    for (int pass = 0; pass < share.tiles; pass += p.pass) {
        const int tiles = min(p.pass, share.tiles - pass);
        float d[Blocks][TN / 2];
        int tile[Blocks], count = 1;  // blocks of this warpgroup with tiles
#pragma unroll
        for (int b = 0; b < Blocks; b++) {
            const int first = (p.k_groups == 2 ? b : 2 * b + group) * 4;
            if (first < tiles) count = b + 1;
            tile[b] = first + warp < tiles ? first + warp : -1;
#pragma unroll
            for (int i = 0; i < TN / 2; i++) d[b][i] = 0.0f;
        }
        auto run = [&]<int Count>(std::integral_constant<int, Count>) {
            multiply<TN, Blocks, Count, Groups, IntegerZeros, Sync>(d, tile, p, s, wr, xr, share.units, group, lane);
        };
        if (Blocks == 2 && count == 2)
            run(std::integral_constant<int, Blocks>());
        else
            run(std::integral_constant<int, 1>());

        uint32_t mine = ~0u;  // octets of tokens that this warpgroup finishes
        const int part = p.k_groups == 2 ? rank * 2 + group : rank;
        if (parts > 1) {  // then there is one pass
            mine = 0;
#pragma unroll
            for (int j = 0; j < octets; j++) mine |= (j & (parts - 1)) == part ? 1u << j : 0u;
        }
        pdl_wait();
        uint2 residual[Blocks][octets];
        if (p.output.residual)
#pragma unroll
            for (int b = 0; b < Blocks; b++)
                if (tile[b] >= 0) load_residual<TN>(p.output, share.first_tile + pass + tile[b], mine, lane, residual[b]);
        if (parts > 1) {
            if (p.cluster > 1) cluster_wait();
            // The place of one octet of a tile, of those that `from` sends to `to`, in the latter's CTA.
            auto place = [&](int from, int to, int tile_place, int index) {
                const int set = p.k_groups == 2 ? to & 1 : 0, source = from - (from > to);
                return s.sums + (((set * (parts - 1) + source) * p.pass + tile_place) * p.join_octets + index) * 512 + lane * 16;
            };
#pragma unroll
            for (int j = 0; j < octets; j++) {
                const int to = j & (parts - 1);
                if (to == part) continue;
                if (p.cluster == 1) {  // to this CTA's other warpgroup: st.async is for clusters of several
#pragma unroll
                    for (int b = 0; b < Blocks; b++)
                        if (tile[b] >= 0) store_shared4(place(part, to, tile[b], j >> parts_shift), d[b] + 4 * j);
                    continue;
                }
                const int to_rank = p.k_groups == 2 ? to >> 1 : to;
                const uint32_t bar = address_in(s.join + 8 * (p.k_groups == 2 ? to & 1 : group), to_rank);
#pragma unroll
                for (int b = 0; b < Blocks; b++)
                    if (tile[b] >= 0) send4(address_in(place(part, to, tile[b], j >> parts_shift), to_rank), d[b] + 4 * j, bar);
            }
            if (p.cluster == 1)
                asm volatile("bar.sync 1, 256;" ::: "memory");  // the consumers' warpgroups
            else
                cluster_barrier_wait(s.join + 8 * group, 0);
#pragma unroll
            for (int j = 0; j < octets; j++)
                if (mine >> j & 1)
                    for (int from = 0; from < parts; from++)
                        if (from != part)
#pragma unroll
                            for (int b = 0; b < Blocks; b++)
                                if (tile[b] >= 0) {
                                    const uint4 v = load_shared16(place(from, part, tile[b], j >> parts_shift));
                                    d[b][4 * j] += __uint_as_float(v.x), d[b][4 * j + 1] += __uint_as_float(v.y);
                                    d[b][4 * j + 2] += __uint_as_float(v.z), d[b][4 * j + 3] += __uint_as_float(v.w);
                                }
        }
#pragma unroll
        for (int b = 0; b < Blocks; b++)
            if (tile[b] >= 0) store_tile<TN>(p, share.first_tile + pass + tile[b], mine, lane, d[b], residual[b]);
    }
#endif
}

using BatchKernel = void (*)(CUtensorMap, BatchParams);
struct Variant {
    int tokens, blocks, groups;  // groups 8: any
    bool integer_zeros;
    BatchKernel kernel;
};
template <int TN, int Blocks, int Groups, bool IntegerZeros, bool Sync = false>
constexpr Variant variant() {
    return {TN, Blocks, Groups, IntegerZeros, batch_kernel<TN, Blocks, Groups, IntegerZeros, Sync>};
}
// The first with tokens enough is taken.
const Variant variants[] = {
    variant<16, 1, 2, true, true>(), variant<16, 2, 2, true, true>(), variant<32, 1, 2, true>(),  variant<32, 2, 2, true>(),
    variant<32, 1, 8, true>(),       variant<32, 2, 8, true>(),       variant<32, 1, 8, false>(), variant<32, 2, 8, false>(),
};

struct BatchPlan {
    const Variant* variant = nullptr;
    int cluster = 1, clusters = 0, longest = 0, pass = 0, k_groups = 1;
    int w_slots = 0, x_slots = 0, join_octets = 0, shared_bytes = 0;
    double cost = 1e30;  // microseconds, roughly
};

// x as the tensor copy engine reads it (its strides are not nested, which the engine does not mind): boxes of a unit's panels x `box_rows` rows; what lies outside of [rows][in] reads as zero.
cudaError_t map_panels(const MatmulDevice& device, const MatmulArgs& args, int64_t in, int box_rows, CUtensorMap* map) {
    const cuuint64_t sizes[3] = {panel, static_cast<cuuint64_t>(args.rows), static_cast<cuuint64_t>(in / panel)};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(args.ldx) * 2, panel * 2};
    const cuuint32_t box[3] = {panel, static_cast<cuuint32_t>(box_rows), unit_columns / panel};
    return encode_map(device.encode_tensor_map, args.x, 3, sizes, strides, box, map);
}

BatchPlan plan_cluster(const MatmulDevice& device, const Q4Layout& layout, int rows, int cluster) {
    BatchPlan plan;
    const int tiles = static_cast<int>(layout.tiles()), units = static_cast<int>(layout.units()),
              unit_bytes = static_cast<int>(layout.unit_bytes());
    const int most = cluster == 1 ? device.sm_count : device.cluster_pairs;
    if (most == 0 || units < cluster) return plan;
    plan.cluster = cluster;
    plan.clusters = std::min(most, tiles);
    plan.longest = (tiles + plan.clusters - 1) / plan.clusters;
    const int passes = (plan.longest + most_tiles - 1) / most_tiles;
    if (passes > 1 && cluster > 1) return plan;
    plan.pass = (plan.longest + passes - 1) / passes;
    plan.k_groups = plan.pass <= 4 ? 2 : 1;
    const int blocks = plan.pass <= 8 ? 1 : 2, groups = variant_groups(layout);
    const Variant* chosen = nullptr;
    for (const Variant& v : variants)
        if (!chosen && v.tokens >= rows && v.blocks == blocks && v.groups == groups && v.integer_zeros == layout.integer_zeros)
            chosen = &v;
    if (!chosen) return plan;
    // Shared memory: 1024 bytes for alignment, the rings, the sums that are joined. A ring needs no more slots than it has uses.
    const int octets = chosen->tokens / 8, parts = cluster * plan.k_groups, share = (units + cluster - 1) / cluster;
    const int w_bytes = plan.pass * plan.k_groups * unit_bytes, x_bytes = chosen->tokens * unit_columns * 2;
    const int w_uses = passes * ((share + plan.k_groups - 1) / plan.k_groups), x_uses = plan.k_groups * w_uses;
    plan.join_octets = (octets + parts - 1) / parts;
    const int join = parts == 1 ? 0 : plan.k_groups * (parts - 1) * plan.pass * plan.join_octets * 512;
    const int limit = batch_limit - 1024 - join - (blocks == 1 ? spare : 0);
    plan.x_slots = std::min(6, x_uses);
    plan.w_slots = std::min({(limit - plan.x_slots * x_bytes) / w_bytes, w_uses, 16});
    if (plan.x_slots < std::min(x_uses, 1 + plan.k_groups) || plan.w_slots < std::min(w_uses, 2)) return plan;
    plan.x_slots = std::min({(limit - plan.w_slots * w_bytes) / x_bytes, x_uses, 16});
    // Warpgroups that take units in turn must find a slot theirs in every phase: one that skips a phase could not tell it from the last.
    if (plan.k_groups == 2 && plan.x_slots < x_uses) plan.x_slots &= ~1;
    plan.shared_bytes = 1024 + plan.w_slots * w_bytes + plan.x_slots * x_bytes + join;
    plan.variant = chosen;
    // Bytes from memory by all, bytes through L2 by one SM, what a warpgroup multiplies (a strip of four tiles takes it half a microsecond a
    // unit, the other one being at work as well), the joining: fitted to measurements on an H100.
    const double w_all = static_cast<double>(plan.longest) * plan.clusters * units * unit_bytes,
                 l2 = static_cast<double>(share) * (plan.longest * unit_bytes + passes * chosen->tokens * unit_columns * 2),
                 strips = static_cast<double>(w_uses) * ((plan.pass * plan.k_groups + 7) / 8);
    plan.cost = std::max({w_all / 3.05e6, l2 / 75e3, strips * 0.5}) + (cluster > 1 ? 0.7 : 0.0);
    return plan;
}

BatchPlan plan_batch(const MatmulDevice& device, const Q4Layout& layout, int rows) {
    BatchPlan best;
    for (int cluster : {1, 2}) {
        if (tuning.cluster && tuning.cluster != cluster) continue;
        const BatchPlan plan = plan_cluster(device, layout, rows, cluster);
        if (plan.variant && plan.cost < best.cost) best = plan;
    }
    return best;
}

}  // namespace

cudaError_t open_batch(const MatmulDevice& device) {
    if (device.arch != 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, batch_limit)) return error;
    return cudaSuccess;
}

bool batch_fits(const MatmulDevice& device, const Q4Layout& layout, const MatmulArgs& args) {
    return args.rows <= most_tokens && wgmma_fits(device, layout, args) && rows_aligned(args.x, args.ldx) && layout.in % panel == 0 &&
           plan_batch(device, layout, args.rows).variant != nullptr;
}

cudaError_t batch_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args) {
    const BatchPlan plan = plan_batch(context.device, weight.layout, args.rows);
    const int box_rows = box_rows_of(args.rows, plan.variant->tokens);
    CUtensorMap map;
    if (cudaError_t error = map_panels(context.device, args, weight.layout.in, box_rows, &map)) return error;
    BatchParams p;
    static_cast<Product&>(p) = product_of(weight, args);
    p.w_slots = plan.w_slots, p.x_slots = plan.x_slots;
    p.each = p.tiles / plan.clusters, p.longer = p.tiles % plan.clusters;
    p.cluster = plan.cluster, p.first_units = p.units / plan.cluster;
    p.pass = plan.pass, p.k_groups = plan.k_groups;
    p.join_octets = plan.join_octets;
    p.panel_bytes = box_rows * panel * 2;
    const int slot_bytes = plan.pass * plan.k_groups * p.unit_bytes;
    auto slots_of = [&](int bytes) { return std::max(1, (bytes + slot_bytes / 2) / slot_bytes); };
    p.window = std::min(p.w_slots, slots_of((tuning.window ? tuning.window : 52) * 1024));
    p.first_window = std::min(p.window, slots_of((tuning.first_window ? tuning.first_window : 36) * 1024));
    // A cluster of one is launched as a cluster, too: st.async is an illegal instruction elsewhere.
    return launch_clusters(context, plan.variant->kernel, plan.cluster, dim3(static_cast<unsigned>(plan.clusters * plan.cluster)), threads,
                           plan.shared_bytes, map, p);
}

}  // namespace awq::cuda
