// Vectors of floats, as wide as the instruction set has them, and the few operations that kernels need. Arithmetic is
// the compiler's own (a + b, a * b); what it cannot spell is here. Included by kernel files only.
//
//   F   W floats        I   W 32-bit integers, also seen as 2 W 16-bit ones by dot(), 4 W 8-bit ones by dot_bytes()
//
// scalar (and NEON but for what is said below) is the compiler's generic vector of four, for machines unknown.
#pragma once
#include <cstdint>
#include "backends/cpu/kernels.h"
#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 warns of its own header's undefined vectors
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace awq::cpu::AWQ_ISA {

#define AWQ_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

constexpr int W = 16;
typedef __m512 F;
typedef __m512i I;
AWQ_INLINE F set1(float a) { return _mm512_set1_ps(a); }
AWQ_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
AWQ_INLINE F load(const float* p, int n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p); }  // n < W
AWQ_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a); }
AWQ_INLINE void store(float* p, F a, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a); }
AWQ_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
AWQ_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
AWQ_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
AWQ_INLINE float sum(F a) { return _mm512_reduce_add_ps(a); }
AWQ_INLINE float highest(F a) { return _mm512_reduce_max_ps(a); }
AWQ_INLINE F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
AWQ_INLINE F load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
AWQ_INLINE void store_half(uint16_t* p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, 0)); }
AWQ_INLINE I bits(F a) { return _mm512_castps_si512(a); }
AWQ_INLINE F from_bits(I a) { return _mm512_castsi512_ps(a); }
AWQ_INLINE I set1_int(int32_t a) { return _mm512_set1_epi32(a); }
AWQ_INLINE I load_int(const void* p) { return _mm512_loadu_si512(p); }
AWQ_INLINE void store_int(void* p, I a) { _mm512_storeu_si512(p, a); }
AWQ_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
AWQ_INLINE I and_int(I a, I b) { return _mm512_and_si512(a, b); }
AWQ_INLINE I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
// Not _mm512_reduce_add_epi32: its last addition is one of plain ints, which must not overflow, and NaN quantizes to INT_MIN.
AWQ_INLINE int32_t sum_int(I a) {
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
}
AWQ_INLINE int32_t highest_int(I a) { return _mm512_reduce_max_epi32(a); }
template <int n>
AWQ_INLINE I shift_left(I a) {
    return _mm512_slli_epi32(a, n);
}
template <int n>
AWQ_INLINE I shift_right(I a) {
    return _mm512_srli_epi32(a, n);
}
AWQ_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
AWQ_INLINE I round_int(F a) { return _mm512_cvtps_epi32(a); }
#define AWQ_DOT16 1
// acc[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] over 16-bit integers
AWQ_INLINE I dot(I acc, I a, I b) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(acc, a, b);
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
}
AWQ_INLINE void store_int16(int16_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(a)); }

#elif defined(__AVX2__)

constexpr int W = 8;
typedef __m256 F;
typedef __m256i I;
AWQ_INLINE __m256i lanes_below(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
AWQ_INLINE F set1(float a) { return _mm256_set1_ps(a); }
AWQ_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
AWQ_INLINE F load(const float* p, int n) { return _mm256_maskload_ps(p, lanes_below(n)); }
AWQ_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a); }
AWQ_INLINE void store(float* p, F a, int n) { _mm256_maskstore_ps(p, lanes_below(n), a); }
AWQ_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
AWQ_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
AWQ_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
AWQ_INLINE float sum(F a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
AWQ_INLINE float highest(F a) {
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
AWQ_INLINE F load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
AWQ_INLINE F load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
AWQ_INLINE void store_half(uint16_t* p, F a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, 0)); }
AWQ_INLINE I bits(F a) { return _mm256_castps_si256(a); }
AWQ_INLINE F from_bits(I a) { return _mm256_castsi256_ps(a); }
AWQ_INLINE I set1_int(int32_t a) { return _mm256_set1_epi32(a); }
AWQ_INLINE I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
AWQ_INLINE void store_int(void* p, I a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
AWQ_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
AWQ_INLINE I and_int(I a, I b) { return _mm256_and_si256(a, b); }
AWQ_INLINE I max_int(I a, I b) { return _mm256_max_epi32(a, b); }
AWQ_INLINE int32_t sum_int(I a) {
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
AWQ_INLINE int32_t highest_int(I a) {
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
template <int n>
AWQ_INLINE I shift_left(I a) {
    return _mm256_slli_epi32(a, n);
}
template <int n>
AWQ_INLINE I shift_right(I a) {
    return _mm256_srli_epi32(a, n);
}
AWQ_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
AWQ_INLINE I round_int(F a) { return _mm256_cvtps_epi32(a); }
#define AWQ_DOT16 1
AWQ_INLINE I dot(I acc, I a, I b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
AWQ_INLINE void store_int16(int16_t* p, I a) {
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, a), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

#else

constexpr int W = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
AWQ_INLINE F set1(float a) { return F{a, a, a, a}; }
AWQ_INLINE F load(const float* p) {
    F a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}
AWQ_INLINE F load(const float* p, int n) {
    F a = {};
    for (int i = 0; i < W && i < n; i++) a[i] = p[i];    // n < W: said here, or gcc warns of what it takes n for
    return a;
}
AWQ_INLINE void store(float* p, F a) { __builtin_memcpy(p, &a, sizeof a); }
AWQ_INLINE void store(float* p, F a, int n) {
    for (int i = 0; i < n; i++) p[i] = a[i];
}
AWQ_INLINE I bits(F a) { return reinterpret_cast<I>(a); }
AWQ_INLINE F from_bits(I a) { return reinterpret_cast<F>(a); }
AWQ_INLINE F pick(I mask, F a, F b) { return from_bits((mask & bits(a)) | (~mask & bits(b))); }
#if defined(__ARM_NEON)
AWQ_INLINE F fma(F a, F b, F c) {
    return reinterpret_cast<F>(
        vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}
#else
AWQ_INLINE F fma(F a, F b, F c) { return a * b + c; }
#endif
AWQ_INLINE F max(F a, F b) { return pick(a > b, a, b); }
AWQ_INLINE F min(F a, F b) { return pick(a < b, a, b); }
AWQ_INLINE float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
AWQ_INLINE float highest(F a) {
    float b = a[0] > a[1] ? a[0] : a[1], c = a[2] > a[3] ? a[2] : a[3];
    return b > c ? b : c;
}
AWQ_INLINE I set1_int(int32_t a) { return I{a, a, a, a}; }
AWQ_INLINE I load_int(const void* p) {
    I a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}
AWQ_INLINE void store_int(void* p, I a) { __builtin_memcpy(p, &a, sizeof a); }
AWQ_INLINE I add_int(I a, I b) { return a + b; }
AWQ_INLINE I and_int(I a, I b) { return a & b; }
template <int n>
AWQ_INLINE I shift_left(I a) {
    return a << n;
}
template <int n>
AWQ_INLINE I shift_right(I a) {
    typedef uint32_t U __attribute__((vector_size(16)));
    return reinterpret_cast<I>(reinterpret_cast<U>(a) >> n);
}
AWQ_INLINE F to_float(I a) { return __builtin_convertvector(a, F); }
#if defined(__ARM_FEATURE_DOTPROD)
#define AWQ_DOT8 1
// acc[i] + the four products of bytes 4 i .. 4 i + 3 of a and b, all signed
AWQ_INLINE I dot_bytes(I acc, I a, I b) {
    return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(acc), reinterpret_cast<int8x16_t>(a), reinterpret_cast<int8x16_t>(b)));
}
AWQ_INLINE I max_int(I a, I b) { return reinterpret_cast<I>(vmaxq_s32(reinterpret_cast<int32x4_t>(a), reinterpret_cast<int32x4_t>(b))); }
AWQ_INLINE int32_t highest_int(I a) { return vmaxvq_s32(reinterpret_cast<int32x4_t>(a)); }
AWQ_INLINE int32_t sum_int(I a) { return vaddvq_s32(reinterpret_cast<int32x4_t>(a)); }
AWQ_INLINE I round_int(F a) { return reinterpret_cast<I>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(a))); }
template <int n>
AWQ_INLINE I shift_right_signed(I a) {
    return a >> n;
}
#endif
AWQ_INLINE I load_uint16(const uint16_t* p) { return I{p[0], p[1], p[2], p[3]}; }
#if defined(__ARM_NEON)
AWQ_INLINE F load_half(const uint16_t* p) { return reinterpret_cast<F>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))); }
AWQ_INLINE void store_half(uint16_t* p, F a) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(a))));
}
#else
// Exponent and mantissa moved into place and multiplied by 2^112: right for subnormals too; infinities and NaN are put right.
AWQ_INLINE F load_half(const uint16_t* p) {
    I h = load_uint16(p), magnitude = h & 0x7fff;
    F value = from_bits(magnitude << 13) * set1(0x1p112f);
    I special = magnitude > 0x7bff;
    return from_bits(bits(value) | (special & 0x7f800000) | (h & 0x8000) << 16);
}
AWQ_INLINE uint16_t to_half(float a) {
    uint32_t wide;
    __builtin_memcpy(&wide, &a, 4);
    uint32_t sign = wide >> 16 & 0x8000, magnitude = wide & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded units of 2^-24 in the low bits
        float shifted;
        __builtin_memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        uint32_t low;
        __builtin_memcpy(&low, &shifted, 4);
        return static_cast<uint16_t>(sign | (low - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
}
AWQ_INLINE void store_half(uint16_t* p, F a) {
    for (int i = 0; i < W; i++) p[i] = to_half(a[i]);
}
#endif
AWQ_INLINE F load_bf16(const uint16_t* p) { return from_bits(load_uint16(p) << 16); }

#endif

AWQ_INLINE F zero() { return set1(0); }
// Into the first-level cache, or the second only; which of the two is faster, measurements say (docs/experiments.md). They never
// fault, whatever the address.
AWQ_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
AWQ_INLINE void prefetch_second(const void* p) { __builtin_prefetch(p, 0, 2); }

// e^x to about 2 units in the last place; 0 below -87.3, 2^127 and more above 88.
AWQ_INLINE F exp(F x) {
    F clamped = min(set1(88.3f), max(set1(-87.3f), x));              // in this order NaN stays NaN
    F shifted = fma(clamped, set1(1.44269504f), set1(12582912.0f));  // 1.5 * 2^23: n = round(x / ln 2) in the low bits
    F n = shifted - set1(12582912.0f);
    F r = fma(n, set1(-0.693145752f), clamped);  // ln 2 in two pieces
    r = fma(n, set1(-1.42860677e-6f), r);
    F p = fma(r, set1(1.0f / 5040), set1(1.0f / 720));
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    F power = from_bits(add_int(shift_left<23>(bits(shifted)), set1_int(0x3f800000)));
    return p * power;
}

}  // namespace awq::cpu::AWQ_ISA
