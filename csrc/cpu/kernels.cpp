#include "cpu/kernels.h"

#include "cpu/isa.h"

namespace fedclip::cpu {

const Kernels& kernels() {
    switch (isa()) {
#if FEDCLIP_BEST_ISA >= 3
        case Isa::avx512bf16:
            return kernels_avx512bf16;
#endif
#if FEDCLIP_BEST_ISA >= 2
        case Isa::avx512:
            return kernels_avx512;
#endif
#if FEDCLIP_BEST_ISA >= 1
        case Isa::avx2:
            return kernels_avx2;
#endif
        default:
            return kernels_generic;
    }
}

}  // namespace fedclip::cpu
