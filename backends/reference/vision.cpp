// Reference kernels: what a vision tower needs around its linears and norms.
#include <algorithm>
#include "backends/reference/reference.h"

namespace awq::reference {

// Row (py, px): the pixels of one patch, channel by channel, line by line, as a convolution's weight has them.
Status patches(const KernelCall& call) {
    const int64_t patch = call.node->attrs.patch, image = call.node->attrs.image, across = image / patch;
    for (int64_t r = 0; r < call.out.rows; r++) {
        float* out = call.out.row<float>(r);
        for (int64_t channel = 0; channel < 3; channel++)
            for (int64_t y = 0; y < patch; y++) {
                const float* line = call.in[0].row<float>(channel * image + r / across * patch + y) + r % across * patch;
                out = std::copy_n(line, patch, out);
            }
    }
    return {};
}

Status prepend_row(const KernelCall& call) {
    std::copy_n(rows(call.weight(1)), call.out.cols, call.out.row<float>(0));
    for (int64_t r = 1; r < call.out.rows; r++) std::copy_n(call.in[0].row<float>(r - 1), call.out.cols, call.out.row<float>(r));
    return {};
}

Status add_table(const KernelCall& call) {
    for (int64_t r = 0; r < call.out.rows; r++)
        for (int64_t c = 0; c < call.out.cols; c++)
            call.out.row<float>(r)[c] = call.in[0].row<float>(r)[c] + rows(call.weight(1))[r * call.out.cols + c];
    return {};
}

Status drop_first_row(const KernelCall& call) {
    for (int64_t r = 0; r < call.out.rows; r++) std::copy_n(call.in[0].row<float>(r + 1), call.out.cols, call.out.row<float>(r));
    return {};
}

Status put_rows(const KernelCall& call) {
    for (int64_t r = 0; r < call.out.rows; r++) {
        int32_t from = call.in[2].row<int32_t>(r)[0];
        std::copy_n(from >= 0 ? call.in[1].row<float>(from) : call.in[0].row<float>(r), call.out.cols, call.out.row<float>(r));
    }
    return {};
}

}  // namespace awq::reference
