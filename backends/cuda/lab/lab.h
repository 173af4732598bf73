// Shared by the lab programs: error checks, random int4 rows, device buffers, timing of graphs.
#pragma once
#include <cuda_runtime.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#include "backends/cuda/matmul_internal.h"
#include "core/tensor.h"

#define LAB_CHECK(call)                                                                            \
    do {                                                                                           \
        cudaError_t error_ = (call);                                                               \
        if (error_ != cudaSuccess) {                                                               \
            std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
            std::fflush(stdout);                                                                   \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (0)

namespace awq::cuda {
// The attempts at decode before the shipped kernel (decode_1_half.cu, decode_2_bytes.cu, decode_3_direct.cu).
cudaError_t decode_half_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
cudaError_t decode_bytes_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
cudaError_t decode_direct_q4(const MatmulContext& context, const Q4Weight& weight, const MatmulArgs& args);
}

namespace lab {

// What every measurement starts from. "half", "bytes" or "direct" among a program's arguments puts that attempt in decode's place.
inline awq::cuda::MatmulTuning base;
inline bool take_attempt(const char* argument) {
    const bool half = !std::strcmp(argument, "half"), bytes = !std::strcmp(argument, "bytes"), direct = !std::strcmp(argument, "direct");
    if (!half && !bytes && !direct) return false;
    base.decode = half ? awq::cuda::decode_half_q4 : bytes ? awq::cuda::decode_bytes_q4 : awq::cuda::decode_direct_q4;
    awq::cuda::tuning = base;
    return true;
}

__host__ __device__ inline uint32_t mix(uint32_t a, uint32_t b) {
    uint32_t h = a * 0x9e3779b1u ^ (b + 0x7f4a7c15u) * 0x85ebca6bu;
    h ^= h >> 15, h *= 0x2c1b3c6du, h ^= h >> 12, h *= 0x297a2d39u, h ^= h >> 15;
    return h;
}
inline float uniform(uint32_t seed, uint32_t i) { return static_cast<float>(mix(seed, i) & 0xffffff) / 16777216.0f; }
inline float exact_half(float v) { return awq::half_to_float(awq::float_to_half(v)); }

// Random int4 rows with exact halves for scales and offsets.
class RandomRows : public awq::WeightRows {
public:
    RandomRows(int64_t rows, int64_t columns, int64_t group, bool integers, uint32_t seed) : seed_(seed) {
        out = rows, in = columns, group_size = group, integer_zeros = integers;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        const int64_t groups = (in + group_size - 1) / group_size;
        for (int64_t r = 0; r < count; r++) {
            const auto row = static_cast<uint32_t>(first + r);
            for (int64_t k = 0; k < in; k += 8) {
                uint32_t h = mix(seed_ + row * 2654435761u, static_cast<uint32_t>(k));
                for (int64_t i = k; i < std::min(k + 8, in); i++, h >>= 4) q[r * in + i] = h & 15;
            }
            for (int64_t g = 0; g < groups; g++) {
                const auto at = static_cast<uint32_t>(g);
                float s = exact_half((0.5f + uniform(seed_ + 1 + row * 31, at)) / (6.5f * std::sqrt(static_cast<float>(in))));
                float z = static_cast<float>(mix(seed_ + 2 + row * 37, at) % 17);
                scale[r * groups + g] = s;
                offset[r * groups + g] = integer_zeros ? -z * s : exact_half(-(z + 0.37f) * s);
            }
        }
    }
    void read_dense(int64_t, int64_t, float*) const override {}

private:
    uint32_t seed_;
};

template <class T>
T* device_alloc(size_t count) {
    void* p = nullptr;
    LAB_CHECK(cudaMalloc(&p, std::max<size_t>(count, 1) * sizeof(T)));
    return static_cast<T*>(p);
}
template <class T>
T* device_copy(const std::vector<T>& from) {
    T* p = device_alloc<T>(from.size());
    LAB_CHECK(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
inline void parallel(int64_t count, const std::function<void(int64_t, int64_t)>& work) {
    int64_t n = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 32);
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < n; i++) threads.emplace_back([=, &work] { work(count * i / n, count * (i + 1) / n); });
    for (std::thread& t : threads) t.join();
}

struct Packed {
    awq::cuda::Q4Layout layout;
    std::vector<uint8_t> bytes;
    std::vector<float> rows;  // [out][in], as the kernels see them
};
inline Packed pack(int64_t out, int64_t in, int64_t group, bool integers, bool gated, uint32_t seed) {
    awq::WeightSpec spec;
    spec.out = out, spec.in = in, spec.group_size = group, spec.integer_zeros = integers;
    spec.stack = gated ? awq::Stack::gate_up : awq::Stack::single;
    spec.member_rows = gated ? std::vector<int64_t>{out / 2, out / 2} : std::vector<int64_t>{out};
    RandomRows first(spec.member_rows[0], in, group, integers, seed), second(out / 2, in, group, integers, seed + 77);
    std::vector<const awq::WeightRows*> members = {&first};
    if (gated) members.push_back(&second);
    Packed p;
    p.layout = awq::cuda::q4_layout(spec);
    p.bytes.resize(static_cast<size_t>(p.layout.bytes()));
    p.rows.resize(static_cast<size_t>(out * in));
    parallel(p.layout.tiles(), [&](int64_t a, int64_t b) {
        awq::cuda::q4_pack(p.layout, members, a, b - a, p.bytes.data() + a * p.layout.tile_bytes());
    });
    return p;
}

}  // namespace lab
