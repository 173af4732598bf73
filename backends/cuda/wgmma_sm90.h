// wgmma m64nNk16, A from registers (run_shared: from shared memory, where a kernel needs that), B from shared memory:
// d (64 rows x N tokens, float) += a b. One struct for each N.
//
// A warp's part of d: 16 slots; d[4 j .. 4 j + 3] is the mma fragment of tokens 8 j .. 8 j + 7.
#pragma once
#include <cstdint>

// The host picks the kernels of wgmma on compute capability 9.0 without asking how they were compiled: empty ones must not be built.
#if __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "compute capability 9.0 is to be compiled as 90a, for wgmma"
#endif

namespace awq::cuda {

// Operand numbers of the accumulators, ten at a time: AWQ_TEN(3) is "%30, ..., %39".
#define AWQ_TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define AWQ_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define AWQ_D16(i) AWQ_D4(i), AWQ_D4(i + 4), AWQ_D4(i + 8), AWQ_D4(i + 12)
#define AWQ_D64(i) AWQ_D16(i), AWQ_D16(i + 16), AWQ_D16(i + 32), AWQ_D16(i + 48)

template <int N>
struct Wgmma;
template <>
struct Wgmma<16> {
    static __device__ __forceinline__ void run_shared(float (&d)[8], uint64_t a, uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7},"
                     " %8, %9, 1, 1, 1, 0, 0;"
                     : AWQ_D4(0), AWQ_D4(4)
                     : "l"(a), "l"(b));
    }
};
template <>
struct Wgmma<32> {
    static __device__ __forceinline__ void run(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" AWQ_TEN() ", %10, %11, %12, %13, %14, %15},"
                     " {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
                     : AWQ_D16(0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
    static __device__ __forceinline__ void run_shared(float (&d)[16], uint64_t a, uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" AWQ_TEN() ", %10, %11, %12, %13, %14, %15},"
                     " %16, %17, 1, 1, 1, 0, 0;"
                     : AWQ_D16(0)
                     : "l"(a), "l"(b));
    }
};
template <>
struct Wgmma<64> {
    static __device__ __forceinline__ void run(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", %30, %31},"
                     " {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
                     : AWQ_D16(0), AWQ_D16(16)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
    static __device__ __forceinline__ void run_shared(float (&d)[32], uint64_t a, uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", %30, %31},"
                     " %32, %33, 1, 1, 1, 0, 0;"
                     : AWQ_D16(0), AWQ_D16(16)
                     : "l"(a), "l"(b));
    }
};
template <>
struct Wgmma<80> {
    static __device__ __forceinline__ void run(float (&d)[40], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(
                         2) ", " AWQ_TEN(3) "}, {%40, %41, %42, %43}, %44, 1, 1, 1, 0;"
                     : AWQ_D16(0), AWQ_D16(16), AWQ_D4(32), AWQ_D4(36)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<96> {
    static __device__ __forceinline__ void run(float (&d)[48], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(
                         2) ", " AWQ_TEN(3) ", %40, %41, %42, %43, %44, %45, %46, %47}, {%48, %49, %50, %51}, %52, 1, 1, 1, 0;"
                     : AWQ_D16(0), AWQ_D16(16), AWQ_D16(32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<112> {
    static __device__ __forceinline__ void run(float (&d)[56], const uint32_t (&a)[4], uint64_t b) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n112k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(
                3) ", " AWQ_TEN(4) ", %50, %51, %52, %53, %54, %55}, {%56, %57, %58, %59}, %60, 1, 1, 1, 0;"
            : AWQ_D16(0), AWQ_D16(16), AWQ_D16(32), AWQ_D4(48), AWQ_D4(52)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<128> {
    static __device__ __forceinline__ void run(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(
                3) ", " AWQ_TEN(4) ", " AWQ_TEN(5) ", %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
            : AWQ_D64(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<144> {
    static __device__ __forceinline__ void run(float (&d)[72], const uint32_t (&a)[4], uint64_t b) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n144k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(
                3) ", " AWQ_TEN(4) ", " AWQ_TEN(5) ", " AWQ_TEN(6) ", %70, %71}, {%72, %73, %74, %75}, %76, 1, 1, 1, 0;"
            : AWQ_D64(0), AWQ_D4(64), AWQ_D4(68)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<160> {
    static __device__ __forceinline__ void run(float (&d)[80], const uint32_t (&a)[4], uint64_t b) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n160k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(
                3) ", " AWQ_TEN(4) ", " AWQ_TEN(5) ", " AWQ_TEN(6) ", " AWQ_TEN(7) "}, {%80, %81, %82, %83}, %84, 1, 1, 1, 0;"
            : AWQ_D64(0), AWQ_D16(64)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<176> {
    static __device__ __forceinline__ void run(float (&d)[88], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n176k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(3) ", " AWQ_TEN(4) ", " AWQ_TEN(5) ", " AWQ_TEN(6) ", " AWQ_TEN(7) ", %80, %81, %82, %83, %84, %85, %86, %87}, {%88, %89, %90, %91}, %92, 1, 1, 1, 0;"
                     : AWQ_D64(0), AWQ_D16(64), AWQ_D4(80), AWQ_D4(84)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<192> {
    static __device__ __forceinline__ void run(float (&d)[96], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(3) ", " AWQ_TEN(4) ", " AWQ_TEN(5) ", " AWQ_TEN(6) ", " AWQ_TEN(7) ", " AWQ_TEN(8) ", %90, %91, %92, %93, %94, %95}, {%96, %97, %98, %99}, %100, 1, 1, 1, 0;"
                     : AWQ_D64(0), AWQ_D16(64), AWQ_D16(80)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<224> {
    static __device__ __forceinline__ void run(float (&d)[112], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n224k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(3)
                     ", " AWQ_TEN(4) ", " AWQ_TEN(5) ", " AWQ_TEN(6) ", " AWQ_TEN(7) ", " AWQ_TEN(8) ", " AWQ_TEN(9) ", " AWQ_TEN(10)
                     ", %110, %111}, {%112, %113, %114, %115}, %116, 1, 1, 1, 0;"
                     : AWQ_D64(0), AWQ_D16(64), AWQ_D16(80), AWQ_D16(96)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <>
struct Wgmma<256> {
    static __device__ __forceinline__ void run(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" AWQ_TEN() ", " AWQ_TEN(1) ", " AWQ_TEN(2) ", " AWQ_TEN(3)
                     ", " AWQ_TEN(4) ", " AWQ_TEN(5) ", " AWQ_TEN(6) ", " AWQ_TEN(7) ", " AWQ_TEN(8) ", " AWQ_TEN(9) ", " AWQ_TEN(10)
                     ", " AWQ_TEN(11) ", %120, %121, %122, %123, %124, %125, %126, %127}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
                     : AWQ_D64(0), AWQ_D64(64)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
#undef AWQ_TEN
#undef AWQ_D4
#undef AWQ_D16
#undef AWQ_D64

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Behind a wait: the compiler is not to read or write sums before it.
template <int N>
__device__ __forceinline__ void settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// B as a K-major tile of 64 columns with the 128-byte swizzle of the tensor copy engine; `at` is 1024-byte aligned. The
// descriptor of k16 step j is this + 2 j.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t at) {
    return uint64_t{1} << 62 | uint64_t{64} << 32 | uint64_t{1} << 16 | (at >> 4 & 0x3fff);
}
// The same by a whole warp, `at` being equal in all its lanes: only so the compiler knows that, and keeps the descriptor where
// the instruction wants it, in place of moving each step's there.
__device__ __forceinline__ uint64_t uniform_descriptor(uint32_t at) { return wgmma_descriptor(__shfl_sync(~0u, at, 0)); }

}  // namespace awq::cuda
