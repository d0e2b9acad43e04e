/* Synthetic clusters: ranks that do the same work a step, with noise; one of them is planted slow. Guards: a
 * slow rank that is not found, or found at the wrong place; and healthy ones that are accused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/rng.h"
#include "base/stages.h"
#include "scheduler/straggler.h"

enum { MOST = 4, BEATS_A_WINDOW = 4 };

struct rank {
    uint64_t wall, compute, steps, rows, late, run_delay;
    Afd__PairCounters pairs[MOST];
    double slow, load; /* planted: its device's factor; steps in proportion to it */
    double stands;     /* share of the time that it stands still */
};

struct world {
    struct afd_topology topology;
    struct afd_straggler *straggler;
    struct rank ranks[AFD_ROLE_COUNT][MOST];
    double slow_link[AFD_ROLE_COUNT][MOST]; /* the network of a rank */
    double noise;
    uint64_t draws;
    afd_ns now;
};

static double noisy(struct world *w, double value)
{
    double u = (double)(afd_random(7, w->draws++, 0) >> 11) / 9007199254740992.0;
    return value * (1 + w->noise * (2 * u - 1));
}

static struct world *open_world(uint32_t attn, uint32_t ffn)
{
    struct world *w = calloc(1, sizeof *w);
    w->topology.attn.instances = w->topology.attn.max_instances = attn;
    w->topology.ffn.instances = w->topology.ffn.max_instances = ffn;
    w->topology.attn.ranks_per_instance = w->topology.ffn.ranks_per_instance = w->topology.ffn.tp = 1;
    w->noise = 0.3;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (int i = 0; i < MOST; i++) {
            w->ranks[role][i].slow = w->ranks[role][i].load = w->slow_link[role][i] = 1;
            for (uint32_t f = 0; f < MOST; f++) {
                afd__pair_counters__init(&w->ranks[role][i].pairs[f]);
                w->ranks[role][i].pairs[f].ffn_rank = f;
            }
        }
    w->straggler = afd_straggler_create(&w->topology, 0);
    assert_non_null(w->straggler);
    return w;
}

static void close_world(struct world *w)
{
    afd_straggler_destroy(w->straggler);
    free(w);
}

static void work(struct world *w, enum afd_role role, uint32_t i, double seconds)
{
    struct rank *r = &w->ranks[role][i];
    double steps = 200 * r->load * seconds;
    r->wall += (uint64_t)(seconds * 1e9);
    r->steps += (uint64_t)steps;
    r->rows += (uint64_t)(steps * 16);
    r->compute += (uint64_t)noisy(w, steps * 1e6 * r->slow);
    r->run_delay += (uint64_t)noisy(w, seconds * 1e8); /* a tenth: a busy machine */
    r->late += (uint64_t)(seconds * r->stands * 1e9);
    for (uint32_t f = 0; role == AFD_ROLE_ATTN && f < w->topology.ffn.instances; f++) {
        double link = 1e5 * w->slow_link[AFD_ROLE_ATTN][i] * w->slow_link[AFD_ROLE_FFN][f];
        r->pairs[f].timed += (uint64_t)(steps * 8);
        r->pairs[f].a2f_ns += (uint64_t)noisy(w, steps * 8 * link / 3);
        r->pairs[f].f2a_ns += (uint64_t)noisy(w, steps * 8 * link * 2 / 3);
        r->pairs[f].host_ns += (uint64_t)noisy(w, steps * 8 * 5e3);
    }
}

static void beat(struct world *w, enum afd_role role, uint32_t i)
{
    struct rank *r = &w->ranks[role][i];
    uint64_t ns[AFD_STAGE_COUNT] = {r->compute, 0, 0, r->wall - r->compute};
    Afd__PairCounters *pairs[MOST];
    Afd__StageSeconds stages = AFD__STAGE_SECONDS__INIT;
    Afd__Heartbeat h = AFD__HEARTBEAT__INIT;
    stages.n_ns = AFD_STAGE_COUNT;
    stages.ns = ns;
    h.stages = &stages;
    h.steps = r->steps;
    h.work_rows = r->rows;
    h.late_ns = r->late;
    h.run_delay_ns = r->run_delay;
    for (uint32_t f = 0; f < MOST; f++) pairs[f] = &r->pairs[f];
    h.n_pairs = role == AFD_ROLE_ATTN ? w->topology.ffn.instances : 0;
    h.pairs = pairs;
    afd_straggler_beat(w->straggler, role, i, 5, &h);
}

static uint32_t count_of(const struct world *w, int role)
{
    return role == AFD_ROLE_ATTN ? w->topology.attn.instances : w->topology.ffn.instances;
}

static void run(struct world *w, uint32_t windows)
{
    for (uint32_t k = 0; k < windows * BEATS_A_WINDOW; k++) {
        for (int role = 0; role < AFD_ROLE_COUNT; role++)
            for (uint32_t i = 0; i < count_of(w, role); i++) {
                work(w, (enum afd_role)role, i, (double)AFD_STRAGGLER_WINDOW / BEATS_A_WINDOW * 1e-9);
                beat(w, (enum afd_role)role, i);
            }
        w->now += AFD_STRAGGLER_WINDOW / BEATS_A_WINDOW;
        afd_straggler_tick(w->straggler, w->now);
    }
}

static const struct afd_straggler_verdict *verdict(const struct world *w, enum afd_role role, uint32_t i)
{
    return afd_straggler_verdict(w->straggler, role, i);
}

/* That one, and nobody else. */
static void expect_alone(const struct world *w, enum afd_role role, uint32_t i,
                         enum afd_straggler_stage stage, enum afd_straggler_cause cause)
{
    for (int r = 0; r < AFD_ROLE_COUNT; r++)
        for (uint32_t k = 0; k < count_of(w, r); k++)
            assert_int_equal(verdict(w, (enum afd_role)r, k)->is_accused, r == (int)role && k == i);
    assert_int_equal(verdict(w, role, i)->stage, stage);
    assert_int_equal(verdict(w, role, i)->cause, cause);
    assert_true(verdict(w, role, i)->score >= AFD_STRAGGLER_RATIO);
    assert_string_not_equal(verdict(w, role, i)->words, "");
}

static void expect_nobody(const struct world *w)
{
    for (int r = 0; r < AFD_ROLE_COUNT; r++)
        for (uint32_t k = 0; k < count_of(w, r); k++)
            assert_false(verdict(w, (enum afd_role)r, k)->is_accused);
}

static void test_nobody_in_a_healthy_cluster(void **state)
{
    (void)state;
    for (uint32_t attn = 1; attn <= 3; attn++)
        for (uint32_t ffn = 1; ffn <= 3; ffn++) {
            struct world *w = open_world(attn, ffn);
            for (int i = 0; i < 50; i++) {
                run(w, 1);
                expect_nobody(w);
            }
            close_world(w);
        }
}

/* More work is no fault, nor is less; nor is one that idles beside one that works. */
static void test_nobody_for_being_given_more(void **state)
{
    (void)state;
    struct world *w = open_world(3, 2);
    w->ranks[AFD_ROLE_ATTN][1].load = 2.5;
    w->ranks[AFD_ROLE_ATTN][2].load = 0;
    run(w, 10);
    expect_nobody(w);
    close_world(w);
}

static void test_a_slow_device(void **state)
{
    (void)state;
    for (uint32_t ffn = 2; ffn <= 3; ffn++) {
        struct world *w = open_world(2, ffn);
        w->ranks[AFD_ROLE_FFN][1].slow = 3.5;
        run(w, AFD_STRAGGLER_WINDOWS); /* the first window is not whole */
        expect_nobody(w);
        run(w, 2);
        expect_alone(w, AFD_ROLE_FFN, 1, AFD_STRAGGLER_COMPUTE, AFD_STRAGGLER_BY_DEVICE);
        w->ranks[AFD_ROLE_FFN][1].slow = 1;
        run(w, 1); /* one good window: what it is accused of is still what was seen */
        assert_true(verdict(w, AFD_ROLE_FFN, 1)->is_accused && verdict(w, AFD_ROLE_FFN, 1)->score < 1.5);
        assert_true(verdict(w, AFD_ROLE_FFN, 1)->accused_score >= AFD_STRAGGLER_RATIO);
        run(w, AFD_STRAGGLER_WINDOWS); /* it is forgiven */
        expect_nobody(w);
        close_world(w);
    }
    struct world *w = open_world(3, 1);
    w->ranks[AFD_ROLE_ATTN][0].slow = 3.5;
    run(w, 6);
    expect_alone(w, AFD_ROLE_ATTN, 0, AFD_STRAGGLER_COMPUTE, AFD_STRAGGLER_BY_DEVICE);
    close_world(w);
}

static void test_a_slow_network(void **state)
{
    (void)state;
    for (uint32_t attn = 2; attn <= 4; attn++)
        for (int role = 0; role < AFD_ROLE_COUNT; role++) {
            struct world *w = open_world(attn, 2);
            w->slow_link[role][1] = 6;
            run(w, 6);
            expect_alone(w, (enum afd_role)role, 1, AFD_STRAGGLER_NETWORK, AFD_STRAGGLER_BY_NETWORK);
            close_world(w);
        }
}

/* A process that stands still now and then: its messages are late and its device seems slow. */
static void test_a_slow_host(void **state)
{
    (void)state;
    for (int role = 0; role < AFD_ROLE_COUNT; role++) {
        struct world *w = open_world(2, 2);
        w->ranks[role][0].stands = 0.4;
        w->slow_link[role][0] = 10;
        run(w, 6);
        expect_alone(w, (enum afd_role)role, 0, AFD_STRAGGLER_NETWORK, AFD_STRAGGLER_BY_HOST);
        w->slow_link[role][0] = 1;
        run(w, AFD_STRAGGLER_WINDOWS); /* nothing shows it but that */
        expect_alone(w, (enum afd_role)role, 0, AFD_STRAGGLER_PROGRAM, AFD_STRAGGLER_BY_HOST);
        close_world(w);
    }
}

/* A rank that was started again, or lies about its counters, is nothing to compare with. */
static void test_counters_that_begin_anew(void **state)
{
    (void)state;
    struct world *w = open_world(2, 2);
    w->ranks[AFD_ROLE_FFN][1].slow = 3.5;
    run(w, 6);
    expect_alone(w, AFD_ROLE_FFN, 1, AFD_STRAGGLER_COMPUTE, AFD_STRAGGLER_BY_DEVICE);
    afd_straggler_gone(w->straggler, AFD_ROLE_FFN, 1);
    expect_nobody(w);
    w->ranks[AFD_ROLE_FFN][1] = (struct rank){.slow = 1, .load = 1};
    w->ranks[AFD_ROLE_ATTN][0].compute = w->ranks[AFD_ROLE_ATTN][0].steps = 0;
    run(w, 6);
    expect_nobody(w);
    Afd__Heartbeat h = AFD__HEARTBEAT__INIT; /* says nothing */
    afd_straggler_beat(w->straggler, AFD_ROLE_FFN, 0, 5, &h);
    w->ranks[AFD_ROLE_ATTN][0].pairs[0].ffn_rank = 4000000000u;
    run(w, 2);
    expect_nobody(w);
    close_world(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody_in_a_healthy_cluster),
        cmocka_unit_test(test_nobody_for_being_given_more),
        cmocka_unit_test(test_a_slow_device),
        cmocka_unit_test(test_a_slow_network),
        cmocka_unit_test(test_a_slow_host),
        cmocka_unit_test(test_counters_that_begin_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
