// What the kernels ask of the compiler.  An instruction-set file may include this one.
#pragma once

#include <cstdint>

// Kernels are templates on the vector type; inlining them keeps accumulators in
// registers, and leaves no shared copy of a function for the linker to choose from.
#define FEDCLIP_INLINE __attribute__((always_inline)) inline
#if defined(__clang__)
#define FEDCLIP_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FEDCLIP_UNROLL _Pragma("GCC unroll 16")
#endif

namespace fedclip::cpu {

// Into all caches, or only into the outer ones.  A hint: any address will do.
FEDCLIP_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
FEDCLIP_INLINE void prefetch_outer(const void* p) { __builtin_prefetch(p, 0, 2); }
FEDCLIP_INLINE void prefetch_to_write(void* p) { __builtin_prefetch(p, 1, 3); }

}  // namespace fedclip::cpu
