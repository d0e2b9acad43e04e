/* Guards the whole path: a wrong loader, kernel, message, shard, tp cut, route or combine shows as a
 * log-probability that differs from an implementation which shares no code (oracle.c).
 *
 *   test_parity broadcast | routed | dtypes | fp8 | shards | heads
 *
 * With f32 messages and f32 KV every log-probability agrees to 1e-4; tokens whose router was nearly undecided
 * in the oracle (margin under 1e-5) are skipped, counted, and at most 1%. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cluster.h"
#include "model/tiny_model.h"
#include "oracle.h"
#include "prompts.h"

enum { PROMPTS = 14, LONGEST = 90 };

struct bound {
    unsigned rounding;
    double each, mean; /* the largest difference, and their mean */
    double undecided;  /* smaller router margins are skipped */
};

static const struct bound exact = {.each = 1e-4, .mean = 2e-5, .undecided = 1e-5};

static void compare(const char *title, struct oracle *oracle, const struct cluster *cluster,
                    struct prompts *p, const struct bound *bound)
{
    cluster_score(cluster, p->tokens, p->lengths, p->count, p->values);
    double worst = 0, sum = 0;
    size_t compared = 0, skipped = 0;
    for (size_t i = 0; i < p->count; i++) {
        double expected[LONGEST], margins[LONGEST];
        oracle_score(oracle, p->tokens[i], p->lengths[i], bound->rounding, expected, margins);
        for (size_t t = 1; t < p->lengths[i]; t++) {
            if (margins[t] < bound->undecided) {
                skipped++;
                continue;
            }
            double difference = fabs(p->values[i][t] - expected[t]);
            CHECK(difference <= bound->each, "%s: prompt %zu token %zu: %.6f, expected %.6f", title, i, t,
                  p->values[i][t], expected[t]);
            worst = difference > worst ? difference : worst;
            sum += difference;
            compared++;
        }
    }
    printf("%-44s %4zu tokens, %zu skipped, largest difference %.2e, mean %.2e\n", title, compared, skipped,
           worst, sum / (double)compared);
    CHECK(compared > 100, "only %zu tokens were compared", compared);
    CHECK(skipped * 100 <= compared + skipped, "%zu of %zu tokens skipped", skipped, compared + skipped);
    CHECK(sum / (double)compared <= bound->mean, "mean difference %.2e", sum / (double)compared);
}

static void write_model(const struct afd_tiny_model *tiny, char dir[64])
{
    struct afd_error error;
    strcpy(dir, "/tmp/afd-model-XXXXXX");
    CHECK(mkdtemp(dir), "mkdtemp");
    CHECK(afd_tiny_model_write(tiny, dir, &error) == AFD_OK, "%s", error.text);
}

static void remove_model(const char *dir)
{
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    run_command(command, NULL);
}

/* Scores over groups of two equal those of ranks alone to float32's rounding. */
static void compare_with_one(const char *dir, const char *title)
{
    struct prompts p[2];
    double worst = 0;
    for (int i = 0; i < 2; i++) {
        struct cluster cluster = {0};
        struct cluster_spec spec = {.model = dir, .attn = 1, .ffn = 1, .ep = 2, .attn_tp = 1 + i};
        p[i] = prompts_make(PROMPTS, LONGEST, AFD_TINY_MIN_VOCAB, 5, 0);
        cluster_up(&cluster, &spec);
        cluster_score(&cluster, p[i].tokens, p[i].lengths, p[i].count, p[i].values);
        cluster_expect_all_worked(&cluster, "attn");
        cluster_down(&cluster);
    }
    for (size_t k = 0; k < p[0].count; k++)
        for (size_t t = 1; t < p[0].lengths[k]; t++) {
            double difference = fabs(p[0].values[k][t] - p[1].values[k][t]);
            CHECK(difference <= exact.each, "%s: prompt %zu token %zu: %.6f, alone %.6f", title, k, t,
                  p[1].values[k][t], p[0].values[k][t]);
            worst = difference > worst ? difference : worst;
        }
    printf("%-44s largest difference %.2e\n", title, worst);
    prompts_free(&p[0]);
    prompts_free(&p[1]);
}

static void run(const char *title, const struct cluster_spec *spec, const struct bound *bound, uint64_t seed)
{
    struct oracle *oracle = oracle_open(spec->model);
    struct prompts p = prompts_make(PROMPTS, LONGEST, oracle_vocab(oracle), seed, 0);
    struct cluster cluster = {0};
    cluster_up(&cluster, spec);
    compare(title, oracle, &cluster, &p, bound);
    cluster_expect_all_worked(&cluster, "ffn");
    cluster_down(&cluster);
    prompts_free(&p);
    oracle_close(oracle);
}

/* Every ratio, with and without tp, on sizes that are multiples of nothing. */
static void test_topologies(const char *dispatch)
{
    static const struct {
        int attn, ffn, ep;
    } shapes[] = {{1, 1, 2}, {2, 2, 2}, {3, 2, 2}, {1, 3, 3}};
    static const uint64_t seeds[] = {1, 11, 31, 41}; /* few near ties */
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    char dir[64], title[64];
    write_model(&tiny, dir);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int tp = 1; tp <= 2; tp++) {
            struct cluster_spec spec = {.model = dir,
                                        .attn = shapes[i].attn,
                                        .ffn = shapes[i].ffn,
                                        .ep = shapes[i].ep,
                                        .tp = tp,
                                        .dispatch = dispatch};
            snprintf(title, sizeof title, "%dA%dF ep %d tp %d %s f32", spec.attn, spec.ffn, spec.ep, tp,
                     dispatch);
            run(title, &spec, &exact, seeds[i]);
        }
    remove_model(dir);
}

/* Stored formats; TCP instead of shared memory, our own and UCX's; the reference back end. */
static void test_dtypes(void)
{
    static const enum afd_dtype dtypes[] = {AFD_F32, AFD_BF16, AFD_F16, AFD_FP8};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        struct afd_tiny_model tiny = dtypes[i] == AFD_FP8 ? afd_tiny_model_fp8() : afd_tiny_model_awkward();
        char dir[64], title[64];
        tiny.dtype = dtypes[i];
        tiny.seed += i;
        write_model(&tiny, dir);
        struct cluster_spec spec = {.model = dir,
                                    .attn = 2,
                                    .ffn = 2,
                                    .ep = 2,
                                    .tp = 2,
                                    .dispatch = "routed",
                                    .data = i == 3 ? "ucx" : "auto",
                                    .path = i % 2 ? "tcp" : "shm",
                                    .device = i == 2 ? "ref" : "cpu"};
        snprintf(title, sizeof title, "2A2F tp 2 weights %s, %s %s, %s", afd_dtype_name(dtypes[i]), spec.data,
                 spec.path, spec.device);
        run(title, &spec, &exact, 120 + i);
        remove_model(dir);
    }
}

/* FP8 messages. The oracle rounds the FFN's input as the message does (e4m3, one scale a 128 channels).
 *
 * With f32 answers the two then differ only where an input lies within float32 error of a rounding border and
 * falls the other way: one e4m3 step in one channel, for about one row in a hundred, which later rows see
 * through attention. So the mean stays near that of f32 messages, and single tokens move by a fraction of
 * what the rounding itself does (largest 1.8, mean 0.24, when the oracle does not round).
 *
 * With bf16 answers the cluster rounds each of two shards' sums to bf16, the oracle their total. That is a
 * relative 2^-9, and it moves one input in 2^-4 / 2^-9 = 32 of the layers behind across an e4m3 border: about
 * 3 of 96 channels by 2^-4, 1e-2 of a row, in each of 3 layers, on logits up to 20: a root mean square near
 * 0.2 at most, with a tail. So the mean is what bounds it (0.04 seen, 0.24 without rounding in the oracle),
 * and a single token has the tail. */
static void test_fp8_messages(void)
{
    static const struct bound f32_answers = {
        .rounding = ORACLE_FP8_ROWS, .each = 0.05, .mean = 1e-3, .undecided = 1e-5};
    static const struct bound bf16_answers = {
        .rounding = ORACLE_FP8_ROWS | ORACLE_BF16_SUMS, .each = 1.5, .mean = 0.08, .undecided = 1e-5};
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    char dir[64];
    write_model(&tiny, dir);
    struct cluster_spec spec = {.model = dir, .attn = 2, .ffn = 2, .ep = 2, .a2f = "fp8", .f2a = "f32"};
    run("2A2F fp8 messages, f32 answers", &spec, &f32_answers, 40);
    spec.f2a = "bf16";
    run("2A2F fp8 messages, bf16 answers", &spec, &bf16_answers, 40);
    remove_model(dir);
}

/* `afd shards` deals experts out by the load of a cluster; another one, whose instances hold what its file
 * says, gives the same answers. */
static void test_shards(void)
{
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    char dir[64], file[100], command[1400], *output;
    write_model(&tiny, dir);
    snprintf(file, sizeof file, "%s/shards.json", dir);
    struct cluster_spec spec = {
        .model = dir, .attn = 2, .ffn = 3, .ep = 3, .copies = 2, .dispatch = "routed"};
    struct oracle *oracle = oracle_open(dir);
    struct prompts p = prompts_make(PROMPTS, LONGEST, oracle_vocab(oracle), 51, 0);
    struct cluster cluster = {0};
    cluster_up(&cluster, &spec);
    compare("2A3F ep 3, ranges", oracle, &cluster, &p, &exact);
    snprintf(command, sizeof command, "%s/afd shards %s/topology.yaml -o %s --json --url %s", AFD_BIN_DIR,
             cluster.dir, file, cluster.url);
    cluster_expect_all_worked(&cluster, "attn");
    CHECK(run_command(command, &output) == 0, "%s", output);
    printf("%s", output);
    free(output);
    cluster_down(&cluster);
    spec.shards = file;
    spec.tp = 2;
    cluster = (struct cluster){0};
    cluster_up(&cluster, &spec);
    compare("2A3F ep 3 tp 2, shards by load", oracle, &cluster, &p, &exact);
    cluster_expect_all_worked(&cluster, "ffn");
    cluster_down(&cluster);
    prompts_free(&p);
    oracle_close(oracle);
    remove_model(dir);
}

/* Attention cut over the ranks of a group: MFA's one KV head in each of them, against the oracle; then groups
 * of query heads and latent attention, against the same cluster without groups, whose sums are formed in
 * another order. */
static void test_heads(void)
{
    static const struct cluster_spec groups[] = {
        {.attn = 1, .ffn = 1, .ep = 2, .attn_tp = 2},
        {.attn = 2, .ffn = 2, .ep = 2, .attn_tp = 5, .tp = 2, .dispatch = "routed", .path = "tcp"},
        {.attn = 1, .ffn = 2, .ep = 2, .attn_ranks = 4, .attn_tp = 2, .device = "ref"},
    };
    static const enum afd_tiny_family families[] = {AFD_TINY_QWEN3_MOE, AFD_TINY_DEEPSEEK_V3};
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    char dir[64], title[64];
    write_model(&tiny, dir);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        struct cluster_spec spec = groups[i];
        spec.model = dir;
        snprintf(title, sizeof title, "attention tp %d, %dA%dF f32", spec.attn_tp, spec.attn, spec.ffn);
        run(title, &spec, &exact, 11);
    }
    remove_model(dir);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        tiny = afd_tiny_model_as(afd_tiny_model_awkward(), families[i]);
        if (families[i] == AFD_TINY_QWEN3_MOE) tiny.heads = 6, tiny.kv_heads = 2;
        write_model(&tiny, dir);
        compare_with_one(dir, afd_tiny_family_name(families[i]));
        remove_model(dir);
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(argc == 2, "usage: test_parity broadcast|routed|dtypes|fp8|shards|heads");
    if (!strcmp(argv[1], "dtypes"))
        test_dtypes();
    else if (!strcmp(argv[1], "fp8"))
        test_fp8_messages();
    else if (!strcmp(argv[1], "shards"))
        test_shards();
    else if (!strcmp(argv[1], "heads"))
        test_heads();
    else
        test_topologies(argv[1]);
    return 0;
}
