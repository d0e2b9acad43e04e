/* rope.h: cosines and sines of rotary embedding (Su et al., arXiv 2104.09864), computed with IEEE double
 * arithmetic alone, so that every machine has the same tables.
 *
 * A full table of max_context positions can take gigabytes. Instead position = 256 hi + lo has two small
 * tables in double, and a row's cosines come by angle addition, once a step: cos(a + b) = cos a cos b - sin a
 * sin b, rounded to float32 at the end. At a million tokens and 128 pairs the tables take 9 MiB. */
#ifndef AFD_COMPUTE_ROPE_H
#define AFD_COMPUTE_ROPE_H

#include <stdint.h>

#include "base/arena.h"
#include "model/model.h"

enum { AFD_MAX_ROPES = 4, AFD_ROPE_LOW = 256 };

struct afd_rope {
    uint32_t dim;
    struct afd_rope_desc desc; /* of the first layer that has it */
    const double *low;         /* [AFD_ROPE_LOW][dim / 2][cos, sin] of position lo */
    const double *high;        /* [max_context / 256 + 1][dim / 2][cos, sin] of position 256 hi */
};

/* The distinct geometries of a model's layers. */
struct afd_ropes {
    uint32_t count;
    struct afd_rope rope[AFD_MAX_ROPES];
};

enum afd_status afd_ropes_init(struct afd_ropes *ropes, const struct afd_model *model, uint32_t max_context,
                               struct afd_arena *arena, struct afd_error *error_out);
const struct afd_rope *afd_ropes_find(const struct afd_ropes *ropes, const struct afd_attn_desc *attn);
/* out: cosines [dim / 2], then sines [dim / 2]. */
void afd_rope_fill(const struct afd_rope *rope, uint32_t position, float *out);

/* Their parts, for tests: within 2^-50 of the true value for 0 <= x <= 2^20 (sin, cos), relative for the
 * rest. */
void afd_sin_cos(double x, double *sin_out, double *cos_out);
double afd_power(double base, double exponent); /* base > 0 */

#endif
