/* ffn.h: a simulated FFN rank: what ffn.c (messages, batches, answers), ffn_links.c (pairs, the tp group) and
 * collective.c share. */
#ifndef AFD_SIM_FFN_H
#define AFD_SIM_FFN_H

#include "ffn_node/group.h"
#include "ffn_node/members.h"
#include "sim/world.h"

/* One (attention rank, slot). */
struct sim_place {
    struct afd_a2f_header header; /* as checked */
    struct sim_message *region;   /* what the NIC wrote */
    struct sim_rows **answers;    /* [ep]: source buffers of the answers */
    struct afd_f2a_header *heads; /* [ep] */
    uint64_t unsent, last_step;
    uint32_t readers; /* batches that read the region */
    uint8_t is_busy, in_outbox;
};

struct sim_source {
    uint32_t rank;
    struct sim_pair *pair;
    int is_open, is_listed;
    uint64_t incarnation;
    struct sim_place *places; /* [slots] */
};

struct sim_peer {
    struct sim_pair *pair;
    int is_open, is_listed;
    uint64_t incarnation;
    uint32_t generation, backoff_ms;
    afd_ns retry_at;
};

enum sim_group_state { SIM_GROUP_DOWN, SIM_GROUP_FORMING, SIM_GROUP_UP };

enum sim_run_step {
    SIM_RUN_IDLE,
    SIM_RUN_GATHER,
    SIM_RUN_GATHERING,
    SIM_RUN_COMPUTE,
    SIM_RUN_COMPUTING,
    SIM_RUN_REDUCE,
    SIM_RUN_REDUCING,
    SIM_RUN_FINISH
};

struct sim_run {
    enum sim_run_step step;
    const struct afd_ffn_batch *batch;
    uint64_t shares;                   /* of the members, added up: token.h */
    afd_ns formed, joined, compute_ns; /* joined: its last collective */
    struct sim_rows **rows;            /* [afd_gather_max_parts] own parts: what was read of the regions */
};

struct sim_ffn {
    struct sim_world *w;
    struct sim_node *node;
    uint32_t slots, tp, self, instance, attn_ranks, source_count, max_batch_rows;
    struct afd_arena *arena;
    struct afd_ffn_group *core; /* NULL until the shards are loaded */
    uint64_t epoch, held, wanted, loading;
    int is_assigned, is_ready, is_loaded;
    uint32_t listed_sources, open_pairs;
    struct sim_source *sources;
    struct sim_peer peers[AFD_MAX_TP];
    enum sim_group_state group_state;
    struct afd_members members;
    int is_left_out;
    uint64_t group_serial; /* of the group that is up or forming */
    struct sim_run runs[AFD_FFN_DEPTH];
    uint32_t device_ops;
    afd_ns device_free, timer_at;
    uint32_t *outbox, outbox_room, outbox_first, outbox_count;
    int room_due, is_draining, was_up;
};

/* ffn.c */
void sim_ffn_forget(struct sim_ffn *n, struct sim_source *source);
void sim_ffn_abandon(struct sim_ffn *n);
void sim_ffn_collected(struct sim_ffn *n, uint64_t batch, uint32_t phase, uint64_t shares);
void sim_ffn_set_ready(struct sim_ffn *n);
void sim_ffn_check_drained(struct sim_ffn *n);

/* ffn_links.c */
void sim_ffn_fail_group(struct sim_ffn *n, uint32_t member);
void sim_ffn_poison(struct sim_ffn *n, struct sim_source *source, const char *words);
void sim_ffn_on_peers(struct sim_ffn *n, const struct sim_peers *peers);
void sim_ffn_request(struct sim_world *w, struct sim_node *node, struct sim_pair *pair);
void sim_ffn_open(struct sim_world *w, struct sim_node *node, struct sim_pair *pair);
void sim_ffn_lost(struct sim_world *w, struct sim_node *node, struct sim_pair *pair);
void sim_ffn_told(struct sim_ffn *n, struct sim_message *m); /* by another member */
void sim_ffn_group_progress(struct sim_ffn *n);

/* collective.c: all-gathers and reduce-scatters inside an instance. Phase 0, 1. `what` must be the same for
 * every member of one batch; `share` is added up. Its end comes as sim_ffn_collected. */
void sim_collective_join(struct sim_ffn *n, uint64_t batch, uint32_t phase, uint64_t what, uint64_t share,
                         uint64_t bytes);
/* A member whose part has not come. */
uint32_t sim_collective_awaits(struct sim_ffn *n, uint64_t batch, uint32_t phase);

static inline struct sim_ffn *sim_ffn_of(const struct sim_node *node)
{
    return node->body;
}
static inline struct sim_source *sim_source_of(struct sim_ffn *n, uint32_t rank)
{
    return &n->sources[rank / n->tp];
}

#endif
