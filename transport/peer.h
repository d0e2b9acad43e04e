/* peer.h: the pure core of a pair's life: no I/O, no clock, no allocation. transport.c is its shell.
 *
 *                 challenge done          hello / accept valid       both data paths work
 *   CONNECTING ------------------> CHALLENGED -----------> GREETED -------------------> OPEN
 *        |                             |                      |                           |
 *        +-----------------------------+----------+-----------+---------------------------+
 *                                                 | refused, died, poisoned, deadline   ->  LOST
 *                                                 | closed by its owner, replaced       ->  FENCED
 *
 * The connector sends the hello when it is challenged, the acceptor asks its owner and then answers with
 * accept. Each side then sends one message over the data path; a pair is open when the peer's came through,
 * so a data path that works one way only is found here and not by the first row.
 *
 * Generations: between one connecting and one accepting process the generation grows with each attempt. A
 * hello with one that is not newer than what was accepted before is refused; a newer one, once the owner
 * accepts it, fences the pair before it. Incarnations are random, so of two processes that claim one rank
 * only the owner (who has the scheduler's view) can tell which is current: it refuses the other. */
#ifndef AFD_TRANSPORT_PEER_H
#define AFD_TRANSPORT_PEER_H

#include "transport/transport.h"

enum afd_peer_state {
    AFD_PEER_CONNECTING,
    AFD_PEER_CHALLENGED,
    AFD_PEER_GREETED,
    AFD_PEER_OPEN,
    AFD_PEER_LOST,
    AFD_PEER_FENCED,
};

enum afd_peer_input {
    AFD_PEER_PROVED,   /* the challenge is done */
    AFD_PEER_HELLO,    /* acceptor: a hello that agrees with us */
    AFD_PEER_ACCEPTED, /* acceptor: by the owner; connector: by the other side */
    AFD_PEER_PATH,     /* something of the peer came through the data path */
    AFD_PEER_END,      /* refused, died, poisoned, too late */
    AFD_PEER_CLOSE,    /* by the owner, or replaced */
};

enum afd_peer_action {
    AFD_PEER_NOTHING,
    AFD_PEER_SEND_HELLO,
    AFD_PEER_ASK_OWNER,   /* report REQUEST */
    AFD_PEER_ATTACH,      /* set up our data path */
    AFD_PEER_ATTACH_OPEN, /* set up our data path; the peer's already came through: then report OPEN */
    AFD_PEER_REPORT_OPEN,
    AFD_PEER_REPORT_LOST,
    AFD_PEER_FORGET,   /* the owner never heard of it: free it */
    AFD_PEER_VIOLATED, /* the input breaks the protocol: fail the pair */
};

struct afd_peer {
    enum afd_peer_state state;
    int is_connector, is_accepted, path_works;
    struct afd_identity self, other; /* acceptor: `other` is known from GREETED on */
    uint32_t generation;
    uint64_t epoch;
    afd_ns began, deadline; /* by which it must be open */
};

void afd_peer_init(struct afd_peer *peer, int is_connector, const struct afd_identity *self, afd_ns now,
                   afd_ns limit);
enum afd_peer_action afd_peer_on(struct afd_peer *peer, enum afd_peer_input input);

/* AFD_ERR_DEADLINE with who waited how long for whom and what, if the pair should be open by now and is not.
 */
enum afd_status afd_peer_expire(const struct afd_peer *peer, afd_ns now, struct afd_error *error_out);

/* "attn/3", for words; `out` takes 24 bytes. */
const char *afd_identity_text(const struct afd_identity *identity, char out[24]);

/* What a transport remembers of those who connected to it: one entry a rank, kept after the pair is gone, so
 * that a hello that was delayed cannot come back as new. */
struct afd_peer_record {
    uint64_t incarnation;
    uint64_t next; /* the accepted generation plus 1; 0: none yet */
    uint32_t live; /* the pair's index plus 1; 0: none */
};
struct afd_peer_book {
    struct afd_peer_record of[AFD_ROLE_COUNT][AFD_MAX_RANKS];
};

/* AFD_ERR_REFUSED with words when the generation is not newer than the accepted one of that incarnation. */
enum afd_status afd_peer_book_check(const struct afd_peer_book *book, const struct afd_identity *who,
                                    uint32_t generation, struct afd_error *error_out);
/* Records pair `index` as accepted; returns the index plus 1 of the pair to fence, or 0. Check it first. */
uint32_t afd_peer_book_accept(struct afd_peer_book *book, const struct afd_identity *who, uint32_t generation,
                              uint32_t index);
void afd_peer_book_leave(struct afd_peer_book *book, const struct afd_identity *who, uint32_t index);

#endif
