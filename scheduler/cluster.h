/* cluster.h: the cluster view: which ranks there are, in which state, and where the shards are (pure core).
 *
 * The shell reports registrations, Ready, heartbeats, ends of connections, what hosts say of their processes
 * and what an operator asks for, each with the time; the core answers with actions, which the shell takes
 * with afd_cluster_next until there are none and carries out in order. Members are numbered by role and rank
 * as in the topology, up to the pools' largest; a connection is the shell's own number, never 0. Memory comes
 * from the arena at creation. A rank that misbehaves loses its own place alone.
 *
 * A member's life:
 *
 *      starting --registered--> joining --ready--> ready --leave or drains--> draining
 *                                  ^                 |                          |
 *                                  |                 v    connection ended,     v
 *                                  +--registered--- lost <--lease passed--------+
 *
 * A rank that comes back with the incarnation that was ready before still holds its weights and is ready at
 * once; a new incarnation loads and joins anew. Peers go out first when every rank of the topology is
 * registered (epoch 1) and again, with the next epoch, whenever a member is lost or registered.
 *
 * An instance's life, and the change that takes it through (scaling.c):
 *
 *      absent --launched--> preparing --committed--> active --committed without it--> draining --> absent
 *                               '------------------rolled back------------------------^
 *
 *   prepare   new ranks start and load; ranks that serve load what they are to hold besides
 *   open      Peers show old and new placement together, so that attention ranks open pairs; they say
 *             when they are *settled*: every pair of the epoch is open, no message goes by an older placement
 *   journal   the plan is written down; only then it is the cluster's
 *   drain     what is not in the new placement is dropped when the attention ranks have settled on it; an
 * attention rank that leaves finishes what it has, until its time is over
 *
 * Until the journal has the plan a change can be rolled back; then it goes forward, over a restart too. What
 * a restart has still to do is in the journal from its beginning: the next scheduler goes on with it. A shard
 * that no whole instance holds any more is placed on one with room at once; one operator's change runs at a
 * time. */
#ifndef AFD_SCHEDULER_CLUSTER_H
#define AFD_SCHEDULER_CLUSTER_H

#include "base/arena.h"
#include "deploy/topology.h"
#include "scheduler/placement.h"

enum afd_member_state {
    AFD_MEMBER_STARTING,
    AFD_MEMBER_JOINING,
    AFD_MEMBER_READY,
    AFD_MEMBER_LOST,
    AFD_MEMBER_DRAINING,
};

enum afd_instance_state {
    AFD_INSTANCE_ABSENT,
    AFD_INSTANCE_PREPARING,
    AFD_INSTANCE_ACTIVE,
    AFD_INSTANCE_DRAINING,
};

enum { AFD_CLUSTER_HOST_BYTES = 128, AFD_CLUSTER_WORDS_BYTES = 256, AFD_CLUSTER_PLAN_BYTES = 8192 };

struct afd_cluster_member {
    enum afd_role role;
    uint32_t rank;
    enum afd_member_state state;
    uint64_t connection; /* 0: none */
    uint64_t incarnation;
    int was_ready;     /* this incarnation has been ready */
    afd_ns heard;      /* last sign of life */
    afd_ns since;      /* in this state */
    uint64_t loaded;   /* FFN: set of shards */
    uint64_t dropping; /* of them: not assigned any more, and not reported as gone yet */
    uint64_t settled;  /* attention: the epoch that it has settled on */
    uint32_t start;    /* counts the starts that were asked for */
    int gave_up;       /* its host starts it no more */
    int is_cut;        /* it cannot reach the others, or they cannot reach it: nothing is expected of it */
    uint32_t cuts;     /* how often that was so */
    afd_ns in_reach_since;                    /* is_cut: and would not need to be */
    uint64_t unreachable[AFD_MAX_RANKS / 64]; /* set of FFN ranks; an FFN rank's: of its instance */
    char words[AFD_CLUSTER_WORDS_BYTES];      /* why it is in this state */
    uint32_t pid;
    char host[AFD_CLUSTER_HOST_BYTES], data_address[AFD_CLUSTER_HOST_BYTES];
};

struct afd_cluster_registration {
    uint64_t connection;
    enum afd_role role;
    uint32_t rank;
    uint64_t incarnation;
    uint32_t pid;
    const char *host, *data_address;
    const uint8_t *model_hash, *topology_hash;
    size_t model_hash_bytes, topology_hash_bytes;
    uint64_t loaded; /* FFN: set of shards */
};

enum afd_cluster_action_kind {
    AFD_CLUSTER_REFUSE,  /* send the words over `connection`, for good, and close it */
    AFD_CLUSTER_EVICT,   /* the same, but the rank may come back */
    AFD_CLUSTER_ASSIGN,  /* send Assign over `connection`: afd_cluster_shards(rank) */
    AFD_CLUSTER_PEERS,   /* send the members that are connected, and the placement, to all of them */
    AFD_CLUSTER_UP,      /* the rank is ready */
    AFD_CLUSTER_DOWN,    /* the rank is lost, ready or not: what it had is to be repeated elsewhere */
    AFD_CLUSTER_DRAIN,   /* send Drain: it takes nothing new, and has `ms` for what it has */
    AFD_CLUSTER_RUN,     /* tell the hosts which processes are to run: afd_cluster_runs */
    AFD_CLUSTER_JOURNAL, /* write down afd_cluster_encode, then say afd_cluster_journaled */
    AFD_CLUSTER_SAY,     /* `words` for the log; not orderly: a warning */
    AFD_CLUSTER_END,     /* the scheduler ends, for the next one to go on: it is restarted too */
};

struct afd_cluster_action {
    enum afd_cluster_action_kind kind;
    uint64_t connection;
    enum afd_role role;
    uint32_t rank;
    int is_orderly; /* REFUSE, EVICT, DOWN: it said that it leaves; nothing is wrong */
    uint32_t ms;
    char words[AFD_CLUSTER_WORDS_BYTES];
};

enum afd_change_kind {
    AFD_CHANGE_SCALE,
    AFD_CHANGE_DRAIN,
    AFD_CHANGE_RESTART,
    AFD_CHANGE_REPAIR,
    AFD_CHANGE_BALANCE
};
enum afd_change_phase {
    AFD_CHANGE_NONE,
    AFD_CHANGE_PREPARE,
    AFD_CHANGE_OPEN,
    AFD_CHANGE_JOURNALED, /* being written down */
    AFD_CHANGE_DRAINING,
    AFD_CHANGE_DONE,
    AFD_CHANGE_FAILED, /* rolled back: `words` say why */
};

/* What is under way, or was last. */
struct afd_cluster_change {
    uint64_t id; /* 0: there was none */
    enum afd_change_kind kind;
    enum afd_change_phase phase;
    uint32_t from[AFD_ROLE_COUNT], to[AFD_ROLE_COUNT]; /* instances */
    afd_ns since;
    char words[AFD_CLUSTER_WORDS_BYTES]; /* what it waits for, or why it failed */
};

struct afd_cluster;

/* NULL when the arena is exhausted. `topology` is read as long as the cluster lives. */
struct afd_cluster *afd_cluster_create(struct afd_arena *arena, const struct afd_topology *topology,
                                       const uint8_t model_hash[AFD_HASH_BYTES]);

void afd_cluster_register(struct afd_cluster *cluster, const struct afd_cluster_registration *registration,
                          afd_ns now);
/* Of the rank that registered over `connection`; ignored when there is none (any more). */
/* `loaded`: FFN, set of shards. `settled`: attention, on `epoch`. */
void afd_cluster_ready(struct afd_cluster *cluster, uint64_t connection, uint64_t epoch, uint64_t loaded,
                       int settled, afd_ns now);
void afd_cluster_heartbeat(struct afd_cluster *cluster, uint64_t connection, afd_ns now);
/* With a heartbeat: the FFN ranks that an attention rank cannot reach; of an FFN rank, those of its instance
 * that it cannot work with (itself: it does not know which). */
void afd_cluster_unreachable(struct afd_cluster *cluster, uint64_t connection, const uint32_t *ffn_ranks,
                             size_t count);
void afd_cluster_draining(struct afd_cluster *cluster, uint64_t connection);
void afd_cluster_leave(struct afd_cluster *cluster, uint64_t connection, const char *why);
void afd_cluster_closed(struct afd_cluster *cluster, uint64_t connection);
/* Enforces leases; call every heartbeat interval or so. */
void afd_cluster_tick(struct afd_cluster *cluster, afd_ns now);

/* What a host says of a process: its `start`, whether it is running, or given up with words. */
void afd_cluster_process(struct afd_cluster *cluster, enum afd_role role, uint32_t rank, uint32_t start,
                         int gave_up, const char *words);
/* What was measured of each shard, relative to the others, since the last time. With pools.ffn.rebalance:
 * auto shards are placed anew when it stays unevenly spread. */
void afd_cluster_loads(struct afd_cluster *cluster, const double *load, afd_ns now);
/* Load of the most loaded instance over the mean; by the number of shards while none was measured. */
double afd_cluster_imbalance(const struct afd_cluster *cluster);
/* The plan of AFD_CLUSTER_JOURNAL is on the disk; `ok` 0: it cannot be written. */
void afd_cluster_journaled(struct afd_cluster *cluster, int ok);

/* ---- what an operator asks for. AFD_AGAIN with words: another change is under way; AFD_ERR_REQUEST: it
 * cannot be. */
enum afd_status afd_cluster_scale(struct afd_cluster *cluster, uint32_t attn, uint32_t ffn, afd_ns now,
                                  struct afd_error *error_out);
/* The instance of the rank leaves its pool. */
enum afd_status afd_cluster_drain(struct afd_cluster *cluster, enum afd_role role, uint32_t rank, afd_ns now,
                                  struct afd_error *error_out);
/* The instances of these ranks leave and come back as new processes, one after the other. */
struct afd_cluster_rank {
    enum afd_role role;
    uint32_t rank;
};
enum afd_status afd_cluster_restart(struct afd_cluster *cluster, const struct afd_cluster_rank *ranks,
                                    uint32_t count, afd_ns now, struct afd_error *error_out);
/* .. and then, after all of them, the scheduler. Right behind afd_cluster_restart, which may have named none.
 */
void afd_cluster_restart_scheduler(struct afd_cluster *cluster);

/* ---- what survives a restart of the scheduler: members and placement as they are, or are about to be */
size_t afd_cluster_encode(const struct afd_cluster *cluster, uint8_t out[AFD_CLUSTER_PLAN_BYTES]);
/* Right after create. AFD_ERR_PROTOCOL with words: not a plan of this topology; nothing has changed. */
enum afd_status afd_cluster_restore(struct afd_cluster *cluster, const uint8_t *bytes, size_t size,
                                    afd_ns now, struct afd_error *error_out);

/* Takes the next action; 0 when there is none. To be called after every event. */
int afd_cluster_next(struct afd_cluster *cluster, struct afd_cluster_action *out);

const struct afd_topology *afd_cluster_topology(const struct afd_cluster *cluster);
uint64_t afd_cluster_epoch(const struct afd_cluster *cluster); /* 0 before the first Peers */
uint32_t afd_cluster_size(const struct afd_cluster *cluster);
/* All ranks of the role that are to run are connected. */
int afd_cluster_has_all(const struct afd_cluster *cluster, enum afd_role role);
/* Attention ranks first, then FFN ranks. */
const struct afd_cluster_member *afd_cluster_at(const struct afd_cluster *cluster, uint32_t index);
/* NULL when nobody registered over it. */
const struct afd_cluster_member *afd_cluster_of(const struct afd_cluster *cluster, uint64_t connection);
/* The shards an FFN rank loads, ascending; returns how many. 0 for attention. */
uint32_t afd_cluster_shards(const struct afd_cluster *cluster, enum afd_role role, uint32_t rank,
                            uint32_t shards_out[AFD_MAX_SHARDS]);
/* Instances that hold a shard, in order of preference, as Peers show them. */
uint32_t afd_cluster_placement(const struct afd_cluster *cluster, uint32_t shard,
                               uint32_t out[AFD_MAX_FFN_INSTANCES]);

uint32_t afd_cluster_index(const struct afd_cluster *cluster, enum afd_role role, uint32_t rank);
enum afd_instance_state afd_cluster_instance(const struct afd_cluster *cluster, enum afd_role role,
                                             uint32_t instance);
/* Peers name it. */
int afd_cluster_lists(const struct afd_cluster *cluster, const struct afd_cluster_member *member);
/* .. and attention ranks try to reach it, though no shard is placed there. */
int afd_cluster_is_left_out(const struct afd_cluster *cluster, const struct afd_cluster_member *member);
/* A process of the rank is to run. */
int afd_cluster_runs(const struct afd_cluster *cluster, enum afd_role role, uint32_t rank);
/* The operator's last change; the core's own one. */
const struct afd_cluster_change *afd_cluster_change(const struct afd_cluster *cluster);
const struct afd_cluster_change *afd_cluster_own_change(const struct afd_cluster *cluster);
int afd_cluster_is_changing(const struct afd_cluster *cluster);

/* Every rank of the topology has been ready at one time. */
int afd_cluster_was_complete(const struct afd_cluster *cluster);
/* Requests can run: complete once, and now an attention rank is ready and each shard has a whole instance. */
int afd_cluster_serves(const struct afd_cluster *cluster);

const char *afd_member_state_name(enum afd_member_state state);
/* Of a member as an operator wants it: its own, or its instance's that is not active. */
const char *afd_cluster_state_name(const struct afd_cluster *cluster,
                                   const struct afd_cluster_member *member);
const char *afd_change_kind_name(enum afd_change_kind kind);
const char *afd_change_phase_name(enum afd_change_phase phase);

#endif
