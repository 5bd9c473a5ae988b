// The Python module fedclip_plugin._C.  Importing it registers the operators' kernels
// (ops.cpp, by static initialisation); the module itself only tells the ISA.
#include "python_module.h"

#include "cpu/isa.h"

namespace {

PyObject* isa_detected(PyObject*, PyObject*) {
    return PyUnicode_FromString(fedclip::isa_name(fedclip::isa_detected()));
}

PyObject* isa(PyObject*, PyObject*) {
    return PyUnicode_FromString(fedclip::isa_name(fedclip::isa()));
}

PyMethodDef methods[] = {
    {"isa_detected", isa_detected, fedclip::kNoArguments,
     "The best ISA of this processor."},
    {"isa", isa, fedclip::kNoArguments, "The ISA in use, see FEDCLIP_ISA."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
    return fedclip::make_module("_C", "CPU kernels of fedclip_plugin.", methods);
}
