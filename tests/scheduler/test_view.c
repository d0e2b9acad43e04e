/* Guards what the dashboard and `afd trace` ask a scheduler for: that it is JSON, says what happened, and
 * that neither a name, nor a rank that lies or is silent, nor a client that leaves does any harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* cmocka wants setjmp.h and stdarg.h first */
#include <cmocka.h>

#include "proto/trace.h"
#include "tests/scheduler/fixture.h"

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    fixture_open(f, "");
    fixture_join(f, 2);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture_close(*state);
    free(*state);
    return 0;
}

static json_t *get(struct fixture *f, const char *path, int expected)
{
    int status;
    json_t *root = ask(f, "GET", path, NULL, &status);
    assert_int_equal(status, expected);
    assert_non_null(root);
    return root;
}

static void test_small_endpoints(void **state)
{
    struct fixture *f = *state;
    int seen = 0;
    size_t i;
    json_t *e, *root = get(f, "/afd/v1/events", 200);
    json_array_foreach(json_object_get(root, "events"), i, e) seen |=
        !strcmp(json_string_value(json_object_get(e, "words")), "requests can run");
    assert_true(seen);
    json_decref(root);
    root = get(f, "/afd/v1/experts", 200);
    assert_true(json_is_array(json_object_get(root, "layers")));
    json_decref(root);
    for (json_int_t count = 0; count < 2; json_decref(root)) { /* a sample a second */
        root = get(f, "/afd/v1/history", 200);
        count = json_integer_value(json_object_get(root, "count"));
        const json_t *row = json_object_get(json_object_get(root, "values"), "generated_tokens_per_s");
        assert_int_equal(json_array_size(row), count);
        fixture_pump(f);
    }
    root = get(f, "/afd/v1/history?from=1000000", 200); /* a page that outlived a scheduler */
    assert_int_equal(json_integer_value(json_object_get(root, "from")), 0);
    json_decref(root);
}

/* ---- a rank that loads before it joins */

static void on_loader_opened(struct afd_channel *channel, const char *peer_name, void *user)
{
    (void)channel, (void)peer_name;
    *(int *)user = 1;
}

static void on_loader_closed(struct afd_channel *channel, enum afd_status status, const char *words,
                             void *user)
{
    (void)status, (void)words;
    afd_channel_close(channel);
    *(int *)user = 2;
}

static json_t *loading_of(struct fixture *f, const char *role, json_int_t rank)
{
    json_t *r, *found = NULL, *root = get(f, "/afd/v1/cluster", 200);
    size_t i;
    json_array_foreach(json_object_get(root, "ranks"), i, r)
    {
        if (json_integer_value(json_object_get(r, "rank")) == rank &&
            !strcmp(json_string_value(json_object_get(r, "role")), role))
            found = json_incref(json_object_get(r, "loading"));
    }
    json_decref(root);
    assert_non_null(found);
    return found;
}

static struct afd_channel *open_loader(struct fixture *f, int *state)
{
    struct afd_error error;
    struct afd_channel_config config = {.base = f->base,
                                        .name = "attn/1",
                                        .timeout_ms = 60000,
                                        .callbacks = {on_loader_opened, NULL, on_loader_closed},
                                        .user = state};
    memcpy(config.secret, f->config.secret, sizeof config.secret);
    struct afd_channel *channel = afd_channel_connect(&config, afd_scheduler_control(f->scheduler), &error);
    assert_non_null(channel);
    *state = 0;
    while (!*state) fixture_pump(f);
    assert_int_equal(*state, 1);
    return channel;
}

static void say_loading(struct fixture *f, struct afd_channel *channel, uint32_t rank, uint64_t bytes)
{
    Afd__Loading m = AFD__LOADING__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    m.rank = rank;
    m.bytes = bytes;
    m.total_bytes = 4000;
    m.ns = 2000000000;
    e.body_case = AFD__ENVELOPE__BODY_LOADING;
    e.loading = &m;
    assert_int_equal(afd_channel_send(channel, &e), AFD_OK);
    fixture_settle(f);
}

/* Guards: an operator who cannot see whether a rank loads or hangs; one that is shown to load after it died;
 * a rank number from outside that is used as an index. */
static void test_loading(void **state)
{
    struct fixture *f = *state;
    int loader, status;
    rank_kill(f, 1);
    struct afd_channel *channel = open_loader(f, &loader);
    say_loading(f, channel, 1, 1000);
    json_t *loading = loading_of(f, "attn", 1);
    while (json_is_null(loading)) { /* it is on its way */
        fixture_pump(f);
        json_decref(loading);
        loading = loading_of(f, "attn", 1);
    }
    assert_int_equal(json_integer_value(json_object_get(loading, "bytes")), 1000);
    assert_int_equal(json_integer_value(json_object_get(loading, "total_bytes")), 4000);
    assert_float_equal(json_number_value(json_object_get(loading, "bytes_per_s")), 500, 1e-9);
    assert_float_equal(json_number_value(json_object_get(loading, "left_s")), 6, 1e-9);
    json_decref(loading);
    loading = loading_of(f, "attn", 0);
    assert_true(json_is_null(loading));
    json_decref(loading);
    char *page = ask_text(f, "GET", "/metrics", NULL, &status);
    assert_non_null(strstr(page, "afd_rank_loaded_bytes{role=\"attn\",rank=\"1\"} 1000\n"));
    assert_non_null(strstr(page, "afd_rank_loading_bytes{role=\"attn\",rank=\"1\"} 4000\n"));
    free(page);
    afd_channel_close(channel);
    for (int is_over = 0; !is_over; json_decref(loading)) { /* its end is noticed */
        fixture_pump(f);
        loading = loading_of(f, "attn", 1);
        is_over = json_is_null(loading);
    }
    channel = open_loader(f, &loader);
    say_loading(f, channel, 99, 1000);
    while (loader == 1) fixture_pump(f); /* refused */
}

static void wait_loading(struct fixture *f, int loads)
{
    for (int is_there = !loads; is_there != loads;) {
        json_t *loading = loading_of(f, "ffn", 0);
        is_there = !json_is_null(loading);
        json_decref(loading);
        if (is_there != loads) fixture_pump(f);
    }
}

static void say(struct fake_rank *rank, int is_ready, uint64_t total_bytes)
{
    uint32_t shards[] = {0, 1};
    Afd__Loading loading = AFD__LOADING__INIT;
    Afd__Ready ready = AFD__READY__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    loading.bytes = 7;
    loading.total_bytes = total_bytes;
    ready.epoch = rank->epoch;
    ready.shards = shards;
    ready.n_shards = rank->shards;
    e.body_case = is_ready ? AFD__ENVELOPE__BODY_READY : AFD__ENVELOPE__BODY_LOADING;
    if (is_ready)
        e.ready = &ready;
    else
        e.loading = &loading;
    assert_int_equal(afd_member_send(rank->member, &e), AFD_OK);
}

/* Guards: shards that a serving rank takes over (scaling, lost ones) and that nobody sees coming; one that is
 * shown to load for ever though it could not. */
static void test_shards_that_come(void **state)
{
    struct fixture *f = *state;
    struct fake_rank *rank = &f->ranks[2];
    assert_true(rank->shards <= 2);
    wait_loading(f, 0);
    for (int is_ready = 0; is_ready < 2; is_ready++) { /* the end of it: given up, or there */
        say(rank, 0, 4000);
        wait_loading(f, 1);
        say(rank, is_ready, 0);
        wait_loading(f, 0);
    }
    int status;
    free(ask_text(f, "GET", "/ready", NULL, &status));
    assert_int_equal(status, 200); /* it served all the while */
}

/* Guards: a page that could run what a name brings in. */
static void test_page_has_a_policy(void **state)
{
    struct client *c = client_open(*state);
    static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    client_send(c, request, sizeof request - 1);
    while (!c->data || !strstr(c->data, "</html>")) fixture_pump(c->fixture);
    const char *policy = strstr(c->data, "script-src 'nonce-");
    assert_non_null(strstr(c->data, "Content-Security-Policy: default-src 'none'"));
    assert_non_null(policy);
    char nonce[64] = "<script nonce=\"";
    strncat(nonce, policy + strlen("script-src 'nonce-"), 32);
    assert_non_null(strstr(c->data, nonce));
    assert_null(strstr(c->data, "src=\"")); /* nothing is fetched from elsewhere */
    client_close(c);
}

static void send_events(struct fake_rank *rank, const void *bytes, size_t size)
{
    Afd__TraceEvents m = AFD__TRACE_EVENTS__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    m.serial = 1;
    m.events.data = (uint8_t *)bytes;
    m.events.len = size;
    e.body_case = AFD__ENVELOPE__BODY_TRACE_EVENTS;
    e.trace_events = &m;
    assert_int_equal(afd_member_send(rank->member, &e), AFD_OK);
}

static double summary_of(const json_t *root, const char *key)
{
    return json_number_value(json_object_get(json_object_get(root, "otherData"), key));
}

/* Guards: a trace that hangs on ranks that are silent, or takes what a rank makes up. */
static void test_trace_of_silent_and_lying_ranks(void **state)
{
    struct fixture *f = *state;
    struct afd_trace_event lie = {.kind = 200}, early = {.kind = AFD_TRACE_COMPUTE, .begin = 9, .end = 3};
    static const char request[] = "GET /afd/v1/trace?seconds=0.3 HTTP/1.1\r\nHost: x\r\n\r\n";
    struct client *c = client_open(f);
    char *body;
    client_send(c, request, sizeof request - 1);
    json_decref(get(f, "/afd/v1/trace?seconds=61", 400));
    json_decref(get(f, "/afd/v1/trace", 409)); /* one at a time */
    send_events(&f->ranks[0], &lie, sizeof lie);
    send_events(&f->ranks[1], &early, sizeof early);
    send_events(&f->ranks[2], &early, sizeof early - 1);
    assert_int_equal(client_answer(c, &body), 200);
    json_t *root = json_loads(body, 0, NULL);
    assert_non_null(root);
    assert_int_equal(summary_of(root, "missing_processes"), 3);
    assert_int_equal(summary_of(root, "flows"), 0);
    json_decref(root);
    free(body);
    client_close(c);
}

/* Guards: a trace that nobody waits for and that keeps others from taking one. */
static void test_client_leaves(void **state)
{
    struct fixture *f = *state;
    static const char request[] = "GET /afd/v1/trace?seconds=60 HTTP/1.1\r\nHost: x\r\n\r\n";
    struct client *c = client_open(f);
    int status;
    client_send(c, request, sizeof request - 1);
    json_decref(get(f, "/afd/v1/trace?seconds=0.01", 409));
    client_close(c);
    do json_decref(ask(f, "GET", "/afd/v1/trace?seconds=0.01", NULL, &status));
    while (status == 409);
    assert_int_equal(status, 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_small_endpoints, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loading, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shards_that_come, setup, teardown),
        cmocka_unit_test_setup_teardown(test_page_has_a_policy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trace_of_silent_and_lying_ranks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_leaves, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
