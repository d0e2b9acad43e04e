/* vector_avx2.h: 16 virtual lanes in two AVX2 registers (AVX2, FMA and F16C). The other half of this pair is
 * vector_avx512.h; kernels.inc sees no instruction sets. A `vp` is one register, a `v16` all 16 lanes. */
#ifndef AFD_COMPUTE_CPU_VECTOR_AVX2_H
#define AFD_COMPUTE_CPU_VECTOR_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define V_NAME(name) name##_avx2
#define V_INSTRUCTIONS "cpu avx2"
#define V_INLINE static inline __attribute__((always_inline))

#include "compute/cpu/vector_256.h"

typedef __m256 vp;
enum {
    V_PARTS = 2,
    V_WIDTH = 8,     /* floats of a vp */
    V_FOLD = 8,      /* outputs that one fold takes: columns x rows below */
    V_COLUMNS_1 = 8, /* columns that 1, 2 and 3 rows take at a time */
    V_COLUMNS_2 = 4,
    V_COLUMNS_3 = 2,
    V_DOT_ROWS = 3, /* rows of a tile of dots: 3 x 2 registers of columns x 2 lanes are 12 sums */
    /* tiles of the matrix product: 12 sums, which leaves 4 registers for operands */
    V_TILE_ROWS = 6,
    V_TILE_PANELS = 6,
    V_TILE_VECTORS = 2, /* of a row, with more than 3 rows */
    V_WIDE_PANELS = 2,  /* that three tiles or more take at once */
    V_TILE_SUMS = 12,
};

/* panels of 16 outputs that 1, 2, .. rows take at once, and every shape of a tile: rows, panels */
static const uint32_t V_PANELS[V_TILE_ROWS + 1] = {0, 6, 3, 2, 1, 1, 1};
#define V_TILES(X, type)                                                                                     \
    X(type, 1, 6)                                                                                            \
    X(type, 1, 1)                                                                                            \
    X(type, 2, 3)                                                                                            \
    X(type, 2, 1)                                                                                            \
    X(type, 3, 2)                                                                                            \
    X(type, 3, 1)                                                                                            \
    X(type, 4, 1)                                                                                            \
    X(type, 5, 1)                                                                                            \
    X(type, 6, 1)

typedef struct {
    vp p[V_PARTS];
} v16;

/* Keeps a loaded value in its register: a compiler that sees it used twice as an operand from memory may load
 * it twice, and two loads a cycle are what a product is bound by. */
#define V_KEEP(x) __asm__("" : "+x"(x))

V_INLINE vp vp_zero(void)
{
    return _mm256_setzero_ps();
}
V_INLINE vp vp_set1(float x)
{
    return _mm256_set1_ps(x);
}
V_INLINE vp vp_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
V_INLINE void vp_store(float *p, vp x)
{
    _mm256_storeu_ps(p, x);
}
V_INLINE vp vp_add(vp a, vp b)
{
    return _mm256_add_ps(a, b);
}
V_INLINE vp vp_sub(vp a, vp b)
{
    return _mm256_sub_ps(a, b);
}
V_INLINE vp vp_mul(vp a, vp b)
{
    return _mm256_mul_ps(a, b);
}
V_INLINE vp vp_div(vp a, vp b)
{
    return _mm256_div_ps(a, b);
}
V_INLINE vp vp_fma(vp a, vp b, vp c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* a > b ? a : b, so NaN in b stays */
V_INLINE vp vp_max(vp a, vp b)
{
    return _mm256_max_ps(a, b);
}
V_INLINE vp vp_min(vp a, vp b)
{
    return _mm256_min_ps(a, b);
}
V_INLINE vp vp_abs(vp a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
V_INLINE vp vp_neg(vp a)
{
    return _mm256_xor_ps(_mm256_set1_ps(-0.0f), a);
}
/* x < y ? a : b */
V_INLINE vp vp_select_less(vp x, vp y, vp a, vp b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}
/* the float whose bits are (bits of t << 23) + bits of 1: 2^n where t = 1.5 * 2^23 + n */
V_INLINE vp vp_power_of_two(vp t)
{
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23), _mm256_set1_epi32(0x3f800000)));
}

/* ---- narrow types; part i of 16 elements at p, any alignment */

V_INLINE vp vp_load_bf16(const void *p, int i)
{
    return v8_load_bf16((const char *)p + 16 * i);
}

/* Elements 0-3 8-11 (i = 0) and 4-7 12-15 of 16: one operation each, but a register for the zeros. */
V_INLINE vp vp_load_unordered_bf16(const void *p, int i)
{
    __m256i x = _mm256_loadu_si256(p), zero = _mm256_setzero_si256();
    return _mm256_castsi256_ps(i ? _mm256_unpackhi_epi16(zero, x) : _mm256_unpacklo_epi16(zero, x));
}

/* What was computed from the two. */
V_INLINE void v_order_bf16(vp part[V_PARTS])
{
    vp low = _mm256_permute2f128_ps(part[0], part[1], 0x20);
    part[1] = _mm256_permute2f128_ps(part[0], part[1], 0x31);
    part[0] = low;
}

V_INLINE vp vp_load_f16(const void *p, int i)
{
    return v8_load_f16((const char *)p + 16 * i);
}

V_INLINE vp vp_load_fp8(const void *p, int i)
{
    return v8_load_fp8((const char *)p + 8 * i);
}

V_INLINE void vp_store_bf16(void *p, int i, vp x)
{
    __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128((__m128i *)p + i, packed);
}

V_INLINE void vp_store_f16(void *p, int i, vp x)
{
    _mm_storeu_si128((__m128i *)p + i, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* As afd_float_to_e4m3: saturates, NaN is 0x7f. */
V_INLINE void vp_store_fp8(void *p, int i, vp x)
{
    __m256i sign = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x), 24), _mm256_set1_epi32(0x80));
    vp magnitude = _mm256_min_ps(vp_abs(x), _mm256_set1_ps(448.0f));
    __m256i u = _mm256_castps_si256(magnitude);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 20), _mm256_set1_epi32(1));
    __m256i q = _mm256_srli_epi32(
        _mm256_sub_epi32(_mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7ffff)),
                         _mm256_set1_epi32(0x3c000000)),
        20);
    /* below 2^-6 in units of 2^-9: adding 2^14 rounds to them */
    __m256i small = _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(magnitude, _mm256_set1_ps(16384.0f))),
                                     _mm256_castps_si256(_mm256_set1_ps(16384.0f)));
    q = _mm256_blendv_epi8(q, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), u));
    q = _mm256_blendv_epi8(q, _mm256_set1_epi32(0x7f),
                           _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    q = _mm256_or_si256(q, sign);
    __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storel_epi64((__m128i *)((char *)p + 8 * i), _mm_packus_epi16(half, half));
}

/* ---- folds, lanes 8-4-2-1 */

V_INLINE float v_fold(v16 a)
{
    __m256 a8 = _mm256_add_ps(a.p[0], a.p[1]);
    __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a8), _mm256_extractf128_ps(a8, 1));
    __m128 a2 = _mm_add_ps(a4, _mm_movehl_ps(a4, a4));
    return _mm_cvtss_f32(_mm_add_ss(a2, _mm_movehdup_ps(a2)));
}

/* The folds of V_FOLD vectors (parts a[2i], a[2i + 1]), in order. */
V_INLINE vp v_fold_all(const vp a[V_FOLD * V_PARTS])
{
    vp b[8], c[4], d[2];
    for (int i = 0; i < 8; i++) b[i] = _mm256_add_ps(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 4; i++) /* i and i + 4: lanes 0-3 of one in each half */
        c[i] = _mm256_add_ps(_mm256_permute2f128_ps(b[i], b[i + 4], 0x20),
                             _mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
    for (int i = 0; i < 2; i++) /* 0 2 | 4 6 and 1 3 | 5 7 */
        d[i] =
            _mm256_add_ps(_mm256_shuffle_ps(c[i], c[i + 2], 0x44), _mm256_shuffle_ps(c[i], c[i + 2], 0xee));
    /* even lanes and odd lanes of d[0] and d[1]: 0 2 1 3 | 4 6 5 7 */
    vp e = _mm256_add_ps(_mm256_shuffle_ps(d[0], d[1], 0x88), _mm256_shuffle_ps(d[0], d[1], 0xdd));
    return _mm256_permute_ps(e, 0xd8);
}

#endif
