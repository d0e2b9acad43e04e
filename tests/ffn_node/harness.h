/* harness.h: real FFN ranks (threads) over the loop transport, with the test as their scheduler and as their
 * attention ranks. All of it but the ranks runs on the test's thread. */
#ifndef AFD_TESTS_FFN_NODE_HARNESS_H
#define AFD_TESTS_FFN_NODE_HARNESS_H

#include <pthread.h>

#include "compute/compute.h"
#include "ffn_node/node.h"
#include "transport/transport.h"

enum { H_MAX_TP = 4, H_MAX_ATTN = 4, H_MAX_SLOTS = 3, H_MAX_ROWS = 12, H_MAX_EP = 4 };

struct harness;

struct h_rank { /* an FFN rank as the scheduler and the process table see it */
    struct harness *h;
    uint32_t rank;
    pthread_t thread;
    int is_running, is_listed, is_ready, has_left, exit_status;
    struct afd_channel *channel;
    uint64_t incarnation, steps, rows, expert_rows, stage_ns;
    uint32_t unreachable;                 /* set of ranks, by its last heartbeat */
    uint32_t shards;                      /* that its last Ready named */
    uint64_t loaded_bytes, loading_bytes; /* by its last Loading; 0: it said nothing */
    char address[AFD_ADDRESS_BYTES];
};

struct h_attn {
    struct harness *h;
    uint32_t rank, generation;
    struct afd_transport *transport;
    struct event *event;
    struct afd_identity identity;
    struct afd_pair *pair;
    int is_open, lost_count;
    unsigned char *memory, *a2f, *f2a;
    uint64_t expected[H_MAX_SLOTS], got[H_MAX_SLOTS]; /* shards asked and answered */
    uint16_t sequence[H_MAX_SLOTS];
    uint64_t step;
};

struct harness {
    char dir[64], topology_file[128];
    struct afd_topology *topology;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    uint8_t model_hash[AFD_HASH_BYTES], secret[AFD_SECRET_BYTES];
    struct afd_wire_layout wire;
    uint32_t ep, tp, attn_count, slots;
    struct event_base *base;
    struct event *listener, *watchdog;
    char control[AFD_ADDRESS_BYTES];
    uint64_t epoch;
    struct h_rank ranks[H_MAX_TP];
    struct h_attn attn[H_MAX_ATTN];
    struct afd_device *oracle[H_MAX_TP]; /* the members' weights, one device each */
    uint32_t assign_shards;              /* how many of ep the scheduler assigns */
    int deaf_fd;                         /* takes connections and says nothing; 0: there is none */
    char deaf[AFD_ADDRESS_BYTES];
};

struct harness *h_start(uint32_t tp, uint32_t attn, uint32_t ep, const char *a2f, const char *gather_us);
void h_stop(struct harness *h);
void h_rank_start(struct harness *h, uint32_t rank);
void h_rank_kill(struct harness *h, uint32_t rank); /* makes the process end by itself, and waits for it */
void h_drain(struct harness *h);
void h_assign(struct harness *h, uint32_t shards); /* to all, while they serve */
/* The scheduler leaves the instance out, or no more; meanwhile leases are short, and rank 0 is at an address
 * where nobody answers. */
void h_leave_out(struct harness *h, int is_left_out);

/* Runs the loop until `condition` holds; a watchdog fails the test instead of hanging it. */
void h_wait(struct harness *h, int (*condition)(struct harness *h, void *user), void *user);
void h_wait_ready(struct harness *h);
void h_connect(struct harness *h, uint32_t attn); /* and waits until the pair is open */
void h_disconnect(struct harness *h, uint32_t attn);

/* Random valid rows of a layer in the slot's A2F buffer; h_send puts them. */
struct afd_a2f_header *h_message(struct harness *h, uint32_t attn, uint32_t slot, uint32_t layer,
                                 uint32_t rows, uint64_t shards, uint64_t seed);
void h_send(struct harness *h, uint32_t attn, uint32_t slot);
int h_is_answered(const struct h_attn *a, uint32_t slot);
/* Compares the slot's answers with what the devices compute from the same message alone. */
void h_check_answers(struct harness *h, uint32_t attn, uint32_t slot);

#endif
