/* cluster_state.h: what the files of the cluster core share. Not for others.
 *
 *   cluster.c   members: registration, leases, ends; what is asked of the core
 *   scaling.c   changes: members and placement from one plan to the next
 *   sides.c     who is left out when some cannot reach others
 *   plan.c      the plan as bytes, for the journal */
#ifndef AFD_SCHEDULER_CLUSTER_STATE_H
#define AFD_SCHEDULER_CLUSTER_STATE_H

#include "scheduler/cluster.h"

enum { AFD_RESTART_ASKED = 1, AFD_RESTART_IN_PLACE };

struct afd_cluster_place { /* an instance */
    enum afd_instance_state state;
    int leaves;      /* with the change that is being prepared */
    int restarts;    /* AFD_RESTART_*: is to be restarted by the operator's change; 0 */
    int returns;     /* left for a restart: comes back with the next move */
    int is_unlisted; /* draining: Peers name it no more */
    afd_ns drain_until;
    uint64_t assigned; /* FFN: set of shards that its ranks were told to hold */
};

enum afd_end_phase { AFD_END_NONE, AFD_END_ASKED, AFD_END_JOURNAL, AFD_END_SAID };

enum afd_move_phase { AFD_MOVE_NONE, AFD_MOVE_PREPARE, AFD_MOVE_OPEN, AFD_MOVE_JOURNAL };

/* From one placement and set of members to the next. */
struct afd_cluster_move {
    enum afd_move_phase phase;
    struct afd_cluster_change *change; /* whose it is */
    struct afd_placement target;
    uint64_t epoch; /* that shows both placements */
    afd_ns deadline;
};

struct afd_cluster {
    const struct afd_topology *topology;
    uint8_t model_hash[AFD_HASH_BYTES];
    uint32_t ranks[AFD_ROLE_COUNT], size; /* at the pools' largest */
    uint32_t each[AFD_ROLE_COUNT], instances[AFD_ROLE_COUNT];
    struct afd_cluster_member *members;               /* [size] */
    struct afd_cluster_place *places[AFD_ROLE_COUNT]; /* [instances] */
    struct afd_placement placement, shown;
    uint64_t epoch;
    int was_complete, peers_due, run_due;
    afd_ns lease, now, hold_until; /* hold: after a restart, until the ranks are back */
    struct afd_cluster_move move;
    struct afd_cluster_change own, operators;
    enum afd_end_phase end; /* of this scheduler, by the operator's restart */
    uint64_t change_count;
    uint64_t settle_epoch; /* 0: nothing is left of an older placement */
    afd_ns settle_until;
    afd_ns repair_after;
    int balance_due, plan_due;
    double load[AFD_MAX_SHARDS]; /* measured, averaged over time */
    int has_load;
    uint32_t uneven;                   /* measurements in a row */
    afd_ns stranded_since, lost_since; /* an attention rank is; the side that serves is. 0: no */
    /* A ring of actions; the shell empties it after each event. */
    struct afd_cluster_action *actions;
    uint32_t capacity, head, count;
};

static inline struct afd_cluster_member *afd_member_at(const struct afd_cluster *c, enum afd_role role,
                                                       uint32_t rank)
{
    return &c->members[role == AFD_ROLE_ATTN ? rank : c->ranks[AFD_ROLE_ATTN] + rank];
}
static inline struct afd_cluster_place *afd_place_of(const struct afd_cluster *c,
                                                     const struct afd_cluster_member *m)
{
    return &c->places[m->role][m->rank / c->each[m->role]];
}
/* Member k of an instance. */
static inline struct afd_cluster_member *afd_member_of(const struct afd_cluster *c, enum afd_role role,
                                                       uint32_t instance, uint32_t k)
{
    return afd_member_at(c, role, instance * c->each[role] + k);
}

/* cluster.c */
struct afd_cluster_action *afd_cluster_act(struct afd_cluster *c, enum afd_cluster_action_kind kind,
                                           const struct afd_cluster_member *m);
void afd_cluster_say(struct afd_cluster *c, int is_orderly, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void afd_cluster_lose(struct afd_cluster *c, struct afd_cluster_member *m, int is_orderly, const char *words);
/* Ends a member that is not wanted any more: it exits. */
void afd_cluster_dismiss(struct afd_cluster *c, struct afd_cluster_member *m, const char *words);
int afd_instance_is_connected(const struct afd_cluster *c, enum afd_role role, uint32_t instance);
/* All its ranks are ready, reached, and hold these shards. */
int afd_instance_holds(const struct afd_cluster *c, uint32_t instance, uint64_t shards);
/* The FFN instance's rail of an attention rank is out of its reach. */
int afd_member_misses(const struct afd_cluster *c, const struct afd_cluster_member *attn, uint32_t instance);
/* A member that cannot work with another one of its FFN instance, which can form no group then; NULL: none.
 */
const struct afd_cluster_member *afd_instance_torn(const struct afd_cluster *c, uint32_t instance,
                                                   uint32_t *other_out);
void afd_cluster_assign(struct afd_cluster *c, uint32_t instance, uint64_t shards);

/* sides.c */
void afd_sides_look(struct afd_cluster *c);
/* An attention rank that is given requests. */
int afd_member_serves(const struct afd_cluster *c, const struct afd_cluster_member *m);

/* scaling.c: takes one step of what is under way, when no action is left: 1 when something changed. */
int afd_scaling_step(struct afd_cluster *c);
/* A process of an instance that is being prepared will not come. */
void afd_scaling_gave_up(struct afd_cluster *c, const struct afd_cluster_member *m);
/* The disk has the plan, or will not take it. */
void afd_scaling_journaled(struct afd_cluster *c, int ok);

#endif
