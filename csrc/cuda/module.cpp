// The Python module fedclip_plugin._C_cuda.  Importing it registers the CUDA kernels,
// also where there is no GPU; the module itself is empty.
#include <pybind11/pybind11.h>

#include "register.h"

STABLE_TORCH_LIBRARY_IMPL(fedclip, CUDA, m) {
    FEDCLIP_IMPL_PRODUCTS(m);
    FEDCLIP_IMPL_MEANS(m);
}

PYBIND11_MODULE(_C_cuda, m) { m.doc() = "CUDA kernels of fedclip_plugin."; }
