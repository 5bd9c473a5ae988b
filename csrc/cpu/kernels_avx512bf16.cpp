#include "cpu/kernels_of.h"
#include "cpu/vec_avx512bf16.h"

namespace fedclip::cpu {

const Kernels kernels_avx512bf16 = kernels_of<Avx512Bf16>();

}  // namespace fedclip::cpu
