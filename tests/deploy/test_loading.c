/* Guards: a rank that loads for minutes and says nothing, or says it for every tensor; a time left that has
 * nothing to do with the rate; a report that is lost for good with one connection, or that ends the loading.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "deploy/loading.h"
#include "deploy/loading_report.h"

enum { MIB = 1 << 20 };

static void lines_come_every_few_seconds(void **state)
{
    (void)state;
    char line[AFD_LOADING_LINE_BYTES];
    struct afd_loading l = afd_loading_begin(AFD_SECONDS(100));
    assert_false(afd_loading_step(&l, 10 * MIB, 400 * MIB, AFD_SECONDS(100), line));
    assert_false(afd_loading_step(&l, 99 * MIB, 400 * MIB, AFD_SECONDS(101), line));
    assert_true(afd_loading_step(&l, 100 * MIB, 400 * MIB, AFD_SECONDS(102), line));
    assert_string_equal(line, "weights: 100.0 of 400.0 MiB (25%), 52.4 MB/s, 6 s left");
    assert_false(afd_loading_step(&l, 101 * MIB, 400 * MIB, AFD_SECONDS(103), line));
    assert_true(afd_loading_step(&l, 400 * MIB, 400 * MIB, AFD_SECONDS(108), line));
    assert_string_equal(line, "weights: 400.0 of 400.0 MiB (100%), 52.4 MB/s, 8.0 s");
}

static void nothing_loaded_yet_is_no_division(void **state)
{
    (void)state;
    char line[AFD_LOADING_LINE_BYTES];
    struct afd_loading l = afd_loading_begin(0);
    assert_false(afd_loading_step(&l, 0, 0, AFD_SECONDS(9), line));
    assert_true(afd_loading_step(&l, 0, 5 * MIB, AFD_SECONDS(9), line));
    assert_string_equal(line, "weights: 0.0 of 5.0 MiB (0%), 0.0 MB/s");
    /* no number of bytes makes a line too long */
    assert_true(afd_loading_step(&l, 1, UINT64_MAX, AFD_SECONDS(99), line));
}

/* ---- the report */

struct scheduler {
    struct event_base *base;
    struct afd_channel *channel;
    uint8_t secret[AFD_SECRET_BYTES];
    uint64_t bytes; /* of the last message */
    uint32_t rank, accepted;
};

static void on_message(struct afd_channel *channel, const Afd__Envelope *m, void *user)
{
    struct scheduler *s = user;
    (void)channel;
    assert_int_equal(m->body_case, AFD__ENVELOPE__BODY_LOADING);
    assert_int_equal(m->loading->role, AFD__ROLE__FFN);
    assert_int_equal(m->loading->total_bytes, 100);
    s->bytes = m->loading->bytes;
    s->rank = m->loading->rank;
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct scheduler *s = user;
    (void)status, (void)words;
    if (s->channel == channel) s->channel = NULL;
    afd_channel_close(channel);
}

static void on_connection(evutil_socket_t fd, short what, void *user)
{
    struct scheduler *s = user;
    (void)what;
    struct afd_channel_config config = {.base = s->base,
                                        .name = "scheduler",
                                        .timeout_ms = 60000,
                                        .callbacks = {NULL, on_message, on_closed},
                                        .user = s};
    memcpy(config.secret, s->secret, sizeof config.secret);
    int peer = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(peer >= 0);
    s->channel = afd_channel_accept(&config, peer);
    s->accepted++;
}

static void on_late(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user;
    fail_msg("the scheduler was told nothing");
}

static void the_scheduler_is_told(void **state)
{
    (void)state;
    struct scheduler s = {.base = event_base_new(), .secret = {3}};
    struct afd_error error;
    char address[64];
    int port, fd = afd_listen("127.0.0.1:0", &port, &error);
    struct event *listen = event_new(s.base, fd, EV_READ | EV_PERSIST, on_connection, &s),
                 *late = evtimer_new(s.base, on_late, NULL);
    assert_true(fd >= 0);
    event_add(listen, NULL);
    evtimer_add(late, &(struct timeval){.tv_sec = 60});
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    struct afd_loading_report_config config = {
        .base = s.base, .scheduler = address, .secret = {3}, .role = AFD_ROLE_FFN, .rank = 7};
    struct afd_loading_report *r = afd_loading_report_create(&config);
    afd_loading_report_tell(r, 10, 100, AFD_SECONDS(2));
    afd_loading_report_tell(r, 20, 100, AFD_SECONDS(4)); /* before the connection is open: the last counts */
    while (!s.bytes) event_base_loop(s.base, EVLOOP_ONCE);
    assert_int_equal(s.bytes, 20);
    assert_int_equal(s.rank, 7);
    afd_loading_report_tell(r, 30, 100, AFD_SECONDS(6));
    while (s.bytes != 30) event_base_loop(s.base, EVLOOP_ONCE);
    assert_int_equal(s.accepted, 1);
    afd_channel_close(s.channel); /* the scheduler goes down, and comes again */
    for (uint64_t bytes = 31; s.bytes < 31; bytes++) {
        afd_loading_report_tell(r, bytes, 100, AFD_SECONDS(8));
        event_base_loop(s.base, EVLOOP_ONCE);
    }
    assert_int_equal(s.accepted, 2);
    afd_loading_report_destroy(r);
    while (s.channel) event_base_loop(s.base, EVLOOP_ONCE); /* its end is seen at once */
    event_free(late);
    event_free(listen);
    close(fd);
    event_base_free(s.base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lines_come_every_few_seconds),
                                       cmocka_unit_test(nothing_loaded_yet_is_no_division),
                                       cmocka_unit_test(the_scheduler_is_told)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
