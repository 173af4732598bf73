// Barriers in shared memory that count arrivals and bytes, and the bulk copies that bring them (sm_90 and later).
#pragma once
#include <cstdint>

namespace awq::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_init_done() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void barrier_arrive(uint32_t bar) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t bar, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nWAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra WAIT;\n}" ::"r"(bar),
        "r"(parity)
        : "memory");
#endif
}
__device__ __forceinline__ bool barrier_passed(uint32_t bar, uint32_t parity) {
    uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred done;\nmbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
#endif
    return done;
}
__device__ __forceinline__ void barrier_expect(uint32_t bar, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
#endif
}
// Weights are read once a product: let them leave L2 first.
__device__ __forceinline__ uint64_t stream_policy() {
    uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    return policy;
}
// They are read by several blocks at about the same time.
__device__ __forceinline__ uint64_t keep_policy() {
    uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
#endif
    return policy;
}
// bytes: a multiple of 16; both addresses 16-byte aligned. Completion is counted on `bar`.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t bar, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(bar), "l"(policy)
        : "memory");
#endif
}
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t bar) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(bar)
                 : "memory");
#endif
}
// A way around a ring: the slot, and the phase in which its barrier is waited for.
struct Ring {
    int slots, slot = 0;
    uint32_t phase;
    __device__ Ring(int slots, uint32_t phase) : slots(slots), phase(phase) {}
    __device__ __forceinline__ void next() {
        if (++slot == slots) slot = 0, phase ^= 1;
    }
};
// Of a ring whose chunks arrive in `parts`, each with a barrier of its own: those on their way, in the order in which they were asked for.
struct PartsOnWay {
    int count = 0;
    int slot = 0, part = 0, phase = 0;  // of the oldest one
    // Until there are fewer than `most`. full: the ring's barriers.
    __device__ __forceinline__ void wait_below(int most, uint32_t full, int parts, int slots) {
#pragma unroll 1
        while (count >= most) {
            barrier_wait(full + 8 * (slot * parts + part), phase);
            count--;
            if (++part == parts) {
                part = 0;
                if (++slot == slots) slot = 0, phase ^= 1;
            }
        }
    }
};
// As far as L2 and no further. bytes: a multiple of 16.
__device__ __forceinline__ void bulk_prefetch(const void* from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

}  // namespace awq::cuda
