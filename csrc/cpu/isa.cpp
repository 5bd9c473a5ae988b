#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace fedclip::cpu {

namespace {

Isa isa_of_processor() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
    }
    if (avx2) return Isa::avx2;
#endif
    return Isa::generic;
}

}  // namespace

Isa isa_detected() {
    return std::min(isa_of_processor(), static_cast<Isa>(FEDCLIP_BEST_ISA));
}

bool isa_requested() {
    const char* name = std::getenv("FEDCLIP_ISA");
    return name && *name;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512bf16:
            return "avx512bf16";
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "generic";
    }
}

Isa isa() {
    static const Isa chosen = [] {
        const char* asked = std::getenv("FEDCLIP_ISA");  // checked by ops/kernels.py
        const Isa detected = isa_detected();
        for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
            if (asked && std::string_view(asked) == isa_name(isa)) {
                return std::min(isa, detected);
            }
        }
        return detected;
    }();
    return chosen;
}

}  // namespace fedclip::cpu
