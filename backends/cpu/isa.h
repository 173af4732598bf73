// The instruction sets this program has kernels for, the best first, and which of them this machine can run.
#pragma once
#include <span>
#include "backends/cpu/kernels.h"

namespace awq::cpu {

struct IsaEntry {
    const Isa* table;
    bool (*supported)();
};
std::span<const IsaEntry> isas();

}  // namespace awq::cpu
