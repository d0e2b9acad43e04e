/* vector_256.h: what both instruction sets do with 8 floats: narrow loads, and turning 8 columns around.
 * Included by vector_avx2.h and vector_avx512.h. */
#ifndef AFD_COMPUTE_CPU_VECTOR_256_H
#define AFD_COMPUTE_CPU_VECTOR_256_H

V_INLINE __m256 v8_load_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}

V_INLINE __m256 v8_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

/* e4m3 without NaN: its bits, moved to a float's place, are the number over 2^120; subnormals too. */
V_INLINE __m256 v8_load_fp8(const void *p)
{
    __m256i q = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)), 20);
    q = _mm256_and_si256(q, _mm256_set1_epi32((int)0x87f00000));
    return _mm256_mul_ps(_mm256_castsi256_ps(q), _mm256_set1_ps(0x1p120f));
}

V_INLINE __m256 v8_load(enum afd_dtype dtype, const char *p)
{
    switch (dtype) {
    case AFD_BF16:
        return v8_load_bf16(p);
    case AFD_F16:
        return v8_load_f16(p);
    case AFD_FP8:
        return v8_load_fp8(p);
    default:
        return _mm256_loadu_ps((const float *)(const void *)p);
    }
}

/* to[i][c] = element i of column c, 8 x 8; rows of `to` are AFD_TOKENS apart. Columns begin `offset` bytes
 * behind from[c]. */
V_INLINE void v8_transpose(enum afd_dtype dtype, const char *const *from, size_t offset, float *to)
{
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = v8_load(dtype, from[i] + offset);
    for (int i = 0; i < 8; i += 2) { /* pairs of columns */
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) { /* fours: rows 0, 1, 2, 3 and 4, 5, 6, 7 in the halves */
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * AFD_TOKENS, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * AFD_TOKENS, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

#endif
