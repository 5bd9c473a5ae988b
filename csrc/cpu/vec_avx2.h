// Eight floats in an AVX2 register.  See vec_generic.h for what each one does.
#pragma once

#include <immintrin.h>

#include "cpu/pair.h"

namespace fedclip::cpu {

struct Avx2 {
    using Reg = __m256;
    static constexpr int lanes = 8;
    static constexpr int tile_rows = 6;  // 6 x 2 accumulators of the 16 registers
    static constexpr bool adam_beside_products = false;

    FEDCLIP_INLINE static Reg zero() { return _mm256_setzero_ps(); }
    FEDCLIP_INLINE static Reg set(float a) { return _mm256_set1_ps(a); }
    FEDCLIP_INLINE static Reg load(const float* p) { return _mm256_loadu_ps(p); }
    FEDCLIP_INLINE static void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
    FEDCLIP_INLINE static __m256i first(int count) {
        const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index);
    }
    FEDCLIP_INLINE static Reg load_first(const float* p, int count) {
        return _mm256_maskload_ps(p, first(count));
    }
    FEDCLIP_INLINE static void store_first(float* p, Reg a, int count) {
        _mm256_maskstore_ps(p, first(count), a);
    }
    FEDCLIP_INLINE static Reg keep_first(Reg a, int count, Reg rest) {
        return _mm256_blendv_ps(rest, a, _mm256_castsi256_ps(first(count)));
    }

    FEDCLIP_INLINE static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
    FEDCLIP_INLINE static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
    FEDCLIP_INLINE static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
    FEDCLIP_INLINE static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
    FEDCLIP_INLINE static Reg fma(Reg a, Reg b, Reg c) {
        return _mm256_fmadd_ps(a, b, c);
    }
    FEDCLIP_INLINE static Reg fms(Reg a, Reg b, Reg c) {
        return _mm256_fmsub_ps(a, b, c);
    }
    FEDCLIP_INLINE static Reg fnma(Reg a, Reg b, Reg c) {
        return _mm256_fnmadd_ps(a, b, c);
    }
    FEDCLIP_INLINE static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
    FEDCLIP_INLINE static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
    FEDCLIP_INLINE static Reg sqrt(Reg a) { return _mm256_sqrt_ps(a); }
    FEDCLIP_INLINE static Reg abs(Reg a) {
        return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a);
    }
    FEDCLIP_INLINE static Reg round(Reg a) { return _mm256_round_ps(a, 0); }
    FEDCLIP_INLINE static Reg power_of_two(__m256i n) {
        const __m256i biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    }
    FEDCLIP_INLINE static Reg scale(Reg a,
                                    Reg n) {  // in two steps: 2^n may be subnormal
        const __m256i whole = _mm256_cvtps_epi32(n);
        const __m256i half = _mm256_srai_epi32(whole, 1);
        const __m256i rest = _mm256_sub_epi32(whole, half);
        return mul(mul(a, power_of_two(half)), power_of_two(rest));
    }
    FEDCLIP_INLINE static Reg copy_sign(Reg a, Reg sign) {
        const Reg bit = _mm256_set1_ps(-0.f);
        return _mm256_or_ps(_mm256_andnot_ps(bit, a), _mm256_and_ps(bit, sign));
    }
    FEDCLIP_INLINE static Reg if_less(Reg a, Reg b, Reg yes, Reg no) {
        return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
    }
    FEDCLIP_INLINE static float sum(Reg a) {
        const __m128 four =
            _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    FEDCLIP_INLINE static float largest(Reg a) {
        const __m128 four =
            _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }

    using Pairs = __m256i;
    FEDCLIP_INLINE static Pairs load(const Pair* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    FEDCLIP_INLINE static void store(Pair* p, Pairs a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
    }
    FEDCLIP_INLINE static Pairs set(Pair a) { return _mm256_set1_epi32(int(a.bits)); }
    FEDCLIP_INLINE static Reg fma(Pairs a, Pairs b, Reg c) {
        const __m256i high = _mm256_set1_epi32(int(0xffff0000u));
        c = fma(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), c);
        return fma(_mm256_castsi256_ps(_mm256_and_si256(a, high)),
                   _mm256_castsi256_ps(_mm256_and_si256(b, high)), c);
    }
    FEDCLIP_INLINE static __m256i bfloat16_above(Reg a) {  // in the upper halves
        const __m256i bits = _mm256_castps_si256(a);
        const __m256i odd =
            _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i near =
            _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
        const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
        return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(near),
                                                    _mm256_castsi256_ps(nan),
                                                    _mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
    }
    FEDCLIP_INLINE static Pairs pair(Reg low, Reg high) {
        return _mm256_blend_epi16(_mm256_srli_epi32(bfloat16_above(low), 16),
                                  bfloat16_above(high), 0xaa);
    }
    FEDCLIP_INLINE static void store_halves(Pair* p, Reg a) {
        const __m256i low = _mm256_srli_epi32(bfloat16_above(a), 16);
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(both));
    }

    FEDCLIP_INLINE static Reg from_int8(const signed char* p) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    FEDCLIP_INLINE static void add_to(double* total, Reg a) {
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
        _mm256_storeu_pd(total, _mm256_add_pd(_mm256_loadu_pd(total), low));
        _mm256_storeu_pd(total + 4, _mm256_add_pd(_mm256_loadu_pd(total + 4), high));
    }
    FEDCLIP_INLINE static void store_doubles(double* p, Reg a) {
        _mm256_storeu_pd(p, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
        _mm256_storeu_pd(p + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    }
    FEDCLIP_INLINE static Reg from_double(const double* p) {
        const __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd(p));
        return _mm256_insertf128_ps(_mm256_castps128_ps256(low),
                                    _mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), 1);
    }

    // to[i * to_row + j] = from[j * from_row + i] for 8 x 8 elements.
    FEDCLIP_INLINE static void transpose(const float* from, std::int64_t from_row,
                                         float* to, std::int64_t to_row) {
        Reg r[8], t[8];
        FEDCLIP_UNROLL for (int i = 0; i < 8; ++i) r[i] = load(from + i * from_row);
        FEDCLIP_UNROLL for (int i = 0; i < 4; ++i) {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        FEDCLIP_UNROLL for (int i = 0; i < 2; ++i) {
            FEDCLIP_UNROLL for (int j = 0; j < 2; ++j) {
                const __m256d a = _mm256_castps_pd(t[4 * i + j]);
                const __m256d b = _mm256_castps_pd(t[4 * i + j + 2]);
                r[4 * i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                r[4 * i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
            }
        }
        FEDCLIP_UNROLL for (int i = 0; i < 4; ++i) {
            store(to + i * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
            store(to + (i + 4) * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
        }
    }
};

}  // namespace fedclip::cpu
