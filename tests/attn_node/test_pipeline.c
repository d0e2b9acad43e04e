/* Guards: a layer computed before all its answers are there, or with one of another layer; a shard asked
 * twice or of an instance that does not hold it; two messages in one region or from one buffer at a time; a
 * message lost with a pair; more slots on the device than it should hold; an answer that nobody asked for
 * being believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "attn_node/pipeline.h"
#include "base/rng.h"

enum { INSTANCES = 4, SHARDS = 5, SLOTS = 3, LAYERS = 4, LIMIT = 8 };

/* A message that an instance has in its region of a slot. */
struct message {
    int there;
    uint32_t buffer;
    struct afd_pipeline_action as;
    uint64_t owed;
};

/* What the partial sums of a shard are of. */
struct sum {
    uint64_t step;
    uint32_t layer, instance;
};

struct world {
    struct afd_pipeline *pipeline;
    uint64_t seed, draws;
    uint64_t open;
    uint32_t copies, rank;
    uint32_t placement[SHARDS][INSTANCES];
    struct message regions[INSTANCES][SLOTS];
    int computing[SLOTS];
    uint32_t layer[SLOTS];
    uint64_t step[SLOTS];
    uint32_t active[SLOTS][SHARDS]; /* of the layer that is out */
    struct sum sums[SLOTS][SHARDS];
    uint32_t queued, begun, ended;
};

static uint64_t draw(struct world *w, uint64_t below)
{
    return afd_random(w->seed, w->draws++, 0) % below;
}

static void begin(struct world *w, uint32_t slot)
{
    afd_pipeline_begin(w->pipeline, slot);
    w->step[slot]++;
    w->layer[slot] = 0;
    w->begun++;
}

static int holds(const struct world *w, uint32_t shard, uint32_t instance)
{
    for (uint32_t c = 0; c < w->copies; c++)
        if (w->placement[shard][c] == instance) return 1;
    return 0;
}

static void check_compute(struct world *w, const struct afd_pipeline_action *a)
{
    assert_false(w->computing[a->slot]);
    assert_int_equal(a->layer, w->layer[a->slot]);
    assert_int_equal(a->step, w->step[a->slot]);
    assert_true(++w->queued <= 2);
    w->computing[a->slot] = 1;
    for (uint32_t s = 0; s < SHARDS && a->layer > 0; s++) {
        uint32_t by = afd_pipeline_answered_by(w->pipeline, a->slot, s);
        if (!w->active[a->slot][s]) {
            assert_int_equal(by, AFD_PIPELINE_NOBODY);
            continue;
        }
        assert_int_equal(w->sums[a->slot][s].step, a->step);
        assert_int_equal(w->sums[a->slot][s].layer, a->layer - 1);
        assert_int_equal(w->sums[a->slot][s].instance, by);
    }
    if (a->layer == LAYERS) return;
    const uint64_t *to = afd_pipeline_destinations(w->pipeline, a->slot);
    uint64_t all = 0;
    for (uint32_t i = 0; i < INSTANCES; i++) {
        assert_int_equal(all & to[i], 0);
        all |= to[i];
    }
    assert_int_equal(all, (1 << SHARDS) - 1);
}

static void check_send(struct world *w, const struct afd_pipeline_action *a)
{
    assert_true(w->open >> a->instance & 1);
    assert_false(w->computing[a->slot]);
    assert_int_equal(a->layer, w->layer[a->slot]);
    for (uint32_t i = 0; i < INSTANCES; i++) {
        const struct message *m = &w->regions[i][a->slot];
        assert_false(m->there && (i == a->instance || m->buffer == a->buffer));
        /* no shard with rows is asked of two */
        assert_false(m->there && m->as.layer == a->layer && m->as.step == a->step && (m->owed & a->shards));
    }
    int bare = 1;
    for (uint32_t s = 0; s < SHARDS; s++)
        if (a->shards >> s & 1) {
            assert_true(holds(w, s, a->instance));
            bare &= !w->active[a->slot][s];
        }
    assert_int_equal(bare, a->bare);
    if (draw(w, 8) == 0) {
        afd_pipeline_unsent(w->pipeline, a->slot, a->buffer);
        return;
    }
    w->regions[a->instance][a->slot] =
        (struct message){.there = 1, .buffer = a->buffer, .as = *a, .owed = a->shards};
}

static void run(struct world *w)
{
    struct afd_pipeline_action actions[LIMIT];
    uint32_t count;
    while ((count = afd_pipeline_run(w->pipeline, 0, actions, LIMIT)) > 0)
        for (uint32_t i = 0; i < count; i++) {
            if (actions[i].kind == AFD_PIPELINE_COMPUTE)
                check_compute(w, &actions[i]);
            else
                check_send(w, &actions[i]);
        }
}

static void end_compute(struct world *w, uint32_t slot)
{
    w->computing[slot] = 0;
    w->queued--;
    uint32_t *active = w->active[slot];
    for (uint32_t s = 0; s < SHARDS; s++) active[s] = draw(w, 2) ? (uint32_t)draw(w, 9) : 0;
    active[draw(w, SHARDS)] = 3;
    w->ended += w->layer[slot] == LAYERS;
    afd_pipeline_computed(w->pipeline, slot, active);
}

static void answer(struct world *w, uint32_t instance, uint32_t slot)
{
    struct message *m = &w->regions[instance][slot];
    uint32_t shard = (uint32_t)draw(w, SHARDS);
    if (!m->there || !(m->owed >> shard & 1)) return;
    int now = m->as.step == w->step[slot] && m->as.layer == w->layer[slot] && !w->computing[slot];
    struct afd_pipeline_answer a = {.slot = slot,
                                    .shard = shard,
                                    .layer = m->as.layer,
                                    .rows = now ? w->active[slot][shard] : 0,
                                    .step = m->as.step,
                                    .sequence = m->as.sequence};
    struct afd_error error;
    afd_ns round_trip;
    struct afd_pipeline_answer wrong = a;
    wrong.rows++;
    assert_int_equal(afd_pipeline_answer(w->pipeline, instance, &wrong, 0, &round_trip, &error),
                     AFD_ERR_PROTOCOL);
    wrong = a;
    wrong.sequence++;
    assert_int_equal(afd_pipeline_answer(w->pipeline, instance, &wrong, 0, &round_trip, &error),
                     AFD_ERR_PROTOCOL);
    assert_int_equal(afd_pipeline_answer(w->pipeline, instance, &a, 0, &round_trip, &error), AFD_OK);
    assert_int_equal(afd_pipeline_answer(w->pipeline, instance, &a, 0, &round_trip, &error),
                     AFD_ERR_PROTOCOL);
    m->owed &= ~((uint64_t)1 << shard);
    m->there = m->owed != 0;
    if (!a.rows) return;
    w->sums[slot][shard] = (struct sum){m->as.step, m->as.layer, instance};
    /* With the last answer the slot goes on. */
    for (uint32_t s = 0; s < SHARDS; s++)
        if (w->active[slot][s] &&
            (w->sums[slot][s].step != w->step[slot] || w->sums[slot][s].layer != w->layer[slot]))
            return;
    w->layer[slot]++;
}

static void toggle(struct world *w, uint32_t instance)
{
    w->open ^= (uint64_t)1 << instance;
    if (w->open >> instance & 1) {
        afd_pipeline_open(w->pipeline, instance);
        return;
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++) w->regions[instance][slot].there = 0;
    afd_pipeline_close(w->pipeline, instance);
}

static void place(struct world *w)
{
    for (uint32_t s = 0; s < SHARDS; s++) {
        uint32_t first = (uint32_t)draw(w, INSTANCES);
        for (uint32_t c = 0; c < w->copies; c++) w->placement[s][c] = (first + c) % INSTANCES;
        afd_pipeline_place(w->pipeline, s, w->placement[s], w->copies);
    }
}

static void random_run(uint64_t seed)
{
    struct world w = {.seed = seed};
    w.copies = 1 + (uint32_t)draw(&w, INSTANCES);
    w.rank = (uint32_t)draw(&w, 7);
    w.pipeline = afd_pipeline_create(&(struct afd_pipeline_config){.slots = SLOTS,
                                                                   .layers = LAYERS,
                                                                   .shards = SHARDS,
                                                                   .instances = INSTANCES,
                                                                   .rank = w.rank,
                                                                   .depth = 2,
                                                                   .deadline = 10});
    place(&w);
    while (w.ended < 60) {
        assert_true(w.draws < 2000000); /* progress */
        uint32_t slot = (uint32_t)draw(&w, SLOTS), instance = (uint32_t)draw(&w, INSTANCES);
        uint64_t event = draw(&w, 100);
        if (event < 20) {
            if (w.computing[slot]) end_compute(&w, slot);
        } else if (event < 80) {
            answer(&w, instance, slot);
        } else if (event < 85) {
            if (afd_pipeline_is_free(w.pipeline, slot)) begin(&w, slot);
        } else if (event < 89) {
            toggle(&w, instance);
        } else if (event == 89) {
            place(&w);
        } else {
            afd_pipeline_polled(w.pipeline);
        }
        run(&w);
    }
    assert_true(w.begun >= w.ended && w.begun <= w.ended + SLOTS);
    afd_pipeline_destroy(w.pipeline);
}

static void test_random_events(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) random_run(seed);
}

static struct afd_pipeline *small(uint32_t rank)
{
    struct afd_pipeline *p = afd_pipeline_create(&(struct afd_pipeline_config){
        .slots = 2, .layers = 1, .shards = 1, .instances = 2, .rank = rank, .depth = 1, .deadline = 10});
    afd_pipeline_place(p, 0, (const uint32_t[]){0, 1}, 2);
    afd_pipeline_open(p, 0);
    afd_pipeline_open(p, 1);
    return p;
}

/* Begins slot `slot` and brings it to where its message was sent. */
static struct afd_pipeline_action sent(struct afd_pipeline *p, uint32_t slot)
{
    struct afd_pipeline_action actions[LIMIT];
    afd_pipeline_begin(p, slot);
    assert_int_equal(afd_pipeline_run(p, 100, actions, LIMIT), 1);
    assert_int_equal(actions[0].kind, AFD_PIPELINE_COMPUTE);
    assert_int_equal(afd_pipeline_stage(p), AFD_STAGE_COMPUTE);
    afd_pipeline_computed(p, slot, (const uint32_t[]){5});
    assert_int_equal(afd_pipeline_run(p, 100, actions, LIMIT), 1);
    assert_int_equal(actions[0].kind, AFD_PIPELINE_SEND);
    assert_int_equal(afd_pipeline_stage(p), AFD_STAGE_WAIT);
    return actions[0];
}

static void test_ranks_share_the_copies(void **state)
{
    (void)state;
    for (uint32_t rank = 0; rank < 4; rank++) {
        struct afd_pipeline *p = small(rank);
        assert_int_equal(sent(p, 0).instance, rank % 2);
        afd_pipeline_destroy(p);
    }
}

static void test_lateness_is_told_once(void **state)
{
    (void)state;
    struct afd_pipeline *p = small(1);
    struct afd_pipeline_action late[LIMIT];
    sent(p, 1);
    assert_int_equal(afd_pipeline_expire(p, 109, late, LIMIT), 0);
    assert_int_equal(afd_pipeline_expire(p, 112, late, LIMIT), 1);
    assert_int_equal(late[0].slot, 1);
    assert_int_equal(late[0].instance, 1);
    assert_int_equal(late[0].waited, 12);
    assert_int_equal(afd_pipeline_expire(p, 200, late, LIMIT), 0);
    afd_pipeline_destroy(p);
}

static void test_loss_goes_to_the_other_copy_and_back(void **state)
{
    (void)state;
    struct afd_pipeline *p = small(0);
    struct afd_pipeline_action first = sent(p, 0), again[LIMIT];
    afd_pipeline_close(p, 0);
    assert_int_equal(afd_pipeline_run(p, 100, again, LIMIT), 1);
    assert_int_equal(again[0].instance, 1);
    assert_int_equal(again[0].buffer, first.buffer);
    assert_int_not_equal(again[0].sequence, first.sequence);
    afd_pipeline_close(p, 1);
    assert_int_equal(afd_pipeline_run(p, 100, again, LIMIT), 0); /* waits for a pair */
    assert_false(afd_pipeline_is_connected(p));
    afd_pipeline_open(p, 0);
    assert_int_equal(afd_pipeline_run(p, 100, again, LIMIT), 1);
    assert_int_equal(again[0].instance, 0);
    struct afd_pipeline_answer answer = {.slot = 0, .rows = 5, .step = 1, .sequence = again[0].sequence};
    afd_ns round_trip;
    struct afd_error error;
    assert_int_equal(afd_pipeline_answer(p, 1, &answer, 130, &round_trip, &error), AFD_ERR_PROTOCOL);
    assert_int_equal(afd_pipeline_answer(p, 0, &answer, 130, &round_trip, &error), AFD_OK);
    assert_int_equal(round_trip, 30);
    answer.slot = 1 << 20;
    assert_int_equal(afd_pipeline_answer(p, 0, &answer, 130, &round_trip, &error), AFD_ERR_PROTOCOL);
    afd_pipeline_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_events),
        cmocka_unit_test(test_ranks_share_the_copies),
        cmocka_unit_test(test_lateness_is_told_once),
        cmocka_unit_test(test_loss_goes_to_the_other_copy_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
