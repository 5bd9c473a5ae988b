#include "cpu/kernels_of.h"
#include "cpu/vec_avx512.h"

namespace fedclip::cpu {

const Kernels kernels_avx512 = kernels_of<Avx512>();

}  // namespace fedclip::cpu
