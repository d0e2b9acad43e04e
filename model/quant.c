#include "model/quant.h"

#include <string.h>

#include "base/half.h"

const int8_t afd_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static float f16_at(const uint8_t *p)
{
    return afd_f16_to_float((uint16_t)(p[0] | p[1] << 8));
}

static void put_f16(uint8_t *p, float x)
{
    uint16_t h = afd_float_to_f16(x);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

/* ---- blocks of 32: in the byte j, low bits are of value j, high bits of value j + 16 */

/* | f16 d | 16 x two nibbles |     w = d * (q - 8) */
static void decode_q4_0(const uint8_t *b, float *out)
{
    float d = f16_at(b);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)((b[2 + j] & 15) - 8);
        out[j + 16] = d * (float)((b[2 + j] >> 4) - 8);
    }
}

/* | f16 d | f16 m | 16 x two nibbles |     w = d * q + m */
static void decode_q4_1(const uint8_t *b, float *out)
{
    float d = f16_at(b), m = f16_at(b + 2);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)(b[4 + j] & 15) + m;
        out[j + 16] = d * (float)(b[4 + j] >> 4) + m;
    }
}

/* The fifth bit of value j is bit j of the 32 bits at `high`. */
static int five(const uint8_t *high, const uint8_t *nibbles, int j)
{
    int nibble = j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4;
    return nibble | (high[j / 8] >> j % 8 & 1) << 4;
}

/* | f16 d | 32 fifth bits | 16 x two nibbles |     w = d * (q - 16) */
static void decode_q5_0(const uint8_t *b, float *out)
{
    float d = f16_at(b);
    for (int j = 0; j < 32; j++) out[j] = d * (float)(five(b + 2, b + 6, j) - 16);
}

/* | f16 d | f16 m | 32 fifth bits | 16 x two nibbles |     w = d * q + m */
static void decode_q5_1(const uint8_t *b, float *out)
{
    float d = f16_at(b), m = f16_at(b + 2);
    for (int j = 0; j < 32; j++) out[j] = d * (float)five(b + 4, b + 8, j) + m;
}

/* | f16 d | 32 x int8 |     w = d * q */
static void decode_q8_0(const uint8_t *b, float *out)
{
    float d = f16_at(b);
    for (int j = 0; j < 32; j++) out[j] = d * (float)(int8_t)b[2 + j];
}

/* | f16 d | 16 x two nibbles |     w = d * value[q] */
static void decode_iq4_nl(const uint8_t *b, float *out)
{
    float d = f16_at(b);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)afd_iq4_values[b[2 + j] & 15];
        out[j + 16] = d * (float)afd_iq4_values[b[2 + j] >> 4];
    }
}

/* ---- superblocks of 256 */

/* | 16 x (scale | min << 4) | 64 x four 2 bits | f16 d | f16 dmin |
 * w = (d * scale) * q - dmin * min; groups of 16. Byte l of a half (32 bytes): bits 2s are value 32 s + l. */
static void decode_q2_k(const uint8_t *b, float *out)
{
    float d = f16_at(b + 80), m = f16_at(b + 82);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, s = i % 128 / 32, l = i % 32;
        uint8_t scale = b[i / 16];
        int q = b[16 + half * 32 + l] >> 2 * s & 3;
        float a = d * (float)(scale & 15), c = m * (float)(scale >> 4);
        out[i] = a * (float)q - c;
    }
}

/* | 32 x eight third bits | 64 x four 2 bits | 12 bytes of 16 six-bit scales | f16 d |
 * w = (d * (scale - 32)) * q, q in -4 .. 3 (the third bit set: 0 .. 3); groups of 16. */
static void decode_q3_k(const uint8_t *b, float *out)
{
    float d = f16_at(b + 108);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, s = i % 128 / 32, l = i % 32, g = i / 16;
        int scale = (g < 8 ? b[96 + g] & 15 : b[96 + g - 8] >> 4) | (b[104 + g % 4] >> 2 * (g / 4) & 3) << 4;
        int q = (b[32 + half * 32 + l] >> 2 * s & 3) - (b[l] >> (half * 4 + s) & 1 ? 0 : 4);
        out[i] = d * (float)(scale - 32) * (float)q;
    }
}

/* Six-bit scale and min of group g of 8, in 12 bytes. */
static void scale_min(const uint8_t *s, int g, int *scale, int *min)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *min = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        *min = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
}

/* | f16 d | f16 dmin | 12 bytes of 8 scales and 8 mins | 128 x two nibbles |
 * w = (d * scale) * q - dmin * min; groups of 32. Byte l of a quarter (32 bytes): its 64 values' first half
 * is in the low nibbles. */
static void decode_q4_k(const uint8_t *b, float *out)
{
    float d = f16_at(b), m = f16_at(b + 2);
    for (int g = 0; g < 8; g++) {
        int scale, min;
        scale_min(b + 4, g, &scale, &min);
        float a = d * (float)scale, c = m * (float)min;
        for (int l = 0; l < 32; l++) {
            int q = b[16 + g / 2 * 32 + l] >> 4 * (g % 2) & 15;
            out[g * 32 + l] = a * (float)q - c;
        }
    }
}

/* | f16 d | f16 dmin | 12 bytes as above | 32 x eight fifth bits | 128 x two nibbles | */
static void decode_q5_k(const uint8_t *b, float *out)
{
    float d = f16_at(b), m = f16_at(b + 2);
    for (int g = 0; g < 8; g++) {
        int scale, min;
        scale_min(b + 4, g, &scale, &min);
        float a = d * (float)scale, c = m * (float)min;
        for (int l = 0; l < 32; l++) {
            int q = (b[48 + g / 2 * 32 + l] >> 4 * (g % 2) & 15) | (b[16 + l] >> g & 1) << 4;
            out[g * 32 + l] = a * (float)q - c;
        }
    }
}

/* | 128 x two nibbles | 64 x four 2 bits | 16 x int8 scale | f16 d |     w = (d * scale) * (q - 32); groups
 * of 16. Of a half's 128 values, 32 s + l has its nibble in byte l + 32 (s mod 2), low for s < 2, and its
 * high bits 2s of byte l. */
static void decode_q6_k(const uint8_t *b, float *out)
{
    float d = f16_at(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, s = i % 128 / 32, l = i % 32;
        int low = b[half * 64 + s % 2 * 32 + l] >> (s < 2 ? 0 : 4) & 15;
        int q = (low | (b[128 + half * 32 + l] >> 2 * s & 3) << 4) - 32;
        out[i] = d * (float)(int8_t)b[192 + i / 16] * (float)q;
    }
}

/* | f16 d | 8 x 2 bits of scale | 8 x 4 bits of scale | 128 x two nibbles |     w = (d * (scale - 32)) *
 * value[q]; groups of 32, each as IQ4_NL. */
static void decode_iq4_xs(const uint8_t *b, float *out)
{
    float d = f16_at(b);
    uint32_t high = (uint32_t)(b[2] | b[3] << 8);
    for (int g = 0; g < 8; g++) {
        int scale = (b[4 + g / 2] >> 4 * (g % 2) & 15) | (int)(high >> 2 * g & 3) << 4;
        float a = d * (float)(scale - 32);
        for (int j = 0; j < 16; j++) {
            out[g * 32 + j] = a * (float)afd_iq4_values[b[8 + g * 16 + j] & 15];
            out[g * 32 + j + 16] = a * (float)afd_iq4_values[b[8 + g * 16 + j] >> 4];
        }
    }
}

/* | f16 d | zero | 0 | 64 x two nibbles |     w = d * (q - zero); low nibbles are values 0 .. 63 */
static void decode_int4_128(const uint8_t *b, float *out)
{
    float d = f16_at(b);
    for (int j = 0; j < 64; j++) {
        out[j] = d * (float)((b[4 + j] & 15) - b[2]);
        out[j + 64] = d * (float)((b[4 + j] >> 4) - b[2]);
    }
}

/* ---- writing */

static int nearest(float x, int low, int high)
{
    float r = x < 0.0f ? x - 0.5f : x + 0.5f;
    return r <= (float)low ? low : r >= (float)high ? high : (int)r;
}

static float magnitude(float x)
{
    return x < 0.0f ? -x : x;
}

/* The value of largest magnitude, with its sign. */
static float extreme(const float *x, int n)
{
    float best = 0.0f;
    for (int i = 0; i < n; i++)
        if (magnitude(x[i]) > magnitude(best)) best = x[i];
    return best;
}

static void range(const float *x, int n, float *low, float *high)
{
    *low = *high = x[0];
    for (int i = 1; i < n; i++) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

static void encode_q4_0(const float *x, uint8_t *b)
{
    float d = extreme(x, 32) / -8.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    put_f16(b, d);
    for (int j = 0; j < 16; j++)
        b[2 + j] = (uint8_t)(nearest(x[j] * inverse + 8.0f, 0, 15) |
                             nearest(x[j + 16] * inverse + 8.0f, 0, 15) << 4);
}

static void encode_q4_1(const float *x, uint8_t *b)
{
    float low, high;
    range(x, 32, &low, &high);
    float d = (high - low) / 15.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    put_f16(b, d);
    put_f16(b + 2, low);
    for (int j = 0; j < 16; j++)
        b[4 + j] = (uint8_t)(nearest((x[j] - low) * inverse, 0, 15) |
                             nearest((x[j + 16] - low) * inverse, 0, 15) << 4);
}

/* Five-bit values into fifth bits and nibbles. */
static void put_five(uint8_t *high, uint8_t *nibbles, int j, int q)
{
    high[j / 8] = (uint8_t)(high[j / 8] | (q >> 4) << j % 8);
    nibbles[j % 16] = (uint8_t)(nibbles[j % 16] | (q & 15) << (j < 16 ? 0 : 4));
}

static void encode_q5_0(const float *x, uint8_t *b)
{
    float d = extreme(x, 32) / -16.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    memset(b, 0, 22);
    put_f16(b, d);
    for (int j = 0; j < 32; j++) put_five(b + 2, b + 6, j, nearest(x[j] * inverse + 16.0f, 0, 31));
}

static void encode_q5_1(const float *x, uint8_t *b)
{
    float low, high;
    range(x, 32, &low, &high);
    float d = (high - low) / 31.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    memset(b, 0, 24);
    put_f16(b, d);
    put_f16(b + 2, low);
    for (int j = 0; j < 32; j++) put_five(b + 4, b + 8, j, nearest((x[j] - low) * inverse, 0, 31));
}

static void encode_q8_0(const float *x, uint8_t *b)
{
    float d = magnitude(extreme(x, 32)) / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    put_f16(b, d);
    for (int j = 0; j < 32; j++) b[2 + j] = (uint8_t)(int8_t)nearest(x[j] * inverse, -127, 127);
}

/* Scale and min of each group of 32, six bits each beside the largest. */
static void group_scales(const float *x, uint8_t *b, int levels, float *a, float *c)
{
    float scales[8], mins[8], scale_max = 0.0f, min_max = 0.0f;
    for (int g = 0; g < 8; g++) {
        float low, high;
        range(x + g * 32, 32, &low, &high);
        if (low > 0.0f) low = 0.0f; /* mins are subtracted, and not negative */
        scales[g] = (high > low ? high - low : 0.0f) / (float)levels;
        mins[g] = -low;
        if (scales[g] > scale_max) scale_max = scales[g];
        if (mins[g] > min_max) min_max = mins[g];
    }
    put_f16(b, scale_max / 63.0f);
    put_f16(b + 2, min_max / 63.0f);
    float d = f16_at(b), m = f16_at(b + 2);
    memset(b + 4, 0, 12);
    for (int g = 0; g < 8; g++) {
        int s = d > 0.0f ? nearest(scales[g] / d, 0, 63) : 0, n = m > 0.0f ? nearest(mins[g] / m, 0, 63) : 0;
        if (g < 4) {
            b[4 + g] = (uint8_t)(b[4 + g] | s);
            b[8 + g] = (uint8_t)(b[8 + g] | n);
        } else {
            b[8 + g] = (uint8_t)((s & 15) | (n & 15) << 4);
            b[g] = (uint8_t)(b[g] | s >> 4 << 6);
            b[4 + g] = (uint8_t)(b[4 + g] | n >> 4 << 6);
        }
        a[g] = d * (float)s;
        c[g] = m * (float)n;
    }
}

static void encode_q4_k(const float *x, uint8_t *b)
{
    float a[8], c[8];
    memset(b, 0, 144);
    group_scales(x, b, 15, a, c);
    for (int i = 0; i < 256; i++) {
        int g = i / 32, q = a[g] > 0.0f ? nearest((x[i] + c[g]) / a[g], 0, 15) : 0;
        b[16 + g / 2 * 32 + i % 32] = (uint8_t)(b[16 + g / 2 * 32 + i % 32] | q << 4 * (g % 2));
    }
}

static void encode_q5_k(const float *x, uint8_t *b)
{
    float a[8], c[8];
    memset(b, 0, 176);
    group_scales(x, b, 31, a, c);
    for (int i = 0; i < 256; i++) {
        int g = i / 32, l = i % 32, q = a[g] > 0.0f ? nearest((x[i] + c[g]) / a[g], 0, 31) : 0;
        b[48 + g / 2 * 32 + l] = (uint8_t)(b[48 + g / 2 * 32 + l] | (q & 15) << 4 * (g % 2));
        b[16 + l] = (uint8_t)(b[16 + l] | q >> 4 << g);
    }
}

static void encode_q2_k(const float *x, uint8_t *b)
{
    float scales[16], mins[16], high;
    memset(b, 0, 84);
    for (int g = 0; g < 16; g++) {
        range(x + g * 16, 16, &mins[g], &high);
        mins[g] = mins[g] < 0.0f ? -mins[g] : 0.0f; /* subtracted, and not negative */
        scales[g] = high > -mins[g] ? (high + mins[g]) / 3.0f : 0.0f;
    }
    put_f16(b + 80, extreme(scales, 16) / 15.0f);
    put_f16(b + 82, extreme(mins, 16) / 15.0f);
    float d = f16_at(b + 80), m = f16_at(b + 82);
    for (int i = 0; i < 256; i++) {
        int g = i / 16, half = i / 128, s = i % 128 / 32, l = i % 32;
        int scale = d > 0.0f ? nearest(scales[g] / d, 0, 15) : 0,
            min = m > 0.0f ? nearest(mins[g] / m, 0, 15) : 0;
        float a = d * (float)scale;
        int q = a > 0.0f ? nearest((x[i] + m * (float)min) / a, 0, 3) : 0;
        b[g] = (uint8_t)(scale | min << 4);
        b[16 + half * 32 + l] = (uint8_t)(b[16 + half * 32 + l] | q << 2 * s);
    }
}

/* Scales of `count` groups of equal size as steps of d, from -31 to 31, so that the largest value of a group
 * becomes `top`; returns d, which is put at `at`. */
static float signed_scales(const float *x, int count, float top, uint8_t *at, int *steps)
{
    float scales[16];
    for (int g = 0; g < count; g++) scales[g] = extreme(x + g * (256 / count), 256 / count) / top;
    put_f16(at, magnitude(extreme(scales, count)) / 31.0f);
    float d = f16_at(at);
    for (int g = 0; g < count; g++) steps[g] = d > 0.0f ? nearest(scales[g] / d, -31, 31) : 0;
    return d;
}

static void encode_q3_k(const float *x, uint8_t *b)
{
    int steps[16];
    memset(b, 0, 110);
    float d = signed_scales(x, 16, -4.0f, b + 108, steps);
    for (int g = 0; g < 16; g++) {
        int scale = steps[g] + 32;
        b[96 + g % 8] = (uint8_t)(b[96 + g % 8] | (scale & 15) << (g < 8 ? 0 : 4));
        b[104 + g % 4] = (uint8_t)(b[104 + g % 4] | scale >> 4 << 2 * (g / 4));
    }
    for (int i = 0; i < 256; i++) {
        int half = i / 128, s = i % 128 / 32, l = i % 32;
        float a = d * (float)steps[i / 16];
        int q = a != 0.0f ? nearest(x[i] / a + 4.0f, 0, 7) : 4;
        b[32 + half * 32 + l] = (uint8_t)(b[32 + half * 32 + l] | (q & 3) << 2 * s);
        b[l] = (uint8_t)(b[l] | q >> 2 << (half * 4 + s));
    }
}

static int nearest_iq4(float x)
{
    int best = 0;
    for (int q = 1; q < 16; q++)
        if (magnitude(x - (float)afd_iq4_values[q]) < magnitude(x - (float)afd_iq4_values[best])) best = q;
    return best;
}

/* 32 values in steps of `a`. */
static void put_iq4(const float *x, float a, uint8_t *nibbles)
{
    for (int j = 0; j < 16; j++)
        nibbles[j] = a != 0.0f ? (uint8_t)(nearest_iq4(x[j] / a) | nearest_iq4(x[j + 16] / a) << 4) : 0x88;
}

static void encode_iq4_nl(const float *x, uint8_t *b)
{
    put_f16(b, extreme(x, 32) / (float)afd_iq4_values[0]);
    put_iq4(x, f16_at(b), b + 2);
}

static void encode_iq4_xs(const float *x, uint8_t *b)
{
    int steps[8];
    memset(b, 0, 136);
    float d = signed_scales(x, 8, (float)afd_iq4_values[0], b, steps);
    for (int g = 0; g < 8; g++) {
        int scale = steps[g] + 32;
        b[2 + g / 4] = (uint8_t)(b[2 + g / 4] | scale >> 4 << 2 * (g % 4));
        b[4 + g / 2] = (uint8_t)(b[4 + g / 2] | (scale & 15) << 4 * (g % 2));
        put_iq4(x + g * 32, d * (float)steps[g], b + 8 + g * 16);
    }
}

static void encode_q6_k(const float *x, uint8_t *b)
{
    float scales[16];
    memset(b, 0, 210);
    for (int g = 0; g < 16; g++) scales[g] = extreme(x + g * 16, 16) / -32.0f;
    float d = magnitude(extreme(scales, 16)) / 127.0f;
    put_f16(b + 208, d);
    d = f16_at(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, s = i % 128 / 32, l = i % 32;
        int scale = d > 0.0f ? nearest(scales[i / 16] / d, -128, 127) : 0;
        float a = d * (float)scale;
        int q = a != 0.0f ? nearest(x[i] / a + 32.0f, 0, 63) : 32;
        b[192 + i / 16] = (uint8_t)(int8_t)scale;
        b[half * 64 + s % 2 * 32 + l] =
            (uint8_t)(b[half * 64 + s % 2 * 32 + l] | (q & 15) << (s < 2 ? 0 : 4));
        b[128 + half * 32 + l] = (uint8_t)(b[128 + half * 32 + l] | q >> 4 << 2 * s);
    }
}

const struct afd_quant afd_quants[AFD_QUANT_COUNT] = {
    [AFD_Q4_0] = {AFD_Q4_0, "Q4_0", 32, 18, decode_q4_0, encode_q4_0},
    [AFD_Q4_1] = {AFD_Q4_1, "Q4_1", 32, 20, decode_q4_1, encode_q4_1},
    [AFD_Q5_0] = {AFD_Q5_0, "Q5_0", 32, 22, decode_q5_0, encode_q5_0},
    [AFD_Q5_1] = {AFD_Q5_1, "Q5_1", 32, 24, decode_q5_1, encode_q5_1},
    [AFD_Q8_0] = {AFD_Q8_0, "Q8_0", 32, 34, decode_q8_0, encode_q8_0},
    [AFD_Q2_K] = {AFD_Q2_K, "Q2_K", 256, 84, decode_q2_k, encode_q2_k},
    [AFD_Q3_K] = {AFD_Q3_K, "Q3_K", 256, 110, decode_q3_k, encode_q3_k},
    [AFD_Q4_K] = {AFD_Q4_K, "Q4_K", 256, 144, decode_q4_k, encode_q4_k},
    [AFD_Q5_K] = {AFD_Q5_K, "Q5_K", 256, 176, decode_q5_k, encode_q5_k},
    [AFD_Q6_K] = {AFD_Q6_K, "Q6_K", 256, 210, decode_q6_k, encode_q6_k},
    [AFD_IQ4_NL] = {AFD_IQ4_NL, "IQ4_NL", 32, 18, decode_iq4_nl, encode_iq4_nl},
    [AFD_IQ4_XS] = {AFD_IQ4_XS, "IQ4_XS", 256, 136, decode_iq4_xs, encode_iq4_xs},
    [AFD_INT4_128] = {AFD_INT4_128, "INT4_128", 128, 68, decode_int4_128, NULL},
};

void afd_quant_read(const struct afd_quant *quant, const void *row, uint64_t k, uint32_t n, float *out)
{
    float block[AFD_QUANT_MAX_VALUES];
    for (uint32_t i = 0; i < n;) {
        uint64_t index = (k + i) / quant->values;
        uint32_t at = (uint32_t)((k + i) % quant->values), count = quant->values - at;
        if (count > n - i) count = n - i;
        quant->decode((const uint8_t *)row + index * quant->bytes, block);
        memcpy(out + i, block + at, count * sizeof *out);
        i += count;
    }
}
