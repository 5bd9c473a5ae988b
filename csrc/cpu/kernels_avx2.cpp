#include "cpu/kernels_of.h"
#include "cpu/vec_avx2.h"

namespace fedclip::cpu {

const Kernels kernels_avx2 = kernels_of<Avx2>();

}  // namespace fedclip::cpu
