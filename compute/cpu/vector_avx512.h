/* vector_avx512.h: 16 virtual lanes in one AVX-512 register (F, BW, VL, DQ). See vector_avx2.h. */
#ifndef AFD_COMPUTE_CPU_VECTOR_AVX512_H
#define AFD_COMPUTE_CPU_VECTOR_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define V_NAME(name) name##_avx512
#define V_INSTRUCTIONS "cpu avx512"
#define V_INLINE static inline __attribute__((always_inline))

#include "compute/cpu/vector_256.h"

typedef __m512 vp;
enum {
    V_PARTS = 1,
    V_WIDTH = 16,
    V_FOLD = 16,
    V_COLUMNS_1 = 8,
    V_COLUMNS_2 = 8,
    V_COLUMNS_3 = 4,
    V_DOT_ROWS = 6,
    V_TILE_ROWS = 8,
    V_TILE_PANELS = 6,
    V_TILE_VECTORS = 3,
    V_WIDE_PANELS = 3,
    V_TILE_SUMS = 24,
};

/* 24 sums at most leave 8 of the 32 registers */
static const uint32_t V_PANELS[V_TILE_ROWS + 1] = {0, 6, 6, 6, 3, 3, 3, 3, 3};
#define V_TILES(X, type)                                                                                     \
    X(type, 1, 6)                                                                                            \
    X(type, 1, 1)                                                                                            \
    X(type, 2, 6)                                                                                            \
    X(type, 2, 1)                                                                                            \
    X(type, 3, 6)                                                                                            \
    X(type, 3, 1)                                                                                            \
    X(type, 4, 3)                                                                                            \
    X(type, 4, 1)                                                                                            \
    X(type, 5, 3)                                                                                            \
    X(type, 5, 1)                                                                                            \
    X(type, 6, 3)                                                                                            \
    X(type, 6, 1)                                                                                            \
    X(type, 7, 3)                                                                                            \
    X(type, 7, 1)                                                                                            \
    X(type, 8, 3)                                                                                            \
    X(type, 8, 1)

typedef struct {
    vp p[V_PARTS];
} v16;

#ifndef V_KEEP /* the tests' emulation has no such registers */
#define V_KEEP(x) __asm__("" : "+v"(x))
#endif

V_INLINE vp vp_zero(void)
{
    return _mm512_setzero_ps();
}
V_INLINE vp vp_set1(float x)
{
    return _mm512_set1_ps(x);
}
V_INLINE vp vp_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
V_INLINE void vp_store(float *p, vp x)
{
    _mm512_storeu_ps(p, x);
}
V_INLINE vp vp_add(vp a, vp b)
{
    return _mm512_add_ps(a, b);
}
V_INLINE vp vp_sub(vp a, vp b)
{
    return _mm512_sub_ps(a, b);
}
V_INLINE vp vp_mul(vp a, vp b)
{
    return _mm512_mul_ps(a, b);
}
V_INLINE vp vp_div(vp a, vp b)
{
    return _mm512_div_ps(a, b);
}
V_INLINE vp vp_fma(vp a, vp b, vp c)
{
    return _mm512_fmadd_ps(a, b, c);
}
V_INLINE vp vp_max(vp a, vp b)
{
    return _mm512_max_ps(a, b);
}
V_INLINE vp vp_min(vp a, vp b)
{
    return _mm512_min_ps(a, b);
}
V_INLINE vp vp_abs(vp a)
{
    return _mm512_abs_ps(a);
}
V_INLINE vp vp_neg(vp a)
{
    return _mm512_xor_ps(_mm512_set1_ps(-0.0f), a);
}
V_INLINE vp vp_select_less(vp x, vp y, vp a, vp b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
}
V_INLINE vp vp_power_of_two(vp t)
{
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t), 23), _mm512_set1_epi32(0x3f800000)));
}

/* ---- narrow types */

V_INLINE vp vp_load_bf16(const void *p, int i)
{
    (void)i;
    __m256i h = _mm256_loadu_si256(p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

V_INLINE vp vp_load_unordered_bf16(const void *p, int i)
{
    return vp_load_bf16(p, i);
}

V_INLINE void v_order_bf16(vp part[V_PARTS])
{
    (void)part; /* they are in order */
}

V_INLINE vp vp_load_f16(const void *p, int i)
{
    (void)i;
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

V_INLINE vp vp_load_fp8(const void *p, int i)
{
    (void)i;
    __m512i q = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)), 20);
    q = _mm512_and_si512(q, _mm512_set1_epi32((int)0x87f00000));
    return _mm512_mul_ps(_mm512_castsi512_ps(q), _mm512_set1_ps(0x1p120f));
}

V_INLINE void vp_store_bf16(void *p, int i, vp x)
{
    (void)i;
    __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    rounded =
        _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(rounded));
}

V_INLINE void vp_store_f16(void *p, int i, vp x)
{
    (void)i;
    _mm256_storeu_si256(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

V_INLINE void vp_store_fp8(void *p, int i, vp x)
{
    (void)i;
    __m512i sign = _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(x), 24), _mm512_set1_epi32(0x80));
    vp magnitude = _mm512_min_ps(vp_abs(x), _mm512_set1_ps(448.0f));
    __m512i u = _mm512_castps_si512(magnitude);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 20), _mm512_set1_epi32(1));
    __m512i q = _mm512_srli_epi32(
        _mm512_sub_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7ffff)),
                         _mm512_set1_epi32(0x3c000000)),
        20);
    __m512i small = _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(magnitude, _mm512_set1_ps(16384.0f))),
                                     _mm512_castps_si512(_mm512_set1_ps(16384.0f)));
    q = _mm512_mask_mov_epi32(q, _mm512_cmplt_epi32_mask(u, _mm512_set1_epi32(0x3c800000)), small);
    q = _mm512_mask_mov_epi32(q, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7f));
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(_mm512_or_si512(q, sign)));
}

/* ---- folds, lanes 8-4-2-1 */

V_INLINE float v_fold(v16 a)
{
    __m256 a8 = _mm256_add_ps(_mm512_castps512_ps256(a.p[0]), _mm512_extractf32x8_ps(a.p[0], 1));
    __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a8), _mm256_extractf128_ps(a8, 1));
    __m128 a2 = _mm_add_ps(a4, _mm_movehl_ps(a4, a4));
    return _mm_cvtss_f32(_mm_add_ss(a2, _mm_movehdup_ps(a2)));
}

V_INLINE vp v_fold_all(const vp a[V_FOLD * V_PARTS])
{
    vp b[8], c[4], d[2];
    for (int i = 0; i < 8; i++) /* lanes 0-7 of i, lanes 0-7 of i + 8 */
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44),
                             _mm512_shuffle_f32x4(a[i], a[i + 8], 0xee));
    for (int i = 0; i < 4; i++) /* quarters: i, i + 8, i + 4, i + 12 */
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[i], b[i + 4], 0x88),
                             _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd));
    for (int i = 0; i < 2; i++)
        d[i] =
            _mm512_add_ps(_mm512_shuffle_ps(c[i], c[i + 2], 0x44), _mm512_shuffle_ps(c[i], c[i + 2], 0xee));
    /* each quarter: i, i + 2, i + 1, i + 3 of base 0, 8, 4, 12 */
    vp e = _mm512_add_ps(_mm512_shuffle_ps(d[0], d[1], 0x88), _mm512_shuffle_ps(d[0], d[1], 0xdd));
    e = _mm512_permute_ps(e, 0xd8);
    return _mm512_shuffle_f32x4(e, e, 0xd8);
}

#endif
