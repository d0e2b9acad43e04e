/* single.c: the same engine in one process, without messages: the yardstick of disaggregation.
 *
 * One attention device and one FFN device, `--threads` threads each, take turns on the same cores: a batch of
 * rows goes through embed, attention, route, FFN, ..., logits and sampling, step after step, as a colocated
 * engine would do it. The FFN device reads the records where route wrote them. Prints tokens a second, the
 * time of each side, and the share of the machine's arithmetic ceiling, measured in the same run.
 *
 *   afd-bench-single --model DIR [--batch 64] [--context 32] [--steps 40] [--threads 2] [--json] */
#include <argp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "bench/ceiling.h"
#include "compute/compute.h"

enum { BLOCK_TOKENS = 64 };

struct options {
    const char *model;
    uint32_t batch, context, steps, threads;
    int json;
};

struct engine {
    struct options o;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    struct afd_wire_layout wire;
    struct afd_device *attn, *ffn;
    uint8_t *records, *answers;
    uint32_t *tokens, *history, *blocks, *rows;
    struct afd_segment *segments;
    struct afd_choice *choices;
    struct afd_chosen *chosen;
    struct afd_sampling sampling;
    afd_ns attn_ns, ffn_ns;
};

static void die(const char *words)
{
    fprintf(stderr, "afd-bench-single: %s\n", words);
    exit(1);
}

/* Submits and sleeps until it is done, as a daemon would. Returns the device's time. */
static afd_ns execute(struct afd_device *device, const struct afd_op *op)
{
    struct afd_device_event event;
    uint64_t ticket;
    if (afd_device_submit(device, op, &ticket) != AFD_OK) die("submit failed");
    if (op->quiet) return 0;
    while (afd_device_poll(device, &event, 1) == 0) {
        struct pollfd fd = {.fd = afd_device_event_fd(device), .events = POLLIN};
        if (afd_device_arm(device) == AFD_OK) poll(&fd, 1, -1);
    }
    if (event.status != AFD_OK) die(afd_status_name(event.status));
    return event.busy_ns;
}

static void open_devices(struct engine *e)
{
    struct afd_error error;
    struct afd_wire_shape shape = {.hidden = e->model->hidden,
                                   .top_k = e->model->max_top_k,
                                   .max_rows = e->o.batch,
                                   .a2f = AFD_BF16,
                                   .f2a = AFD_BF16};
    uint32_t longest = e->o.context + e->o.steps + 1, blocks = (longest + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    e->wire = afd_wire_layout_of(shape);
    struct afd_device_config c = {.type = AFD_DEVICE_CPU,
                                  .model = e->model,
                                  .checkpoint = e->checkpoint,
                                  .share = {.ep = 1, .tp = 1, .shards = 1},
                                  .wire = e->wire,
                                  .threads = e->o.threads,
                                  .slots = 1,
                                  .max_segments = e->o.batch,
                                  .max_context = longest,
                                  .kv_dtype = AFD_BF16,
                                  .kv_block_tokens = BLOCK_TOKENS,
                                  .kv_blocks = blocks * e->o.batch,
                                  .max_logit_rows = e->o.batch,
                                  .max_batch_rows = e->o.batch};
    c.core_count = e->o.threads;
    for (uint32_t i = 0; i < e->o.threads; i++) c.cores[i] = i;
    if (afd_device_create(&c, &e->attn, &error) != AFD_OK) die(error.text);
    c.share.ffn = 1;
    if (afd_device_create(&c, &e->ffn, &error) != AFD_OK) die(error.text);
    e->records = afd_device_alloc(e->attn, e->wire.a2f_region_bytes);
    e->answers = afd_device_alloc(e->attn, e->wire.f2a_region_bytes);
    e->tokens = calloc(e->o.batch, sizeof *e->tokens);
    e->rows = calloc(e->o.batch, sizeof *e->rows);
    e->history = calloc(longest, sizeof *e->history);
    e->blocks = calloc((size_t)blocks * e->o.batch, sizeof *e->blocks);
    e->segments = calloc(e->o.batch, sizeof *e->segments);
    e->choices = calloc(e->o.batch, sizeof *e->choices);
    e->chosen = calloc(e->o.batch, sizeof *e->chosen);
    e->sampling = (struct afd_sampling){.top_p = 1, .repetition_penalty = 1};
    for (uint32_t i = 0; i < blocks * e->o.batch; i++) e->blocks[i] = i;
    for (uint32_t i = 0; i < e->o.batch; i++) {
        e->tokens[i] = i % e->model->vocab;
        e->rows[i] = i;
        e->segments[i] = (struct afd_segment){
            .first_row = i, .rows = 1, .blocks = e->blocks + (size_t)i * blocks, .block_count = blocks};
        e->choices[i] = (struct afd_choice){.logit_row = i,
                                            .sampling = &e->sampling,
                                            .tokens = e->history,
                                            .token_count = 1,
                                            .prompt_count = 1,
                                            .forced = -1};
    }
}

/* One token for each of the batch's sequences, at `position`. */
static void step(struct engine *e, uint32_t position)
{
    for (uint32_t i = 0; i < e->o.batch; i++) e->segments[i].first_position = position;
    struct afd_step s = {
        .rows = e->o.batch, .segment_count = e->o.batch, .tokens = e->tokens, .segments = e->segments};
    if (afd_device_step(e->attn, 0, &s) != AFD_OK) die("step refused");
    struct afd_partials partials = {.rows = {e->answers}};
    struct afd_route_to to = {.shards = 1, .every_row = 1, .records = e->records};
    execute(e->attn, &(struct afd_op){.kind = AFD_OP_EMBED, .quiet = 1});
    for (uint32_t l = 0; l < e->model->layer_count; l++) {
        execute(e->attn, &(struct afd_op){.kind = AFD_OP_ATTN, .quiet = 1, .layer = l, .attn = {&partials}});
        e->attn_ns += execute(e->attn, &(struct afd_op){.kind = AFD_OP_ROUTE, .layer = l, .route = {&to, 1}});
        struct afd_ffn_part part = {
            .records = e->records, .rows = e->o.batch, .shards = 1, .out = {e->answers}};
        uint32_t bad;
        e->ffn_ns +=
            execute(e->ffn, &(struct afd_op){.kind = AFD_OP_FFN, .layer = l, .ffn = {&part, 1, NULL, &bad}});
    }
    execute(e->attn,
            &(struct afd_op){.kind = AFD_OP_LOGITS, .quiet = 1, .logits = {&partials, e->rows, e->o.batch}});
    e->attn_ns += execute(
        e->attn, &(struct afd_op){.kind = AFD_OP_SAMPLE, .sample = {e->choices, e->chosen, e->o.batch}});
    for (uint32_t i = 0; i < e->o.batch; i++) e->tokens[i] = e->chosen[i].token;
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

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case 'm':
        o->model = arg;
        return 0;
    case 'b':
        o->batch = (uint32_t)atoi(arg);
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
        if (!o->model || !o->batch || !o->steps || !o->threads)
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
        {"batch", 'b', "N", 0, "sequences (64)", 0},
        {"context", 'c', "N", 0, "position of the first step (32)", 0},
        {"steps", 's', "N", 0, "steps to measure (40)", 0},
        {"threads", 't', "N", 0, "threads, on cores 0.. (2)", 0},
        {"json", 'j', 0, 0, "one JSON object", 0},
        {0}};
    struct engine e = {.o = {.batch = 64, .context = 32, .steps = 40, .threads = 2}};
    struct argp argp = {options, parse, 0, "One process, both roles, no messages: tokens a second.", 0, 0, 0};
    argp_parse(&argp, argc, argv, 0, 0, &e.o);
    afd_log_init("bench", AFD_LOG_WARN);
    struct afd_error error;
    if (afd_model_load(e.o.model, &e.model, &error) || afd_checkpoint_open(e.o.model, &e.checkpoint, &error))
        die(error.text);
    open_devices(&e);
    uint32_t cores[AFD_MAX_DEVICE_THREADS];
    for (uint32_t i = 0; i < e.o.threads; i++) cores[i] = i;
    double ceiling = bench_fma_ceiling(e.o.threads, cores);
    step(&e, 0); /* warms up */
    e.attn_ns = e.ffn_ns = 0;
    double *seconds = calloc(e.o.steps, sizeof *seconds);
    for (uint32_t i = 0; i < e.o.steps; i++) {
        afd_ns begin = afd_now();
        step(&e, e.o.context + i);
        seconds[i] = (double)(afd_now() - begin) * 1e-9;
    }
    double median = bench_median(seconds, e.o.steps), rate = e.o.batch / median;
    double flops = rate * flop_a_token(e.model, e.o.context + e.o.steps / 2.0);
    double attn_ms = (double)e.attn_ns / e.o.steps * 1e-6, ffn_ms = (double)e.ffn_ns / e.o.steps * 1e-6;
    printf(e.o.json ? "{\"batch\":%u,\"threads\":%u,\"tokens_per_s\":%.1f,\"step_ms\":%.3f,\"attn_ms\":%.3f,"
                      "\"ffn_ms\":%.3f,"
                      "\"gflops\":%.1f,\"ceiling_gflops\":%.1f,\"ceiling_ratio\":%.3f}\n"
                    : "batch %u, %u threads: %.1f tokens/s (median step %.3f ms: attention %.3f, FFN %.3f); "
                      "%.1f GFLOP/s of %.1f: %.3f\n",
           e.o.batch, e.o.threads, rate, median * 1e3, attn_ms, ffn_ms, flops * 1e-9, ceiling * 1e-9,
           flops / ceiling);
    afd_device_free(e.attn, e.records);
    afd_device_free(e.attn, e.answers);
    afd_device_destroy(e.attn);
    afd_device_destroy(e.ffn);
    afd_checkpoint_close(e.checkpoint);
    afd_model_destroy(e.model);
    return 0;
}
