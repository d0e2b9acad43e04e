/* Whole models of every family against what published implementations made of the same checkpoints
 * (tests/reference). Guards: a wrong equation or tensor of a family: the head norms, the rotation's pairs and
 * its scaling, the latent attention's order of rows in kv_b and its m^2, the router's bias in the weights,
 * ... Then the cpu and cuda back ends (the
 * GPU played by the CPU, emulated_gpu.c) against ref, bit for bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/json.h"
#include "tests/compute/machine.h"

enum { MAX_TOKENS = 200 };

/* Published implementations run in float32 too: both sides round. With a packed KV cache only ref and cpu are
 * compared. */
static const double tolerance = 1e-4;

struct expected {
    json_t *root;
    uint32_t tokens[MAX_TOKENS], count, ids;
};

/* NAME_gguf has the expectations of NAME. */
static struct expected load(const char *name)
{
    struct expected e = {0};
    struct afd_error error;
    char path[600];
    size_t length = strlen(name);
    if (length > 5 && !strcmp(name + length - 5, "_gguf")) length -= 5;
    snprintf(path, sizeof path, "tests/reference/fixtures/%.*s/expected.json", (int)length, name);
    if (afd_json_load(path, 1 << 22, &e.root, &error)) fail_msg("%s", error.text);
    const json_t *tokens = json_object_get(e.root, "tokens");
    e.count = (uint32_t)json_array_size(tokens);
    e.ids = (uint32_t)json_array_size(json_object_get(e.root, "ids"));
    assert_true(e.count > 0 && e.count <= MAX_TOKENS && e.ids > 0);
    for (uint32_t i = 0; i < e.count; i++)
        e.tokens[i] = (uint32_t)json_integer_value(json_array_get(tokens, i));
    return e;
}

/* All tokens in one step, or in steps of `chunk`. Returns logits [count][vocab]. */
static float *run(struct machine *m, const struct expected *e, uint32_t chunk)
{
    uint32_t blocks[MAX_TOKENS], vocab = m->model->vocab;
    float *logits = malloc((size_t)e->count * vocab * sizeof *logits);
    for (uint32_t i = 0; i < MAX_TOKENS; i++) blocks[i] = (i * 5 + 3) % m->config.kv_blocks;
    for (uint32_t at = 0; at < e->count; at += chunk) {
        uint32_t n = e->count - at < chunk ? e->count - at : chunk;
        struct afd_segment segment = {0, n, at, blocks, (at + n - 1) / m->config.kv_block_tokens + 1, 0};
        machine_step(m, 0, &(struct afd_step){n, 1, e->tokens + at, &segment}, logits + (size_t)at * vocab);
    }
    return logits;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of log-probabilities to the published ones; *median_out: of the tokens' means. */
static double worst_difference(const struct expected *e, const float *logits, uint32_t vocab,
                               double *median_out)
{
    const json_t *ids = json_object_get(e->root, "ids"), *rows = json_object_get(e->root, "logprobs");
    double worst = 0, means[MAX_TOKENS] = {0};
    for (uint32_t t = 0; t < e->count; t++) {
        const float *row = logits + (size_t)t * vocab;
        double sum = 0;
        for (uint32_t v = 0; v < vocab; v++) sum += exp((double)row[v]);
        for (uint32_t i = 0; i < e->ids; i++) {
            double got = (double)row[json_integer_value(json_array_get(ids, i))] - log(sum);
            double difference = fabs(got - json_number_value(json_array_get(json_array_get(rows, t), i)));
            if (!(difference <= worst)) worst = difference; /* NaN too */
            means[t] += difference / e->ids;
        }
    }
    qsort(means, e->count, sizeof *means, ascending);
    *median_out = means[e->count / 2];
    return worst;
}

static float *run_on(enum afd_device_type type, const char *dir, const struct expected *e,
                     struct machine_config config, uint32_t chunk, uint32_t *vocab_out)
{
    config.type = type;
    config.threads = type == AFD_DEVICE_CPU ? 2 : 1;
    struct machine m = machine_open(dir, config);
    *vocab_out = m.model->vocab;
    float *logits = run(&m, e, type == AFD_DEVICE_REF ? config.max_rows : chunk);
    machine_close(&m);
    return logits;
}

/* ref against what was published; `types` others against ref. */
static void check(const char *name, struct machine_config config, uint32_t chunk,
                  const enum afd_device_type *types, uint32_t type_count)
{
    char dir[512];
    snprintf(dir, sizeof dir, "tests/reference/fixtures/%s", name);
    struct expected e = load(name);
    uint32_t vocab = 0;
    float *expected = run_on(AFD_DEVICE_REF, dir, &e, config, chunk, &vocab);
    double median, worst = worst_difference(&e, expected, vocab, &median);
    print_message("%s: largest difference %.2g\n", name, worst);
    if (config.kv == AFD_KV_F32 && !(worst <= tolerance))
        fail_msg("%s: a log-probability is off by %g", name, worst);
    for (uint32_t t = 0; t < type_count; t++) {
        float *logits = run_on(types[t], dir, &e, config, chunk, &vocab);
        for (size_t i = 0; i < (size_t)e.count * vocab; i++)
            if (logits[i] != expected[i])
                fail_msg("%s: device type %d, position %zu, token %zu: %.9g, ref has %.9g", name,
                         (int)types[t], i / vocab, i % vocab, (double)logits[i], (double)expected[i]);
        free(logits);
    }
    free(expected);
    json_decref(e.root);
}

static const char *const names[] = {
    "llama",
    "llama_tied",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe_all",
    "qwen3_moe_sparse",
    "deepseek_v3",
    "deepseek_v2",
    "step3p5",
    "step3p5_all",
    "llama_awq",
    "llama_gptq",
    "llama_gguf",
    "llama_tied_gguf",
    "qwen3_moe_sparse_gguf",
    "deepseek_v3_gguf",
    "deepseek_v2_gguf",
};
enum { NAMES = sizeof names / sizeof *names };
static const enum afd_device_type cpu_and_cuda[] = {AFD_DEVICE_CPU, AFD_DEVICE_CUDA};

static void published_results(void **state)
{
    (void)state;
    for (size_t i = 0; i < NAMES; i++) check(names[i], machine_plain(AFD_DEVICE_REF), 128, cpu_and_cuda, 2);
}

/* Guards: a chunk of a prompt, or one token at a time, sees something else than the whole prompt. */
static void in_chunks(void **state)
{
    (void)state;
    for (size_t i = 0; i < NAMES; i++) {
        check(names[i], machine_plain(AFD_DEVICE_REF), 7, cpu_and_cuda, 1);
        check(names[i], machine_plain(AFD_DEVICE_REF), 1, cpu_and_cuda, 1);
    }
}

/* Guards: a shared expert or a dense layer computed twice, an expert of the wrong shard, a cut that loses
 * channels. */
static void over_shards_and_members(void **state)
{
    (void)state;
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    config.ep = 3, config.instances = 2, config.routed = 1;
    for (size_t i = 0; i < NAMES; i++) check(names[i], config, 128, cpu_and_cuda, 1);
    config.tp = 2, config.routed = 0;
    for (size_t i = 0; i < NAMES; i++) check(names[i], config, 128, cpu_and_cuda, 1);
}

/* Guards: heads that a member of an attention group lacks or that two have, KV heads that are shared by
 * members, an uneven cut, a projection's slice that is another's, and the sum of what they give. */
static void over_attention_members(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t tp;
    } all[] = {{"llama", 2},     {"llama", 4},         {"llama_tied", 3},  {"qwen3", 2},
               {"qwen3_moe", 4}, {"qwen3_moe_all", 2}, {"deepseek_v3", 2}, {"deepseek_v2", 3},
               {"step3p5", 2},   {"step3p5_all", 3}};
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        config.attn_tp = all[i].tp;
        check(all[i].name, config, i % 2 ? 7 : 1, cpu_and_cuda, 2);
    }
}

/* Guards: an expert that is alone in its shard, and one that no row of a batch has chosen. */
static void one_expert_a_shard(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t experts;
    } all[] = {
        {"qwen3_moe", 7}, {"qwen3_moe_all", 5}, {"deepseek_v3", 12}, {"deepseek_v2", 9}, {"step3p5_all", 3}};
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        config.ep = all[i].experts, config.instances = 3;
        config.routed = 1;
        check(all[i].name, config, 1, cpu_and_cuda, 1);
    }
}

/* Guards: rows of K and V of another width than the description's, latent ones and windows among them. */
static void with_a_packed_kv_cache(void **state)
{
    (void)state;
    const char *const some[] = {"qwen3", "deepseek_v3", "deepseek_v2", "step3p5"};
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        for (int type = AFD_KV_BF16; type < AFD_KV_DTYPE_COUNT; type++) {
            config.kv = (enum afd_kv_dtype)type;
            check(some[i], config, type % 2 ? 7 : 1, cpu_and_cuda, type == AFD_KV_FP8 ? 2 : 1);
        }
}

/* The tensor cores' products of bf16, experts included: 2^-9 a rounding, over all layers a hundredth or two
 * of a log-probability. The median: a token whose router chooses otherwise between near equals is far off
 * (deepseek_v3 has two of 40). Guards: an operand of a family that differs from the others' (gates, latent
 * attention, a bias). */
static void native_results(void **state)
{
    (void)state;
    const char *const some[] = {"llama", "qwen3_moe", "deepseek_v3", "step3p5", "llama_awq", "llama_gptq"};
    struct machine_config config = machine_plain(AFD_DEVICE_CUDA);
    config.numerics = AFD_NUMERICS_NATIVE;
    config.kv = AFD_KV_BF16;
    for (size_t i = 0; i < sizeof some / sizeof *some && machine_has(AFD_DEVICE_CUDA); i++) {
        char dir[512];
        struct expected e = load(some[i]);
        uint32_t vocab = 0;
        double median;
        snprintf(dir, sizeof dir, "tests/reference/fixtures/%s", some[i]);
        float *logits = run_on(AFD_DEVICE_CUDA, dir, &e, config, 128, &vocab);
        double worst = worst_difference(&e, logits, vocab, &median);
        print_message("%s, native: a token is off by %.2g, the worst log-probability by %.2g\n", some[i],
                      median, worst);
        assert_true(median > 0 && median < 0.04);
        free(logits);
        json_decref(e.root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_results),       cmocka_unit_test(in_chunks),
        cmocka_unit_test(over_shards_and_members), cmocka_unit_test(over_attention_members),
        cmocka_unit_test(one_expert_a_shard),      cmocka_unit_test(with_a_packed_kv_cache),
        cmocka_unit_test(native_results)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
