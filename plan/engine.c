#include "plan/engine.h"

#include <poll.h>
#include <stdlib.h>

#include "base/rng.h"

enum { BLOCK_TOKENS = 64 };

struct afd_engine {
    struct afd_engine_config config;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    struct afd_wire_layout wire;
    struct afd_device *attn, *ffn;
    uint8_t *records, *answers[AFD_MAX_SHARDS];
    uint32_t *tokens, *history, *blocks, *rows;
    struct afd_segment *segments;
    struct afd_choice *choices;
    struct afd_chosen *chosen;
    struct afd_sampling sampling;
    uint64_t steps;
};

static uint64_t low_bits(uint32_t count)
{
    return UINT64_MAX >> (64 - count);
}

const struct afd_model *afd_engine_model(const struct afd_engine *e)
{
    return e->model;
}

/* Sleeps until what was submitted is done, as a daemon would. */
static enum afd_status wait_for(struct afd_device *device, afd_ns *busy_out)
{
    struct afd_device_event event;
    while (afd_device_poll(device, &event, 1) == 0) {
        struct pollfd fd = {.fd = afd_device_event_fd(device), .events = POLLIN};
        if (afd_device_arm(device) == AFD_OK) poll(&fd, 1, -1);
    }
    *busy_out = event.busy_ns;
    return event.status;
}

static enum afd_status execute(struct afd_device *device, const struct afd_op *op, afd_ns *busy_out)
{
    uint64_t ticket;
    enum afd_status status = afd_device_submit(device, op, &ticket);
    if (status || op->quiet) return status;
    return wait_for(device, busy_out);
}

static enum afd_status open_devices(struct afd_engine *e, struct afd_error *error)
{
    const struct afd_engine_config *c = &e->config;
    struct afd_wire_shape shape = {.hidden = e->model->hidden,
                                   .top_k = e->model->max_top_k,
                                   .max_rows = c->rows,
                                   .a2f = AFD_BF16,
                                   .f2a = AFD_BF16};
    uint32_t longest = c->max_position + 1, blocks = (longest + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    e->wire = afd_wire_layout_of(shape);
    struct afd_device_config d = {.type = AFD_DEVICE_CPU,
                                  .model = e->model,
                                  .checkpoint = e->checkpoint,
                                  .share = {.ep = c->ep, .tp = 1, .shards = low_bits(c->held)},
                                  .wire = e->wire,
                                  .threads = c->threads,
                                  .core_count = c->core == AFD_ENGINE_ANY_CORE ? 0 : c->threads,
                                  .slots = 1,
                                  .max_segments = c->rows,
                                  .max_context = longest,
                                  .kv_dtype = AFD_KV_BF16,
                                  .kv_block_tokens = BLOCK_TOKENS,
                                  .kv_blocks = blocks * c->rows,
                                  .max_logit_rows = c->rows,
                                  .max_batch_rows = c->rows};
    for (uint32_t i = 0; i < d.core_count; i++) d.cores[i] = c->core + i;
    enum afd_status status = afd_device_create(&d, &e->attn, error);
    if (status) return status;
    d.share.ffn = 1;
    return afd_device_create(&d, &e->ffn, error);
}

static enum afd_status make_tables(struct afd_engine *e, struct afd_error *error)
{
    uint32_t n = e->config.rows, longest = e->config.max_position + 1,
             blocks = (longest + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    int is_whole = (e->records = afd_device_alloc(e->attn, e->wire.a2f_region_bytes)) != NULL;
    for (uint32_t s = 0; s < e->config.ep; s++)
        is_whole &= (e->answers[s] = afd_device_alloc(e->attn, e->wire.f2a_region_bytes)) != NULL;
    e->tokens = calloc(n, sizeof *e->tokens);
    e->rows = calloc(n, sizeof *e->rows);
    e->history = calloc(longest, sizeof *e->history);
    e->blocks = calloc((size_t)blocks * n, sizeof *e->blocks);
    e->segments = calloc(n, sizeof *e->segments);
    e->choices = calloc(n, sizeof *e->choices);
    e->chosen = calloc(n, sizeof *e->chosen);
    if (!is_whole || !e->tokens || !e->rows || !e->history || !e->blocks || !e->segments || !e->choices ||
        !e->chosen)
        return afd_fail(error, AFD_ERR_MEMORY, "no memory for %u sequences", n);
    e->sampling = (struct afd_sampling){.top_p = 1, .repetition_penalty = 1};
    for (uint32_t i = 0; i < blocks * n; i++) e->blocks[i] = i;
    for (uint32_t i = 0; i < n; i++) {
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
    return AFD_OK;
}

enum afd_status afd_engine_open(const struct afd_engine_config *config, struct afd_engine **out,
                                struct afd_error *error)
{
    struct afd_engine *e = calloc(1, sizeof *e);
    if (!e) return afd_fail(error, AFD_ERR_MEMORY, "no memory for an engine");
    e->config = *config;
    enum afd_status status = afd_model_load(config->model, &e->model, error);
    if (!status) status = afd_checkpoint_open(config->model, &e->checkpoint, error);
    if (!status) status = open_devices(e, error);
    if (!status) status = make_tables(e, error);
    if (status)
        afd_engine_close(e);
    else
        *out = e;
    return status;
}

void afd_engine_close(struct afd_engine *e)
{
    if (!e) return;
    if (e->attn) {
        afd_device_free(e->attn, e->records);
        for (uint32_t s = 0; s < e->config.ep; s++) afd_device_free(e->attn, e->answers[s]);
    }
    afd_device_destroy(e->attn);
    afd_device_destroy(e->ffn);
    afd_checkpoint_close(e->checkpoint);
    afd_model_destroy(e->model);
    free(e->tokens);
    free(e->rows);
    free(e->history);
    free(e->blocks);
    free(e->segments);
    free(e->choices);
    free(e->chosen);
    free(e);
}

static struct afd_partials partials_of(const struct afd_engine *e)
{
    struct afd_partials partials = {0};
    for (uint32_t s = 0; s < e->config.ep; s++) partials.rows[s] = e->answers[s];
    return partials;
}

static struct afd_ffn_part part_of(const struct afd_engine *e, uint32_t batch)
{
    struct afd_ffn_part part = {.records = e->records, .rows = batch, .shards = low_bits(e->config.held)};
    for (uint32_t s = 0; s < e->config.held; s++) part.out[s] = e->answers[s];
    return part;
}

static enum afd_status begin(struct afd_engine *e, uint32_t batch, uint32_t position)
{
    for (uint32_t i = 0; i < batch; i++) {
        e->tokens[i] = (uint32_t)(afd_random(0, e->steps, i) % e->model->vocab);
        e->segments[i].first_position = position;
    }
    e->steps++;
    struct afd_step s = {.rows = batch, .segment_count = batch, .tokens = e->tokens, .segments = e->segments};
    enum afd_status status = afd_device_step(e->attn, 0, &s);
    if (status) return status;
    return execute(e->attn, &(struct afd_op){.kind = AFD_OP_EMBED, .quiet = 1}, NULL);
}

/* Rows that the FFN device has work for, as route left them. */
static uint32_t ffn_rows_of(const struct afd_engine *e, uint32_t batch)
{
    const struct afd_route_result *routed = afd_device_route_result(e->attn, 0);
    uint32_t rows = 0;
    for (uint32_t s = 0; s < e->config.held; s++) rows += routed->active[s];
    return rows < batch ? rows : batch;
}

static enum afd_status layer(struct afd_engine *e, uint32_t batch, uint32_t l, struct afd_engine_times *t)
{
    struct afd_partials partials = partials_of(e);
    struct afd_route_to to = {.shards = low_bits(e->config.ep), .every_row = 1, .records = e->records};
    struct afd_ffn_part part = part_of(e, batch);
    uint32_t bad;
    enum afd_status status;
    if ((status = execute(e->attn,
                          &(struct afd_op){.kind = AFD_OP_ATTN, .quiet = 1, .layer = l, .attn = {&partials}},
                          NULL)) ||
        (status = execute(e->attn, &(struct afd_op){.kind = AFD_OP_ROUTE, .layer = l, .route = {&to, 1}},
                          &t->attn[l])))
        return status;
    t->ffn_rows[l] = ffn_rows_of(e, batch);
    return execute(e->ffn,
                   &(struct afd_op){.kind = AFD_OP_FFN,
                                    .layer = l,
                                    .ffn = {.parts = &part, .part_count = 1, .bad_part_out = &bad}},
                   &t->ffn[l]);
}

enum afd_status afd_engine_step(struct afd_engine *e, uint32_t batch, uint32_t position,
                                struct afd_engine_times *t)
{
    struct afd_partials partials = partials_of(e);
    enum afd_status status = begin(e, batch, position);
    for (uint32_t l = 0; !status && l < e->model->layer_count; l++) status = layer(e, batch, l, t);
    if (status ||
        (status = execute(
             e->attn,
             &(struct afd_op){.kind = AFD_OP_LOGITS, .quiet = 1, .logits = {&partials, e->rows, batch}},
             NULL)))
        return status;
    return execute(e->attn, &(struct afd_op){.kind = AFD_OP_SAMPLE, .sample = {e->choices, e->chosen, batch}},
                   &t->head);
}
