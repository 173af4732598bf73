// The kernels of one instruction set, as its table (kernels/table.cpp) names them. What each does is said in kernels.h.
#pragma once
#include "backends/cpu/kernels/simd.h"

namespace awq::cpu::AWQ_ISA {

extern const int32_t value_bytes, tile_tokens, large_tokens;
extern const size_t linear_scratch;
void pack_row(const float* x, int64_t in, int32_t group, void* values, float* scale, float* sums);
void linear_small(const LinearTask& task, int64_t pair, int64_t first, int64_t last);
void linear_large(const LinearTask& task, int64_t pair, int64_t first, int64_t last, void* scratch);

void attention(const AttentionTask& task, const AttentionItem& item, void* scratch);
void attention_join(const float* partial, int64_t part_stride, int32_t parts, int32_t head_dim, int32_t head_pad, float* out);
void kv_store(const float* k, const float* v, int32_t heads, int32_t head_dim, int32_t head_pad, uint16_t* k_page,
              size_t head_stride, int32_t slot);

void rms_norm(const float* x, const float* weight, int64_t width, float eps, bool plus_one, float* out);
void layer_norm(const float* x, const float* weight, const float* bias, int64_t width, float eps, float* out);
void activate(int32_t activation, const float* x, const float* divisor, int64_t count, float* out);
void gated(int32_t activation, const float* gate, const float* up, int64_t count, float* out);
void add(const float* a, const float* b, int64_t count, float* out);
void scale(const float* a, float factor, int64_t count, float* out);
void softcap(const float* a, float cap, int64_t count, float* out);
void mix(float* sum, const float* x, float factor, int64_t count);
void widen(WeightType type, const void* from, int64_t count, float factor, float* to);
void narrow(WeightType type, const float* from, int64_t count, void* to);
void rope(const float* x, const float* cos_sin, int32_t heads, int32_t head_dim, int32_t rot_dim, bool interleaved, float* out);
bool finite(const float* x, int64_t count);
uint64_t read(const void* data, size_t bytes);

}  // namespace awq::cpu::AWQ_ISA
