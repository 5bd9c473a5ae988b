#include "cpu/kernels_of.h"
#include "cpu/vec_generic.h"

namespace fedclip {

const Kernels kernels_generic = kernels_of<Generic>();

}  // namespace fedclip
