// Which experts a token goes to, and the order by expert: what comes before a mixture's products. And all of it for one token.
#pragma once
#include "backends/cuda/matmul.h"

namespace awq::cuda {

inline constexpr int max_experts = 1024, max_top_k = 32;
inline constexpr int max_routed = 256;  // experts of a router that route() multiplies with

// What routing writes, in device memory. A choice is a (token, k) pair, number token * top_k + k.
struct Routing {
    int32_t* expert_of = nullptr;  // [choices]
    float* share = nullptr;        // [choices]
    int32_t* place = nullptr;      // [choices]: sorted row of each choice
    int32_t* begin = nullptr;      // [experts + 1]: first sorted row of each expert
    int32_t* expert = nullptr;     // [choices]: expert of each sorted row
    int32_t* source = nullptr;     // [choices]: token of each sorted row
};
struct RouteArgs {
    int tokens = 0, experts = 0, top_k = 0;
    bool renormalize = false;
    // The logits, [tokens][experts]; or null, and the rest says how they come about: router times rms_norm(x).
    const half* logits = nullptr;
    int64_t ld_logits = 0;
    const half* x = nullptr;  // [tokens][in], row t at x + t * ldx
    int64_t ldx = 0;
    const half* router = nullptr;  // [experts][dense_pitch(in)]
    const float* norm = nullptr;   // [in]
    float eps = 0;
    bool plus_one = false;
    int in = 0;
    half* normed = nullptr;  // [tokens][in], 16-byte aligned: written, for the experts
};
// Whether route() can multiply with a router of this size: its rows of x must fit into shared memory.
bool route_fits(int64_t experts, int64_t in);
cudaError_t route(const MatmulContext& context, const RouteArgs& args, const Routing& to);

// All experts of a single token: y = residual + sum over `count` experts of share * (act(gate x) * up x) down.
struct TokenExperts {
    const int32_t* expert = nullptr;  // [count], in device memory as all the rest
    const float* share = nullptr;     // [count]
    int count = 0;
    const half* x = nullptr;         // [gate_up.in]
    half* hidden = nullptr;          // scratch, [count][down.in]
    half* y = nullptr;               // [down.out]
    const half* residual = nullptr;  // or null; may be y
    Activation activation = Activation::silu;
};
bool token_experts_fit(const MatmulDevice& device, const Q4Weight& gate_up, const Q4Weight& down, int count);
// Whether that kernel can route as well: then x, expert and share stay null, and the route's x is its x.
bool token_router_fits(const MatmulDevice& device, const Q4Weight& gate_up, const Q4Weight& down, const RouteArgs& route);
cudaError_t token_experts_q4(const MatmulContext& context, const Q4Weight& gate_up, const Q4Weight& down,
                             const TokenExperts& token, const RouteArgs* route);

}  // namespace awq::cuda
