/* The cluster in virtual time against what can be said by hand, and the table it reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "plan/forecast.h"

static struct afd_error error;

/* 1 ms attention, 1 ms FFN, whatever the rows; 2 ms the head; nothing lost beside another core. */
static const struct afd_stage_table flat = {
    .ep = 1,
    .held = 1,
    .ffn_share = 1,
    .layers = 10,
    .count = 2,
    .samples = {{1, {1e-3, 1e-3}, {1e-3, 1e-3}, {2e-3, 2e-3}, 1.5, 0, 1, 1},
                {64, {1e-3, 1e-3}, {1e-3, 1e-3}, {2e-3, 2e-3}, 1.5, 0, 64, 1}}};

static struct afd_forecast make(const struct afd_stage_table *table, uint32_t a, uint32_t f, uint32_t batch,
                                uint32_t cores, double hop_s)
{
    struct afd_stage_table shared =
        *table; /* nothing is lost where devices outnumber cores, but their part */
    for (uint32_t i = 0; i < shared.count; i++) shared.samples[i].crowded = (cores + 1.0) / cores;
    struct afd_forecast_input in = {.table = &shared,
                                    .a = a,
                                    .f = f,
                                    .slots = 3,
                                    .batch = batch,
                                    .cores = cores,
                                    .max_rows = 2048,
                                    .gather_auto = 1,
                                    .hop_s = hop_s};
    struct afd_forecast out;
    if (afd_forecast_make(&in, &out, &error)) fail_msg("%s", error.text);
    return out;
}

/* One sequence waits for everything in turn: a step is 10 (1 + 1 + hop) + 2 ms. */
static void one_sequence_adds_up(void **state)
{
    (void)state;
    assert_float_equal(make(&flat, 1, 1, 1, 2, 0).tokens_per_s, 1 / 22e-3, 1e-6);
    assert_float_equal(make(&flat, 1, 1, 1, 2, 0.5e-3).tokens_per_s, 1 / 27e-3, 1e-6);
}

/* With three slots the attention device is never idle: 3 x 12 ms a step of 3 rows. */
static void slots_hide_the_other_side(void **state)
{
    (void)state;
    struct afd_forecast f = make(&flat, 1, 1, 3, 2, 0.1e-3);
    assert_float_equal(f.tokens_per_s, 3 / 36e-3, 0.02 / 36e-3);
    assert_true(f.attn_busy > 0.98 && f.ffn_busy < 0.9);
    assert_int_equal(f.rows, 1);
}

/* Ranks that share cores share their work out: two cores' worth of it, not less, not more. */
static void cores_are_shared(void **state)
{
    (void)state;
    double one = make(&flat, 1, 1, 3, 1, 0).tokens_per_s, two = make(&flat, 1, 1, 3, 2, 0).tokens_per_s;
    assert_true(one < 0.7 * two);
    /* on one core: 3 x 12 ms of attention, and from 10 (all in one batch) to 30 ms of FFN a step */
    assert_true(one <= 3 / 46e-3 * 1.01 && one >= 3 / 66e-3 * 0.99);
    double crowded = make(&flat, 3, 2, 9, 2, 0).tokens_per_s;
    assert_true(crowded <= 9 * 2 / (9 * 12e-3 + 2 * 10e-3) * 1.01);
}

/* Beside another core everything takes twice as long: two devices that always compute do half. */
static void memory_is_shared(void **state)
{
    (void)state;
    struct afd_stage_table slow = flat;
    for (uint32_t i = 0; i < slow.count; i++) {
        slow.samples[i].attn[1] *= 2;
        slow.samples[i].ffn[1] *= 2;
        slow.samples[i].head[1] *= 2;
    }
    /* a sequence alone never computes on both sides at once */
    assert_float_equal(make(&slow, 1, 1, 1, 2, 0).tokens_per_s, 1 / 22e-3, 1e-6);
    assert_true(make(&slow, 1, 1, 3, 2, 0).tokens_per_s < 0.7 * make(&flat, 1, 1, 3, 2, 0).tokens_per_s);
}

/* Rows of a dense layer that is cut in two concern one instance each. One row: nobody waits for the other
 * one, and what is measured is the time of the rows that there is work for. Four rows, each at its instance:
 * the longer half counts, which is 2.75 rows on average. */
static void shards_share_the_rows(void **state)
{
    (void)state;
    struct afd_stage_table t = flat;
    t.ep = 2;
    t.ffn_share = 0.5;
    t.samples[1] = (struct afd_stage_sample){4, {1e-3, 1e-3}, {4e-3, 4e-3}, {2e-3, 2e-3}, 1.5, 0, 4, 0.5};
    struct afd_forecast_input in = {
        .table = &t, .a = 1, .f = 2, .slots = 1, .batch = 1, .cores = 3, .max_rows = 2048};
    struct afd_forecast out;
    assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
    assert_float_equal(out.tokens_per_s, 1 / 22e-3, 1e-6);
    in.batch = 4;
    assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
    assert_float_equal(out.tokens_per_s, 4 / (12e-3 + 10 * 2.75e-3), 0.1 * 4 / 39.5e-3);
    assert_float_equal(out.ffn_rows, 4, 1e-9); /* all rows go to both */
    in.is_routed = 1;
    assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
    assert_true(out.ffn_rows < 3);
}

/* Six devices on two cores: not more than two cores do, and not much less than if all of it were done one by
 * one. */
static void threads_take_turns(void **state)
{
    (void)state;
    struct afd_forecast f = make(&flat, 3, 3, 3, 2, 0);
    /* 3 x 12 ms of attention; each of 3 instances serves 10 layers, in 1 to 3 batches */
    assert_true(f.tokens_per_s <= 3 * 2 / (3 * 12e-3 + 3 * 10e-3) * 1.01);
    assert_true(f.tokens_per_s >= 3 / (3 * 12e-3 + 3 * 30e-3));
}

/* Two ops of 10 ms on two cores, while a third thread is not there: each has a core of its own before long,
 * wherever they began. */
static void a_free_core_is_taken(void **state)
{
    (void)state;
    struct afd_stage_table t = flat;
    for (uint32_t i = 0; i < t.count; i++) t.samples[i].attn[0] = t.samples[i].attn[1] = 10e-3;
    struct afd_forecast f = make(&t, 2, 1, 2, 2, 0);
    assert_true(f.tokens_per_s > 0.75 * 2 / (10 * 11e-3 + 2e-3));
}

/* Where cores stand idle although threads wait, less is done than there are cores for. */
static void a_crowd_loses_time(void **state)
{
    (void)state;
    double rate[2];
    for (int i = 0; i < 2; i++) {
        struct afd_stage_table t = flat;
        for (uint32_t k = 0; k < t.count; k++) t.samples[k].crowded = i ? 2 : 1.5;
        struct afd_forecast_input in = {.table = &t,
                                        .a = 3,
                                        .f = 2,
                                        .slots = 3,
                                        .batch = 9,
                                        .cores = 2,
                                        .max_rows = 2048,
                                        .gather_auto = 1};
        struct afd_forecast out;
        assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
        rate[i] = out.tokens_per_s;
    }
    assert_true(rate[1] < 0.85 * rate[0] && rate[1] > 0.7 * rate[0]);
}

/* Ranks whose ops always took the same time would be in step for ever, and their messages always together. */
static void ranks_do_not_keep_in_step(void **state)
{
    (void)state;
    double rows[2];
    for (int i = 0; i < 2; i++) {
        struct afd_stage_table t = flat;
        for (uint32_t k = 0; k < t.count; k++) t.samples[k].spread = i ? 0.1 : 0;
        struct afd_forecast_input in = {
            .table = &t, .a = 2, .f = 1, .slots = 1, .batch = 2, .cores = 3, .max_rows = 2048};
        struct afd_forecast out;
        assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
        rows[i] = out.ffn_rows;
    }
    assert_float_equal(rows[0], 2, 1e-9);
    assert_true(rows[1] < 1.9);
}

/* What event loops and the scheduler run is nobody's while a core is free, and everybody's where none is. */
static void event_loops_take_their_part(void **state)
{
    (void)state;
    for (uint32_t cores = 1; cores <= 2; cores++) {
        struct afd_forecast_input in = {.table = &flat,
                                        .a = 1,
                                        .f = 1,
                                        .slots = 3,
                                        .batch = 1,
                                        .cores = cores,
                                        .max_rows = 2048,
                                        .gather_auto = 1,
                                        .turn_s = 0.3e-3,
                                        .step_s = 0.5e-3};
        struct afd_forecast out;
        assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
        assert_float_equal(out.tokens_per_s, cores == 1 ? 1 / 25.5e-3 : 1 / 22e-3, 1e-6);
    }
}

/* Batches are the daemon's: a second one is formed while the first is computed, so that slots that come one
 * after the other are not one batch unless it holds them back for each other. */
static void batches_are_formed_as_the_daemon_does(void **state)
{
    (void)state;
    struct afd_stage_table t = flat;
    for (uint32_t i = 0; i < t.count; i++) t.samples[i].ffn[0] = t.samples[i].ffn[1] = 10e-3;
    double rate[2];
    for (int held = 0; held < 2; held++) {
        struct afd_forecast_input in = {.table = &t,
                                        .a = 1,
                                        .f = 1,
                                        .slots = 3,
                                        .batch = 3,
                                        .cores = 2,
                                        .max_rows = 2048,
                                        .gather_window = held ? AFD_MS(50) : 0};
        struct afd_forecast out;
        assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
        rate[held] = out.tokens_per_s;
    }
    assert_true(rate[0] <
                3 / (10 * 10e-3 * 1.4)); /* alone, all of them in each batch would be 3 in 10 batches */
    assert_true(rate[1] > 1.2 * rate[0]);
}

/* A batch costs what its rows cost, between the sizes that were measured. */
static void rows_are_looked_up(void **state)
{
    (void)state;
    struct afd_stage_table t = flat;
    t.samples[1] =
        (struct afd_stage_sample){64, {64e-3, 64e-3}, {64e-3, 64e-3}, {64e-3, 64e-3}, 1.5, 0, 64, 1};
    t.samples[0].head[0] = t.samples[0].head[1] = 1e-3;
    struct afd_forecast_input in = {
        .table = &t, .a = 1, .f = 1, .slots = 1, .batch = 32, .cores = 2, .max_rows = 2048};
    struct afd_forecast out;
    assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_OK);
    assert_float_equal(out.tokens_per_s, 32 / (21 * 32e-3), 1e-6);
    assert_int_equal(out.rows, 32);
}

static void refusals(void **state)
{
    (void)state;
    struct afd_forecast_input in = {
        .table = &flat, .f = 1, .slots = 3, .batch = 1, .cores = 2, .max_rows = 2048};
    struct afd_forecast out;
    assert_int_equal(afd_forecast_make(&in, &out, &error), AFD_ERR_CONFIG);
    static const char *const wrong[][2] = {
        {"{", "line"},
        {"{\"layers\": 4, \"ep\": 1, \"held\": 1, \"stages\": []}", "afd bench stage"},
        {"{\"layers\": 4, \"ep\": 1, \"held\": 2, \"stages\": [{}]}", "afd bench stage"},
        {"{\"layers\": 4, \"ep\": 1, \"held\": 1, \"stages\": [{\"rows\": 0}]}", "rows"},
        {"{\"layers\": 4, \"ep\": 1, \"held\": 1, \"stages\": [{\"rows\": 1, \"attn_us\": 3}]}",
         "microseconds"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char path[] = "/tmp/afd-stage-XXXXXX";
        int fd = mkstemp(path);
        struct afd_stage_table table;
        assert_true(write(fd, wrong[i][0], strlen(wrong[i][0])) > 0);
        close(fd);
        assert_int_equal(afd_stage_table_load(path, &table, &error), AFD_ERR_CONFIG);
        if (!strstr(error.text, wrong[i][1])) fail_msg("\"%s\" does not name %s", error.text, wrong[i][1]);
        unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_sequence_adds_up),
        cmocka_unit_test(slots_hide_the_other_side),
        cmocka_unit_test(cores_are_shared),
        cmocka_unit_test(memory_is_shared),
        cmocka_unit_test(shards_share_the_rows),
        cmocka_unit_test(threads_take_turns),
        cmocka_unit_test(a_free_core_is_taken),
        cmocka_unit_test(a_crowd_loses_time),
        cmocka_unit_test(ranks_do_not_keep_in_step),
        cmocka_unit_test(event_loops_take_their_part),
        cmocka_unit_test(batches_are_formed_as_the_daemon_does),
        cmocka_unit_test(rows_are_looked_up),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
