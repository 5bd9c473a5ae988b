// The Python module fedclip_plugin._C.  Importing it registers the operators' kernels
// for the CPU, by static initialisation; the module itself tells what they compute
// with.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"
#include "register.h"

namespace cpu = fedclip::cpu;

STABLE_TORCH_LIBRARY_IMPL(fedclip, CPU, m) {
    // Of four floats at a time products are slower than those of PyTorch's BLAS: there
    // they are registered only where FEDCLIP_ISA asks for them, as tests do.
    if (cpu::isa() != cpu::Isa::generic || cpu::isa_requested()) {
        FEDCLIP_IMPL_PRODUCTS(m);
        FEDCLIP_IMPL_BOXED(m, fresh_round, fedclip::boxed_fresh_round, true, true);
    }
    FEDCLIP_IMPL_LISTS(m);
}

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of fedclip_plugin.";
    m.def(
        "isa_detected", [] { return cpu::isa_name(cpu::isa_detected()); },
        "The best instruction set of this processor.");
    m.def(
        "isa", [] { return cpu::isa_name(cpu::isa()); },
        "The instruction set in use, see FEDCLIP_ISA.");
    m.def("threads", &torch::stable::get_num_threads,
          "The threads that share the work.");
}
