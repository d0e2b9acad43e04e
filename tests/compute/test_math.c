/* exp, log, SiLU, and the double functions behind the rotary tables, against libm. Guards: a wrong constant;
 * a value at a border of a range reduction. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/rng.h"
#include "compute/math.h"
#include "compute/rope.h"

/* Distance in units of the last place of the float nearest to `exact`. */
static double ulps(float got, double exact)
{
    float nearest = (float)exact;
    double unit = nexttowardf(fabsf(nearest), INFINITY) - (double)fabsf(nearest);
    return fabs((double)got - exact) / unit;
}

static void exp_is_within_2_ulp(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t i = 0; i < 2000000; i++) {
        float x = -87.3f + 175.6f * afd_random_unit(1, i, 0);
        if (i % 2) x = (x + 0.35f) * 0.02f; /* around 0, where softmax lives */
        worst = fmax(worst, ulps(afd_exp(x), exp((double)x)));
    }
    print_message("exp: %.3f ulp\n", worst);
    assert_true(worst < 2.0);
    assert_true(afd_exp(0.0f) == 1.0f && afd_exp(-0.0f) == 1.0f);
    assert_true(afd_exp(-INFINITY) == 0.0f && afd_exp(-88.0f) == 0.0f && afd_exp(-1000.0f) == 0.0f);
    assert_true(isfinite(afd_exp(INFINITY)) && afd_exp(INFINITY) == afd_exp(89.0f));
    assert_true(isnan(afd_exp(NAN)));
}

static void log_is_within_2_ulp(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t i = 0; i < 2000000; i++) {
        float x = afd_bits_float(0x00800000u + (uint32_t)(afd_random(2, i, 0) % 0x7f000000u));
        if (i % 2) x = 0.5f + 2.0f * afd_random_unit(2, i, 1);
        worst = fmax(worst, ulps(afd_log(x), log((double)x)));
    }
    print_message("log: %.3f ulp\n", worst);
    assert_true(worst < 2.0);
    assert_true(afd_log(1.0f) == 0.0f);
}

static void silu_is_close(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 200000; i++) {
        float x = -80.0f + 160.0f * afd_random_unit(3, i, 0);
        double exact = (double)x / (1.0 + exp(-(double)x));
        if (ulps(afd_silu(x), exact) > 4.0)
            fail_msg("SiLU(%.9g) is %.9g, expected %.17g", x, afd_silu(x), exact);
    }
    assert_true(afd_silu(0.0f) == 0.0f && afd_silu(-1e30f) == -0.0f && isnan(afd_silu(NAN)));
}

static void rotations_are_within_their_bound(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t i = 0; i < 300000; i++) {
        double s, c, x = (i % 2 ? 1048576.0 : 10.0) * ((double)afd_random(4, i, 0) * 0x1p-64);
        afd_sin_cos(x, &s, &c);
        worst = fmax(worst, fmax(fabs(s - sin(x)), fabs(c - cos(x))));
    }
    assert_true(worst < 0x1p-50);
    worst = 0;
    for (uint32_t i = 0; i < 2000; i++) {
        double base = 10.0 + 1e6 * ((double)afd_random(5, i, 0) * 0x1p-64), e = -((double)i / 2000);
        worst = fmax(worst, fabs(afd_power(base, e) / pow(base, e) - 1.0));
    }
    print_message("power: %.3g relative\n", worst);
    assert_true(worst < 0x1p-46); /* the error of a logarithm of 14, times an ulp */
}

/* The two-level table gives what one table of all positions would, to a float32. */
static void table_is_exact_to_float(void **state)
{
    (void)state;
    enum { CONTEXT = 70000, DIM = 64 };
    struct afd_layer layer = {
        .attn = {
            .heads = 1, .kv_heads = 1, .head_dim = DIM, .rope = {.dim = DIM, .theta = 5e5f, .magnitude = 1}}};
    struct afd_model model = {.layer_count = 1, .layers = &layer};
    struct afd_ropes ropes = {0};
    struct afd_error error;
    struct afd_arena *arena = afd_arena_create(0);
    float out[DIM];
    assert_int_equal(afd_ropes_init(&ropes, &model, CONTEXT, arena, &error), AFD_OK);
    for (uint32_t p = 0; p <= CONTEXT; p += p < 600 ? 1 : 977) {
        afd_rope_fill(&ropes.rope[0], p, out);
        for (uint32_t i = 0; i < DIM / 2; i++) {
            double angle = p * pow(5e5, -2.0 * i / DIM);
            assert_true(fabs(out[i] - cos(angle)) < 6.1e-8 && fabs(out[DIM / 2 + i] - sin(angle)) < 6.1e-8);
        }
    }
    afd_arena_destroy(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(exp_is_within_2_ulp),
                                       cmocka_unit_test(log_is_within_2_ulp), cmocka_unit_test(silu_is_close),
                                       cmocka_unit_test(rotations_are_within_their_bound),
                                       cmocka_unit_test(table_is_exact_to_float)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
