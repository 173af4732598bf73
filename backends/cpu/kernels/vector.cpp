// Kernels on rows of floats: norms, activations, sums, rotary embedding.
#include "backends/cpu/kernels/activation.h"
#include "backends/cpu/kernels/functions.h"

namespace awq::cpu::AWQ_ISA {

namespace {

// f(i, n): n = W, but for the last vector of a row
template <class Body>
AWQ_INLINE void each(int64_t count, Body body) {
    int64_t i = 0;
    for (; i + W <= count; i += W) body(i, W);
    if (i < count) body(i, static_cast<int>(count - i));
}
AWQ_INLINE F take(const float* p, int n) { return n == W ? load(p) : load(p, n); }
AWQ_INLINE void put(float* p, F a, int n) {
    if (n == W)
        store(p, a);
    else
        store(p, a, n);
}
AWQ_INLINE float root(float x) { return __builtin_sqrtf(x); }

}  // namespace

void rms_norm(const float* x, const float* weight, int64_t width, float eps, bool plus_one, float* out) {
    F squares[2] = {zero(), zero()};
    int64_t k = 0;
    for (; k + 2 * W <= width; k += 2 * W) {
        F a = load(x + k), b = load(x + k + W);
        squares[0] = fma(a, a, squares[0]);
        squares[1] = fma(b, b, squares[1]);
    }
    each(width - k, [&](int64_t i, int n) {
        F a = take(x + k + i, n);
        squares[0] = fma(a, a, squares[0]);
    });
    F factor = set1(1 / root(sum(squares[0] + squares[1]) / static_cast<float>(width) + eps)), extra = set1(plus_one ? 1 : 0);
    each(width, [&](int64_t i, int n) {
        F value = take(x + i, n) * factor;
        put(out + i, weight ? value * (take(weight + i, n) + extra) : value, n);
    });
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t width, float eps, float* out) {
    F total = zero();
    each(width, [&](int64_t i, int n) { total = total + take(x + i, n); });
    F mean = set1(sum(total) / static_cast<float>(width));
    // Deviations, not squares less the squared mean: that would cancel. Lanes beyond the row must not count.
    float squares = 0;
    F full = zero();
    int64_t k = 0;
    for (; k + W <= width; k += W) {
        F d = load(x + k) - mean;
        full = fma(d, d, full);
    }
    float middle;
    store(&middle, mean, 1);
    for (; k < width; k++) squares += (x[k] - middle) * (x[k] - middle);
    F factor = set1(1 / root((sum(full) + squares) / static_cast<float>(width) + eps));
    each(width, [&](int64_t i, int n) {
        F value = (take(x + i, n) - mean) * factor;
        if (weight) value = value * take(weight + i, n);
        if (bias) value = value + take(bias + i, n);
        put(out + i, value, n);
    });
}

void activate(int32_t kind, const float* x, const float* divisor, int64_t count, float* out) {
    each(count, [&](int64_t i, int n) {
        F value = activation(kind, take(x + i, n));
        put(out + i, divisor ? value / take(divisor + i, n) : value, n);
    });
}

void gated(int32_t kind, const float* gate, const float* up, int64_t count, float* out) {
    each(count, [&](int64_t i, int n) { put(out + i, activation(kind, take(gate + i, n)) * take(up + i, n), n); });
}

void add(const float* a, const float* b, int64_t count, float* out) {
    each(count, [&](int64_t i, int n) { put(out + i, take(a + i, n) + take(b + i, n), n); });
}

void scale(const float* a, float factor, int64_t count, float* out) {
    each(count, [&](int64_t i, int n) { put(out + i, take(a + i, n) * set1(factor), n); });
}

void softcap(const float* a, float cap, int64_t count, float* out) {
    each(count, [&](int64_t i, int n) { put(out + i, set1(cap) * tanh(take(a + i, n) / set1(cap)), n); });
}

void mix(float* sum, const float* x, float factor, int64_t count) {
    each(count, [&](int64_t i, int n) { put(sum + i, fma(take(x + i, n), set1(factor), take(sum + i, n)), n); });
}

void widen(WeightType type, const void* from, int64_t count, float factor, float* to) {
    if (type == WeightType::f32) return scale(static_cast<const float*>(from), factor, count, to);
    const uint16_t* half = static_cast<const uint16_t*>(from);
    each(count, [&](int64_t i, int n) {
        uint16_t rest[W] = {};
        if (n < W) __builtin_memcpy(rest, half + i, static_cast<size_t>(n) * 2);
        const uint16_t* p = n < W ? rest : half + i;
        put(to + i, (type == WeightType::f16 ? load_half(p) : load_bf16(p)) * set1(factor), n);
    });
}

void narrow(WeightType type, const float* from, int64_t count, void* to) {
    if (type == WeightType::f32) return scale(from, 1, count, static_cast<float*>(to));
    uint16_t* half = static_cast<uint16_t*>(to);
    if (type == WeightType::bf16) {
        for (int64_t i = 0; i < count; i++) {
            uint32_t wide;
            __builtin_memcpy(&wide, from + i, 4);
            const bool nan = (wide & 0x7fffffff) > 0x7f800000;
            half[i] = static_cast<uint16_t>((nan ? wide | 0x400000 : wide + 0x7fff + (wide >> 16 & 1)) >> 16);
        }
        return;
    }
    each(count, [&](int64_t i, int n) {
        uint16_t rest[W];
        store_half(n < W ? rest : half + i, take(from + i, n));
        if (n < W) __builtin_memcpy(half + i, rest, static_cast<size_t>(n) * 2);
    });
}

void rope(const float* x, const float* cos_sin, int32_t heads, int32_t head_dim, int32_t rot_dim, bool interleaved, float* out) {
    const int half = rot_dim / 2;
    const float* cosine = cos_sin;
    const float* sine = cos_sin + half;
    for (int h = 0; h < heads; h++, x += head_dim, out += head_dim) {
        if (interleaved) {
            for (int i = 0; i < half; i++) {
                float a = x[2 * i], b = x[2 * i + 1];
                out[2 * i] = a * cosine[i] - b * sine[i];
                out[2 * i + 1] = b * cosine[i] + a * sine[i];
            }
        } else {
            each(half, [&](int64_t i, int n) {
                F a = take(x + i, n), b = take(x + half + i, n), c = take(cosine + i, n), s = take(sine + i, n);
                put(out + i, a * c - b * s, n);
                put(out + half + i, b * c + a * s, n);
            });
        }
        if (out != x)
            for (int i = rot_dim; i < head_dim; i++) out[i] = x[i];
    }
}

bool finite(const float* x, int64_t count) {
    bool sound = true;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, x + i, 4);
        sound &= (bits & 0x7fffffff) < 0x7f800000;
    }
    return sound;
}

uint64_t read(const void* data, size_t bytes) {
    const char* p = static_cast<const char*>(data);
    I sums[4] = {set1_int(0), set1_int(0), set1_int(0), set1_int(0)};
    constexpr size_t step = sizeof(I);
    for (size_t i = 0; i + 4 * step <= bytes; i += 4 * step)
        for (int j = 0; j < 4; j++) sums[j] = add_int(sums[j], load_int(p + i + j * step));
    int32_t lanes[4 * W];
    for (int j = 0; j < 4; j++) store_int(lanes + j * W, sums[j]);
    uint64_t total = 0;
    for (int32_t lane : lanes) total += static_cast<uint32_t>(lane);
    return total;
}

}  // namespace awq::cpu::AWQ_ISA
