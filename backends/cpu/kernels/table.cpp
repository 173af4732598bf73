// The table of one instruction set.
#include "backends/cpu/kernels/functions.h"

#define AWQ_TEXT_(x) #x
#define AWQ_TEXT(x) AWQ_TEXT_(x)

namespace awq::cpu::AWQ_ISA {

extern const Isa table;
const Isa table = {
    AWQ_TEXT(AWQ_ISA),
    value_bytes,
    tile_tokens,
    pack_row,
    linear_small,
    linear_large,
    linear_scratch,
    large_tokens,
    attention,
    attention_join,
    kv_store,
    rms_norm,
    layer_norm,
    activate,
    gated,
    add,
    scale,
    softcap,
    mix,
    widen,
    narrow,
    rope,
    finite,
    read,
};

}  // namespace awq::cpu::AWQ_ISA
