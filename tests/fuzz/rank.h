/* rank.h: what the fuzzers of control messages to a rank share (rank.c): the rank's own shell and cores, told
 * by a scheduler that holds the secret and says anything; in place of its connection, its transport and its
 * device, this.
 *
 * The input is steps, one after the other:
 *   | uint8: enum rank_what | uint8: an argument | uint16 bytes | an Envelope |
 * A message is decoded as the channel does it. While it is decoded and handled the rank may allocate
 * RANK_MULTIPLE times its bytes and RANK_FIXED; all that it sends must be whole.
 *
 * Pairs open when they were connected to an address with an even last digit, say "for now" at one with an odd
 * one, and are lost at once at another. A fuzzer supplies the functions below; the good input has a message
 * of each type of the protocol, and is not good without. */
#ifndef AFD_TESTS_FUZZ_RANK_H
#define AFD_TESTS_FUZZ_RANK_H

#include "compute/compute.h"
#include "proto/member.h"
#include "tests/fuzz/fuzz.h"
#include "transport/transport.h"

enum { RANK_MULTIPLE = 64, RANK_FIXED = 1 << 16 };

enum rank_what {
    RANK_SAY,
    RANK_SAY_TOO,
    RANK_BREAK, /* the connection ends, and the rank registers again */
    RANK_PASS,  /* 2^argument mod 16 ms */
    RANK_ASK,   /* an attention rank asks an FFN rank for a pair */
    RANK_WHATS
};

/* ---- of the fuzzer */

void rank_open(void);
void rank_close(void);
/* Until nothing is left to do now; 0: the rank has ended. */
int rank_work(void);
void rank_pass(afd_ns ns);
void rank_ask(uint8_t argument);
/* What the rank sends; after each step. */
void rank_sent(const Afd__Envelope *message);
void rank_check(void);
int rank_is_served(void);              /* the last input was taken */
uint8_t *rank_good_steps(uint8_t *at); /* appends them */

/* ---- of rank.c */

enum { RANK_PAIRS = 64, RANK_EVENTS = 4096 };

/* What the fuzzers stand in for. */
struct afd_pair {
    struct afd_identity peer;
    void *user;
    int is_used, is_open;
    struct afd_region regions[512];
    uint32_t region_count;
};
struct afd_pair *rank_pair(const struct afd_identity *peer, void *user);
void rank_event(const struct afd_transport_event *event); /* the next poll has it */

/* A cluster of a tiny model, by its topology file but for the model; made once. */
struct rank_cluster {
    struct afd_topology *topology;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
};
const struct rank_cluster *rank_cluster(const char *yaml);
uint8_t *rank_add(uint8_t *at, enum rank_what what, uint8_t argument, Afd__Envelope__BodyCase body,
                  void *message);
/* One of each type that is not for the role. */
uint8_t *rank_add_others(uint8_t *at, const unsigned *own, size_t count);

#endif
