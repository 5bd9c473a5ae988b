// Four floats by the compiler's vector extension: SSE2 on x86-64, NEON on aarch64.
// vec_avx2.h and vec_avx512.h are the same interface on wider registers.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/pair.h"

namespace fedclip::cpu {

struct Generic {
#if defined(__aarch64__)
    using Reg = float32x4_t;
#else
    typedef float Reg __attribute__((vector_size(16)));
#endif
    typedef int Int __attribute__((vector_size(16)));
    static constexpr int lanes = 4;
#if defined(__aarch64__)
    static constexpr int tile_rows = 8;  // 8 x 2 accumulators of the 32 registers
#else
    static constexpr int tile_rows = 4;  // 4 x 2 accumulators of the 16 registers
#endif
    static constexpr bool adam_beside_products = false;

    FEDCLIP_INLINE static Reg zero() { return Reg{}; }
    FEDCLIP_INLINE static Reg set(float a) { return Reg{a, a, a, a}; }
    FEDCLIP_INLINE static Reg load(const float* p) {
        Reg a;
        __builtin_memcpy(&a, p, sizeof a);
        return a;
    }
    FEDCLIP_INLINE static void store(float* p, Reg a) {
        __builtin_memcpy(p, &a, sizeof a);
    }
    // The first `count` (0 to lanes) elements, then zeros; touches no others.
    FEDCLIP_INLINE static Reg load_first(const float* p, int count) {
        Reg a{};
        for (int i = 0; i < count; ++i) a[i] = p[i];
        return a;
    }
    FEDCLIP_INLINE static void store_first(float* p, Reg a, int count) {
        for (int i = 0; i < count; ++i) p[i] = a[i];
    }
    FEDCLIP_INLINE static Reg keep_first(Reg a, int count, Reg rest) {
        for (int i = count < 0 ? 0 : count; i < lanes; ++i) a[i] = rest[i];
        return a;
    }

    FEDCLIP_INLINE static Reg add(Reg a, Reg b) { return a + b; }
    FEDCLIP_INLINE static Reg sub(Reg a, Reg b) { return a - b; }
    FEDCLIP_INLINE static Reg mul(Reg a, Reg b) { return a * b; }
    FEDCLIP_INLINE static Reg div(Reg a, Reg b) { return a / b; }
#if defined(__aarch64__)
    FEDCLIP_INLINE static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
    FEDCLIP_INLINE static Reg fms(Reg a, Reg b, Reg c) { return vfmaq_f32(-c, a, b); }
    FEDCLIP_INLINE static Reg fnma(Reg a, Reg b, Reg c) { return vfmsq_f32(c, a, b); }
    FEDCLIP_INLINE static Reg sqrt(Reg a) { return vsqrtq_f32(a); }
#else
    FEDCLIP_INLINE static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
    FEDCLIP_INLINE static Reg fms(Reg a, Reg b, Reg c) { return a * b - c; }
    FEDCLIP_INLINE static Reg fnma(Reg a, Reg b, Reg c) {
        return c - a * b;
    }  // c - a b
    FEDCLIP_INLINE static Reg sqrt(Reg a) {
        FEDCLIP_UNROLL for (int i = 0; i < lanes; ++i) a[i] = __builtin_sqrtf(a[i]);
        return a;
    }
#endif
    // b where either is NaN, so that `max(bound, x)` lets a NaN in x through.
    FEDCLIP_INLINE static Reg max(Reg a, Reg b) { return a > b ? a : b; }
    FEDCLIP_INLINE static Reg min(Reg a, Reg b) { return a < b ? a : b; }
    FEDCLIP_INLINE static Reg abs(Reg a) { return copy_sign(a, zero()); }
    FEDCLIP_INLINE static Reg round(Reg a) {  // to the nearest integer, for |a| < 2^22
        const Reg shift = set(12582912.f);
        return (a + shift) - shift;
    }
    // a 2^n for whole n, in two steps: 2^n may be subnormal.
    FEDCLIP_INLINE static Reg scale(Reg a, Reg n) {
        const Int whole = __builtin_convertvector(n, Int);
        const Int half = whole >> 1;
        return a * (Reg)((half + 127) << 23) * (Reg)((whole - half + 127) << 23);
    }
    FEDCLIP_INLINE static Reg copy_sign(Reg a, Reg sign) {
        const Int bit = {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
        return (Reg)(((Int)a & ~bit) | ((Int)sign & bit));
    }
    FEDCLIP_INLINE static Reg if_less(Reg a, Reg b, Reg yes, Reg no) {
        return a < b ? yes : no;
    }
    FEDCLIP_INLINE static float sum(Reg a) { return (a[0] + a[2]) + (a[1] + a[3]); }
    FEDCLIP_INLINE static float largest(Reg a) {
        float best = a[0];
        for (int i = 1; i < lanes; ++i) best = best > a[i] ? best : a[i];
        return best;
    }

    // Bfloat16 numbers in pairs; their products are summed in float.
    typedef unsigned Pairs __attribute__((vector_size(16)));
    FEDCLIP_INLINE static Pairs load(const Pair* p) {
        Pairs a;
        __builtin_memcpy(&a, p, sizeof a);
        return a;
    }
    FEDCLIP_INLINE static void store(Pair* p, Pairs a) {
        __builtin_memcpy(p, &a, sizeof a);
    }
    FEDCLIP_INLINE static Pairs set(Pair a) {
        return Pairs{a.bits, a.bits, a.bits, a.bits};
    }
    FEDCLIP_INLINE static Reg fma(Pairs a, Pairs b,
                                  Reg c) {  // c + a's and b's two products
        c = fma((Reg)(a << 16), (Reg)(b << 16), c);
        return fma((Reg)(a & 0xffff0000u), (Reg)(b & 0xffff0000u), c);
    }
    // To the nearest bfloat16, ties to even, in the upper halves; a NaN stays a NaN.
    FEDCLIP_INLINE static Pairs bfloat16_above(Reg a) {
        const Pairs bits = (Pairs)a, near = bits + (bits >> 16 & 1) + 0x7fff;
        return a == a ? near : (bits | 0x00400000);
    }
    FEDCLIP_INLINE static Pairs pair(Reg low, Reg high) {
        return bfloat16_above(low) >> 16 | (bfloat16_above(high) & 0xffff0000u);
    }
    FEDCLIP_INLINE static void store_halves(Pair* p,
                                            Reg a) {  // neighbours become pairs
        const Pairs bits = bfloat16_above(a);
        p[0].bits = bits[0] >> 16 | (bits[1] & 0xffff0000u);
        p[1].bits = bits[2] >> 16 | (bits[3] & 0xffff0000u);
    }

    FEDCLIP_INLINE static Reg from_int8(const signed char* p) {
#if defined(__aarch64__)
        int bits;
        __builtin_memcpy(&bits, p, sizeof bits);
        const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(bits));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
#elif defined(__SSE2__)
        int bits;
        __builtin_memcpy(&bits, p, sizeof bits);
        // Each byte four times over: shifted down, the last one keeps its sign.
        const __m128i one = _mm_cvtsi32_si128(bits), two = _mm_unpacklo_epi8(one, one);
        return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(two, two), 24));
#else
        return Reg{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
    }
    FEDCLIP_INLINE static void add_to(double* total, Reg a) {
        FEDCLIP_UNROLL for (int i = 0; i < lanes; ++i) total[i] += a[i];
    }
    FEDCLIP_INLINE static void store_doubles(double* p, Reg a) {
        FEDCLIP_UNROLL for (int i = 0; i < lanes; ++i) p[i] = a[i];
    }
    FEDCLIP_INLINE static Reg from_double(const double* p) {
        return Reg{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
    }

    // to[i * to_row + j] = from[j * from_row + i] for lanes x lanes elements.
    FEDCLIP_INLINE static void transpose(const float* from, std::int64_t from_row,
                                         float* to, std::int64_t to_row) {
        Reg r[4];
        FEDCLIP_UNROLL for (int j = 0; j < 4; ++j) r[j] = load(from + j * from_row);
        FEDCLIP_UNROLL for (int i = 0; i < 4; ++i) {
            store(to + i * to_row, Reg{r[0][i], r[1][i], r[2][i], r[3][i]});
        }
    }
};

}  // namespace fedclip::cpu
