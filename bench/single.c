/* single.c: the same engine in one process, without messages: the yardstick of disaggregation.
 *
 * One attention device and one FFN device, `--threads` threads each, take turns on the same cores: a batch of
 * rows goes through embed, attention, route, FFN, ..., logits and sampling, step after step, as a colocated
 * engine would do it. The FFN device reads the records where route wrote them.
 *
 * With several batch sizes their steps alternate, and before each step the machine's arithmetic ceiling is
 * sampled (ceiling.h), so that what else runs on the machine meets all of them alike. Prints for each size
 * the medians over the steps: tokens a second, the time of each side, the share of the ceilings sampled right
 * before and after the step; and the row rate that a size keeps of the first one's, in the same round.
 *
 *   afd-bench-single --model DIR [--batch 64,21] [--context 32] [--steps 40] [--threads 2] [--json] */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "plan/ceiling.h"
#include "plan/engine.h"

enum { MAX_SIZES = 8 };

struct options {
    const char *model;
    uint32_t batch[MAX_SIZES], sizes, largest;
    uint32_t context, steps, threads;
    int json;
};

/* What is measured of one batch size, a value a step. */
struct series {
    double *seconds, *attn_ms, *ffn_ms, *share, *kept;
};

struct run {
    struct options o;
    struct afd_engine *engine;
    const struct afd_model *model;
    struct bench_ceiling *ceiling;
    struct series series[MAX_SIZES];
};

static void die(const char *words)
{
    fprintf(stderr, "afd-bench-single: %s\n", words);
    exit(1);
}

static void step(struct run *e, uint32_t batch, uint32_t position, struct afd_engine_times *times)
{
    if (afd_engine_step(e->engine, batch, position, times) != AFD_OK) die("a step failed");
}

/* Floating-point operations of one token: two a weight of every matrix it meets, and attention over
 * `context`. */
static double flop_a_token(const struct afd_model *m, double context)
{
    uint64_t total, active;
    afd_model_parameters(m, &total, &active);
    double flop = 2.0 * ((double)active - (double)m->vocab * m->hidden); /* the embedding is a look-up */
    for (uint32_t l = 0; l < m->layer_count; l++)
        flop += 4.0 * m->layers[l].attn.heads * m->layers[l].attn.head_dim * context;
    return flop;
}

/* Every size's step in turn, a ceiling before each and after the last. */
static void measure(struct run *e, double *ceilings)
{
    for (uint32_t b = 0; b < e->o.sizes; b++) {
        struct series *s = &e->series[b];
        s->seconds = calloc((size_t)e->o.steps * 5, sizeof *s->seconds);
        if (!s->seconds) die("out of memory");
        s->attn_ms = s->seconds + e->o.steps;
        s->ffn_ms = s->attn_ms + e->o.steps;
        s->share = s->ffn_ms + e->o.steps;
        s->kept = s->share + e->o.steps;
    }
    double before = bench_ceiling_sample(e->ceiling);
    for (uint32_t i = 0; i < e->o.steps; i++)
        for (uint32_t b = 0; b < e->o.sizes; b++) {
            struct series *s = &e->series[b], *first = &e->series[0];
            double batch = e->o.batch[b], flop = batch * flop_a_token(e->model, e->o.context + i);
            struct afd_engine_times times = {0};
            afd_ns begin = afd_now();
            step(e, e->o.batch[b], e->o.context + i, &times);
            s->seconds[i] = (double)(afd_now() - begin) * 1e-9;
            s->attn_ms[i] = (double)times.head * 1e-6;
            s->ffn_ms[i] = 0;
            for (uint32_t l = 0; l < e->model->layer_count; l++) {
                s->attn_ms[i] += (double)times.attn[l] * 1e-6;
                s->ffn_ms[i] += (double)times.ffn[l] * 1e-6;
            }
            double after = bench_ceiling_sample(e->ceiling);
            ceilings[i * e->o.sizes + b] = (before + after) / 2;
            s->share[i] = flop / s->seconds[i] / ((before + after) / 2);
            s->kept[i] = batch / s->seconds[i] / (e->o.batch[0] / first->seconds[i]);
            before = after;
        }
}

static void report(struct run *e, double *ceilings)
{
    uint32_t n = e->o.steps;
    double ceiling = bench_median(ceilings, n * e->o.sizes) * 1e-9;
    if (e->o.json) printf("{\"threads\":%u,\"ceiling_gflops\":%.1f,\"sizes\":[", e->o.threads, ceiling);
    for (uint32_t b = 0; b < e->o.sizes; b++) {
        struct series *s = &e->series[b];
        double kept = bench_median(s->kept, n); /* before the seconds are sorted */
        double seconds = bench_median(s->seconds, n), rate = e->o.batch[b] / seconds;
        printf(e->o.json
                   ? "%s{\"batch\":%u,\"tokens_per_s\":%.1f,\"step_ms\":%.3f,\"attn_ms\":%.3f,"
                     "\"ffn_ms\":%.3f,\"gflops\":%.1f,\"ceiling_ratio\":%.3f,\"rows_kept\":%.3f}"
                   : "%sbatch %u: %.1f tokens/s (step %.3f ms: attention %.3f, FFN %.3f); %.1f GFLOP/s, "
                     "%.3f of the ceiling; %.3f of the first row rate\n",
               e->o.json && b ? "," : "", e->o.batch[b], rate, seconds * 1e3, bench_median(s->attn_ms, n),
               bench_median(s->ffn_ms, n), rate * flop_a_token(e->model, e->o.context + n / 2.0) * 1e-9,
               bench_median(s->share, n), kept);
        free(s->seconds);
    }
    printf(e->o.json ? "]}\n" : "%u threads, ceiling %.1f GFLOP/s\n", e->o.json ? 0 : e->o.threads, ceiling);
}

/* "64,21" */
static void parse_sizes(struct options *o, const char *arg, struct argp_state *state)
{
    o->sizes = o->largest = 0;
    for (char *next; *arg; arg = *next == ',' ? next + 1 : next) {
        unsigned long n = strtoul(arg, &next, 10);
        if (next == arg || (*next && *next != ',') || n == 0 || n > AFD_MAX_ROWS || o->sizes == MAX_SIZES)
            argp_error(state, "--batch %s: expected up to %d sizes from 1 to %d", arg, MAX_SIZES,
                       AFD_MAX_ROWS);
        o->batch[o->sizes++] = (uint32_t)n;
        if (n > o->largest) o->largest = (uint32_t)n;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case 'm':
        o->model = arg;
        return 0;
    case 'b':
        parse_sizes(o, arg, state);
        return 0;
    case 'c':
        o->context = (uint32_t)atoi(arg);
        return 0;
    case 's':
        o->steps = (uint32_t)atoi(arg);
        return 0;
    case 't':
        o->threads = (uint32_t)atoi(arg);
        return 0;
    case 'j':
        o->json = 1;
        return 0;
    case ARGP_KEY_END:
        if (!o->model || !o->sizes || !o->steps || !o->threads)
            argp_error(state, "--model, and sizes above 0, are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int main(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"model", 'm', "DIR", 0, "checkpoint", 0},
        {"batch", 'b', "N,..", 0, "sequences; several sizes alternate (64)", 0},
        {"context", 'c', "N", 0, "position of the first step (32)", 0},
        {"steps", 's', "N", 0, "steps to measure (40)", 0},
        {"threads", 't', "N", 0, "threads, on cores 0.. (2)", 0},
        {"json", 'j', 0, 0, "one JSON object", 0},
        {0}};
    struct run e = {
        .o = {.batch = {64}, .sizes = 1, .largest = 64, .context = 32, .steps = 40, .threads = 2}};
    struct argp argp = {options, parse, 0, "One process, both roles, no messages: tokens a second.", 0, 0, 0};
    argp_parse(&argp, argc, argv, 0, 0, &e.o);
    afd_log_init("bench", AFD_LOG_WARN);
    struct afd_error error;
    struct afd_engine_config config = {.model = e.o.model,
                                       .rows = e.o.largest,
                                       .max_position = e.o.context + e.o.steps,
                                       .threads = e.o.threads,
                                       .ep = 1,
                                       .held = 1};
    if (afd_engine_open(&config, &e.engine, &error)) die(error.text);
    e.model = afd_engine_model(e.engine);
    uint32_t cores[AFD_MAX_DEVICE_THREADS];
    struct afd_engine_times unused = {0};
    for (uint32_t i = 0; i < e.o.threads; i++) cores[i] = i;
    double *ceilings = calloc((size_t)e.o.steps * e.o.sizes, sizeof *ceilings);
    if (!ceilings) die("out of memory");
    e.ceiling = bench_ceiling_open(e.o.threads, cores);
    for (uint32_t b = 0; b < e.o.sizes; b++) step(&e, e.o.batch[b], 0, &unused); /* warms up */
    measure(&e, ceilings);
    report(&e, ceilings);
    free(ceilings);
    bench_ceiling_close(e.ceiling);
    afd_engine_close(e.engine);
    return 0;
}
