// The oracle: every op in plain scalar float code, one thread, weights as float32 rows. What these functions compute is
// the definition of the ops; other backends are held against them. Not fast, and not meant to become so.
#pragma once
#include "backends/backend.h"

namespace awq::reference {

std::span<const Kernel> table();

// Weights lie as float32 [experts][out][in], cache pages as float32 K [64][kv_heads][head_dim], then V likewise.
inline const float* rows(const Weight* weight) { return static_cast<const float*>(weight->data); }
float* cache_row(const RunArgs& run, int32_t layer, int32_t page, bool value, int32_t slot);

float activate(Activation activation, float x);

// ops.cpp
Status embed(const KernelCall&);
Status add(const KernelCall&);
Status scale(const KernelCall&);
Status softcap(const KernelCall&);
Status rms_norm(const KernelCall&);
Status layer_norm(const KernelCall&);
Status linear(const KernelCall&);
Status gather_cols(const KernelCall&);
Status act(const KernelCall&);
Status gated_act(const KernelCall&);
Status select_rows(const KernelCall&);
Status moe(const KernelCall&);
// attention.cpp
Status rope_table(const KernelCall&);
Status rope(const KernelCall&);
Status kv_append(const KernelCall&);
Status attention(const KernelCall&);
Status attention_full(const KernelCall&);
// vision.cpp
Status patches(const KernelCall&);
Status prepend_row(const KernelCall&);
Status add_table(const KernelCall&);
Status drop_first_row(const KernelCall&);
Status put_rows(const KernelCall&);

}  // namespace awq::reference
