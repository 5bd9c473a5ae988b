// Sixteen floats in an AVX-512 register.  See vec_generic.h for what each one does.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)  // false alarms in GCC 12's own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "cpu/pair.h"

namespace fedclip::cpu {

struct Avx512 {
    using Reg = __m512;
    static constexpr int lanes = 16;
    static constexpr int tile_rows = 8;  // 8 x 2 accumulators of the 32 registers
    static constexpr bool adam_beside_products = true;

    FEDCLIP_INLINE static Reg zero() { return _mm512_setzero_ps(); }
    FEDCLIP_INLINE static Reg set(float a) { return _mm512_set1_ps(a); }
    FEDCLIP_INLINE static Reg load(const float* p) { return _mm512_loadu_ps(p); }
    FEDCLIP_INLINE static void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
    FEDCLIP_INLINE static __mmask16 first(int count) {
        return static_cast<__mmask16>((1u << count) - 1);
    }
    FEDCLIP_INLINE static Reg load_first(const float* p, int count) {
        return _mm512_maskz_loadu_ps(first(count), p);
    }
    FEDCLIP_INLINE static void store_first(float* p, Reg a, int count) {
        _mm512_mask_storeu_ps(p, first(count), a);
    }
    FEDCLIP_INLINE static Reg keep_first(Reg a, int count, Reg rest) {
        return _mm512_mask_blend_ps(first(count), rest, a);
    }

    FEDCLIP_INLINE static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
    FEDCLIP_INLINE static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
    FEDCLIP_INLINE static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
    FEDCLIP_INLINE static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
    FEDCLIP_INLINE static Reg fma(Reg a, Reg b, Reg c) {
        return _mm512_fmadd_ps(a, b, c);
    }
    FEDCLIP_INLINE static Reg fms(Reg a, Reg b, Reg c) {
        return _mm512_fmsub_ps(a, b, c);
    }
    FEDCLIP_INLINE static Reg fnma(Reg a, Reg b, Reg c) {
        return _mm512_fnmadd_ps(a, b, c);
    }
    FEDCLIP_INLINE static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
    FEDCLIP_INLINE static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
    FEDCLIP_INLINE static Reg sqrt(Reg a) { return _mm512_sqrt_ps(a); }
    FEDCLIP_INLINE static Reg abs(Reg a) { return _mm512_abs_ps(a); }
    FEDCLIP_INLINE static Reg round(Reg a) { return _mm512_roundscale_ps(a, 0); }
    FEDCLIP_INLINE static Reg scale(Reg a, Reg n) { return _mm512_scalef_ps(a, n); }
    FEDCLIP_INLINE static Reg copy_sign(Reg a, Reg sign) {
        const Reg bit = _mm512_set1_ps(-0.f);
        return _mm512_or_ps(_mm512_andnot_ps(bit, a), _mm512_and_ps(bit, sign));
    }
    FEDCLIP_INLINE static Reg if_less(Reg a, Reg b, Reg yes, Reg no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
    }
    FEDCLIP_INLINE static float sum(Reg a) { return _mm512_reduce_add_ps(a); }
    FEDCLIP_INLINE static float largest(Reg a) { return _mm512_reduce_max_ps(a); }

    using Pairs = __m512i;
    FEDCLIP_INLINE static Pairs load(const Pair* p) { return _mm512_loadu_si512(p); }
    FEDCLIP_INLINE static void store(Pair* p, Pairs a) { _mm512_storeu_si512(p, a); }
    FEDCLIP_INLINE static Pairs set(Pair a) { return _mm512_set1_epi32(int(a.bits)); }
    FEDCLIP_INLINE static Reg fma(Pairs a, Pairs b, Reg c) {
        const __m512i high = _mm512_set1_epi32(int(0xffff0000u));
        c = fma(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), c);
        return fma(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                   _mm512_castsi512_ps(_mm512_and_si512(b, high)), c);
    }
    FEDCLIP_INLINE static __m512i bfloat16_above(Reg a) {  // in the upper halves
        const __m512i bits = _mm512_castps_si512(a);
        const __m512i odd =
            _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i near =
            _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
        return _mm512_mask_or_epi32(near, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), bits,
                                    _mm512_set1_epi32(0x00400000));
    }
    FEDCLIP_INLINE static Pairs pair(Reg low, Reg high) {
        const __m512i upper = _mm512_set1_epi32(int(0xffff0000u));
        return _mm512_or_si512(_mm512_srli_epi32(bfloat16_above(low), 16),
                               _mm512_and_si512(bfloat16_above(high), upper));
    }
    FEDCLIP_INLINE static void store_halves(Pair* p, Reg a) {
        const __m512i low = _mm512_srli_epi32(bfloat16_above(a), 16);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(low));
    }

    FEDCLIP_INLINE static Reg from_int8(const signed char* p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    FEDCLIP_INLINE static void add_to(double* total, Reg a) {
        const __m256 low = _mm512_castps512_ps256(a);
        const __m256 high = _mm512_extractf32x8_ps(a, 1);
        const __m512d sum_low =
            _mm512_add_pd(_mm512_loadu_pd(total), _mm512_cvtps_pd(low));
        const __m512d sum_high =
            _mm512_add_pd(_mm512_loadu_pd(total + 8), _mm512_cvtps_pd(high));
        _mm512_storeu_pd(total, sum_low);
        _mm512_storeu_pd(total + 8, sum_high);
    }
    FEDCLIP_INLINE static void store_doubles(double* p, Reg a) {
        _mm512_storeu_pd(p, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
        _mm512_storeu_pd(p + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
    }
    FEDCLIP_INLINE static Reg from_double(const double* p) {
        const __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(p));
        const __m256 high = _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8));
        return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    }

    // to[i * to_row + j] = from[j * from_row + i] for 16 x 16 elements.
    FEDCLIP_INLINE static void transpose(const float* from, std::int64_t from_row,
                                         float* to, std::int64_t to_row) {
        Reg r[16], t[16];
        FEDCLIP_UNROLL for (int i = 0; i < 16; ++i) r[i] = load(from + i * from_row);
        FEDCLIP_UNROLL for (int i = 0; i < 8; ++i) {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        FEDCLIP_UNROLL for (int i = 0; i < 4; ++i) {
            FEDCLIP_UNROLL for (int j = 0; j < 2; ++j) {
                const __m512d a = _mm512_castps_pd(t[4 * i + j]);
                const __m512d b = _mm512_castps_pd(t[4 * i + j + 2]);
                r[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                r[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
        }
        FEDCLIP_UNROLL for (int i = 0; i < 4; ++i) {
            FEDCLIP_UNROLL for (int j = 0; j < 2; ++j) {
                const Reg a = r[8 * j + i], b = r[8 * j + i + 4];
                t[8 * j + i] = _mm512_shuffle_f32x4(a, b, 0x88);
                t[8 * j + i + 4] = _mm512_shuffle_f32x4(a, b, 0xdd);
            }
        }
        FEDCLIP_UNROLL for (int i = 0; i < 8; ++i) {
            store(to + i * to_row, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
            store(to + (i + 8) * to_row, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
        }
    }
};

}  // namespace fedclip::cpu
