/* The cpu and cuda devices against the reference, bit for bit, and every device against itself: the result of
 * a row must not depend on the batch, the chunks, the slot, the threads or the dispatch. Guards: a kernel
 * whose rounding differs for some size or type; a tail read past its end; a sum whose order depends on the
 * batch.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/compute/machine.h"

enum { SEQUENCES = 3, LENGTH = 70 };

/* What a schedule of steps gave: logits of every token of every sequence, and what crossed the wire. */
struct outcome {
    float *logits; /* [SEQUENCES][LENGTH][vocab] */
    size_t count;
    uint64_t trace;
};

enum schedule { ALONE_AT_ONCE, TOGETHER_ONE_BY_ONE, RANDOM_CHUNKS };

struct driver {
    struct machine *machine;
    uint32_t tokens[SEQUENCES][LENGTH], blocks[SEQUENCES][LENGTH], done[SEQUENCES];
    float *step_logits;
    struct outcome out;
};

/* Advances each sequence by count[s] tokens in one step. */
static void advance(struct driver *d, uint32_t slot, const uint32_t *count)
{
    struct afd_segment segments[SEQUENCES];
    uint32_t tokens[SEQUENCES * LENGTH], rows = 0, used = 0, vocab = d->machine->model->vocab;
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        if (!count[s]) continue;
        uint32_t blocks = (d->done[s] + count[s] - 1) / d->machine->config.kv_block_tokens + 1;
        segments[used++] = (struct afd_segment){rows, count[s], d->done[s], d->blocks[s], blocks, 0};
        memcpy(tokens + rows, d->tokens[s] + d->done[s], count[s] * sizeof *tokens);
        rows += count[s];
    }
    machine_step(d->machine, slot, &(struct afd_step){rows, used, tokens, segments}, d->step_logits);
    rows = 0;
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        memcpy(d->out.logits + ((size_t)s * LENGTH + d->done[s]) * vocab,
               d->step_logits + (size_t)rows * vocab, (size_t)count[s] * vocab * sizeof(float));
        d->done[s] += count[s];
        rows += count[s];
    }
}

static struct outcome run(const char *dir, struct machine_config config, enum schedule schedule)
{
    struct machine m = machine_open(dir, config);
    struct driver d = {.machine = &m};
    uint32_t per = (LENGTH - 1) / config.kv_block_tokens + 1;
    d.out.count = (size_t)SEQUENCES * LENGTH * m.model->vocab;
    d.out.logits = malloc(d.out.count * sizeof(float));
    d.step_logits = malloc((size_t)config.max_rows * m.model->vocab * sizeof(float));
    for (uint32_t s = 0; s < SEQUENCES; s++)
        for (uint32_t i = 0; i < LENGTH; i++) {
            d.tokens[s][i] = (uint32_t)(afd_random(s, i, 3) % m.model->vocab);
            d.blocks[s][i] = i < per ? (config.kv_blocks - 1 - (s + i * SEQUENCES)) : 0;
        }
    for (uint32_t step = 0; d.done[0] < LENGTH || d.done[1] < LENGTH || d.done[2] < LENGTH; step++) {
        uint32_t count[SEQUENCES] = {0}, rows = 0;
        for (uint32_t s = 0; s < SEQUENCES; s++) {
            uint32_t left = LENGTH - d.done[s];
            if (schedule == ALONE_AT_ONCE) count[s] = rows ? 0 : left;
            if (schedule == TOGETHER_ONE_BY_ONE) count[s] = left > 0;
            if (schedule == RANDOM_CHUNKS) count[s] = (uint32_t)(afd_random(9, step, s) % 23);
            if (count[s] > left) count[s] = left;
            rows += count[s];
        }
        if (rows) advance(&d, schedule == RANDOM_CHUNKS ? step % config.slots : 0, count);
    }
    d.out.trace = m.trace;
    free(d.step_logits);
    machine_close(&m);
    return d.out;
}

static void must_equal(const struct outcome *a, const struct outcome *b, int same_schedule, const char *what)
{
    for (size_t i = 0; i < a->count; i++)
        if (memcmp(&a->logits[i], &b->logits[i], sizeof(float)))
            fail_msg("%s: logit %zu is %.9g, expected %.9g", what, i, b->logits[i], a->logits[i]);
    if (same_schedule && a->trace != b->trace) fail_msg("%s: messages differ, logits do not", what);
}

/* config.type == ref; then other schedules, threads and dispatch of it. */
static void compare_type(const char *dir, const struct afd_tiny_model *tiny, struct machine_config config,
                         uint32_t threads, const struct outcome *expected)
{
    char what[160];
    for (config.threads = 1; config.threads <= threads; config.threads++) {
        struct outcome got = run(dir, config, RANDOM_CHUNKS);
        snprintf(
            what, sizeof what, "device type %d, %s weights, kv %s, a2f %s, f2a %s, ep %u, tp %u, %u threads",
            (int)config.type, afd_dtype_name(tiny->dtype), afd_kv_dtype_name(config.kv),
            afd_dtype_name(config.a2f), afd_dtype_name(config.f2a), config.ep, config.tp, config.threads);
        must_equal(expected, &got, 1, what);
        free(got.logits);
    }
    config.threads = 1;
    config.routed = !config.routed;
    struct outcome at_once = run(dir, config, ALONE_AT_ONCE);
    must_equal(expected, &at_once, 0, "each sequence alone, at once, other dispatch");
    free(at_once.logits);
    if (config.type == AFD_DEVICE_CUDA)
        return; /* emulated, many short steps take long; random chunks have some */
    struct outcome one_by_one = run(dir, config, TOGETHER_ONE_BY_ONE);
    must_equal(expected, &one_by_one, 0, "one by one, together, other dispatch");
    free(one_by_one.logits);
}

static void compare(const struct afd_tiny_model *tiny, struct machine_config config, uint32_t threads)
{
    char dir[64];
    machine_write(tiny, dir);
    config.type = AFD_DEVICE_REF;
    struct outcome expected = run(dir, config, RANDOM_CHUNKS);
    for (int t = 0; t < 2; t++) {
        config.type = t ? AFD_DEVICE_CUDA : AFD_DEVICE_CPU;
        if (t && config.kv > AFD_KV_FP8) continue; /* which cuda refuses */
        if (machine_has(config.type)) compare_type(dir, tiny, config, t ? 1 : threads, &expected);
    }
    free(expected.logits);
    machine_remove(dir);
}

static void weight_types(void **state)
{
    (void)state;
    const enum afd_dtype types[] = {AFD_F32, AFD_BF16, AFD_F16};
    for (size_t i = 0; i < 3; i++) {
        struct afd_tiny_model tiny = afd_tiny_model_awkward();
        struct machine_config config = machine_plain(AFD_DEVICE_CPU);
        tiny.dtype = types[i];
        config.kv = (enum afd_kv_dtype)types[2 - i];
        config.ep = 3, config.instances = 2;
        config.f2a = i ? AFD_BF16 : AFD_F32;
        config.kv_block_tokens = (uint32_t[]){16, 64, 24}[i];
        compare(&tiny, config, 3);
    }
}

/* Scales in float32, and in bf16 as Qwen's checkpoints have them. */
static void fp8_weights(void **state)
{
    (void)state;
    const enum afd_tiny_family families[] = {AFD_TINY_STEP3, AFD_TINY_QWEN3_MOE};
    for (size_t i = 0; i < 2; i++) {
        struct afd_tiny_model tiny = afd_tiny_model_as(afd_tiny_model_fp8(), families[i]);
        struct machine_config config = machine_plain(AFD_DEVICE_CPU);
        config.a2f = AFD_FP8, config.f2a = AFD_BF16, config.kv = AFD_KV_BF16;
        config.ep = 2;
        compare(&tiny, config, 2);
    }
}

static void tensor_parallel(void **state)
{
    (void)state;
    const uint32_t members[] = {2, 8};
    for (size_t i = 0; i < 2; i++) {
        struct afd_tiny_model tiny = afd_tiny_model_awkward();
        struct machine_config config = machine_plain(AFD_DEVICE_CPU);
        tiny.dtype = AFD_BF16;
        config.tp = members[i], config.ep = 2, config.a2f = AFD_BF16;
        compare(&tiny, config, 2);
    }
}

static void odd_columns(void **state)
{
    (void)state; /* rows of a matrix start at odd addresses, and end a vector short */
    struct afd_tiny_model tiny = afd_tiny_model_small();
    struct machine_config config = machine_plain(AFD_DEVICE_CPU);
    tiny.hidden = 131, tiny.q_rank = 17, tiny.expert_intermediate = 33, tiny.shared_intermediate = 0;
    tiny.intermediate = 19, tiny.layers = 3, tiny.tied_head = 1;
    config.kv = AFD_KV_F16, config.a2f = AFD_F16, config.kv_block_tokens = 7;
    compare(&tiny, config, 2);
}

/* Heads of a group and a part of one, and of whole groups; blocks of the cache that attention's cross. */
static void packed_kv(void **state)
{
    (void)state;
    const enum afd_kv_dtype types[] = {AFD_KV_FP8, AFD_KV_INT8, AFD_KV_INT4};
    for (size_t i = 0; i < 3; i++) {
        struct afd_tiny_model tiny = i == 1 ? afd_tiny_model_small() : afd_tiny_model_awkward();
        struct machine_config config = machine_plain(AFD_DEVICE_CPU);
        config.kv = types[i];
        config.kv_block_tokens = i ? 16 : 24;
        compare(&tiny, config, 2);
    }
}

/* |got - expected| / |expected| over all logits. */
static double distance(const struct outcome *got, const struct outcome *expected)
{
    double off = 0, all = 0;
    for (size_t i = 0; i < expected->count; i++) {
        double x = (double)expected->logits[i], d = (double)got->logits[i] - x;
        off += d * d, all += x * x;
    }
    return sqrt(off / all);
}

/* The GPU's own products: the same bits in every schedule, and near to ref. bf16: rows, queries and terms are
 * rounded, 2^-9 each and more; what then lies on the other side of a step of the KV cache is off by 2^-8
 * there, 2^-4 with fp8. e4m3: rows of every product are, 2^-5 in the mean over a binade. Dense layers: a
 * router that chooses otherwise between near equals would hide the rest. Guards: an operand of a launch that
 * the kernels' own tests do not have: a table, a pitch, a layer's kind, parts that nobody adds. */
struct native_case {
    enum afd_tiny_family family;
    enum afd_dtype dtype;
    uint32_t hidden; /* K of 520 is cut into parts */
    enum afd_kv_dtype kv;
    double tolerance;
    int heads_of_blocks; /* of fp8, whole: kv_b's parts keep their scales */
};

static void check_native(const struct native_case *n)
{
    char dir[64];
    struct afd_tiny_model tiny = afd_tiny_model_small();
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    tiny.head_dim = 64, tiny.q_rank = 48; /* rows of K that the kernels take, in every family */
    tiny = afd_tiny_model_as(tiny, n->family);
    tiny.moe_layers = "", tiny.dtype = n->dtype, tiny.hidden = n->hidden, tiny.layers = 2;
    if (n->heads_of_blocks) tiny.head_dim = 160, tiny.rope_dim = 32, tiny.value_dim = 128, tiny.kv_rank = 144;
    config.kv = n->kv;
    machine_write(&tiny, dir);
    struct outcome expected = run(dir, config, RANDOM_CHUNKS);
    config.type = AFD_DEVICE_CUDA, config.numerics = AFD_NUMERICS_NATIVE;
    if (machine_has(config.type)) {
        struct outcome got = run(dir, config, RANDOM_CHUNKS), alone = run(dir, config, ALONE_AT_ONCE);
        double off = distance(&got, &expected);
        print_message("%s, %s, hidden %u, kv %s: off by %.2g, at most %.2g\n",
                      afd_tiny_family_name(tiny.family), afd_dtype_name(n->dtype), n->hidden,
                      afd_kv_dtype_name(config.kv), off, n->tolerance);
        assert_true(off > 0 && off < n->tolerance);
        must_equal(&got, &alone, 0, "each sequence alone, at once");
        free(got.logits), free(alone.logits);
    }
    free(expected.logits);
    machine_remove(dir);
}

static void native(void **state)
{
    (void)state;
    const struct native_case cases[] = {
        {AFD_TINY_STEP3, AFD_BF16, 64, AFD_KV_BF16, 0.02, 0},
        {AFD_TINY_STEP3P5, AFD_BF16, 520, AFD_KV_FP8, 0.02, 0},
        {AFD_TINY_DEEPSEEK_V3, AFD_BF16, 64, AFD_KV_BF16, 0.02, 0},
        {AFD_TINY_STEP3, AFD_FP8, 320, AFD_KV_BF16, 0.1, 0},
        {AFD_TINY_DEEPSEEK_V3, AFD_FP8, 64, AFD_KV_BF16, 0.1, 0},
        {AFD_TINY_DEEPSEEK_V3, AFD_FP8, 64, AFD_KV_BF16, 0.1, 1},
        {AFD_TINY_QWEN3, AFD_F16, 64, AFD_KV_F16, 0.02, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_native(&cases[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(weight_types),    cmocka_unit_test(fp8_weights),
                                       cmocka_unit_test(tensor_parallel), cmocka_unit_test(odd_columns),
                                       cmocka_unit_test(packed_kv),       cmocka_unit_test(native)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
