/* The AVX-512 kernels on a machine that has AVX2: every intrinsic they use, by two AVX2 ones or element by
 * element, after Intel's descriptions. Slow; the arithmetic is that of the hardware, so the bits are. */
#include <immintrin.h>
#include <stdint.h>

#define EMULATED static inline __attribute__((always_inline))

typedef float emu_f32 __attribute__((vector_size(64), aligned(64)));
typedef int32_t emu_i32 __attribute__((vector_size(64), aligned(64)));
typedef uint16_t emu_mask;

union emu {
    emu_f32 f;
    emu_i32 i;
    __m256 half[2];
    __m256i ihalf[2];
    __m128 quarter[4];
    uint32_t u[16];
    float e[16];
};

#define __m512 emu_f32
#define __m512i emu_i32
#define emu_of(x) ((union emu){.f = (x)})
#define emu_ofi(x) ((union emu){.i = (x)})

/* one result of two (or three) by halves */
#define HALVES2(name, half_name)                                                                             \
    EMULATED emu_f32 emu_##name(emu_f32 a, emu_f32 b)                                                        \
    {                                                                                                        \
        union emu r, x = emu_of(a), y = emu_of(b);                                                           \
        for (int h = 0; h < 2; h++) r.half[h] = half_name(x.half[h], y.half[h]);                             \
        return r.f;                                                                                          \
    }
HALVES2(add_ps, _mm256_add_ps)
HALVES2(sub_ps, _mm256_sub_ps)
HALVES2(mul_ps, _mm256_mul_ps)
HALVES2(div_ps, _mm256_div_ps)
HALVES2(max_ps, _mm256_max_ps)
HALVES2(min_ps, _mm256_min_ps)
HALVES2(xor_ps, _mm256_xor_ps)

EMULATED emu_f32 emu_fmadd_ps(emu_f32 a, emu_f32 b, emu_f32 c)
{
    union emu r, x = emu_of(a), y = emu_of(b), z = emu_of(c);
    for (int h = 0; h < 2; h++) r.half[h] = _mm256_fmadd_ps(x.half[h], y.half[h], z.half[h]);
    return r.f;
}
EMULATED emu_f32 emu_set1_ps(float x)
{
    return (union emu){.half = {_mm256_set1_ps(x), _mm256_set1_ps(x)}}.f;
}
EMULATED emu_i32 emu_set1_epi32(int x)
{
    return (union emu){.ihalf = {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}.i;
}
EMULATED emu_f32 emu_loadu_ps(const float *p)
{
    return (union emu){.half = {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}.f;
}
EMULATED void emu_storeu_ps(float *p, emu_f32 a)
{
    union emu x = emu_of(a);
    _mm256_storeu_ps(p, x.half[0]);
    _mm256_storeu_ps(p + 8, x.half[1]);
}
EMULATED emu_f32 emu_abs_ps(emu_f32 a)
{
    union emu x = emu_of(a);
    for (int i = 0; i < 16; i++) x.u[i] &= 0x7fffffffu;
    return x.f;
}

/* ---- integers */

EMULATED emu_i32 emu_shift(emu_i32 a, unsigned count, int left)
{
    union emu x = emu_ofi(a);
    for (int i = 0; i < 16; i++) x.u[i] = left ? x.u[i] << count : x.u[i] >> count;
    return x.i;
}
EMULATED emu_i32 emu_widen(__m256i low, __m256i high)
{
    return (union emu){.ihalf = {low, high}}.i;
}
EMULATED __m256i emu_cvtepi32_epi16(emu_i32 a)
{
    union emu x = emu_ofi(a);
    uint16_t r[16];
    for (int i = 0; i < 16; i++) r[i] = (uint16_t)x.u[i];
    return _mm256_loadu_si256((const __m256i *)(const void *)r);
}
EMULATED __m128i emu_cvtepi32_epi8(emu_i32 a)
{
    union emu x = emu_ofi(a);
    uint8_t r[16];
    for (int i = 0; i < 16; i++) r[i] = (uint8_t)x.u[i];
    return _mm_loadu_si128((const __m128i *)(const void *)r);
}
EMULATED emu_f32 emu_cvtph_ps(__m256i a)
{
    union emu r = {.half = {_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                            _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))}};
    return r.f;
}
#define emu_cvtps_ph(a, rounding)                                                                            \
    _mm256_set_m128i(_mm256_cvtps_ph(emu_of(a).half[1], _MM_FROUND_TO_NEAREST_INT),                          \
                     _mm256_cvtps_ph(emu_of(a).half[0], _MM_FROUND_TO_NEAREST_INT))

/* ---- masks */

EMULATED emu_mask emu_cmp_lt(emu_f32 a, emu_f32 b)
{
    union emu x = emu_of(a), y = emu_of(b);
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= (unsigned)(x.e[i] < y.e[i]) << i;
    return (emu_mask)mask;
}
EMULATED emu_mask emu_cmp_unordered(emu_f32 a, emu_f32 b)
{
    union emu x = emu_of(a), y = emu_of(b);
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= (unsigned)(x.e[i] != x.e[i] || y.e[i] != y.e[i]) << i;
    return (emu_mask)mask;
}
EMULATED emu_mask emu_cmplt_epi32_mask(emu_i32 a, emu_i32 b)
{
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= (unsigned)(a[i] < b[i]) << i;
    return (emu_mask)mask;
}
/* mask bit ? b : a */
EMULATED emu_i32 emu_select(emu_mask mask, emu_i32 a, emu_i32 b)
{
    for (int i = 0; i < 16; i++) a[i] = mask >> i & 1 ? b[i] : a[i];
    return a;
}

/* ---- shuffles */

EMULATED emu_f32 emu_shuffle_f32x4(emu_f32 a, emu_f32 b, int control)
{
    union emu r, x = emu_of(a), y = emu_of(b);
    for (int q = 0; q < 4; q++) r.quarter[q] = (q < 2 ? x : y).quarter[control >> 2 * q & 3];
    return r.f;
}
EMULATED emu_f32 emu_shuffle_ps(emu_f32 a, emu_f32 b, int control)
{
    union emu r, x = emu_of(a), y = emu_of(b);
    for (int i = 0; i < 16; i++) r.e[i] = (i % 4 < 2 ? x : y).e[i / 4 * 4 + (control >> i % 4 * 2 & 3)];
    return r.f;
}

/* some compilers have some of them as macros */
#undef _mm512_cmp_ps_mask
#undef _mm512_cmplt_epi32_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_permute_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_ps
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#define emu_cmp_CMP_LT_OQ emu_cmp_lt
#define emu_cmp_CMP_UNORD_Q emu_cmp_unordered
#define _mm512_abs_ps emu_abs_ps
#define _mm512_add_epi32(a, b) ((a) + (b))
#define _mm512_add_ps emu_add_ps
#define _mm512_and_si512(a, b) ((a) & (b))
#define _mm512_castps512_ps256(a) (emu_of(a).half[0])
#define _mm512_castps_si512(a) (emu_of(a).i)
#define _mm512_castsi512_ps(a) (emu_ofi(a).f)
#define _mm512_cmp_ps_mask(a, b, predicate) emu_cmp##predicate(a, b)
#define _mm512_cmplt_epi32_mask emu_cmplt_epi32_mask
#define _mm512_cvtepi32_epi16 emu_cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emu_cvtepi32_epi8
#define _mm512_cvtepi8_epi32(a) emu_widen(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)))
#define _mm512_cvtepu16_epi32(a)                                                                             \
    emu_widen(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)),                                              \
              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)))
#define _mm512_cvtph_ps emu_cvtph_ps
#define _mm512_cvtps_ph emu_cvtps_ph
#define _mm512_div_ps emu_div_ps
#define _mm512_extractf32x8_ps(a, part) (emu_of(a).half[part])
#define _mm512_fmadd_ps emu_fmadd_ps
#define _mm512_loadu_ps emu_loadu_ps
#define _mm512_mask_blend_ps(mask, a, b) emu_ofi(emu_select(mask, emu_of(a).i, emu_of(b).i)).f
#define _mm512_mask_mov_epi32(a, mask, b) emu_select(mask, a, b)
#define _mm512_mask_or_epi32(a, mask, b, c) emu_select(mask, a, (b) | (c))
#define _mm512_max_ps emu_max_ps
#define _mm512_min_ps emu_min_ps
#define _mm512_mul_ps emu_mul_ps
#define _mm512_or_si512(a, b) ((a) | (b))
#define _mm512_permute_ps(a, control) emu_shuffle_ps(a, a, control)
#define _mm512_set1_epi32 emu_set1_epi32
#define _mm512_set1_ps emu_set1_ps
#define _mm512_setzero_ps() emu_set1_ps(0.0f)
#define _mm512_shuffle_f32x4 emu_shuffle_f32x4
#define _mm512_shuffle_ps emu_shuffle_ps
#define _mm512_slli_epi32(a, count) emu_shift(a, count, 1)
#define _mm512_srli_epi32(a, count) emu_shift(a, count, 0)
#define _mm512_storeu_ps emu_storeu_ps
#define _mm512_sub_epi32(a, b) ((a) - (b))
#define _mm512_sub_ps emu_sub_ps
#define _mm512_xor_ps emu_xor_ps

#define V_KEEP(x)
#define afd_kernels_avx512 afd_kernels_emulated
#include "compute/cpu/kernels_avx512.c"
