#include "cpu/kernels.h"

#include "cpu/isa.h"

namespace fedclip {

const Kernels& kernels() {
    switch (isa()) {
#if defined(__x86_64__)
        case Isa::avx512bf16:
            return kernels_avx512bf16;
        case Isa::avx512:
            return kernels_avx512;
        case Isa::avx2:
            return kernels_avx2;
#endif
        default:
            return kernels_generic;
    }
}

}  // namespace fedclip
