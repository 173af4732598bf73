// Activation functions on vectors. Included by kernel files only.
#pragma once
#include "backends/cpu/kernels/simd.h"

namespace awq::cpu::AWQ_ISA {

// As awq::Activation, whose header holds code; backends/cpu/linear.cpp checks that both agree.
enum : int32_t { act_none, act_silu, act_gelu, act_gelu_tanh, act_quick_gelu, act_relu };

AWQ_INLINE F tanh(F x) { return set1(1) - set1(2) / (exp(x + x) + set1(1)); }

// Abramowitz and Stegun 7.1.26: within 1.5e-7 everywhere.
AWQ_INLINE F erf(F x) {
    F magnitude = max(x, zero() - x);
    F t = set1(1) / fma(magnitude, set1(0.3275911f), set1(1));
    F p = fma(t, set1(1.061405429f), set1(-1.453152027f));
    p = fma(p, t, set1(1.421413741f));
    p = fma(p, t, set1(-0.284496736f));
    p = fma(p, t, set1(0.254829592f));
    F value = set1(1) - p * t * exp(zero() - x * x);
    return from_bits(add_int(bits(value), and_int(bits(x), set1_int(INT32_MIN))));  // value >= 0: sets the sign
}

AWQ_INLINE F sigmoid_times(F x, F argument) { return x / (set1(1) + exp(zero() - argument)); }

AWQ_INLINE F activation(int32_t kind, F x) {
    switch (kind) {
        case act_silu: return sigmoid_times(x, x);
        case act_gelu: return set1(0.5f) * x * (set1(1) + erf(x * set1(0.70710678f)));
        // 0.5 x (1 + tanh(y)) = x / (1 + e^(-2 y)), y = sqrt(2 / pi) (x + 0.044715 x^3)
        case act_gelu_tanh: return sigmoid_times(x, set1(1.59576912f) * (x + set1(0.044715f) * x * x * x));
        case act_quick_gelu: return sigmoid_times(x, set1(1.702f) * x);
        case act_relu: return max(zero(), x);
        default: return x;
    }
}

}  // namespace awq::cpu::AWQ_ISA
