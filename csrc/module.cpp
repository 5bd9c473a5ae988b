// The Python module fedclip_plugin._C.  Importing it registers the operators' kernels
// (ops.cpp, by static initialisation); the module itself only tells the ISA.
//
// No Python.h: the few declarations below are part of CPython's stable ABI since 3.2,
// so the package also builds where Python's headers are not installed, and one build
// serves every version.  (Free-threaded builds have another object layout.)
#include <cstdint>

#include "cpu/isa.h"

extern "C" {

struct PyObject {
    std::intptr_t refcount;
    void* type;
};

using PyFunction = PyObject* (*)(PyObject* self, PyObject* args);

struct PyMethodDef {
    const char* name;
    PyFunction function;
    int flags;
    const char* doc;
};

struct PyModuleDef {
    PyObject object;
    void* init;
    std::intptr_t index;
    PyObject* copy;
    const char* name;
    const char* doc;
    std::intptr_t size;
    PyMethodDef* methods;
    void *slots, *traverse, *clear, *free;
};

PyObject* PyModule_Create2(PyModuleDef* definition, int api_version);
PyObject* PyUnicode_FromString(const char* text);

}  // extern "C"

namespace {

constexpr int kNoArguments = 0x0004;  // METH_NOARGS
constexpr int kStableAbi = 3;         // PYTHON_ABI_VERSION

PyObject* isa_detected(PyObject*, PyObject*) {
    return PyUnicode_FromString(fedclip::isa_name(fedclip::isa_detected()));
}

PyObject* isa(PyObject*, PyObject*) {
    return PyUnicode_FromString(fedclip::isa_name(fedclip::isa()));
}

PyMethodDef methods[] = {
    {"isa_detected", isa_detected, kNoArguments, "The best ISA of this processor."},
    {"isa", isa, kNoArguments, "The ISA in use, see FEDCLIP_ISA."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
    static PyModuleDef definition = {};
    definition.object.refcount = 1;
    definition.name = "_C";
    definition.doc = "CPU kernels of fedclip_plugin.";
    definition.size = -1;  // no state per interpreter
    definition.methods = methods;
    return PyModule_Create2(&definition, kStableAbi);
}
