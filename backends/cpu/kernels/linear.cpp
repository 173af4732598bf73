// Matrix products with 4-bit, 8-bit and dense weights.
//
// 4-bit and 8-bit: activations are packed to 16-bit integers with one scale a token (at most 2^-16 of the row's largest
// value is lost, less than bfloat16 loses of each), so that a product is pairs of 16-bit multiply-adds, or twice four 8-bit
// ones: exact in 32 bits within a group. Offsets or zero points cost one multiply-add a group:
//     y[n][t] = x_scale[t] * sum_g (scale[n][g] * sum_k q[n][k] x[t][k] + offset[n][g] * sum_k x[t][k])
// Instruction sets without such multiply-adds keep floats as they are.
#include "backends/cpu/kernels/activation.h"
#include "backends/cpu/kernels/functions.h"

namespace awq::cpu::AWQ_ISA {

namespace {  // templates stay local to this object file

// Columns go in runs of 8, which are bits / 4 words a row (kernels.h), and through the machine step by step: `step_columns`
// at a time, weights<bits, step>(words) of W rows against broadcast(x).
#if defined(AWQ_DOT16)
typedef int16_t Value;
constexpr int step_columns = 2;
constexpr int largest_value = 32767;
constexpr int weight_bias = 0;  // subtracted from 8-bit weights
typedef I Weights;
typedef I Sum;
AWQ_INLINE I broadcast(const Value* x) {
    int32_t both;
    __builtin_memcpy(&both, x, 4);
    return set1_int(both);
}
AWQ_INLINE I multiply_add(I w, I x, I sum) { return dot(sum, w, x); }
AWQ_INLINE I plus(I a, I b) { return add_int(a, b); }
AWQ_INLINE I no_sum() { return set1_int(0); }
AWQ_INLINE F finish(I sum) { return to_float(sum); }
template <int bits, int step>
AWQ_INLINE I weights(const I* words) {
    if constexpr (bits == 4)
        return and_int(shift_right<4 * step>(words[0]), set1_int(0x000f000f));
    else
        return and_int(shift_right<8 * (step / 2)>(words[step % 2]), set1_int(0x00ff00ff));
}
#elif defined(AWQ_DOT8)
// Signed bytes, four at a time. A value of 16 bits is two of them, 256 high + low: 4 high bytes, then the 4 low ones.
typedef int16_t Value;
constexpr int step_columns = 4;
constexpr int largest_value = 127 * 256 + 127;
constexpr int weight_bias = 128;
typedef I Weights;
struct Both {
    I high, low;
};
typedef Both Sum;
AWQ_INLINE Both broadcast(const Value* x) {
    int32_t bytes[2];
    __builtin_memcpy(bytes, x, 8);
    return {set1_int(bytes[0]), set1_int(bytes[1])};
}
AWQ_INLINE Both multiply_add(I w, Both x, Both sum) { return {dot_bytes(sum.high, w, x.high), dot_bytes(sum.low, w, x.low)}; }
AWQ_INLINE Both plus(Both a, Both b) { return {add_int(a.high, b.high), add_int(a.low, b.low)}; }
AWQ_INLINE Both no_sum() { return {set1_int(0), set1_int(0)}; }
AWQ_INLINE F finish(Both sum) { return to_float(add_int(shift_left<8>(sum.high), sum.low)); }
template <int bits, int step>
AWQ_INLINE I weights(const I* words) {
    if constexpr (bits == 4)
        return and_int(shift_right<4 * step>(words[0]), set1_int(0x0f0f0f0f));
    else
        return words[step] ^ set1_int(static_cast<int32_t>(0x80808080));
}
#else
typedef float Value;
constexpr int step_columns = 1;
constexpr int weight_bias = 0;
typedef F Weights;
typedef F Sum;
AWQ_INLINE F broadcast(const Value* x) { return set1(*x); }
AWQ_INLINE F multiply_add(F w, F x, F sum) { return fma(w, x, sum); }
AWQ_INLINE F plus(F a, F b) { return a + b; }
AWQ_INLINE F no_sum() { return zero(); }
AWQ_INLINE F finish(F sum) { return sum; }
template <int bits, int step>
AWQ_INLINE F weights(const I* words) {
    constexpr int pair = step / 2, half = step % 2;
    if constexpr (bits == 4)
        return to_float(and_int(shift_right<4 * pair + 16 * half>(words[0]), set1_int(15)));
    else
        return to_float(and_int(shift_right<8 * (pair / 2) + 16 * half>(words[pair % 2]), set1_int(255)));
}
#endif
constexpr int run_steps = 8 / step_columns;
constexpr int block_vectors = block_rows / W;
constexpr int pair_vectors = pair_rows / W;

#if defined(__AVX512F__) || defined(AWQ_DOT8)
constexpr int tile = 6;  // tokens a register tile holds beside 2 vectors of rows
#else
constexpr int tile = 3;
#endif
constexpr int most_small = 6;        // tokens for which weights are unpacked in registers
constexpr int ahead_bytes = 8192;    // how far ahead memory is asked for: left to itself it gives a third less
constexpr int chunk_columns = 1024;  // columns unpacked at a time: 64 KB of 16-bit pairs stay in the second-level cache
constexpr int chunk_tokens = 192;

}  // namespace

extern const int32_t value_bytes = sizeof(Value), tile_tokens = tile, large_tokens = chunk_tokens;
// weights, scales and offsets of a chunk, sums of all tokens
extern const size_t linear_scratch =
    4 * (chunk_columns / step_columns) * pair_rows + 4 * (chunk_columns / 8) * 2 * pair_rows + 4 * chunk_tokens * pair_rows;

// ---- activations

#if defined(AWQ_DOT16)
AWQ_INLINE void store_values(Value* values, int64_t k, I rounded) { store_int16(values + k, rounded); }
#elif defined(AWQ_DOT8)
// Columns k .. k + 3 to where the steps of their run want them: 0 4 1 5, then 2 6 3 7.
AWQ_INLINE void store_values(Value* values, int64_t k, I rounded) {
    int8_t* step = reinterpret_cast<int8_t*>(values + k / 8 * 8) + k / 4 % 2;
    I high = shift_right_signed<8>(add_int(rounded, set1_int(128))), low = rounded - shift_left<8>(high);
    for (int i = 0; i < W; i++) {
        int8_t* to = step + 8 * (i / 2) + 2 * (i % 2);
        to[0] = static_cast<int8_t>(high[i]);
        to[4] = static_cast<int8_t>(low[i]);
    }
}
#endif

void pack_row(const float* x, int64_t in, int32_t group, void* values, float* scale, float* sums) {
    Value* out = static_cast<Value*>(values);
#if defined(AWQ_DOT16) || defined(AWQ_DOT8)
    // As integers floats without sign order like their values, and infinities and NaN come out on top.
    I top = set1_int(0);
    for (int64_t k = 0; k < in; k += W) top = max_int(top, and_int(bits(load(x + k)), set1_int(0x7fffffff)));
    int32_t top_bits = highest_int(top);
    float largest;
    __builtin_memcpy(&largest, &top_bits, 4);
    // A row that is not finite must not come out finite; one too small to divide by is zero.
    bool sound = top_bits < 0x7f800000;
    *scale = sound ? largest * (1.0f / largest_value) : __builtin_nanf("");
    F factor = set1(sound && largest > 1e-30f ? largest_value / largest : 0);
    for (int64_t k = 0; k < in; k += group) {
        I total = set1_int(0);
        for (int i = 0; i < group; i += W) {
            I rounded = round_int(load(x + k + i) * factor);
            store_values(out, k + i, rounded);
            total = add_int(total, rounded);
        }
        sums[k / group] = static_cast<float>(sum_int(total));
    }
#else
    *scale = 1;
    for (int64_t k = 0; k < in; k += group) {
        F total = zero();
        for (int i = 0; i < group; i += W) {
            F value = load(x + k + i);
            store(out + k + i, value);
            total = total + value;
        }
        sums[k / group] = sum(total);
    }
#endif
}

namespace {

AWQ_INLINE bool packed(WeightType type) { return type == WeightType::q4 || type == WeightType::q8; }

// ---- scales

template <int bits>
AWQ_INLINE void load_scales(ScaleKind kind, const uint8_t* header, int lane, F& scale, F& offset) {
    constexpr float bias = bits == 8 ? weight_bias : 0;
    const uint16_t* h = reinterpret_cast<const uint16_t*>(header) + lane;
    switch (kind) {
        case ScaleKind::f16_offset: scale = load_half(h), offset = load_half(h + block_rows); break;
        case ScaleKind::f16_zero: scale = load_half(h), offset = scale * (set1(bias) - load_half(h + block_rows)); return;
        case ScaleKind::bf16_offset: scale = load_bf16(h), offset = load_bf16(h + block_rows); break;
        case ScaleKind::bf16_zero: scale = load_bf16(h), offset = scale * (set1(bias) - load_bf16(h + block_rows)); return;
        default: {
            const float* f = reinterpret_cast<const float*>(header) + lane;
            scale = load(f), offset = load(f + block_rows);
        }
    }
    if constexpr (bias != 0) offset = fma(scale, set1(bias), offset);
}
AWQ_INLINE int header_bytes(ScaleKind kind) { return kind == ScaleKind::f32_offset ? 128 : 64; }

// ---- sums to output

// Rows of a pair as runs of output columns.
struct Columns {
    int64_t first[2];
    int count[2];
};
AWQ_INLINE Columns columns_of(const LinearTask& task, int64_t pair) {
    Columns c;
    for (int half = 0; half < 2; half++) {
        int64_t within = task.gate_up ? pair * block_rows : pair * pair_rows + half * block_rows;
        int64_t rows = task.gate_up ? task.out / 2 : task.out;
        int64_t left = rows - within;
        c.first[half] = task.gate_up ? half * rows + within : within;
        c.count[half] = static_cast<int>(left < 0 ? 0 : left < block_rows ? left : block_rows);
    }
    return c;
}

// sums: [tokens][stride] of the pair's 32 rows, bias and scale not yet applied
void put_pair(const LinearTask& task, int64_t pair, int64_t first, int tokens, const float* sums, int64_t stride) {
    Columns columns = columns_of(task, pair);
    for (int t = 0; t < tokens; t++) {
        const float* from = sums + t * stride;
        float* to = task.y + (first + t) * task.y_stride;
        const float* residual = task.residual ? task.residual + (first + t) * task.residual_stride : nullptr;
        F scale = set1(packed(task.type) ? task.x_scale[first + t] : 1.0f);
        F value[pair_vectors];
        for (int v = 0; v < pair_vectors; v++) {
            value[v] = load(from + v * W) * scale;
            int half = v / block_vectors, at = v % block_vectors * W, left = columns.count[half] - at;
            if (!task.bias || left <= 0) continue;
            const float* bias = task.bias + columns.first[half] + at;
            value[v] = value[v] + (left >= W ? load(bias) : load(bias, left));
        }
        int outputs = pair_vectors;
        if (task.gated) {
            outputs = block_vectors;
            for (int v = 0; v < block_vectors; v++) value[v] = activation(task.activation, value[v]) * value[v + block_vectors];
        }
        for (int v = 0; v < outputs; v++) {
            int half = v / block_vectors, at = v % block_vectors * W, left = columns.count[half] - at;
            if (left <= 0) continue;
            int64_t column = columns.first[half] + at;
            if (residual) value[v] = value[v] + (left >= W ? load(residual + column) : load(residual + column, left));
            if (left >= W)
                store(to + column, value[v]);
            else
                store(to + column, value[v], left);
        }
    }
}

// ---- packed weights, few tokens: they pass through registers once

AWQ_INLINE int64_t block_bytes(const LinearTask& task) {
    return task.in / task.group * (header_bytes(task.scales) + task.group * (task.type == WeightType::q8 ? 16 : 8));
}
AWQ_INLINE int64_t block_count(const LinearTask& task) {
    int64_t rows = task.gate_up ? task.out / 2 : task.out, blocks = (rows + block_rows - 1) / block_rows;
    return task.gate_up ? 2 * blocks : blocks;
}

// Vectors of rows that go through the columns together: all of a block's where there are registers for it.
constexpr int small_vectors = block_vectors < 2 ? block_vectors : 2;

template <int bits, int step, int N>
AWQ_INLINE void run_step(const I (&words)[small_vectors][bits / 4], const Value* const (&x)[N], int64_t k,
                         Sum (&sums)[small_vectors][N]) {
    Weights w[small_vectors];
    for (int v = 0; v < small_vectors; v++) w[v] = weights<bits, step>(words[v]);
    for (int n = 0; n < N; n++) {
        auto value = broadcast(x[n] + k + step_columns * step);
        for (int v = 0; v < small_vectors; v++) sums[v][n] = multiply_add(w[v], value, sums[v][n]);
    }
}

template <int bits, int N>
void small_block(const LinearTask& task, const uint8_t* block, int64_t first, float* sums, int64_t stride) {
    // Several independent sums hide the latency of the multiply-adds where there are few tokens.
    constexpr int chains = N == 1 ? 4 / small_vectors : N == 2 ? 2 / small_vectors : 1;
    const Value* x[N];
    for (int n = 0; n < N; n++) x[n] = static_cast<const Value*>(task.x) + (first + n) * task.x_stride;
    const int64_t groups = task.in / task.group;
    const int header = header_bytes(task.scales);
    for (int lane = 0; lane < block_rows; lane += small_vectors * W) {
        F total[small_vectors][N];
        for (int v = 0; v < small_vectors; v++)
            for (int n = 0; n < N; n++) total[v][n] = zero();
        const uint8_t* p = block;
        for (int64_t g = 0; g < groups; g++) {
            const uint8_t* scales = p;
            p += header;
            Sum part[chains][small_vectors][N];
            for (int c = 0; c < chains; c++)
                for (int v = 0; v < small_vectors; v++)
                    for (int n = 0; n < N; n++) part[c][v][n] = no_sum();
            int64_t k = g * task.group, end = k + task.group;
#pragma GCC unroll 2
            for (; k < end; k += 8, p += 16 * bits) {
                I words[small_vectors][bits / 4];
                for (int w = 0; w < bits / 4; w++) {
                    for (int v = 0; v < small_vectors; v++) words[v][w] = load_int(p + 64 * w + (lane + v * W) * 4);
                    prefetch(p + 64 * w + ahead_bytes);
                }
                run_step<bits, 0>(words, x, k, part[0]);
                run_step<bits, 1>(words, x, k, part[1 % chains]);
                if constexpr (run_steps > 2) {
                    run_step<bits, 2>(words, x, k, part[2 % chains]);
                    run_step<bits, 3>(words, x, k, part[3 % chains]);
                }
                if constexpr (run_steps > 4) {
                    run_step<bits, 4>(words, x, k, part[0]);
                    run_step<bits, 5>(words, x, k, part[1 % chains]);
                    run_step<bits, 6>(words, x, k, part[2 % chains]);
                    run_step<bits, 7>(words, x, k, part[3 % chains]);
                }
            }
            for (int v = 0; v < small_vectors; v++) {
                F scale, offset;
                load_scales<bits>(task.scales, scales, lane + v * W, scale, offset);
                for (int n = 0; n < N; n++) {
                    Sum all = part[0][v][n];
                    if constexpr (chains == 2) all = plus(all, part[1][v][n]);
                    if constexpr (chains == 4) all = plus(plus(all, part[1][v][n]), plus(part[2][v][n], part[3][v][n]));
                    total[v][n] = fma(scale, finish(all), fma(offset, set1(task.x_sums[(first + n) * groups + g]), total[v][n]));
                }
            }
        }
        for (int v = 0; v < small_vectors; v++)
            for (int n = 0; n < N; n++) store(sums + n * stride + lane + v * W, total[v][n]);
    }
}

template <int bits>
AWQ_INLINE void small_blocks(const LinearTask& task, const uint8_t* block, int64_t first, int tokens, float* sums,
                             int64_t stride) {
    switch (tokens) {
        case 1: return small_block<bits, 1>(task, block, first, sums, stride);
        case 2: return small_block<bits, 2>(task, block, first, sums, stride);
        case 3: return small_block<bits, 3>(task, block, first, sums, stride);
        case 4: return small_block<bits, 4>(task, block, first, sums, stride);
        case 5: return small_block<bits, 5>(task, block, first, sums, stride);
        default: return small_block<bits, 6>(task, block, first, sums, stride);
    }
}

template <int bits>
void packed_small(const LinearTask& task, int64_t pair, int64_t first, int64_t last) {
    const uint8_t* block = static_cast<const uint8_t*>(task.weight) + 2 * pair * block_bytes(task);
    const bool both = 2 * pair + 1 < block_count(task);
    float sums[most_small * pair_rows];
    for (int64_t t = first; t < last; t += most_small) {
        int n = static_cast<int>(last - t < most_small ? last - t : most_small);
        small_blocks<bits>(task, block, t, n, sums, pair_rows);
        if (both)
            small_blocks<bits>(task, block + block_bytes(task), t, n, sums + block_rows, pair_rows);
        else
            for (int i = 0; i < n; i++)
                for (int r = block_rows; r < pair_rows; r++) sums[i * pair_rows + r] = 0;
        put_pair(task, pair, t, n, sums, pair_rows);
    }
}

// ---- packed weights, many tokens: a chunk of a pair of blocks is unpacked once, then multiplied with tile after tile of tokens

typedef int32_t Lane;  // a row's weights of one step

// lanes [step][32 rows], scales and offsets [group][scale, offset][32 rows]
template <int bits>
void unpack_block(const LinearTask& task, const uint8_t* block, int half, int64_t group_first, int64_t group_last, Lane* lanes,
                  float* scales) {
    const int header = header_bytes(task.scales);
    const uint8_t* p = block + group_first * (header + task.group * bits * 2);
    for (int64_t g = group_first; g < group_last; g++, scales += 2 * pair_rows) {
        for (int v = 0; v < block_vectors; v++) {
            F scale, offset;
            load_scales<bits>(task.scales, p, v * W, scale, offset);
            store(scales + half * block_rows + v * W, scale);
            store(scales + pair_rows + half * block_rows + v * W, offset);
        }
        p += header;
        for (int c = 0; c < task.group; c += 8, p += 16 * bits, lanes += run_steps * pair_rows) {
            for (int v = 0; v < block_vectors; v++) {
                I words[bits / 4];
                for (int w = 0; w < bits / 4; w++) words[w] = load_int(p + 64 * w + v * W * 4);
                Lane* to = lanes + half * block_rows + v * W;
                auto put = [&](int step, Weights w) { __builtin_memcpy(to + step * pair_rows, &w, sizeof w); };
                put(0, weights<bits, 0>(words)), put(1, weights<bits, 1>(words));
                if constexpr (run_steps > 2) put(2, weights<bits, 2>(words)), put(3, weights<bits, 3>(words));
                if constexpr (run_steps > 4) {
                    put(4, weights<bits, 4>(words)), put(5, weights<bits, 5>(words));
                    put(6, weights<bits, 6>(words)), put(7, weights<bits, 7>(words));
                }
            }
        }
    }
}

// N tokens x 2 vectors of rows over `groups` groups; x: the first token's first column; sums [tokens][32] are added to.
template <int N>
void tile_kernel(const Lane* lanes, const float* scales, int64_t groups, int group, const Value* x, int64_t x_stride,
                 const float* x_sums, int64_t sums_stride, float* sums) {
    F total[N][2];
    for (int n = 0; n < N; n++)
        for (int v = 0; v < 2; v++) total[n][v] = load(sums + n * pair_rows + v * W);
    for (int64_t g = 0; g < groups; g++, scales += 2 * pair_rows) {
        Sum part[N][2];
        for (int n = 0; n < N; n++) part[n][0] = part[n][1] = no_sum();
#pragma GCC unroll 4
        for (int c = 0; c < group; c += step_columns, lanes += pair_rows, x += step_columns) {
            Weights w0, w1;
            __builtin_memcpy(&w0, lanes, sizeof w0);
            __builtin_memcpy(&w1, lanes + W, sizeof w1);
            for (int n = 0; n < N; n++) {
                auto value = broadcast(x + n * x_stride);
                part[n][0] = multiply_add(w0, value, part[n][0]);
                part[n][1] = multiply_add(w1, value, part[n][1]);
            }
        }
        F scale0 = load(scales), scale1 = load(scales + W), offset0 = load(scales + pair_rows),
          offset1 = load(scales + pair_rows + W);
        for (int n = 0; n < N; n++) {
            F sum = set1(x_sums[n * sums_stride + g]);
            total[n][0] = fma(scale0, finish(part[n][0]), fma(offset0, sum, total[n][0]));
            total[n][1] = fma(scale1, finish(part[n][1]), fma(offset1, sum, total[n][1]));
        }
    }
    for (int n = 0; n < N; n++)
        for (int v = 0; v < 2; v++) store(sums + n * pair_rows + v * W, total[n][v]);
}

template <int bits>
void packed_large(const LinearTask& task, int64_t pair, int64_t first, int64_t last, void* scratch) {
    Lane* lanes = static_cast<Lane*>(scratch);
    float* scales = reinterpret_cast<float*>(lanes + chunk_columns / step_columns * pair_rows);
    float* sums = scales + chunk_columns / 8 * 2 * pair_rows;
    const int64_t groups = task.in / task.group, per_chunk = chunk_columns / task.group;
    const uint8_t* block = static_cast<const uint8_t*>(task.weight) + 2 * pair * block_bytes(task);
    const bool both = 2 * pair + 1 < block_count(task);
    for (int64_t i = 0; i < (last - first) * pair_rows; i++) sums[i] = 0;
    for (int64_t g = 0; g < groups; g += per_chunk) {
        int64_t end = g + per_chunk < groups ? g + per_chunk : groups;
        unpack_block<bits>(task, block, 0, g, end, lanes, scales);
        if (both)
            unpack_block<bits>(task, block + block_bytes(task), 1, g, end, lanes, scales);
        else
            for (int64_t i = 0; i < (end - g) * 2; i++)  // no such rows: whatever lies there counts nothing
                for (int r = block_rows; r < pair_rows; r++) scales[i * pair_rows + r] = 0;
        for (int64_t t = first; t < last; t += tile) {
            const Value* x = static_cast<const Value*>(task.x) + t * task.x_stride + g * task.group;
            const float* x_sums = task.x_sums + t * groups + g;
            int n = static_cast<int>(last - t < tile ? last - t : tile);
            for (int r = 0; r < pair_rows; r += 2 * W) {
                float* to = sums + (t - first) * pair_rows + r;
                const Lane* w = lanes + r;
                switch (n) {
                    case 1: tile_kernel<1>(w, scales + r, end - g, task.group, x, task.x_stride, x_sums, groups, to); break;
                    case 2: tile_kernel<2>(w, scales + r, end - g, task.group, x, task.x_stride, x_sums, groups, to); break;
                    case 3: tile_kernel<3>(w, scales + r, end - g, task.group, x, task.x_stride, x_sums, groups, to); break;
#if defined(__AVX512F__) || defined(AWQ_DOT8)
                    case 4: tile_kernel<4>(w, scales + r, end - g, task.group, x, task.x_stride, x_sums, groups, to); break;
                    case 5: tile_kernel<5>(w, scales + r, end - g, task.group, x, task.x_stride, x_sums, groups, to); break;
                    case 6: tile_kernel<6>(w, scales + r, end - g, task.group, x, task.x_stride, x_sums, groups, to); break;
#endif
                }
            }
        }
    }
    put_pair(task, pair, first, static_cast<int>(last - first), sums, pair_rows);
}

// ---- dense rows: vectors along the columns

template <WeightType type>
AWQ_INLINE F load_weight(const void* row, int64_t k) {
    if constexpr (type == WeightType::f32)
        return load(static_cast<const float*>(row) + k);
    else if constexpr (type == WeightType::f16)
        return load_half(static_cast<const uint16_t*>(row) + k);
    else
        return load_bf16(static_cast<const uint16_t*>(row) + k);
}
// The last columns of a row, fewer than a vector.
template <WeightType type>
AWQ_INLINE F load_rest(const void* row, int64_t k, int n) {
    if constexpr (type == WeightType::f32) return load(static_cast<const float*>(row) + k, n);
    uint16_t rest[W] = {};
    __builtin_memcpy(rest, static_cast<const uint16_t*>(row) + k, static_cast<size_t>(n) * 2);
    return load_weight<type>(rest, 0);
}

// N tokens x R rows that lie row_bytes apart; sums[n * stride + r]
template <WeightType type, int N, int R>
void dense_tile(const char* rows, int64_t row_bytes, int64_t in, const float* x, int64_t x_stride, float* sums, int64_t stride) {
    // A row at a time is one stream of memory, which is asked for ahead, a line at a time. Several save loads of x where there
    // are many tokens. One row, one token: as many sums side by side as read 32 bytes in the time of a multiply-add. More would
    // run into memory that is still on its way, and that costs more than it gains (docs/experiments.md).
    constexpr int chains = N * R == 1 ? 16 / W : N * R <= 4 ? 2 : 1, element = type == WeightType::f32 ? 4 : 2;
    constexpr int line = 64 / element, steps = R == 1 && line / W > chains ? line / W : chains;
    const int64_t ahead = (ahead_bytes + row_bytes - 1) / row_bytes * row_bytes;  // whole rows
    F part[chains][N][R];
    for (int c = 0; c < chains; c++)
        for (int n = 0; n < N; n++)
            for (int r = 0; r < R; r++) part[c][n][r] = zero();
    int64_t k = 0;
    for (; k + steps * W <= in; k += steps * W)
        for (int c = 0; c < steps; c++) {
            F w[R];
            for (int r = 0; r < R; r++) {
                w[r] = load_weight<type>(rows + r * row_bytes, k + c * W);
                if (R == 1 && c * W % line == 0) prefetch_second(rows + (k + c * W) * element + ahead);
            }
            for (int n = 0; n < N; n++) {
                F value = load(x + n * x_stride + k + c * W);
                for (int r = 0; r < R; r++) part[c % chains][n][r] = fma(w[r], value, part[c % chains][n][r]);
            }
        }
    for (; k < in; k += W) {
        int left = in - k < W ? static_cast<int>(in - k) : W;
        for (int r = 0; r < R; r++) {
            F w = left == W ? load_weight<type>(rows + r * row_bytes, k) : load_rest<type>(rows + r * row_bytes, k, left);
            for (int n = 0; n < N; n++)
                part[0][n][r] = fma(w, left == W ? load(x + n * x_stride + k) : load(x + n * x_stride + k, left), part[0][n][r]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int r = 0; r < R; r++) {
            F all = part[0][n][r];
            if constexpr (chains == 2) all = all + part[1][n][r];
            if constexpr (chains == 4) all = (all + part[1][n][r]) + (part[2][n][r] + part[3][n][r]);
            sums[n * stride + r] = sum(all);
        }
}

template <WeightType type, int N>
AWQ_INLINE void dense_rows(const char* rows, int64_t row_bytes, int count, const LinearTask& task, int64_t first, float* sums) {
    const float* x = static_cast<const float*>(task.x) + first * task.x_stride;
    int r = 0;
    for (; N > 2 && r + 4 <= count; r += 4)
        dense_tile<type, N, 4>(rows + r * row_bytes, row_bytes, task.in, x, task.x_stride, sums + r, pair_rows);
    for (; r < count; r++)
        dense_tile<type, N, 1>(rows + r * row_bytes, row_bytes, task.in, x, task.x_stride, sums + r, pair_rows);
}

template <WeightType type>
void dense_pair(const LinearTask& task, int64_t pair, int64_t first, int64_t last) {
    const int64_t row_bytes = task.in * (type == WeightType::f32 ? 4 : 2);
    const Columns columns = columns_of(task, pair);
    float sums[tile * pair_rows];
    for (int i = 0; i < tile * pair_rows; i++) sums[i] = 0;
    for (int64_t t = first; t < last; t += tile) {
        int n = static_cast<int>(last - t < tile ? last - t : tile);
        for (int half = 0; half < 2; half++) {
            const char* rows = static_cast<const char*>(task.weight) + columns.first[half] * row_bytes;
            float* to = sums + half * block_rows;
            switch (n) {
                case 1: dense_rows<type, 1>(rows, row_bytes, columns.count[half], task, t, to); break;
                case 2: dense_rows<type, 2>(rows, row_bytes, columns.count[half], task, t, to); break;
                case 3: dense_rows<type, 3>(rows, row_bytes, columns.count[half], task, t, to); break;
#if defined(__AVX512F__) || defined(AWQ_DOT8)
                case 4: dense_rows<type, 4>(rows, row_bytes, columns.count[half], task, t, to); break;
                case 5: dense_rows<type, 5>(rows, row_bytes, columns.count[half], task, t, to); break;
                case 6: dense_rows<type, 6>(rows, row_bytes, columns.count[half], task, t, to); break;
#endif
            }
        }
        put_pair(task, pair, t, n, sums, pair_rows);
    }
}

AWQ_INLINE void dense(const LinearTask& task, int64_t pair, int64_t first, int64_t last) {
    switch (task.type) {
        case WeightType::f16: return dense_pair<WeightType::f16>(task, pair, first, last);
        case WeightType::bf16: return dense_pair<WeightType::bf16>(task, pair, first, last);
        default: return dense_pair<WeightType::f32>(task, pair, first, last);
    }
}

}  // namespace

void linear_small(const LinearTask& task, int64_t pair, int64_t first, int64_t last) {
    switch (task.type) {
        case WeightType::q4: return packed_small<4>(task, pair, first, last);
        case WeightType::q8: return packed_small<8>(task, pair, first, last);
        default: return dense(task, pair, first, last);
    }
}

void linear_large(const LinearTask& task, int64_t pair, int64_t first, int64_t last, void* scratch) {
    switch (task.type) {
        case WeightType::q4: return packed_large<4>(task, pair, first, last, scratch);
        case WeightType::q8: return packed_large<8>(task, pair, first, last, scratch);
        default: return dense(task, pair, first, last);
    }
}

}  // namespace awq::cpu::AWQ_ISA
