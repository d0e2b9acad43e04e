#include "tests/compute/machine.h"

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compute/backend.h"
#include "compute/cuda/gpu.h"

static void die(const char *what, const char *words)
{
    fprintf(stderr, "%s: %s\n", what, words);
    abort();
}

static void *must(void *memory)
{
    if (!memory) die("test", "out of memory");
    return memory;
}

struct machine_config machine_plain(enum afd_device_type type)
{
    return (struct machine_config){.type = type,
                                   .threads = 1,
                                   .ep = 1,
                                   .instances = 1,
                                   .tp = 1,
                                   .a2f = AFD_F32,
                                   .f2a = AFD_F32,
                                   .kv = AFD_KV_F32,
                                   .kv_block_tokens = 16,
                                   .kv_blocks = 64,
                                   .max_rows = 128,
                                   .slots = 2};
}

void machine_write(const struct afd_tiny_model *tiny, char *dir)
{
    struct afd_error error;
    snprintf(dir, 64, "/tmp/afd-compute-XXXXXX");
    if (!mkdtemp(dir)) die("mkdtemp", dir);
    if (afd_tiny_model_write(tiny, dir, &error)) die("tiny model", error.text);
}

void machine_remove(const char *dir)
{
    DIR *folder = opendir(dir);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char path[512];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        unlink(path);
    }
    if (folder) closedir(folder);
    rmdir(dir);
}

static struct afd_device *open_device(const struct machine *m, struct afd_share share)
{
    struct afd_device_config config = {.type = m->config.type,
                                       .numerics = m->config.numerics,
                                       .model = m->model,
                                       .checkpoint = m->checkpoint,
                                       .share = share,
                                       .wire = m->wire,
                                       .threads = m->config.threads,
                                       .slots = m->config.slots,
                                       .max_segments = m->config.max_rows,
                                       .max_context = m->model->max_context,
                                       .kv_dtype = m->config.kv,
                                       .kv_block_tokens = m->config.kv_block_tokens,
                                       .kv_blocks = m->config.kv_blocks,
                                       .max_logit_rows = m->config.max_rows,
                                       .max_batch_rows = m->config.max_rows};
    struct afd_device *device;
    struct afd_error error;
    if (afd_device_create(&config, &device, &error)) die("device", error.text);
    return device;
}

struct machine machine_open(const char *dir, struct machine_config config)
{
    struct machine m = {.config = config, .trace = 1469598103934665603u};
    struct afd_error error;
    if (afd_model_load(dir, &m.model, &error)) die("model", error.text);
    if (afd_checkpoint_open(dir, &m.checkpoint, &error)) die("checkpoint", error.text);
    m.wire = afd_wire_layout_of((struct afd_wire_shape){.hidden = m.model->hidden,
                                                        .top_k = m.model->max_top_k,
                                                        .max_rows = config.max_rows,
                                                        .a2f = config.a2f,
                                                        .f2a = config.f2a});
    uint32_t attn_tp = config.attn_tp ? config.attn_tp : 1;
    size_t floats = (size_t)config.max_rows * m.model->hidden;
    m.attn = open_device(&m, (struct afd_share){.ep = config.ep, .tp = attn_tp});
    for (uint32_t t = 0; t < attn_tp && attn_tp > 1; t++) {
        struct afd_share share = {.ep = config.ep, .tp = attn_tp, .tp_index = t};
        if (t) m.members[t] = open_device(&m, share);
        m.heads[t] = must(afd_device_alloc(m.attn, floats * sizeof(float)));
    }
    if (attn_tp > 1) m.normed = must(afd_device_alloc(m.attn, floats * sizeof(float)));
    for (uint32_t s = 0; s < config.ep; s++) {
        m.shards[s % config.instances] |= 1ull << s;
        m.sums[s] = must(afd_device_alloc(m.attn, (uint64_t)m.wire.f2a_stride * config.max_rows));
    }
    for (uint32_t i = 0; i < config.instances; i++) {
        m.records[i] = must(afd_device_alloc(m.attn, (uint64_t)m.wire.a2f_stride * config.max_rows));
        for (uint32_t t = 0; t < config.tp; t++)
            m.ffn[i][t] = open_device(&m, (struct afd_share){1, m.shards[i], config.ep, config.tp, t});
    }
    for (uint32_t t = 0; t < config.tp; t++)
        m.partial[t] = must(afd_device_alloc(m.attn, (uint64_t)config.max_rows * config.ep * m.model->hidden *
                                                         sizeof(float)));
    return m;
}

void machine_close(struct machine *m)
{
    for (uint32_t i = 0; i < m->config.instances; i++) {
        for (uint32_t t = 0; t < m->config.tp; t++) afd_device_destroy(m->ffn[i][t]);
        afd_device_free(m->attn, m->records[i]);
    }
    for (uint32_t t = 0; t < m->config.tp; t++) afd_device_free(m->attn, m->partial[t]);
    for (uint32_t s = 0; s < m->config.ep; s++) afd_device_free(m->attn, m->sums[s]);
    for (uint32_t t = 0; t < MACHINE_MAX_TP; t++) {
        if (m->heads[t]) afd_device_free(m->attn, m->heads[t]);
        afd_device_destroy(m->members[t]);
    }
    if (m->normed) afd_device_free(m->attn, m->normed);
    afd_device_destroy(m->attn);
    afd_checkpoint_close(m->checkpoint);
    afd_model_destroy(m->model);
}

enum afd_status machine_run(struct afd_device *device, struct afd_op op)
{
    uint64_t ticket;
    struct afd_device_event event;
    enum afd_status status = afd_device_submit(device, &op, &ticket);
    if (status) return status;
    while (!afd_device_poll(device, &event, 1)) {
        if (afd_device_arm(device) == AFD_AGAIN) continue;
        struct pollfd fd = {afd_device_event_fd(device), POLLIN, 0};
        if (poll(&fd, 1, 60000) != 1) die("device", "no event within a minute");
    }
    if (event.ticket != ticket) die("device", "an event of another ticket");
    return event.status;
}

static void must_run(struct afd_device *device, struct afd_op op)
{
    enum afd_status status = machine_run(device, op);
    if (status) die("op failed", afd_status_name(status));
}

int machine_has(enum afd_device_type type)
{
    struct afd_gpu *gpu = NULL;
    struct afd_error error;
    if (type != AFD_DEVICE_CUDA) return 1;
    int is_there = !afd_gpu_open(0, &gpu, &error);
    if (is_there)
        printf("on %s\n", afd_gpu_name(gpu));
    else
        printf("skipped for device type cuda: %s\n", error.text);
    afd_gpu_close(gpu);
    return is_there;
}

static void trace(struct machine *m, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        m->trace = (m->trace ^ ((const unsigned char *)data)[i]) * 1099511628211u;
}

/* tp members' partial sums added in rank order, packed into the shards' F2A rows by member 0. */
static void reduce(struct machine *m, uint32_t instance, const struct afd_route_result *result)
{
    size_t rows = 0, hidden = m->model->hidden, at = 0;
    for (uint64_t left = m->shards[instance]; left; left &= left - 1)
        rows += result->active[__builtin_ctzll(left)];
    for (uint32_t t = 1; t < m->config.tp; t++)
        for (size_t i = 0; i < rows * hidden; i++) m->partial[0][i] = m->partial[0][i] + m->partial[t][i];
    for (uint64_t left = m->shards[instance]; left; left &= left - 1) {
        uint32_t s = (uint32_t)__builtin_ctzll(left);
        if (!result->active[s]) continue;
        must_run(m->ffn[instance][0],
                 (struct afd_op){.kind = AFD_OP_PACK,
                                 .pack = {m->partial[0] + at * hidden, m->sums[s], result->active[s]}});
        at += result->active[s];
    }
}

static void run_ffn(struct machine *m, uint32_t layer, const struct afd_route_result *result)
{
    for (uint32_t i = 0; i < m->config.instances; i++) {
        struct afd_ffn_part part = {
            .records = m->records[i], .rows = result->rows[i], .shards = m->shards[i]};
        for (uint32_t s = 0; s < m->config.ep; s++) part.out[s] = m->sums[s];
        for (uint32_t t = 0; t < m->config.tp; t++)
            must_run(m->ffn[i][t],
                     (struct afd_op){.kind = AFD_OP_FFN,
                                     .layer = layer,
                                     .ffn = {.parts = &part,
                                             .part_count = 1,
                                             .partials = m->config.tp > 1 ? m->partial[t] : NULL}});
        if (m->config.tp > 1) reduce(m, i, result);
    }
    for (uint32_t s = 0; s < m->config.ep; s++) {
        m->partials.rows[s] = result->active[s] ? m->sums[s] : NULL;
        for (uint32_t r = 0; r < result->active[s]; r++)
            trace(m, m->sums[s] + (size_t)r * m->wire.f2a_stride,
                  m->model->hidden * afd_dtype_bytes(m->config.f2a));
    }
}

/* Two choices a row: one with a penalty, which the CPU makes on every device, so that the logits are here;
 * one that a GPU makes itself. */
static void sample(struct machine *m, uint32_t slot, uint32_t rows)
{
    const struct afd_sampling penalised = {.top_p = 1.0f, .repetition_penalty = 2.0f};
    const struct afd_sampling plain = {
        .temperature = 1.0f, .top_p = 0.9f, .repetition_penalty = 1.0f, .seed = 5, .logprobs = 3};
    struct afd_choice *choices = must(calloc(2 * rows, sizeof *choices));
    struct afd_chosen *chosen = must(calloc(2 * rows, sizeof *chosen));
    for (uint32_t i = 0; i < 2 * rows; i++)
        choices[i] =
            (struct afd_choice){.logit_row = i / 2, .sampling = i % 2 ? &plain : &penalised, .forced = -1};
    must_run(m->attn,
             (struct afd_op){.kind = AFD_OP_SAMPLE, .slot = slot, .sample = {choices, chosen, 2 * rows}});
    for (uint32_t i = 0; i < 2 * rows; i++) {
        trace(m, &chosen[i].token, sizeof chosen[i].token);
        trace(m, chosen[i].top_logprobs, chosen[i].top_count * sizeof *chosen[i].top_logprobs);
    }
    free(choices), free(chosen);
}

/* One layer's attention over a group: the heads' sums in the order of members, for route to add. */
static const float *run_heads(struct machine *m, uint32_t slot, uint32_t layer, uint32_t rows)
{
    size_t floats = (size_t)rows * m->model->hidden;
    must_run(m->attn,
             (struct afd_op){
                 .kind = AFD_OP_NORM, .slot = slot, .layer = layer, .norm = {&m->partials, m->normed}});
    for (uint32_t t = 0; t < m->config.attn_tp; t++) {
        memset(m->heads[t], 0xff, floats * sizeof(float)); /* NaN */
        must_run(t ? m->members[t] : m->attn,
                 (struct afd_op){
                     .kind = AFD_OP_HEADS, .slot = slot, .layer = layer, .heads = {m->normed, m->heads[t]}});
        for (size_t i = 0; t && i < floats; i++) m->heads[0][i] = m->heads[0][i] + m->heads[t][i];
    }
    return m->heads[0];
}

/* The other members know of rows and positions alone. */
static void step_members(struct machine *m, uint32_t slot, const struct afd_step *step)
{
    struct afd_step own = *step;
    own.tokens = NULL;
    for (uint32_t t = 1; t < m->config.attn_tp; t++) {
        enum afd_status status = afd_device_step(m->members[t], slot, &own);
        if (status) die("a member's step", afd_status_name(status));
        must_run(m->members[t], (struct afd_op){.kind = AFD_OP_EMBED, .slot = slot});
    }
}

/* Where a destination has every row, its records name what was counted. */
static void check_experts(struct machine *m, uint32_t layer, const struct afd_route_result *result)
{
    const struct afd_ffn_desc *ffn = &m->model->layers[layer].ffn;
    uint32_t experts = ffn->kind == AFD_FFN_EXPERTS ? ffn->experts : 0, counts[AFD_MAX_EXPERTS] = {0};
    trace(m, result->experts, experts * sizeof *counts);
    for (uint32_t r = 0; experts && !m->config.routed && r < result->rows[0]; r++)
        for (uint32_t i = 0; i < ffn->top_k; i++) {
            uint16_t expert;
            memcpy(&expert, m->records[0] + (size_t)r * m->wire.a2f_stride + m->wire.expert_offset + 2 * i,
                   sizeof expert);
            counts[expert]++;
        }
    if (!m->config.routed && memcmp(counts, result->experts, experts * sizeof *counts))
        die("route", "rows of an expert are not those of the records");
}

void machine_step(struct machine *m, uint32_t slot, const struct afd_step *step, float *logits_out)
{
    uint32_t rows[AFD_MAX_ROWS];
    enum afd_status status = afd_device_step(m->attn, slot, step);
    if (status) die("step", afd_status_name(status));
    step_members(m, slot, step);
    struct afd_route_to to[MACHINE_MAX_INSTANCES];
    for (uint32_t i = 0; i < m->config.instances; i++)
        to[i] = (struct afd_route_to){m->shards[i], !m->config.routed, m->records[i]};
    must_run(m->attn, (struct afd_op){.kind = AFD_OP_EMBED, .slot = slot});
    for (uint32_t l = 0; l < m->model->layer_count; l++) {
        const float *attn = m->config.attn_tp > 1 ? run_heads(m, slot, l, step->rows) : NULL;
        if (!attn)
            must_run(m->attn,
                     (struct afd_op){.kind = AFD_OP_ATTN, .slot = slot, .layer = l, .attn = {&m->partials}});
        must_run(m->attn, (struct afd_op){.kind = AFD_OP_ROUTE,
                                          .slot = slot,
                                          .layer = l,
                                          .route = {to, m->config.instances, attn}});
        const struct afd_route_result *result = afd_device_route_result(m->attn, slot);
        for (uint32_t i = 0; i < m->config.instances; i++)
            for (uint32_t r = 0; r < result->rows[i]; r++) /* without the padding at a record's end */
                trace(m, m->records[i] + (size_t)r * m->wire.a2f_stride,
                      m->wire.expert_offset + 2 * m->wire.shape.top_k);
        check_experts(m, l, result);
        run_ffn(m, l, result);
    }
    for (uint32_t r = 0; r < step->rows; r++) rows[r] = r;
    must_run(m->attn, (struct afd_op){
                          .kind = AFD_OP_LOGITS, .slot = slot, .logits = {&m->partials, rows, step->rows}});
    sample(m, slot, step->rows);
    for (uint32_t r = 0; r < step->rows; r++)
        memcpy(logits_out + (size_t)r * m->model->vocab,
               m->attn->logits + (size_t)r * afd_pitch(m->model->vocab), m->model->vocab * sizeof(float));
}
