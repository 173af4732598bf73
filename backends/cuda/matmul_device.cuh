// Device-side vocabulary of the matrix kernels: barriers, copies, fragments, the int4 dequantiser, and the way from an
// accumulator fragment to rows of y. Not for other kernels' host code.
#pragma once
#include <cuda_fp16.h>
#include <cstdint>
#include "backends/cuda/bulk_copy.cuh"
#include "backends/cuda/pack_q4.h"
#include "backends/cuda/warp.cuh"
#include "core/graph.h"

namespace awq::cuda {

// ---- dependent launch
__device__ __forceinline__ void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- asynchronous 16-byte copies (sm_80): the first `bytes` bytes are read, the rest is zero
__device__ __forceinline__ void copy16(uint32_t to, const void* from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- loads
__device__ __forceinline__ uint4 load_stream(const void* p, uint64_t policy) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(policy));
    return v;
}
__device__ __forceinline__ uint4 load_shared16(uint32_t at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ uint2 load_shared8(uint32_t at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ uint32_t load_shared4(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ uint32_t load_shared2(uint32_t at) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory");
    return v;
}
// Activations written by the kernel before: past L1, which is not coherent.
__device__ __forceinline__ half load_activation(const half* p) {
    return __ushort_as_half(__ldcg(reinterpret_cast<const unsigned short*>(p)));
}

// Eight columns of x of which `left` exist, one by one; the others are zero.
__device__ __forceinline__ void copy_each(uint8_t* to, const half* from, int left) {
    half* h = reinterpret_cast<half*>(to);
    for (int i = 0; i < 8; i++) h[i] = i < left ? load_activation(from + i) : __float2half(0.0f);
}
// A tile of 64 columns (128 bytes) a row: 16-byte pieces exchanged by row so that ldmatrix meets no bank twice.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }

// What another CTA has told with a release.
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void store_release(uint32_t* p, uint32_t v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Waits until another CTA has raised the flag, and lowers it for the next kernel.
__device__ __forceinline__ void take_flag(uint32_t* flag) {
    while (load_acquire(flag) == 0) {
    }
    *flag = 0;
}

// Until `count` CTAs have come here, by one thread of each: it sees what the others wrote before.
__device__ __forceinline__ void meet_others(uint32_t* counter, uint32_t count) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    while (load_acquire(counter) < count) {
    }
}

// ---- fragments
__device__ __forceinline__ void add(float* d, const float4& v) { d[0] += v.x, d[1] += v.y, d[2] += v.z, d[3] += v.w; }
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ uint32_t transpose8x8(uint32_t a) {
    uint32_t d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}
// d (16 rows x 8 tokens) += a (16 x 16) b (16 x 8)
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ half2 as_half2(uint32_t bits) { return *reinterpret_cast<half2*>(&bits); }
__device__ __forceinline__ uint32_t as_bits(half2 h) { return *reinterpret_cast<uint32_t*>(&h); }
__device__ __forceinline__ uint32_t pack_half2(float a, float b) { return as_bits(__floats2half2_rn(a, b)); }

// The power of two that brings a warp's values into halves' range, and its inverse. most: a lane's largest, without its sign.
__device__ __forceinline__ float into_half_range(float most, float& inverse) {
    const uint32_t exponent = max(__reduce_max_sync(~0u, __float_as_uint(most)) >> 23, 15u);
    inverse = __uint_as_float((exponent - 14) << 23);
    return __uint_as_float((268 - exponent) << 23);
}

// The word of a span that is a k16 step's, counted from any multiple of 4.
__device__ __forceinline__ uint32_t word_of(const uint4& span, int step) {
    return step % 4 == 0 ? span.x : step % 4 == 1 ? span.y : step % 4 == 2 ? span.z : span.w;
}

// ---- int4 to half. A word of a unit holds one k16 step (pack_q4.h); the nibbles under `mask` become 1024 + q (low
// nibble of a byte) or 1024 + 16 q (high nibble), exactly.
template <uint32_t Mask>
__device__ __forceinline__ half2 magic(uint32_t word) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, 0x64006400, 0xea;" : "=r"(d) : "r"(word), "n"(Mask));
    return as_half2(d);
}
// Scale and zero of the two rows a thread holds (slots g and g + 8) in one group, ready for dequantize().
template <bool IntegerZeros>
struct GroupMeta {
    half2 scale0, scale1;
    half2 zero0, zero1;      // 1024 + z and -(64 + z): the zero point with the magic number's bias
    half2 offset0, offset1;  // not IntegerZeros: added after the scale
    // scales: {slot g, slot g + 8}; zeros: two bytes or two halves in the same order
    __device__ __forceinline__ void set(uint32_t scales, uint32_t zeros) {
        scale0 = __low2half2(as_half2(scales));
        scale1 = __high2half2(as_half2(scales));
        if constexpr (IntegerZeros) {
            zero0 = as_half2(0x64006400u | __byte_perm(zeros, 0, 0x4040));
            // -(64 + z), z <= 16: steps of 1/16 in this binade, so z goes to bit 4
            zero1 = as_half2(0xd400d400u | __byte_perm(zeros, 0, 0x4141) << 4);
        } else {
            zero0 = as_half2(0x64006400u);
            zero1 = as_half2(0xd400d400u);
            offset0 = __low2half2(as_half2(zeros));
            offset1 = __high2half2(as_half2(zeros));
        }
    }
};
// What GroupMeta is made of, for the lanes of slots g and g + 8: group `group` of `groups`, whose scales begin at `at` in shared memory, with the
// zeros behind them.
template <bool IntegerZeros>
__device__ __forceinline__ void load_group(uint32_t at, int groups, int group, int g, uint32_t& scales, uint32_t& zeros) {
    scales = load_shared4(at + group * 32 + g * 4);
    zeros = IntegerZeros ? load_shared2(at + groups * 32 + group * 16 + g * 2) : load_shared4(at + groups * 32 + group * 32 + g * 4);
}
// The nibbles of one k16 step as an A fragment, masked and no more. As a half's bits they are q * 2^-24 (slot g) or q * 2^-20 (slot g + 8),
// subnormal and exact; the powers of two come back with the scale, and the zero point leaves with the group's sum of x.
__device__ __forceinline__ void raw_nibbles(uint32_t (&a)[4], uint32_t word) {
    a[0] = word & 0x000f000f, a[1] = word & 0x00f000f0, a[2] = word >> 8 & 0x000f000f, a[3] = word >> 8 & 0x00f000f0;
}
struct RawGroup {
    float2 scale;
    float zero0, zero1;
    __device__ __forceinline__ RawGroup(uint32_t scales, uint32_t zeros) {
        scale = __half22float2(as_half2(scales));
        zero0 = __uint_as_float(0x4b000000u | (zeros & 0xff)) - 8388608.0f;  // integers up to 2^23 stand in a float's last bits
        zero1 = __uint_as_float(0x4b000000u | zeros >> 8) - 8388608.0f;
    }
    // Element i of the fragment's true value. d: of the product with raw nibbles; x_sum: of this token's x over the group; times: a power of two.
    __device__ __forceinline__ float value(int i, float d, float x_sum, float times = 1.0f) const {
        return (i < 2 ? scale.x : scale.y) * times * (d * (i < 2 ? 16777216.0f : 1048576.0f) - (i < 2 ? zero0 : zero1) * x_sum);
    }
};
// q - z of one k16 step of a 16-row tile, as an A fragment; exact.
__device__ __forceinline__ void subtract_zero(uint32_t (&a)[4], uint32_t word, const GroupMeta<true>& m) {
    const half2 sixteenth = as_half2(0x2c002c00u);
    const uint32_t next = word >> 8;
    a[0] = as_bits(__hsub2(magic<0x000f000f>(word), m.zero0));
    a[1] = as_bits(__hfma2(magic<0x00f000f0>(word), sixteenth, m.zero1));
    a[2] = as_bits(__hsub2(magic<0x000f000f>(next), m.zero0));
    a[3] = as_bits(__hfma2(magic<0x00f000f0>(next), sixteenth, m.zero1));
}
// One k16 step of a 16-row tile as an A fragment: (q - z) is exact, times the scale rounds once; with an offset
// q * scale + offset rounds once.
template <bool IntegerZeros>
__device__ __forceinline__ void dequantize(uint32_t (&a)[4], uint32_t word, const GroupMeta<IntegerZeros>& m) {
    const half2 sixteenth = as_half2(0x2c002c00u);
    uint32_t next = word >> 8;
    half2 d0 = __hsub2(magic<0x000f000f>(word), m.zero0), d1 = __hfma2(magic<0x00f000f0>(word), sixteenth, m.zero1);
    half2 d2 = __hsub2(magic<0x000f000f>(next), m.zero0), d3 = __hfma2(magic<0x00f000f0>(next), sixteenth, m.zero1);
    if constexpr (IntegerZeros) {
        a[0] = as_bits(__hmul2(d0, m.scale0));
        a[1] = as_bits(__hmul2(d1, m.scale1));
        a[2] = as_bits(__hmul2(d2, m.scale0));
        a[3] = as_bits(__hmul2(d3, m.scale1));
    } else {
        a[0] = as_bits(__hfma2(d0, m.scale0, m.offset0));
        a[1] = as_bits(__hfma2(d1, m.scale1, m.offset1));
        a[2] = as_bits(__hfma2(d2, m.scale0, m.offset0));
        a[3] = as_bits(__hfma2(d3, m.scale1, m.offset1));
    }
}

// ---- from accumulators to y
// The row of y in a slot of a tile that is not gated (pack_q4.h).
__device__ __forceinline__ int slot_row(int tile, int slot) {
    return tile * tile_rows + 4 * ((slot & 7) >> 1) + (slot & 1) + (slot < 8 ? 0 : 2);
}

__device__ __forceinline__ float activate(Activation activation, float v) {
    switch (activation) {
        case Activation::silu: return v / (1.0f + __expf(-v));
        case Activation::gelu: return 0.5f * v * (1.0f + erff(v * 0.70710678f));
        case Activation::gelu_tanh: {
            float u = 0.79788456f * (v + 0.044715f * v * v * v);
            return v / (1.0f + __expf(-2.0f * u));
        }
        case Activation::quick_gelu: return v / (1.0f + __expf(-1.702f * v));
        case Activation::relu: return fmaxf(v, 0.0f);
        default: return v;
    }
}

// Where a product goes; the same for all kernels.
struct Output {
    half* y = nullptr;
    float* y32 = nullptr;
    const half* residual = nullptr;
    const float* bias = nullptr;
    int64_t ldy = 0, ld_residual = 0;
    int rows = 0;  // tokens
    int out = 0;   // rows of W
    bool gated = false;
    bool wide = false;  // y and residual may be accessed 8 bytes (gated: 4 bytes) at a time
    Activation activation = Activation::none;
};

// Four halves at row `row` of one token, columns column .. column + 3 of y, the last `out - column` of which exist.
__device__ __forceinline__ void store4(const Output& o, int64_t token, int column, float4 v) {
    if (column >= o.out) return;
    half* y = o.y + token * o.ldy + column;
    const half* r = o.residual ? o.residual + token * o.ld_residual + column : nullptr;
    if (o.wide && column + 4 <= o.out) {
        if (r) {
            uint2 bits = __ldcg(reinterpret_cast<const uint2*>(r));
            float2 a = __half22float2(as_half2(bits.x)), b = __half22float2(as_half2(bits.y));
            v.x += a.x, v.y += a.y, v.z += b.x, v.w += b.y;
        }
        *reinterpret_cast<uint2*>(y) = make_uint2(pack_half2(v.x, v.y), pack_half2(v.z, v.w));
        return;
    }
    float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (column + i < o.out) y[i] = __float2half(values[i] + (r ? __half2float(load_activation(r + i)) : 0.0f));
}
// Two halves of y, no residual; `limit`: columns that exist in this half of y.
__device__ __forceinline__ void store2(const Output& o, int64_t token, int column, int limit, half* y, half2 v) {
    if (column >= limit) return;
    y += token * o.ldy + column;
    if (o.wide && column + 2 <= limit) {
        *reinterpret_cast<half2*>(y) = v;
        return;
    }
    y[0] = __low2half(v);
    if (column + 1 < limit) y[1] = __high2half(v);
}

// An accumulator fragment of a 16-slot tile and 8 tokens (d[0], d[1]: slot g, tokens 2t, 2t + 1; d[2], d[3]: slot g + 8)
// to y, in the slot order of pack_q4.h. first_token: of the 8. Rounded to half before the residual is added.
__device__ __forceinline__ void store_fragment(const Output& o, int64_t tile, int64_t first_token, const float (&d)[4]) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    int64_t token = first_token + g;
    bool valid = token < o.rows;
    if (o.gated) {
        int channels = o.out / 2, channel = static_cast<int>(tile) * 8 + 2 * t;
        if (o.activation != Activation::none) {
            uint32_t v = transpose8x8(pack_half2(activate(o.activation, d[0]) * d[2], activate(o.activation, d[1]) * d[3]));
            if (valid) store2(o, token, channel, channels, o.y, as_half2(v));
        } else {
            uint32_t gate = transpose8x8(pack_half2(d[0], d[1])), up = transpose8x8(pack_half2(d[2], d[3]));
            if (valid) {
                store2(o, token, channel, channels, o.y, as_half2(gate));
                store2(o, token, channel, channels, o.y + channels, as_half2(up));
            }
        }
        return;
    }
    float b0 = 0, b1 = 0;
    if (o.bias) {
        int row = static_cast<int>(tile) * 16 + 4 * (g >> 1) + (g & 1);
        b0 = row < o.out ? __ldg(o.bias + row) : 0.0f;
        b1 = row + 2 < o.out ? __ldg(o.bias + row + 2) : 0.0f;
    }
    if (o.y32) {
        int row = static_cast<int>(tile) * 16 + 4 * (g >> 1) + (g & 1);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int64_t to_token = first_token + 2 * t + (i & 1);
            int to_row = row + (i >> 1) * 2;
            if (to_token < o.rows && to_row < o.out) o.y32[to_token * o.ldy + to_row] = d[i] + (i < 2 ? b0 : b1);
        }
        return;
    }
    uint32_t low = transpose8x8(pack_half2(d[0] + b0, d[1] + b0)), high = transpose8x8(pack_half2(d[2] + b1, d[3] + b1));
    if (valid) {
        float2 a = __half22float2(as_half2(low)), b = __half22float2(as_half2(high));
        store4(o, token, static_cast<int>(tile) * 16 + 4 * t, make_float4(a.x, a.y, b.x, b.y));
    }
}

}  // namespace awq::cuda
