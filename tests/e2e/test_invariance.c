/* Guards invariant 5: with the same model, ep, tp and seed the tokens of a sequence and their
 * log-probabilities do not depend on load, batch, micro-batch count, rank, back end, dispatch, or the number
 * of FFN instances. Compared as hexadecimal floats: every bit. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cluster.h"
#include "model/tiny_model.h"
#include "prompts.h"

enum { PROMPTS = 10, LONGEST = 150, GENERATED = 24, EP = 6 };

struct outcome {
    struct prompts scores, samples;
    uint32_t *tokens[PROMPTS];
};

static struct outcome outcome_make(uint32_t vocab)
{
    struct outcome o = {.scores = prompts_make(PROMPTS, LONGEST, vocab, 7, 0),
                        .samples = prompts_make(PROMPTS, LONGEST, vocab, 8, GENERATED)};
    for (size_t i = 0; i < PROMPTS; i++) o.tokens[i] = calloc(GENERATED, sizeof *o.tokens[i]);
    return o;
}

static void outcome_free(struct outcome *o)
{
    prompts_free(&o->scores);
    prompts_free(&o->samples);
    for (size_t i = 0; i < PROMPTS; i++) free(o->tokens[i]);
}

static void collect(const struct cluster *cluster, int at_once, struct outcome *o)
{
    struct prompts *s = &o->scores, *g = &o->samples;
    size_t step = at_once ? PROMPTS : 1;
    for (size_t i = 0; i < PROMPTS; i += step) {
        cluster_score(cluster, s->tokens + i, s->lengths + i, step, s->values + i);
        cluster_generate(cluster, g->tokens + i, g->lengths + i, step, GENERATED, 0.9, 1000 + (int)i,
                         o->tokens + i, g->values + i);
    }
}

static void compare(const char *title, const struct outcome *a, const struct outcome *b)
{
    size_t compared = 0;
    for (size_t i = 0; i < PROMPTS; i++) {
        for (size_t t = 1; t < a->scores.lengths[i]; t++, compared++) {
            float x = (float)a->scores.values[i][t], y = (float)b->scores.values[i][t];
            CHECK(!memcmp(&x, &y, sizeof x), "%s: score of prompt %zu token %zu: %a, expected %a", title, i,
                  t, (double)y, (double)x);
        }
        for (size_t t = 0; t < GENERATED; t++, compared++) {
            float x = (float)a->samples.values[i][t], y = (float)b->samples.values[i][t];
            CHECK(a->tokens[i][t] == b->tokens[i][t] && !memcmp(&x, &y, sizeof x),
                  "%s: generation %zu token %zu: %u %a, expected %u %a", title, i, t, b->tokens[i][t],
                  (double)y, a->tokens[i][t], (double)x);
        }
    }
    printf("%-60s %zu log-probabilities equal\n", title, compared);
}

/* A generated token's log-probability, computed one row at a time, equals that of the same token in a prompt,
 * computed in chunks. */
static void compare_decode_with_prefill(const struct cluster *cluster, const struct outcome *o)
{
    for (size_t i = 0; i < PROMPTS; i++) {
        size_t prompt = o->samples.lengths[i], length = prompt + GENERATED;
        uint32_t *tokens = calloc(length, sizeof *tokens);
        double *scores = calloc(length, sizeof *scores);
        memcpy(tokens, o->samples.tokens[i], prompt * sizeof *tokens);
        memcpy(tokens + prompt, o->tokens[i], GENERATED * sizeof *tokens);
        cluster_score(cluster, &tokens, &length, 1, &scores);
        for (size_t t = 0; t < GENERATED; t++)
            CHECK((float)scores[prompt + t] == (float)o->samples.values[i][t],
                  "generation %zu token %zu: decode %a, prefill %a", i, t, o->samples.values[i][t],
                  scores[prompt + t]);
        free(tokens);
        free(scores);
    }
    printf("%-60s %d log-probabilities equal\n", "decode against prefill", PROMPTS * GENERATED);
}

int main(void)
{
    static const struct {
        const char *title;
        struct cluster_spec spec;
        int at_once;
    } runs[] = {
        {"1A1F, one at a time", {.attn = 1, .ffn = 1}, 0},
        {"1A1F, all at once", {.attn = 1, .ffn = 1}, 1},
        {"2A2F, one micro-batch of 8 rows",
         {.attn = 2, .ffn = 2, .microbatches = 1, .max_rows = 8, .prefill_rows = 5},
         1},
        {"1A3F, five micro-batches, routed",
         {.attn = 1, .ffn = 3, .microbatches = 5, .dispatch = "routed"},
         1},
        {"3A2F, two copies of each shard, tcp",
         {.attn = 3, .ffn = 2, .copies = 2, .path = "tcp", .prefill_rows = 32},
         1},
        {"2A2F, rows apart from their headers, two copies",
         {.attn = 2, .ffn = 2, .copies = 2, .memory = "gpu"},
         1},
        {"2A2F, reference back end, little KV memory",
         {.attn = 2, .ffn = 2, .device = "ref", .kv_memory = "1MiB"},
         1},
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    struct afd_error error;
    char dir[] = "/tmp/afd-model-XXXXXX", command[100];
    tiny.dtype = AFD_BF16;
    CHECK(mkdtemp(dir) && afd_tiny_model_write(&tiny, dir, &error) == AFD_OK, "%s", error.text);
    struct outcome first = outcome_make(tiny.vocab);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct cluster cluster = {0};
        struct cluster_spec spec = runs[i].spec;
        spec.model = dir;
        spec.ep = EP;
        spec.a2f = "bf16";
        spec.f2a = "bf16";
        spec.kv = "bf16";
        struct outcome next = outcome_make(tiny.vocab);
        cluster_up(&cluster, &spec);
        collect(&cluster, runs[i].at_once, i ? &next : &first);
        if (i) compare(runs[i].title, &first, &next);
        if (i == 1) compare_decode_with_prefill(&cluster, &first);
        cluster_down(&cluster);
        outcome_free(&next);
    }
    outcome_free(&first);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    run_command(command, NULL);
    return 0;
}
