#include "tests/transport/node.h"

#include <stdlib.h>
#include <string.h>

#include "transport/backend.h"

const struct test_kind test_kinds[] = {
    {.name = "loop", .kind = AFD_DATA_LOOP, .path = AFD_PATH_AUTO},
    {.name = "shm", .kind = AFD_DATA_AUTO, .path = AFD_PATH_SHM},
    {.name = "tcp", .kind = AFD_DATA_TCP, .path = AFD_PATH_TCP},
    {.name = "ucx tcp", .kind = AFD_DATA_UCX, .path = AFD_PATH_TCP},
    {.name = "ucx tcp put",
     .kind = AFD_DATA_UCX,
     .path = (enum afd_data_path)AFD_PATH_TCP_PUT,
     .emulates_put = 1},
    {.name = "verbs",
     .kind = AFD_DATA_VERBS,
     .path = AFD_PATH_RDMA,
     .needs_rdma = 1,
     .network = {.gid_index = -1}},
    {.name = "ucx rdma",
     .kind = AFD_DATA_UCX,
     .path = AFD_PATH_RDMA,
     .needs_rdma = 1,
     .network = {.device_count = 1, .devices = {"rxe0"}, .gid_index = -1, .ucx_tls = "rc_v"}},
};
const int test_kind_count = sizeof test_kinds / sizeof *test_kinds;

int test_kind_is_wanted(const struct test_kind *kind, const char *name)
{
    if (name) return !strcmp(kind->name, name);
    if (kind->needs_rdma)
        print_message("%s: skipped: it needs an RDMA device (tests/rdma/run.sh makes one)\n", kind->name);
    return !kind->needs_rdma;
}

static void on_watchdog(evutil_socket_t fd, short what, void *user)
{
    struct test_net *net = user;
    (void)fd, (void)what;
    net->is_expired = 1;
}

void net_open(struct test_net *net)
{
    memset(net, 0, sizeof *net);
    net->base = event_base_new();
    net->watchdog = evtimer_new(net->base, on_watchdog, net);
    net_more_time(net);
}

void net_more_time(struct test_net *net)
{
    struct timeval limit = {.tv_sec = 30};
    evtimer_add(net->watchdog, &limit);
}

void net_close(struct test_net *net)
{
    while (net->node_count) node_close(net->nodes[net->node_count - 1]);
    /* channels that still write their last words */
    event_del(net->watchdog);
    event_base_loop(net->base, 0);
    event_free(net->watchdog);
    event_base_free(net->base);
}

void node_accept(struct node *node, struct afd_pair *pair)
{
    struct afd_region regions[AFD_MAX_REGIONS];
    uint64_t shift = afd_pair_peer(pair)->rank * node->rank_stride;
    for (uint32_t i = 0; i < node->region_count; i++) {
        regions[i] = node->regions[i];
        regions[i].base = (unsigned char *)regions[i].base + shift;
    }
    assert_int_equal(afd_pair_accept(pair, regions, node->region_count, node), AFD_OK);
}

static void take(struct node *node, const struct afd_transport_event *event)
{
    assert_true(node->log_count < MAX_LOG);
    node->log[node->log_count++] = *event;
    if (event->kind == AFD_EVENT_LOST) snprintf(node->words, sizeof node->words, "%s", event->words);
    if (event->kind == AFD_EVENT_REQUEST) {
        node->requested = event->pair;
        if (node->accepts) node_accept(node, event->pair);
    }
    if (node->on_event) node->on_event(node, event);
}

static int poll_node(struct node *node)
{
    struct afd_transport_event events[16];
    uint32_t count = afd_transport_poll(node->transport, events, 16);
    for (uint32_t i = 0; i < count; i++) take(node, &events[i]);
    return (int)count;
}

static int poll_nodes(struct test_net *net)
{
    int count = 0;
    for (int i = 0; i < net->node_count; i++) count += poll_node(net->nodes[i]);
    return count;
}

void pump(struct test_net *net)
{
    int may_sleep = poll_nodes(net) == 0;
    for (int i = 0; i < net->node_count && may_sleep; i++)
        may_sleep = afd_transport_arm(net->nodes[i]->transport) == AFD_OK;
    net->sleeps += may_sleep;
    /* Under traffic too, or the hello sockets starve. NONBLOCK alone goes on while any event is active, and a
       descriptor that is not drained stays active. */
    event_base_loop(net->base, may_sleep ? EVLOOP_ONCE : EVLOOP_ONCE | EVLOOP_NONBLOCK);
}

void pump_awake(struct test_net *net)
{
    poll_nodes(net);
    event_base_loop(net->base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
}

struct afd_transport_config node_config(const struct test_kind *kind, enum afd_role role, uint32_t rank)
{
    struct afd_transport_config config = {
        .kind = kind->kind,
        .path = kind->path,
        .network = kind->network,
        .host = "127.0.0.1",
        .secret = {1, 2, 3},
        .self = {role, rank, 1000 + rank + 100000 * (uint64_t)role},
        .agreement = {.model_hash = {9},
                      .dtypes = "a2f=bf16 f2a=bf16",
                      .layout = "hidden=64 rows=8",
                      .numerics = "portable/2"},
        .connect_timeout_ms = 10000,
        .max_message_bytes = 64u << 20,
    };
    return config;
}

static void on_wake(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user; /* pump polls after every loop */
}

struct node *node_open(struct test_net *net, const struct afd_transport_config *config, uint64_t slab_bytes)
{
    struct node *node = calloc(1, sizeof *node);
    struct afd_error error = {""};
    node->net = net;
    node->config = *config;
    node->config.base = net->base;
    if (afd_transport_open(&node->config, &node->transport, node->address, &error))
        fail_msg("%s", error.text);
    node->slab_bytes = (slab_bytes + 4095) / 4096 * 4096;
    node->slab = aligned_alloc(4096, node->slab_bytes);
    memset(node->slab, 0, node->slab_bytes);
    node->log = calloc(MAX_LOG, sizeof *node->log);
    assert_int_equal(afd_transport_register(node->transport, node->slab, node->slab_bytes), AFD_OK);
    node->wake =
        event_new(net->base, afd_transport_event_fd(node->transport), EV_READ | EV_PERSIST, on_wake, node);
    event_add(node->wake, NULL);
    node->accepts = 1;
    net->nodes[net->node_count++] = node;
    return node;
}

void node_close(struct node *node)
{
    struct test_net *net = node->net;
    int i = 0;
    while (net->nodes[i] != node) i++;
    memmove(&net->nodes[i], &net->nodes[i + 1], (size_t)(--net->node_count - i) * sizeof *net->nodes);
    event_free(node->wake);
    afd_transport_close(node->transport);
    free(node->slab);
    free(node->log);
    free(node);
}

void node_regions(struct node *node, uint64_t offset, uint32_t count, uint64_t bytes)
{
    assert_true(offset + count * bytes <= node->slab_bytes);
    for (uint32_t i = 0; i < count; i++)
        node->regions[i] = (struct afd_region){.base = node->slab + offset + i * bytes, .bytes = bytes};
    node->region_count = count;
}

struct afd_pair *node_connect(struct node *from, struct node *to, uint32_t generation)
{
    struct afd_error error = {""};
    struct afd_pair *pair = afd_pair_connect(from->transport, to->address, &to->config.self, generation, 7,
                                             from->regions, from->region_count, from, &error);
    if (!pair) fail_msg("%s", error.text);
    return pair;
}

int node_count_of(const struct node *node, enum afd_transport_event_kind kind)
{
    int count = 0;
    for (int i = 0; i < node->log_count; i++) count += node->log[i].kind == kind;
    return count;
}

const struct afd_transport_event *node_last(const struct node *node, enum afd_transport_event_kind kind)
{
    for (int i = node->log_count; i-- > 0;)
        if (node->log[i].kind == kind) return &node->log[i];
    return NULL;
}

struct afd_pair *node_pair(struct node *from, struct node *to, struct afd_pair **other_out)
{
    static uint32_t generation;
    int opened = node_count_of(from, AFD_EVENT_OPEN), accepted = node_count_of(to, AFD_EVENT_OPEN);
    struct afd_pair *pair = node_connect(from, to, ++generation);
    wait_for(from->net,
             node_count_of(from, AFD_EVENT_OPEN) > opened && node_count_of(to, AFD_EVENT_OPEN) > accepted);
    if (other_out) *other_out = node_last(to, AFD_EVENT_OPEN)->pair;
    return pair;
}

void two_open(struct two *two, const struct test_kind *kind, uint64_t slab_bytes)
{
    net_open(&two->net);
    struct afd_transport_config a = node_config(kind, AFD_ROLE_ATTN, 3),
                                f = node_config(kind, AFD_ROLE_FFN, 1);
    two->a = node_open(&two->net, &a, slab_bytes);
    two->f = node_open(&two->net, &f, slab_bytes);
}

enum afd_status put_until_taken(struct node *node, struct afd_pair *pair, uint16_t region, const void *from,
                                uint32_t bytes, uint16_t sequence)
{
    enum afd_status status;
    while ((status = afd_pair_put(pair, region, from, bytes, sequence)) == AFD_AGAIN) pump(node->net);
    return status;
}

static unsigned char byte_of(uint64_t i, uint32_t seed)
{
    return (unsigned char)((i * 0x9e3779b97f4a7c15u + seed * 0x2545f4914f6cdd1du) >> 56);
}

void fill(unsigned char *to, uint64_t bytes, uint32_t seed)
{
    for (uint64_t i = 0; i < bytes; i++) to[i] = byte_of(i, seed);
}

int matches(const unsigned char *at, uint64_t bytes, uint32_t seed)
{
    for (uint64_t i = 0; i < bytes; i++)
        if (at[i] != byte_of(i, seed)) return 0;
    return 1;
}
