/* Ops of two slots, and two FFN batches, under way at once: the bits of one after the other. On a GPU that
 * the CPU plays, which does what is on its streams in a random order, and where one is built in, on that.
 * Guards: memory that two streams share; a table that the CPU writes again before it was copied; a graph
 * launched with what another step or batch had; graphs made anew because rows came or went, a shard had none
 * of them, or a block of tokens more was in sight. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute/cuda/cuda.h"
#include "tests/compute/machine.h"

/* Positions before START are zeros in the cache; a step or two later a block of 64 tokens more is in sight.
 */
enum { LANES = 2, STEPS = 5, ROWS = 8, EP = 2, START = 186, BLOCKS = 16 };

/* One slot, and what lies between its stages. */
struct lane {
    unsigned char *records, *sums[EP];
    struct afd_partials partials;
    struct afd_route_to to;
    struct afd_ffn_part part;
    uint32_t active[EP], expert_rows[AFD_MAX_EXPERTS];
    struct afd_choice choices[2 * ROWS];
    struct afd_chosen chosen[2 * ROWS];
    uint64_t ticket;
    uint32_t rows, done; /* of this step; positions before it */
};

struct world {
    struct machine m;
    int together;
    struct lane lanes[LANES];
    uint64_t captured; /* graphs, of the first step */
    uint64_t trace;
};

/* Of a step: other numbers of rows, the same power of two. */
static const uint32_t rows_at[LANES][STEPS] = {{3, 4, 3, 3, 4}, {8, 5, 7, 6, 8}};
static const uint32_t all_rows[ROWS] = {0, 1, 2, 3, 4, 5, 6, 7};
static const struct afd_sampling plain = {.temperature = 1.0f,
                                          .top_p = 0.9f,
                                          .repetition_penalty = 1.0f,
                                          .seed = 3},
                                 penalised = {.top_p = 1.0f, .repetition_penalty = 2.0f};

static void submit(struct afd_device *device, uint32_t lane, struct afd_op op, uint64_t *ticket)
{
    op.slot = device->config.share.ffn ? 0 : lane;
    assert_int_equal(afd_device_submit(device, &op, ticket), AFD_OK);
}

/* Until the events of these tickets (0: none) have come, in any order. */
static void wait_for(struct afd_device *device, uint64_t tickets[LANES])
{
    while (tickets[0] || tickets[1]) {
        struct afd_device_event event;
        if (!afd_device_poll(device, &event, 1)) {
            struct pollfd fd = {afd_device_event_fd(device), POLLIN, 0};
            if (afd_device_arm(device) != AFD_AGAIN && poll(&fd, 1, 60000) != 1) fail_msg("no event came");
            continue;
        }
        assert_int_equal(event.status, AFD_OK);
        uint32_t lane = event.ticket == tickets[1];
        assert_int_equal(event.ticket, tickets[lane]);
        tickets[lane] = 0;
    }
}

/* Both lanes' stage at once, or one after the other. */
static void both(struct world *w, struct afd_device *device,
                 void (*begin)(struct world *w, uint32_t lane, uint32_t layer, uint64_t *ticket),
                 uint32_t layer)
{
    uint64_t tickets[LANES] = {0};
    for (uint32_t i = 0; i < LANES; i++) {
        begin(w, i, layer, &tickets[i]);
        if (!w->together) wait_for(device, tickets);
    }
    wait_for(device, tickets);
}

static void attend(struct world *w, uint32_t i, uint32_t layer, uint64_t *ticket)
{
    struct lane *lane = &w->lanes[i];
    if (!layer) submit(w->m.attn, i, (struct afd_op){.kind = AFD_OP_EMBED, .quiet = 1}, ticket);
    submit(w->m.attn, i,
           (struct afd_op){.kind = AFD_OP_ATTN, .quiet = 1, .layer = layer, .attn = {&lane->partials}},
           ticket);
    submit(w->m.attn, i, (struct afd_op){.kind = AFD_OP_ROUTE, .layer = layer, .route = {&lane->to, 1}},
           ticket);
}

static void compute(struct world *w, uint32_t i, uint32_t layer, uint64_t *ticket)
{
    struct lane *lane = &w->lanes[i];
    lane->part = (struct afd_ffn_part){.records = lane->records,
                                       .rows = afd_device_route_result(w->m.attn, i)->rows[0],
                                       .shards = 3,
                                       .out = {lane->sums[0], lane->sums[1]},
                                       .active_out = lane->active};
    submit(
        w->m.ffn[0][0], i,
        (struct afd_op){.kind = AFD_OP_FFN,
                        .layer = layer,
                        .ffn = {.parts = &lane->part, .part_count = 1, .expert_rows_out = lane->expert_rows}},
        ticket);
}

static void sample(struct world *w, uint32_t i, uint32_t layer, uint64_t *ticket)
{
    struct lane *lane = &w->lanes[i];
    (void)layer;
    for (uint32_t c = 0; c < 2 * lane->rows; c++)
        lane->choices[c] =
            (struct afd_choice){.logit_row = c / 2, .sampling = c % 2 ? &plain : &penalised, .forced = -1};
    submit(
        w->m.attn, i,
        (struct afd_op){.kind = AFD_OP_LOGITS, .quiet = 1, .logits = {&lane->partials, all_rows, lane->rows}},
        ticket);
    submit(w->m.attn, i,
           (struct afd_op){.kind = AFD_OP_SAMPLE, .sample = {lane->choices, lane->chosen, 2 * lane->rows}},
           ticket);
}

static void trace(struct world *w, const void *data, size_t bytes)
{
    for (size_t b = 0; b < bytes; b++)
        w->trace = (w->trace ^ ((const unsigned char *)data)[b]) * 1099511628211u;
}

/* What the layer wrote, and what was counted. */
static void end_layer(struct world *w, uint32_t i, uint32_t layer)
{
    struct lane *lane = &w->lanes[i];
    const struct afd_ffn_desc *ffn = &w->m.model->layers[layer].ffn;
    const struct afd_route_result *result = afd_device_route_result(w->m.attn, i);
    uint32_t counted = 0, chosen = ffn->kind == AFD_FFN_EXPERTS ? ffn->top_k * lane->rows : 0;
    for (uint32_t s = 0; s < EP; s++) {
        assert_int_equal(lane->active[s], result->active[s]);
        lane->partials.rows[s] = lane->active[s] ? lane->sums[s] : NULL;
        for (uint32_t r = 0; r < lane->active[s]; r++)
            trace(w, lane->sums[s] + (size_t)r * w->m.wire.f2a_stride, w->m.model->hidden * sizeof(float));
    }
    for (uint32_t e = 0; chosen && e < ffn->experts; e++) counted += lane->expert_rows[e];
    assert_int_equal(counted, chosen);
}

static void step(struct world *w, uint32_t number)
{
    for (uint32_t i = 0; i < LANES; i++) {
        struct lane *lane = &w->lanes[i];
        uint32_t rows = rows_at[i][number], tokens[ROWS], blocks[BLOCKS];
        for (uint32_t b = 0; b < BLOCKS; b++) blocks[b] = LANES * b + i;
        for (uint32_t r = 0; r < rows; r++)
            tokens[r] = r < lane->rows ? lane->chosen[2 * r].token : 10 * i + r + number;
        struct afd_segment segment = {0, rows, START + lane->done, blocks, BLOCKS, 0};
        assert_int_equal(afd_device_step(w->m.attn, i, &(struct afd_step){rows, 1, tokens, &segment}),
                         AFD_OK);
        lane->rows = rows;
        lane->done += rows;
    }
    for (uint32_t l = 0; l < w->m.model->layer_count; l++) {
        both(w, w->m.attn, attend, l);
        both(w, w->m.ffn[0][0], compute, l);
        for (uint32_t i = 0; i < LANES; i++) end_layer(w, i, l);
    }
    both(w, w->m.attn, sample, 0);
    for (uint32_t i = 0; i < LANES; i++)
        for (uint32_t c = 0; c < 2 * w->lanes[i].rows; c++) {
            trace(w, &w->lanes[i].chosen[c].token, sizeof(uint32_t));
            trace(w, &w->lanes[i].chosen[c].logprob, sizeof(float));
        }
}

static struct afd_gpu_graph_counts graphs_of(const struct world *w)
{
    struct afd_cuda *attn = w->m.attn->state, *ffn = w->m.ffn[0][0]->state;
    struct afd_gpu_graph_counts a = afd_gpu_graph_counts(attn->gpu), f = afd_gpu_graph_counts(ffn->gpu);
    return (struct afd_gpu_graph_counts){a.launched + f.launched, a.captured + f.captured};
}

static uint64_t run(const char *dir, struct machine_config config, int together)
{
    struct world w = {.m = machine_open(dir, config), .together = together};
    int is_cuda = config.type == AFD_DEVICE_CUDA;
    for (uint32_t i = 0; i < LANES; i++) {
        struct lane *lane = &w.lanes[i];
        lane->records = afd_device_alloc(w.m.attn, (uint64_t)ROWS * w.m.wire.a2f_stride);
        lane->to = (struct afd_route_to){3, 1, lane->records};
        for (uint32_t s = 0; s < EP; s++)
            lane->sums[s] = afd_device_alloc(w.m.attn, (uint64_t)ROWS * w.m.wire.f2a_stride);
    }
    for (uint32_t n = 0; n < STEPS; n++) {
        step(&w, n);
        if (is_cuda && n == 0) w.captured = graphs_of(&w).captured;
    }
    if (is_cuda) {
        struct afd_gpu_graph_counts graphs = graphs_of(&w);
        print_message("%d, %s: %llu graphs launched, %llu captured\n", (int)config.numerics,
                      together ? "together" : "one by one", (unsigned long long)graphs.launched,
                      (unsigned long long)graphs.captured);
        assert_int_equal(graphs.launched, (uint64_t)STEPS * LANES * w.m.model->layer_count * 3);
        assert_int_equal(graphs.captured, w.captured);
    }
    for (uint32_t i = 0; i < LANES; i++) {
        afd_device_free(w.m.attn, w.lanes[i].records);
        for (uint32_t s = 0; s < EP; s++) afd_device_free(w.m.attn, w.lanes[i].sums[s]);
    }
    machine_close(&w.m);
    return w.trace;
}

static void overlapping_ops_are_those_of_one_after_the_other(void **state)
{
    (void)state;
    char dir[64];
    struct afd_tiny_model tiny = afd_tiny_model_small();
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    tiny.head_dim = 64; /* which the tensor cores take */
    config.ep = EP, config.kv = AFD_KV_BF16;
    machine_write(&tiny, dir);
    uint64_t expected = run(dir, config, 0);
    assert_int_equal(run(dir, config, 1), expected);
    config.type = AFD_DEVICE_CUDA;
    if (machine_has(config.type)) {
        assert_int_equal(run(dir, config, 0), expected);
        assert_int_equal(run(dir, config, 1), expected);
        config.numerics = AFD_NUMERICS_NATIVE;
        assert_int_equal(run(dir, config, 1), run(dir, config, 0));
    }
    machine_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(overlapping_ops_are_those_of_one_after_the_other)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
