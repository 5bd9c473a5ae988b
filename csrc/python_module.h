// The few declarations of CPython that a module needs.  They are part of its stable ABI
// since 3.2, so the package also builds where Python's headers are not installed, and
// one build serves every version.  (Free-threaded builds have another object layout.)
#pragma once

#include <cstdint>

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
int Py_IsInitialized();
int PyGILState_Ensure();
void PyGILState_Release(int state);

}  // extern "C"

namespace fedclip {

constexpr int kNoArguments = 0x0004;  // METH_NOARGS
constexpr int kStableAbi = 3;         // PYTHON_ABI_VERSION

// Called from PyInit_<name>; `methods` may be null.
inline PyObject* make_module(const char* name, const char* doc, PyMethodDef* methods) {
    static PyModuleDef definition = {};
    definition.object.refcount = 1;
    definition.name = name;
    definition.doc = doc;
    definition.size = -1;  // no state per interpreter
    definition.methods = methods;
    return PyModule_Create2(&definition, kStableAbi);
}

}  // namespace fedclip
