// Which vector instructions the kernels may use.
//
// Files named *_avx2.cpp, *_avx512.cpp and *_avx512bf16.cpp are compiled for that
// instruction set (see setup.py), and only on x86-64.  Such a file must include no
// header that defines inline functions (the standard library, torch): the linker keeps
// one copy of an inline function for the whole module, and it could be the one with
// instructions that this processor lacks.  Declare plain functions on pointers and
// sizes there, and call them from a file without a suffix, behind `isa()`.
#pragma once

// The best instruction set that is built, by its place in `Isa`; see setup.py.
#if !defined(__x86_64__)
#undef FEDCLIP_BEST_ISA
#define FEDCLIP_BEST_ISA 0
#elif !defined(FEDCLIP_BEST_ISA)
#define FEDCLIP_BEST_ISA 3
#endif

namespace fedclip::cpu {

enum class Isa { generic, avx2, avx512, avx512bf16 };

// The best that this processor and its operating system offer, of those built.
Isa isa_detected();

// The one in use: the one detected, or a lesser one that FEDCLIP_ISA names.  Read once.
Isa isa();

// Whether FEDCLIP_ISA names one.
bool isa_requested();

const char* isa_name(Isa isa);

}  // namespace fedclip::cpu
