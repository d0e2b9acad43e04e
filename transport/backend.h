/* backend.h: what is shared inside transport/: the transport and pair structs, the table of functions that a
 * data path implements, and what it reports back.
 *
 *   transport.c  the public functions, hello sockets, pairs, events     hello.c  PairHello and PairAccept
 *   paths.c      which data paths are open, offered, chosen             peer.c   the core of a pair's life
 *   regions.c    a pair's receive regions and their pages               split.c  regions in two pieces
 *   loop.c, shm.c, verbs.c, ucx.c, tcp.c  data paths
 *
 * On a data path a pair is named by its receiver's (index, key): the index finds it, the random key, sent
 * over the authenticated hello connection alone, proves that the message is meant for this pair and no
 * earlier one. */
#ifndef AFD_TRANSPORT_BACKEND_H
#define AFD_TRANSPORT_BACKEND_H

#include "transport/peer.h"
#include "transport/transport.h"

enum {
    AFD_MAX_PAIRS = 4 * AFD_MAX_RANKS,
    AFD_MAX_UNPROVED = 256,         /* accepted connections whose hello has not come */
    AFD_PATH_ADDRESS_BYTES = 16384, /* a data path's address in a hello */
};

/* Data paths, in the order of preference. */
enum afd_way { AFD_WAY_LOOP, AFD_WAY_SHM, AFD_WAY_VERBS, AFD_WAY_UCX, AFD_WAY_TCP, AFD_WAYS };

struct afd_memory {
    unsigned char *base;
    uint64_t bytes;
    int is_device; /* no CPU may touch it */
    int dmabuf_fd; /* during add_memory; -1: none */
    uint64_t dmabuf_offset;
};

/* A data path. Its state of the whole transport is transport->back[way], of a pair pair->path[way].
 *
 * The connector prepares every open way and offers those that gave an address; of the others, and of those
 * that were not chosen, detach is called. The acceptor prepares the chosen way alone. */
struct afd_backend {
    const char *name; /* in hello: "loop", "shm", "verbs", "ucx", "tcp" */
    enum afd_way way;

    /* Sets back[way]. AFD_ERR_REFUSED: this machine has none of it (a device, a library): `error_out` says
     * what was looked for; where others are allowed the transport goes on without. */
    enum afd_status (*open)(struct afd_transport *transport, struct afd_error *error_out);
    void (*close)(
        struct afd_transport *transport); /* every pair is detached already; back[way] is not NULL */
    enum afd_status (*add_memory)(struct afd_transport *transport, const struct afd_memory *memory,
                                  struct afd_error *error_out);
    void (*remove_memory)(struct afd_transport *transport, void *base);
    /* From here on the peer's messages may come in: the pair's regions are set. */
    enum afd_status (*prepare)(struct afd_pair *pair, struct afd_error *error_out);
    /* What the peer's attach needs to reach this end of the pair; NULL: this pair cannot use the way. */
    const void *(*address)(const struct afd_pair *pair, uint32_t *bytes_out);
    /* The acceptor's question before it prepares: does an address that was offered reach the other side from
     * here? `why_out` gets a few words either way: "same host", "no port in common". */
    int (*reaches)(struct afd_transport *transport, const void *address, uint32_t bytes, char why_out[96]);
    /* The peer's index, key, regions and address are known: build our path to it and send one OPEN, or the
     * equivalent that makes the peer's afd_pair_path_works run. */
    enum afd_status (*attach)(struct afd_pair *pair, const void *address, uint32_t bytes,
                              struct afd_error *error_out);
    enum afd_status (*put)(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                           uint16_t sequence);
    /* Fences. Undoes prepare and attach, as far as they came; pair->path[way] is NULL afterwards. */
    void (*detach)(struct afd_pair *pair);

    void (*progress)(struct afd_transport *transport);
    /* AFD_AGAIN: something may be there: poll again. Else a descriptor given to afd_transport_watch becomes
     * readable with the next arrival. */
    enum afd_status (*arm)(struct afd_transport *transport);
};

/* A path for the tests alone: put with notice, as over RDMA, of which UCX makes messages of its own over TCP.
 */
enum { AFD_PATH_TCP_PUT = AFD_PATH_RDMA + 1 };

extern const struct afd_backend afd_backend_loop, afd_backend_shm, afd_backend_verbs, afd_backend_ucx,
    afd_backend_tcp;

/* Whole pages that regions of a pair touch. */
struct afd_pages {
    unsigned char *base;
    uint64_t bytes;
    const unsigned char *memory; /* base of the registered memory that they lie in */
};

struct afd_notice_event {
    uint16_t region, sequence;
    uint32_t bytes;
};

struct afd_pair {
    struct afd_transport *transport;
    struct afd_peer peer;
    uint32_t index;
    uint64_t key;
    void *user;

    struct afd_channel *channel; /* NULL once it ended */
    struct event *deadline;

    struct afd_region *regions; /* ours, each of one piece (split.c) */
    uint32_t region_count;
    struct afd_split *split; /* regions are in two pieces; else NULL */
    struct afd_pages *pages; /* that they touch: ascending, apart from each other */
    uint32_t pages_count;
    int holds_pages;        /* no other pair may have regions there: from prepare to detach */
    uint64_t *peer_regions; /* bytes, by the peer's region index */
    uint32_t peer_region_count;
    uint32_t peer_index;
    uint64_t peer_key;
    const struct afd_backend *backend; /* NULL until it is chosen */
    void *peer_address;                /* of the chosen way, from the hello, until attach */
    uint32_t peer_address_bytes;

    /* what poll has still to report, in this order: REQUEST, OPEN, the notices, LOST */
    int request_waits, open_waits, lost_waits, request_reported;
    struct afd_notice_event *notices; /* a ring of region_count + 1 */
    uint32_t notice_first, notice_count;
    enum afd_status status;
    char words[600];

    int is_ready, is_closed, is_unproved;
    struct afd_pair *next_ready;
    struct afd_pair *next_closed; /* freed by the next poll: events may still name it */

    void *path[AFD_WAYS];
    char path_why[120], path_name[160]; /* "same host"; "shm (same host)" */
};

struct afd_transport {
    struct afd_transport_config config;
    const struct afd_backend *backends[AFD_WAYS]; /* those open, by preference; NULL ends it early */
    uint32_t backend_count;
    void *back[AFD_WAYS];
    char address[AFD_ADDRESS_BYTES];
    char name[24];
    struct event *listener;
    int listen_fd, epoll_fd, wake_fd;
    int is_woken, is_polling;

    struct afd_pair **pairs; /* by index; NULL: free */
    uint32_t pair_limit, unproved_count;
    struct afd_pair *ready_first, *ready_last, *closed;
    struct afd_memory *memory;
    uint32_t memory_count;
    struct afd_peer_book book;
};

/* A descriptor that wakes the owner. Take it off before it is closed: its number may be another file's at
 * once. */
enum afd_status afd_transport_watch(struct afd_transport *transport, int fd);
void afd_transport_unwatch(struct afd_transport *transport, int fd);

/* ---- reports of a back end, from within progress or attach ---- */

/* The pair that a message names; NULL: none, or another key: the message is dropped. */
struct afd_pair *afd_transport_find(struct afd_transport *transport, uint32_t index, uint64_t key);
/* Something of the peer came through. Returns 0 when the pair may not receive (then drop it). */
int afd_pair_path_works(struct afd_pair *pair);
/* Checks a message's header; on a bad one fails the pair and returns 0. */
int afd_pair_check(struct afd_pair *pair, uint32_t region, uint64_t offset, uint64_t part_bytes,
                   uint64_t bytes);
/* All of a message lies in the region. */
void afd_pair_notice(struct afd_pair *pair, uint16_t region, uint16_t sequence, uint32_t bytes);
/* The pair alone is broken. The words go to the log, to the owner and to the peer. */
void afd_pair_fail(struct afd_pair *pair, enum afd_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- regions.c ---- */

/* AFD_ERR_REQUEST: too many, or not in registered memory. */
enum afd_status afd_regions_set(struct afd_pair *pair, const struct afd_region *regions, uint32_t count,
                                struct afd_error *error_out);
/* AFD_ERR_REQUEST: another live pair has regions on the same pages. */
enum afd_status afd_regions_claim(struct afd_pair *pair, struct afd_error *error_out);

/* ---- split.c: regions in two pieces are three of one piece each
 *
 *   r                 the head of a message that has nothing else
 *   split_count + r   the rest
 *   2 split_count + r the head of a message that has a rest: the same memory as r
 *
 * So a message is one put or two, over any way, and these may arrive in any order: the receiver knows by the
 * region whether a rest belongs to a head, and waits for the one that is missing. */

/* From regions in two pieces to three times as many of one, the caller's to free. Sets pair->split.
 * AFD_ERR_REQUEST: too many, or not all alike. */
enum afd_status afd_split_regions(struct afd_pair *pair, const struct afd_region *regions,
                                  uint32_t *count_inout, struct afd_region **out,
                                  struct afd_error *error_out);
/* A notice of one of the three. 1: the message is whole, and *event is its own. */
int afd_split_join(struct afd_pair *pair, struct afd_notice_event *event);

/* ---- paths.c: the ways of a transport and of a pair ---- */

/* Opens what the configuration allows and the machine has. */
enum afd_status afd_paths_open(struct afd_transport *transport, struct afd_error *error_out);
void afd_paths_close(struct afd_transport *transport);
enum afd_status afd_paths_add_memory(struct afd_transport *transport, const struct afd_memory *memory,
                                     struct afd_error *error_out);
void afd_paths_remove_memory(struct afd_transport *transport, void *base);
/* Connector: prepares every way. Fails when none is left. */
enum afd_status afd_paths_prepare(struct afd_pair *pair, struct afd_error *error_out);
/* Acceptor: chooses from the offers; keeps the address. AFD_ERR_REFUSED: nothing in common. */
enum afd_status afd_paths_choose(struct afd_pair *pair, Afd__PathOffer *const *offers, size_t count,
                                 struct afd_error *error_out);
/* Connector: the acceptor's choice; the other ways are detached. AFD_ERR_PROTOCOL: it was not offered. */
enum afd_status afd_paths_chosen(struct afd_pair *pair, const Afd__PathOffer *path,
                                 struct afd_error *error_out);
void afd_paths_detach(struct afd_pair *pair);
/* The interface that our hello address is on; "all": not found. */
void afd_paths_interface(const struct afd_transport *transport, char *name_out, size_t limit);

/* ---- hello.c ---- */
enum afd_status afd_hello_send(struct afd_pair *pair);
enum afd_status afd_hello_send_accept(struct afd_pair *pair);
/* Checks a message against what we are and fills the pair's peer_* fields. AFD_ERR_PROTOCOL: nonsense;
 * AFD_ERR_REFUSED: it does not fit, `error_out` names both sides' values; AFD_ERR_MEMORY. */
enum afd_status afd_hello_read(struct afd_pair *pair, const Afd__PairHello *hello,
                               struct afd_error *error_out);
enum afd_status afd_hello_read_accept(struct afd_pair *pair, const Afd__PairAccept *accept,
                                      struct afd_error *error_out);

#endif
