// Kernels that touch each element once: lookups, sums, activations, and the vision tower's rearrangements.
#include "backends/cuda/cuda.h"
#include "backends/cuda/layout.h"

namespace awq::cuda {
namespace {

constexpr int block_threads = 256;

// A matrix operand on the device: row r begins at data + r * stride.
template <class T>
struct Operand {
    T* data;
    int64_t stride;
};
template <class T>
Operand<T> operand(const Tensor& t) {
    return {static_cast<T*>(t.data), t.stride};
}

// out[r][c] = f(a[r][c], r, c), `wide` columns at a time. F::b, if any, is f's own business.
template <class T, int wide, class F>
__global__ void __launch_bounds__(block_threads) map_kernel(Operand<T> out, Operand<const T> a, int64_t count, int cols, F f) {
    let_next_begin();
    wait_for_previous();
    int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
    if (i >= count) return;
    int per_row = cols / wide, c = static_cast<int>(i % per_row) * wide;
    int64_t r = i / per_row;
    float x[wide];
    load(a.data + r * a.stride + c, x);
    f(x, r, c);
    store(out.data + r * out.stride + c, x);
}

template <class T, class F>
Status map_typed(const KernelCall& call, F (*make)(const KernelCall&)) {
    const Tensor &out = call.out, &a = call.in[0];
    bool wide = std::is_same_v<T, __half> && out.cols % 8 == 0 && wide_rows(out) && wide_rows(a) &&
                (call.in.size() < 2 || !call.in[1].data || wide_rows(call.in[1]));
    int64_t count = out.rows * out.cols / (wide ? 8 : 1);
    int cols = static_cast<int>(out.cols);
    if constexpr (std::is_same_v<T, __half>)
        if (wide)
            return launch(context(call), map_kernel<T, 8, F>, ceil_div(count, block_threads), block_threads, 0, operand<T>(out),
                          operand<const T>(a), count, cols, make(call));
    return launch(context(call), map_kernel<T, 1, F>, ceil_div(count, block_threads), block_threads, 0, operand<T>(out),
                  operand<const T>(a), count, cols, make(call));
}

// Activations are float16; what follows the logits is float32 on every backend.
template <class F>
Status map(const KernelCall& call, F (*make)(const KernelCall&)) {
    if (call.out.dtype == DType::f32) return map_typed<float, F>(call, make);
    return map_typed<__half, F>(call, make);
}

struct Add {
    Operand<const __half> b;
    template <int wide>
    __device__ void operator()(float (&x)[wide], int64_t r, int c) const {
        float y[wide];
        load(b.data + r * b.stride + c, y);
#pragma unroll
        for (int i = 0; i < wide; i++) x[i] += y[i];
    }
};
Status add(const KernelCall& call) {
    return map_typed<__half, Add>(call, [](const KernelCall& c) { return Add{operand<const __half>(c.in[1])}; });
}

struct Scale {
    float scale;
    template <int wide>
    __device__ void operator()(float (&x)[wide], int64_t, int) const {
#pragma unroll
        for (int i = 0; i < wide; i++) x[i] *= scale;
    }
};
Status scale(const KernelCall& call) {
    return map<Scale>(call, [](const KernelCall& c) { return Scale{c.node->attrs.scale}; });
}

struct Softcap {
    float cap;
    template <int wide>
    __device__ void operator()(float (&x)[wide], int64_t, int) const {
#pragma unroll
        for (int i = 0; i < wide; i++) x[i] = cap * tanhf(x[i] / cap);
    }
};
Status softcap(const KernelCall& call) {
    return map<Softcap>(call, [](const KernelCall& c) { return Softcap{c.node->attrs.softcap}; });
}

struct Act {
    Activation activation;
    const float* scales;  // of each column, or null
    template <int wide>
    __device__ void operator()(float (&x)[wide], int64_t, int c) const {
#pragma unroll
        for (int i = 0; i < wide; i++) {
            x[i] = activate(activation, x[i]);
            if (scales) x[i] /= scales[c + i];
        }
    }
};
Status act(const KernelCall& call) {
    return map<Act>(call, [](const KernelCall& c) {
        return Act{c.node->attrs.activation, c.weight(1) ? static_cast<const float*>(c.weight(1)->data) : nullptr};
    });
}

struct GatedAct {
    Activation activation;
    Operand<const __half> up;
    template <int wide>
    __device__ void operator()(float (&x)[wide], int64_t r, int c) const {
        float y[wide];
        load(up.data + r * up.stride + c, y);
#pragma unroll
        for (int i = 0; i < wide; i++) x[i] = activate(activation, x[i]) * y[i];
    }
};
Status gated_act(const KernelCall& call) {
    return map_typed<__half, GatedAct>(call, [](const KernelCall& c) {
        return GatedAct{c.node->attrs.activation, operand<const __half>(c.in[1])};
    });
}

// ---- rows that come from elsewhere: out[r] = rows(r) * scale; F says where a row lies

template <int wide, class F>
__global__ void __launch_bounds__(block_threads) rows_kernel(Operand<__half> out, int64_t count, int cols, float scale, F rows) {
    let_next_begin();
    wait_for_previous();
    int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
    if (i >= count) return;
    int per_row = cols / wide, c = static_cast<int>(i % per_row) * wide;
    int64_t r = i / per_row;
    float x[wide];
    rows.template read<wide>(r, c, x);
    if (scale != 1.0f)
#pragma unroll
        for (int j = 0; j < wide; j++) x[j] *= scale;
    store(out.data + r * out.stride + c, x);
}

template <class F>
Status copy_rows(const KernelCall& call, bool wide, float scale, F rows) {
    wide = wide && call.out.cols % 8 == 0 && wide_rows(call.out);
    int64_t count = call.out.rows * call.out.cols / (wide ? 8 : 1);
    int blocks = ceil_div(count, block_threads), cols = static_cast<int>(call.out.cols);
    if (wide)
        return launch(context(call), rows_kernel<8, F>, blocks, block_threads, 0, operand<__half>(call.out), count, cols, scale,
                      rows);
    return launch(context(call), rows_kernel<1, F>, blocks, block_threads, 0, operand<__half>(call.out), count, cols, scale,
                  rows);
}

// A table or vector weight: float16 rows, float32 ones or units of 8-bit values (layout.h).
struct WeightTable {
    const void* data;
    int64_t pitch;
    bool half;
    bool eight;
    bool integer_zeros;
    int in, units, unit_bytes, group, groups;  // of 8-bit values: columns of the source, the rest as pack_q4.h has it

    // Column c of row r where values have 8 bits: the low and the high nibble, each with its scale.
    __device__ float read_eight(int64_t r, int c) const {
        const int rest = static_cast<int>(r % tile_rows), slot = rest / 4 * 2 + (rest & 1) + (rest & 2 ? 8 : 0), g = slot & 7;
        float value = 0;
        for (int column : {c, in + c}) {
            const uint8_t* unit = static_cast<const uint8_t*>(data) + (r / tile_rows * units + column / unit_columns) * unit_bytes;
            const int k = column % unit_columns, bit = 16 * (k & 1) + (k & 8) + 4 * (slot >> 3), place = 2 * g + (slot >> 3);
            const uint8_t byte = unit[k / 64 * 512 + (4 * g + k % 8 / 2) * 16 + k % 64 / 16 * 4 + bit / 8];
            const float q = static_cast<float>(byte >> bit % 8 & 15);
            const uint8_t *scales = unit + unit_scales + k / group * 32, *zeros = unit + unit_scales + groups * 32;
            const float scale = __half2float(reinterpret_cast<const __half*>(scales)[place]);
            value += integer_zeros ? (q - static_cast<float>(zeros[k / group * 16 + place])) * scale
                                   : q * scale + __half2float(reinterpret_cast<const __half*>(zeros)[k / group * 16 + place]);
        }
        return value;
    }
    template <int wide>
    __device__ void read_row(int64_t r, int c, float (&x)[wide]) const {
        if (eight)
            for (int i = 0; i < wide; i++) x[i] = read_eight(r, c + i);
        else if (half)
            load(static_cast<const __half*>(data) + r * pitch + c, x);
        else
            load(static_cast<const float*>(data) + r * pitch + c, x);
    }
};
WeightTable weight_table(const Weight* weight) {
    const WeightLayout layout = weight_layout(weight->spec);
    const bool half = layout.kind == LayoutKind::dense;
    WeightTable table = {weight->data, half ? dense_pitch(weight->spec.in) : weight->spec.in, half};
    if (layout.kind == LayoutKind::q4) {
        table.eight = true;
        table.integer_zeros = layout.q4.integer_zeros;
        table.in = static_cast<int>(layout.q4.source_in());
        table.units = static_cast<int>(layout.q4.units()), table.unit_bytes = static_cast<int>(layout.q4.unit_bytes());
        table.group = layout.q4.group, table.groups = layout.q4.groups();
    }
    return table;
}
bool can_look_up(const Graph& graph, const Node& node) {
    WeightLayout layout = weight_layout(graph.nodes[node.in[1]].weight->spec);
    return layout.kind == LayoutKind::vector || (layout.kind == LayoutKind::dense && !layout.dense.gated) ||
           (layout.kind == LayoutKind::q4 && layout.q4.eight && !layout.q4.gated);
}

struct Embed {
    WeightTable table;
    const int32_t* ids;
    int64_t offset, rows;
    template <int wide>
    __device__ void read(int64_t r, int c, float (&x)[wide]) const {
        int64_t id = ids[r] + offset;
        table.read_row(min(max(id, int64_t{0}), rows - 1), c, x);  // callers check ids; never read outside the table
    }
};
Status embed(const KernelCall& call) {
    const Weight* table = call.weight(1);
    return copy_rows(
        call, true, call.node->attrs.scale,
        Embed{weight_table(table), static_cast<const int32_t*>(call.in[0].data), call.node->attrs.offset, table->spec.out});
}

struct SelectRows {
    Operand<const __half> x;
    const int32_t* rows;
    template <int wide>
    __device__ void read(int64_t r, int c, float (&to)[wide]) const {
        load(x.data + rows[r] * x.stride + c, to);
    }
};
Status select_rows(const KernelCall& call) {
    return copy_rows(call, wide_rows(call.in[0]), 1,
                     SelectRows{operand<const __half>(call.in[0]), static_cast<const int32_t*>(call.in[1].data)});
}

struct GatherCols {
    Operand<const __half> x;
    const float* order;  // whole numbers below 2^24
    template <int wide>
    __device__ void read(int64_t r, int c, float (&to)[wide]) const {
#pragma unroll
        for (int i = 0; i < wide; i++) to[i] = __half2float(x.data[r * x.stride + static_cast<int>(order[c + i])]);
    }
};
Status gather_cols(const KernelCall& call) {
    return copy_rows(call, true, 1,
                     GatherCols{operand<const __half>(call.in[0]), static_cast<const float*>(call.weight(1)->data)});
}

struct PrependRow {
    Operand<const __half> x;
    WeightTable row;
    template <int wide>
    __device__ void read(int64_t r, int c, float (&to)[wide]) const {
        if (r == 0)
            row.read_row(0, c, to);
        else
            load(x.data + (r - 1) * x.stride + c, to);
    }
};
Status prepend_row(const KernelCall& call) {
    return copy_rows(call, wide_rows(call.in[0]), 1, PrependRow{operand<const __half>(call.in[0]), weight_table(call.weight(1))});
}

struct AddTable {
    Operand<const __half> x;
    WeightTable table;
    template <int wide>
    __device__ void read(int64_t r, int c, float (&to)[wide]) const {
        float y[wide];
        load(x.data + r * x.stride + c, to);
        table.read_row(r, c, y);
#pragma unroll
        for (int i = 0; i < wide; i++) to[i] += y[i];
    }
};
Status add_table(const KernelCall& call) {
    return copy_rows(call, wide_rows(call.in[0]), 1, AddTable{operand<const __half>(call.in[0]), weight_table(call.weight(1))});
}

struct DropFirstRow {
    Operand<const __half> x;
    template <int wide>
    __device__ void read(int64_t r, int c, float (&to)[wide]) const {
        load(x.data + (r + 1) * x.stride + c, to);
    }
};
Status drop_first_row(const KernelCall& call) {
    return copy_rows(call, wide_rows(call.in[0]), 1, DropFirstRow{operand<const __half>(call.in[0])});
}

struct PutRows {
    Operand<const __half> x;
    Operand<const void> features;  // float16, or float32 where they come as a batch input of that type
    bool features_half;
    const int32_t* rows;
    template <int wide>
    __device__ void read(int64_t r, int c, float (&to)[wide]) const {
        int64_t from = rows[r];
        if (from < 0)
            load(x.data + r * x.stride + c, to);
        else if (features_half)
            load(static_cast<const __half*>(features.data) + from * features.stride + c, to);
        else
            load(static_cast<const float*>(features.data) + from * features.stride + c, to);
    }
};
Status put_rows(const KernelCall& call) {
    const Tensor &x = call.in[0], &features = call.in[1];
    return copy_rows(call, wide_rows(x) && wide_rows(features), 1,
                     PutRows{operand<const __half>(x),
                             {features.data, features.stride},
                             features.dtype == DType::f16,
                             static_cast<const int32_t*>(call.in[2].data)});
}

// Row (py, px) of the output: the pixels of one patch, channel by channel, line by line.
struct Patches {
    const float* pixels;  // [3 * image][image]
    int image, patch;
    template <int wide>
    __device__ void read(int64_t r, int c, float (&to)[wide]) const {
        int across = image / patch, top = static_cast<int>(r) / across * patch, left = static_cast<int>(r) % across * patch;
#pragma unroll
        for (int i = 0; i < wide; i++) {
            int channel = (c + i) / (patch * patch), at = (c + i) % (patch * patch);
            to[i] = pixels[(static_cast<int64_t>(channel) * image + top + at / patch) * image + left + at % patch];
        }
    }
};
Status patches(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    return copy_rows(call, true, 1, Patches{static_cast<const float*>(call.in[0].data), attrs.image, attrs.patch});
}

}  // namespace

std::span<const Kernel> elementwise_kernels() {
#define ROW(name, can_run) \
    { Op::name, "cuda " #name, 0, INT32_MAX, can_run, name, plain_bytes }
    static const Kernel rows[] = {ROW(embed, can_look_up),
                                  ROW(add, always),
                                  ROW(scale, always),
                                  ROW(softcap, always),
                                  ROW(act, always),
                                  ROW(gated_act, always),
                                  ROW(gather_cols, always),
                                  ROW(select_rows, always),
                                  ROW(patches, always),
                                  ROW(prepend_row, can_look_up),
                                  ROW(add_table, can_look_up),
                                  ROW(drop_first_row, always),
                                  ROW(put_rows, always)};
#undef ROW
    return rows;
}

}  // namespace awq::cuda
