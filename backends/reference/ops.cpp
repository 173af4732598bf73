// Reference kernels: lookups, arithmetic, norms, matrix products, experts.
#include <algorithm>
#include <cmath>
#include <vector>
#include "backends/reference/reference.h"

namespace awq::reference {

float activate(Activation activation, float x) {
    switch (activation) {
        case Activation::none: return x;
        case Activation::silu: return x / (1.0f + std::exp(-x));
        case Activation::gelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
        case Activation::gelu_tanh: return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
        case Activation::quick_gelu: return x / (1.0f + std::exp(-1.702f * x));
        case Activation::relu: return x > 0 ? x : 0;
    }
    return x;
}

// One element after the other, as a map of the first input.
template <class F>
static Status map(const KernelCall& call, F f) {
    for (int64_t r = 0; r < call.out.rows; r++)
        for (int64_t c = 0; c < call.out.cols; c++) call.out.row<float>(r)[c] = f(call.in[0].row<float>(r)[c], r, c);
    return {};
}

Status embed(const KernelCall& call) {
    const Weight* table = call.weight(1);
    const Attrs& attrs = call.node->attrs;
    for (int64_t r = 0; r < call.out.rows; r++) {
        const float* row = rows(table) + (call.in[0].row<int32_t>(r)[0] + attrs.offset) * table->spec.in;
        for (int64_t c = 0; c < call.out.cols; c++) call.out.row<float>(r)[c] = row[c] * attrs.scale;
    }
    return {};
}

Status add(const KernelCall& call) {
    return map(call, [&](float x, int64_t r, int64_t c) { return x + call.in[1].row<float>(r)[c]; });
}

Status scale(const KernelCall& call) {
    return map(call, [&](float x, int64_t, int64_t) { return x * call.node->attrs.scale; });
}

Status softcap(const KernelCall& call) {
    float cap = call.node->attrs.softcap;
    return map(call, [&](float x, int64_t, int64_t) { return cap * std::tanh(x / cap); });
}

Status act(const KernelCall& call) {
    const Weight* scales = call.weight(1);
    return map(call, [&](float x, int64_t, int64_t c) {
        float y = activate(call.node->attrs.activation, x);
        return scales ? y / rows(scales)[c] : y;
    });
}

Status gated_act(const KernelCall& call) {
    return map(call, [&](float gate, int64_t r, int64_t c) {
        return activate(call.node->attrs.activation, gate) * call.in[1].row<float>(r)[c];
    });
}

// The weight of a norm has one element for each of `width` columns, or one for every column.
static float norm_element(const Weight* weight, int64_t width, int64_t c) {
    return rows(weight)[weight->spec.in == width ? c % width : c];
}

Status rms_norm(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    const Weight* weight = call.weight(1);
    for (int64_t r = 0; r < call.out.rows; r++)
        for (int64_t first = 0; first < call.out.cols; first += attrs.width) {
            const float* x = call.in[0].row<float>(r);
            double square = 0;
            for (int64_t c = first; c < first + attrs.width; c++) square += static_cast<double>(x[c]) * x[c];
            float factor = static_cast<float>(1 / std::sqrt(square / static_cast<double>(attrs.width) + attrs.eps));
            for (int64_t c = first; c < first + attrs.width; c++) {
                float w = weight ? norm_element(weight, attrs.width, c) + (attrs.plus_one ? 1.0f : 0.0f) : 1.0f;
                call.out.row<float>(r)[c] = x[c] * factor * w;
            }
        }
    return {};
}

Status layer_norm(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    const Weight *weight = call.weight(1), *bias = call.weight(2);
    for (int64_t r = 0; r < call.out.rows; r++)
        for (int64_t first = 0; first < call.out.cols; first += attrs.width) {
            const float* x = call.in[0].row<float>(r);
            double sum = 0, square = 0, width = static_cast<double>(attrs.width);
            for (int64_t c = first; c < first + attrs.width; c++) sum += x[c];
            double mean = sum / width;
            for (int64_t c = first; c < first + attrs.width; c++) square += (x[c] - mean) * (x[c] - mean);
            double factor = 1 / std::sqrt(square / width + attrs.eps);
            for (int64_t c = first; c < first + attrs.width; c++) {
                float y = static_cast<float>((x[c] - mean) * factor);
                if (weight) y *= norm_element(weight, attrs.width, c);
                if (bias) y += norm_element(bias, attrs.width, c);
                call.out.row<float>(r)[c] = y;
            }
        }
    return {};
}

// y[out] = W x, W [out][in]
static void product(const float* weight, int64_t out, int64_t in, const float* x, float* y) {
    for (int64_t o = 0; o < out; o++) {
        const float* w = weight + o * in;
        float sums[8] = {};  // several sums: less rounding than one, and the compiler may use vectors
        int64_t k = 0;
        for (; k + 8 <= in; k += 8)
            for (int j = 0; j < 8; j++) sums[j] += w[k + j] * x[k + j];
        float sum = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
        for (; k < in; k++) sum += w[k] * x[k];
        y[o] = sum;
    }
}

Status linear(const KernelCall& call) {
    const Weight *weight = call.weight(1), *bias = call.weight(2);
    for (int64_t r = 0; r < call.out.rows; r++) {
        float* y = call.out.row<float>(r);
        product(rows(weight), weight->spec.out, weight->spec.in, call.in[0].row<float>(r), y);
        for (int64_t c = 0; bias && c < call.out.cols; c++) y[c] += rows(bias)[c];
    }
    return {};
}

Status gather_cols(const KernelCall& call) {
    const float* order = rows(call.weight(1));  // whole numbers below 2^24: exact
    for (int64_t r = 0; r < call.out.rows; r++)
        for (int64_t c = 0; c < call.out.cols; c++)
            call.out.row<float>(r)[c] = call.in[0].row<float>(r)[static_cast<int64_t>(order[c])];
    return {};
}

Status select_rows(const KernelCall& call) {
    for (int64_t r = 0; r < call.out.rows; r++)
        std::copy_n(call.in[0].row<float>(call.in[1].row<int32_t>(r)[0]), call.out.cols, call.out.row<float>(r));
    return {};
}

// Softmax over all experts, the top_k of them (lowest index first among equals), their weights renormalised if asked.
Status moe(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    const Weight *gate_up = call.weight(2), *down = call.weight(3);
    const int64_t experts = gate_up->spec.experts, size = down->spec.in;
    std::vector<float> weights(experts), both(gate_up->spec.out), hidden(size), y(down->spec.out);
    std::vector<int> order(experts);
    for (int64_t r = 0; r < call.out.rows; r++) {
        const float *x = call.in[0].row<float>(r), *logits = call.in[1].row<float>(r);
        float top = *std::max_element(logits, logits + experts), sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            order[e] = static_cast<int>(e);
            sum += weights[e] = std::exp(logits[e] - top);
        }
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return weights[a] > weights[b]; });
        float chosen = 0;
        for (int k = 0; k < attrs.top_k; k++) chosen += weights[order[k]];
        float* out = call.out.row<float>(r);
        std::fill_n(out, call.out.cols, 0.0f);
        for (int k = 0; k < attrs.top_k; k++) {
            int64_t e = order[k];
            product(rows(gate_up) + e * gate_up->spec.out * gate_up->spec.in, gate_up->spec.out, gate_up->spec.in, x,
                    both.data());
            for (int64_t i = 0; i < size; i++) hidden[i] = activate(attrs.activation, both[i]) * both[size + i];
            product(rows(down) + e * down->spec.out * down->spec.in, down->spec.out, down->spec.in, hidden.data(), y.data());
            float share = weights[e] / (attrs.renormalize ? chosen : sum);
            for (int64_t c = 0; c < call.out.cols; c++) out[c] += share * y[c];
        }
    }
    return {};
}

}  // namespace awq::reference
