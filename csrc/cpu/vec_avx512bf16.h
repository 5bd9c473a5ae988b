// AVX-512 with the bfloat16 instructions: a pair of products in one, its sum in float32
// (which takes subnormal numbers for zeros).
#pragma once

#include "cpu/vec_avx512.h"

namespace fedclip::cpu {

struct Avx512Bf16 : Avx512 {
    using Avx512::fma;
    using Avx512::store;
    FEDCLIP_INLINE static Reg fma(Pairs a, Pairs b, Reg c) {
        return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
    }
    FEDCLIP_INLINE static Pairs pair(Reg low, Reg high) {
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        const __m512i turns =
            _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                             8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return _mm512_permutexvar_epi16(turns, halves);
    }
    FEDCLIP_INLINE static void store_halves(Pair* p, Reg a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            (__m256i)_mm512_cvtneps_pbh(a));
    }
};

}  // namespace fedclip::cpu
