/* The sampler. Guards: a parameter that is ignored or applied in the wrong order, a draw that does not follow
 * its distribution, a result that depends on what was drawn before. Seeds are fixed, so every run draws the
 * same. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute/ref/ref.h"
#include "compute/sample.h"

enum { VOCAB = 50, DRAWS = 20000 };

static float logits[VOCAB];

static struct afd_sampling plain(void)
{
    return (struct afd_sampling){.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .seed = 42};
}

static int setup(void **state)
{
    for (uint32_t i = 0; i < VOCAB; i++) logits[i] = 3.0f * (afd_random_unit(1, i * 7 % 13, i) - 0.5f);
    logits[20] = 4.0f, logits[30] = 3.5f, logits[10] = 3.0f, logits[40] = 3.0f;
    return !(*state = afd_sampler_create(VOCAB, 2));
}

static int teardown(void **state)
{
    afd_sampler_destroy(*state);
    return 0;
}

static struct afd_chosen choose(struct afd_sampler *sampler, const struct afd_sampling *s,
                                const uint32_t *tokens, uint32_t count, uint32_t prompt)
{
    struct afd_choice choice = {
        .sampling = s, .tokens = tokens, .token_count = count, .prompt_count = prompt, .forced = -1};
    struct afd_chosen out;
    afd_sampler_choose(sampler, 0, afd_ref_softmax_terms, logits, &choice, &out);
    return out;
}

/* Draws DRAWS tokens, one a position, into counts [VOCAB]. */
static void histogram(struct afd_sampler *sampler, const struct afd_sampling *s, uint32_t *counts)
{
    memset(counts, 0, VOCAB * sizeof *counts);
    for (uint32_t position = 0; position < DRAWS; position++) {
        struct afd_choice choice = {
            .sampling = s, .token_count = position, .prompt_count = position, .forced = -1};
        struct afd_chosen out;
        afd_sampler_choose(sampler, position % 2, afd_ref_softmax_terms, logits, &choice, &out);
        counts[out.token]++;
    }
}

/* p [VOCAB] = softmax(logits / temperature) over `kept`. */
static void expect(const int *kept, double temperature, double *p)
{
    double sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++) sum += p[i] = kept[i] ? exp((logits[i] - 4.0) / temperature) : 0;
    for (uint32_t i = 0; i < VOCAB; i++) p[i] /= sum;
}

/* Chi-square over tokens with at least 5 expected; 1.6 per degree of freedom is far in the tail for 4 and
 * more, and the seed is fixed, so it does not flicker. */
static void fits(const uint32_t *counts, const double *p)
{
    double chi = 0;
    uint32_t degrees = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        double expected = p[i] * DRAWS;
        if (p[i] == 0 && counts[i]) fail_msg("token %u was drawn %u times; it is excluded", i, counts[i]);
        if (expected < 5) continue;
        chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        degrees++;
    }
    print_message("chi-square %.1f over %u tokens\n", chi, degrees);
    assert_true(degrees >= 2 && chi < 1.6 * degrees + 6);
}

static void greedy_takes_the_lowest_of_equals(void **state)
{
    struct afd_sampling s = plain();
    s.temperature = 0;
    assert_int_equal(choose(*state, &s, NULL, 0, 0).token, 20);
    logits[15] = 4.0f;
    assert_int_equal(choose(*state, &s, NULL, 0, 0).token, 15);
    logits[15] = 0.0f;
}

static void temperature_follows_softmax(void **state)
{
    uint32_t counts[VOCAB];
    double p[VOCAB];
    int kept[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++) kept[i] = 1;
    const float temperatures[] = {1.0f, 0.5f, 1.7f};
    for (int t = 0; t < 3; t++) {
        struct afd_sampling s = plain();
        s.temperature = temperatures[t], s.seed = 100 + (uint64_t)t;
        histogram(*state, &s, counts);
        expect(kept, temperatures[t], p);
        fits(counts, p);
    }
}

static void top_k_keeps_k(void **state)
{
    uint32_t counts[VOCAB];
    double p[VOCAB];
    int kept[VOCAB] = {[20] = 1, [30] = 1, [10] = 1}; /* 10 and 40 are equal: the lower id stays */
    struct afd_sampling s = plain();
    s.top_k = 3;
    histogram(*state, &s, counts);
    expect(kept, 1.0, p);
    fits(counts, p);
}

static void top_p_keeps_the_token_that_crosses(void **state)
{
    uint32_t counts[VOCAB], order[VOCAB];
    double p[VOCAB], all[VOCAB], sum = 0;
    int kept[VOCAB] = {0}, every[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++) every[i] = 1, order[i] = i;
    expect(every, 1.0, all);
    for (uint32_t i = 0; i < VOCAB; i++)
        for (uint32_t j = i + 1; j < VOCAB; j++)
            if (all[order[j]] > all[order[i]]) {
                uint32_t t = order[i];
                order[i] = order[j], order[j] = t;
            }
    for (uint32_t i = 0; i < VOCAB && sum < 0.6; i++) sum += all[order[i]], kept[order[i]] = 1;
    struct afd_sampling s = plain();
    s.top_p = 0.6f;
    histogram(*state, &s, counts);
    expect(kept, 1.0, p);
    fits(counts, p);
    s.top_p = 1e-6f;
    for (uint32_t i = 0; i < 50; i++) assert_int_equal(choose(*state, &s, NULL, 0, 0).token, 20);
}

static void min_p_is_relative_to_the_best(void **state)
{
    uint32_t counts[VOCAB];
    double p[VOCAB];
    int kept[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++) kept[i] = exp(logits[i] - 4.0) >= 0.3;
    struct afd_sampling s = plain();
    s.min_p = 0.3f;
    histogram(*state, &s, counts);
    expect(kept, 1.0, p);
    fits(counts, p);
}

static void penalties_count_the_right_tokens(void **state)
{
    struct afd_sampling s = plain();
    uint32_t tokens[] = {20, 20, 30, 30, 30};
    s.temperature = 0;
    s.repetition_penalty = 1.5f; /* 4 / 1.5 and 3.5 / 1.5 fall below 3: prompt and generated */
    assert_int_equal(choose(*state, &s, tokens, 5, 5).token, 10);
    s.repetition_penalty = 1.0f, s.presence_penalty = 0.75f; /* generated only: 30 -> 2.75 */
    assert_int_equal(choose(*state, &s, tokens, 5, 2).token, 20);
    assert_int_equal(choose(*state, &s, tokens, 5, 0).token, 20); /* 20 -> 3.25 */
    s.presence_penalty = 0, s.frequency_penalty = 0.6f;           /* 20 -> 2.8, 30 -> 1.7 */
    assert_int_equal(choose(*state, &s, tokens, 5, 0).token, 10);
    s.frequency_penalty = 0.3f; /* 20 -> 3.4, 30 -> 2.6 */
    assert_int_equal(choose(*state, &s, tokens, 5, 0).token, 20);
    s.frequency_penalty = 0; /* and nothing is left behind */
    assert_int_equal(choose(*state, &s, tokens, 5, 0).token, 20);
    tokens[0] = 5000; /* out of range: ignored */
    s.repetition_penalty = 2.0f;
    assert_int_equal(choose(*state, &s, tokens, 5, 3).token, 10);
}

static void bias_and_min_tokens(void **state)
{
    struct afd_sampling s = plain();
    struct afd_logit_bias bias[] = {{7, 50.0f}, {9999, 5.0f}};
    uint32_t stop[] = {20, 30, 12345}, tokens[] = {1, 2, 3};
    s.temperature = 0, s.bias = bias, s.bias_count = 2;
    assert_int_equal(choose(*state, &s, NULL, 0, 0).token, 7);
    s.bias_count = 0, s.stop_tokens = stop, s.stop_count = 3, s.min_tokens = 2;
    assert_int_equal(choose(*state, &s, tokens, 2, 1).token, 10); /* one generated: stops are masked */
    assert_int_equal(choose(*state, &s, tokens, 3, 1).token, 20); /* two: no more */
    s.temperature = 1.0f;                                         /* masked tokens are not drawn either */
    for (uint32_t i = 0; i < 500; i++) {
        s.seed = i;
        uint32_t t = choose(*state, &s, tokens, 2, 1).token;
        assert_true(t != 20 && t != 30);
    }
}

static void logprobs_are_of_unmodified_logits(void **state)
{
    struct afd_sampling s = plain();
    struct afd_logit_bias bias = {7, 50.0f};
    double sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++) sum += exp((double)logits[i]);
    s.temperature = 0.1f, s.bias = &bias, s.bias_count = 1, s.logprobs = 1 + 4;
    struct afd_chosen out = choose(*state, &s, NULL, 0, 0);
    assert_int_equal(out.token, 7);
    assert_true(fabs(out.logprob - (logits[7] - log(sum))) < 1e-5);
    const uint32_t best[] = {20, 30, 10, 40}; /* equal ones: lower id first */
    assert_int_equal(out.top_count, 4);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(out.top_tokens[i], best[i]);
        assert_true(fabs(out.top_logprobs[i] - (logits[best[i]] - log(sum))) < 1e-5);
    }
    struct afd_choice forced = {.sampling = &s, .forced = 33};
    afd_sampler_choose(*state, 0, afd_ref_softmax_terms, logits, &forced, &out);
    assert_int_equal(out.token, 33);
    assert_true(fabs(out.logprob - (logits[33] - log(sum))) < 1e-5);
}

static void a_draw_depends_on_seed_and_position_alone(void **state)
{
    struct afd_sampling s = plain();
    uint32_t first[200], differs = 0;
    for (uint32_t i = 0; i < 200; i++) first[i] = choose(*state, &s, NULL, i, i).token;
    for (uint32_t i = 200; i-- > 0;) assert_int_equal(choose(*state, &s, NULL, i, i).token, first[i]);
    s.seed = 43;
    for (uint32_t i = 0; i < 200; i++) differs += choose(*state, &s, NULL, i, i).token != first[i];
    assert_true(differs > 50);
}

static void everything_masked_still_ends(void **state)
{
    struct afd_sampling s = plain();
    float saved[VOCAB];
    memcpy(saved, logits, sizeof saved);
    for (uint32_t i = 0; i < VOCAB; i++) logits[i] = -INFINITY;
    assert_int_equal(choose(*state, &s, NULL, 0, 0).token, 0);
    for (uint32_t i = 0; i < VOCAB; i++) logits[i] = NAN;
    assert_true(choose(*state, &s, NULL, 0, 0).token < VOCAB);
    memcpy(logits, saved, sizeof saved);
    s.temperature = 1e-30f;
    assert_int_equal(choose(*state, &s, NULL, 0, 0).token, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(greedy_takes_the_lowest_of_equals),
                                       cmocka_unit_test(temperature_follows_softmax),
                                       cmocka_unit_test(top_k_keeps_k),
                                       cmocka_unit_test(top_p_keeps_the_token_that_crosses),
                                       cmocka_unit_test(min_p_is_relative_to_the_best),
                                       cmocka_unit_test(penalties_count_the_right_tokens),
                                       cmocka_unit_test(bias_and_min_tokens),
                                       cmocka_unit_test(logprobs_are_of_unmodified_logits),
                                       cmocka_unit_test(a_draw_depends_on_seed_and_position_alone),
                                       cmocka_unit_test(everything_masked_still_ends)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
