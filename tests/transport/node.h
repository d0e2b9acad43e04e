/* node.h: one rank of a transport test: a transport, a slab, and what its poll reported.
 *
 * All nodes of a test share one event base. `pump` handles what is there; when nothing is, it arms every node
 * and sleeps in the base until a hello socket or a transport's descriptor wakes it, so each wait in the tests
 * is also a test of arm and event_fd. A wait that nothing ends fails the test after 30 s. */
#ifndef AFD_TESTS_TRANSPORT_NODE_H
#define AFD_TESTS_TRANSPORT_NODE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "transport/transport.h"

enum { MAX_LOG = 65536, MAX_NODES = 40 };

struct test_kind {
    const char *name;
    enum afd_data_transport kind;
    enum afd_data_path path;
    int needs_rdma; /* runs when it is named alone: on a machine with an RDMA device */
    struct afd_network_options network;
    /* UCX's put over TCP, of messages: nothing protects memory, and a peer's death can end the process */
    int emulates_put;
};
extern const struct test_kind test_kinds[];
extern const int test_kind_count;

/* Whether a program that was given `name` (NULL: none) runs this kind; says why not where none was named. */
int test_kind_is_wanted(const struct test_kind *kind, const char *name);

struct node {
    struct test_net *net;
    struct event_base *base;
    struct afd_transport *transport;
    struct afd_transport_config config;
    char address[AFD_ADDRESS_BYTES];
    unsigned char *slab;
    uint64_t slab_bytes;
    struct event *wake;

    int accepts; /* REQUESTs are accepted at once, with `regions`, moved up by rank_stride for each rank */
    struct afd_region regions[AFD_MAX_REGIONS];
    uint32_t region_count;
    uint64_t rank_stride; /* whole pages: no two pairs share one */
    /* called for each event after it was logged */
    void (*on_event)(struct node *node, const struct afd_transport_event *event);
    void *user;

    struct afd_transport_event *log;
    int log_count;
    char words[600];            /* of the last LOST */
    struct afd_pair *requested; /* the last REQUEST's */
};

struct test_net {
    struct event_base *base;
    struct event *watchdog;
    struct node *nodes[MAX_NODES];
    int node_count, is_expired;
    int sleeps; /* how often pump really slept */
};

void net_open(struct test_net *net);
void net_close(struct test_net *net); /* its nodes too */
void pump(struct test_net *net);
void pump_awake(struct test_net *net);    /* for waits that no event ends: it never sleeps */
void net_more_time(struct test_net *net); /* the 30 s begin again: there is progress */
#define wait_for(net, condition)                                                                             \
    do {                                                                                                     \
        while (!(condition)) {                                                                               \
            pump(net);                                                                                       \
            if ((net)->is_expired) fail_msg("nothing ended the wait for %s", #condition);                    \
        }                                                                                                    \
    } while (0)

/* Two nodes: attention connects, FFN accepts. */
struct two {
    struct test_net net;
    struct node *a, *f;
};
void two_open(struct two *two, const struct test_kind *kind, uint64_t slab_bytes);
/* Tries until it is not AFD_AGAIN. */
enum afd_status put_until_taken(struct node *node, struct afd_pair *pair, uint16_t region, const void *from,
                                uint32_t bytes, uint16_t sequence);

/* The configuration that all nodes of a test agree on. */
struct afd_transport_config node_config(const struct test_kind *kind, enum afd_role role, uint32_t rank);
struct node *node_open(struct test_net *net, const struct afd_transport_config *config, uint64_t slab_bytes);
void node_close(struct node *node);
/* `count` regions of `bytes` each, one after the other in the slab from `offset`. */
void node_regions(struct node *node, uint64_t offset, uint32_t count, uint64_t bytes);
void node_accept(struct node *node, struct afd_pair *pair);
struct afd_pair *node_connect(struct node *from, struct node *to, uint32_t generation);
/* Connects and waits until both ends are open; the acceptor's end is given back when wanted. */
struct afd_pair *node_pair(struct node *from, struct node *to, struct afd_pair **other_out);
int node_count_of(const struct node *node, enum afd_transport_event_kind kind);
const struct afd_transport_event *node_last(const struct node *node, enum afd_transport_event_kind kind);
/* Bytes that depend on (seed, index). */
void fill(unsigned char *to, uint64_t bytes, uint32_t seed);
int matches(const unsigned char *at, uint64_t bytes, uint32_t seed);

#endif
