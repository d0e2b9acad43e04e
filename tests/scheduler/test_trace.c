/* The parts of a trace that decide: the queue of events, clocks, the merger and its JSON; and what the
 * dashboard's history and event log keep. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* cmocka wants setjmp.h and stdarg.h first */
#include <cmocka.h>

#include "base/rng.h"
#include "base/stages.h"
#include "deploy/topology.h"
#include "scheduler/event_log.h"
#include "scheduler/history.h"
#include "scheduler/trace_merge.h"

#define MS(n) ((afd_ns)(n)*1000000u)

/* ---- the queue */

/* Guards: an event that is lost without being counted, or a queue that grows; times before the trace. */
static void test_queue_is_bounded(void **state)
{
    struct afd_trace t;
    struct afd_trace_event out[8], e = {.kind = AFD_TRACE_COMPUTE};
    (void)state;
    assert_int_equal(afd_trace_init(&t), AFD_OK);
    assert_false(afd_trace_is_on(&t));
    afd_trace_begin(&t, 2 * AFD_TRACE_QUEUE, MS(100));
    afd_trace_add(&t, e, MS(10), MS(20)); /* over before it began */
    assert_int_equal(afd_trace_left(&t), 0);
    afd_trace_add(&t, e, MS(90), MS(101));
    assert_int_equal(afd_trace_take(&t, out, 8), 1);
    assert_int_equal(out[0].begin, 0);
    assert_int_equal(out[0].end, MS(1));
    for (uint32_t i = 0; i < AFD_TRACE_QUEUE + 5; i++) {
        e.id = i;
        afd_trace_add(&t, e, MS(200), MS(201));
    }
    assert_int_equal(t.dropped, 5);
    for (uint64_t next = 0; afd_trace_left(&t);) {
        uint32_t count = afd_trace_take(&t, out, 8);
        for (uint32_t i = 0; i < count; i++) assert_int_equal(out[i].id, next++);
    }
    for (uint32_t i = 0; i < AFD_TRACE_QUEUE; i++) { /* the limit of the trace */
        afd_trace_add(&t, e, MS(200), MS(201));
        afd_trace_take(&t, out, 1);
    }
    assert_int_equal(t.added, 2 * AFD_TRACE_QUEUE);
    assert_int_equal(t.dropped, 6);
    afd_trace_fini(&t);
}

/* ---- clocks */

/* A rank whose clock runs at `rate` of the scheduler's and whose trace began at `origin`; probes take a
 * random time there and back. Returns the largest error of the fit over the trace, against the stated one. */
static void check_clock(uint64_t seed, double rate, afd_ns origin, afd_ns length, afd_ns least, afd_ns spread)
{
    struct afd_trace_clock c;
    afd_trace_clock_init(&c, length, rate == 1 ? 0 : AFD_CLOCK_DRIFT);
    assert_false(afd_trace_clock_fit(&c));
    for (uint32_t i = 0; i < 300; i++) {
        afd_ns sent = origin + length / 300 * i;
        afd_ns there = least + afd_random(seed, i, 0) % spread,
               back = least + afd_random(seed, i, 1) % spread;
        afd_ns age = (afd_ns)((double)(sent + there - origin) * rate);
        afd_trace_clock_probe(&c, sent, sent + there + back, age);
    }
    assert_true(afd_trace_clock_fit(&c));
    for (int i = 0; i <= 10; i++) {
        afd_ns age = length / 10 * (afd_ns)i;
        double truth = (double)origin + (double)age / rate;
        double error = fabs((double)afd_trace_clock_at(&c, age) - truth);
        if (error > c.error + 1) fail_msg("wrong by %.0f ns, stated %.0f", error, c.error);
    }
    assert_true(c.error < (double)(least + spread) + AFD_CLOCK_DRIFT * (double)length);
}

/* Guards: a stated error that is smaller than the real one, with drift, delay and asymmetry. */
static void test_clock_error_is_a_bound(void **state)
{
    static const double rates[] = {1, 1 + 20e-6, 1 - 20e-6, 1 + 90e-6};
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++)
        for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
            check_clock(seed, rates[r], MS(1000000), MS(5000), 20000, 3000000);
            check_clock(seed, rates[r], MS(7), MS(60000), 100000, 500000);
            check_clock(seed, rates[r], MS(7), MS(100), 10000, 40000);
        }
}

/* Guards: a fit from what cannot be (a rank that lies about its age, an answer before its question). */
static void test_clock_refuses_nonsense(void **state)
{
    struct afd_trace_clock c;
    (void)state;
    afd_trace_clock_init(&c, MS(1000), AFD_CLOCK_DRIFT);
    afd_trace_clock_probe(&c, MS(10), MS(9), MS(1));
    afd_trace_clock_probe(&c, MS(10), MS(11), UINT64_MAX);
    assert_false(afd_trace_clock_fit(&c));
}

/* ---- the merger */

static void add(struct afd_trace_merge *m, uint32_t process, struct afd_trace_event e, afd_ns begin,
                afd_ns end)
{
    e.begin = begin;
    e.end = end;
    assert_int_equal(afd_trace_merge_add(m, process, &e, sizeof e), AFD_OK);
}

/* A scheduler, attn/3 whose trace began 1 ms after the scheduler's, ffn/1 2 ms after. */
static struct afd_trace_merge *make(void)
{
    struct afd_trace_merge_config config = {.cluster = "a \"cluster\" <b>",
                                            .model = "nano",
                                            .layers = 4,
                                            .slots = 2,
                                            .origin = MS(1000),
                                            .length = MS(100),
                                            .processes = 3,
                                            .events_each = 1000};
    struct afd_trace_merge *m = afd_trace_merge_create(&config);
    assert_non_null(m);
    static const char *const names[] = {"scheduler", "attn/3 on \"x\\", "ffn/1 on y"};
    for (uint32_t i = 0; i < 3; i++) {
        struct afd_trace_process *p = afd_trace_merge_process(m, i);
        p->role = (enum afd_trace_role)i;
        p->rank = i == 1 ? 3 : 1;
        p->is_whole = 1;
        snprintf(p->name, sizeof p->name, "%s", names[i]);
        afd_trace_clock_init(&p->clock, MS(100), AFD_CLOCK_DRIFT);
        if (i) afd_trace_clock_probe(&p->clock, MS(1000 + i), MS(1000 + i) + 20000, 10000);
    }
    return m;
}

static json_t *write_all(struct afd_trace_merge *m)
{
    struct afd_text all = {0}, part = {0};
    while (afd_trace_merge_next(m, &part)) {
        afd_text_add(&all, part.data ? part.data : "", part.bytes);
        afd_text_clear(&part);
    }
    json_error_t error;
    json_t *root = json_loadb(all.data, all.bytes, 0, &error);
    if (!root) fail_msg("line %d: %s\n%.*s", error.line, error.text, (int)all.bytes, all.data);
    afd_text_free(&all);
    afd_text_free(&part);
    return root;
}

/* The events of a phase ("X") and name; the last of them. */
static size_t count_events(const json_t *root, const char *phase, const char *name, const json_t **last_out)
{
    size_t i, count = 0;
    json_t *e;
    json_array_foreach(json_object_get(root, "traceEvents"), i, e)
    {
        if (strcmp(json_string_value(json_object_get(e, "ph")), phase)) continue;
        if (strcmp(json_string_value(json_object_get(e, "name")), name)) continue;
        if (last_out) *last_out = e;
        count++;
    }
    return count;
}

static double number_of(const json_t *e, const char *key)
{
    return json_number_value(json_object_get(e, key));
}

static const struct afd_trace_event message = {
    .kind = AFD_TRACE_A2F, .id = 7, .rows = 5, .layer = 2, .peer = 1, .sequence = 9, .slot = 1};

/* The message above as its four parts, at ages that follow each other. */
static void add_message(struct afd_trace_merge *m, int parts)
{
    struct afd_trace_event e = message;
    add(m, 1, e, MS(10), MS(11));
    e.kind = AFD_TRACE_COMPUTE;
    e.peer = e.slot = 0;
    if (parts > 1) add(m, 2, e, MS(12), MS(14));
    e.kind = AFD_TRACE_F;
    e.peer = 3;
    e.slot = message.slot;
    if (parts > 1) add(m, 2, e, MS(12), MS(14));
    e.kind = AFD_TRACE_F2A;
    if (parts > 2) add(m, 2, e, MS(15), MS(16));
    e.kind = AFD_TRACE_ANSWER;
    e.peer = 1;
    if (parts > 3) add(m, 1, e, MS(18), MS(18));
}

/* Guards: an epoch, a rank that comes, goes or is lost, or a broken pair that is not drawn over everything.
 */
static void test_faults_and_epochs(void **state)
{
    static const struct {
        uint32_t process;
        struct afd_trace_event event;
        const char *name;
    } all[] = {
        {0, {.kind = AFD_TRACE_EPOCH, .id = 12}, "epoch 12"},
        {0, {.kind = AFD_TRACE_RANK_UP, .slot = AFD_ROLE_FFN, .peer = 4}, "ffn/4 is ready"},
        {0, {.kind = AFD_TRACE_RANK_DOWN, .slot = AFD_ROLE_FFN, .peer = 4, .rows = 0}, "ffn/4 is lost"},
        {0, {.kind = AFD_TRACE_RANK_DOWN, .slot = AFD_ROLE_ATTN, .peer = 2, .rows = 1}, "attn/2 is gone"},
        {1, {.kind = AFD_TRACE_PAIR_DOWN, .peer = 1}, "attn/3 loses ffn/1"},
        {1, {.kind = AFD_TRACE_PAIR_UP, .peer = 1}, "attn/3 reaches ffn/1"}};
    enum { COUNT = sizeof all / sizeof *all };
    struct afd_trace_merge *m = make();
    const json_t *e;
    (void)state;
    for (int i = 0; i < COUNT; i++) add(m, all[i].process, all[i].event, MS(20 + i), MS(20 + i));
    json_t *root = write_all(m);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(count_events(root, "i", all[i].name, &e), 1);
        assert_string_equal(json_string_value(json_object_get(e, "s")), "g");
        double began_ms = all[i].process; /* a rank's trace began that much later */
        assert_true(fabs(number_of(e, "ts") - 1000 * (20 + i + began_ms)) < 0.01);
    }
    json_decref(root);
    afd_trace_merge_destroy(m);
}

/* Guards: a message whose arrows are missing, or bound to other times than its spans; clocks not applied. */
static void test_flow_of_a_message(void **state)
{
    struct afd_trace_merge *m = make();
    const json_t *e;
    (void)state;
    add_message(m, 4);
    json_t *root = write_all(m);
    assert_int_equal(count_events(root, "s", "A2F-F-F2A", &e), 1);
    assert_true(fabs(number_of(e, "ts") - 11000) < 0.01);
    assert_int_equal(count_events(root, "t", "A2F-F-F2A", NULL), 2);
    assert_int_equal(count_events(root, "f", "A2F-F-F2A", &e), 1);
    assert_true(fabs(number_of(e, "ts") - 19000) < 0.01);
    assert_int_equal(count_events(root, "X", "to ffn/1", NULL), 1);
    assert_int_equal(count_events(root, "X", "F layer 2", &e), 1);
    assert_true(fabs(number_of(e, "ts") - 14000) < 0.01 && fabs(number_of(e, "dur") - 2000) < 0.01);
    assert_int_equal(count_events(root, "M", "process_name", NULL), 3);
    const json_t *other = json_object_get(root, "otherData");
    assert_int_equal(number_of(other, "flows"), 1);
    assert_int_equal(number_of(other, "incomplete_flows"), 0);
    assert_int_equal(number_of(other, "backward_arrows"), 0);
    assert_int_equal(number_of(other, "missing_processes"), 0);
    /* two ranks, each known to half its round trip and to the drift that was assumed */
    assert_true(fabs(number_of(other, "clock_error_us") - 2 * (10 + 0.1e-3 * 99990)) < 0.1);
    assert_string_equal(json_string_value(json_object_get(other, "cluster")), "a \"cluster\" <b>");
    json_decref(root);
    afd_trace_merge_destroy(m);
}

/* Guards: arrows to nowhere, at the edges of a trace; a rank without a clock drawn at a wrong time. */
static void test_incomplete_flows_have_no_arrows(void **state)
{
    (void)state;
    for (int parts = 1; parts < 4; parts++) {
        struct afd_trace_merge *m = make();
        add_message(m, parts);
        json_t *root = write_all(m);
        assert_int_equal(count_events(root, "s", "A2F-F-F2A", NULL), 0);
        assert_int_equal(count_events(root, "t", "A2F-F-F2A", NULL), 0);
        assert_int_equal(afd_trace_merge_summary(m)->incomplete, 1);
        json_decref(root);
        afd_trace_merge_destroy(m);
    }
    struct afd_trace_merge *m = make();
    afd_trace_clock_init(&afd_trace_merge_process(m, 2)->clock, MS(100), AFD_CLOCK_DRIFT);
    add_message(m, 4);
    json_t *root = write_all(m);
    assert_int_equal(count_events(root, "X", "F layer 2", NULL), 0);
    assert_int_equal(count_events(root, "s", "A2F-F-F2A", NULL), 0);
    assert_int_equal(afd_trace_merge_summary(m)->missing, 1);
    json_decref(root);
    afd_trace_merge_destroy(m);
}

/* Guards: time in which a device had work and did none of it, drawn as if it had computed or been idle. */
static void test_bubbles(void **state)
{
    struct afd_trace_merge *m = make();
    const json_t *e;
    (void)state;
    add(m, 1, (struct afd_trace_event){.kind = AFD_TRACE_COMPUTE}, MS(12), MS(15));
    add(m, 1, (struct afd_trace_event){.kind = AFD_TRACE_COMPUTE}, MS(15), MS(16));
    add(m, 1, (struct afd_trace_event){.kind = AFD_TRACE_STAGE, .slot = AFD_STAGE_COMPUTE}, MS(10), MS(20));
    add(m, 1, (struct afd_trace_event){.kind = AFD_TRACE_STAGE, .slot = AFD_STAGE_WAIT}, MS(20), MS(30));
    json_t *root = write_all(m);
    assert_int_equal(count_events(root, "X", "bubble", &e), 2);
    assert_true(fabs(number_of(e, "ts") - 17000) < 0.01 && fabs(number_of(e, "dur") - 4000) < 0.01);
    assert_int_equal(count_events(root, "X", "compute", NULL), 0);
    assert_int_equal(count_events(root, "X", "wait", NULL), 1);
    json_decref(root);
    afd_trace_merge_destroy(m);
}

/* Guards: arrows that go back in time, unnoticed. */
static void test_backward_arrows_are_counted(void **state)
{
    struct afd_trace_merge *m = make();
    (void)state;
    struct afd_trace_event e = message;
    add(m, 1, e, MS(10), MS(11));
    e.peer = 3;
    e.kind = AFD_TRACE_F;
    add(m, 2, e, MS(5), MS(6)); /* three milliseconds too early */
    e.kind = AFD_TRACE_F2A;
    add(m, 2, e, MS(15), MS(16));
    e.kind = AFD_TRACE_ANSWER;
    e.peer = 1;
    add(m, 1, e, MS(18), MS(18));
    json_decref(write_all(m));
    assert_int_equal(afd_trace_merge_summary(m)->backward, 1);
    afd_trace_merge_destroy(m);
}

/* Guards: the life of a request that began, ended, or both, outside of the trace, and its way to the rank. */
static void test_requests(void **state)
{
    struct afd_trace_merge *m = make();
    const json_t *e;
    (void)state;
    add(m, 0, (struct afd_trace_event){.kind = AFD_TRACE_SUBMIT, .id = 77, .peer = 3, .rows = 4}, MS(1),
        MS(1));
    add(m, 1, (struct afd_trace_event){.kind = AFD_TRACE_REQUEST, .id = 77, .rows = 4}, MS(2), MS(2));
    add(m, 0, (struct afd_trace_event){.kind = AFD_TRACE_FIRST, .id = 77}, MS(5), MS(5));
    add(m, 0, (struct afd_trace_event){.kind = AFD_TRACE_END, .id = 88}, MS(6), MS(6));
    add(m, 0, (struct afd_trace_event){.kind = AFD_TRACE_RUNS, .id = 99}, 0, 0);
    add(m, 0, (struct afd_trace_event){.kind = AFD_TRACE_RUNS, .id = 66}, 0,
        0); /* .. and is given to another */
    add(m, 0, (struct afd_trace_event){.kind = AFD_TRACE_SUBMIT, .id = 66, .peer = 4, .slot = 1}, MS(7),
        MS(7));
    json_t *root = write_all(m);
    assert_int_equal(count_events(root, "b", "request", NULL), 4);
    assert_int_equal(count_events(root, "e", "request", NULL), 4);
    assert_int_equal(count_events(root, "n", "first token", NULL), 1);
    assert_int_equal(count_events(root, "s", "request", NULL), 1);
    assert_int_equal(count_events(root, "f", "request", &e), 1);
    assert_int_equal(number_of(e, "pid"), 2);
    assert_true(fabs(number_of(e, "ts") - 3000) < 0.01);
    json_decref(root);
    afd_trace_merge_destroy(m);
}

/* Guards: bytes of a rank that are no events, or more than were asked for. */
static void test_hostile_events(void **state)
{
    struct afd_trace_merge *m = make();
    struct afd_trace_event e = {.kind = AFD_TRACE_KIND_COUNT};
    (void)state;
    assert_int_equal(afd_trace_merge_add(m, 1, &e, sizeof e), AFD_ERR_PROTOCOL);
    assert_int_equal(afd_trace_merge_add(m, 1, &e, sizeof e - 1), AFD_ERR_PROTOCOL);
    e = (struct afd_trace_event){.kind = AFD_TRACE_A2F, .begin = 2, .end = 1};
    assert_int_equal(afd_trace_merge_add(m, 1, &e, sizeof e), AFD_ERR_PROTOCOL);
    e.end = UINT64_MAX;
    assert_int_equal(afd_trace_merge_add(m, 1, &e, sizeof e), AFD_ERR_PROTOCOL);
    struct afd_trace_event *many = calloc(1001, sizeof *many);
    assert_non_null(many);
    assert_int_equal(afd_trace_merge_add(m, 1, many, 1001 * sizeof *many), AFD_ERR_PROTOCOL);
    /* Anything in the fields that are numbers: it is drawn, or left out. */
    for (uint32_t i = 0; i < 1000; i++) {
        uint64_t noise[5] = {0};
        for (uint32_t k = 2; k < 5; k++) noise[k] = afd_random(i, k, 0) >> 1;
        memcpy(&many[i], noise, sizeof many[i]);
        many[i].begin = many[i].end = MS(i % 100);
        many[i].kind = (uint8_t)(i % AFD_TRACE_KIND_COUNT);
    }
    assert_int_equal(afd_trace_merge_add(m, 1, many, 1000 * sizeof *many), AFD_OK);
    assert_int_equal(afd_trace_merge_add(m, 2, many, 1000 * sizeof *many), AFD_OK);
    json_decref(write_all(m));
    free(many);
    afd_trace_merge_destroy(m);
}

/* ---- history and events */

/* Guards: rates over the wrong time, quantiles of everything instead of the last second, a ring that is read
 * behind its end. */
static void test_history(void **state)
{
    static const double bounds[] = {0.001, 0.01, 0.1};
    struct afd_histogram first = {.bounds = bounds, .count = 3}, inter = first;
    struct afd_history_state s = {.first_token = &first, .inter_token = &inter};
    struct afd_history *h = calloc(1, sizeof *h);
    (void)state;
    assert_non_null(h);
    afd_history_tick(h, &s, MS(1000));
    assert_int_equal(h->count, 0);
    s.generated_tokens = 300;
    for (int i = 0; i < 100; i++) afd_histogram_observe(&first, MS(5));
    afd_history_tick(h, &s, MS(1500)); /* too soon */
    assert_int_equal(h->count, 0);
    afd_history_tick(h, &s, MS(3000));
    assert_int_equal(h->count, 1);
    assert_true(fabsf(afd_history_get(h, 0, AFD_HISTORY_GENERATED) - 150) < 0.01F);
    float p50 = afd_history_get(h, 0, AFD_HISTORY_FIRST_TOKEN_P50);
    assert_true(p50 > 0.001F && p50 < 0.01F);
    assert_true(afd_history_get(h, 0, AFD_HISTORY_INTER_TOKEN_P50) < 0);
    afd_histogram_observe(&first, MS(50));
    afd_history_tick(h, &s, MS(4000));
    assert_true(afd_history_get(h, 1, AFD_HISTORY_FIRST_TOKEN_P50) > 0.01F);
    assert_true(afd_history_get(h, 1, AFD_HISTORY_GENERATED) < 0.01F);
    for (uint32_t i = 0; i < AFD_HISTORY_SAMPLES; i++) {
        s.running = i;
        afd_history_tick(h, &s, MS(5000) + AFD_SECONDS(i));
    }
    assert_int_equal(afd_history_oldest(h), 2);
    assert_int_equal((int)afd_history_get(h, h->count - 1, AFD_HISTORY_RUNNING), AFD_HISTORY_SAMPLES - 1);
    free(h);
}

static void test_event_log(void **state)
{
    struct afd_event_log *log = calloc(1, sizeof *log);
    (void)state;
    assert_non_null(log);
    assert_null(afd_event_log_get(log, 1));
    for (int i = 1; i <= AFD_EVENT_LOG + 3; i++) afd_event_log_add(log, MS(i), i % 2, "event %d", i);
    assert_null(afd_event_log_get(log, 3));
    assert_string_equal(afd_event_log_get(log, 4)->words, "event 4");
    assert_int_equal(afd_event_log_get(log, AFD_EVENT_LOG + 3)->number, AFD_EVENT_LOG + 3);
    assert_null(afd_event_log_get(log, AFD_EVENT_LOG + 4));
    free(log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_clock_error_is_a_bound),
        cmocka_unit_test(test_clock_refuses_nonsense),
        cmocka_unit_test(test_flow_of_a_message),
        cmocka_unit_test(test_incomplete_flows_have_no_arrows),
        cmocka_unit_test(test_bubbles),
        cmocka_unit_test(test_backward_arrows_are_counted),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_faults_and_epochs),
        cmocka_unit_test(test_hostile_events),
        cmocka_unit_test(test_history),
        cmocka_unit_test(test_event_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
