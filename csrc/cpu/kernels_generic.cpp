#include "cpu/kernels_of.h"
#include "cpu/vec_generic.h"

namespace fedclip::cpu {

const Kernels kernels_generic = kernels_of<Generic>();

}  // namespace fedclip::cpu
