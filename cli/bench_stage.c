/* bench stage: what the stages of a layer cost on this machine's CPU: the table that `afd plan --calibrate`
 * reads.
 *
 * The whole model runs in this process, one device of each role, taking turns; a stage's figure is the median
 * over steps of the mean over layers. Then a second engine does the same, and the stages are measured again
 * beside it; then so many that there is one more than cores, and whole steps are compared. The kernel places
 * them all, as it does ranks that are not pinned. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "plan/ceiling.h"
#include "plan/cost.h"
#include "plan/engine.h"
#include "plan/forecast.h"

enum { MAX_STEPS = 256, MAX_ENGINES = 5 /* cores and one more; on more cores nothing is crowded */ };

struct request {
    const char *model, *rows;
    uint64_t context, steps, threads, ep, held;
    int json;
};

struct stage_run {
    const struct request *q;
    uint32_t rows[AFD_FORECAST_SAMPLES], count, cores;
    struct afd_engine *engines[MAX_ENGINES]; /* the first is the one that is measured */
    uint32_t engine_count;
    struct afd_stage_sample samples[AFD_FORECAST_SAMPLES];
    double ceiling; /* floating-point operations a second of the threads */
};

/* An engine beside the one that is measured. */
struct beside {
    struct afd_engine *engine;
    uint32_t rows, position;
    pthread_t thread;
    atomic_int stop;
    int failed;
};

static void *keep_busy(void *user)
{
    struct beside *b = user;
    struct afd_engine_times times = {0};
    while (!atomic_load(&b->stop) && !b->failed)
        b->failed = afd_engine_step(b->engine, b->rows, b->position, &times) != AFD_OK;
    return NULL;
}

/* What steps have told so far of a size. `differences` and `times`: of stages from one step to the next with
 * the same work, which tell how much a stage varies. */
struct seen {
    double attn[MAX_STEPS], ffn[MAX_STEPS], head[MAX_STEPS], whole[MAX_STEPS];
    uint32_t steps, ffn_steps; /* a step in which no row concerned the FFN device tells nothing of it */
    uint64_t layers, rows, working_layers, ffn_rows;
    double differences, times;
};

static void vary(struct seen *seen, afd_ns before, afd_ns now)
{
    seen->differences += fabs((double)now - (double)before);
    seen->times += (double)now;
}

static void note_step(struct seen *seen, const struct stage_run *r, uint32_t rows, afd_ns whole,
                      const struct afd_engine_times *t, const struct afd_engine_times *before)
{
    uint32_t layers = afd_engine_model(r->engines[0])->layer_count, working = 0;
    afd_ns attn = 0, ffn = 0;
    for (uint32_t l = 0; l < layers; l++) {
        attn += t->attn[l];
        seen->ffn_rows += t->ffn_rows[l];
        if (t->ffn_rows[l]) ffn += t->ffn[l], working++;
        if (!seen->steps) continue;
        vary(seen, before->attn[l], t->attn[l]);
        if (t->ffn_rows[l] && t->ffn_rows[l] == before->ffn_rows[l]) vary(seen, before->ffn[l], t->ffn[l]);
    }
    seen->attn[seen->steps] = (double)attn / layers * 1e-9;
    seen->head[seen->steps++] = (double)t->head * 1e-9;
    if (working) {
        seen->whole[seen->ffn_steps] = (double)whole * 1e-9;
        seen->ffn[seen->ffn_steps++] = (double)ffn / working * 1e-9;
    }
    seen->layers += layers;
    seen->rows += (uint64_t)rows * layers;
    seen->working_layers += working;
}

/* Medians, seconds: of the stages into column `which`, of whole steps. */
static enum afd_status time_steps(struct stage_run *r, uint32_t rows, int which,
                                  struct afd_stage_sample *sample, double *step_out)
{
    struct seen *seen = calloc(1, sizeof *seen);
    struct afd_engine_times t[2];
    enum afd_status status = seen ? AFD_OK : AFD_ERR_MEMORY;
    uint32_t wanted = (uint32_t)r->q->steps;
    while (!status && seen->steps < MAX_STEPS && (seen->steps < wanted || seen->ffn_steps < wanted)) {
        uint32_t i = seen->steps;
        afd_ns began = afd_now();
        if ((status = afd_engine_step(r->engines[0], rows, (uint32_t)r->q->context, &t[i % 2]))) break;
        note_step(seen, r, rows, afd_now() - began, &t[i % 2], &t[(i + 1) % 2]);
    }
    if (!status && !seen->ffn_steps) status = AFD_ERR_REQUEST;
    if (!status) *step_out = bench_median(seen->whole, seen->ffn_steps);
    if (!status && which >= 0) {
        sample->attn[which] = bench_median(seen->attn, seen->steps);
        sample->ffn[which] = bench_median(seen->ffn, seen->ffn_steps);
        sample->head[which] = bench_median(seen->head, seen->steps);
        /* Two draws of a normal distribution are 2 / sqrt(pi) deviations apart. As they vary beside others.
         */
        if (seen->times > 0) sample->spread = seen->differences / seen->times * sqrt(M_PI) / 2;
        sample->ffn_rows = (double)seen->ffn_rows / (double)seen->working_layers;
        sample->ffn_share = (double)seen->ffn_rows / (double)seen->rows;
    }
    free(seen);
    return status;
}

/* The same while the engines behind the first, `others` of them, do it too. */
static enum afd_status time_beside(struct stage_run *r, uint32_t rows, uint32_t others, int which,
                                   struct afd_stage_sample *sample, double *step_out)
{
    struct beside beside[MAX_ENGINES];
    uint32_t count = 0;
    enum afd_status status = AFD_OK;
    for (; count < others; count++) {
        beside[count] = (struct beside){
            .engine = r->engines[1 + count], .rows = rows, .position = (uint32_t)r->q->context};
        if (pthread_create(&beside[count].thread, NULL, keep_busy, &beside[count])) {
            status = AFD_ERR_MEMORY;
            break;
        }
    }
    if (!status) status = time_steps(r, rows, which, sample, step_out);
    for (uint32_t i = 0; i < count; i++) atomic_store(&beside[i].stop, 1);
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(beside[i].thread, NULL);
        if (!status && beside[i].failed) status = AFD_ERR_DEVICE;
    }
    return status;
}

/* Those who share cores have a part of them each, and no more: less than that was noise. */
static enum afd_status time_crowd(struct stage_run *r, uint32_t rows, double alone_s,
                                  struct afd_stage_sample *sample)
{
    double least = (r->cores + 1.0) / r->cores, step = 0;
    sample->crowded = least;
    if (r->engine_count <= r->cores) return AFD_OK;
    enum afd_status status = time_beside(r, rows, r->cores, -1, sample, &step);
    if (step > alone_s * least) sample->crowded = step / alone_s;
    return status;
}

static enum afd_status time_rows(struct stage_run *r, uint32_t rows, struct afd_stage_sample *sample)
{
    struct afd_engine_times warm = {0};
    double alone = 0, beside = 0;
    sample->rows = rows;
    enum afd_status status = afd_engine_step(r->engines[0], rows, (uint32_t)r->q->context, &warm);
    if (!status) status = time_steps(r, rows, 0, sample, &alone);
    if (!status) status = time_beside(r, rows, r->cores >= 2 * r->q->threads, 1, sample, &beside);
    return status ? status : time_crowd(r, rows, alone, sample);
}

static int read_rows(const char *text, struct stage_run *r)
{
    for (char *end;; text = end + 1) {
        unsigned long n = strtoul(text, &end, 10);
        if (end == text || (*end && *end != ',') || *text == '-' || !n || n > AFD_MAX_ROWS ||
            r->count == AFD_FORECAST_SAMPLES || (r->count && n <= r->rows[r->count - 1]))
            return cli_fail("bench stage: --rows: expected up to %d ascending numbers of rows, as 1,8,64",
                            AFD_FORECAST_SAMPLES);
        r->rows[r->count++] = (uint32_t)n;
        if (!*end) return CLI_OK;
    }
}

static enum afd_status measure(struct stage_run *r, struct afd_error *error)
{
    const struct request *q = r->q;
    uint32_t cores[AFD_MAX_DEVICE_THREADS];
    struct afd_engine_config config = {.model = q->model,
                                       .rows = r->rows[r->count - 1],
                                       .max_position = (uint32_t)q->context,
                                       .threads = (uint32_t)q->threads,
                                       .core = AFD_ENGINE_ANY_CORE,
                                       .ep = (uint32_t)q->ep,
                                       .held = (uint32_t)q->held};
    uint32_t wanted = r->cores >= 2 * config.threads ? 2 : 1;
    if (config.threads == 1 && r->cores < MAX_ENGINES) wanted = r->cores + 1;
    for (; r->engine_count < wanted; r->engine_count++) {
        enum afd_status status = afd_engine_open(&config, &r->engines[r->engine_count], error);
        if (status) return status;
    }
    enum afd_status status = AFD_OK;
    for (uint32_t i = 0; i < config.threads; i++) cores[i] = i;
    struct bench_ceiling *ceiling = bench_ceiling_open(config.threads, cores);
    for (uint32_t i = 0; i < r->count; i++) {
        double sample = bench_ceiling_sample(ceiling);
        if (sample > r->ceiling) r->ceiling = sample;
        if (!status && (status = time_rows(r, r->rows[i], &r->samples[i])))
            afd_fail(error, status, "a step of %u rows failed: %s", r->rows[i], afd_status_name(status));
    }
    bench_ceiling_close(ceiling);
    return status;
}

/* Operations and bytes of a layer's stage with `rows` rows, on average over the layers: all weights once,
 * each row's keys and values. Experts: those that `rows` rows touch, equally likely, and the share of them
 * that is held. */
struct stage_work {
    double attn_flop, attn_bytes, ffn_flop, ffn_bytes;
};
static struct stage_work work_of(const struct stage_run *r, const struct afd_shape *shape, double rows)
{
    const struct afd_model *m = shape->model;
    const struct afd_count_terms terms = {AFD_CONVENTION_EXACT, 0};
    struct stage_work sum = {0};
    double bytes = m->weight_bits / 8.0, share = (double)r->q->held / (double)r->q->ep;
    for (uint32_t l = 0; l < m->layer_count; l++) {
        struct afd_token_work w = afd_layer_work(shape, &terms, l, (uint32_t)r->q->context + 1);
        sum.attn_flop += rows * (w.attention_flops + w.linear_flops);
        sum.attn_bytes += rows * w.kv_bytes + w.linear_flops / 2 * bytes;
        sum.ffn_flop += rows * w.ffn_flops * share;
        sum.ffn_bytes += afd_layer_ffn_elements(shape, l, rows, share) * bytes;
    }
    return (struct stage_work){sum.attn_flop / m->layer_count, sum.attn_bytes / m->layer_count,
                               sum.ffn_flop / m->layer_count, sum.ffn_bytes / m->layer_count};
}

static json_t *stage_json(const struct stage_run *r, const struct afd_shape *shape,
                          const struct afd_stage_sample *s)
{
    struct stage_work w = work_of(r, shape, s->rows);
    return json_pack(
        "{s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "rows",
        (int)s->rows, "context", (int)r->q->context, "attn_us", s->attn[0] * 1e6, "ffn_us", s->ffn[0] * 1e6,
        "head_us", s->head[0] * 1e6, "attn_us_beside", s->attn[1] * 1e6, "ffn_us_beside", s->ffn[1] * 1e6,
        "head_us_beside", s->head[1] * 1e6, "attn_flop", w.attn_flop, "attn_bytes", w.attn_bytes, "ffn_flop",
        w.ffn_flop, "ffn_bytes", w.ffn_bytes, "attn_ceiling_ratio", w.attn_flop / s->attn[0] / r->ceiling,
        "ffn_ceiling_ratio", w.ffn_flop / s->ffn[0] / r->ceiling, "crowded_ratio", s->crowded, "spread_ratio",
        s->spread, "ffn_rows", s->ffn_rows, "ffn_share", s->ffn_share);
}

static void print(const struct stage_run *r, const struct afd_shape *shape)
{
    static const char *const headers[] = {">rows",      ">A us",    ">beside",  ">F us",
                                          ">beside",    ">head us", ">crowded", ">A of peak",
                                          ">F of peak", ">A GB/s",  ">F GB/s"};
    struct cli_table *t = cli_table_create(11, headers);
    for (uint32_t i = 0; i < r->count; i++) {
        const struct afd_stage_sample *s = &r->samples[i];
        struct stage_work w = work_of(r, shape, s->rows);
        cli_table_cell(t, "%u", s->rows);
        cli_table_cell(t, "%.1f", s->attn[0] * 1e6);
        cli_table_cell(t, "%.1f", s->attn[1] * 1e6);
        cli_table_cell(t, "%.1f", s->ffn[0] * 1e6);
        cli_table_cell(t, "%.1f", s->ffn[1] * 1e6);
        cli_table_cell(t, "%.1f", s->head[0] * 1e6);
        cli_table_cell(t, "%.2f", s->crowded);
        cli_table_cell(t, "%.3f", w.attn_flop / s->attn[0] / r->ceiling);
        cli_table_cell(t, "%.3f", w.ffn_flop / s->ffn[0] / r->ceiling);
        cli_table_cell(t, "%.2f", w.attn_bytes / s->attn[0] * 1e-9);
        cli_table_cell(t, "%.2f", w.ffn_bytes / s->ffn[0] * 1e-9);
    }
    cli_table_print(t, stdout);
    printf("a layer on average, position %llu, %llu of %llu shards, %llu threads; peak: %.1f GFLOP/s, "
           "measured between\n",
           (unsigned long long)r->q->context, (unsigned long long)r->q->held, (unsigned long long)r->q->ep,
           (unsigned long long)r->q->threads, r->ceiling * 1e-9);
}

/* This machine as `afd plan --hardware` reads one: what its threads multiply and add at best, what they read
 * of weights at best, its memory. A price or a NIC can be written beside it. */
static json_t *hardware_json(const struct stage_run *r, const struct afd_shape *shape)
{
    double read = 0, memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    for (uint32_t i = 0; i < r->count; i++) {
        struct stage_work w = work_of(r, shape, r->samples[i].rows);
        read = fmax(read, fmax(w.attn_bytes / r->samples[i].attn[0], w.ffn_bytes / r->samples[i].ffn[0]));
    }
    return json_pack("[{s:s, s:f, s:f, s:f, s:i}]", "name", "cpu", "bf16_tflops", r->ceiling * 1e-12,
                     "memory_gbytes_per_s", read * 1e-9, "memory_gib", memory / (1 << 30), "cards", 1);
}

static int report(const struct stage_run *r)
{
    struct afd_shape *shape;
    struct afd_error error;
    const struct afd_model *m = afd_engine_model(r->engines[0]);
    if (afd_shape_load(r->q->model, &shape, &error)) return cli_fail("bench stage: %s", error.text);
    if (r->q->json) {
        json_t *stages = json_array();
        for (uint32_t i = 0; i < r->count; i++)
            json_array_append_new(stages, stage_json(r, shape, &r->samples[i]));
        cli_print_json(json_pack("{s:s, s:i, s:i, s:i, s:i, s:f, s:o, s:o}", "model", m->name, "layers",
                                 (int)m->layer_count, "threads", (int)r->q->threads, "ep", (int)r->q->ep,
                                 "held", (int)r->q->held, "ceiling_gflops", r->ceiling * 1e-9, "stages",
                                 stages, "hardware", hardware_json(r, shape)));
    } else
        print(r, shape);
    afd_shape_destroy(shape);
    return CLI_OK;
}

int cli_bench_stage(const struct cli_command *self, int argc, char **argv)
{
    struct request q = {.rows = "1,4,16,64", .context = 32, .steps = 20, .threads = 1, .ep = 1};
    const struct cli_option options[] = {
        {"--model", 'm', CLI_TEXT, &q.model, "folder of the checkpoint"},
        {"--rows", 0, CLI_TEXT, &q.rows, "rows of a batch: 1,4,16,64, ascending"},
        {"--context", 'c', CLI_COUNT, &q.context, "tokens before each row (default 32)"},
        {"--steps", 0, CLI_COUNT, &q.steps, "measured for each size (default 20)"},
        {"--threads", 0, CLI_COUNT, &q.threads, "of a device (default 1)"},
        {"--ep", 0, CLI_COUNT, &q.ep, "shards that the FFN is cut into (default 1)"},
        {"--held", 0, CLI_COUNT, &q.held, ".. and how many of them the FFN device holds (default all)"},
        {"--json", 0, CLI_FLAG, &q.json,
         "one JSON object: what `afd plan` reads, with --calibrate and as --hardware"},
        {0}};
    int help, count = cli_parse(self, argc, argv, options, NULL, 0, &help);
    if (count < 0) return cli_parse_exit(help);
    if (!q.held) q.held = q.ep;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    struct stage_run r = {.q = &q, .cores = cores < 1 ? 1 : (uint32_t)cores};
    struct afd_error error;
    if (!q.model) return cli_fail("bench stage: expected --model"), CLI_USAGE;
    if (q.steps < 1 || q.steps > MAX_STEPS || q.threads < 1 || q.threads > r.cores ||
        q.context >= AFD_MAX_CONTEXT || q.ep < 1 || q.ep > AFD_MAX_SHARDS || q.held > q.ep)
        return cli_fail("bench stage: expected 1 to %d steps, 1 to %u threads, 1 to %d shards, not more held",
                        MAX_STEPS, r.cores, AFD_MAX_SHARDS),
               CLI_USAGE;
    if (read_rows(q.rows, &r)) return CLI_USAGE;
    afd_log_init("bench", AFD_LOG_WARN);
    int status = measure(&r, &error) ? cli_fail("bench stage: %s", error.text) : report(&r);
    for (uint32_t i = 0; i < r.engine_count; i++) afd_engine_close(r.engines[i]);
    return status;
}
