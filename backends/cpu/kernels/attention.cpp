// Attention over pages of keys and values, with a running maximum and sum ("online softmax") for each row.
//
// A row is one query head of one token. All query heads that share a kv head go together, so that a page is read once for
// them; with many rows a page is widened to floats once. Per page: scores = q K (K lies transposed), then weights, then
// out = out * correction + weights V. Both products are the same small kernel.
#include "backends/cpu/kernels/activation.h"
#include "backends/cpu/kernels/functions.h"

namespace awq::cpu::AWQ_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int wide = 4;  // vectors of columns that a register tile holds beside max_rows
#else
constexpr int wide = 2;
#endif
constexpr int max_rows = 6;

AWQ_INLINE F load_any(const float* p) { return load(p); }
AWQ_INLINE F load_any(const uint16_t* p) { return load_half(p); }

// c[R][N W] = c * keep[r] + a[R][depth] b[depth][N W]; keep null: c starts at zero. `next`: what will be read after b and
// lies like it; asked for on the way.
template <int R, int N, class B>
AWQ_INLINE void product_tile(const float* a, int64_t lda, const B* b, int64_t ldb, float* c, int64_t ldc, int depth,
                             const float* keep, const B* next) {
    F sum[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) sum[r][n] = keep ? load(c + r * ldc + n * W) * set1(keep[r]) : zero();
#pragma GCC unroll 2
    for (int k = 0; k < depth; k++) {
        F column[N];
        for (int n = 0; n < N; n++) column[n] = load_any(b + k * ldb + n * W);
        if constexpr (sizeof(B) == 2)
            for (int n = 0; n < N * W; n += 32) prefetch(next + k * ldb + n);
        for (int r = 0; r < R; r++) {
            F value = set1(a[r * lda + k]);
            for (int n = 0; n < N; n++) sum[r][n] = fma(value, column[n], sum[r][n]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(c + r * ldc + n * W, sum[r][n]);
}

// columns: a multiple of 16
template <int R, class B>
void product_rows(const float* a, int64_t lda, const B* b, int64_t ldb, float* c, int64_t ldc, int depth, int columns,
                  const float* keep, const B* next) {
    int n = 0;
    for (; n + wide * W <= columns; n += wide * W) product_tile<R, wide>(a, lda, b + n, ldb, c + n, ldc, depth, keep, next + n);
    for (; n < columns; n += W) product_tile<R, 1>(a, lda, b + n, ldb, c + n, ldc, depth, keep, next + n);
}

template <class B>
void product(int rows, const float* a, int64_t lda, const B* b, int64_t ldb, float* c, int64_t ldc, int depth, int columns,
             const float* keep, const B* next) {
    switch (rows) {
        case 1: return product_rows<1>(a, lda, b, ldb, c, ldc, depth, columns, keep, next);
        case 2: return product_rows<2>(a, lda, b, ldb, c, ldc, depth, columns, keep, next);
        case 3: return product_rows<3>(a, lda, b, ldb, c, ldc, depth, columns, keep, next);
        case 4: return product_rows<4>(a, lda, b, ldb, c, ldc, depth, columns, keep, next);
        case 5: return product_rows<5>(a, lda, b, ldb, c, ldc, depth, columns, keep, next);
        default: return product_rows<6>(a, lda, b, ldb, c, ldc, depth, columns, keep, next);
    }
}

constexpr float nothing = -3.0e38f;  // maximum of no scores; finite, so that differences of two stay numbers

struct Row {
    float slope;
    int64_t position, first_key;  // keys first_key .. position count
};

// Scores of one page to weights; returns the factor by which what was summed before counts from now on.
AWQ_INLINE float weigh(const AttentionTask& task, const Row& row, int64_t page_first, float* scores, float& top,
                       float& denominator) {
    int64_t low = row.first_key - page_first, high = row.position - page_first + 1;
    const int from = static_cast<int>(low < 0 ? 0 : low), to = static_cast<int>(high > page_keys ? page_keys : high);
    if (from >= to) {
        for (int i = 0; i < page_keys; i += W) store(scores + i, zero());
        return 1;
    }
    F best = set1(nothing);
    for (int i = 0; i < page_keys; i += W) {
        F value = load(scores + i);
        if (task.softcap != 0) value = set1(task.softcap) * tanh(value * set1(1 / task.softcap));
        if (task.alibi) {
            float ahead[W];
            for (int j = 0; j < W; j++) ahead[j] = static_cast<float>(page_first + i + j - row.position);
            value = fma(load(ahead), set1(row.slope), value);
        }
        store(scores + i, value);
        if (i < from || i + W > to)  // keys out of sight
            for (int j = i; j < i + W; j++)
                if (j < from || j >= to) scores[j] = nothing;
        best = max(best, load(scores + i));
    }
    float highest_score = highest(best), next = highest_score > top ? highest_score : top;
    float correction;
    store(&correction, exp(set1(top - next)), 1);
    if (top == nothing) correction = 0;
    F sums = zero();
    for (int i = 0; i < page_keys; i += W) {
        F weight = exp(load(scores + i) - set1(next));
        store(scores + i, weight);
        if (i < from || i + W > to) {
            for (int j = i; j < i + W; j++)
                if (j < from || j >= to) scores[j] = 0;
            weight = load(scores + i);
        }
        sums = sums + weight;
    }
    top = next;
    denominator = denominator * correction + sum(sums);
    return correction;
}

}  // namespace

void attention(const AttentionTask& task, const AttentionItem& item, void* scratch) {
    const int rows = item.tokens * task.group_heads, dim = task.head_dim, pad = task.head_pad;
    float* q = static_cast<float*>(scratch);
    float* out = q + static_cast<int64_t>(rows) * dim;
    float* top = out + static_cast<int64_t>(rows) * pad;
    float* denominator = top + rows;
    float* wide_k = denominator + rows;
    float* wide_v = wide_k + page_keys * dim;
    float* scores = wide_v + page_keys * pad;
    const int first_head = item.kv_head * task.group_heads;
    for (int t = 0; t < item.tokens; t++)
        for (int h = 0; h < task.group_heads; h++) {
            const int r = t * task.group_heads + h;
            scale(task.q + (item.token + t) * task.q_stride + static_cast<int64_t>(first_head + h) * dim, task.scale, dim,
                  q + static_cast<int64_t>(r) * dim);
            top[r] = nothing, denominator[r] = 0;
        }
    for (int64_t i = 0; i < static_cast<int64_t>(rows) * pad; i++) out[i] = 0;
    const bool widen_pages = rows > max_rows || !task.positions;
    for (int page = item.first_page; page < item.last_page; page++) {
        const int64_t page_first = static_cast<int64_t>(page) * page_keys;
        const uint16_t *k = nullptr, *v = nullptr, *next = nullptr;
        int keys = page_keys;  // those that some row sees
        if (task.positions) {
            k = task.cache + static_cast<size_t>(item.pages[page]) * task.page_stride +
                static_cast<size_t>(item.kv_head) * task.head_stride;
            v = k + page_keys * dim;
            if (page + 1 < item.last_page)
                next =
                    k + (static_cast<int64_t>(item.pages[page + 1]) - item.pages[page]) * static_cast<int64_t>(task.page_stride);
            int64_t seen = task.positions[item.token + item.tokens - 1] - page_first + 1;
            if (seen < keys) keys = static_cast<int>(seen);
            if (widen_pages) {
                widen(WeightType::f16, k, page_keys * dim, 1, wide_k);
                widen(WeightType::f16, v, static_cast<int64_t>(keys) * pad, 1, wide_v);
            }
        } else {
            if (task.keys - page_first < keys) keys = static_cast<int>(task.keys - page_first);
            for (int i = 0; i < keys; i++) {
                const float* key = task.k + (page_first + i) * task.k_stride + item.kv_head * dim;
                const float* value = task.v + (page_first + i) * task.v_stride + item.kv_head * dim;
                for (int d = 0; d < dim; d++) wide_k[d * page_keys + i] = key[d];
                for (int d = 0; d < pad; d++) wide_v[i * pad + d] = d < dim ? value[d] : 0;
            }
            for (int i = keys; i < page_keys; i++)
                for (int d = 0; d < dim; d++) wide_k[d * page_keys + i] = 0;
        }
        for (int r = 0; r < rows; r += max_rows) {
            const int n = rows - r < max_rows ? rows - r : max_rows;
            if (widen_pages)
                product(n, q + static_cast<int64_t>(r) * dim, dim, wide_k, page_keys, scores, page_keys, dim, page_keys, nullptr,
                        wide_k);
            else
                product(n, q + static_cast<int64_t>(r) * dim, dim, k, page_keys, scores, page_keys, dim, page_keys, nullptr, v);
            float keep[max_rows];
            for (int i = 0; i < n; i++) {
                const int t = (r + i) / task.group_heads, h = (r + i) % task.group_heads;
                Row row{task.alibi ? task.alibi[first_head + h] : 0, task.keys - 1, 0};
                if (task.positions) {
                    row.position = task.positions[item.token + t];
                    row.first_key = task.window && row.position >= task.window ? row.position - task.window + 1 : 0;
                }
                keep[i] = weigh(task, row, page_first, scores + i * page_keys, top[r + i], denominator[r + i]);
            }
            float* to = out + static_cast<int64_t>(r) * pad;
            if (widen_pages)
                product(n, scores, page_keys, wide_v, pad, to, pad, keys, pad, keep, wide_v);
            else
                product(n, scores, page_keys, v, pad, to, pad, keys, pad, keep, next ? next : v);
        }
    }
    for (int t = 0; t < item.tokens; t++)
        for (int h = 0; h < task.group_heads; h++) {
            const int r = t * task.group_heads + h;
            const float* from = out + static_cast<int64_t>(r) * pad;
            if (item.partial) {
                float* state = item.partial + static_cast<int64_t>(r) * item.partial_stride;
                for (int d = 0; d < pad; d++) state[d] = from[d];
                state[pad] = top[r], state[pad + 1] = denominator[r];
            } else {
                scale(from, 1 / denominator[r], dim,
                      task.out + (item.token + t) * task.out_stride + static_cast<int64_t>(first_head + h) * dim);
            }
        }
}

void attention_join(const float* partial, int64_t part_stride, int32_t parts, int32_t head_dim, int32_t head_pad, float* out) {
    float top = nothing;
    for (int p = 0; p < parts; p++) {
        float other = partial[p * part_stride + head_pad];
        if (other > top) top = other;
    }
    float denominator = 0;
    for (int d = 0; d < head_dim; d++) out[d] = 0;
    for (int p = 0; p < parts; p++) {
        const float* state = partial + p * part_stride;
        if (state[head_pad] == nothing) continue;
        float factor;
        store(&factor, exp(set1(state[head_pad] - top)), 1);
        denominator += state[head_pad + 1] * factor;
        mix(out, state, factor, head_dim);
    }
    scale(out, 1 / denominator, head_dim, out);
}

void kv_store(const float* k, const float* v, int32_t heads, int32_t head_dim, int32_t head_pad, uint16_t* k_page,
              size_t head_stride, int32_t slot) {
    for (int h = 0; h < heads; h++, k += head_dim, v += head_dim, k_page += head_stride) {
        uint16_t* v_row = k_page + page_keys * head_dim + static_cast<int64_t>(slot) * head_pad;
        for (int d = 0; d < head_dim; d += W) {
            const int n = head_dim - d < W ? head_dim - d : W;
            uint16_t half[W];
            store_half(half, n == W ? load(k + d) : load(k + d, n));
            for (int i = 0; i < n; i++) k_page[(d + i) * page_keys + slot] = half[i];
            store_half(half, n == W ? load(v + d) : load(v + d, n));
            for (int i = 0; i < n; i++) v_row[d + i] = half[i];
        }
    }
}

}  // namespace awq::cpu::AWQ_ISA
