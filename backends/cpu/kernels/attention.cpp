// Attention over pages of keys and values, with a running maximum and sum ("online softmax") for each row.
//
// A row is one query head of one token. All query heads that share a kv head go together, so that a page is read once for
// them; with many rows a page is widened to floats once. For a page, or a few: scores = q K (K lies transposed), then
// weights, then out = out * correction + weights V. Both products are the same small kernel.
#include "backends/cpu/kernels/activation.h"
#include "backends/cpu/kernels/functions.h"

namespace awq::cpu::AWQ_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int wide = 4;  // vectors of columns that a register tile holds beside max_rows
#else
constexpr int wide = 2;
#endif
constexpr int max_rows = attention_few_rows;

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
            for (int n = 0; n < N * W; n += 32) prefetch_second(next + k * ldb + n);
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

// Scores of `keys` keys (a multiple of page_keys) to weights; returns the factor by which what was summed before counts from
// now on.
AWQ_INLINE float weigh(const AttentionTask& task, const Row& row, int64_t first_key, int keys, float* scores, float& top,
                       float& denominator) {
    int64_t low = row.first_key - first_key, high = row.position - first_key + 1;
    const int from = static_cast<int>(low < 0 ? 0 : low), to = static_cast<int>(high > keys ? keys : high);
    if (from >= to) {
        for (int i = 0; i < keys; i += W) store(scores + i, zero());
        return 1;
    }
    F best = set1(nothing);
    for (int i = 0; i < keys; i += W) {
        F value = load(scores + i);
        if (task.softcap != 0) value = set1(task.softcap) * tanh(value * set1(1 / task.softcap));
        if (task.alibi) {
            float ahead[W];
            for (int j = 0; j < W; j++) ahead[j] = static_cast<float>(first_key + i + j - row.position);
            value = fma(load(ahead), set1(row.slope), value);
        }
        store(scores + i, value);
        if (i < from || i + W > to) {  // keys out of sight
            for (int j = i; j < i + W; j++)
                if (j < from || j >= to) scores[j] = nothing;
            value = load(scores + i);
        }
        best = max(best, value);
    }
    float highest_score = highest(best), next = highest_score > top ? highest_score : top;
    float correction;
    store(&correction, exp(set1(top - next)), 1);
    if (top == nothing) correction = 0;
    F sums = zero();
    for (int i = 0; i < keys; i += W) {
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

// The rows of an item and what has been summed for each.
struct Rows {
    int count, first_head;
    float *q, *out, *top, *denominator;
    float* scratch;  // beyond them
};

AWQ_INLINE Row row_of(const AttentionTask& task, const AttentionItem& item, const Rows& rows, int r) {
    const int t = r / task.group_heads, h = r % task.group_heads;
    Row row{task.alibi ? task.alibi[rows.first_head + h] : 0, task.keys - 1, 0};
    if (task.positions) {
        row.position = task.positions[item.token + t];
        row.first_key = task.window && row.position >= task.window ? row.position - task.window + 1 : 0;
    }
    return row;
}

AWQ_INLINE const uint16_t* page_at(const AttentionTask& task, const AttentionItem& item, int page) {
    return task.cache + static_cast<size_t>(item.pages[page]) * task.page_stride +
           static_cast<size_t>(item.kv_head) * task.head_stride;
}

// Few rows, at most max_rows: memory is what they wait for. K of several pages, all weights at once, then V of those pages.
void few_rows(const AttentionTask& task, const AttentionItem& item, const Rows& rows) {
    const int n = rows.count, dim = task.head_dim, pad = task.head_pad;
    float* scores = rows.scratch;
    constexpr int64_t stride = attention_run_pages * page_keys;
    const int64_t last_key = task.positions[item.token + item.tokens - 1];
    float same[max_rows];
    for (float& factor : same) factor = 1;
    for (int first = item.first_page; first < item.last_page; first += attention_run_pages) {
        const int left = item.last_page - first, pages = left < attention_run_pages ? left : attention_run_pages;
        // What is read, in order. Each is asked for while the one before it is gone through: sooner or later costs more.
        auto half_page = [&](int i) {
            if (i == 2 * pages) return left > pages ? page_at(task, item, first + pages) : item.next;
            return i < pages ? page_at(task, item, first + i) : page_at(task, item, first + i - pages) + page_keys * dim;
        };
        for (int i = 0; i < pages; i++)
            product(n, rows.q, dim, half_page(i), page_keys, scores + i * page_keys, stride, dim, page_keys, nullptr,
                    half_page(i + 1));
        float keep[max_rows];
        for (int r = 0; r < n; r++)
            keep[r] = weigh(task, row_of(task, item, rows, r), int64_t{first} * page_keys, pages * page_keys, scores + r * stride,
                            rows.top[r], rows.denominator[r]);
        for (int i = 0; i < pages; i++) {
            const int64_t seen = last_key - int64_t{first + i} * page_keys + 1;  // by some row
            product(n, scores + i * page_keys, stride, half_page(pages + i), pad, rows.out, pad,
                    seen < page_keys ? static_cast<int>(seen) : page_keys, pad, i == 0 ? keep : same, half_page(pages + i + 1));
        }
    }
}

// Many rows, or keys and values that are no pages: a page is widened to floats once for all of them.
void many_rows(const AttentionTask& task, const AttentionItem& item, const Rows& rows) {
    const int dim = task.head_dim, pad = task.head_pad;
    float* wide_k = rows.scratch;
    float* wide_v = wide_k + page_keys * dim;
    float* scores = wide_v + page_keys * pad;
    for (int page = item.first_page; page < item.last_page; page++) {
        const int64_t first_key = int64_t{page} * page_keys;
        int keys = page_keys;  // those that some row sees
        if (task.positions) {
            const uint16_t* k = page_at(task, item, page);
            const int64_t seen = task.positions[item.token + item.tokens - 1] - first_key + 1;
            if (seen < keys) keys = static_cast<int>(seen);
            widen(WeightType::f16, k, page_keys * dim, 1, wide_k);
            widen(WeightType::f16, k + page_keys * dim, int64_t{keys} * pad, 1, wide_v);
        } else {
            if (task.keys - first_key < keys) keys = static_cast<int>(task.keys - first_key);
            for (int i = 0; i < keys; i++) {
                const float* key = task.k + (first_key + i) * task.k_stride + item.kv_head * dim;
                const float* value = task.v + (first_key + i) * task.v_stride + item.kv_head * dim;
                for (int d = 0; d < dim; d++) wide_k[d * page_keys + i] = key[d];
                for (int d = 0; d < pad; d++) wide_v[i * pad + d] = d < dim ? value[d] : 0;
            }
            for (int i = keys; i < page_keys; i++)
                for (int d = 0; d < dim; d++) wide_k[d * page_keys + i] = 0;
        }
        for (int r = 0; r < rows.count; r += max_rows) {
            const int n = rows.count - r < max_rows ? rows.count - r : max_rows;
            product(n, rows.q + int64_t{r} * dim, dim, wide_k, page_keys, scores, page_keys, dim, page_keys, nullptr, wide_k);
            float keep[max_rows];
            for (int i = 0; i < n; i++)
                keep[i] = weigh(task, row_of(task, item, rows, r + i), first_key, page_keys, scores + i * page_keys,
                                rows.top[r + i], rows.denominator[r + i]);
            product(n, scores, page_keys, wide_v, pad, rows.out + int64_t{r} * pad, pad, keys, pad, keep, wide_v);
        }
    }
}

}  // namespace

void attention(const AttentionTask& task, const AttentionItem& item, void* scratch) {
    const int dim = task.head_dim, pad = task.head_pad;
    Rows rows;
    rows.count = item.tokens * task.group_heads;
    rows.first_head = item.kv_head * task.group_heads;
    rows.q = static_cast<float*>(scratch);
    rows.out = rows.q + int64_t{rows.count} * dim;
    rows.top = rows.out + int64_t{rows.count} * pad;
    rows.denominator = rows.top + rows.count;
    rows.scratch = rows.top + (2 * rows.count + 15) / 16 * 16;  // on a cache line, as the sizes before it are
    for (int r = 0; r < rows.count; r++) {
        const int t = r / task.group_heads, h = r % task.group_heads;
        scale(task.q + (item.token + t) * task.q_stride + int64_t{rows.first_head + h} * dim, task.scale, dim,
              rows.q + int64_t{r} * dim);
        rows.top[r] = nothing, rows.denominator[r] = 0;
    }
    for (int64_t i = 0; i < int64_t{rows.count} * pad; i++) rows.out[i] = 0;
    if (task.positions && rows.count <= max_rows)
        few_rows(task, item, rows);
    else
        many_rows(task, item, rows);
    for (int r = 0; r < rows.count; r++) {
        const int t = r / task.group_heads, h = r % task.group_heads;
        const float* from = rows.out + int64_t{r} * pad;
        if (item.partial) {
            float* state = item.partial + int64_t{r} * item.partial_stride;
            for (int d = 0; d < pad; d++) state[d] = from[d];
            state[pad] = rows.top[r], state[pad + 1] = rows.denominator[r];
        } else {
            scale(from, 1 / rows.denominator[r], dim,
                  task.out + (item.token + t) * task.out_stride + int64_t{rows.first_head + h} * dim);
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
