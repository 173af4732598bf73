// How each weight lies in CUDA memory; the one place that decides it.
//
//   kind      what                                    layout
//   linear    int4, group size a multiple of 32       units of 16 x 256 (pack_q4.h)
//   linear    everything else                         float16 rows, padded to 8 columns (DenseWeight in matmul.h)
//   linear    8 bits (an output head packed at load)  the same units, twice the columns (pack_q4.h); also a table of them
//   table     embeddings, position tables             float16 rows: a tied output head reads the table in place
//   vector    norms, biases, permutations             float32
#pragma once
#include "backends/cuda/matmul.h"
#include "core/weight.h"

namespace awq::cuda {

enum class LayoutKind : uint8_t { q4, dense, vector };

struct WeightLayout {
    LayoutKind kind = LayoutKind::vector;
    Q4Layout q4;
    DenseWeight dense;
};
WeightLayout weight_layout(const WeightSpec& spec);

inline Q4Weight q4_weight(const Weight& weight, const WeightLayout& layout) {
    return {layout.q4, weight.data, static_cast<int>(weight.spec.experts)};
}
inline DenseWeight dense_weight(const Weight& weight, const WeightLayout& layout) {
    DenseWeight dense = layout.dense;
    dense.data = weight.data;
    return dense;
}

}  // namespace awq::cuda
