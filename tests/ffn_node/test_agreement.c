/* What both ends of a pair compare. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "deploy/agreement.h"

static struct afd_topology topology_of(void)
{
    struct afd_topology t = {
        .pipeline = {.microbatches = 3, .max_rows = 128, .a2f = AFD_FP8, .f2a = AFD_BF16}};
    t.ffn.ep = 2;
    t.ffn.tp = 8;
    return t;
}

static int same(const struct afd_agreement *a, const struct afd_agreement *b)
{
    return !memcmp(a->model_hash, b->model_hash, AFD_HASH_BYTES) && !strcmp(a->dtypes, b->dtypes) &&
           !strcmp(a->layout, b->layout) && !strcmp(a->numerics, b->numerics);
}

/* Guards: two ranks that lay out or round differently, and agree all the same. */
static void test_every_difference_shows(void **state)
{
    (void)state;
    struct afd_model model = {.hidden = 7168, .layer_count = 61, .max_top_k = 3};
    uint8_t hash[AFD_HASH_BYTES] = {1};
    struct afd_topology t[8];
    struct afd_agreement base, other;
    for (int i = 0; i < 8; i++) t[i] = topology_of();
    afd_agreement_of(&t[0], &model, hash, "portable/2", &base);
    afd_agreement_of(&t[0], &model, hash, "portable/2", &other);
    assert_true(same(&base, &other));
    t[0].pipeline.microbatches = 2;
    t[1].pipeline.max_rows = 64;
    t[2].pipeline.a2f = AFD_BF16;
    t[3].pipeline.f2a = AFD_F32;
    t[4].pipeline.dispatch = AFD_DISPATCH_ROUTED;
    t[5].ffn.ep = 4;
    t[6].ffn.tp = 4;
    t[7].pipeline.gather_us = 5; /* one side's own affair */
    for (int i = 0; i < 8; i++) {
        afd_agreement_of(&t[i], &model, hash, "portable/2", &other);
        assert_int_equal(same(&base, &other), i == 7);
    }
    struct afd_model models[3] = {model, model, model};
    models[0].hidden = 4096;
    models[1].layer_count = 60;
    models[2].max_top_k = 4;
    for (int i = 0; i < 3; i++) {
        afd_agreement_of(&t[7], &models[i], hash, "portable/2", &other);
        assert_false(same(&base, &other));
    }
    afd_agreement_of(&t[7], &model, hash, "native/avx512", &other);
    assert_false(same(&base, &other));
    hash[31] = 1;
    afd_agreement_of(&t[7], &model, hash, "portable/2", &other);
    assert_false(same(&base, &other));
}

/* Guards: words that do not fit at the limits, which would end the process. */
static void test_limits_fit(void **state)
{
    (void)state;
    struct afd_model model = {
        .hidden = AFD_MAX_HIDDEN, .layer_count = AFD_MAX_LAYERS, .max_top_k = AFD_MAX_TOP_K};
    struct afd_topology t = topology_of();
    uint8_t hash[AFD_HASH_BYTES] = {0};
    struct afd_agreement a;
    t.pipeline.microbatches = AFD_MAX_SLOTS;
    t.pipeline.max_rows = AFD_MAX_ROWS;
    t.pipeline.a2f = AFD_F32;
    t.ffn.ep = AFD_MAX_SHARDS;
    t.ffn.tp = AFD_MAX_TP;
    afd_agreement_of(&t, &model, hash, "portable/2", &a);
    assert_non_null(strstr(a.layout, "layers=512"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_difference_shows),
                                       cmocka_unit_test(test_limits_fit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
