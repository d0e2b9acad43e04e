/* Pairs between processes, and (loop) between threads. The peer is this program again, started with --peer;
 * it answers every message with a bare notice in the same region, until it is killed or its parent goes. */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/transport/node.h"

enum {
    PEERS = 4,
    REGIONS = 4,
    BYTES = 200000,
    PAIR_BYTES = (REGIONS * BYTES + 4095) / 4096 * 4096,
    ROUNDS = 200
};

static const struct test_kind *kind;

static void answer(struct node *node, const struct afd_transport_event *e)
{
    enum afd_status status;
    if (e->kind != AFD_EVENT_NOTICE) return;
    node->log_count = 0; /* a peer runs for as long as it is wanted */
    while ((status = afd_pair_put(e->pair, e->region, NULL, 0, e->sequence)) == AFD_AGAIN) pump(node->net);
    if (status != AFD_OK && status != AFD_ERR_PEER) abort();
}

static void serve(struct test_net *net, const struct test_kind *of, uint32_t rank, int address_fd)
{
    struct afd_transport_config config = node_config(of, AFD_ROLE_FFN, rank);
    struct node *node = node_open(net, &config, (uint64_t)REGIONS * BYTES);
    node_regions(node, 0, REGIONS, BYTES);
    node->on_event = answer;
    if (write(address_fd, node->address, sizeof node->address) != sizeof node->address) abort();
    wait_for(net, node_count_of(node, AFD_EVENT_LOST)); /* the parent closed its pair */
}

static int peer_main(char **argv)
{
    struct test_net net;
    int k = atoi(argv[2]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    net_open(&net);
    serve(&net, &test_kinds[k], (uint32_t)atoi(argv[3]), atoi(argv[4]));
    net_close(&net);
    return 0;
}

struct child {
    pid_t pid;
    char address[AFD_ADDRESS_BYTES];
    struct afd_pair *pair;
};

static void child_start(struct child *child, uint32_t rank)
{
    int out[2];
    char index[16], rank_text[16], fd[16];
    assert_int_equal(pipe(out), 0);
    snprintf(index, sizeof index, "%d", (int)(kind - test_kinds));
    snprintf(rank_text, sizeof rank_text, "%u", rank);
    snprintf(fd, sizeof fd, "%d", out[1]);
    child->pid = fork();
    if (child->pid == 0) {
        execl("/proc/self/exe", "test_processes", "--peer", index, rank_text, fd, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    assert_int_equal(read(out[0], child->address, sizeof child->address), sizeof child->address);
    close(out[0]);
}

struct writer {
    struct child children[PEERS];
    int answers[PEERS];
    int stopped; /* the child that was killed, -1: none */
};

static int index_of(const struct writer *w, const struct afd_pair *pair)
{
    for (int i = 0; i < PEERS; i++)
        if (w->children[i].pair == pair) return i;
    return -1;
}

static void write_region(struct node *node, struct afd_pair *pair, uint16_t region, uint16_t sequence)
{
    enum afd_status status;
    while ((status = afd_pair_put(pair, region, node->slab, BYTES, sequence)) == AFD_AGAIN) pump(node->net);
    if (status != AFD_ERR_PEER) assert_int_equal(status, AFD_OK);
}

static void on_answer(struct node *node, const struct afd_transport_event *e)
{
    struct writer *w = node->user;
    int i = index_of(w, e->pair);
    if (e->kind == AFD_EVENT_LOST) {
        assert_int_equal(i, w->stopped);
        assert_int_equal(e->status, AFD_ERR_PEER);
    }
    if (e->kind != AFD_EVENT_NOTICE) return;
    w->answers[i]++;
    if (w->answers[i] < ROUNDS || w->stopped < 0)
        write_region(node, e->pair, e->region, (uint16_t)(e->sequence + 1));
}

static int others_done(const struct writer *w, int than)
{
    for (int i = 0; i < PEERS; i++)
        if (i != than && w->answers[i] < ROUNDS) return 0;
    return 1;
}

/* Guards: a killed process that is not noticed while we write to it, or that takes other pairs down with it.
 */
static void test_killed_peer(void **state)
{
    struct test_net net;
    struct writer w = {.stopped = -1};
    struct afd_error error;
    (void)state;
    if (kind->emulates_put) {
        print_message("          UCX's emulation of put can end a process whose peer dies: skipped\n");
        skip();
    }
    if (kind->kind == AFD_DATA_LOOP) {
        print_message("          loop has no other process: skipped\n");
        skip();
    }
    for (uint32_t i = 0; i < PEERS; i++) child_start(&w.children[i], i);
    net_open(&net);
    struct afd_transport_config config = node_config(kind, AFD_ROLE_ATTN, 0);
    struct node *node = node_open(&net, &config, BYTES);
    node_regions(node, 0, REGIONS, 0);
    node->user = &w;
    node->on_event = on_answer;
    for (uint32_t i = 0; i < PEERS; i++) {
        struct afd_identity who = {AFD_ROLE_FFN, i, 0};
        w.children[i].pair = afd_pair_connect(node->transport, w.children[i].address, &who, 1, 7,
                                              node->regions, node->region_count, NULL, &error);
        assert_non_null(w.children[i].pair);
    }
    wait_for(&net, node_count_of(node, AFD_EVENT_OPEN) == PEERS);
    for (int i = 0; i < PEERS; i++)
        for (uint16_t r = 0; r < REGIONS; r++) write_region(node, w.children[i].pair, r, 0);
    wait_for(&net, w.answers[2] > ROUNDS / 4);
    w.stopped = 2;
    kill(w.children[2].pid, SIGKILL);
    wait_for(&net, node_count_of(node, AFD_EVENT_LOST) == 1);
    afd_pair_close(w.children[2].pair);
    wait_for(&net, others_done(&w, 2));
    assert_int_equal(node_count_of(node, AFD_EVENT_LOST), 1);
    net_close(&net);
    for (int i = 0; i < PEERS; i++) {
        int how;
        assert_int_equal(waitpid(w.children[i].pid, &how, 0), w.children[i].pid);
        assert_int_equal(how, i == 2 ? SIGKILL : 0); /* the others left in good order when their pair ended */
    }
}

/* ---- the peers write, we answer */

static void write_again(struct node *node, const struct afd_transport_event *e)
{
    node->log_count = 0;
    if (e->kind == AFD_EVENT_NOTICE) write_region(node, e->pair, e->region, (uint16_t)(e->sequence + 1));
}

static int writer_main(char **argv)
{
    struct test_net net;
    struct afd_error error;
    struct afd_identity who = {AFD_ROLE_ATTN, 0, 0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    net_open(&net);
    struct afd_transport_config config =
        node_config(&test_kinds[atoi(argv[2])], AFD_ROLE_FFN, (uint32_t)atoi(argv[3]));
    struct node *node = node_open(&net, &config, BYTES);
    node_regions(node, 0, REGIONS, 0);
    struct afd_pair *pair = afd_pair_connect(node->transport, argv[4], &who, 1, 7, node->regions,
                                             node->region_count, NULL, &error);
    wait_for(&net, node_count_of(node, AFD_EVENT_OPEN));
    node->on_event = write_again;
    for (uint16_t r = 0; r < REGIONS; r++) write_region(node, pair, r, 0);
    while (!net.is_expired) pump(&net); /* until it is killed */
    return 1;
}

struct reader {
    int heard[PEERS], lost;
};

static void hear(struct node *node, const struct afd_transport_event *e)
{
    struct reader *r = node->user;
    if (e->kind == AFD_EVENT_LOST) r->lost++;
    if (e->kind == AFD_EVENT_NOTICE) r->heard[afd_pair_peer(e->pair)->rank]++;
    answer(node, e);
}

static int all_heard(const struct reader *r, const int *before, int except)
{
    for (int i = 0; i < PEERS; i++)
        if (i != except && r->heard[i] < before[i] + 5) return 0;
    return 1;
}

/* Guards: a process that is killed in the middle of a write, and leaves what it shares with the others
 * unusable. Over one FIFO for all senders this happened at one kill in ten. */
static void test_killed_writers(void **state)
{
    enum { KILLS = 25 };
    static const int none[PEERS];
    (void)state;
    if (kind->emulates_put) {
        print_message("          UCX's emulation of put can end a process whose peer dies: skipped\n");
        skip();
    }
    if (kind->kind == AFD_DATA_LOOP) {
        print_message("          loop has no other process: skipped\n");
        skip();
    }
    for (int round = 0; round < KILLS; round++) {
        struct test_net net;
        struct reader reader = {.lost = 0};
        pid_t pids[PEERS];
        char index[16], rank[16];
        net_open(&net);
        struct afd_transport_config config = node_config(kind, AFD_ROLE_ATTN, 0);
        struct node *node = node_open(&net, &config, (uint64_t)PEERS * PAIR_BYTES);
        node_regions(node, 0, REGIONS, BYTES);
        node->rank_stride = PAIR_BYTES;
        node->user = &reader;
        node->on_event = hear;
        snprintf(index, sizeof index, "%d", (int)(kind - test_kinds));
        for (int i = 0; i < PEERS; i++) {
            snprintf(rank, sizeof rank, "%d", i);
            pids[i] = fork();
            if (pids[i] == 0) {
                execl("/proc/self/exe", "test_processes", "--writer", index, rank, node->address,
                      (char *)NULL);
                _exit(127);
            }
        }
        wait_for(&net, all_heard(&reader, none, -1));
        kill(pids[0], SIGKILL);
        waitpid(pids[0], NULL, 0);
        wait_for(&net, reader.lost);
        int before[PEERS];
        memcpy(before, reader.heard, sizeof before);
        wait_for(&net, all_heard(&reader, before, 0));
        assert_int_equal(reader.lost, 1);
        for (int i = 1; i < PEERS; i++) kill(pids[i], SIGKILL);
        for (int i = 1; i < PEERS; i++) waitpid(pids[i], NULL, 0);
        net_close(&net);
    }
}

/* Guards: close that waits for a peer which does not run: its FIFO or socket is full and stays so. */
static void test_stopped_peer(void **state)
{
    struct test_net net;
    struct child child;
    struct afd_error error;
    struct afd_identity who = {AFD_ROLE_FFN, 0, 0};
    (void)state;
    if (kind->kind == AFD_DATA_LOOP) {
        print_message("          loop has no other process: skipped\n");
        skip();
    }
    child_start(&child, 0);
    net_open(&net);
    struct afd_transport_config config = node_config(kind, AFD_ROLE_ATTN, 0);
    struct node *node = node_open(&net, &config, BYTES);
    child.pair = afd_pair_connect(node->transport, child.address, &who, 1, 7, NULL, 0, NULL, &error);
    wait_for(&net, node_count_of(node, AFD_EVENT_OPEN) == 1);
    kill(child.pid, SIGSTOP);
    int puts = 0;
    while (afd_pair_put(child.pair, (uint16_t)(puts % REGIONS), node->slab, BYTES, 0) == AFD_OK) puts++;
    assert_true(puts > 0); /* until AFD_AGAIN: memory for outstanding puts is bounded */
    afd_pair_close(child.pair);
    memset(node->slab, 0xff, BYTES); /* the source is ours again */
    kill(child.pid, SIGKILL);
    assert_int_equal(waitpid(child.pid, NULL, 0), child.pid);
    net_close(&net);
}

/* ---- threads */

struct server {
    pthread_t thread;
    const struct test_kind *kind;
    uint32_t rank;
    int address_fd;
};

static void *server_main(void *user)
{
    struct server *s = user;
    struct test_net net;
    net_open(&net);
    serve(&net, s->kind, s->rank, s->address_fd);
    net_close(&net);
    return NULL;
}

/* Guards: a data race between the threads of loop (run it under ThreadSanitizer), and state shared by two UCX
 * transports of one process. */
static void test_threads(void **state)
{
    struct test_net net;
    struct writer w = {.stopped = PEERS};
    struct server servers[PEERS];
    struct afd_error error;
    (void)state;
    net_open(&net);
    struct afd_transport_config config = node_config(kind, AFD_ROLE_ATTN, 0);
    struct node *node = node_open(&net, &config, BYTES);
    node_regions(node, 0, REGIONS, 0);
    node->user = &w;
    node->on_event = on_answer;
    for (uint32_t i = 0; i < PEERS; i++) {
        struct afd_identity who = {AFD_ROLE_FFN, i, 0};
        int out[2];
        assert_int_equal(pipe(out), 0);
        servers[i] = (struct server){.kind = kind, .rank = i, .address_fd = out[1]};
        assert_int_equal(pthread_create(&servers[i].thread, NULL, server_main, &servers[i]), 0);
        assert_int_equal(read(out[0], w.children[i].address, AFD_ADDRESS_BYTES), AFD_ADDRESS_BYTES);
        close(out[0]);
        close(out[1]);
        w.children[i].pair = afd_pair_connect(node->transport, w.children[i].address, &who, 1, 7,
                                              node->regions, node->region_count, NULL, &error);
    }
    wait_for(&net, node_count_of(node, AFD_EVENT_OPEN) == PEERS);
    for (int i = 0; i < PEERS; i++)
        for (uint16_t r = 0; r < REGIONS; r++) write_region(node, w.children[i].pair, r, 0);
    wait_for(&net, others_done(&w, PEERS));
    net_close(&net);
    for (int i = 0; i < PEERS; i++) pthread_join(servers[i].thread, NULL);
}

/* Arguments, both optional: the name of one transport, a pattern of test names. */
int main(int argc, char **argv)
{
    int failed = 0;
    if (argc == 5 && !strcmp(argv[1], "--peer")) return peer_main(argv);
    if (argc == 5 && !strcmp(argv[1], "--writer")) return writer_main(argv);
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    for (int i = 0; i < test_kind_count; i++) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_killed_peer),
            cmocka_unit_test(test_killed_writers),
            cmocka_unit_test(test_stopped_peer),
            cmocka_unit_test(test_threads),
        };
        kind = &test_kinds[i];
        if (!test_kind_is_wanted(kind, argc > 1 ? argv[1] : NULL)) continue;
        failed += cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
    }
    return failed;
}
