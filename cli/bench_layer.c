/* bench layer: one layer's stages at real sizes on a GPU (or the CPU), with random weights: attention and
 * route of a rank's rows (A), and an FFN rank's share of all rows (F), beside what the GPU can do, measured
 * in the same run.
 *
 * A model of a few layers of the kind that the model has most of: step i takes layer i mod sets, so no
 * weights are in a cache. Rows of messages and partial sums are in the GPU's memory, as with RDMA into it;
 * what the CPU reads of them for the order of a batch is here. A figure is the device's time of an op: the
 * CPU's part of it, launches, kernels. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/log.h"
#include "base/rng.h"
#include "cli/cli.h"
#include "compute/choose.h"
#include "compute/compute.h"
#include "compute/cuda/ceiling.h"
#include "model/work.h"
#include "plan/ceiling.h"
#include "plan/shape.h"

enum { MAX_SETS = 16, MAX_STEPS = 1000, WARM_UP = 20, VOCAB = 1024, BLOCK_TOKENS = 64, WORDS = 160 };

struct request {
    const char *model, *device;
    uint64_t rows, batch, context, sets, steps, ep, tp, gpu, attn_gpus, ffn_gpus, microbatches;
    int skewed, is_bf16, is_int4, json;
};

struct layer_run {
    const struct request *q;
    enum afd_device_type type;
    struct afd_shape *shape;
    struct afd_model model; /* a part of the shape's: `sets` layers of one kind */
    uint32_t layers;        /* of the whole model */
    struct afd_checkpoint *weights;
    struct afd_wire_layout wire;
    struct afd_device *device;
    struct afd_error error;
    double us[2][MAX_STEPS]; /* A, F */
    double median[2], p99[2], bytes[2], flop[2];
    char failed[2][200]; /* "": measured */
};

static const char *const stage_names[] = {"attention", "ffn"};

static int is_fp8(const struct request *q)
{
    return !q->is_bf16 && !q->is_int4;
}

/* Layers like the last one that has experts; of a model without, like its last. */
static void take_layers(struct layer_run *r)
{
    const struct afd_model *m = r->shape->model;
    uint32_t of = m->layer_count - 1;
    while (of && m->layers[of].ffn.kind != AFD_FFN_EXPERTS) of--;
    if (m->layers[of].ffn.kind != AFD_FFN_EXPERTS) of = m->layer_count - 1;
    r->layers = m->layer_count;
    r->model = *m;
    r->model.layer_count = (uint32_t)r->q->sets;
    r->model.vocab = VOCAB;
    r->model.fp8_block = is_fp8(r->q) ? AFD_FP8_BLOCK : 0;
    r->model.cut_granule = r->q->is_bf16 ? AFD_TP_GRANULE : AFD_FP8_BLOCK; /* int4's groups are as long */
    r->model.tied_head = 1;
    if (m->layers[of].ffn.kind == AFD_FFN_EXPERTS) r->model.max_top_k = m->layers[of].ffn.top_k;
    r->model.layers = calloc(r->q->sets, sizeof *r->model.layers);
    for (uint32_t i = 0; r->model.layers && i < r->q->sets; i++) {
        r->model.layers[i] = m->layers[of];
        r->model.layers[i].ffn.shard_of = NULL;
    }
}

static enum afd_status open_device(struct layer_run *r, int is_ffn)
{
    const struct request *q = r->q;
    uint32_t context = (uint32_t)q->context + BLOCK_TOKENS;
    struct afd_device_config config = {.type = r->type,
                                       .numerics = r->type == AFD_DEVICE_CUDA ? AFD_NUMERICS_NATIVE
                                                                              : AFD_NUMERICS_PORTABLE,
                                       .model = &r->model,
                                       .checkpoint = r->weights,
                                       .wire = r->wire,
                                       .gpu = (uint32_t)q->gpu,
                                       .threads = 1,
                                       .slots = 1,
                                       .max_segments = (uint32_t)q->rows,
                                       .max_context = context,
                                       .kv_dtype = AFD_KV_FP8,
                                       .kv_block_tokens = BLOCK_TOKENS,
                                       .kv_blocks = (uint32_t)q->rows * (context / BLOCK_TOKENS + 1),
                                       .max_logit_rows = 1,
                                       .max_batch_rows = (uint32_t)q->batch};
    config.share = (struct afd_share){.ffn = is_ffn, .ep = (uint32_t)q->ep, .tp = 1};
    if (is_ffn) config.share.tp = (uint32_t)q->tp, config.share.shards = 1;
    return afd_device_create(&config, &r->device, &r->error);
}

/* Waits for the op's event; its time, ns, or 0 when it failed. */
static uint64_t run_op(struct layer_run *r, const struct afd_op *op)
{
    uint64_t ticket;
    struct afd_device_event event;
    if (afd_device_submit(r->device, op, &ticket)) return 0;
    if (op->quiet) return 1;
    while (!afd_device_poll(r->device, &event, 1)) {
        struct pollfd fd = {afd_device_event_fd(r->device), POLLIN, 0};
        if (afd_device_arm(r->device) != AFD_AGAIN) poll(&fd, 1, 1000);
    }
    return event.status ? 0 : event.busy_ns;
}

/* Zeroed memory of the device, or the random numbers of a table of float32 in its type. */
static void *random_rows(struct layer_run *r, uint64_t bytes)
{
    uint16_t *here = malloc(bytes);
    void *there = afd_device_alloc_local(r->device, bytes);
    for (uint64_t i = 0; here && i < bytes / 2; i++)
        here[i] = afd_float_to_bf16(afd_random_unit(3, i, 0) - 0.5f);
    if (here && there && afd_device_upload(r->device, there, here, bytes))
        afd_device_free_local(r->device, there), there = NULL;
    free(here);
    return there;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarize(struct layer_run *r, int stage)
{
    uint32_t n = (uint32_t)r->q->steps;
    qsort(r->us[stage], n, sizeof **r->us, by_value);
    r->median[stage] = r->us[stage][n / 2];
    r->p99[stage] = r->us[stage][n * 99 / 100];
}

/* ---- A */

static enum afd_status place_step(struct layer_run *r)
{
    uint32_t rows = (uint32_t)r->q->rows, context = (uint32_t)r->q->context;
    uint32_t each = (context + BLOCK_TOKENS) / BLOCK_TOKENS;
    struct afd_segment *segments = calloc(rows, sizeof *segments);
    uint32_t *tokens = calloc(rows, sizeof *tokens), *blocks = calloc((size_t)rows * each, sizeof *blocks);
    enum afd_status status = AFD_ERR_MEMORY;
    for (uint32_t i = 0; segments && tokens && blocks && i < rows; i++) {
        tokens[i] = (uint32_t)(afd_random(5, i, 0) % VOCAB);
        for (uint32_t b = 0; b < each; b++) blocks[i * each + b] = b * rows + i;
        segments[i] = (struct afd_segment){i, 1, context, blocks + i * each, each, 0};
    }
    if (segments && tokens && blocks)
        status = afd_device_step(r->device, 0, &(struct afd_step){rows, rows, tokens, segments});
    free(segments);
    free(tokens);
    free(blocks);
    return status;
}

static int run_attention(struct layer_run *r, uint32_t step, const struct afd_partials *partials,
                         const struct afd_route_to *to)
{
    uint32_t layer = step % (uint32_t)r->q->sets;
    struct afd_op attn = {.kind = AFD_OP_ATTN, .quiet = 1, .layer = layer, .attn = {partials}};
    struct afd_op route = {.kind = AFD_OP_ROUTE, .layer = layer, .route = {to, 1}};
    if (!run_op(r, &attn)) return 0;
    uint64_t ns = run_op(r, &route);
    if (step >= WARM_UP) r->us[0][step - WARM_UP] = (double)ns * 1e-3;
    return ns != 0;
}

static const char *measure_attention(struct layer_run *r)
{
    struct afd_partials partials = {{NULL}};
    struct afd_route_to to = {.shards = r->q->ep < 64 ? ((uint64_t)1 << r->q->ep) - 1 : UINT64_MAX,
                              .every_row = 1};
    struct afd_op embed = {.kind = AFD_OP_EMBED};
    const char *words = NULL;
    if (open_device(r, 0)) return r->error.text;
    to.records = afd_device_alloc_local(r->device, r->q->rows * r->wire.a2f_stride);
    void *rows = random_rows(r, r->q->rows * r->wire.f2a_stride);
    for (uint32_t s = 0; s < r->q->ep; s++) partials.rows[s] = rows;
    if (!to.records || !rows || place_step(r) || !run_op(r, &embed))
        words = "no memory, or the first op failed";
    for (uint32_t i = 0; i < r->q->steps + WARM_UP && !words; i++)
        if (!run_attention(r, i, &partials, &to)) words = "an op failed";
    if (!words) summarize(r, 0);
    if (to.records) afd_device_free_local(r->device, to.records);
    if (rows) afd_device_free_local(r->device, rows);
    return words;
}

/* ---- F */

/* Experts of a row: equally likely, or expert 0 and its neighbours twice as often as the mean. */
static void choose(const struct layer_run *r, uint32_t row, struct afd_routed *out)
{
    const struct afd_ffn_desc *ffn = &r->model.layers[0].ffn;
    uint8_t taken[AFD_MAX_EXPERTS] = {0};
    out->count = ffn->kind == AFD_FFN_EXPERTS ? ffn->top_k : 0;
    for (uint32_t i = 0, n = 0; i < out->count; n++) {
        uint32_t e = (uint32_t)(afd_random(row, n, 1) % ffn->experts);
        if (r->q->skewed && afd_random(row, n, 2) % 3 == 0) e = e / 4; /* a quarter of them, twice as often */
        if (!taken[e]) taken[e] = 1, i++;
    }
    for (uint32_t e = 0, i = 0; i < out->count; e++)
        if (taken[e]) out->experts[i] = e, out->weights[i] = 1.0f / (float)out->count, i++;
}

static void fill_records(const struct layer_run *r, char *records)
{
    for (uint32_t row = 0; row < r->q->batch; row++) {
        char *record = records + (uint64_t)row * r->wire.a2f_stride;
        struct afd_routed routed;
        for (uint32_t i = 0; i < r->wire.scale_offset; i += 2) {
            uint16_t two = (uint16_t)(0x3c00 | (afd_random(row, i, 3) & 0x807e)); /* bf16, or two e4m3 */
            memcpy(record + i, &two, sizeof two);
        }
        for (uint32_t i = 0; i * AFD_FP8_GROUP < r->wire.shape.hidden && r->wire.shape.a2f == AFD_FP8; i++) {
            float scale = 0.01f + 0.01f * afd_random_unit(row, i, 4);
            memcpy(record + r->wire.scale_offset + i * sizeof scale, &scale, sizeof scale);
        }
        choose(r, row, &routed);
        afd_record_write(&r->wire, record, row, row % (uint32_t)r->q->ep, &routed);
    }
}

static int run_ffn(struct layer_run *r, const char *records, void *out)
{
    uint32_t parts = (uint32_t)(r->q->batch / r->q->rows);
    struct afd_ffn_part *part = calloc(parts, sizeof *part);
    int ok = part != NULL;
    for (uint32_t i = 0; i < parts && ok; i++) {
        uint64_t at = i * r->q->rows * r->wire.a2f_stride;
        part[i] = (struct afd_ffn_part){.records = records + at, .rows = (uint32_t)r->q->rows, .shards = 1};
        part[i].out[0] = (char *)out + i * r->q->rows * r->wire.f2a_stride;
    }
    for (uint32_t i = 0; i < r->q->steps + WARM_UP && ok; i++) {
        struct afd_op op = {.kind = AFD_OP_FFN,
                            .layer = i % (uint32_t)r->q->sets,
                            .ffn = {.parts = part, .part_count = parts}};
        if (r->q->tp > 1) op.ffn.partials = out;
        uint64_t ns = run_op(r, &op);
        if (i >= WARM_UP) r->us[1][i - WARM_UP] = (double)ns * 1e-3;
        ok = ns != 0;
    }
    free(part);
    return ok;
}

static const char *measure_ffn(struct layer_run *r)
{
    const char *words = NULL;
    if (open_device(r, 1)) return r->error.text;
    uint64_t bytes = r->q->batch * r->wire.a2f_stride;
    char *here = calloc(1, bytes), *records = afd_device_alloc_local(r->device, bytes);
    void *out = afd_device_alloc_local(r->device, r->q->batch * r->wire.shape.hidden * sizeof(float) +
                                                      r->wire.f2a_stride);
    if (!here || !records || !out)
        words = "no memory for rows";
    else {
        fill_records(r, here);
        if (afd_device_upload(r->device, records, here, bytes) || !run_ffn(r, records, out))
            words = "an op failed";
    }
    if (!words) summarize(r, 1);
    if (records) afd_device_free_local(r->device, records);
    if (out) afd_device_free_local(r->device, out);
    free(here);
    return words;
}

/* ---- what it should cost */

static double matrix_bytes(const struct layer_run *r)
{
    return r->q->is_int4 ? 68.0 / 128.0 : r->q->is_bf16 ? 2.0 : 1.0;
}

static void count_work(struct layer_run *r)
{
    const struct request *q = r->q;
    const struct afd_layer *layer = &r->model.layers[0];
    const struct afd_ffn_desc *f = &layer->ffn;
    double rows = (double)q->rows, batch = (double)q->batch, hidden = r->model.hidden, each = matrix_bytes(r);
    double elements = afd_attn_matrix_elements(&layer->attn, r->model.hidden);
    double tokens = rows * ((double)q->context + 1);
    r->bytes[0] = tokens * (double)afd_attn_kv_bytes(&layer->attn, AFD_KV_FP8) + elements * each;
    r->flop[0] = 2 * elements * rows + tokens * afd_attn_score_flops(&layer->attn);
    double routed = f->kind == AFD_FFN_EXPERTS, share = 1.0 / ((double)q->ep * (double)q->tp);
    double always =
        routed ? f->shared_intermediate : f->intermediate; /* by a row's turn: 1 / ep of the rows */
    double width = 3 * hidden * (routed ? f->intermediate : 0);
    r->bytes[1] = each * (width * f->experts * share + 3 * hidden * always / (double)q->tp);
    r->bytes[1] += batch * (r->wire.a2f_stride + (double)r->wire.f2a_stride);
    r->flop[1] = 2 * batch * share * (width * f->top_k + 3 * hidden * always);
}

/* ---- report */

static json_t *stage_json(const struct layer_run *r, int stage, const struct afd_gpu_ceiling *ceiling)
{
    if (*r->failed[stage]) return json_pack("{s:s}", "failed", r->failed[stage]);
    double s = r->median[stage] * 1e-6;
    double read = ceiling->read_bytes_per_s;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "median_us", r->median[stage], "p99_us",
                     r->p99[stage], "bytes", r->bytes[stage], "flop", r->flop[stage], "bytes_per_s",
                     r->bytes[stage] / s, "flop_per_s", r->flop[stage] / s, "read_ceiling_ratio",
                     read > 0 ? json_real(r->bytes[stage] / s / read) : json_null());
}

static json_t *product_json(const struct layer_run *r, uint32_t m, uint32_t n, uint32_t k)
{
    char words[WORDS] = "";
    double us = afd_gpu_block_product_us((uint32_t)r->q->gpu, m, n, k, words);
    if (us < 0)
        return json_pack("{s:i, s:i, s:i, s:s}", "m", (int)m, "n", (int)n, "k", (int)k, "failed", words);
    return json_pack("{s:i, s:i, s:i, s:f, s:f}", "m", (int)m, "n", (int)n, "k", (int)k, "median_us", us,
                     "flop_per_s", 2.0 * m * n * k / (us * 1e-6));
}

/* batch / (layers x max(A, F) x micro-batches' GPUs): the whole cluster's rows in one micro-batch pass a
 * stage at a time; group and network time is not in it. */
static json_t *throughput_json(const struct layer_run *r)
{
    if (*r->failed[0] || *r->failed[1]) return json_null();
    double slowest = r->median[0] > r->median[1] ? r->median[0] : r->median[1];
    double gpus = (double)(r->q->attn_gpus + r->q->ffn_gpus), rows = (double)(r->q->rows * r->q->attn_gpus);
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:s}", "binding_stage",
                     stage_names[r->median[1] > r->median[0]], "layers", (int)r->layers, "attn_gpus",
                     (int)r->q->attn_gpus, "ffn_gpus", (int)r->q->ffn_gpus, "microbatches",
                     (int)r->q->microbatches, "tpot_ms",
                     slowest * (double)r->q->microbatches * r->layers * 1e-3, "tokens_per_s_per_gpu",
                     rows / (slowest * 1e-6 * r->layers) / gpus, "not_counted",
                     "collectives of an FFN instance and the network, as far as A and F do not hide them");
}

static int report(struct layer_run *r)
{
    struct afd_gpu_ceiling ceiling = {0};
    char words[WORDS] = "";
    const struct request *q = r->q;
    int has_ceiling =
        r->type == AFD_DEVICE_CUDA && !afd_gpu_ceiling_measure((uint32_t)q->gpu, &ceiling, words);
    count_work(r);
    json_t *products = json_array();
    if (r->model.fp8_block &&
        r->type == AFD_DEVICE_CUDA) { /* the yardstick: dense products of the same bytes */
        json_array_append_new(products, product_json(r, 128, 30720, 7168));
        json_array_append_new(products, product_json(r, 128, 172032, 640));
    }
    json_t *ceilings = has_ceiling
                           ? json_pack("{s:s, s:f, s:f}", "gpu", ceiling.name, "copy_bytes_per_s",
                                       ceiling.copy_bytes_per_s, "read_bytes_per_s", ceiling.read_bytes_per_s)
                       : r->type == AFD_DEVICE_CUDA ? json_pack("{s:s}", "failed", words)
                                                    : json_null();
    json_t *out =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s, s:o, s:o, s:o, s:o, s:o}", "model",
                  q->model, "weights",
                  q->is_int4   ? "int4"
                  : q->is_bf16 ? "bf16"
                               : "fp8",
                  "rows", (json_int_t)q->rows, "batch", (json_int_t)q->batch, "context",
                  (json_int_t)q->context, "ep", (json_int_t)q->ep, "tp", (json_int_t)q->tp, "weight_sets",
                  (json_int_t)q->sets, "steps", (json_int_t)q->steps, "skewed", q->skewed, "rows_in",
                  r->type == AFD_DEVICE_CUDA ? "GPU memory" : "memory", "ceilings", ceilings,
                  "cublaslt_block_fp8", products, stage_names[0], stage_json(r, 0, &ceiling), stage_names[1],
                  stage_json(r, 1, &ceiling), "throughput", throughput_json(r));
    if (q->json) {
        cli_print_json(out);
        return *r->failed[0] || *r->failed[1] ? CLI_FAILED : CLI_OK;
    }
    json_dumpf(out, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(5));
    printf("\n");
    json_decref(out);
    return *r->failed[0] || *r->failed[1] ? CLI_FAILED : CLI_OK;
}

static int measure(struct layer_run *r)
{
    static const char *(*const stages[])(struct layer_run *) = {measure_attention, measure_ffn};
    const struct request *q = r->q;
    struct afd_error error;
    if (afd_shape_load(q->model, &r->shape, &error)) return cli_fail("bench layer: %s", error.text);
    if (!r->shape->is_runnable) return cli_fail("bench layer: %s is no model that runs", q->model);
    take_layers(r);
    enum afd_random_kind kind = q->is_int4 ? AFD_RANDOM_INT4 : q->is_bf16 ? AFD_RANDOM_BF16 : AFD_RANDOM_FP8;
    r->wire = afd_wire_layout_of((struct afd_wire_shape){.hidden = r->model.hidden,
                                                         .top_k = r->model.max_top_k,
                                                         .max_rows = (uint32_t)q->rows,
                                                         .a2f = is_fp8(q) ? AFD_FP8 : AFD_BF16,
                                                         .f2a = AFD_BF16});
    if (!r->model.layers || afd_checkpoint_random(kind, &r->weights, &error))
        return cli_fail("bench layer: %s", r->model.layers ? error.text : "out of memory");
    for (int s = 0; s < 2; s++) {
        const char *words = stages[s](r);
        if (words) snprintf(r->failed[s], sizeof r->failed[s], "%s", words);
        if (words) fprintf(stderr, "bench layer: %s: %s\n", stage_names[s], words);
        afd_device_destroy(r->device);
        r->device = NULL;
    }
    return report(r);
}

int cli_bench_layer(const struct cli_command *self, int argc, char **argv)
{
    struct request q = {.model = "step3",
                        .device = "cuda",
                        .rows = 128,
                        .batch = 2048,
                        .context = 4096,
                        .sets = 4,
                        .steps = 200,
                        .ep = 2,
                        .tp = 8,
                        .attn_gpus = 16,
                        .ffn_gpus = 16,
                        .microbatches = 3};
    const struct cli_option options[] = {
        {"--model", 'm', CLI_TEXT, &q.model,
         "step3 (default), deepseek-v3, qwen3-235b, ..., or a config.json"},
        {"--rows", 0, CLI_COUNT, &q.rows, "of an attention rank's micro-batch (default 128)"},
        {"--batch", 0, CLI_COUNT, &q.batch, "rows of an FFN batch, a multiple of --rows (default 2048)"},
        {"--context", 'c', CLI_COUNT, &q.context, "tokens before each row (default 4096)"},
        {"--ep", 0, CLI_COUNT, &q.ep, "shards that the FFN is cut into (default 2); one is held"},
        {"--tp", 0, CLI_COUNT, &q.tp, "members of an FFN instance (default 8)"},
        {"--sets", 0, CLI_COUNT, &q.sets, "of weights, in turn (default 4)"},
        {"--steps", 0, CLI_COUNT, &q.steps, "measured (default 200)"},
        {"--attn-gpus", 0, CLI_COUNT, &q.attn_gpus, "of the cluster that the figures are for (default 16)"},
        {"--ffn-gpus", 0, CLI_COUNT, &q.ffn_gpus, ".. and its FFN's (default 16)"},
        {"--microbatches", 0, CLI_COUNT, &q.microbatches, ".. and micro-batches (default 3)"},
        {"--bf16", 0, CLI_FLAG, &q.is_bf16, "weights and rows (default: block-FP8)"},
        {"--int4", 0, CLI_FLAG, &q.is_int4, "weights as AWQ and GPTQ have them, and rows of bf16"},
        {"--skewed", 0, CLI_FLAG, &q.skewed, "some experts twice as often as the mean"},
        {"--device", 0, CLI_TEXT, &q.device, "cuda (default) or cpu, one thread"},
        {"--gpu", 0, CLI_COUNT, &q.gpu, "the n-th (default 0)"},
        {"--json", 0, CLI_FLAG, &q.json, "one object"},
        {0}};
    int help, count = cli_parse(self, argc, argv, options, NULL, 0, &help);
    if (count < 0) return cli_parse_exit(help);
    if (strcmp(q.device, "cuda") && strcmp(q.device, "cpu"))
        return cli_fail("bench layer: --device: expected cuda or cpu"), CLI_USAGE;
    if (q.rows < 1 || q.rows > AFD_MAX_ROWS || q.batch < q.rows || q.batch % q.rows || q.batch > 65536 ||
        q.sets < 1 || q.sets > MAX_SETS || q.steps < 1 || q.steps > MAX_STEPS || q.ep < 1 ||
        q.ep > AFD_MAX_SHARDS || q.tp < 1 || q.tp > AFD_MAX_TP ||
        q.context >= AFD_MAX_CONTEXT - BLOCK_TOKENS || !q.attn_gpus || !q.microbatches)
        return cli_fail("bench layer: expected 1 to %d sets, 1 to %d steps, a batch that is a multiple of "
                        "the rows",
                        MAX_SETS, MAX_STEPS),
               CLI_USAGE;
    if (q.is_bf16 && q.is_int4) return cli_fail("bench layer: expected --bf16 or --int4"), CLI_USAGE;
    afd_log_init("bench", AFD_LOG_WARN);
    struct layer_run *r = calloc(1, sizeof *r);
    if (!r) return cli_fail("bench layer: out of memory");
    r->q = &q;
    r->type = strcmp(q.device, "cpu") ? AFD_DEVICE_CUDA : AFD_DEVICE_CPU;
    int status = measure(r);
    if (r->weights) afd_checkpoint_close(r->weights);
    free(r->model.layers);
    afd_shape_destroy(r->shape);
    free(r);
    return status;
}
