// Reference kernels: rotary embedding, the paged KV cache, attention.
#include <algorithm>
#include <cmath>
#include <vector>
#include "backends/reference/reference.h"

namespace awq::reference {

Status rope_table(const KernelCall& call) {
    const RopeParams& rope = *call.node->attrs.rope;
    const int64_t half = rope.rot_dim / 2;
    for (int64_t r = 0; r < call.out.rows; r++) {
        int64_t length = call.batch(Input::rope_len)[call.batch(Input::sequence)[r]];
        float position = static_cast<float>(call.batch(Input::positions)[r]);
        bool longer = length > rope.original_length;
        double theta = rope.theta;
        if (rope.kind == RopeParams::Kind::dynamic && longer)
            theta *= std::pow(
                rope.factor * static_cast<double>(length) / static_cast<double>(rope.original_length) - (rope.factor - 1),
                rope.rot_dim / (rope.rot_dim - 2.0));
        for (int64_t i = 0; i < half; i++) {
            float frequency = rope.inv_freq[i];
            if (rope.kind == RopeParams::Kind::dynamic && longer)
                frequency = static_cast<float>(1 / std::pow(theta, 2.0 * static_cast<double>(i) / rope.rot_dim));
            if (rope.kind == RopeParams::Kind::longrope && longer) frequency = rope.long_inv_freq[i];
            float angle = position * frequency;
            call.out.row<float>(r)[i] = std::cos(angle) * rope.attention_factor;
            call.out.row<float>(r)[half + i] = std::sin(angle) * rope.attention_factor;
        }
    }
    return {};
}

Status rope(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    const int64_t half = call.in[1].cols / 2;
    for (int64_t r = 0; r < call.out.rows; r++) {
        const float *cosine = call.in[1].row<float>(r), *sine = cosine + half;
        for (int64_t h = 0; h < attrs.heads; h++) {
            const float* x = call.in[0].row<float>(r) + h * attrs.head_dim;
            float* y = call.out.row<float>(r) + h * attrs.head_dim;
            std::copy_n(x, attrs.head_dim, y);
            for (int64_t i = 0; i < half; i++) {
                int64_t a = attrs.interleaved ? 2 * i : i, b = attrs.interleaved ? 2 * i + 1 : half + i;
                float first = x[a], second = x[b];
                y[a] = first * cosine[i] - second * sine[i];
                y[b] = second * cosine[i] + first * sine[i];
            }
        }
    }
    return {};
}

float* cache_row(const RunArgs& run, int32_t layer, int32_t page, bool value, int32_t slot) {
    int64_t width = static_cast<int64_t>(run.kv.kv_heads) * run.kv.head_dim;
    int64_t block = (static_cast<int64_t>(layer) * run.kv_pages + page) * 2 + (value ? 1 : 0);
    return static_cast<float*>(run.kv_cache->data) + (block * page_size + slot) * width;
}

// Cache page of a position of one of the batch's sequences.
static int32_t page_of(const KernelCall& call, int32_t sequence, int32_t position) {
    return call.batch(Input::page_table)[static_cast<int64_t>(sequence) * call.run->size.max_pages + position / page_size];
}

Status kv_append(const KernelCall& call) {
    for (int64_t r = 0; r < call.in[0].rows; r++) {
        int32_t sequence = call.batch(Input::sequence)[r], position = call.batch(Input::positions)[r];
        int32_t page = page_of(call, sequence, position);
        for (int part = 0; part < 2; part++)
            std::copy_n(call.in[part].row<float>(r), call.in[part].cols,
                        cache_row(*call.run, call.node->attrs.layer, page, part == 1, position % page_size));
    }
    return {};
}

static void softmax(std::vector<float>& scores) {
    float top = *std::max_element(scores.begin(), scores.end()), sum = 0;
    for (float& score : scores) sum += score = std::exp(score - top);
    for (float& score : scores) score /= sum;
}

static float dot(const float* a, const float* b, int64_t count) {
    float sum = 0;
    for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

// A token at position p sees the keys max(0, p - window + 1) .. p of its own sequence.
Status attention(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    const int64_t group = attrs.heads / attrs.kv_heads, dim = attrs.head_dim;
    std::vector<float> scores;
    for (int64_t r = 0; r < call.out.rows; r++) {
        int32_t sequence = call.batch(Input::sequence)[r], position = call.batch(Input::positions)[r];
        int32_t first = attrs.window > 0 ? std::max(0, position - attrs.window + 1) : 0;
        for (int64_t h = 0; h < attrs.heads; h++) {
            const float* q = call.in[0].row<float>(r) + h * dim;
            const int64_t at = h / group * dim;
            scores.clear();
            for (int32_t key = first; key <= position; key++) {
                const float* k = cache_row(*call.run, attrs.layer, page_of(call, sequence, key), false, key % page_size) + at;
                float score = dot(q, k, dim) * attrs.scale;
                if (attrs.softcap > 0) score = attrs.softcap * std::tanh(score / attrs.softcap);
                if (attrs.alibi) score += attrs.alibi[h] * static_cast<float>(key - position);
                scores.push_back(score);
            }
            softmax(scores);
            float* out = call.out.row<float>(r) + h * dim;
            std::fill_n(out, dim, 0.0f);
            for (int32_t key = first; key <= position; key++) {
                const float* v = cache_row(*call.run, attrs.layer, page_of(call, sequence, key), true, key % page_size) + at;
                for (int64_t i = 0; i < dim; i++) out[i] += scores[key - first] * v[i];
            }
        }
    }
    return {};
}

Status attention_full(const KernelCall& call) {
    const Attrs& attrs = call.node->attrs;
    const int64_t dim = attrs.head_dim, count = call.in[1].rows;
    std::vector<float> scores(count);
    for (int64_t r = 0; r < call.out.rows; r++)
        for (int64_t at = 0; at < attrs.heads * dim; at += dim) {
            for (int64_t key = 0; key < count; key++)
                scores[key] = dot(call.in[0].row<float>(r) + at, call.in[1].row<float>(key) + at, dim) * attrs.scale;
            softmax(scores);
            float* out = call.out.row<float>(r) + at;
            std::fill_n(out, dim, 0.0f);
            for (int64_t key = 0; key < count; key++)
                for (int64_t i = 0; i < dim; i++) out[i] += scores[key] * call.in[2].row<float>(key)[at + i];
        }
    return {};
}

}  // namespace awq::reference
