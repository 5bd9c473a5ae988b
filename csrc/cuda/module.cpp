// The Python module fedclip_plugin._C_cuda.  Importing it registers the CUDA kernels,
// also where there is no GPU; the module itself is empty.
#include "python_module.h"
#include "register.h"

FEDCLIP_REGISTER(CUDA)

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda() {
    return fedclip::make_module("_C_cuda", "CUDA kernels of fedclip_plugin.", nullptr);
}
