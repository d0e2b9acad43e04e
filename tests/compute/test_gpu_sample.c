/* The GPU's choice of tokens (compute/cuda/bodies_sample.h, on the GPU that the CPU plays) against the CPU's,
 * bit for bit. Guards: another order of sums or of equal tokens, a candidate that is lost, a row that should
 * have been left to the CPU and was not, or was and should not have been. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "compute/cuda/gpu.h"
#include "compute/ref/ref.h"
#include "compute/sample.h"

enum { MAX_VOCAB = 9000, SEEDS = 6, NO_TOKEN_FORCED = -1 };

struct bench {
    struct afd_gpu *gpu;
    uint64_t marked;
    struct afd_sampler *sampler;
    uint32_t vocab;
    float *logits;
    uint32_t chosen, left;
};

static struct bench open_bench(uint32_t vocab)
{
    struct bench b = {.vocab = vocab, .sampler = afd_sampler_create(vocab, 1)};
    struct afd_error error;
    assert_int_equal(afd_gpu_open(0, &b.gpu, &error), AFD_OK);
    b.logits = afd_gpu_alloc(b.gpu, 2 * MAX_VOCAB * sizeof *b.logits);
    return b;
}

static void close_bench(struct bench *b)
{
    afd_gpu_free(b->gpu, b->logits);
    afd_gpu_close(b->gpu);
    afd_sampler_destroy(b->sampler);
}

/* Row 1 of two, so that a row that is not looked up shows. */
static float *row_of(struct bench *b)
{
    return b->logits + MAX_VOCAB;
}

/* 1 when the GPU chose; then it chose as the CPU. */
static int compare(struct bench *b, struct afd_sampling s, int64_t forced)
{
    struct afd_choice choice = {
        .logit_row = 1, .sampling = &s, .token_count = 7, .prompt_count = 7, .forced = forced};
    struct afd_chosen expected;
    struct afd_gpu_chosen got;
    struct afd_gpu_choice c = {.logit_row = 1,
                               .top_k = s.top_k,
                               .best = s.logprobs > 1 ? s.logprobs - 1 : 0,
                               .forced = forced < 0 ? AFD_SAMPLE_NO_TOKEN : (uint32_t)forced,
                               .temperature = s.temperature,
                               .top_p = s.top_p,
                               .min_p = s.min_p,
                               .unit = afd_random_unit(s.seed, 7, 0)};
    struct afd_args_sample args = {b->logits, &c, &got, MAX_VOCAB, b->vocab};
    memset(&got, 0xff, sizeof got);
    for (uint32_t i = 0; i < MAX_VOCAB; i++) b->logits[i] = NAN;
    assert_false(afd_choice_changes_logits(&choice));
    afd_gpu_launch(b->gpu, AFD_KERNEL_sample, 1, AFD_SAMPLE_PHASES, &args);
    afd_gpu_mark(b->gpu, ++b->marked);
    assert_int_equal(afd_gpu_wait(b->gpu, 0, b->marked), AFD_OK);
    assert_true(got.is_chosen <= 1);
    b->left += !got.is_chosen, b->chosen += got.is_chosen;
    if (!got.is_chosen) return 0;
    afd_sampler_choose(b->sampler, 0, afd_ref_softmax_terms, row_of(b), &choice, &expected);
    assert_int_equal(got.chosen.token, expected.token);
    assert_memory_equal(&got.chosen.logprob, &expected.logprob, sizeof expected.logprob);
    assert_int_equal(got.chosen.top_count, expected.top_count);
    assert_memory_equal(got.chosen.top_tokens, expected.top_tokens, expected.top_count * sizeof(uint32_t));
    assert_memory_equal(got.chosen.top_logprobs, expected.top_logprobs, expected.top_count * sizeof(float));
    return 1;
}

/* spread: of the logits; steps: how many different ones, so that some are equal. */
static void fill(struct bench *b, float spread, uint32_t steps, uint64_t seed)
{
    for (uint32_t i = 0; i < MAX_VOCAB; i++)
        row_of(b)[i] =
            i < b->vocab ? spread * (floorf(afd_random_unit(seed, i, 1) * (float)steps) / (float)steps - 0.5f)
                         : NAN;
}

static struct afd_sampling plain(uint64_t seed)
{
    return (struct afd_sampling){
        .temperature = 0.8f, .top_p = 1.0f, .repetition_penalty = 1.0f, .seed = seed};
}

static void every_way(struct bench *b, uint64_t seed)
{
    struct afd_sampling s = plain(seed);
    compare(b, s, NO_TOKEN_FORCED);
    s.logprobs = 6;
    compare(b, s, NO_TOKEN_FORCED);
    compare(b, s, (int64_t)(seed * 31 % b->vocab));
    s.temperature = 0;
    assert_true(compare(b, s, NO_TOKEN_FORCED) || b->left);
    s = plain(seed), s.top_k = 40;
    compare(b, s, NO_TOKEN_FORCED);
    s.top_p = 0.9f;
    compare(b, s, NO_TOKEN_FORCED);
    s.top_k = 0, s.min_p = 0.05f;
    compare(b, s, NO_TOKEN_FORCED);
    s = plain(seed), s.min_p = 0.3f, s.temperature = 1.7f, s.top_k = 5000;
    compare(b, s, NO_TOKEN_FORCED);
}

static void as_the_cpu(void **state)
{
    (void)state;
    const uint32_t vocabularies[] = {1, 50, 128, 1000, 1024, 1025, MAX_VOCAB};
    for (size_t v = 0; v < sizeof vocabularies / sizeof *vocabularies; v++) {
        struct bench b = open_bench(vocabularies[v]);
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            fill(&b, seed % 2 ? 60.0f : 14.0f, seed % 3 ? 1u << 20 : 300, seed);
            if (seed == 3)
                for (uint32_t i = 0; i < b.vocab / 2; i++) row_of(&b)[i * 2] = -INFINITY;
            every_way(&b, seed);
        }
        print_message("vocabulary of %u: %u chosen, %u left\n", b.vocab, b.chosen, b.left);
        assert_true(b.vocab > AFD_SAMPLE_CANDIDATES ? b.chosen > b.left : b.left == 0);
        close_bench(&b);
    }
}

/* What the candidates do not decide is left, and so is what is no number; greedy needs no candidates. */
static void left_to_the_cpu(void **state)
{
    (void)state;
    struct bench b = open_bench(MAX_VOCAB);
    struct afd_sampling s = plain(1), greedy = s, best = s, few = s;
    greedy.temperature = 0, best.temperature = 0, best.logprobs = 3, few.top_k = 3;
    fill(&b, 0.0f, 1, 1); /* all equal */
    assert_false(compare(&b, s, NO_TOKEN_FORCED));
    assert_false(compare(&b, few, NO_TOKEN_FORCED));
    assert_false(compare(&b, best, NO_TOKEN_FORCED));
    assert_true(compare(&b, greedy, NO_TOKEN_FORCED));
    fill(&b, 0.5f, 1u << 20, 1); /* nearly: what is drawn lies behind the first thousand */
    assert_false(compare(&b, s, NO_TOKEN_FORCED));
    assert_true(compare(&b, few, NO_TOKEN_FORCED) && compare(&b, best, NO_TOKEN_FORCED));
    row_of(&b)[100] = NAN;
    assert_false(compare(&b, greedy, NO_TOKEN_FORCED));
    row_of(&b)[100] = INFINITY;
    assert_false(compare(&b, greedy, NO_TOKEN_FORCED));
    for (uint32_t i = 0; i < b.vocab; i++) row_of(&b)[i] = i == 77 ? -0.0f : i == 99 ? 0.0f : -INFINITY;
    assert_true(compare(&b, greedy, NO_TOKEN_FORCED)); /* -0 is no less than 0: the lower token */
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_the_cpu), cmocka_unit_test(left_to_the_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
