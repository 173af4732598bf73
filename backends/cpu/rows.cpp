// Operators that take rows of floats one by one: lookups, sums, norms, activations, and what a vision tower needs.
#include <algorithm>
#include "backends/cpu/ops.h"

namespace awq::cpu {

// f(row) for every row of the output, shared out among the threads.
template <class F>
static Status each_row(const KernelCall& call, F f) {
    const int64_t run = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, call.out.cols));
    worker_of(call).share(call.out.rows, run, f);
    return {};
}
static const Isa& isa_of(const KernelCall& call) { return *worker_of(call).isa; }
static const float* vector_of(const Weight* weight) { return weight ? static_cast<const float*>(weight->data) : nullptr; }

// Row of a table as floats.
static void table_row(const KernelCall& call, const Weight& table, int64_t row, float factor, float* to) {
    const Layout layout = layout_of(table.spec);
    if (layout.packed()) {
        const uint8_t* block = static_cast<const uint8_t*>(table.data) + static_cast<size_t>(row / block_rows) * layout.block_bytes;
        unpack_block_row(layout, table.spec, block, static_cast<int>(row % block_rows), to);
        if (factor != 1) isa_of(call).scale(to, factor, table.spec.in, to);
        return;
    }
    const int64_t bytes = table.spec.in * (layout.type == WeightType::f32 ? 4 : 2);
    isa_of(call).widen(layout.type, static_cast<const char*>(table.data) + row * bytes, table.spec.in, factor, to);
}

Status embed(const KernelCall& call) {
    const Weight& table = *call.weight(1);
    const Attrs& attrs = call.node->attrs;
    for (int64_t r = 0; r < call.out.rows; r++)
        if (int64_t id = call.in[0].row<int32_t>(r)[0] + attrs.offset; id < 0 || id >= table.spec.out)
            return Status(Code::invalid_argument, call.node->name + ": token id " + std::to_string(id - attrs.offset) +
                                                      " has no row in a table of " + std::to_string(table.spec.out));
    return each_row(call, [&](int64_t r) {
        table_row(call, table, call.in[0].row<int32_t>(r)[0] + attrs.offset, attrs.scale, call.out.row<float>(r));
    });
}

Status add(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        isa_of(call).add(call.in[0].row<float>(r), call.in[1].row<float>(r), call.out.cols, call.out.row<float>(r));
    });
}
Status scale(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        isa_of(call).scale(call.in[0].row<float>(r), call.node->attrs.scale, call.out.cols, call.out.row<float>(r));
    });
}
Status softcap(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        isa_of(call).softcap(call.in[0].row<float>(r), call.node->attrs.softcap, call.out.cols, call.out.row<float>(r));
    });
}
Status rms_norm(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        norm_row(isa_of(call), call.node->attrs, call.weight(1), nullptr, false, call.in[0].row<float>(r), call.out.cols,
                 call.out.row<float>(r));
    });
}
Status layer_norm(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        norm_row(isa_of(call), call.node->attrs, call.weight(1), call.weight(2), true, call.in[0].row<float>(r), call.out.cols,
                 call.out.row<float>(r));
    });
}
Status act(const KernelCall& call) {
    const int32_t kind = static_cast<int32_t>(call.node->attrs.activation);
    return each_row(call, [&](int64_t r) {
        isa_of(call).activate(kind, call.in[0].row<float>(r), vector_of(call.weight(1)), call.out.cols, call.out.row<float>(r));
    });
}
Status gated_act(const KernelCall& call) {
    const int32_t kind = static_cast<int32_t>(call.node->attrs.activation);
    return each_row(call, [&](int64_t r) {
        isa_of(call).gated(kind, call.in[0].row<float>(r), call.in[1].row<float>(r), call.out.cols, call.out.row<float>(r));
    });
}
Status gather_cols(const KernelCall& call) {
    const float* order = vector_of(call.weight(1));  // whole numbers below 2^24: exact
    return each_row(call, [&](int64_t r) {
        const float* x = call.in[0].row<float>(r);
        float* y = call.out.row<float>(r);
        for (int64_t c = 0; c < call.out.cols; c++) y[c] = x[static_cast<int64_t>(order[c])];
    });
}
Status select_rows(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        std::copy_n(call.in[0].row<float>(call.in[1].row<int32_t>(r)[0]), call.out.cols, call.out.row<float>(r));
    });
}

// ---- vision

// Row (y, x) of the patches: the pixels of one, channel by channel, line by line, as a convolution's weight has them.
Status patches(const KernelCall& call) {
    const int64_t patch = call.node->attrs.patch, image = call.node->attrs.image, across = image / patch;
    return each_row(call, [&](int64_t r) {
        float* out = call.out.row<float>(r);
        for (int64_t channel = 0; channel < 3; channel++)
            for (int64_t y = 0; y < patch; y++)
                out =
                    std::copy_n(call.in[0].row<float>(channel * image + r / across * patch + y) + r % across * patch, patch, out);
    });
}
Status prepend_row(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        std::copy_n(r == 0 ? vector_of(call.weight(1)) : call.in[0].row<float>(r - 1), call.out.cols, call.out.row<float>(r));
    });
}
Status add_table(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        float* out = call.out.row<float>(r);
        table_row(call, *call.weight(1), r, 1, out);
        isa_of(call).add(out, call.in[0].row<float>(r), call.out.cols, out);
    });
}
Status drop_first_row(const KernelCall& call) {
    return each_row(call, [&](int64_t r) { std::copy_n(call.in[0].row<float>(r + 1), call.out.cols, call.out.row<float>(r)); });
}
Status put_rows(const KernelCall& call) {
    return each_row(call, [&](int64_t r) {
        const int32_t from = call.in[2].row<int32_t>(r)[0];
        std::copy_n(from >= 0 ? call.in[1].row<float>(from) : call.in[0].row<float>(r), call.out.cols, call.out.row<float>(r));
    });
}

}  // namespace awq::cpu
