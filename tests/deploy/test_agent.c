/* Guards: a host that the scheduler does not hear of, or whose report is old; an order that is not handed on;
 * ranks of other hosts started because the scheduler said so; a supervisor that gives up when the scheduler
 * is away.
 *
 * Agent and scheduler share a loop; each wait is for an event of theirs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "deploy/agent.h"

static struct world {
    struct event_base *base;
    struct event *listen;
    struct afd_topology *topology;
    struct afd_agent *agent;
    struct afd_channel *channel; /* the scheduler's end */
    int fd, port;
    uint8_t secret[AFD_SECRET_BYTES];
    Afd__Envelope *got;     /* the last message to the scheduler */
    uint32_t pid_of_attn_1; /* what the host reports */
    char orders[128];       /* "attn/1+2 ffn/0+1" */
} w;

static const char yaml[] = "model: { path: m }\n"
                           "pools:\n"
                           "  attn: { instances: 2, max_instances: 4, hosts: [a, b] }\n"
                           "  ffn: { instances: 1, hosts: [b] }\n";

/* ---- the scheduler's end */

static void on_message(struct afd_channel *channel, const Afd__Envelope *m, void *user)
{
    (void)channel, (void)user;
    size_t size = afd__envelope__get_packed_size(m);
    uint8_t *bytes = malloc(size);
    afd__envelope__pack(m, bytes);
    if (w.got) afd__envelope__free_unpacked(w.got, NULL);
    w.got = afd__envelope__unpack(NULL, size, bytes);
    free(bytes);
    event_base_loopbreak(w.base);
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    (void)status, (void)words, (void)user;
    w.channel = NULL;
    afd_channel_close(channel);
}

static void on_connection(evutil_socket_t fd, short what, void *user)
{
    (void)what, (void)user;
    struct afd_channel_config config = {
        .base = w.base, .name = "scheduler", .timeout_ms = 5000, .callbacks = {NULL, on_message, on_closed}};
    memcpy(config.secret, w.secret, sizeof config.secret);
    int peer = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(peer >= 0);
    w.channel = afd_channel_accept(&config, peer);
    assert_non_null(w.channel);
}

static void on_late(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user;
    fail_msg("nothing came");
}

/* Runs the loop until the scheduler was told something of that kind; the limit only ends a test that fails.
 */
static void wait_for(Afd__Envelope__BodyCase body)
{
    struct event *late = evtimer_new(w.base, on_late, NULL);
    evtimer_add(late, &(struct timeval){.tv_sec = 30});
    if (w.got) afd__envelope__free_unpacked(w.got, NULL);
    w.got = NULL;
    while (!w.got || w.got->body_case != body) event_base_loop(w.base, EVLOOP_ONCE);
    event_free(late);
}

/* ---- the host's end */

static uint32_t list(const char *host, struct afd_agent_rank *out, void *user)
{
    (void)user;
    assert_string_equal(host, "b");
    out[0] = (struct afd_agent_rank){
        .role = AFD_ROLE_ATTN, .rank = 1, .start = 3, .pid = w.pid_of_attn_1, .state = "running"};
    out[1] = (struct afd_agent_rank){
        .role = AFD_ROLE_FFN, .rank = 0, .restarts = 2, .state = "failed", .words = "exit status 2"};
    return 2;
}

static void run(const char *host, const struct afd_agent_rank *ranks, uint32_t count, void *user)
{
    (void)user;
    assert_string_equal(host, "b");
    w.orders[0] = 0;
    for (uint32_t i = 0; i < count; i++)
        snprintf(w.orders + strlen(w.orders), sizeof w.orders - strlen(w.orders), "%s%s/%u+%u", i ? " " : "",
                 afd_role_name(ranks[i].role), ranks[i].rank, ranks[i].start);
}

static int setup(void **state)
{
    (void)state;
    char path[] = "/tmp/afd-agent-XXXXXX.yaml", address[64];
    struct afd_error error = {""};
    memset(&w, 0, sizeof w);
    memset(w.secret, 7, sizeof w.secret);
    int file = mkstemps(path, 5);
    assert_int_equal(write(file, yaml, sizeof yaml - 1), sizeof yaml - 1);
    close(file);
    if (afd_topology_load(path, &w.topology, &error)) fail_msg("%s", error.text);
    unlink(path);
    w.base = event_base_new();
    w.fd = afd_listen("127.0.0.1:0", &w.port, &error);
    assert_true(w.fd >= 0);
    w.listen = event_new(w.base, w.fd, EV_READ | EV_PERSIST, on_connection, NULL);
    event_add(w.listen, NULL);
    w.pid_of_attn_1 = 41;
    struct afd_agent_config config = {
        .base = w.base, .topology = w.topology, .host = "b", .limit = 3, .list = list, .run = run};
    memcpy(config.secret, w.secret, sizeof config.secret);
    w.agent = afd_agent_create(&config);
    assert_non_null(w.agent);
    snprintf(address, sizeof address, "127.0.0.1:%d", w.port);
    afd_agent_connect(w.agent, address);
    wait_for(AFD__ENVELOPE__BODY_HOST_REGISTER);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    afd_agent_destroy(w.agent);
    if (w.channel) {
        afd_channel_set_user(w.channel, (struct afd_channel_callbacks){NULL, NULL, NULL}, NULL);
        afd_channel_close(w.channel);
    }
    event_free(w.listen);
    close(w.fd);
    event_base_dispatch(w.base);
    event_base_free(w.base);
    if (w.got) afd__envelope__free_unpacked(w.got, NULL);
    afd_topology_destroy(w.topology);
    return 0;
}

static void order(const uint32_t (*ranks)[3], size_t count, uint64_t serial)
{
    Afd__RankProcess processes[8], *at[8];
    Afd__HostRun m = AFD__HOST_RUN__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    for (size_t i = 0; i < count; i++) {
        afd__rank_process__init(&processes[i]);
        processes[i].role = ranks[i][0] ? AFD__ROLE__FFN : AFD__ROLE__ATTN;
        processes[i].rank = ranks[i][1];
        processes[i].start = ranks[i][2];
        at[i] = &processes[i];
    }
    m.serial = serial;
    m.n_ranks = count;
    m.ranks = at;
    e.body_case = AFD__ENVELOPE__BODY_HOST_RUN;
    e.host_run = &m;
    assert_int_equal(afd_channel_send(w.channel, &e), AFD_OK);
    wait_for(AFD__ENVELOPE__BODY_HOST_REPORT);
    assert_int_equal(w.got->host_report->serial, serial);
}

static void a_host_says_what_runs(void **state)
{
    (void)state;
    const Afd__HostRegister *m = w.got->host_register;
    assert_string_equal(afd_channel_peer_name(w.channel), "host/b");
    assert_string_equal(m->host, "b");
    assert_memory_equal(m->topology_hash.data, w.topology->hash, AFD_HASH_BYTES);
    assert_int_equal(m->n_ranks, 2);
    assert_int_equal(m->ranks[0]->role, AFD__ROLE__ATTN);
    assert_int_equal(m->ranks[0]->start, 3);
    assert_int_equal(m->ranks[0]->pid, 41);
    assert_string_equal(m->ranks[1]->state, "failed");
    assert_string_equal(m->ranks[1]->words, "exit status 2");
    w.pid_of_attn_1 = 42;
    afd_agent_changed(w.agent);
    wait_for(AFD__ENVELOPE__BODY_HOST_REPORT);
    assert_int_equal(w.got->host_report->ranks[0]->pid, 42);
}

static void orders_are_handed_on(void **state)
{
    (void)state;
    static const uint32_t first[][3] = {{0, 1, 1}, {0, 3, 1}, {1, 0, 2}}, second[][3] = {{0, 1, 2}};
    order(first, 3, 7);
    assert_string_equal(w.orders, "attn/1+1 attn/3+1 ffn/0+2"); /* attn/3: beyond the initial ones */
    order(second, 1, 8);
    assert_string_equal(w.orders, "attn/1+2");
    order(NULL, 0, 9);
    assert_string_equal(w.orders, "");
}

static void ranks_of_others_are_left_out(void **state)
{
    (void)state;
    static const uint32_t ranks[][3] = {{0, 0, 1}, {0, 5, 1}, {0, 4000000000u, 1}, {1, 1, 1}, {0, 1, 1},
                                        {0, 1, 2}, {1, 0, 1}};
    order(ranks, 7, 1);
    assert_string_equal(w.orders, "attn/1+1 ffn/0+1");
}

static void a_scheduler_that_comes_back_is_told_again(void **state)
{
    (void)state;
    struct afd_channel *old = w.channel;
    afd_channel_set_user(old, (struct afd_channel_callbacks){NULL, NULL, NULL}, NULL);
    afd_channel_close(old);
    w.channel = NULL;
    w.pid_of_attn_1 = 43;
    wait_for(AFD__ENVELOPE__BODY_HOST_REGISTER);
    assert_int_equal(w.got->host_register->ranks[0]->pid, 43);
}

int main(void)
{
    afd_log_init("test_agent", AFD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_host_says_what_runs, setup, teardown),
        cmocka_unit_test_setup_teardown(orders_are_handed_on, setup, teardown),
        cmocka_unit_test_setup_teardown(ranks_of_others_are_left_out, setup, teardown),
        cmocka_unit_test_setup_teardown(a_scheduler_that_comes_back_is_told_again, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
