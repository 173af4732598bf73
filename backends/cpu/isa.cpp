#include "backends/cpu/isa.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace awq::cpu {

namespace scalar {
extern const Isa table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Isa table;
}
namespace avx512 {
extern const Isa table;
}
namespace avx512vnni {
extern const Isa table;
}

// __builtin_cpu_supports also asks whether the operating system saves the registers.
static bool has_f16c() {    // clang 14's builtin does not know the name
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && has_f16c();
}
static bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#elif defined(__aarch64__)
namespace neon {
extern const Isa table;
}
static bool has_neon();
#endif
static bool always() { return true; }

std::span<const IsaEntry> isas() {
    static const IsaEntry entries[] = {
#if defined(__x86_64__)
        {&avx512vnni::table, has_avx512vnni},
        {&avx512::table, has_avx512},
        {&avx2::table, has_avx2},
#elif defined(__aarch64__)
        {&neon::table, has_neon},
#endif
        {&scalar::table, always},
    };
    return entries;
}

}  // namespace awq::cpu

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
static bool awq::cpu::has_neon() {
    const unsigned long have = getauxval(AT_HWCAP), need = HWCAP_ASIMD | HWCAP_FPHP | HWCAP_ASIMDHP | HWCAP_ASIMDDP;
    return (have & need) == need;
}
#endif
