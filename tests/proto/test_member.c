/* Guards a rank's connection to the scheduler: it comes back after a loss and registers again, gives up when
 * refused for good, says so when nobody answers, and may be destroyed from within its own callbacks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <sys/socket.h>

#include "proto/member.h"

struct world {
    struct event_base *base;
    struct event *watchdog, *listen;
    int fd, accepted, registers, connected, disconnected, refused, orphaned, messages;
    int destroy_on; /* 1 message, 2 refused, 3 disconnected, 4 orphaned */
    char address[64], words[512];
    struct afd_channel *channel; /* the scheduler's side */
    uint8_t secret[AFD_SECRET_BYTES];
    Afd__Register registration;
    struct afd_member *member;
};

static void on_watchdog(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user;
    fail_msg("the test waits for something that does not come");
}

static void on_server_message(struct afd_channel *channel, const Afd__Envelope *m, void *user)
{
    struct world *w = user;
    (void)channel;
    if (m->body_case == AFD__ENVELOPE__BODY_REGISTER) {
        assert_int_equal(m->register_->incarnation, 77);
        w->registers++;
    } else {
        w->messages++;
    }
}

static void on_server_closed(struct afd_channel *channel, enum afd_status status, const char *words,
                             void *user)
{
    struct world *w = user;
    (void)status, (void)words;
    if (w->channel == channel) w->channel = NULL;
    afd_channel_close(channel);
}

static void on_listen(evutil_socket_t fd, short what, void *user)
{
    struct world *w = user;
    (void)what;
    struct afd_channel_config config = {.base = w->base,
                                        .name = "scheduler",
                                        .timeout_ms = 5000,
                                        .callbacks = {NULL, on_server_message, on_server_closed},
                                        .user = w};
    memcpy(config.secret, w->secret, sizeof config.secret);
    w->accepted++;
    w->channel = afd_channel_accept(&config, accept(fd, NULL, NULL));
}

static void destroy_if(struct world *w, int when)
{
    if (w->destroy_on != when) return;
    afd_member_destroy(w->member);
    w->member = NULL;
}

static void on_connected(void *user)
{
    ((struct world *)user)->connected++;
}

static void on_disconnected(const char *words, void *user)
{
    struct world *w = user;
    assert_true(strlen(words) > 0);
    w->disconnected++;
    destroy_if(w, 3);
}

static void on_message(const Afd__Envelope *m, void *user)
{
    struct world *w = user;
    assert_int_equal(m->body_case, AFD__ENVELOPE__BODY_ASSIGN);
    w->messages++;
    destroy_if(w, 1);
}

static void on_refused(const char *words, void *user)
{
    struct world *w = user;
    snprintf(w->words, sizeof w->words, "%s", words);
    w->refused++;
    destroy_if(w, 2);
}

static void on_orphaned(void *user)
{
    struct world *w = user;
    w->orphaned++;
    destroy_if(w, 4);
}

static void begin(struct world *w, int listens, uint32_t orphan_ms)
{
    struct afd_error error;
    struct timeval patience = {60, 0};
    int port;
    memset(w, 0, sizeof *w);
    memset(w->secret, 3, sizeof w->secret);
    w->base = event_base_new();
    w->watchdog = evtimer_new(w->base, on_watchdog, w);
    evtimer_add(w->watchdog, &patience);
    w->fd = afd_listen("127.0.0.1:0", &port, &error);
    assert_true(w->fd >= 0);
    snprintf(w->address, sizeof w->address, "127.0.0.1:%d", port);
    w->listen = event_new(w->base, w->fd, EV_READ | EV_PERSIST, on_listen, w);
    if (listens) {
        event_add(w->listen, NULL);
    } else {
        close(w->fd);
        w->fd = -1;
    }
    afd__register__init(&w->registration);
    w->registration.rank = 3;
    w->registration.incarnation = 77;
    struct afd_member_config config = {
        .base = w->base,
        .scheduler = w->address,
        .registration = &w->registration,
        .orphan_ms = orphan_ms,
        .connected = on_connected,
        .disconnected = on_disconnected,
        .message = on_message,
        .refused = on_refused,
        .orphaned = on_orphaned,
        .user = w,
    };
    memcpy(config.secret, w->secret, sizeof config.secret);
    w->member = afd_member_create(&config, &error);
    assert_non_null(w->member);
}

static void end(struct world *w)
{
    afd_member_destroy(w->member);
    afd_channel_close(w->channel);
    for (int i = 0; i < 20; i++) event_base_loop(w->base, EVLOOP_NONBLOCK);
    event_free(w->listen);
    event_free(w->watchdog);
    if (w->fd >= 0) close(w->fd);
    event_base_free(w->base);
}

static void pump(struct world *w)
{
    event_base_loop(w->base, EVLOOP_ONCE);
}

static enum afd_status send_ready(struct world *w)
{
    Afd__Ready ready = AFD__READY__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_READY;
    e.ready = &ready;
    return afd_member_send(w->member, &e);
}

static void test_registers_again(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 1, 0);
    assert_int_equal(send_ready(&w), AFD_AGAIN);
    for (int round = 1; round <= 3; round++) {
        while (w.registers < round) pump(&w);
        assert_int_equal(w.connected, round);
        assert_true(afd_member_is_connected(w.member));
        assert_int_equal(send_ready(&w), AFD_OK);
        while (w.messages < round) pump(&w);
        afd_channel_close(w.channel);
        w.channel = NULL;
        while (w.disconnected < round) pump(&w);
        assert_int_equal(send_ready(&w), AFD_AGAIN); /* the owner keeps it */
    }
    assert_int_equal(w.refused + w.orphaned, 0);
    end(&w);
}

static void test_refused_for_good_and_for_now(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 1, 0);
    while (w.registers < 1) pump(&w);
    afd_channel_refuse(w.channel, 1, "not yet");
    w.channel = NULL;
    while (w.registers < 2) pump(&w); /* it came back */
    assert_int_equal(w.refused, 0);
    afd_channel_refuse(w.channel, 0, "another model");
    w.channel = NULL;
    while (!w.refused) pump(&w);
    assert_non_null(strstr(w.words, "another model"));
    int accepted = w.accepted;
    struct timeval longer_than_a_retry = {0, 200000};
    event_base_loopexit(w.base, &longer_than_a_retry);
    event_base_dispatch(w.base);
    assert_int_equal(w.accepted, accepted);
    end(&w);
}

static void test_other_secret(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 1, 0);
    w.secret[0] ^= 1; /* the scheduler's, from now on */
    while (!w.refused) pump(&w);
    assert_non_null(strstr(w.words, "secret"));
    assert_int_equal(w.connected, 0);
    end(&w);
}

static void test_orphaned(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 0, 150);
    while (!w.orphaned) pump(&w);
    assert_int_equal(w.connected, 0);
    end(&w);
}

static void test_destroyed_from_within(void **state)
{
    (void)state;
    for (int when = 1; when <= 4; when++) {
        struct world w;
        begin(&w, when != 4, when == 4 ? 50 : 0);
        w.destroy_on = when;
        while (when != 4 && !w.registers) pump(&w);
        if (when == 1) {
            Afd__Assign assign = AFD__ASSIGN__INIT;
            Afd__Envelope e = AFD__ENVELOPE__INIT;
            e.body_case = AFD__ENVELOPE__BODY_ASSIGN;
            e.assign = &assign;
            afd_channel_send(w.channel, &e);
        } else if (when != 4) {
            if (when == 2)
                afd_channel_refuse(w.channel, 0, "no");
            else
                afd_channel_close(w.channel);
            w.channel = NULL;
        }
        while (w.member) pump(&w);
        end(&w);
    }
}

static void test_bad_address(void **state)
{
    (void)state;
    struct afd_error error = {""};
    Afd__Register registration = AFD__REGISTER__INIT;
    struct afd_member_config config = {.scheduler = "nowhere", .registration = &registration};
    assert_null(afd_member_create(&config, &error));
    assert_non_null(strstr(error.text, "host:port"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_registers_again),       cmocka_unit_test(test_refused_for_good_and_for_now),
        cmocka_unit_test(test_other_secret),          cmocka_unit_test(test_orphaned),
        cmocka_unit_test(test_destroyed_from_within), cmocka_unit_test(test_bad_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
