/* transport.h: pairs of ranks that write into each other's regions.
 *
 * A transport belongs to one rank and one thread: every function is called from that thread, nothing blocks,
 * nothing is allocated by put or poll. A pair is one connection to one other rank. Each side opens a pair
 * with a table of its own *receive regions* (memory of its slab); the other side writes whole messages into
 * them:
 *
 *   put(pair, region, bytes, sequence)   writes `bytes` from our memory to the start of the peer's region,
 * and raises the 32-bit notice (region, sequence) there after all of the data is visible: one NOTICE event
 * from the peer's poll.
 *
 * A region has one writer, and is written again only after its owner answered: flow control is the data
 * dependency. For the same reason the source of a put must stay unchanged until the peer's answer came, or
 * the pair is closed; there is no completion to wait for. Messages of one pair may overtake each other unless
 * they are to the same region.
 *
 * Connecting runs the mutual challenge with the cluster secret and the hello (struct afd_hello) over one TCP
 * connection, which stays open: its end is the peer's death. A mismatch is refused with words on both sides.
 * A failure poisons its pair alone: one LOST event, after which the pair only waits for afd_pair_close.
 *
 * A transport may have several data paths open, and each pair uses one of them: the connector offers what it
 * has, the acceptor takes the first of its own that reaches the other side, in this order:
 *
 *   shm    both ranks on one host (one kernel and network namespace): the peer's regions are mapped, a put is
 *          one copy
 *   verbs  RDMA through libibverbs: RC queue pairs, WRITE_WITH_IMM
 *   ucx    RDMA or TCP through UCX
 *   tcp    sockets of our own
 *   loop   threads of one process: the small reference that every test can run; never beside another
 *
 * The pages that a pair's regions touch belong to that pair's regions alone, for as long as the pair lives
 * (AFD_ERR_REQUEST names the other pair): shm puts other memory behind them when the pair opens, and again
 * when it is closed, which is how a stopped peer that wakes up later still writes into nothing of ours. Their
 * contents stay. A put's source lies on no page of a region, and a device that knows memory by its physical
 * pages (pinned for a GPU) has it registered as device memory. */
#ifndef AFD_TRANSPORT_TRANSPORT_H
#define AFD_TRANSPORT_TRANSPORT_H

#include <event2/event.h>

#include "base/clock.h"
#include "deploy/topology.h"
#include "proto/channel.h"

enum { AFD_MAX_REGIONS = 4096, AFD_AGREEMENT_BYTES = 192 };
enum { AFD_MAX_SPLIT_REGIONS = AFD_MAX_REGIONS / 3 };

struct afd_transport;
struct afd_pair;

/* `head` 0: one piece of memory. Else the first `head` bytes of a message lie at base, and the rest of
 * `bytes` at `rest`, which may be a device's memory: a header that the CPU reads, and rows that it does not.
 * All regions of a pair are of one kind, with the same head, and their number is at most
 * AFD_MAX_SPLIT_REGIONS where they are in two pieces; the peer writes them with afd_pair_put_split. */
struct afd_region {
    void *base; /* in registered memory, as rest */
    uint64_t bytes;
    void *rest;
    uint32_t head;
};

/* What both ends must have in common; compared field by field, so that a refusal names what differs. Text,
 * because people read it: "a2f=fp8 f2a=bf16 dispatch=broadcast", "hidden=7168 rows=128 ...", "portable/2". */
struct afd_agreement {
    uint8_t model_hash[AFD_HASH_BYTES];
    char dtypes[AFD_AGREEMENT_BYTES];
    char layout[AFD_AGREEMENT_BYTES];
    char numerics[AFD_AGREEMENT_BYTES];
};

/* Who somebody is. */
struct afd_identity {
    enum afd_role role;
    uint32_t rank;
    uint64_t incarnation; /* random, new at each start of the process */
};

struct afd_transport_config {
    struct event_base *base; /* drives the hello sockets; the data path is driven by poll */
    enum afd_data_transport
        kind;                /* the network's library; auto: RDMA where both ends have it, else sockets */
    enum afd_data_path path; /* auto: shared memory on one host, else the network; shm, tcp, rdma: that
                                alone, on one host too */
    struct afd_network_options network;
    const char *host; /* address to listen on for hello: "127.0.0.1", port is chosen */
    uint8_t secret[AFD_SECRET_BYTES];
    struct afd_identity self;
    struct afd_agreement agreement;
    uint32_t connect_timeout_ms;
    uint64_t max_message_bytes; /* the largest put */
};

enum afd_transport_event_kind {
    AFD_EVENT_REQUEST, /* somebody wants a pair: answer with afd_pair_accept or afd_pair_refuse */
    AFD_EVENT_OPEN,    /* the pair can be written to */
    AFD_EVENT_NOTICE,  /* a message lies in our region `region` */
    AFD_EVENT_LOST,    /* refused, timed out, died or poisoned: `status` and words tell */
};

struct afd_transport_event {
    enum afd_transport_event_kind kind;
    struct afd_pair *pair;
    uint16_t region, sequence; /* NOTICE */
    uint32_t bytes;            /* NOTICE: as written; at most the region's size, already checked */
    enum afd_status status;    /* LOST; AFD_AGAIN: the peer says "later" (another epoch) */
    const char *words;         /* LOST; valid until the next poll */
};

/* Opens the hello socket. `address_out` receives the "host:port" that others connect to. */
enum afd_status afd_transport_open(const struct afd_transport_config *config, struct afd_transport **out,
                                   char address_out[AFD_ADDRESS_BYTES], struct afd_error *error_out);
void afd_transport_close(struct afd_transport *transport); /* closes its pairs; NULL is allowed */

/* Rounded up to whole pages: where the next pair's regions may begin. */
uint64_t afd_page_align(uint64_t bytes);

/* Memory that put reads from and that regions lie in must be registered, once, at start: whole pages, at a
 * page's boundary (AFD_ERR_REQUEST). */
enum afd_status afd_transport_register(struct afd_transport *transport, void *base, uint64_t bytes);
/* The same for a device's memory, which no CPU may touch: `dmabuf_fd` (borrowed during the call) and the
 * offset in it where `base` is; -1: the RDMA driver finds it by address (peer memory). AFD_ERR_REQUEST: no
 * open data path can. */
enum afd_status afd_transport_register_device(struct afd_transport *transport, void *base, uint64_t bytes,
                                              int dmabuf_fd, uint64_t offset);
void afd_transport_deregister(struct afd_transport *transport, void *base);

/* Begins a pair; OPEN or LOST follows. `generation` is the pair's own: it grows with each attempt between the
 * same two ranks. peer->incarnation 0: any. NULL: the address is malformed, a region is not in registered
 * memory or memory is out. */
struct afd_pair *afd_pair_connect(struct afd_transport *transport, const char *address,
                                  const struct afd_identity *peer, uint32_t generation, uint64_t epoch,
                                  const struct afd_region *regions, uint32_t region_count, void *user,
                                  struct afd_error *error_out);
/* Answer a REQUEST. After accept an OPEN follows, or LOST. Accepting fences an older pair of the same rank
 * (its LOST follows), so that the new one may be given the same regions. AFD_ERR_PEER, AFD_ERR_REFUSED: it
 * ended, or a newer generation was accepted meanwhile; AFD_ERR_REQUEST: a region is not in registered memory,
 * or on a page of another live pair. The pair then waits for afd_pair_close. */
enum afd_status afd_pair_accept(struct afd_pair *pair, const struct afd_region *regions,
                                uint32_t region_count, void *user);
void afd_pair_refuse(struct afd_pair *pair, int later, const char *words); /* the pair is gone afterwards */

/* AFD_AGAIN: no resources now: poll, then call again. AFD_ERR_PEER: not open, or lost. AFD_ERR_REQUEST: the
 * peer has no such region, or it is smaller, or `bytes` is over max_message_bytes. `bytes` 0: a notice alone.
 * Who puts goes on to poll or arm: a peer that falls asleep at the same moment is woken from there. */
enum afd_status afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                             uint16_t sequence);

/* The same to a region in two pieces: `head` bytes from `from`, then rest_bytes from `rest`. Still one
 * NOTICE, of head + rest_bytes, when both are there. AFD_AGAIN: call again with the same. */
enum afd_status afd_pair_put_split(struct afd_pair *pair, uint16_t region, const void *from, uint32_t head,
                                   const void *rest, uint32_t rest_bytes, uint16_t sequence);

/* Fences: after it returns no write of the peer reaches our regions any more. Events of the pair that the
 * last poll returned stay readable until the next poll; their afd_pair_user is NULL from here on. */
void afd_pair_close(struct afd_pair *pair);

const struct afd_identity *afd_pair_peer(const struct afd_pair *pair);
uint32_t afd_pair_generation(const struct afd_pair *pair);
uint64_t afd_pair_epoch(const struct afd_pair *pair);
void *afd_pair_user(const struct afd_pair *pair);
const char *afd_pair_path(const struct afd_pair *pair); /* "shm (same host)"; "" until it is chosen */

/* Progress; at most `limit` events. Fair between pairs. A pair's notices come in the order of their
 * completion, its LOST comes last. */
uint32_t afd_transport_poll(struct afd_transport *transport, struct afd_transport_event *events_out,
                            uint32_t limit);
/* Readable when poll may have something, after arm. arm returns AFD_AGAIN when something arrived meanwhile
 * (then poll, do not sleep): no wake-up is lost. */
int afd_transport_event_fd(const struct afd_transport *transport);
enum afd_status afd_transport_arm(struct afd_transport *transport);

#endif
