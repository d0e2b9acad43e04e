/* Panels of quantized weights (panels.h) to float32, 16 rows at once: byte j of a block lies side by side for
 * the panel's rows, so that scales and quants unpack as they do for one row in model/quant.c, whose
 * operations and layouts these are. 256-bit vectors serve both instruction sets: this is bound by unpacking,
 * not by width. */
#include <immintrin.h>

#include "compute/cpu/panels.h"

typedef uint8_t bytes16 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))

/* 16 floats, one a row */
struct wide {
    __m256 p[2];
};

INLINE bytes16 at(const uint8_t *block, uint32_t byte)
{
    return (bytes16)_mm_load_si128((const __m128i *)(const void *)(block + (size_t)byte * AFD_PANEL));
}

INLINE struct wide from_signed(bytes16 x)
{
    __m128i q = (__m128i)x;
    return (struct wide){{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)),
                          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)))}};
}

/* The f16 in bytes `byte` and the next. */
INLINE struct wide half_at(const uint8_t *block, uint32_t byte)
{
    __m128i low = (__m128i)at(block, byte), high = (__m128i)at(block, byte + 1);
    return (struct wide){
        {_mm256_cvtph_ps(_mm_unpacklo_epi8(low, high)), _mm256_cvtph_ps(_mm_unpackhi_epi8(low, high))}};
}

INLINE struct wide times(struct wide a, struct wide b)
{
    return (struct wide){{_mm256_mul_ps(a.p[0], b.p[0]), _mm256_mul_ps(a.p[1], b.p[1])}};
}

INLINE void put(float *to, struct wide x)
{
    _mm256_store_ps(to, x.p[0]);
    _mm256_store_ps(to + 8, x.p[1]);
}

/* a * q */
INLINE void put_scaled(float *to, struct wide a, bytes16 q)
{
    put(to, times(a, from_signed(q)));
}

/* a * q + c */
INLINE void put_above(float *to, struct wide a, bytes16 q, struct wide c)
{
    struct wide x = times(a, from_signed(q));
    put(to, (struct wide){{_mm256_add_ps(x.p[0], c.p[0]), _mm256_add_ps(x.p[1], c.p[1])}});
}

/* a * q - c */
INLINE void put_below(float *to, struct wide a, bytes16 q, struct wide c)
{
    struct wide x = times(a, from_signed(q));
    put(to, (struct wide){{_mm256_sub_ps(x.p[0], c.p[0]), _mm256_sub_ps(x.p[1], c.p[1])}});
}

INLINE bytes16 iq4_value(bytes16 q)
{
    __m128i table = _mm_loadu_si128((const __m128i *)(const void *)afd_iq4_values);
    return (bytes16)_mm_shuffle_epi8(table, (__m128i)q);
}

/* ---- blocks of 32 */

static void q4_0(const uint8_t *b, float *to)
{
    struct wide d = half_at(b, 0);
    for (uint32_t j = 0; j < 16; j++) {
        bytes16 q = at(b, 2 + j);
        put_scaled(to + j * AFD_PANEL, d, (q & 15) - 8);
        put_scaled(to + (j + 16) * AFD_PANEL, d, (q >> 4) - 8);
    }
}

static void q4_1(const uint8_t *b, float *to)
{
    struct wide d = half_at(b, 0), m = half_at(b, 2);
    for (uint32_t j = 0; j < 16; j++) {
        bytes16 q = at(b, 4 + j);
        put_above(to + j * AFD_PANEL, d, q & 15, m);
        put_above(to + (j + 16) * AFD_PANEL, d, q >> 4, m);
    }
}

/* The five bits of value j: a bit of the 4 bytes from `high` on, and a nibble of the 16 behind them. */
INLINE bytes16 five(const uint8_t *b, uint32_t high, uint32_t j)
{
    bytes16 byte = at(b, high + 4 + j % 16), nibble = j < 16 ? byte & 15 : byte >> 4;
    return nibble | (at(b, high + j / 8) >> j % 8 & 1) << 4;
}

static void q5_0(const uint8_t *b, float *to)
{
    struct wide d = half_at(b, 0);
#pragma GCC unroll 32
    for (uint32_t j = 0; j < 32; j++) put_scaled(to + j * AFD_PANEL, d, five(b, 2, j) - 16);
}

static void q5_1(const uint8_t *b, float *to)
{
    struct wide d = half_at(b, 0), m = half_at(b, 2);
#pragma GCC unroll 32
    for (uint32_t j = 0; j < 32; j++) put_above(to + j * AFD_PANEL, d, five(b, 4, j), m);
}

static void q8_0(const uint8_t *b, float *to)
{
    struct wide d = half_at(b, 0);
    for (uint32_t j = 0; j < 32; j++) put_scaled(to + j * AFD_PANEL, d, at(b, 2 + j));
}

static void iq4_nl(const uint8_t *b, float *to)
{
    struct wide d = half_at(b, 0);
    for (uint32_t j = 0; j < 16; j++) {
        bytes16 q = at(b, 2 + j);
        put_scaled(to + j * AFD_PANEL, d, iq4_value(q & 15));
        put_scaled(to + (j + 16) * AFD_PANEL, d, iq4_value(q >> 4));
    }
}

/* ---- half a superblock of 256 */

INLINE void q2_k(const uint8_t *b, uint32_t half, float *to)
{
    struct wide d = half_at(b, 80), m = half_at(b, 82);
    for (uint32_t g = 0; g < 8; g++) {
        bytes16 scale = at(b, half * 8 + g);
        struct wide a = times(d, from_signed(scale & 15)), c = times(m, from_signed(scale >> 4));
        for (uint32_t l = 0; l < 16; l++) {
            bytes16 q = at(b, 16 + half * 32 + g % 2 * 16 + l) >> 2 * (g / 2) & 3;
            put_below(to + (g * 16 + l) * AFD_PANEL, a, q, c);
        }
    }
}

INLINE void q3_k(const uint8_t *b, uint32_t half, float *to)
{
    struct wide d = half_at(b, 108);
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t g = half * 8 + i, s = i / 2;
        bytes16 low = g < 8 ? at(b, 96 + g) & 15 : at(b, 96 + g - 8) >> 4;
        bytes16 scale = low | (at(b, 104 + g % 4) >> 2 * (g / 4) & 3) << 4;
        struct wide a = times(d, from_signed(scale - 32));
        for (uint32_t l = i % 2 * 16; l < i % 2 * 16 + 16; l++) {
            bytes16 third = at(b, l) >> (half * 4 + s) & 1;
            bytes16 q = (at(b, 32 + half * 32 + l) >> 2 * s & 3) + third * 4 - 4;
            put_scaled(to + (s * 32 + l) * AFD_PANEL, a, q);
        }
    }
}

/* a and c of group g of a block whose f16 d and dmin come first, then 12 bytes of six-bit scales and mins. */
INLINE void scale_min(const uint8_t *b, uint32_t g, struct wide *a, struct wide *c)
{
    bytes16 scale, min;
    if (g < 4) {
        scale = at(b, 4 + g) & 63;
        min = at(b, 8 + g) & 63;
    } else {
        bytes16 both = at(b, 8 + g);
        scale = (both & 15) | at(b, g) >> 6 << 4;
        min = both >> 4 | at(b, 4 + g) >> 6 << 4;
    }
    *a = times(half_at(b, 0), from_signed(scale));
    *c = times(half_at(b, 2), from_signed(min));
}

INLINE void q4_k(const uint8_t *b, uint32_t half, float *to)
{
    for (uint32_t i = 0; i < 4; i++) {
        struct wide a, c;
        uint32_t g = half * 4 + i;
        scale_min(b, g, &a, &c);
        for (uint32_t l = 0; l < 32; l++) {
            bytes16 q = at(b, 16 + g / 2 * 32 + l);
            put_below(to + (i * 32 + l) * AFD_PANEL, a, g % 2 ? q >> 4 : q & 15, c);
        }
    }
}

INLINE void q5_k(const uint8_t *b, uint32_t half, float *to)
{
    for (uint32_t i = 0; i < 4; i++) {
        struct wide a, c;
        uint32_t g = half * 4 + i;
        scale_min(b, g, &a, &c);
        for (uint32_t l = 0; l < 32; l++) {
            bytes16 q = at(b, 48 + g / 2 * 32 + l), fifth = at(b, 16 + l) >> g & 1;
            put_below(to + (i * 32 + l) * AFD_PANEL, a, (g % 2 ? q >> 4 : q & 15) | fifth << 4, c);
        }
    }
}

INLINE void q6_k(const uint8_t *b, uint32_t half, float *to)
{
    struct wide d = half_at(b, 208);
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t s = i / 2;
        struct wide a = times(d, from_signed(at(b, 192 + half * 8 + i)));
        for (uint32_t l = i % 2 * 16; l < i % 2 * 16 + 16; l++) {
            bytes16 low = at(b, half * 64 + s % 2 * 32 + l), high = at(b, 128 + half * 32 + l) >> 2 * s & 3;
            put_scaled(to + (s * 32 + l) * AFD_PANEL, a, ((s < 2 ? low & 15 : low >> 4) | high << 4) - 32);
        }
    }
}

INLINE void iq4_xs(const uint8_t *b, uint32_t half, float *to)
{
    struct wide d = half_at(b, 0);
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t g = half * 4 + i;
        bytes16 low = at(b, 4 + g / 2), high = at(b, 2 + g / 4) >> 2 * (g % 4) & 3;
        struct wide a = times(d, from_signed(((g % 2 ? low >> 4 : low & 15) | high << 4) - 32));
        for (uint32_t j = 0; j < 16; j++) {
            bytes16 q = at(b, 8 + g * 16 + j);
            put_scaled(to + (i * 32 + j) * AFD_PANEL, a, iq4_value(q & 15));
            put_scaled(to + (i * 32 + j + 16) * AFD_PANEL, a, iq4_value(q >> 4));
        }
    }
}

static void int4_128(const uint8_t *b, float *to)
{
    struct wide d = half_at(b, 0);
    bytes16 zero = at(b, 2);
    for (uint32_t j = 0; j < 64; j++) {
        bytes16 q = at(b, 4 + j);
        put_scaled(to + j * AFD_PANEL, d, (q & 15) - zero);
        put_scaled(to + (j + 64) * AFD_PANEL, d, (q >> 4) - zero);
    }
}

/* Each half of a superblock is a body of its own, with its shifts known. */
#define HALVES(name)                                                                                         \
    static void name##_low(const uint8_t *b, float *to)                                                      \
    {                                                                                                        \
        name(b, 0, to);                                                                                      \
    }                                                                                                        \
    static void name##_high(const uint8_t *b, float *to)                                                     \
    {                                                                                                        \
        name(b, 1, to);                                                                                      \
    }
HALVES(q2_k)
HALVES(q3_k)
HALVES(q4_k)
HALVES(q5_k)
HALVES(q6_k)
HALVES(iq4_xs)
#undef HALVES

void afd_panel_decode(const struct afd_quant *quant, const void *panel, uint32_t k, uint32_t n, float *to)
{
    static void (*const decoders[AFD_QUANT_COUNT][2])(const uint8_t *b, float *to) = {
        [AFD_Q4_0] = {q4_0},
        [AFD_Q4_1] = {q4_1},
        [AFD_Q5_0] = {q5_0},
        [AFD_Q5_1] = {q5_1},
        [AFD_Q8_0] = {q8_0},
        [AFD_IQ4_NL] = {iq4_nl},
        [AFD_Q2_K] = {q2_k_low, q2_k_high},
        [AFD_Q3_K] = {q3_k_low, q3_k_high},
        [AFD_Q4_K] = {q4_k_low, q4_k_high},
        [AFD_Q5_K] = {q5_k_low, q5_k_high},
        [AFD_Q6_K] = {q6_k_low, q6_k_high},
        [AFD_IQ4_XS] = {iq4_xs_low, iq4_xs_high},
        [AFD_INT4_128] = {int4_128},
    };
    uint32_t step = quant->values < AFD_DOT_BLOCK ? quant->values : AFD_DOT_BLOCK;
    for (uint32_t i = k; i < k + n; i += step)
        decoders[quant->kind][i % quant->values != 0]((const uint8_t *)panel + (size_t)(i / quant->values) *
                                                                                   quant->bytes * AFD_PANEL,
                                                      to + (size_t)(i - k) * AFD_PANEL);
}
