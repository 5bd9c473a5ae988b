// The Python module fedclip_plugin._C_cuda.  Importing it registers the CUDA kernels,
// also where there is no GPU; the module itself tells which GPUs they can serve.
#include <pybind11/pybind11.h>

#include "register.h"

STABLE_TORCH_LIBRARY_IMPL(fedclip, CUDA, m) {
    FEDCLIP_IMPL_PRODUCTS(m);
    FEDCLIP_IMPL_LISTS(m);
}

PYBIND11_MODULE(_C_cuda, m) {
    m.doc() = "CUDA kernels of fedclip_plugin.";
    m.def("refusal", &fedclip::gpu::refusal,
          "Why the kernels cannot run on a device index; empty where they can.");
}
