// The grouped product of a mixture of experts for a few tokens: up to 8 rows an expert, int4 weights at the speed of memory.
// sm_90 and later.
//
// One CTA an SM. The work is a list of items, an expert with its rows; all items' tiles of 16 rows of W, one item behind the
// other, are shared out evenly among the CTAs, whatever the experts are. A CTA's tiles of one item are a stretch of units, dealt
// out to its sixteen warps in turn, so that K is cut among them and all have equally many. Each warp streams its own units
// through a ring of its own (bulk copies, waited for and asked for by the warp itself: nobody else is involved), multiplies them
// with x, which lies in shared memory whole, and leaves its sums of a tile. After every few tiles the warps meet and join the
// sums.
#include "backends/cuda/matmul_experts_decode.cuh"

namespace awq::cuda {
namespace {

using namespace few;

constexpr int most_items = 64, most_rows = 8;

struct Params : Operands {
    int expert_count, in, tiles, units, unit_bytes, group;
    int slots, x_pitch;  // of each warp's ring; bytes of a row of x in shared memory
    bool x_aligned;
};

struct Items {
    int count;
    int expert[most_items], row[most_items], rows[most_items];
};

// By one warp.
template <int Columns>
__device__ __forceinline__ void list_items(Items& items, const Params& p) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    int before = 0;
    for (int base = 0; base < p.expert_count; base += 32) {
        const int e = base + lane;
        int begin = 0, size = 0;
        if (e < p.expert_count) begin = __ldcg(p.experts.begin + e), size = __ldcg(p.experts.begin + e + 1) - begin;
        const int own = (size + Columns - 1) / Columns;
        const int upto = warp_sum_up_to(own);
        for (int i = 0; i < own; i++) {
            const int at = before + upto - own + i;
            items.expert[at] = e, items.row[at] = begin + i * Columns, items.rows[at] = min(Columns, size - i * Columns);
        }
        before += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0) items.count = before;
}

// Tiles whose sums are joined at once.
template <int Columns>
constexpr int round_tiles = Columns == 1 ? 4 : 2;
template <int Columns>
constexpr int sums_bytes = 2 * round_tiles<Columns>* warps* tile_rows* Columns * 4;

// The outputs of `tiles` tiles of one item.
template <int Columns>
__device__ __forceinline__ void join_sums(const Params& p, const float* sums, int tile, int tiles, int row, int rows) {
    constexpr int stride = tile_rows * Columns;
    const Output& o = p.output;
    const int tile_outputs = o.gated ? 8 : tile_rows, outputs = tiles * tile_outputs * Columns;
    for (int i = static_cast<int>(threadIdx.x) / 4; i < (outputs + 7) / 8 * 8;
         i += threads / 4) {  // whole warps, for the shuffles
        const int token = i % Columns, slot = i / Columns % tile_outputs, place = min(i / Columns / tile_outputs, tiles - 1);
        const float* from = sums + place * warps * stride + slot * Columns + token;
        const float v = total_of(from, stride), up = o.gated ? total_of(from + 8 * Columns, stride) : 0.0f;
        if (threadIdx.x % 4 != 0 || i >= outputs || token >= rows) continue;
        half* y = o.y + static_cast<int64_t>(row + token) * o.ldy;
        if (o.gated) {
            const int channels = o.out / 2, channel = (tile + place) * 8 + slot;
            if (channel >= channels) continue;
            if (o.activation == Activation::none)
                y[channel] = __float2half(v), y[channels + channel] = __float2half(up);
            else
                y[channel] = __float2half(activate(o.activation, v) * up);
        } else if (const int column = slot_row(tile + place, slot); column < o.out) {
            y[column] = __float2half(v);
        }
    }
}

// Columns: rows of an item at most.
template <int Columns, int Groups, bool IntegerZeros>
__global__ void __launch_bounds__(threads, 1) few_kernel(const __grid_constant__ Params p) {
    constexpr int round = round_tiles<Columns>, warp_sums = tile_rows * Columns;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(16) uint64_t barriers[warps * most_slots];
    __shared__ Items items;
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31, g = lane >> 2, t = lane & 3;
    Stream stream(barriers, shared, p.slots, p.unit_bytes);
    uint8_t* x_shared = shared + warps * p.slots * p.unit_bytes;
    float* sums = reinterpret_cast<float*>(x_shared + Columns * p.x_pitch);

    if (lane == 0) stream.init();
    pdl_trigger();
    pdl_wait();
    if (warp == 0) list_items<Columns>(items, p);
    __syncthreads();
    const int64_t all = static_cast<int64_t>(items.count) * p.tiles;
    const int first = static_cast<int>(all * blockIdx.x / gridDim.x), last = static_cast<int>(all * (blockIdx.x + 1) / gridDim.x);

    // The unit to be asked for next; every sixteenth of an item's stretch.
    const uint64_t policy = stream_policy();
    int ask_item = first / p.tiles, ask_tile = first - ask_item * p.tiles, ask_unit = warp, ask_left = last - first;
    auto ask = [&](int slot) {
        while (ask_left > 0 && ask_unit >= p.units) {
            ask_unit -= p.units;
            ask_left--;
            if (++ask_tile == p.tiles) ask_tile = 0, ask_item++, ask_unit = warp;
        }
        if (ask_left <= 0) return;
        stream.ask(
            slot,
            p.w + items.expert[ask_item] * p.expert_bytes + (static_cast<int64_t>(ask_tile) * p.units + ask_unit) * p.unit_bytes,
            policy);
        ask_unit += warps;
    };
    if (lane == 0)
        for (int i = 0; i < p.slots; i++) ask(i);

    int turn = 0;
    for (int at = first; at < last;) {
        const int item = at / p.tiles, tile = at - item * p.tiles, count = min(p.tiles - tile, last - at);
        const int row = items.row[item], rows = items.rows[item];
        for (int m = 0; m < rows; m++) {
            const int64_t source = p.experts.source ? __ldcg(p.experts.source + row + m) : row + m;
            stage_row(x_shared + m * p.x_pitch, p.x + source * p.ldx, p.in, p.units, p.x_aligned);
        }
        copy_commit();
        copy_wait<0>();
        meet();
        // ldmatrix: row lane % 8, 8 columns from 8 * (lane / 8)
        const uint32_t x = shared_address(x_shared) + min(lane & 7, rows - 1) * p.x_pitch + (lane >> 3) * 16;
        int unit = warp, in_round = 0;  // unit: of the first tile, then of the next ones
        for (int i = 0; i < count; i++) {
            float d[2][4] = {};
            for (; unit < p.units; unit += warps) {
                Unit<Groups, IntegerZeros> w;
                w.take(stream, p.group, ask);
                w.multiply(d, x + unit * 512);
            }
            unit -= p.units;
            float* to = sums + ((turn * round + in_round) * warps + warp) * warp_sums;
            if constexpr (Columns == 1) {
                if (t == 0) to[g] = d[0][0] + d[1][0], to[g + 8] = d[0][2] + d[1][2];
            } else if (2 * t < Columns) {
                *reinterpret_cast<float2*>(to + g * Columns + 2 * t) = make_float2(d[0][0] + d[1][0], d[0][1] + d[1][1]);
                *reinterpret_cast<float2*>(to + (g + 8) * Columns + 2 * t) = make_float2(d[0][2] + d[1][2], d[0][3] + d[1][3]);
            }
            if (++in_round == round || i + 1 == count) {
                meet();
                join_sums<Columns>(p, sums + turn * round * warps * warp_sums, tile + i + 1 - in_round, in_round, row, rows);
                in_round = 0, turn ^= 1;
            }
        }
        at += count;
    }
}

using FewKernel = void (*)(Params);
struct Variant {
    int columns, groups;  // groups 8: any
    bool integer_zeros;
    FewKernel kernel;
    int sums;
};
template <int Columns, int Groups, bool IntegerZeros>
constexpr Variant variant() {
    return {Columns, Groups, IntegerZeros, few_kernel<Columns, Groups, IntegerZeros>, sums_bytes<Columns>};
}
const Variant variants[] = {variant<1, 2, true>(), variant<4, 2, true>(), variant<8, 2, true>(),
                            variant<1, 8, true>(), variant<8, 8, true>(), variant<8, 8, false>()};

struct Plan {
    const Variant* variant = nullptr;
    int slots = 0, shared_bytes = 0;
};
Plan plan_few(const MatmulDevice& device, const Q4Layout& layout, int most) {
    Plan plan;
    if (device.arch < 90) return plan;
    const int groups = variant_groups(layout),
              slot_bytes = warps * static_cast<int>(layout.unit_bytes());
    for (const Variant& v : variants) {
        if (v.columns < most || v.groups != groups || v.integer_zeros != layout.integer_zeros) continue;
        const int64_t rest = static_cast<int64_t>(v.columns) * x_pitch_of(layout) + v.sums;
        plan.slots = static_cast<int>(std::min<int64_t>((device.shared_block - spare - rest) / slot_bytes, most_slots));
        if (tuning.slots) plan.slots = std::min(plan.slots, tuning.slots);
        plan.shared_bytes = static_cast<int>(plan.slots * slot_bytes + rest);
        if (plan.slots >= 2) plan.variant = &v;
        break;
    }
    return plan;
}

}  // namespace

cudaError_t open_few(const MatmulDevice& device) {
    if (device.arch < 90) return cudaSuccess;
    for (const Variant& v : variants)
        if (cudaError_t error = allow_shared(v.kernel, device.shared_block - spare)) return error;
    return cudaSuccess;
}

bool few_fit(const MatmulDevice& device, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    return args.rows <= most_items && rows.most <= most_rows && plan_few(device, weight.layout, rows.most).variant;
}

cudaError_t few_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args, const ExpertRows& rows) {
    const Q4Layout& layout = weight.layout;
    const Plan plan = plan_few(context.device, layout, rows.most);
    Params p;
    static_cast<Operands&>(p) = operands_of(weight, layout, layout.bytes(), args, &rows);
    p.expert_count = weight.experts, p.in = static_cast<int>(layout.in), p.x_aligned = rows_aligned(args.x, args.ldx);
    p.tiles = static_cast<int>(layout.tiles()), p.units = static_cast<int>(layout.units());
    p.unit_bytes = static_cast<int>(layout.unit_bytes()), p.group = layout.group;
    p.slots = plan.slots, p.x_pitch = x_pitch_of(layout);
    return launch(context, plan.variant->kernel, dim3(static_cast<unsigned>(context.device.sm_count)), threads, plan.shared_bytes,
                  p);
}

}  // namespace awq::cuda
