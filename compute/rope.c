#include "compute/rope.h"

#include <stdlib.h>
#include <string.h>

static uint64_t double_bits(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static double bits_double(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* sin and cos on [-pi/4, pi/4]: the minimax polynomials of fdlibm's k_sin.c and k_cos.c. */
static double kernel_sin(double r)
{
    double z = r * r;
    double p = 1.58969099521155010221e-10;
    p = p * z + -2.50507602534068634195e-08;
    p = p * z + 2.75573137070700676789e-06;
    p = p * z + -1.98412698298579493134e-04;
    p = p * z + 8.33333333332248946124e-03;
    p = p * z + -1.66666666666666324348e-01;
    return r + r * z * p;
}

static double kernel_cos(double r)
{
    double z = r * r;
    double p = -1.13596475577881948265e-11;
    p = p * z + 2.08757232129817482790e-09;
    p = p * z + -2.75573143513906633035e-07;
    p = p * z + 2.48015872894767294178e-05;
    p = p * z + -1.38888888888741095749e-03;
    p = p * z + 4.16666666666666019037e-02;
    return 1.0 - (0.5 * z - z * z * p);
}

void afd_sin_cos(double x, double *sin_out, double *cos_out)
{
    /* pi/2 in three parts of 33 bits: n times the first two is exact for n below 2^20. */
    const double part1 = 1.57079632673412561417e+00, part2 = 6.07710050630396597660e-11,
                 part3 = 2.02226624879595063154e-21;
    double n = (x * 0.636619772367581343076 + 0x1.8p52) - 0x1.8p52;
    double r = x - n * part1;
    r = r - n * part2;
    r = r - n * part3;
    double s = kernel_sin(r), c = kernel_cos(r);
    switch ((int64_t)n & 3) {
    case 0:
        *sin_out = s, *cos_out = c;
        break;
    case 1:
        *sin_out = c, *cos_out = -s;
        break;
    case 2:
        *sin_out = -s, *cos_out = -c;
        break;
    default:
        *sin_out = -c, *cos_out = s;
        break;
    }
}

/* ln x = e ln 2 + 2 atanh((m - 1) / (m + 1)), m in [sqrt 1/2, sqrt 2): 13 terms leave less than 2^-60. */
static double natural_log(double x)
{
    uint64_t u = double_bits(x);
    int64_t e = (int64_t)(u >> 52) - 1023;
    double m = bits_double((u & 0xfffffffffffffu) | 0x3ff0000000000000u);
    if (m > 1.41421356237309504880) m *= 0.5, e += 1;
    double s = (m - 1.0) / (m + 1.0), z = s * s, sum = 0.0;
    for (int k = 25; k >= 1; k -= 2) sum = sum * z + 1.0 / k;
    return (double)e * 0.693147180559945309417 + 2.0 * s * sum;
}

double afd_power(double base, double exponent)
{
    double x = exponent * natural_log(base);
    double n = (x * 1.44269504088896340736 + 0x1.8p52) - 0x1.8p52;
    double r = x - n * 6.93147180369123816490e-01; /* ln 2 in two parts, as fdlibm's e_exp.c */
    r = r - n * 1.90821492927058770002e-10;
    double sum = 1.0;
    for (int k = 18; k >= 1; k--) sum = sum * r / k + 1.0; /* Taylor, |r| < 0.35 */
    return sum * bits_double((uint64_t)((int64_t)n + 1023) << 52);
}

/* The pair that turns `turns` times in the original context (YaRN, arXiv 2309.00071, section 3.2). */
static double yarn_pair(const struct afd_rope_desc *d, double turns)
{
    return d->dim * natural_log((double)d->original / (turns * 6.28318530717958647693)) /
           (2.0 * natural_log((double)d->theta));
}

static double yarn_step(const struct afd_rope_desc *d, uint32_t i, double step)
{
    double low = __builtin_floor(yarn_pair(d, (double)d->high)),
           high = __builtin_ceil(yarn_pair(d, (double)d->low));
    if (low < 0) low = 0;
    if (high > d->dim - 1.0) high = d->dim - 1.0;
    if (low == high) high += 0.001;
    double ramp = (i - low) / (high - low);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return step / (double)d->factor * ramp + step * (1.0 - ramp);
}

static double llama3_step(const struct afd_rope_desc *d, double step)
{
    double wavelength = 6.28318530717958647693 / step, original = (double)d->original;
    if (wavelength < original / (double)d->high) return step;
    if (wavelength > original / (double)d->low) return step / (double)d->factor;
    double s = (original / wavelength - (double)d->low) / ((double)d->high - (double)d->low);
    return (1.0 - s) * step / (double)d->factor + s * step;
}

/* The angle by which pair i turns from one position to the next. */
static double step_of(const struct afd_rope_desc *d, uint32_t i)
{
    double step = afd_power((double)d->theta, -2.0 * i / d->dim);
    switch (d->scaling) {
    case AFD_ROPE_LINEAR:
        return step / (double)d->factor;
    case AFD_ROPE_LLAMA3:
        return llama3_step(d, step);
    case AFD_ROPE_YARN:
        return yarn_step(d, i, step);
    case AFD_ROPE_TABLE:
        return step / (double)d->table[i];
    default:
        return step;
    }
}

static enum afd_status build(struct afd_rope *rope, uint32_t max_context, struct afd_arena *arena,
                             struct afd_error *error_out)
{
    uint32_t half = rope->dim / 2, highs = max_context / AFD_ROPE_LOW + 1;
    double *low = afd_arena_alloc(arena, (size_t)AFD_ROPE_LOW * half * 2, sizeof *low);
    double *high = afd_arena_alloc(arena, (size_t)highs * half * 2, sizeof *high);
    if (!low || !high) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the rotary tables");
    for (uint32_t i = 0; i < half; i++) {
        double step = step_of(&rope->desc, i);
        for (uint32_t p = 0; p < AFD_ROPE_LOW; p++) {
            double *at = low + ((size_t)p * half + i) * 2;
            afd_sin_cos(p * step, &at[1], &at[0]);
        }
        for (uint32_t p = 0; p < highs; p++) {
            double *at = high + ((size_t)p * half + i) * 2;
            afd_sin_cos((double)p * AFD_ROPE_LOW * step, &at[1], &at[0]);
        }
    }
    rope->low = low;
    rope->high = high;
    return AFD_OK;
}

static int same(const struct afd_rope_desc *a, const struct afd_rope_desc *b)
{
    return a->dim == b->dim && a->theta == b->theta && a->scaling == b->scaling && a->factor == b->factor &&
           a->low == b->low && a->high == b->high && a->original == b->original &&
           a->magnitude == b->magnitude && a->table == b->table;
}

const struct afd_rope *afd_ropes_find(const struct afd_ropes *ropes, const struct afd_attn_desc *attn)
{
    for (uint32_t i = 0; i < ropes->count; i++)
        if (same(&ropes->rope[i].desc, &attn->rope)) return &ropes->rope[i];
    return NULL;
}

enum afd_status afd_ropes_init(struct afd_ropes *ropes, const struct afd_model *model, uint32_t max_context,
                               struct afd_arena *arena, struct afd_error *error_out)
{
    for (uint32_t l = 0; l < model->layer_count; l++) {
        const struct afd_attn_desc *attn = &model->layers[l].attn;
        if (afd_ropes_find(ropes, attn)) continue;
        if (attn->rope.dim % 2 || attn->rope.dim > attn->head_dim || !(attn->rope.theta > 1.0f))
            return afd_fail(
                error_out, AFD_ERR_CONFIG,
                "layer %u: rotary dimension %u of %u, theta %g; expected an even part of the head "
                "and theta above 1",
                l, attn->rope.dim, attn->head_dim, (double)attn->rope.theta);
        if (ropes->count == AFD_MAX_ROPES)
            return afd_fail(error_out, AFD_ERR_LIMIT, "more than %d rotary geometries", AFD_MAX_ROPES);
        struct afd_rope *rope = &ropes->rope[ropes->count++];
        *rope = (struct afd_rope){.dim = attn->rope.dim, .desc = attn->rope};
        enum afd_status status = build(rope, max_context, arena, error_out);
        if (status) return status;
    }
    return AFD_OK;
}

void afd_rope_fill(const struct afd_rope *rope, uint32_t position, float *out)
{
    uint32_t half = rope->dim / 2;
    double magnitude = (double)rope->desc.magnitude;
    const double *a = rope->high + (size_t)(position / AFD_ROPE_LOW) * half * 2;
    const double *b = rope->low + (size_t)(position % AFD_ROPE_LOW) * half * 2;
    for (uint32_t i = 0; i < half; i++) {
        double ca = a[2 * i], sa = a[2 * i + 1], cb = b[2 * i], sb = b[2 * i + 1];
        out[i] = (float)((ca * cb - sa * sb) * magnitude);
        out[half + i] = (float)((sa * cb + ca * sb) * magnitude);
    }
}
